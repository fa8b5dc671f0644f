"""Standard output and standard error of the commands: any encoding, and streams that fail while a study trains."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

ESCAPE = "supermask.escape"
"""Name of the error handler `escape_unencodable`."""


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    r"""Error handler of encoders: replace each UTF-16 unit of the text by `\uXXXX`.

    This is also the escape of JSON, so JSON output stays valid in every encoding.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


codecs.register_error(ESCAPE, escape_unencodable)


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


class _DroppingStream:
    """Proxy of a text stream that drops all text after the first failure to write, and keeps its error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        if self.error is None:
            try:
                return self.stream.write(text)
            except OSError as error:
                self.error = error
        return len(text)

    def flush(self) -> None:
        """Flush the stream unless it has failed."""
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def survive_lost_output() -> Iterator[None]:
    """Inside, a closed pipe, a full disk or a lost terminal does not end the command; the error is raised at the end.

    A training of hours must not end because nobody reads its progress any more.
    """
    streams = {name: _DroppingStream(getattr(sys, name)) for name in ("stdout", "stderr")}
    originals = {name: getattr(sys, name) for name in streams}
    for name, stream in streams.items():
        setattr(sys, name, stream)
    try:
        yield
        for stream in streams.values():
            stream.flush()
    finally:
        for name, original in originals.items():
            setattr(sys, name, original)
    for stream in streams.values():
        if stream.error is not None:
            raise stream.error


def discard_unwritten_text() -> None:
    """Redirect standard output to the null device.

    Its buffer holds text that cannot be written; Python would try again when it exits and print a second error.
    """
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
