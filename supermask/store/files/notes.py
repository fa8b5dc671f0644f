"""Status notes beside a store's entries, for the live page: studies that were run, progress, curves in flight.

Training commands write them, `supermask serve` reads them. A note is one small JSON file, replaced whole. Notes are
derived and deletable; they are not synced, and write errors are ignored, so that no training fails because of a note.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from supermask.core.files import read_regular_file, write_atomic

Note = dict[str, Any]

_log = logging.getLogger(__name__)

KINDS = ("studies", "progress", "curves")
NAME = re.compile(r"[0-9a-f]{32}")
MAX_BYTES = 4_000_000
"""Bytes. Larger files are ignored."""
MAX_DEPTH = 50
"""Nested lists and objects; a study has about six. Readers of notes use recursion, which has an end."""


class StatusNotes:
    """Notes of the store at `root`, in its folder `notes`.

    - `studies`: a study that was run, with all of its keys; named by a hash of its content.
    - `progress`: a command that trains a plan; named by a random token.
    - `curves`: the validation curve of a run in flight; named by the run's id.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "notes"
        self._reported: set[Path] = set()

    def write(self, kind: str, name: str, note: Note) -> None:
        """Replace a note. Does nothing if the disk refuses."""
        target = self._path(kind, name)
        # NaN is a programming error: the page's JavaScript could not parse it.
        text = json.dumps(note, allow_nan=False, sort_keys=True)
        with suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, text.encode())

    def remove(self, kind: str, name: str) -> None:
        """Remove a note if it exists."""
        with suppress(OSError):
            self._path(kind, name).unlink()

    def read(self, kind: str) -> dict[str, Note]:
        """Return name -> note, oldest first. Files that are not notes are ignored, and logged once.

        Only regular files of at most MAX_BYTES are opened: a pipe or device would block or never end.
        """
        dated: list[tuple[float, str, Note]] = []
        for path in self._files(kind):
            try:
                dated.append((path.lstat().st_mtime, path.stem, _parse(read_regular_file(path, MAX_BYTES))))
            except FileNotFoundError:
                # Removed or being replaced: notes are not locked.
                continue
            except (OSError, ValueError, RecursionError) as error:
                self._report(path, error)
        return {name: note for _, name, note in sorted(dated, key=lambda entry: entry[:2])}

    def _report(self, path: Path, error: Exception) -> None:
        """Log a file that is not a note, once: the live page reads all of them every second."""
        if path not in self._reported:
            self._reported.add(path)
            _log.warning("ignored %r in the store's notes: %s", str(path), error)

    def _files(self, kind: str) -> Iterator[Path]:
        assert kind in KINDS, kind
        with suppress(OSError):
            yield from (path for path in (self.root / kind).glob("*.json") if NAME.fullmatch(path.stem))

    def _path(self, kind: str, name: str) -> Path:
        assert kind in KINDS and NAME.fullmatch(name), (kind, name)
        return self.root / kind / f"{name}.json"


def _parse(data: bytes) -> Note:
    """Return a note. Raises ValueError if it is not a JSON object of valid text."""
    note = json.loads(data, parse_constant=_refuse_constant)
    if not isinstance(note, dict):
        raise ValueError("not a JSON object")
    # A lone surrogate, from an escape, could be shown by no page and printed by no terminal.
    json.dumps(note, ensure_ascii=False).encode()
    if _is_deeper(note, MAX_DEPTH):
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return note


def _is_deeper(note: Note, levels: int) -> bool:
    """Return whether lists and objects are nested more than `levels` deep."""
    containers: list[Any] = [note]
    for _ in range(levels):
        children = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
        containers = [child for child in children if isinstance(child, dict | list)]
    return bool(containers)


def _refuse_constant(literal: str) -> NoReturn:
    # Python's json reads NaN, which the page's JavaScript does not.
    raise ValueError(f"{literal} is not a JSON number")


def note_id(note: Note) -> str:
    """Return the name of a note that is named by a hash of its content."""
    return hashlib.sha256(json.dumps(note, allow_nan=False, sort_keys=True).encode()).hexdigest()[:32]
