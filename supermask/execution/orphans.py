"""Processes that end with their parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from contextlib import suppress

PARENT_POLL_SECONDS = 0.25
"""Time between two checks of the parent, where the kernel does not report its end."""

PR_SET_PDEATHSIG = 1
"""Option of Linux' prctl: the signal that the kernel sends to this process when its parent ends."""

_watchdog_stop = threading.Event()
_watchdog: threading.Thread | None = None


def kill_with_parent() -> None:
    """Let the kernel kill this process when its parent ends. Does nothing where the kernel cannot.

    A thread could not do it in time: a compiled kernel may hold the interpreter's lock for seconds.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start_watchdog() -> None:
    """End this process soon after its parent, until `stop_watchdog`.

    For the imports of the fork server. `kill_with_parent` would be wrong there: the kernel counts the end of the thread
    that started the server as the end of the parent.
    """
    global _watchdog
    _watchdog_stop.clear()
    _watchdog = threading.Thread(target=_exit_if_orphaned, args=(os.getppid(),), daemon=True)
    _watchdog.start()


def stop_watchdog() -> None:
    """Stop the watchdog, so that the process has one thread again: only then is it safe to fork."""
    _watchdog_stop.set()
    if _watchdog is not None:
        _watchdog.join()


def _exit_if_orphaned(parent: int) -> None:
    while not _watchdog_stop.wait(PARENT_POLL_SECONDS):
        if os.getppid() != parent:
            os._exit(1)
