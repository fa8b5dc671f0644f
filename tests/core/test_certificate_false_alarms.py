"""Certificates of correct runs with dead, barely alive and saturated units, and of learned masks, on every engine.

A run of one seed costs about 20 ms. `SUPERMASK_CERTIFICATE_SEEDS=900` checks about 10,000 runs in all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.harness import IS_FULL
from helpers.mask_trainings import METHODS, mask_job, recipes
from helpers.trainings import LAYERS, data, pruned_start

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import Certificate, certify
from supermask.core.criteria import CRITERIA
from supermask.core.initializers import truncated_normal
from supermask.core.invariants import MASK1_INVARIANTS, LayerView
from supermask.core.mask_certificate import certify_learned_mask
from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams, random_stream
from supermask.core.types import InitialState, Layer, NetworkState, TrainingResult
from supermask.engines import reference, reference_masks, sparse, stacked
from supermask.engines.job import TrainingJob
from supermask.engines.mask_evaluation import evaluate_supermask
from supermask.networks.network import sequential_network
from supermask.networks.sequential import initial_state, prunable_tensors

DATA = data()
PRUNABLE = prunable_tensors(LAYERS)
ITERATIONS = 24
SEEDS = int(os.environ.get("SUPERMASK_CERTIFICATE_SEEDS", "55" if IS_FULL else "36"))
ENGINES: dict[str, Callable[..., list[TrainingResult]]] = {
    "reference": reference.train,
    "sparse": sparse.train,
    "stacked": stacked.train,
}
MASK_ENGINES = {**ENGINES, "reference": reference_masks.train}
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
    Recipe("adam", 0.03, 2, 1, 1),
    Recipe("adam", 0.5, 2, 3, 1),
    Recipe("sgd", 5.0, 2, 3, 1),
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
        late = min(12, recipe.iterations)
        snapshots: frozenset[Any] = frozenset({late, "lowest_validation_loss"} if rng.random() < 0.7 else {late})
        parent_result = train([TrainingJob(sequential_network(LAYERS), start, recipe, seed, snapshots)], [DATA])[0]
        yield f"{seed} dense", parent_result, certify(PRUNABLE, start, parent_result, None, None, recipe.weight_decay)
        if parent_result.status == "diverged":
            continue
        step = random_step(seed, rng)
        if step.rewind_to == 12:
            step = replace(step, rewind_to=late if late < recipe.iterations else "end")
        states = {**parent_result.snapshots, "end": parent_result.end}
        parent = ParentRun(start, states, PRUNABLE)
        child = prune_and_reset(parent, step, child_streams(seed, "level", 1))
        if not all(bool(mask.any()) for mask in child.masks.values()):
            continue
        child_result = train([TrainingJob(sequential_network(LAYERS), child, recipe, seed)], [DATA])[0]
        certificate = certify(PRUNABLE, child, child_result, parent, step, recipe.weight_decay)
        yield f"{seed} pruned", child_result, certificate


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_correct_runs_pass(engine: str) -> None:
    statuses: Counter[str] = Counter()
    for label, result, certificate in certified_runs(engine, range(SEEDS)):
        statuses[result.status] += 1
        failed = {check: items for check, items in certificate.checks.items() if items}
        assert failed == {} or result.status == "diverged", (label, failed)
    assert statuses["finished"] > 1.5 * SEEDS


def learned_masks(engine: str, seeds: range) -> Iterator[tuple[str, TrainingResult, Certificate]]:
    """Train and certify one learned mask per seed and method, from weights and logits of any scale."""
    for seed in seeds:
        for number, (name, learning) in enumerate(METHODS.items()):
            if engine == "sparse" and learning.method not in ("bernoulli", "rounded"):
                continue
            rng = np.random.default_rng([seed, number])
            learning = replace(learning, multiplier=float(rng.choice([1.0, 1e-12, 1e4])))
            recipe = list(recipes(learning).values())[seed % 4]
            recipe = replace(recipe, lr=recipe.lr * float(rng.choice([1.0, 1e-6, 1e3])))
            job = mask_job(learning, recipe, seed=seed)
            scale = float(rng.choice([1.0, 0.0, 1e-30, 50.0]))
            job = replace(job, start=replace(job.start, logits={n: m * scale for n, m in job.start.logits.items()}))
            result = MASK_ENGINES[engine]([job], [DATA])[0]
            if result.status == "finished":
                selected = result.snapshots["lowest_validation_loss"]
                result = replace(result, supermask=evaluate_supermask(job, DATA, selected, result.end))
            dense = initial_state(LAYERS, seed)
            images = len(DATA.test_labels)
            yield f"{seed} {name}", result, certify_learned_mask(PRUNABLE, dense, job.start, result, learning, images)


@pytest.mark.slow
@pytest.mark.parametrize("engine", MASK_ENGINES)
def test_correct_learned_masks_pass(engine: str) -> None:
    finished = 0
    for label, result, certificate in learned_masks(engine, range(SEEDS // 6)):
        finished += result.status == "finished"
        failed = {check: items for check, items in certificate.checks.items() if items}
        assert failed == {} or result.status == "diverged", (label, failed)
    assert finished > 2 * (SEEDS // 6)


# --- one bias ---


def run_with_bias(
    engine: str, recipe: Recipe, bias: str, unit: int, got_gradients: bool
) -> tuple[InitialState, TrainingResult]:
    """Train a network; one bias ends at exactly 0.0, where it started, with or without ever having had a gradient."""
    start = initial_state(LAYERS, 3)
    result = ENGINES[engine]([TrainingJob(sequential_network(LAYERS), start, recipe, 3)], [DATA])[0]
    values = result.end.unmasked[bias].clone()
    assert start.unmasked[bias][unit] == 0 != values[unit]
    values[unit] = 0.0
    moments = {key: state.clone() for key, state in result.optimizer_state[bias].items()}
    for state in moments.values():
        state[unit] *= got_gradients
    end = NetworkState(result.end.weights, {**result.end.unmasked, bias: values})
    optimizer_state = {**result.optimizer_state, bias: moments}
    return start, replace(result, end=end, snapshots={}, optimizer_state=optimizer_state)


@pytest.mark.parametrize("bias", ["fc1.bias", "fc2.bias", "fc3.bias"])
@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[5], RECIPES[3]], ids=["adam", "momentum", "sgd"])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_held_bias_is_detected_by_its_optimizer_state(engine: str, recipe: Recipe, bias: str) -> None:
    """Without snapshots. Plain SGD has no optimizer state: there one unchanged bias is noted."""
    unit = {"fc1.bias": 0, "fc2.bias": 1, "fc3.bias": 2}[bias]
    start, result = run_with_bias(engine, recipe, bias, unit, got_gradients=False)
    certificate = certify(PRUNABLE, start, result, None, None)
    if recipe.optimizer == "sgd" and not recipe.momentum:
        assert certificate.passed and list(certificate.notes) == ["biases_train"]
    else:
        assert {check: items for check, items in certificate.checks.items() if items} == {"biases_train": [bias]}


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[5]], ids=["adam", "momentum"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bias_that_trained_and_returned_to_zero_is_noted(engine: str, recipe: Recipe) -> None:
    start, result = run_with_bias(engine, recipe, "fc2.bias", 1, got_gradients=True)
    certificate = certify(PRUNABLE, start, result, None, None)
    message = "fc2.bias: unchanged in units whose weights moved (1), which chance can cause"
    assert certificate.passed and certificate.notes == {"biases_train": [message]}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_bias_of_a_unit_that_died_early_and_returned_to_zero_passes(engine: str) -> None:
    """The unit trains in the first steps, then is dead for 400: Adam's second moment still tells that it trained."""
    recipe = replace(RECIPES[0], iterations=400, evaluate_every=400)
    for seed in range(40):
        start = initial_state(LAYERS, seed)
        (result,) = ENGINES[engine]([TrainingJob(sequential_network(LAYERS), start, recipe, seed)], [DATA])
        moved = (result.end.weights["fc2.weight"] != start.weights["fc2.weight"]).any(1)
        moments = result.optimizer_state["fc2.bias"]
        # Adam's first moment shrinks by 0.9 per step: after 100 steps without a gradient it is below a ten thousandth.
        died = moved & (moments["exp_avg"].abs() < 1e-4 * moments["exp_avg_sq"].sqrt())
        if died.any():
            break
    else:
        raise AssertionError("no unit died")
    unit = int(died.nonzero()[0])
    values = result.end.unmasked["fc2.bias"].clone()
    assert moments["exp_avg_sq"][unit] > 0 and values[unit] != 0
    values[unit] = 0.0
    returned = replace(result, end=replace(result.end, unmasked={**result.end.unmasked, "fc2.bias": values}))
    certificate = certify(PRUNABLE, start, returned, None, None)
    assert certificate.passed and list(certificate.notes) == ["biases_train"]
    # Long after its death, when Adam's second moment was flushed to 0 too, nothing tells.
    moments_of = {n: {k: m.clone() for k, m in state.items()} for n, state in result.optimizer_state.items()}
    for name in ("fc2.weight", "fc2.bias"):
        for moment in moments_of[name].values():
            moment[unit] *= 1e-30 if name == "fc2.weight" else 0
    certificate = certify(PRUNABLE, start, replace(returned, optimizer_state=moments_of), None, None)
    assert certificate.passed and list(certificate.notes) == ["biases_train"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bias_gradients_of_a_saturated_network_that_cancel_exactly_are_noted(engine: str, optimizer: Any) -> None:
    """Two images, each taken for the other's class: all biases of three layers stay, and 18 units' weights move."""
    start = initial_state(LAYERS, 33)
    start = replace(start, weights={n: w * 100 for n, w in start.weights.items()})
    recipe = Recipe(optimizer, 1e-3, 2, 1, 1)
    (result,) = ENGINES[engine]([TrainingJob(sequential_network(LAYERS), start, recipe, 33)], [DATA])
    certificate = certify(PRUNABLE, start, result, None, None)
    assert certificate.passed
    assert any("saturation can cause" in note for note in certificate.notes["biases_train"])


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
    assert ("frozen_is_frozen" in certificate.notes) == (engine != "sparse" and frozen != 0)
    moved = {n: w.where(start.masks[n], torch.tensor(-frozen)) for n, w in result.end.weights.items()}
    forged = replace(result, end=replace(result.end, weights=moved))
    assert certify(PRUNABLE, start, forged, None, None).checks["frozen_is_frozen"] == list(PRUNABLE)


@pytest.mark.slow
def test_fresh_draws_that_repeat_values_of_a_very_large_layer_pass() -> None:
    """A layer of 1.7e7 weights uses most float32 values near its deviation, so fresh draws repeat old values."""
    # Every float32 value from 1/2 to 2 occurs among the pruned weights.
    values = np.arange(np.float32(0.5).view(np.int32), np.float32(2).view(np.int32)).view(np.float32)
    w_init = torch.from_numpy(np.concatenate([truncated_normal((2000,), 1.0, random_stream(0)), values]))
    kept = torch.arange(len(w_init)) < 2000
    layer = Layer(1.0, w_init, w_init, torch.ones_like(kept), w_init)
    start = w_init.clone()
    checked = np.ones(2000, dtype=bool)
    start[:2000] = torch.from_numpy(truncated_normal((2000,), 1.0, random_stream(1)))
    assert ((start[:2000].abs() >= 0.5) & (start[:2000].abs() < 2)).float().mean() > 0.5
    assert MASK1_INVARIANTS["reinit"](LayerView(layer, kept.numpy(), start.numpy(), 1.0), checked)
    small = Layer(1.0, w_init[:4000], w_init[:4000], torch.ones(4000, dtype=torch.bool), w_init[:4000])
    repeated = w_init[:4000].flip(0).abs().clamp(max=1.5)
    view = LayerView(small, kept[:4000].numpy(), repeated.numpy(), 1.0)
    assert not MASK1_INVARIANTS["reinit"](view, checked)
