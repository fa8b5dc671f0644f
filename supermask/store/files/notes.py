"""Notes beside a store's entries: what was asked of it, and what is going on. Derived, deletable, never waited for.

Whoever trains writes them, whoever looks reads them. A note is one small JSON file, replaced whole; it is not synced,
and where it cannot be written nothing happens: no training fails for want of a note.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Note = dict[str, Any]

KINDS = ("studies", "progress", "curves")
NAME = re.compile(r"[0-9a-f]{32}")
MAX_BYTES = 4_000_000
"""Bytes of a note that is read."""


class StatusNotes:
    """The notes of the store at `root`, in its folder `notes`.

    - `studies`: a study that was run, planned by its data; named by a hash of it.
    - `progress`: a command that carries a plan out; named by a random token.
    - `curves`: the validation curve of a run in flight; named by the run's id.
    """

    def __init__(self, root: Path) -> None:
        self.root = root / "notes"

    def write(self, kind: str, name: str, note: Note) -> None:
        """Replaces a note. Does nothing where the disk refuses."""
        target = self._path(kind, name)
        text = json.dumps(note, allow_nan=False, sort_keys=True)
        staged = target.with_suffix(f".{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(text, encoding="utf-8")
            staged.replace(target)
        except OSError:
            with suppress(OSError):
                staged.unlink()

    def remove(self, kind: str, name: str) -> None:
        """Removes a note that may be there."""
        with suppress(OSError):
            self._path(kind, name).unlink()

    def read(self, kind: str) -> dict[str, Note]:
        """Name -> note, the oldest first. What is no note, or damaged, is not there."""
        found: list[tuple[float, str, Note]] = []
        for path in self._files(kind):
            with suppress(OSError, ValueError, RecursionError):
                if path.stat().st_size <= MAX_BYTES and isinstance(note := json.loads(path.read_bytes()), dict):
                    found.append((path.stat().st_mtime, path.stem, note))
        return {name: note for _, name, note in sorted(found, key=lambda each: each[:2])}

    def _files(self, kind: str) -> Iterator[Path]:
        assert kind in KINDS, kind
        with suppress(OSError):
            yield from (path for path in (self.root / kind).glob("*.json") if NAME.fullmatch(path.stem))

    def _path(self, kind: str, name: str) -> Path:
        assert kind in KINDS and NAME.fullmatch(name), (kind, name)
        return self.root / kind / f"{name}.json"


def note_id(note: Note) -> str:
    """The name of a note that is named by what it says."""
    return hashlib.sha256(json.dumps(note, allow_nan=False, sort_keys=True).encode()).hexdigest()[:32]
