"""Locks of runs: at most one process on a store trains a run at a time, whichever command it belongs to.

A lock is an advisory `flock` on a file in the store. The kernel releases it when its process ends, however it ends, so
its age says nothing. Locks save work and do no more: the store stays correct without them, as on file systems that have
none, where every lock is granted.
"""

from __future__ import annotations

import fcntl
import os
import platform
from contextlib import suppress
from pathlib import Path

LOCKS_DIR = "claims"
"""Folder of the store with one lock file per run in training."""


class RunLock:
    """The right to train one run, until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        """`descriptor`: the locked file, or None on a file system without locks."""
        self._path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Release the lock. Does nothing the second time."""
        if self._descriptor is not None:
            # Removed while it is locked: nobody can hold a lock on the file that is about to vanish.
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def lock_run(store_root: Path, run_id: str) -> RunLock | None:
    """Lock a run for this process; None if it is locked already."""
    path = store_root / LOCKS_DIR / run_id
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return RunLock(path, None)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return RunLock(path, None)
        if _is_same_file(descriptor, path):
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
            return RunLock(path, descriptor)
        # The holder removed the file between our `open` and our lock: the lock is on no file of the store.
        os.close(descriptor)


def is_locked(store_root: Path, run_id: str) -> bool:
    """Return True if a process holds the lock of a run."""
    if not (store_root / LOCKS_DIR / run_id).exists():
        return False
    lock = lock_run(store_root, run_id)
    if lock is not None:
        lock.release()
    return lock is None


def lock_holder(store_root: Path, run_id: str) -> str:
    """Return the holder of a lock as text, for messages."""
    try:
        holder = (store_root / LOCKS_DIR / run_id).read_bytes()[:100].decode(errors="replace").strip()
    except OSError:
        holder = ""
    return holder if holder.isprintable() and holder else "another process"


def remove_stale_locks(store_root: Path) -> None:
    """Remove the lock files of processes that were killed."""
    with suppress(OSError):
        for path in (store_root / LOCKS_DIR).iterdir():
            is_locked(store_root, path.name)  # Releasing the lock that the test takes removes the file.


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
