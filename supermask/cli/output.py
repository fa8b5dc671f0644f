"""Standard output and standard error of the commands."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from supermask.core.text_output import ESCAPE


def prepare_streams() -> None:
    """Make standard output and standard error accept any text, and replace them if they are closed.

    Python has no stream object for a descriptor that was closed at its start.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (open to the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


def echo(text: str = "", nl: bool = True, err: bool = False) -> None:
    """Write text to standard output or standard error at once.

    typer's function of this name replaces streams with an ASCII encoding by UTF-8 ones.
    """
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{text}\n" if nl else text)
    stream.flush()


def discard_unwritten_text() -> None:
    """Redirect standard output to the null device.

    Its buffer holds text that cannot be written; Python would try again when it exits and print a second error.
    """
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
