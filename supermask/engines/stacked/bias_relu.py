"""Bias and ReLU of a fully connected layer as one compiled kernel, on a GPU.

`torch.baddbmm` writes the bias to the outputs and reads it from there before it sums, and the ReLU reads and writes
them again: 20 bytes per float32 output. A plain product and this kernel: 4 and 8.

Shapes: R replicas, O outputs of a layer, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from supermask.engines.stacked.optimizer import compile_obstacle, first_line, warn_of_obstacle

BiasRelu = Callable[[Tensor, Tensor], Tensor]
"""(y, b) -> relu(y + b), differentiable: y (R, O, B), the product of a layer; b (R, O), its biases."""


def make_bias_relu(device: torch.device) -> BiasRelu | None:
    """Return bias and ReLU in one kernel; None on a CPU, and with a warning where it cannot be compiled.

    Not used on a CPU: it adds the bias after the sum, `baddbmm` before it, so the last bits would change.
    """
    return _make(device.type)


@cache
def _make(device_type: str) -> BiasRelu | None:
    """Cached, so that the kernel that is reported is the one that trains."""
    if device_type != "cuda":
        return None
    obstacle = compile_obstacle()
    compiled = _CompiledBiasRelu(bias_and_relu if obstacle else torch.compile(bias_and_relu, dynamic=True))
    if not obstacle:
        try:
            with catch_warnings(), torch.no_grad():
                # The advice to use TF32, given even where it was not asked for.
                simplefilter("ignore")
                compiled(torch.ones(2, 3, 5, device=device_type), torch.ones(2, 3, device=device_type))
        except Exception as error:  # raised by Triton, PyTorch, the system, or the C compiler
            obstacle = first_line(error)
    if obstacle:
        warn_of_obstacle("the ReLU kernel", obstacle)
        return None
    return compiled


def bias_and_relu(y: Tensor, b: Tensor) -> Tensor:
    """relu(y + b): y (R * O, B), b (R * O, 1). Two axes, so that few sizes can be equal: each pattern is compiled."""
    return torch.relu(y + b)


class _CompiledBiasRelu:
    """`BiasRelu` by a kernel that need not be differentiable."""

    def __init__(self, kernel: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._kernel = kernel

    def __call__(self, y: Tensor, b: Tensor) -> Tensor:
        result: Tensor = _BiasReluFunction.apply(y, b, self._kernel)  # type: ignore[no-untyped-call]
        return result


class _BiasReluFunction(torch.autograd.Function):
    """The gradient is that of a ReLU; that of the bias is its sum over the images."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        # Not views: the shape of a view's base is part of what is compiled, and so is whether it needs a gradient.
        result = kernel(y.reshape(-1, y.shape[2]).data, b.reshape(-1, 1).data).view(y.shape)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (result,) = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, result, 0)
        return gradient, gradient.sum(2), None
