"""Where things are kept that can be made again at any time: decoded data sets, what this machine was measured at."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "SUPERMASK_CACHE"


def cache_folder() -> Path | None:
    """SUPERMASK_CACHE, else XDG_CACHE_HOME/supermask, else ~/.cache/supermask; None where there is no home."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "supermask"
    try:
        return Path.home() / ".cache" / "supermask"
    except RuntimeError:
        return None


def keep(path: Path, data: Any, readable: Callable[[Path], bool]) -> None:
    """Writes plain data as JSON: of several processes' the first is kept.

    Only where nothing that is `readable` is there; nothing at all where the folder cannot be written.
    """
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not readable(path):
            path.unlink()
        mine.write_text(json.dumps(data))
        try:
            os.link(mine, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: the last is believed
            mine.replace(path)
        mine.unlink(missing_ok=True)
