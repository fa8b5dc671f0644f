"""Preloaded first: the fork server ends with its parent, also while it imports and compiles for seconds."""

import gc

from supermask.execution.orphans import start_watchdog

start_watchdog()
# Imports leave no garbage; `last` exempts all of them from collection.
gc.disable()
