"""Adam and SGD written out for stacked tensors: every replica has its own learning rate and its own step count.

Shapes: R replicas, P numbers of one tensor of one replica (its elements, flattened), S training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor

from supermask.core.recipe import Recipe
from supermask.engines.job import Array
from supermask.engines.optimizer_steps import optimizer_step_table

OptimizerStep = Callable[[Tensor, Tensor, Tensor | None, Sequence[Tensor], Tensor, Tensor], None]
"""(w, gradient, bits, moments, rate, second) -> None: moves w and the moments in place and destroys the gradient.

w, gradient, bits and each moment are (R, P); rate and second, the scalars of this step, are (R, 1). `bits` are
`mask_bits`, None if no weight is pruned; the moments are those named by `optimizer_state_names`."""

SQRT_EPS = 1e-30
"""Added to Adam's v before the square root. It changes the root by at most 1e-15, and 1e-8 is added to that root. A
CPU's square root of 0, which v is wherever a weight is pruned, takes fifteen times as long as any other in PyTorch."""

CHUNK = 2**14
"""Numbers moved at once on a CPU: 64 KiB per tensor, so that only the first of about ten passes misses the cache."""


def make_optimizer_step(recipe: Recipe, device: torch.device) -> OptimizerStep:
    """One step of the recipe's optimizer, as PyTorch computes it: weight decay, then the mask, then the move.

    Adam: m = 0.9 m + 0.1 g, v = 0.999 v + 0.001 g^2, w += rate m / (sqrt(v) second + 1e-8). SGD: m = momentum m + g,
    w += rate m. `rate` and `second` are those of `step_scalars`. A pruned weight has gradient +0, whatever was computed
    (NaN too), and keeps its bits: rate is negative, so it moves by -0, and w + -0 = w for every w, including -0.
    Source: Zhou et al. 2019, Table S1.
    """
    return _make_step(recipe.optimizer == "adam", recipe.momentum, recipe.weight_decay, device.type)


@lru_cache
def _make_step(is_adam: bool, momentum: float, decay: float, device_type: str) -> OptimizerStep:
    def step(
        w: Tensor, g: Tensor, bits: Tensor | None, moments: Sequence[Tensor], rate: Tensor, second: Tensor
    ) -> None:
        if decay:
            g.add_(w, alpha=decay)
        if bits is not None:
            # AND on the float's bits and not a product with the mask: NaN * 0 is NaN, and -1 * 0 is -0.
            g.view(torch.int32).bitwise_and_(bits)
        if is_adam:
            m, v = moments
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            root = v.add(SQRT_EPS).sqrt_().mul_(second).add_(1e-8)
            w.add_(torch.div(m, root, out=root).mul_(rate))
        elif momentum:
            (m,) = moments
            w.add_(m.mul_(momentum).add_(g) * rate)
        else:
            w.add_(g.mul_(rate))

    if device_type == "cpu":
        return _in_chunks(step)
    # Compiled, the step is one pass over memory and not ten, which would cost more than the matrix products.
    return compile_step(step) if can_compile(device_type) else step


@lru_cache
def can_compile(device_type: str) -> bool:
    """True if torch.compile works on this type of device: it needs Triton, which needs a C compiler and headers."""
    if find_spec("triton") is None:
        return False
    try:
        with catch_warnings():
            # The advice to use TF32, given even where it was not asked for.
            simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(2, device=device_type))
    except Exception:  # raised by Triton, PyTorch, the system, or the C compiler
        return False
    return True


def compile_step(step: OptimizerStep, backend: str | Callable[..., Any] = "inductor") -> OptimizerStep:
    """The step compiled once for tensors of any size."""
    # Dynamo counts compilations per code object and gives up after 8; all functions of one `def` share a code object.
    step.__code__ = step.__code__.replace()
    return torch.compile(step, dynamic=True, backend=backend)


def _in_chunks(step: OptimizerStep) -> OptimizerStep:
    """The step on `CHUNK` numbers at a time."""

    def chunked(
        w: Tensor, g: Tensor, bits: Tensor | None, moments: Sequence[Tensor], rate: Tensor, second: Tensor
    ) -> None:
        replicas, numbers = w.shape
        rows_at_once = max(1, CHUNK // numbers)
        for first in range(0, replicas, rows_at_once):
            rows = slice(first, first + rows_at_once)
            for start in range(0, numbers, CHUNK):
                part = (rows, slice(start, start + CHUNK))
                bits_part = None if bits is None else bits[part]
                step(w[part], g[part], bits_part, [m[part] for m in moments], rate[rows], second[rows])

    return chunked


def mask_bits(mask: Tensor) -> Tensor:
    """All bits set where a weight is kept, none where it is pruned, int32: AND keeps a gradient or makes it +0.

    On a CPU PyTorch takes thirty times as long to fill the places of a bool mask.
    """
    return mask.to(torch.int32).neg()


def step_scalars(recipe: Recipe, began: Sequence[int], firsts: Sequence[int], steps: int) -> Array:
    """`rate` and `second` of the next S steps of each replica, float32 (S, 2, R).

    Adam: rate = -lr / (1 - 0.9^t), second = 1 / sqrt(1 - 0.999^t), t = steps since `began`; SGD: rate = -lr.
    `began`: the mini-batch at which each replica's optimizer was new; `firsts`: each replica's next mini-batch.
    """
    # Cached: most replicas are at the same iteration.
    scalars = cache(lambda start, first: optimizer_step_table(recipe, start, first, first + steps))
    tables = [scalars(start, first) for start, first in zip(began, firsts, strict=True)]
    return np.stack([np.stack([t[name] for t in tables], axis=1) for name in ("rate", "second")], axis=1)
