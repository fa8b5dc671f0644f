"""Atomic writes and bounded reads of single files.

A reader sees the file as it was before or the new one whole, never a part. The store's entries are folders with
stricter promises; `supermask/store/files/` writes them.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

PARTIAL_SUFFIX = ".partial"
"""Suffix of a staged file. A killed process may leave one behind."""


def write_atomic(
    path: Path,
    content: bytes | Iterable[bytes | memoryview],
    *,
    replace: bool = True,
    durable: bool = False,
    check: Callable[[Path], bool] | None = None,
) -> bool:
    """Write a whole file, or nothing. Return True if the file was written.

    The content is staged in the same folder, because a rename is atomic only within one filesystem.

    `replace`: overwrite an existing file. Otherwise the first of several writers wins and the others get False.
    `durable`: return after the bytes and the name are on the device.
    `check`: called with the staged file before it is moved into place; False discards it.

    Raises OSError if the operating system refuses; the staged file is removed.
    """
    # Random: two threads of one process may write the same file. Short: the target's name may have 255 bytes already.
    staged = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    try:
        with staged.open("xb") as file:
            for chunk in [content] if isinstance(content, bytes) else content:
                file.write(chunk)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if check is not None and not check(staged):
            return False
        if replace:
            staged.replace(path)
        elif not _link(staged, path):
            return False
        if durable:
            _sync_folder(path.parent)
        return True
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def read_regular_file(path: Path, limit: int) -> bytes:
    """Return all bytes of a regular file of at most `limit` bytes.

    Raises OSError: EINVAL for a link, folder, pipe or device, EFBIG for a larger file. Never blocks: a pipe in a folder
    that others can write to would otherwise stop the program for ever, and /dev/zero would fill the memory.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    # Before opening: merely opening some devices has an effect (a tape rewinds).
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with os.fdopen(os.open(path, flags), "rb") as file:
        # And after: the name may denote another file by now.
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        # A sparse file of any size costs nothing to make, so the size is checked before memory is claimed.
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than the limit of {limit:,}", str(path))
        return file.read(limit)


def write_json_once(path: Path, data: Any, readable: Callable[[Path], bool]) -> None:
    """Write plain data as JSON; of several processes, the first one's file is kept.

    An existing file that is not `readable` is replaced. Does nothing if the folder cannot be written.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not readable(path):
            path.unlink()
        write_atomic(path, json.dumps(data).encode(), replace=False)


def _link(staged: Path, path: Path) -> bool:
    """Give the staged file its name unless the name is taken (then False)."""
    try:
        os.link(staged, path)
    except FileExistsError:
        return False
    except OSError:
        # A filesystem without hard links cannot refuse a taken name atomically: there the last writer wins.
        staged.replace(path)
    return True


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries. Best effort: some folders cannot be opened, some filesystems have no such call."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
