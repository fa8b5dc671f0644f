"""Certificates of correct runs with dead, barely alive and saturated units, on the reference and the sparse engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import LAYERS, data, pruned_start

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import Certificate, certify
from supermask.core.criteria import CRITERIA
from supermask.core.initializers import truncated_normal
from supermask.core.invariants import MASK1_INVARIANTS, LayerView
from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams, random_stream
from supermask.core.types import InitialState, Layer, TrainingResult
from supermask.engines import reference, sparse
from supermask.engines.job import TrainingJob
from supermask.networks.network import sequential_network
from supermask.networks.sequential import initial_state, prunable_tensors

DATA = data()
PRUNABLE = prunable_tensors(LAYERS)
ITERATIONS = 24
ENGINES: dict[str, Callable[..., list[TrainingResult]]] = {
    "reference": reference.train,
    "sparse": sparse.train,
}
SCALES = (1.0, 1e-3, 1e-12, 1e-30, 1e-38, 30.0, 1e4)
"""Factors of the initial weights: usual, barely alive (from 1e-30 on gradients underflow), saturated."""

RECIPES = (
    Recipe("adam", 0.03, 5, ITERATIONS, 12),
    Recipe("adam", 0.5, 5, ITERATIONS, 12),
    Recipe("adam", 1e-9, 5, ITERATIONS, 12),
    Recipe("sgd", 0.3, 5, ITERATIONS, 12),
    Recipe("sgd", 5.0, 5, ITERATIONS, 12),
    Recipe("sgd", 0.1, 5, ITERATIONS, 12, momentum=0.9),
    Recipe("sgd", 1e-6, 5, ITERATIONS, 12, momentum=0.9),
    Recipe("adam", 0.03, 5, ITERATIONS, 12, weight_decay=0.01),
)


def dense_start(seed: int, rng: np.random.Generator) -> InitialState:
    """Return an initial state with one scale per layer, some dead units, and in some seeds biases that are not 0."""
    start = initial_state(LAYERS, seed)
    weights = {n: w * float(rng.choice(SCALES)) for n, w in start.weights.items()}
    biases = dict(start.unmasked)
    for name, bias in biases.items():
        kind = rng.integers(3)
        if kind == 1:
            biases[name] = torch.from_numpy(rng.normal(0, 1, len(bias)).astype(np.float32))
        elif kind == 2 and name != "fc3.bias":
            # A unit that is on for few images: it trains for a few steps and dies.
            biases[name] = -weights[name.replace("bias", "weight")].clamp(min=0).sum(1) * float(rng.choice([0.3, 0.6]))
    return InitialState(weights, start.masks, biases)


def random_step(seed: int, rng: np.random.Generator) -> PruneStep:
    """Return a pruning step with any actions."""
    return PruneStep(
        list(CRITERIA.values())[rng.integers(len(CRITERIA) - 2)],  # without the criteria that need a gradient
        list(MASK1_ACTIONS)[seed % len(MASK1_ACTIONS)],
        list(MASK0_ACTIONS)[seed % len(MASK0_ACTIONS)],
        {"hidden": float(rng.choice([0.2, 0.5])), "output": 0.2, "global": 0.4},
        "layer" if rng.random() < 0.7 else "global",
        levels=int(rng.choice([1, 3])),
        rewind_to="start" if rng.random() < 0.6 else 12,
        rescaled=bool(rng.random() < 0.3),
    )


def certified_runs(engine: str, seeds: range) -> Iterator[tuple[str, TrainingResult, Certificate]]:
    """Train and certify two runs per seed: a dense one and one that is pruned from it."""
    train = ENGINES[engine]
    for seed in seeds:
        rng = np.random.default_rng([seed, len(engine)])
        recipe = RECIPES[seed % len(RECIPES)]
        start = dense_start(seed, rng)
        points: frozenset[Any] = frozenset({12, "lowest_validation_loss"} if rng.random() < 0.7 else {12})
        parent_result = train([TrainingJob(sequential_network(LAYERS), start, recipe, seed, points)], [DATA])[0]
        yield f"{seed} dense", parent_result, certify(PRUNABLE, start, parent_result, None, None, recipe.weight_decay)
        if parent_result.status == "diverged":
            continue
        step = random_step(seed, rng)
        states = {**parent_result.points, "end": parent_result.end}
        parent = ParentRun(start, states, PRUNABLE)
        child = prune_and_reset(parent, step, child_streams(seed, "level", 1))
        if not all(bool(mask.any()) for mask in child.masks.values()):
            continue
        child_result = train([TrainingJob(sequential_network(LAYERS), child, recipe, seed)], [DATA])[0]
        certificate = certify(PRUNABLE, child, child_result, parent, step, recipe.weight_decay)
        yield f"{seed} pruned", child_result, certificate


@pytest.mark.parametrize("engine", ENGINES)
def test_correct_runs_pass(engine: str) -> None:
    """About 300 runs per engine. Seeds from 1,000 to 6,000 (about 9,000 runs per engine) were checked once."""
    statuses: Counter[str] = Counter()
    for label, result, certificate in certified_runs(engine, range(160)):
        statuses[result.status] += 1
        failed = {check: items for check, items in certificate.checks.items() if items}
        assert failed == {} or result.status == "diverged", (label, failed)
    assert statuses["finished"] > 250


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("frozen", [1e-40, -1e-40, -0.0])
def test_flushed_frozen_weights_are_noted(engine: str, frozen: float) -> None:
    """On one thread PyTorch treats denormal numbers as 0; the certificate notes it and passes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = pruned_start(frozen)
        result = ENGINES[engine]([TrainingJob(sequential_network(LAYERS), start, RECIPES[0], 0)], [DATA])[0]
    finally:
        torch.set_num_threads(threads)
    certificate = certify(PRUNABLE, start, result, None, None)
    assert certificate.checks.pop("dense") == list(PRUNABLE)
    assert certificate.passed
    assert ("frozen_is_frozen" in certificate.notes) == (engine == "reference" and frozen != 0)
    moved = {n: w.where(start.masks[n], torch.tensor(-frozen)) for n, w in result.end.weights.items()}
    forged = replace(result, end=replace(result.end, weights=moved))
    assert certify(PRUNABLE, start, forged, None, None).checks["frozen_is_frozen"] == list(PRUNABLE)


@pytest.mark.slow
def test_fresh_draws_that_repeat_values_of_a_very_large_layer_pass() -> None:
    """A layer of 2.5e7 weights uses most float32 values near its deviation, so fresh draws repeat old values."""
    # Every float32 value from 1/4 to 2 occurs among the pruned weights.
    values = np.arange(np.float32(0.25).view(np.int32), np.float32(2).view(np.int32)).view(np.float32)
    w_init = torch.from_numpy(np.concatenate([truncated_normal((2000,), 1.0, random_stream(0)), values]))
    kept = torch.arange(len(w_init)) < 2000
    layer = Layer(1.0, w_init, w_init, torch.ones_like(kept), w_init)
    start = w_init.clone()
    checked = np.ones(2000, dtype=bool)
    start[:2000] = torch.from_numpy(truncated_normal((2000,), 1.0, random_stream(1)))
    assert np.isin(start[:2000].abs().numpy(), values).mean() > 0.5
    assert MASK1_INVARIANTS["reinit"](LayerView(layer, kept.numpy(), start.numpy(), 1.0), checked)
    small = Layer(1.0, w_init[:4000], w_init[:4000], torch.ones(4000, dtype=torch.bool), w_init[:4000])
    repeated = w_init[:4000].flip(0).abs().clamp(max=1.5)
    view = LayerView(small, kept[:4000].numpy(), repeated.numpy(), 1.0)
    assert not MASK1_INVARIANTS["reinit"](view, checked)
