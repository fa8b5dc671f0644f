"""Progress of decoding and downloads: reported where it happens, shown by whoever listens (the command line)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ProgressListener = Callable[[str, int, int], None]
"""Called with what is processed, how much of it is done, and how much there is (0: unknown)."""

_listener: ContextVar[ProgressListener | None] = ContextVar("progress_listener", default=None)


@contextmanager
def progress_listener(listener: ProgressListener) -> Iterator[None]:
    """Call `listener` with the progress of all that is decoded or downloaded inside the `with` block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_progress(what: str, done: int, total: int) -> None:
    """Report that `done` of `total` items are processed."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)
