"""Stop signals of a command: Ctrl-C, SIGTERM and SIGHUP end a study in the same orderly way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""Signals that let workers save checkpoints and then end the study: Ctrl-C, `kill`, a closed terminal."""


class StopSignal(KeyboardInterrupt):
    """A stop signal, raised where Ctrl-C raises KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Deferral:
    """State of `block_stop_signals`: nesting depth, and the signal that arrived within."""

    depth = 0
    pending: int | None = None


_deferral = _Deferral()


@contextmanager
def raise_on_stop_signals() -> Iterator[None]:
    """Raise StopSignal on stop signals. Without this, SIGTERM and SIGHUP end the process at once.

    Handlers of the user's program stay, and so does SIGHUP ignored by `nohup`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers in the main thread only.
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if _deferral.depth:
            _deferral.pending = number
        else:
            raise StopSignal(number)

    defaults = (signal.SIG_DFL, signal.default_int_handler)
    replaced = {n: signal.getsignal(n) for n in STOP_SIGNALS if signal.getsignal(n) in defaults}
    try:
        for number in replaced:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Delay stop signals until the end of the block. Processes that are started within inherit the block."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    # The mask alone is not enough: a signal to the process may arrive in another thread, and Python then runs the
    # handler in the main thread all the same.
    is_main = threading.current_thread() is threading.main_thread()
    _deferral.depth += is_main
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        yield
    finally:
        _deferral.depth -= is_main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main and not _deferral.depth and _deferral.pending is not None:
            number, _deferral.pending = _deferral.pending, None
            raise StopSignal(number)


def reset_stop_signals() -> None:
    """Handle SIGTERM by default and ignore the other stop signals: for a process that inherited other settings."""
    for number in STOP_SIGNALS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
