"""Write-once folders: staging, atomic publication and checked reading of one entry.

The order of the operations carries the promises of docs/store.md. tests/store/test_faults.py fails each operation in
turn and removes each fsync in turn.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from supermask.core.errors import SystemFailure
from supermask.store.files.disk import Disk, translate_os_errors
from supermask.store.files.entry import (
    MAX_JSON_BYTES,
    MAX_TENSOR_BYTES,
    RUN_JSON,
    CorruptEntry,
    Entry,
    Kind,
    TensorFileInfo,
    Tensors,
    VerifiedFacts,
    check_file,
    decode_tensors,
    file_name,
    read_verified_facts,
)

WEIGHTS = file_name("weights")
DROPPED = "weights.dropped"
"""Empty marker file beside `run.json`: the weights were removed on purpose."""

PUBLISH_ATTEMPTS = 10
"""Renames that are tried while other processes keep removing the parent folder."""

# Errors of a rename onto a taken name: a folder with content, or a file.
_ALREADY_EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class EntryFolders:
    """Entry folders under `root`. Remembers which parent folders this process has made durable.

    Methods that write raise OSError; the caller adds the path (`translate_os_errors`).
    """

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self.disk = disk
        self._durable: set[Path] = set()

    def commit(self, target: Path, files: Mapping[str, bytes]) -> bool:
        """Write `files` as the folder `target`, whole and durable, or not at all. False: `target` exists already."""
        self.prepare(target.parent)
        if os.path.lexists(target):
            # The other process may not have synced its rename yet, and False promises that the entry is durable.
            self.disk.fsync_dir(target.parent)
            return False
        staged = self.stage(target.name, files)
        try:
            return self.publish(staged, target)
        finally:
            self.remove_staged(staged)

    def prepare(self, folder: Path) -> None:
        """Make a folder and sync its name in its parent, once per process.

        An existing folder is synced too: another process may have made it and not synced it yet.
        """
        # Folders above the store are not synced: they are not ours and may be unreadable.
        is_ours = folder not in self.root.parents and folder != folder.parent
        if (folder in self._durable or not is_ours) and folder.is_dir():
            return
        self.prepare(folder.parent)
        try:
            self.disk.make_dir(folder)
        except FileExistsError:
            # Gone in between: another process has removed the folder, which makes the next attempt succeed.
            if not os.path.lexists(folder):
                self.prepare(folder)
                return
            if not folder.is_dir():
                raise
        self.disk.fsync_dir(folder.parent)
        self._durable.add(folder)

    def staging_path(self, key: str) -> Path:
        """Return a new path in `staging/`: on the entries' filesystem, with a name that identifies this process."""
        staging = self.root / "staging"
        self.prepare(staging)
        return staging / f"{key}.{self.disk.process_tag()}"

    def stage(self, key: str, files: Mapping[str, bytes]) -> Path:
        """Write a new staging folder; on return the files' bytes and names are on the device."""
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
        """Move a staged folder to `target`, durably. False: `target` is a non-empty folder or a file.

        The parent is synced in both cases: with False, the other writer's rename may not be on the device yet.
        """
        for attempts_left in reversed(range(PUBLISH_ATTEMPTS)):
            try:
                moved = self._rename(staged, target)
                break
            except FileNotFoundError:
                # Another process removed the parent folder: make it again.
                if not attempts_left or not os.path.lexists(staged):
                    raise
                self.prepare(target.parent)
        self.disk.fsync_dir(target.parent)
        return moved

    def _rename(self, staged: Path, target: Path) -> bool:
        try:
            self.disk.rename(staged, target)
        except OSError as error:
            if error.errno == errno.EXDEV and staged.parent != target.parent:
                with self.copy_beside(staged, target) as copy:
                    return self._rename(copy, target)
            if error.errno in _ALREADY_EXISTS and os.path.lexists(target):
                return False
            raise
        return True

    def move_into(self, staged: Path, name: str, entry: Path) -> None:
        """Move a file of a staged folder into the folder of an entry, whole; the caller syncs it."""
        try:
            self.disk.rename(staged / name, entry / name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with self.copy_beside(staged, entry) as copy:
                self.disk.rename(copy / name, entry / name)

    @contextmanager
    def copy_beside(self, staged: Path, target: Path) -> Iterator[Path]:
        """Yield a durable copy of a staged folder beside `target`, which is on another filesystem than `staging/`.

        A folder of the store may be a mount of its own. Only a rename within it lets an entry appear whole.
        """
        copy = target.parent / staged.name
        try:
            self.disk.make_dir(copy)
            names = self.disk.names(staged)
            self.disk.write_files(copy, {name: self.disk.read_file(staged / name, MAX_TENSOR_BYTES) for name in names})
            self.disk.fsync_dir(copy)
            yield copy
        finally:
            self.remove_staged(copy)

    def remove_staged(self, path: Path) -> None:
        """Remove a staged folder if it exists. Errors are ignored: `Store.remove_stale` removes it later."""
        with suppress(OSError):
            self.disk.remove_tree(path)

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder; none if it does not exist."""
        try:
            return self.disk.names(folder)
        except FileNotFoundError:
            return []

    def read_facts(self, kind: Kind, key: str, folder: Path) -> VerifiedFacts:
        """Read and check the `run.json` of an entry. Raises CorruptEntry."""
        with translate_os_errors(folder):
            return read_verified_facts(kind, key, self._read_bytes(key, folder / RUN_JSON, MAX_JSON_BYTES))

    def read(self, kind: Kind, key: str, folder: Path) -> Entry:
        """Read an entry after checking every size and hash. Raises CorruptEntry."""
        sealed = self.read_facts(kind, key, folder)
        groups: dict[str, Tensors] = {}
        with translate_os_errors(folder):
            for group, recorded in sealed.files.items():
                if group == "weights" and os.path.lexists(folder / DROPPED):
                    continue
                path = folder / file_name(group)
                try:
                    groups[group] = decode_tensors(
                        key, group, recorded, self._read_bytes(key, path, recorded.bytes, recorded.bytes)
                    )
                except CorruptEntry:
                    # Another process may have dropped the weights after the check above.
                    if group != "weights" or not os.path.lexists(folder / DROPPED):
                        raise
        without_weights: Tensors | None = None if "weights" in sealed.files else {}
        return Entry(sealed.facts, groups["tensors"], groups.get("weights", without_weights))

    def check_hash(self, key: str, path: Path, recorded: TensorFileInfo) -> None:
        """Check a tensor file's size and SHA-256 without decoding it. Raises CorruptEntry."""
        with translate_os_errors(path):
            check_file(key, path.name, recorded, self._read_bytes(key, path, recorded.bytes, recorded.bytes))

    def read_files(self, folder: Path, names: Iterable[str]) -> dict[str, bytes]:
        """Return name -> bytes of those of the files that exist, unchecked. Raises SystemFailure."""
        files = {}
        with translate_os_errors(folder):
            for name in names:
                with suppress(FileNotFoundError):
                    files[name] = self.disk.read_file(folder / name, MAX_TENSOR_BYTES)
        return files

    def _read_bytes(self, key: str, path: Path, limit: int, expected: int | None = None) -> bytes:
        """Read a file. Raises CorruptEntry if missing, not a regular file, of another size, or unreadable (EIO)."""
        try:
            size = self.disk.size(path)
            if expected is not None and size != expected:
                raise CorruptEntry(key, f"{path.name} has {size} bytes, not {expected}")
            return self.disk.read_file(path, limit)
        except MemoryError as error:
            # No damage: another machine may read it.
            raise SystemFailure(f"{path} ({size:,} bytes) does not fit into the memory that is left.") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptEntry(key, f"{path.name} is missing") from error
        except IsADirectoryError as error:
            raise CorruptEntry(key, f"{path.name} is not a file") from error
        except OSError as error:
            # A bad sector is damage of this entry. Other errors (permissions, too many open files) are not.
            if error.errno == errno.EFBIG:
                raise CorruptEntry(key, f"{path.name} is too large: {error.strerror}") from error
            # The file was replaced by a link or pipe after its size was taken.
            if error.errno in (errno.EINVAL, errno.ELOOP):
                raise CorruptEntry(key, f"{path.name} is not a file") from error
            if error.errno == errno.EIO:
                raise CorruptEntry(key, f"{path.name} cannot be read from the disk (input/output error)") from error
            raise
