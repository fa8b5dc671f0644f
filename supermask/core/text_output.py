"""Text streams that never end a training: any character is escaped if needed, and a lost stream is dropped."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


class _DroppingStream:
    """Proxy of a text stream: escapes what its encoding lacks; after a failure to write, drops all text."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        if self.error is None:
            try:
                self._write(text)
            except OSError as error:
                self.error = error
        return len(text)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self.stream, "encoding", None) or "ascii"
            self.stream.write(text.encode(encoding, ESCAPE).decode(encoding))

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
def survive_lost_output(raise_at_end: bool = True) -> Iterator[None]:
    """Inside, a closed pipe, a full disk or a lost terminal is no error; `raise_at_end`: it is raised at the end.

    A training of hours must not end because nobody reads its progress any more.
    """
    originals = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    # A stream is None if its descriptor was closed when Python started.
    streams = {name: _DroppingStream(stream) for name, stream in originals.items() if stream is not None}
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
        if raise_at_end and stream.error is not None:
            raise stream.error
