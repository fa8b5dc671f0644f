"""Small fully connected trainings for the tests of the sparse and the stacked engine."""

from __future__ import annotations

from dataclasses import fields
from functools import cache

import numpy as np
import torch

from helpers.harness import IS_FULL
from helpers.trainings import data
from supermask.core.actions import MASK0_ACTIONS
from supermask.core.criteria import CRITERIA
from supermask.core.recipe import Recipe
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, Layer, NetworkState, SplitData
from supermask.engines import sparse
from supermask.engines.job import BatchSampler, TrainingJob
from supermask.engines.sparse.costs import KernelCost, LayerKernelCosts, TraversalCosts
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

SHAPE, CLASSES = (1, 9, 7), 10
"""63 pixels: a multiple neither of the eight that are read together nor of the 64 lanes."""


STEPS = 200 if IS_FULL else 50
"""Steps over which losses of two engines are compared."""

LENGTH = (STEPS, STEPS // 2)
"""Iterations, and iterations between evaluations."""

RECIPES = {
    "adam": Recipe("adam", 2e-3, 60, *LENGTH),
    "adam with weight decay": Recipe("adam", 2e-3, 60, *LENGTH, weight_decay=1e-3),
    "sgd": Recipe("sgd", 0.05, 60, *LENGTH),
    "momentum with weight decay": Recipe("sgd", 0.01, 60, *LENGTH, momentum=0.9, weight_decay=1e-3),
    "schedule": Recipe(
        "sgd",
        0.05,
        60,
        *LENGTH,
        momentum=0.5,
        lr_milestones=(STEPS // 4, STEPS * 3 // 5),
        drop_factor=0.5,
        warmup_iterations=STEPS // 10,
    ),
}


NO_CONVOLUTIONS = LayerKernelCosts(*[KernelCost(1, 1)] * 4)


def cheap(*names: str) -> sparse.CostTable:
    """Costs with which these traversals are chosen wherever they are possible."""
    all_names = [field.name for field in fields(TraversalCosts)]
    return sparse.CostTable(
        TraversalCosts(**{name: 1.0 if name in names else 1e6 for name in all_names}), NO_CONVOLUTIONS
    )


EVERY_TRAVERSAL = {
    "over weights": cheap("weight", "inner"),
    "over all": cheap("pixel", "pixel_update", "dense"),
    "over all, then weights": cheap("pixel_forward", "dense_forward", "sparse_grad"),
}


@cache
def images() -> SplitData:
    """Half of the pixels are 0, and one in five is 0 in all images."""
    split = data(SHAPE, CLASSES, train=300)
    rng = np.random.default_rng(1)
    never = rng.random(SHAPE) < 0.2
    for some in (split.train_images, split.validation_images, split.test_images):
        some[rng.random(some.shape) < 0.5] = 0
        some[:, never] = 0
    # One pixel is nonzero in the first batch only: Adam still moves its weights when their gradient is 0 again.
    for some in (split.train_images, split.validation_images, split.test_images):
        some[:, 0, 4, 3] = 0
    split.train_images[BatchSampler(0, split.train_indices, 60).batch(0)[0], 0, 4, 3] = 16
    return split


def start_of(network: str, density: float, mask0: str = "zero") -> InitialState:
    """A ticket of large_final with about this density, its pruned weights set by a mask-0 action."""
    dense = initial_state(architecture(network, SHAPE, CLASSES), 0)
    weights, masks = {}, {}
    for name, before in dense.weights.items():
        rng = random_stream(0, "moved", name)
        after = before + torch.from_numpy(rng.normal(0, 0.05, tuple(before.shape)).astype(np.float32))
        alive = torch.ones(before.shape, dtype=torch.bool)
        layer = Layer(0.1, before, after, alive, before)
        scores = CRITERIA["large_final"](layer, rng)
        count = max(1, round(density * before.numel()))
        masks[name] = (
            alive
            if density == 1
            else scores.flatten().argsort().argsort().ge(before.numel() - count).view(before.shape)
        )
        weights[name] = MASK0_ACTIONS[mask0](layer, masks[name], before, rng)
    # With zero biases, a class as frequent as the logits predict has a gradient that is only rounding, and Adam's first
    # step is its sign.
    biases = {
        n: b + torch.from_numpy(random_stream(0, n).normal(0, 0.1, b.shape).astype(np.float32))
        for n, b in dense.unmasked.items()
    }
    return InitialState(weights, masks, biases)


def job_of(
    network: str = "fc-70-30", density: float = 0.3, recipe: Recipe = RECIPES["adam"], mask0: str = "zero"
) -> TrainingJob:
    return TrainingJob(
        sequential_network(architecture(network, SHAPE, CLASSES)), start_of(network, density, mask0), recipe, seed=0
    )


def distance(actual: NetworkState, expected: NetworkState) -> float:
    """Largest distance between two tensors of one name, relative to the norm of `expected`."""
    pairs = [
        (tensor, {**actual.weights, **actual.unmasked}[name])
        for name, tensor in {**expected.weights, **expected.unmasked}.items()
    ]
    return max(float((a - b).norm() / max(a.norm(), 1e-6)) for a, b in pairs)
