"""Preloaded first: the fork server ends with its parent, also while it imports and compiles for seconds."""

from supermask.execution.orphans import start_watchdog

start_watchdog()
