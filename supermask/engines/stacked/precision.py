"""What products are computed in. Weights, optimiser state, losses and sums over a batch are float32 whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from supermask.engines.choice import Precision


def computing_in(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """What to wrap a forward pass in."""

    @contextmanager
    def cast() -> Iterator[None]:
        # Without its cache of casts: a captured step would go on using those of the weights before it.
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            yield

    return cast


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
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
