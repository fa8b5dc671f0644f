"""Adam and SGD written out for stacked tensors: every replica has its own learning rate and its own count of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from supermask.engines.job import Array
from supermask.engines.steps import optimizer_steps
from supermask.recipe import Recipe

Update = Callable[[Tensor, Tensor, Tensor | None, Sequence[Tensor], Tensor, Tensor], None]
"""Moves w in place. All tensors are `(replicas, numbers)`: w, its gradient, which numbers are pruned (None: none),
what the optimiser keeps (`steps.moment_names`), rate and second of this step, `(replicas, 1)`."""


def update_of(recipe: Recipe, device: torch.device) -> Update:
    """One step of the recipe's optimiser, as PyTorch's own does it: weight decay, then the mask, then the step.

    Adam: m = 0.9 m + 0.1 g, v = 0.999 v + 0.001 g^2, w += rate m / (sqrt(v) second + 1e-8). SGD: m = momentum m + g,
    w += rate m. What is pruned has gradient +0, whatever it was, so that it keeps its bits: rate is below 0, and
    w + -0 = w for every w, -0 too. Source: paper.md section 2.
    """
    adam, momentum, decay = recipe.optimizer == "adam", recipe.momentum, recipe.weight_decay

    def update(
        w: Tensor, g: Tensor, pruned: Tensor | None, kept: Sequence[Tensor], rate: Tensor, second: Tensor
    ) -> None:
        if decay:
            g = g + w * decay
        if pruned is not None:
            g = g.masked_fill(pruned, 0.0)
        if adam:
            m, v = kept
            m.lerp_(g, 0.1)
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            w.add_(m / (v.sqrt() * second + 1e-8) * rate)
            return
        if momentum:
            g = kept[0].mul_(momentum).add_(g)
        w.add_(g * rate)

    if device.type == "cuda" and find_spec("triton") is not None:
        # One pass over memory instead of a dozen: on a GPU these steps cost more than the products otherwise.
        return torch.compile(update)
    return update


def step_numbers(recipe: Recipe, began: Sequence[int], firsts: Sequence[int], steps: int) -> Array:
    """Rate and second of the next steps of each replica, float32 `(steps, 2, replicas)`.

    `began`: the mini-batch before which its optimiser was new; `firsts`: the mini-batch that is next.
    """
    tables = [optimizer_steps(recipe, b, i, i + steps) for b, i in zip(began, firsts, strict=True)]
    return np.stack([np.stack([t[name] for t in tables], axis=1) for name in ("rate", "second")], axis=1)
