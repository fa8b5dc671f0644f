"""Slow oracle of mask learning: uniform numbers, forward pass, gradient and step in plain NumPy, no autograd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from helpers.numpy_training import Parameters, Values, gradients, loss_and_accuracy
from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import Recipe
from supermask.core.rng import random_stream

Words = NDArray[np.uint32]


def key_pair(seed: int, purpose: str, name: str, number: int) -> tuple[int, int]:
    """The two keys of one forward pass of one layer: splitmix64, in Python integers."""
    whole = 2**64
    base = int(random_stream(seed, "supermask", purpose, name).integers(2**64, dtype=np.uint64, endpoint=False))
    z = (base + number * 0x9E3779B97F4A7C15) % whole
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % whole
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % whole
    z ^= z >> 31
    return z % 2**32, z // 2**32


def uniform_samples(keys: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A multiple of 2^-24 in [0, 1) for each weight of a kernel, in C order."""
    words = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(keys[0])
    words = mix(mix(words) ^ np.uint32(keys[1])) >> np.uint32(8)
    return (words / 2.0**24).astype(np.float32).reshape(shape)


def mix(words: Words) -> Words:
    """A bijection of 32-bit words."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        words = (words ^ (words >> np.uint32(shift))) * np.uint32(factor)
    return words ^ (words >> np.uint32(15))


def sigmoid(m: Values) -> Values:
    return 1 / (1 + np.exp(-m))


def mask(learning: MaskLearning, m: Values, keys: tuple[int, int]) -> Values:
    """Mask b of one forward pass: 0, 1 and, where it may invert, -1."""
    if learning.method == "bernoulli":
        return np.where(uniform_samples(keys, m.shape) < sigmoid(m), 1.0, 0.0)
    if learning.method == "rounded":
        return np.where(m > 0, 1.0, 0.0)
    if learning.method == "edge_popup":
        return np.where(m > np.sort(m.ravel())[m.size - round(learning.density * m.size) - 1], 1.0, 0.0)
    return np.where(m > learning.threshold, 1.0, 0.0) - np.where(m < -learning.threshold, 1.0, 0.0)


def masked_weights(learning: MaskLearning, w: Values, b: Values) -> Values:
    """The weights of one forward pass; b may be any real mask."""
    return w * b * (b.size / ones(learning, b) if learning.rescaled else 1.0)


def ones(learning: MaskLearning, b: Values) -> float:
    """Number of ones; in a mask that may invert, -1 counts too."""
    return float((np.abs(b) if learning.method == "signed" else b).sum())


def logit_gradient(learning: MaskLearning, w: Values, m: Values, b: Values, g: Values) -> Values:
    """dL/dm of g = dL/d(used weights). With r = size / ones and d ones/db = 1 at zeros too (the sign of b, under
    `signed`): dL/db = g w r - (sum of g w b) size / ones^2."""
    gradient = g * w
    if learning.rescaled:
        along = np.sign(b) if learning.method == "signed" else 1.0
        count = ones(learning, b)
        gradient = gradient * b.size / count - along * (g * w * b).sum() * b.size / count**2
    return gradient * sigmoid(m) * (1 - sigmoid(m)) if learning.method in ("bernoulli", "rounded") else gradient


def train(
    learning: MaskLearning,
    recipe: Recipe,
    weights: Mapping[str, Values],
    others: Mapping[str, Values],
    logits: Mapping[str, Values],
    batches: Iterable[tuple[Values, NDArray[np.int64]]],
    seed: int = 0,
) -> tuple[Parameters, list[float], Parameters]:
    """The logits after all batches, the loss of each batch before its step, and the weights of the last pass."""
    m = {n: np.array(v, dtype=np.float64) for n, v in logits.items()}
    first, second = ({n: np.zeros_like(v) for n, v in m.items()} for _ in range(2))
    losses: list[float] = []
    passed: Parameters = {}
    for i, (x, y) in enumerate(batches):
        b = {n: mask(learning, m[n], key_pair(seed, "training", n, i)) for n in m}
        passed = {n: masked_weights(learning, weights[n], b[n]) for n in m}
        parameters = {**passed, **others}
        losses.append(loss_and_accuracy(parameters, x, y)[0])
        found = gradients(parameters, x, y)
        for name in m:
            g = logit_gradient(learning, weights[name], m[name], b[name], found[name])
            g = g + recipe.weight_decay * m[name]
            if recipe.optimizer == "sgd":
                first[name] = recipe.momentum * first[name] + g
                m[name] = m[name] - recipe.lr * first[name]
            else:
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                mean, square = first[name] / (1 - 0.9 ** (i + 1)), second[name] / (1 - 0.999 ** (i + 1))
                m[name] = m[name] - recipe.lr * mean / (np.sqrt(square) + 1e-8)
    return m, losses, passed
