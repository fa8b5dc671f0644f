"""Hyperparameters of the optimizer per step, as the kernels and the stacked engine read them."""

from __future__ import annotations

import numpy as np

from supermask.core.recipe import Recipe
from supermask.engines.job import Array

OPTIMIZER = np.dtype([("adam", np.int8), *((name, np.float32) for name in ("rate", "second", "momentum", "decay"))])
"""Hyperparameters of one step.

`adam`: 1 for Adam, 0 for SGD. `rate`: -(learning rate), for Adam divided by 1 - 0.9^t (bias correction of the first
moment). `second`: Adam's 1 / sqrt(1 - 0.999^t) (bias correction of the second). `momentum`: SGD's. `decay`: weight
decay."""


def optimizer_step_table(recipe: Recipe, run_start: int, first: int, last: int) -> Array:
    """Return the hyperparameters of mini-batches `first` to `last - 1`, `OPTIMIZER` `(last - first,)`.

    `run_start`: the iteration at which the run started; Adam counts its steps t from there.
    Source: Zhou et al. 2019, Sec. 2 (Adam; 0.9, 0.999 and 1e-8 are its defaults).
    """
    steps = np.zeros(last - first, OPTIMIZER)
    steps["adam"] = recipe.optimizer == "adam"
    steps["momentum"], steps["decay"] = recipe.momentum, recipe.weight_decay
    rates = -np.array([recipe.learning_rate(i) for i in range(first, last)])
    t = np.arange(first, last) - run_start + 1.0
    # Computed in float64 and rounded to float32 once, on assignment: 1 - 0.999^t loses digits in float32.
    steps["rate"] = rates / (1 - 0.9**t) if recipe.optimizer == "adam" else rates
    steps["second"] = 1 / np.sqrt(1 - 0.999**t)
    return steps


def optimizer_state_names(recipe: Recipe) -> tuple[str, ...]:
    """Return PyTorch's names of the optimizer state per weight: two for Adam, one for SGD with momentum, else none."""
    if recipe.optimizer == "adam":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if recipe.momentum else ()
