"""Mask learning in the sparse engine: agreement with the reference, bit-identity, resumed runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import numpy_masks as masks_by_hand
from helpers.killed_training import Killed, Memory
from helpers.mask_trainings import FAST, METHODS, mask_bits, mask_job, recipes
from helpers.sparse_jobs import CLASSES, EVERY_TRAVERSAL, SHAPE, images
from helpers.sparse_tolerances import TOO_SHARP
from helpers.trainings import data

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import Recipe
from supermask.core.types import TrainingResult, Weights
from supermask.engines import reference_masks as reference
from supermask.engines import sparse
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.sparse.masked import MLPMaskTrainer
from supermask.networks.sequential import architecture

RECIPES = {
    "sgd": Recipe("sgd", 20.0, 60, 200, 100),
    "momentum with weight decay": Recipe("sgd", 5.0, 60, 200, 100, momentum=0.9, weight_decay=1e-4),
    "adam": Recipe("adam", 0.02, 60, 200, 100),
    "schedule": Recipe(
        "sgd", 20.0, 60, 200, 100, momentum=0.5, lr_milestones=(50, 120), drop_factor=0.5, warmup_iterations=20
    ),
}


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with flush_denormals():
        yield


def job_of(learning: MaskLearning, recipe: Recipe, network: str = "fc-70-30") -> TrainingJob:
    return mask_job(replace(learning, samples=3), recipe, architecture(network, SHAPE, CLASSES))


def ours(job: TrainingJob) -> TrainingResult:
    return sparse.train([job], [images()], EVERY_TRAVERSAL["over all"])[0]


def theirs(job: TrainingJob) -> TrainingResult:
    return reference.train([job], [images()])[0]


def distance(actual: Weights, expected: Weights) -> float:
    """Largest distance between two tensors of one name, relative to the norm of `expected`."""
    return max(float((actual[n] - w).norm() / max(w.norm(), 1e-6)) for n, w in expected.items())


# --- agreement with the reference engine ---
# On random weights. On constants a unit's sum is often exactly 0 in exact arithmetic; the order of summation then
# decides about its ReLU, and two correct engines differ within a few steps.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "recipe", "network"),
    [
        *((method, recipe, "fc-70-30") for method in FAST for recipe in RECIPES if (method, recipe) != TOO_SHARP),
        ("bernoulli, rescaled", "adam", "fc-24"),
        ("bernoulli, rescaled", "sgd", "fc-130"),
    ],
)
def test_agreement_with_the_reference(method: str, recipe: str, network: str) -> None:
    """Agreement to 1e-5 after 1 step, to 1e-3 in every loss after 200.

    63 pixels; no width is a multiple of 64, and a layer has up to three blocks of 64 outputs.
    """
    # Hard masks differ once a logit ends on the other side of the threshold: sooner with long steps.
    lr = RECIPES[recipe].lr / (10 if method.startswith("rounded") and recipe != "adam" else 1)
    job = job_of(FAST[method], replace(RECIPES[recipe], lr=lr), network)
    one = replace(job, recipe=replace(job.recipe, iterations=1))
    actual, expected = ours(one), theirs(one)
    assert distance(actual.end.logits, expected.end.logits) < 1e-5
    assert distance(actual.last_sampled_weights, expected.last_sampled_weights) < 1e-6
    np.testing.assert_allclose(actual.curve.training_loss[1:], expected.curve.training_loss[1:], rtol=1e-5)
    np.testing.assert_allclose(actual.curve.validation_loss[0], expected.curve.validation_loss[0], rtol=1e-5)

    actual, expected = ours(job), theirs(job)
    assert actual.curve.iterations == expected.curve.iterations == [0, 100, 200]
    for column in ("training_loss", "validation_loss"):
        np.testing.assert_allclose(getattr(actual.curve, column), getattr(expected.curve, column), atol=1e-3)
    for name in ("early_stop_test_loss", "final_test_loss"):
        assert actual.metrics[name] == pytest.approx(expected.metrics[name], abs=1e-3)
    assert actual.curve.validation_loss[-1] != actual.curve.validation_loss[0]
    for name in actual.end.logits:
        same = ((actual.last_sampled_weights[name] != 0) == (expected.last_sampled_weights[name] != 0)).float().mean()
        assert same > 0.99, "the mask differs from the reference engine's"


@pytest.mark.parametrize("weights", ["signed_constant", "constant"])
def test_on_constants_the_losses_of_the_first_step_agree(weights: str) -> None:
    """In one forward pass a ReLU at 0 makes no difference."""
    job = job_of(MaskLearning(weights=weights, rescaled=True), Recipe("sgd", 5.0, 60, 1, 1))  # type: ignore[arg-type]
    actual, expected = ours(job), theirs(job)
    np.testing.assert_allclose(actual.curve.training_loss[1:], expected.curve.training_loss[1:], rtol=1e-5)
    assert distance(actual.last_sampled_weights, expected.last_sampled_weights) < 1e-6


@pytest.mark.parametrize("batch", [1, 63, 64, 65, 150])
def test_any_batch_size(batch: int) -> None:
    job = job_of(METHODS["bernoulli, rescaled"], Recipe("sgd", 5.0, batch, 5, 1, momentum=0.9))
    actual, expected = ours(job), theirs(job)
    np.testing.assert_allclose(actual.curve.training_loss, expected.curve.training_loss, rtol=1e-4)
    np.testing.assert_allclose(actual.curve.validation_loss, expected.curve.validation_loss, rtol=1e-4)


@pytest.mark.parametrize("learning", [MaskLearning(), MaskLearning(rescaled=True), METHODS["rounded, rescaled"]])
def test_masks_equal_numpy_in_both_layouts(learning: MaskLearning) -> None:
    """The first layer is laid out by blocks of 64 outputs, the others by rows."""
    job = job_of(learning, RECIPES["sgd"], "fc-130-70")
    rng = np.random.default_rng(0)
    logits = {n: torch.from_numpy(rng.normal(0, 2, m.shape).astype(np.float32)) for n, m in job.start.logits.items()}
    network = MLPMaskTrainer(job, images())
    network.load(replace(job.start, logits=logits).state)
    for name, used in network.first_sample().items():
        m, w = (t[name].numpy().astype(np.float64) for t in (logits, job.start.weights))
        b = masks_by_hand.mask(learning, m, masks_by_hand.key_pair(0, "samples", name, 0))
        np.testing.assert_allclose(used.numpy(), masks_by_hand.masked_weights(learning, w, b), rtol=1e-6)


def test_the_evaluated_samples_are_those_of_the_reference() -> None:
    job = job_of(METHODS["bernoulli"], replace(RECIPES["sgd"], iterations=1))
    network, data = MLPMaskTrainer(job, images()), images()
    network.load(job.start.state)
    actual = network.evaluate(data.test_images, data.test_labels)
    other = reference.MaskTrainer(job, data)
    other.load(job.start.state)
    single = [other.evaluate_network(used, data.test_images, data.test_labels) for used in other.samples()]
    assert len(single) == 3
    assert actual == pytest.approx(np.mean(single, axis=0), rel=1e-5)


# --- tensors that never change, and the last forward pass ---


@pytest.mark.parametrize("method", FAST)
def test_weights_and_biases_are_bit_identical(method: str) -> None:
    for recipe in RECIPES.values():
        job = job_of(FAST[method], replace(recipe, iterations=20, evaluate_every=10))
        others = {n: torch.linspace(-0.3, 0.3, t.numel()) for n, t in job.start.unmasked.items()}
        job = replace(job, start=replace(job.start, unmasked=others))
        outcome = ours(job)
        for state in (outcome.end, *outcome.snapshots.values()):
            for name, tensor in {**job.start.weights, **others}.items():
                now = {**state.weights, **state.unmasked}[name]
                assert torch.equal(now.view(torch.int32), tensor.view(torch.int32))


@pytest.mark.parametrize(("lr", "best"), [(5.0, 15), (3000.0, 20)])
def test_evaluations_do_not_change_the_last_pass(lr: float, best: int) -> None:
    """Also where the state of lowest validation loss, which is not the last, is loaded for the test."""
    job = job_of(METHODS["bernoulli"], Recipe("sgd", lr, 60, 20, 5, momentum=0.9))
    actual, expected = ours(job), theirs(job)
    assert actual.metrics["early_stop_iteration"] == best
    for name, used in actual.last_sampled_weights.items():
        assert 0.4 < float((used != 0).float().mean()) < 0.7
        assert ((used != 0) == (expected.last_sampled_weights[name] != 0)).float().mean() > 0.95


# --- bit-identity ---

TRAIN: dict[str, Callable[[TrainingJob], TrainingResult]] = {
    "reference": lambda job: reference.train([job], [data()])[0],
    "sparse": lambda job: sparse.train([job], [data()], EVERY_TRAVERSAL["over all"])[0],
}
CASES = [
    (engine, method, recipe)
    for engine in TRAIN
    for method in (METHODS if engine == "reference" else FAST)
    for recipe in ("momentum with weight decay", "adam", *(["sgd"] if method == "bernoulli" else []))
]


@cache
def whole(engine: str, method: str, recipe: str) -> tuple[TrainingJob, TrainingResult]:
    """A run without interruption: 20 iterations, 4 evaluations after the initial one."""
    job = mask_job(replace(METHODS[method], samples=2), replace(recipes(METHODS[method])[recipe], evaluate_every=5))
    return job, TRAIN[engine](job)


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [1, 3, 4])
@pytest.mark.parametrize(("engine", "method", "recipe"), CASES)
def test_a_killed_run_resumes_bit_identically(engine: str, method: str, recipe: str, kill_after: int) -> None:
    """After the fourth checkpoint no step is left; the result then has the first sample as last forward pass."""
    job, uninterrupted = whole(engine, method, recipe)
    killed = replace(job, checkpointer=Memory(kill_after))
    with pytest.raises(Killed):
        TRAIN[engine](killed)
    resumed = TRAIN[engine](killed)
    assert mask_bits(resumed) == mask_bits(uninterrupted)
    again, once = (
        torch.cat([outcome.last_sampled_weights[name].flatten() for name in sorted(job.start.weights)])
        for outcome in (resumed, uninterrupted)
    )
    assert torch.equal(again, once) or kill_after == 4
    assert 0 < int((again != 0).sum()) < again.numel()


def test_repeated_and_concurrent_runs_are_bit_identical() -> None:
    jobs = [job_of(learning, replace(RECIPES["adam"], iterations=30, evaluate_every=15)) for learning in FAST.values()]
    alone = [mask_bits(ours(job)) for job in jobs]
    assert [mask_bits(ours(job)) for job in jobs] == alone
    with ThreadPoolExecutor(4) as threads:
        assert [mask_bits(outcome) for outcome in threads.map(ours, jobs)] == alone
