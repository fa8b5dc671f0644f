"""Where things are kept that can be made again at any time: decoded data sets, what this machine was measured at."""

from __future__ import annotations

import os
from pathlib import Path

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
