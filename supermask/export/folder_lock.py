"""Lock of a folder that one process at a time may write to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from supermask.core.errors import SystemFailure, UserError, sanitize

LOCK = ".lock"
"""File that is locked, empty. It is there while the folder is written to."""


@contextmanager
def lock_folder(folder: Path, what: str) -> Iterator[None]:
    """Create the folder and lock it against other writers. `what` is written: `the runs`.

    An OSError inside becomes SystemFailure. Raises UserError for a path that is no folder, or that is locked.
    """
    name = sanitize(str(folder))
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _open_locked(folder / LOCK)
        except BlockingIOError:
            raise UserError(
                f"another command is writing to {name}: wait for it, or choose another folder with --out."
            ) from None
        except (FileExistsError, NotADirectoryError) as error:
            raise UserError(f"{name} is not a folder: choose one to write to with --out.") from error
        with lock:
            try:
                yield
            finally:
                # Before the lock is released: nobody else can have locked this file.
                (folder / LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise SystemFailure(
            f"{what} cannot be written to {name}: {error.strerror or error}. Fix the cause and run the same "
            "command again: it resumes."
        ) from error


def _open_locked(path: Path) -> IO[bytes]:
    """Open a file and lock it, where the file system has locks. Raises BlockingIOError if another process has it."""
    while True:
        lock = path.open("ab")
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                return lock  # As for runs: a file system without locks is used without them.
            # The file may have been removed between the two calls: then the lock is of no name, and worth nothing.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                return lock
        except BaseException:
            lock.close()
            raise
        lock.close()
