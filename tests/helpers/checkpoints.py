"""A checkpoint that fits a training without an optimizer state."""

from __future__ import annotations

from typing import Any

import numpy as np

from supermask.core.recipe import Recipe
from supermask.core.types import InitialState
from supermask.store.files.entry import Tensors

SGD = Recipe("sgd", 0.1, 60, 10, 4)
"""10 iterations without momentum."""


def checkpoint(start: InitialState, iteration: int) -> tuple[dict[str, Any], Tensors]:
    """Return (facts, tensors) of a checkpoint at `iteration`, its network equal to the start."""
    state = {name: tensor.numpy() for name, tensor in {**start.weights, **start.unmasked}.items()}
    tensors: Tensors = {f"state/{name}": array for name, array in state.items()}
    tensors |= {f"point/lowest_validation_loss/{name}": array for name, array in state.items()}
    tensors["curve/iterations"] = np.array([0, iteration])
    for column in ("training_loss", "validation_loss", "validation_accuracy"):
        tensors[f"curve/{column}"] = np.array([0.5, 0.25])
    return {"layout": 2, "iteration": iteration, "best": 1}, tensors
