"""Preloaded last: the fork server is ready to fork."""

import atexit
import gc
import os

from supermask.execution.orphans import stop_watchdog

stop_watchdog()
# A collection in a worker would write to each imported object, and so copy the memory that forked workers share.
gc.freeze()
gc.enable()
# The fork server holds nothing that has to be closed; PyTorch's own clean-up can take seconds on a busy machine.
atexit.register(os._exit, 0)
