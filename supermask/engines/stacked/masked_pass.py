"""Masked weights of a pass of learned masks, compiled on a GPU: a few kernels instead of some hundred.

Shapes: R replicas; logits and weights (R, *kernel), keys of the uniform numbers int32 (R, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import UNTRAINED
from supermask.engines.job import stack_settings
from supermask.engines.stacked.forward import masked_weights
from supermask.engines.stacked.optimizer import compile_obstacle, copy_function, first_line, warn_of_obstacle

MaskedPass = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, weights, keys) -> the masked weights of one forward pass of each replica, as `forward.masked_weights`."""

PROBE_REPLICAS = (2, 1)
"""Numbers of replicas in the trial. PyTorch compiles anew for 1."""

MAX_KERNELS = 32
"""Kernel shapes for which the pass is compiled, which takes seconds each; others are computed by the plain pass."""


def make_masked_pass(learning: MaskLearning, device: torch.device) -> MaskedPass:
    """Return the masked pass, compiled on a GPU; with a warning the plain one if it cannot be compiled."""
    return _make_pass(_settings_of_a_step(learning), device.type)[0]


def is_masked_pass_compiled(learning: MaskLearning | None, device: str) -> bool:
    """True if `make_masked_pass` returns a compiled pass; False without a mask to learn."""
    return learning is not None and _make_pass(_settings_of_a_step(learning), torch.device(device).type)[1]


def _settings_of_a_step(learning: MaskLearning) -> MaskLearning:
    settings = stack_settings(UNTRAINED, learning)[1]
    assert settings is not None
    return settings


@lru_cache
def _make_pass(learning: MaskLearning, device_type: str) -> tuple[MaskedPass, bool]:
    """The pass, and True if it is compiled. Cached, so that the pass that is reported is the one that trains."""

    def masked_pass(logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
        return masked_weights(learning, logits, weights, keys)

    # Edge-popup's cutoff is a selection, which is not fused, and its rank would be compiled anew for many layers.
    if device_type != "cuda" or learning.method == "edge_popup":
        return masked_pass, False
    obstacle = compile_obstacle()
    compiled = masked_pass if obstacle else compile_pass(masked_pass)
    if not obstacle:
        try:
            _try_pass(compiled, device_type)
        except Exception as error:  # raised by Triton, PyTorch, the system, or the C compiler
            obstacle = first_line(error)
    if obstacle:
        warn_of_obstacle("the masked pass", obstacle)
        return masked_pass, False
    return compiled, True


def compile_pass(masked_pass: MaskedPass, backend: str | Callable[..., Any] = "inductor") -> MaskedPass:
    """The pass compiled per kernel shape, forward and backward, for any number of replicas.

    Dynamo compiles at most 8 times per code object and then raises. The shapes of all layers would exceed that, also
    if the kernels were flattened: the shape of a view's base is part of what is compiled.
    """
    passes: dict[torch.Size, MaskedPass] = {}

    def compiled(logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
        kernel = logits.shape[1:]
        if kernel not in passes:
            is_limit_reached = len(passes) == MAX_KERNELS
            passes[kernel] = (
                masked_pass
                if is_limit_reached
                else torch.compile(copy_function(masked_pass), dynamic=True, fullgraph=True, backend=backend)
            )
        # The number of replicas is the only size that varies, so no other can happen to be equal to it.
        arguments = logits.flatten(1), weights.flatten(1).data, keys.data
        for tensor in (logits, *arguments):
            for axis in range(1, tensor.dim()):
                torch._dynamo.mark_static(tensor, axis)
        return passes[kernel](*arguments).view_as(logits)

    return compiled


def _try_pass(masked_pass: MaskedPass, device_type: str) -> None:
    """Compile and run the pass on small tensors, as in training and as in evaluation: compilation is lazy."""
    with catch_warnings():
        # The advice to use TF32, given even where it was not asked for.
        simplefilter("ignore")
        for replicas in PROBE_REPLICAS:
            logits, weights = (torch.ones(replicas, 5, 7, device=device_type) for _ in range(2))
            keys = torch.ones(replicas, 2, dtype=torch.int32, device=device_type)
            masked = masked_pass(logits.requires_grad_(), weights, keys)
            torch.autograd.grad(masked.sum(), logits)
            with torch.no_grad():
                masked_pass(logits, weights, keys)
