"""Compilation of the sparse engine's kernels: whether this machine still has to do it, and how long it takes.

numba keeps compiled kernels; a mark in the cache folder tells that they were compiled, without importing numba.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from supermask import __version__
from supermask.core.environment import cache_folder, cpu_name
from supermask.core.files import write_atomic
from supermask.execution.resources import select_run_engine
from supermask.study.networks import run_network
from supermask.study.run import Run

COMPILE_SECONDS = {"sparse": 16.0, "sparse_masks": 16.0, "sparse_convolutions": 22.0}
"""Kind of kernels -> seconds of a first compilation. Source: docs/performance.md; the kernels that learn masks were not
measured by themselves."""


def kernel_kind(runs: Iterable[Run], engine: str, device: str) -> str | None:
    """Return the module of `execution.preload` that compiles what these runs need; None without the sparse engine."""
    kinds = {(run.network, run.dataset, run.learning): run for run in runs}
    sparse_runs = [run for run in kinds.values() if select_run_engine(run, engine, device).engine == "sparse"]
    if not sparse_runs:
        return None
    if any(run_network(run).has_convolutions for run in sparse_runs):
        return "sparse_convolutions"
    return "sparse_masks" if any(run.learning is not None for run in sparse_runs) else "sparse"


def is_compiled(kind: str) -> bool:
    """Return whether kernels of this kind were compiled on this machine with these versions."""
    mark = _mark(kind)
    return mark is not None and mark.exists()


def mark_compiled(kind: str) -> None:
    """Record that kernels of this kind are compiled; without a folder that can be written, nothing is recorded."""
    mark = _mark(kind)
    if mark is None or mark.exists():
        return
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, b"")


def compile_seconds(runs: Iterable[Run], engine: str, device: str = "cpu") -> float:
    """Return the seconds that the compilation will take before these runs start; 0 if it is done or not needed."""
    kind = kernel_kind(runs, engine, device)
    return 0.0 if kind is None or is_compiled(kind) else COMPILE_SECONDS[kind]


def compilation_note(runs: Iterable[Run], engine: str, device: str = "cpu") -> str:
    """Return what the first run on a machine waits for; empty if nothing has to be compiled."""
    seconds = compile_seconds(runs, engine, device)
    return f"compiling kernels, once on this machine (about {seconds:.0f} s)" if seconds else ""


def _mark(kind: str) -> Path | None:
    folder = cache_folder()
    if folder is None:
        return None
    facts = [cpu_name(), platform.python_version(), metadata.version("numba"), __version__]
    return folder / "compiled" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}-{kind}"
