"""Location of stores: folders that are one, and files that must not be written into one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from supermask.core.environment import check_path
from supermask.core.errors import UserError, quote
from supermask.core.text import escape_controls

STORE_FOLDERS = ("runs", "points", "conflicts", "quarantine", "staging", "checkpoints", "claims", "notes")
"""Folders of a store; nothing else writes to them."""

_SHARD = re.compile(r"[0-9a-f]{2}")
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def check_store(folder: Path) -> None:
    """Raise UserError for a folder that holds something, but no store."""
    if any((folder / name).is_dir() for name in STORE_FOLDERS) or not any(folder.iterdir()):
        return
    if root := _enclosing_store(folder):
        raise UserError(f"{quote(str(folder))} is a part of a store: give '{escape_controls(str(root))}'.")
    raise UserError(f"{quote(str(folder))} is not a store: give the folder of a store, which holds `runs/`.")


def output_path(path: str | Path) -> Path:
    """Return the path to write a result to; a leading `~` is the home folder.

    Raises UserError for a name that no file can have, and for a path among the entries of a store: results that are
    not the store's own would damage them.
    """
    target = check_path(path)
    if root := _enclosing_store(target):
        store = escape_controls(str(root))
        raise UserError(f"{quote(str(target))} is in the store '{store}', among its own files: give another place.")
    return target


def _enclosing_store(path: Path) -> Path | None:
    """Return the root of the store one of whose own folders a path is, or is in; None if there is none."""
    # Unlike Path.resolve, realpath has an answer for a link that leads to itself.
    real = Path(os.path.realpath(path))
    for folder in (real, *real.parents):
        if folder.name in STORE_FOLDERS and _has_runs(folder.parent / "runs"):
            return folder.parent
    return None


def _has_runs(folder: Path) -> bool:
    """Return whether a folder has a run where a store has it: `ab/ab...`. Numbered folders of a project do not."""
    try:
        shards = [entry for entry in folder.iterdir() if _SHARD.fullmatch(entry.name)]
        return any(
            _RUN_ID.fullmatch(run.name) and run.name.startswith(shard.name)
            for shard in shards
            for run in shard.iterdir()
        )
    except OSError:
        return False
