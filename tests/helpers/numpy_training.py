"""Slow oracle of the engines' tests: fully connected networks in plain NumPy, float64, no autograd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from supermask.core.recipe import Recipe

Values = NDArray[np.float64]
Parameters = dict[str, Values]


def logits(parameters: Mapping[str, Values], x: Values) -> list[Values]:
    """The input of every layer, and last the logits: x W' + b, ReLU between layers."""
    layers = len(parameters) // 2
    passed = [x]
    for i in range(1, layers + 1):
        z = passed[-1] @ parameters[f"fc{i}.weight"].T + parameters[f"fc{i}.bias"]
        passed.append(z if i == layers else np.maximum(z, 0))
    return passed


def loss_and_accuracy(parameters: Mapping[str, Values], x: Values, y: NDArray[np.int64]) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy."""
    z = logits(parameters, x)[-1]
    z = z - z.max(axis=1, keepdims=True)
    log_softmax = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return float(-log_softmax[np.arange(len(y)), y].mean()), float((z.argmax(axis=1) == y).mean())


def gradients(parameters: Mapping[str, Values], x: Values, y: NDArray[np.int64]) -> Parameters:
    """dL/dw of the mean cross-entropy, for every weight and bias, pruned or not."""
    passed = logits(parameters, x)
    softmax = np.exp(passed[-1] - passed[-1].max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    delta = (softmax - np.eye(softmax.shape[1])[y]) / len(y)
    gradients_: Parameters = {}
    for i in range(len(parameters) // 2, 0, -1):
        gradients_[f"fc{i}.weight"] = delta.T @ passed[i - 1]
        gradients_[f"fc{i}.bias"] = delta.sum(axis=0)
        delta = (delta @ parameters[f"fc{i}.weight"]) * (passed[i - 1] > 0)
    return gradients_


def train(
    parameters: Mapping[str, Values],
    masks: Mapping[str, NDArray[np.bool_]],
    recipe: Recipe,
    batches: Iterable[tuple[Values, NDArray[np.int64]]],
) -> tuple[Parameters, list[float]]:
    """The parameters after all batches, and the loss of each batch before its step."""
    w = {n: np.array(v, dtype=np.float64) for n, v in parameters.items()}
    first, second = ({n: np.zeros_like(v) for n, v in w.items()} for _ in range(2))
    losses = []
    for i, (x, y) in enumerate(batches):
        losses.append(loss_and_accuracy(w, x, y)[0])
        rate = recipe.lr * recipe.drop_factor ** sum(i >= drop for drop in recipe.lr_milestones)
        rate *= min(1.0, (i + 1) / recipe.warmup_iterations) if recipe.warmup_iterations else 1.0
        for name, g in gradients(w, x, y).items():
            g = (g + recipe.weight_decay * w[name]) * masks.get(name, True)
            if recipe.optimizer == "sgd":
                first[name] = recipe.momentum * first[name] + g
                w[name] -= rate * first[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                mean, square = first[name] / (1 - 0.9 ** (i + 1)), second[name] / (1 - 0.999 ** (i + 1))
                w[name] -= rate * mean / (np.sqrt(square) + 1e-8)
    return w, losses
