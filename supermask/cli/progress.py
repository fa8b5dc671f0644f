"""Progress of decoding and downloads on standard error, where that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_INTERVAL_SECONDS = 0.2
_FIRST_SECONDS = 1.0
"""Seconds before anything is shown."""


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the progress of what is decoded or downloaded inside the `with` block, on one line that is overwritten."""
    if not sys.stderr.isatty():
        yield
        return
    from supermask.api.data import progress_listener

    began = time.monotonic()
    latest, width = began, 0

    def listener(what: str, done: int, total: int) -> None:
        nonlocal latest, width
        now = time.monotonic()
        if now - began < _FIRST_SECONDS or now - latest < _INTERVAL_SECONDS:
            return
        latest = now
        share = f" of {total:,} ({100 * done // total}%)" if total else ""
        text = f"{what}: {done:,}{share}"[:120]
        sys.stderr.write("\r" + text.ljust(width))
        sys.stderr.flush()
        width = len(text)

    try:
        with progress_listener(listener):
            yield
    finally:
        if width:
            sys.stderr.write("\r" + " " * width + "\r")
            sys.stderr.flush()
