"""Atomic writes of single files, for everything outside the store's own entries.

A reader sees the file as it was before or the new one whole, never a part. The store's entries are folders with
stricter promises; `supermask/store/files/` writes them.
"""

from __future__ import annotations

import json
import os
import secrets
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
