"""The filesystem operations that a durable commit is made of, one method an operation, so that each can be failed."""

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
from functools import lru_cache
from pathlib import Path

from supermask.core.errors import SystemFailure, UserError

UNKNOWN_START = "0"
"""In a stamp: when the process started is not known."""

STALE_SECONDS = 24 * 3600.0
"""Age at which a leftover of a process that cannot be asked after (another machine, before a reboot) is swept."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk reports an input/output error",
    errno.EROFS: "the filesystem is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "it is not there (removed while in use?)",
}
_FREE_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses at `path` into a MachineError that says why and what to do.

    A file where a folder belongs is a UserError: another path has to be given.
    """
    try:
        yield
    except (NotADirectoryError, FileExistsError) as error:
        given = Path(error.filename or path)
        in_the_way = next(here for here in (given, *given.parents) if os.path.lexists(here))
        raise UserError(
            f"the store needs a folder at {given}, but {in_the_way} is not a folder. "
            "Choose another folder with --store, or move that file away."
        ) from error
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        first = "Free some space" if error.errno in _FREE_SPACE else "Put that right"
        raise SystemFailure(
            f"the store cannot use {path}: {reason}. {first}, or choose another folder with --store, "
            "and run the same command again: finished runs are kept."
        ) from error


class Disk:
    """A real disk. Every method raises OSError when the operating system refuses; none of them keeps any state."""

    def make_dir(self, path: Path) -> None:
        """Make one folder whose parent exists."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Open a file that must not exist yet for writing, and give its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data` and give how many bytes: on a full disk fewer than asked for, without an error."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Return once the file's bytes are on the device."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close; network filesystems may report a failed write only here."""
        os.close(descriptor)

    def fsync_dir(self, path: Path) -> None:
        """Return once the folder's entries (what was made, renamed, removed in it) are on the device.

        Nothing happens for a folder that may not be read (an ancestor of the store, which is not ours), or on a
        filesystem that has no such operation.
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
        """Move atomically; a folder onto a non-empty folder is refused, a file onto a file replaces it."""
        source.rename(target)

    def remove_file(self, path: Path) -> None:
        """Remove one file or link."""
        path.unlink()

    def remove_dir(self, path: Path) -> None:
        """Remove one empty folder."""
        path.rmdir()

    def names(self, path: Path) -> list[str]:
        """The names in a folder."""
        return os.listdir(path)  # noqa: PTH208 (names are all that is wanted, and there may be 10,000)

    def size(self, path: Path) -> int:
        """Bytes in a file, following no link and opening nothing; a folder, link or device raises OSError."""
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a plain file", str(path))
        return facts.st_size

    def read_file(self, path: Path) -> bytes:
        """All bytes of a file."""
        return path.read_bytes()

    def process_tag(self) -> str:
        """A fresh name that says whose it is: `<pid>.<start of the process>.<machine, boot>.<random>`."""
        pid = os.getpid()
        return f"{pid}.{_process_start_time(pid)}.{_host_id()}.{secrets.token_hex(4)}"

    def is_stale(self, path: Path, stamp: str) -> bool:
        """Whether the process that made `path` under `stamp` is gone; where that cannot be known, whether it is old."""
        match stamp.split("."):
            case [pid, started, machine, _] if machine == _host_id() and pid.isdecimal():
                now = _process_start_time(int(pid))
                return now is None or (UNKNOWN_START not in (now, started) and now != started)
        return time.time() - path.lstat().st_mtime > STALE_SECONDS

    def write_files(self, folder: Path, files: Mapping[str, bytes]) -> None:
        """Write new files and return once their bytes are on the device.

        All are written before the first is synced: the first sync then carries most of what the others need.
        """
        descriptors: dict[str, int] = {}
        try:
            for name, data in files.items():
                descriptors[name] = self.create(folder / name)
                rest = memoryview(data)
                while rest:
                    written = self.write(descriptors[name], rest)
                    if written <= 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / name))
                    rest = rest[written:]
            for name, data in files.items():
                self.fsync(descriptors[name])
                if self.size(folder / name) != len(data):
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder / name))
            for name in list(descriptors):
                self.close(descriptors.pop(name))
        finally:
            for descriptor in descriptors.values():
                with suppress(OSError):
                    self.close(descriptor)

    def remove_tree(self, path: Path) -> None:
        """Remove a file, or a folder and all in it, following no links; what somebody else has removed is fine."""
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(path.lstat().st_mode):
                self.remove_file(path)
                return
            for name in self.names(path):
                self.remove_tree(path / name)
            self.remove_dir(path)


def _process_start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot, so that a pid used twice is told apart.

    None when it is gone, or killed and not yet waited for; UNKNOWN where the system does not say.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return UNKNOWN_START
    fields = facts.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


@lru_cache(maxsize=1)
def _host_id() -> str:
    """Names this machine since its last boot, and this container: inside one of these a pid means one process."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
