"""Environment of a run (versions, machine, threads), recorded with it; and the cache folder.

Bits of a result depend on the run's id and on its environment. The cache holds only what can be recomputed: decoded
datasets, measured kernel costs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import supermask
from supermask import __version__
from supermask.core.errors import UserError, quote


def environment_info(
    engine: str, device: str, threads: int, kernels: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the facts of this environment and `fingerprint`, their SHA-256: equal fingerprints promise equal bits.

    `kernels`: facts of an engine with kernels of its own, such as compiler version and kernel costs.
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
    if device != "cpu":
        facts |= gpu_software()
    if kernels is not None:
        facts |= kernels
    canonical = json.dumps(facts, sort_keys=True).encode()
    return {**facts, "fingerprint": hashlib.sha256(canonical).hexdigest()[:16]}


@lru_cache
def cpu_name() -> str:
    """Name of the processor and a hash of its instruction sets, which decide what kernels compile to."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    instruction_sets = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name', platform.processor())} ({instruction_sets})"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def gpu_software() -> dict[str, str | None]:
    """Versions of the libraries and the driver that choose and compile a GPU's kernels; None where unknown."""
    import torch

    try:
        triton: str | None = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "triton": triton,
        "driver": _gpu_driver(Path("/proc/driver/nvidia/version")),
    }


def _gpu_driver(path: Path) -> str | None:
    """Version of NVIDIA's kernel module: `580.65.06`, from the line `NVRM version: ... Module  580.65.06  Release`."""
    try:
        match = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", path.read_text().partition("\n")[0])
    except OSError:
        return None
    return None if match is None else match.group()


CACHE_VARIABLE = "SUPERMASK_CACHE"


def cache_folder() -> Path | None:
    """Return SUPERMASK_CACHE, else XDG_CACHE_HOME/supermask, else ~/.cache/supermask; None without a home folder."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return expand_path(folder)
    xdg_cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if xdg_cache.is_absolute():
        return xdg_cache / "supermask"
    try:
        return Path.home() / ".cache" / "supermask"
    except RuntimeError:
        return None


def needs_current_folder() -> bool:
    """Return True if a new Python process finds this package in the current folder only: in a clone, not installed.

    Any other process has to ignore the current folder, which `python -c` and `python -m` import from first: a file
    random.py there would replace Python's module.
    """
    folder = Path(supermask.__file__).parents[1]
    with suppress(OSError):
        # The first entry is the folder that `-c` and `-m` add; installed packages and PYTHONPATH follow.
        return folder == Path.cwd() and str(folder) not in sys.path[1:]
    return False


MAX_NAME_BYTES = 255
"""Longest name of a file or folder on the file systems of Linux and macOS."""


def expand_path(path: str | Path) -> Path:
    """Replace a leading `~` or `~user` by the home folder. A shell does not do that in `--store=~/x` and in variables.

    Raises UserError if there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise UserError(
            f"{quote(str(path))}: the home folder of {quote(user)} is not known: give the whole path."
        ) from error


def check_path(path: str | Path) -> Path:
    """Return the expanded path. Raises UserError as `expand_path` does, and for a name that no file can have."""
    if "\0" in str(path):
        raise UserError(f"{quote(str(path))} has a null character, which no path can have: give another path.")
    if long := [part for part in Path(path).parts if len(os.fsencode(part)) > MAX_NAME_BYTES]:
        raise UserError(
            f"{quote(str(path))}: the name {quote(long[0])} has {len(os.fsencode(long[0])):,} bytes; a file's name has "
            f"at most {MAX_NAME_BYTES}. Give a shorter one."
        )
    return expand_path(path)
