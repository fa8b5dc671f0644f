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


def smoothed_loss(parameters: Mapping[str, Values], x: Values, y: NDArray[np.int64], smoothing: float) -> float:
    """Mean cross-entropy against targets of which a share `smoothing` is spread over all classes, image by image."""
    total = 0.0
    for image, label in zip(logits(parameters, x)[-1], y, strict=True):
        log_softmax = image - np.log(np.sum(np.exp(image - image.max()))) - image.max()
        for c, log_probability in enumerate(log_softmax):
            target = smoothing / len(image) + (1 - smoothing if c == label else 0)
            total -= target * log_probability
    return total / len(y)


def gradients(parameters: Mapping[str, Values], x: Values, y: NDArray[np.int64], smoothing: float = 0.0) -> Parameters:
    """dL/dw of the mean cross-entropy, for every weight and bias, pruned or not."""
    passed = logits(parameters, x)
    softmax = np.exp(passed[-1] - passed[-1].max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    classes = softmax.shape[1]
    delta = (softmax - (1 - smoothing) * np.eye(classes)[y] - smoothing / classes) / len(y)
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
    beta1, beta2 = recipe.betas
    losses = []
    for i, (x, y) in enumerate(batches):
        losses.append(smoothed_loss(w, x, y, recipe.label_smoothing))
        rate = learning_rate(recipe, i)
        for name, g in gradients(w, x, y, recipe.label_smoothing).items():
            mask = masks.get(name, np.True_)
            if recipe.optimizer == "adamw":
                w[name] = np.where(mask, w[name] - rate * recipe.weight_decay * w[name], w[name])
                g = g * mask
            else:
                g = (g + recipe.weight_decay * w[name]) * mask
            if recipe.optimizer == "sgd":
                first[name] = recipe.momentum * first[name] + g
                w[name] -= rate * (g + recipe.momentum * first[name] if recipe.nesterov else first[name])
            else:
                first[name] = beta1 * first[name] + (1 - beta1) * g
                second[name] = beta2 * second[name] + (1 - beta2) * g**2
                mean, square = first[name] / (1 - beta1 ** (i + 1)), second[name] / (1 - beta2 ** (i + 1))
                w[name] -= rate * mean / (np.sqrt(square) + recipe.eps)
    return w, losses


def learning_rate(recipe: Recipe, i: int) -> float:
    """Learning rate of mini-batch i: warm-up, then drops, half a cosine wave, or a straight line to 0 at the end."""
    warmup = recipe.warmup_iterations
    if i < warmup:
        return recipe.lr * (i + 1) / warmup
    left = (recipe.iterations - i) / (recipe.iterations - warmup)
    if recipe.schedule == "cosine":
        return float(recipe.lr * np.sin(np.pi / 2 * left) ** 2)
    if recipe.schedule == "linear":
        return recipe.lr * left
    return recipe.lr * recipe.drop_factor ** sum(i >= drop for drop in recipe.lr_milestones)
