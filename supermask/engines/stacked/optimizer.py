"""Adam and SGD written out for stacked tensors: every replica has its own learning rate and its own count of steps."""

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
"""Moves w in place, and uses the gradient up. All tensors are `(replicas, numbers)`: w, its gradient, `mask_bits` (None
if none is pruned), what the optimiser keeps (`steps.moment_names`); rate and second of this step, `(replicas, 1)`."""

SQRT_EPS = 1e-30
"""Added to Adam's v before its root is taken: 1e-15 at most, where 1e-8 follows. The processor's root of 0, which v is
wherever a weight is pruned, takes fifteen times as long as any other in PyTorch."""

CHUNK = 2**14
"""Numbers moved at once on a CPU, so that all passes but the first find them in its cache."""


def make_optimizer_step(recipe: Recipe, device: torch.device) -> OptimizerStep:
    """One step of the recipe's optimiser, as PyTorch's own does it: weight decay, then the mask, then the step.

    Adam: m = 0.9 m + 0.1 g, v = 0.999 v + 0.001 g^2, w += rate m / (sqrt(v) second + 1e-8). SGD: m = momentum m + g,
    w += rate m. What is pruned has gradient +0, whatever it was, so that it keeps its bits: rate is below 0, and
    w + -0 = w for every w, -0 too. Source: paper.md section 2.
    """
    return _update(recipe.optimizer == "adam", recipe.momentum, recipe.weight_decay, device.type)


@lru_cache
def _update(adam: bool, momentum: float, decay: float, kind: str) -> OptimizerStep:
    def update(w: Tensor, g: Tensor, bits: Tensor | None, kept: Sequence[Tensor], rate: Tensor, second: Tensor) -> None:
        if decay:
            g.add_(w, alpha=decay)
        if bits is not None:
            g.view(torch.int32).bitwise_and_(bits)
        if adam:
            m, v = kept
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            root = v.add(SQRT_EPS).sqrt_().mul_(second).add_(1e-8)
            w.add_(torch.div(m, root, out=root).mul_(rate))
        elif momentum:
            (m,) = kept
            w.add_(m.mul_(momentum).add_(g) * rate)
        else:
            w.add_(g.mul_(rate))

    if kind == "cpu":
        return _chunked(update)
    # On a GPU one pass over memory instead of ten, where there is a compiler: else they cost more than the products.
    return compile_step(update) if can_compile(kind) else update


@lru_cache
def can_compile(kind: str) -> bool:
    """Whether PyTorch's compiler works on this kind of device: it needs Triton, and that a C compiler and headers."""
    if find_spec("triton") is None:
        return False
    try:
        with catch_warnings():
            # That TF32 would be faster. It is asked for where it is wanted.
            simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(2, device=kind))
    except Exception:  # of Triton, of PyTorch, of the system, of what the C compiler says
        return False
    return True


def compile_step(update: OptimizerStep, backend: str | Callable[..., Any] = "inductor") -> OptimizerStep:
    """The same, compiled once for tensors of any size."""
    # PyTorch counts what it compiles by code object, and gives up after 8: functions of one `def` share theirs.
    update.__code__ = update.__code__.replace()
    return torch.compile(update, dynamic=True, backend=backend)


def _chunked(update: OptimizerStep) -> OptimizerStep:
    """The same, PART numbers at a time."""

    def parts(w: Tensor, g: Tensor, bits: Tensor | None, kept: Sequence[Tensor], rate: Tensor, second: Tensor) -> None:
        replicas, numbers = w.shape
        at_once = max(1, CHUNK // numbers)
        for first in range(0, replicas, at_once):
            rows = slice(first, first + at_once)
            for start in range(0, numbers, CHUNK):
                part = (rows, slice(start, start + CHUNK))
                held = None if bits is None else bits[part]
                update(w[part], g[part], held, [m[part] for m in kept], rate[rows], second[rows])

    return parts


def mask_bits(mask: Tensor) -> Tensor:
    """All bits set where a weight is kept, none where it is pruned: AND leaves a gradient, or makes it +0.

    On a CPU PyTorch takes thirty times as long to fill the places of a mask.
    """
    return mask.to(torch.int32).neg()


def step_scalars(recipe: Recipe, began: Sequence[int], firsts: Sequence[int], steps: int) -> Array:
    """Rate and second of the next steps of each replica, float32 `(steps, 2, replicas)`.

    `began`: the mini-batch before which its optimiser was new; `firsts`: the mini-batch that is next.
    """
    # Most are at the same iteration.
    known = cache(lambda b, i: optimizer_step_table(recipe, b, i, i + steps))
    tables = [known(b, i) for b, i in zip(began, firsts, strict=True)]
    return np.stack([np.stack([t[name] for t in tables], axis=1) for name in ("rate", "second")], axis=1)
