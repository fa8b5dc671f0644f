"""Number format and determinism of a GPU's matrix products and convolutions, for all engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from supermask.engines.selection import MatmulPrecision

if TYPE_CHECKING:
    import torch


@contextmanager
def matmul_precision(precision: MatmulPrecision, device: torch.device) -> Iterator[None]:
    """Use TF32 in a GPU's products if and only if `precision` is tf32, and deterministic convolution kernels.

    The settings hold in the block and are restored afterwards. PyTorch's default is TF32 in convolutions and float32 in
    matrix products. Sums of bfloat16 products are float32 throughout; PyTorch's default lets cuBLAS add partial sums in
    bfloat16. No effect on a CPU.
    """
    if device.type != "cuda":
        yield
        return
    import torch

    matmul: Any = torch.backends.cuda.matmul
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    cudnn: Any = torch.backends.cudnn
    before = matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark
    reduced_sums_before = matmul.allow_bf16_reduced_precision_reduction
    matmul.fp32_precision = conv.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    # No benchmark: it would choose kernels by measurement again in every process, with other bits.
    cudnn.deterministic, cudnn.benchmark = True, False
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision, cudnn.deterministic, cudnn.benchmark = before
        matmul.allow_bf16_reduced_precision_reduction = reduced_sums_before
