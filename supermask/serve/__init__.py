"""The live page: the report and every run of a store in a browser on this machine. Reads, and never writes.

`guard` lets in what may come in, `shelf` reads each run once, `studies` and `commands` say what is asked for and going
on, `lines` and `explorer` group any runs, `run_page` and `pictures` show one; `app` gives them addresses.
"""
