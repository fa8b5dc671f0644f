"""Precision of matrix products and convolutions, and measurements that are cached per machine.

Weights, optimizer state, losses and logits are float32 at every precision. At bfloat16 a product's inputs and its
result are rounded to bfloat16; it is summed in float32. So gradients of weights and biases, which are results of
products and sums over a batch, have 8 significant bits when the optimizer, in float32, gets them.

A measurement is kept in the cache folder, so that a repeated command decides as it did the first time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from supermask.core.environment import cache_folder, cpu_name, gpu_software
from supermask.core.files import write_json_once
from supermask.engines.selection import MatmulPrecision


def autocast_factory(precision: MatmulPrecision, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A function that makes the context manager of a forward pass."""

    @contextmanager
    def autocast() -> Iterator[None]:
        # Without autocast's cache of cast weights: a replayed CUDA graph would read the casts of the recorded step.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield

    return autocast


Measurement = TypeVar("Measurement", int, str)


def cached_measurement(
    kind: str, settings: list[Any], device: torch.device, measure: Callable[[], Measurement]
) -> Measurement:
    """The cached result of `measure` for these settings (plain data) on such a device; measured if there is none.

    Where several processes measure at the same time, all return the result that was written first.
    """
    is_gpu = device.type == "cuda"
    hardware = [torch.cuda.get_device_name(device), gpu_software()] if is_gpu else [cpu_name(), torch.get_num_threads()]
    facts = json.dumps([kind, metadata.version("torch"), hardware, settings])
    folder = cache_folder()
    if folder is None:
        return measure()
    path = folder / "stacked" / f"{kind}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    cached: Measurement | None = _read(path, facts)
    if cached is not None:
        return cached
    fresh = measure()
    write_json_once(path, {"found": fresh, "facts": facts}, lambda existing: _read(existing, facts) is not None)
    # Read back: another process may have been first.
    cached = _read(path, facts)
    return fresh if cached is None else cached


def _read(path: Path, facts: str) -> Any:
    """The result in this file, or None if it is missing, damaged, or of other facts (a hash collision)."""
    try:
        data = json.loads(path.read_text())
        return data["found"] if data["facts"] == facts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


OUT_OF_MEMORY_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN 8
    "_ALLOCATION_FAILED",  # cuDNN 9
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""Parts of the messages of exhausted memory. Whole phrases: "alloc" alone is in the file names of other errors."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error says that the GPU's or the machine's memory is exhausted."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(m in text for m in OUT_OF_MEMORY_MESSAGES)


def empty_cache(device: torch.device) -> None:
    """Return the allocator's unused blocks to the GPU; no effect on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
