"""What a run's bits depend on besides its id: program, machine, threads. Recorded with every run.

Where things are kept that can be made again at any time: decoded data sets, what this machine was measured at.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from supermask import __version__


def environment_info(
    engine: str, device: str, threads: int, kernels: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Facts of this environment, and `fingerprint`, their SHA-256: equal fingerprints promise equal bits.

    `kernels`: what an engine with kernels of its own adds to them.
    """
    facts: dict[str, Any] = {
        "supermask": __version__,
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": cpu_name(),
        "device": device if device == "cpu" else _gpu(),
        "threads": threads,
        "engine": engine,
    }
    if kernels is not None:
        facts |= kernels
    canonical = json.dumps(facts, sort_keys=True).encode()
    return {**facts, "fingerprint": hashlib.sha256(canonical).hexdigest()[:16]}


@lru_cache
def cpu_name() -> str:
    """The processor's name; kernels are chosen by what it can do, so another one may give other bits."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    capabilities = hashlib.sha256(named.get("flags", "").encode()).hexdigest()[:8]
    return f"{named.get('model name', platform.processor())} ({capabilities})"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


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
