"""Filesystem operations of the store, one method per operation.

A commit is built from these methods only, so that a test can replace the disk by one that fails at any operation.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path

from supermask.core.errors import SystemFailure, UserError
from supermask.core.files import read_regular_file

UNKNOWN_START = "0"
"""Start time in a process tag when the system does not report one."""

STALE_SECONDS = 24 * 3600.0
"""Age in seconds at which a staged folder of an unknown process (other machine, earlier boot) counts as stale."""

MAX_COPY_BYTES = 2**30
"""Bytes of a file that is copied into quarantine where a rename is impossible; larger ones are left out."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports an input/output error",
    errno.EROFS: "the filesystem is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "no such file or folder (removed while in use?)",
}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# Errors of fsync on a folder where the filesystem has no such operation (some network and FUSE filesystems).
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Convert OSError at `path` into SystemFailure with the reason and what to do.

    A file in place of a folder becomes a UserError, because the user has to choose another path.
    """
    try:
        yield
    except (NotADirectoryError, FileExistsError) as error:
        folder = Path(error.filename or path)
        # The error names the path that was asked for; the offending file may be any of its parents.
        blocker = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
        raise UserError(
            f"the store needs a folder at {folder}, but {blocker} is not a folder. "
            "Choose another folder with --store, or move that file away."
        ) from error
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        remedy = "Free some space" if error.errno in _NO_SPACE else "Fix this"
        raise SystemFailure(
            f"the store cannot use {path}: {reason}. {remedy}, or choose another folder with --store, "
            "and run the same command again: finished runs are kept."
        ) from error


class Disk:
    """The real disk. Methods are stateless and raise OSError when the operating system refuses."""

    def make_dir(self, path: Path) -> None:
        """Make one folder. Its parent must exist."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Create a new file for writing and return its descriptor. Raises FileExistsError if it exists."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write part of `data` and return the number of bytes; a full disk may take fewer without an error."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Return after the file's bytes are on the device."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor. Network filesystems may report a failed write only here."""
        os.close(descriptor)

    def fsync_dir(self, path: Path) -> None:
        """Return after the folder's entries (names created, renamed, removed in it) are on the device.

        Does nothing for a folder without read permission (an ancestor of the store), or on a filesystem without this
        operation.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Move atomically. A file replaces a file; a folder replaces only an empty folder, otherwise OSError."""
        source.rename(target)

    def move_dir(self, source: Path, target: Path) -> None:
        """Move a folder; copy and remove it if a rename is impossible (EXDEV).

        EXDEV occurs within one mount too: overlayfs cannot rename a folder of a lower layer (a store in a container
        image). The copy is durable before the first file of `source` is removed.
        """
        try:
            self.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_dir(source, target)
            self.fsync_dir(target.parent)
            self.remove_tree(source)

    def _copy_dir(self, source: Path, target: Path) -> None:
        """Copy the regular files of a folder, and folders in it; links and devices are left out."""
        self.make_dir(target)
        files: dict[str, bytes] = {}
        for name in self.names(source):
            mode = (source / name).lstat().st_mode
            if stat.S_ISDIR(mode):
                self._copy_dir(source / name, target / name)
            elif stat.S_ISREG(mode):
                # Bounded: a damaged entry may hold a sparse file of any size, of which nothing is worth keeping.
                with suppress(OSError):
                    files[name] = self.read_file(source / name, MAX_COPY_BYTES)
        self.write_files(target, files)
        self.fsync_dir(target)

    def remove_file(self, path: Path) -> None:
        """Remove one file or link."""
        path.unlink()

    def remove_dir(self, path: Path) -> None:
        """Remove one empty folder."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """Return the names in a folder."""
        return os.listdir(path)  # noqa: PTH208 (only names are needed, and there may be 10,000)

    def size(self, path: Path) -> int:
        """Return the size of a regular file in bytes, without opening it or following a link.

        Raises IsADirectoryError for a folder, link, pipe or device: opening a pipe could block for ever.
        """
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a regular file", str(path))
        return status.st_size

    def read_file(self, path: Path, limit: int) -> bytes:
        """Return all bytes of a regular file of at most `limit` bytes; OSError with EFBIG for a larger one."""
        return read_regular_file(path, limit)

    def process_tag(self) -> str:
        """Return a new name that identifies this process: `<pid>.<start time>.<host id>.<random>`.

        The start time distinguishes two processes with the same pid; the random part, two calls of one process.
        """
        return f"{os.getpid()}.{_own_start_time()}.{_host_id()}.{secrets.token_hex(4)}"

    def is_stale(self, path: Path, process_tag: str) -> bool:
        """Return whether the process that made `path` with the tag `process_tag` has ended.

        For a process of another host, container or boot this is unknown: then `path` is stale at STALE_SECONDS.
        """
        match process_tag.split("."):
            case [pid, tagged_start, host, _] if host == _host_id() and pid.isdecimal():
                start = _process_start_time(int(pid))
                # A different start time: the pid was reused, so the process that made `path` has ended.
                return start is None or (UNKNOWN_START not in (start, tagged_start) and start != tagged_start)
        return time.time() - path.lstat().st_mtime > STALE_SECONDS

    def write_files(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Write new files and return after their bytes are on the device.

        All files are written before the first fsync: on a journaling filesystem the first one flushes most of the
        others too, so that the rest return quickly.
        """
        descriptors: dict[str, int] = {}
        try:
            for name, data in files.items():
                descriptors[name] = self.create(folder / name)
                rest = memoryview(data)
                while rest:
                    written = self.write(descriptors[name], rest)
                    # 0 without an error would loop for ever; it means that there is no space.
                    if written <= 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / name))
                    rest = rest[written:]
            for name, data in files.items():
                self.fsync(descriptors[name])
                # A disk that reported a write as complete and lost part of it.
                if self.size(folder / name) != len(data):
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder / name))
            for name in list(descriptors):
                self.close(descriptors.pop(name))
        finally:
            for descriptor in descriptors.values():
                with suppress(OSError):
                    self.close(descriptor)

    def remove_tree(self, path: Path) -> None:
        """Remove a file, or a folder with its content, without following links. Missing paths are ignored."""
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(path.lstat().st_mode):
                self.remove_file(path)
                return
            for name in self.names(path):
                self.remove_tree(path / name)
            self.remove_dir(path)


@cache
def _own_start_time() -> str | None:
    return _process_start_time(os.getpid())


# A forked process has a start time of its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own_start_time.cache_clear)


def _process_start_time(pid: int) -> str | None:
    """Return the start time of a process in clock ticks since boot, as text.

    None if the process has ended (or is a zombie), UNKNOWN_START if the system does not report start times.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        # A process of another user: it exists, which is what was asked.
        pass
    try:
        stat_line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return UNKNOWN_START
    # The second field is the program's name in parentheses and may contain spaces and parentheses itself.
    fields = stat_line.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@lru_cache(maxsize=1)
def _host_id() -> str:
    """Return an id of this machine, boot and pid namespace (container): the scope in which a pid is unique."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
