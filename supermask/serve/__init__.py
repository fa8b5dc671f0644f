"""Read-only dashboard on localhost: the report and every run of a store, updated while a study trains.

`http` guards requests and serves files, `app` maps addresses to functions, `state` is what they share. `store_cache`
reads each run once; `studies` and `progress` read notes of commands; `live_report` keeps the report up to date;
`series` and `explorer` plot any runs; `run_page` shows one.
"""
