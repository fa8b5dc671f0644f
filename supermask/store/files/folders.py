"""Write-once folders on a disk that may fail at any moment: how an entry gets to its place, and how it is read back."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from supermask.store.files.disk import Disk, translate_os_errors
from supermask.store.files.entry import (
    RUN_JSON,
    CorruptEntry,
    Entry,
    Kind,
    Tensors,
    VerifiedFacts,
    decode_tensors,
    file_name,
    read_verified_facts,
)

WEIGHTS = file_name("weights")
DROPPED = "weights.dropped"
"""An empty file beside `run.json`: the weights were removed on purpose."""

_ALREADY_EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class EntryFolders:
    """Makes, fills, moves and reads the folders under `root`; knows which of them it has made durable.

    Methods that write raise OSError: the caller names what it was doing.
    """

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self.disk = disk
        self._durable: set[Path] = set()

    def commit(self, target: Path, files: Mapping[str, bytes]) -> bool:
        """`files` as the folder `target`: whole and durable, or not at all. False: the place was taken."""
        self.prepare(target.parent)
        if os.path.lexists(target):
            self.disk.fsync_dir(target.parent)
            return False
        staged = self.stage(target.name, files)
        try:
            return self.publish(staged, target)
        finally:
            self.remove_staged(staged)

    def prepare(self, folder: Path) -> None:
        """Make a folder, and its entry in its parent durable unless this process has done so before.

        That it is there is not enough: another process may have made it and not yet synced it.
        """
        ours = folder not in self.root.parents and folder != folder.parent
        if (folder in self._durable or not ours) and folder.is_dir():
            return
        self.prepare(folder.parent)
        try:
            self.disk.make_dir(folder)
        except FileExistsError:
            if not folder.is_dir():
                raise
        self.disk.fsync_dir(folder.parent)
        self._durable.add(folder)

    def staging_path(self, key: str) -> Path:
        """A fresh path beside the entries, on the same filesystem, whose name says which process it belongs to."""
        staging = self.root / "staging"
        self.prepare(staging)
        return staging / f"{key}.{self.disk.process_tag()}"

    def stage(self, key: str, files: Mapping[str, bytes]) -> Path:
        """A new staging folder; its files' bytes, and their names, are on the device."""
        staged = self.staging_path(key)
        try:
            self.disk.make_dir(staged)
            self.disk.write_files(staged, files)
            self.disk.fsync_dir(staged)
        except BaseException:
            self.remove_staged(staged)
            raise
        return staged

    def publish(self, staged: Path, target: Path) -> bool:
        """Move a staged folder to its place, durably. False: a non-empty folder (or a file) has the place.

        Then too the parent is synced: the winner's move may not be on the device yet, and "it is there" is a promise.
        """
        try:
            moved = self._rename(staged, target)
        except FileNotFoundError:
            # Somebody removed the parent under us. Once is bad luck; the second time raises.
            self.prepare(target.parent)
            moved = self._rename(staged, target)
        self.disk.fsync_dir(target.parent)
        return moved

    def _rename(self, staged: Path, target: Path) -> bool:
        try:
            self.disk.rename(staged, target)
        except OSError as error:
            if error.errno in _ALREADY_EXISTS and os.path.lexists(target):
                return False
            raise
        return True

    def remove_staged(self, path: Path) -> None:
        """Remove what was staged, if it is still there; what cannot be removed is left to `Store.sweep`."""
        with suppress(OSError):
            self.disk.remove_tree(path)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder; none when it is not there."""
        try:
            return self.disk.names(folder)
        except FileNotFoundError:
            return []

    def read_facts(self, kind: Kind, key: str, folder: Path) -> VerifiedFacts:
        """The checked `run.json` of an entry. Raises Damaged."""
        with translate_os_errors(folder):
            return read_verified_facts(kind, key, self._bytes(key, folder / RUN_JSON))

    def read(self, kind: Kind, key: str, folder: Path) -> Entry:
        """An entry, every size and hash checked first. Raises Damaged."""
        sealed = self.read_facts(kind, key, folder)
        groups: dict[str, Tensors] = {}
        with translate_os_errors(folder):
            for group, promise in sealed.files.items():
                if group == "weights" and os.path.lexists(folder / DROPPED):
                    continue
                path = folder / file_name(group)
                try:
                    groups[group] = decode_tensors(key, group, promise, self._bytes(key, path, promise.bytes))
                except CorruptEntry:
                    # Dropped by another process since we looked?
                    if group != "weights" or not os.path.lexists(folder / DROPPED):
                        raise
        never_any: Tensors | None = None if "weights" in sealed.files else {}
        return Entry(sealed.facts, groups["tensors"], groups.get("weights", never_any))

    def _bytes(self, key: str, path: Path, expected: int | None = None) -> bytes:
        """A file's bytes. What is not there, not a file, or not readable from the device is Damaged."""
        try:
            size = self.disk.size(path)
            if expected is not None and size != expected:
                raise CorruptEntry(key, f"{path.name} has {size} bytes, not {expected}")
            return self.disk.read_file(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptEntry(key, f"{path.name} is missing") from error
        except IsADirectoryError as error:
            raise CorruptEntry(key, f"{path.name} is not a file") from error
        except OSError as error:
            if error.errno == errno.EIO:
                raise CorruptEntry(key, f"{path.name} cannot be read from the disk (input/output error)") from error
            raise
