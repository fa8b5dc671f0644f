"""The optimiser's numbers, step by step, as kernels take them; and what it keeps of a weight, by PyTorch's names."""

from __future__ import annotations

import numpy as np

from supermask.engines.job import Array
from supermask.engines.kernels.updates import OPTIMIZER
from supermask.recipe import Recipe


def optimizer_steps(recipe: Recipe, began: int, first: int, last: int) -> Array:
    """One `OPTIMIZER` for each of the mini-batches `first` to `last - 1`, of a training that began at `began`.

    Source: paper.md section 2 (Adam with 0.9, 0.999, 1e-8).
    """
    how = np.zeros(last - first, OPTIMIZER)
    how["adam"] = recipe.optimizer == "adam"
    how["momentum"], how["decay"] = recipe.momentum, recipe.weight_decay
    rates = -np.array([recipe.learning_rate(i) for i in range(first, last)])
    steps = np.arange(first, last) - began + 1.0
    how["rate"] = rates / (1 - 0.9**steps) if recipe.optimizer == "adam" else rates
    how["second"] = 1 / np.sqrt(1 - 0.999**steps)
    return how


def moment_names(recipe: Recipe) -> tuple[str, ...]:
    """What the optimiser keeps of every weight: of Adam its two means, of SGD with momentum one."""
    if recipe.optimizer == "adam":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if recipe.momentum else ()
