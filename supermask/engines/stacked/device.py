"""What products are computed in. Weights, optimiser state, losses and sums over a batch are float32 whatever it is.

What is measured once on a machine, and kept: a command that is given again decides as it did before.
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

from supermask.core.environment import cache_folder, cpu_name
from supermask.core.files import write_json_once
from supermask.engines.selection import Precision


def autocast_factory(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """What to wrap a forward pass in."""

    @contextmanager
    def cast() -> Iterator[None]:
        # Without its cache of casts: a captured step would go on using those of the weights before it.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield

    return cast


@contextmanager
def matmul_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """TF32 in a GPU's products where it was asked for, and only there: PyTorch's own default is a mixture.

    And of its kernels for convolutions those that give the same bits again, as the default ones may not.
    """
    if device.type != "cuda":
        yield
        return
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    cudnn: Any = torch.backends.cudnn
    before = products.fp32_precision, convolutions.fp32_precision, cudnn.deterministic, cudnn.benchmark
    products.fp32_precision = convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    # A benchmark would choose anew in every process.
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        products.fp32_precision, convolutions.fp32_precision, cudnn.deterministic, cudnn.benchmark = before


Found = TypeVar("Found", int, str)


def cached_measurement(what: str, of: list[Any], device: torch.device, measure: Callable[[], Found]) -> Found:
    """What `measure` gives, now or when it was first asked for `of` (plain data) on such a device.

    Of processes that measure at once, the first is believed.
    """
    gpu = device.type == "cuda"
    where = [torch.cuda.get_device_name(device)] if gpu else [cpu_name(), torch.get_num_threads()]
    facts = json.dumps([what, metadata.version("torch"), where, of])
    folder = cache_folder()
    if folder is None:
        return measure()
    path = folder / "stacked" / f"{what}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    found: Found | None = _read(path, facts)
    if found is not None:
        return found
    fresh = measure()
    write_json_once(path, {"found": fresh, "facts": facts}, lambda there: _read(there, facts) is not None)
    found = _read(path, facts)
    return fresh if found is None else found


def _read(path: Path, facts: str) -> Any:
    try:
        data = json.loads(path.read_text())
        return data["found"] if data["facts"] == facts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory left, of a GPU or of the machine."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "alloc" in said or "not enough memory" in said


def empty_cache(device: torch.device) -> None:
    """Gives a GPU's memory back that nothing is in."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
