"""Memory of checked files: which files, modified after their commit, were hashed and found right.

Derived data in `notes/checked.json`: it saves time and can be deleted. A copied store has new file times, so that all
of its files would be hashed at every start.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from supermask.core.files import read_regular_file, write_atomic

FileTimes = tuple[int, int]
"""Modification and change time of a file, nanoseconds since 1970. The change time cannot be set back by a user."""

MAX_CHECKED_BYTES = 64 * 2**20
"""Bytes of `checked.json`; 100,000 files have 20 MB."""


class FileChecks:
    """Files of the store at `root` whose hash was found right, by their times."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "notes" / "checked.json"
        self._known: dict[str, list[object]] | None = None
        self._is_changed = False

    def times(self, path: Path) -> FileTimes:
        """Return the times of a file. Raises FileNotFoundError."""
        status = path.lstat()
        return status.st_mtime_ns, status.st_ctime_ns

    def has(self, path: Path, times: FileTimes, sha256: str) -> bool:
        """Return whether the file was found right at these times."""
        return self._load().get(self._name(path)) == [*times, sha256]

    def add(self, path: Path, times: FileTimes, sha256: str) -> None:
        """Remember a file that was found right. `times`: read before the file, so that a later change is noticed."""
        self._load()[self._name(path)] = [*times, sha256]
        self._is_changed = True

    def save(self) -> None:
        """Write what was added. Of several commands, the last one's memory stays. Does nothing if the disk refuses."""
        if self._is_changed:
            with suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(self._path, json.dumps(self._known).encode())

    def _load(self) -> dict[str, list[object]]:
        # Read at the first file in doubt: most stores have none.
        if self._known is None:
            self._known = {}
            with suppress(OSError, ValueError, RecursionError):
                document = json.loads(read_regular_file(self._path, MAX_CHECKED_BYTES))
                self._known = document if isinstance(document, dict) else {}
        return self._known

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))
