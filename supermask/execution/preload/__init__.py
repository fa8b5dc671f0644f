"""Modules that the fork server imports, so that the workers that it forks start with everything loaded.

`first` and `last` frame the list; `base` is for every worker; the others add one engine each.
"""
