"""The sparse engine on fully connected networks: agreement with the reference, bit-identity, frozen weights."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.sparse_jobs import EVERY_TRAVERSAL, RECIPES, STEPS, distance, images, job_of, start_of
from helpers.trainings import bits

from supermask.core.actions import MASK0_ACTIONS
from supermask.core.certificate import certify
from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot, TrainingResult
from supermask.engines import reference, sparse
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.sparse.costs import Traversal, TraversalCosts, choose_traversals
from supermask.engines.sparse.fully_connected import MLPTrainer
from supermask.networks.sequential import Dense, prunable_tensors

DENSITIES = (1, 0.3, 0.05, 0.005)


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with flush_denormals():
        yield


def ours(job: TrainingJob, costs: sparse.CostTable) -> TrainingResult:
    return sparse.train([job], [images()], costs)[0]


@cache
def expected(network: str, density: float, recipe: str, mask0: str, iterations: int) -> TrainingResult:
    job = job_of(network, density, replace(RECIPES[recipe], iterations=iterations), mask0)
    return reference.train([job], [images()])[0]


# --- agreement with the reference engine ---


@pytest.mark.slow
@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
@pytest.mark.parametrize("density", [0.3, 0.005])
@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("recipe", ["adam", "momentum with weight decay"])
def test_every_mask0_action(recipe: str, mask0: str, density: float, way: str) -> None:
    check_agreement("fc-70-30", density, recipe, mask0, EVERY_TRAVERSAL[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize(
    ("network", "recipe"),
    [*(("fc-70-30", name) for name in RECIPES), *product(["fc-24", "fc-40-20-12"], ["adam", "schedule"])],
)
def test_every_network_and_optimizer(network: str, recipe: str, density: float, way: str) -> None:
    check_agreement(network, density, recipe, "zero", EVERY_TRAVERSAL[way])


def check_agreement(network: str, density: float, recipe: str, mask0: str, costs: sparse.CostTable) -> None:
    """Agreement to 1e-5 after 1 step, to 1e-3 in every loss after `STEPS`; certificate passes; frozen values stay."""
    job = job_of(network, density, RECIPES[recipe], mask0)
    first = expected(network, density, recipe, mask0, 1)
    one = ours(replace(job, recipe=replace(job.recipe, iterations=1)), costs)
    assert distance(one.end, first.end) < 1e-5
    np.testing.assert_allclose(one.curve.training_loss[1:], first.curve.training_loss[1:], rtol=1e-5)
    for name, state in first.optimizer_state.items():
        for key, target in state.items():
            actual = one.optimizer_state[name][key]
            assert float((actual - target).norm()) <= 1e-5 * float(target.norm())

    many, whole = expected(network, density, recipe, mask0, STEPS), ours(job, costs)
    assert whole.curve.iterations == many.curve.iterations
    for column in ("training_loss", "validation_loss"):
        np.testing.assert_allclose(getattr(whole.curve, column), getattr(many.curve, column), atol=1e-3)
    assert whole.metrics["final_test_loss"] == pytest.approx(many.metrics["final_test_loss"], abs=1e-3)

    certificate = certify(prunable_tensors(job.layers), job.start, whole, None, None, job.recipe.weight_decay)
    broken = {name for name, layers in certificate.checks.items() if layers}
    assert broken == (set() if density == 1 else {"dense"})  # it has no parent, and so should be dense
    for name, mask in job.start.masks.items():
        before, after = job.start.weights[name].view(torch.int32), whole.end.weights[name].view(torch.int32)
        assert torch.equal(before[~mask], after[~mask])


@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
@pytest.mark.parametrize("batch", [1, 20, 63, 64, 65, 150])
def test_any_batch_size(batch: int, way: str) -> None:
    job = job_of(recipe=replace(RECIPES["adam"], batch_size=batch, iterations=5, evaluate_every=1))
    target = reference.train([job], [images()])[0]
    actual = ours(job, EVERY_TRAVERSAL[way])
    np.testing.assert_allclose(actual.curve.training_loss, target.curve.training_loss, rtol=1e-4)
    np.testing.assert_allclose(actual.curve.validation_loss, target.curve.validation_loss, rtol=1e-4)
    assert actual.curve.validation_accuracy == pytest.approx(target.curve.validation_accuracy, abs=0.06)


# --- bit-identity ---


@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
def test_repetition_is_bit_identical(way: str) -> None:
    job = job_of(recipe=replace(RECIPES["adam"], iterations=50))
    assert bits(ours(job, EVERY_TRAVERSAL[way])) == bits(ours(job, EVERY_TRAVERSAL[way]))


def test_concurrent_runs_are_bit_identical() -> None:
    """Runs in threads at the same time: kernels share no state."""
    jobs = [job_of(density=density, recipe=replace(RECIPES["adam"], iterations=60)) for density in (1, 0.3, 0.05)]
    alone = [bits(ours(job, costs)) for costs in EVERY_TRAVERSAL.values() for job in jobs]
    with ThreadPoolExecutor(6) as threads:
        together = list(
            threads.map(ours, jobs * len(EVERY_TRAVERSAL), [costs for costs in EVERY_TRAVERSAL.values() for _ in jobs])
        )
    assert [bits(outcome) for outcome in together] == alone


@pytest.mark.slow
@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_run_resumes_bit_identically(recipe: str, way: str) -> None:
    snapshots: frozenset[Snapshot] = frozenset({3, 20, 47, "gradient", "lowest_validation_loss"})
    job = replace(job_of(recipe=replace(RECIPES[recipe], iterations=50, evaluate_every=10)), snapshots=snapshots)
    whole = ours(job, EVERY_TRAVERSAL[way])
    for kill_after in (1, 4):
        killed = replace(job, checkpointer=Memory(kill_after))
        with pytest.raises(Killed):
            ours(killed, EVERY_TRAVERSAL[way])
        assert bits(ours(killed, EVERY_TRAVERSAL[way])) == bits(whole)


def test_the_initial_gradient_equals_the_reference() -> None:
    job = replace(job_of(density=0.3), snapshots=frozenset({"gradient"}))
    actual = ours(job, EVERY_TRAVERSAL["over weights"]).snapshots["gradient"]
    target = reference.train([job], [images()])[0].snapshots["gradient"]
    assert all(torch.equal(actual.weights[name], tensor) for name, tensor in target.weights.items())


@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
def test_a_late_start_counts_steps_from_its_start(way: str) -> None:
    """Adam's bias correction begins with the run; batches and learning rate continue from its first iteration."""
    job = job_of(recipe=replace(RECIPES["adam"], iterations=40, evaluate_every=10))
    job = replace(job, start=replace(job.start, first_iteration=30))
    actual, target = ours(job, EVERY_TRAVERSAL[way]), reference.train([job], [images()])[0]
    np.testing.assert_allclose(actual.curve.training_loss[1:], target.curve.training_loss[1:], rtol=1e-4)
    assert distance(actual.end, target.end) < 1e-4


# --- frozen weights ---


@pytest.mark.parametrize("way", EVERY_TRAVERSAL)
@pytest.mark.parametrize("frozen", [-0.0, 0.25, 1e-30])
def test_frozen_values_stay_bit_identical_under_any_gradient(frozen: float, way: str) -> None:
    """Including -0, and gradients that are not finite."""
    dense = start_of("fc-70-30", 0.3)
    weights = {n: w.where(dense.masks[n], torch.tensor(frozen)) for n, w in dense.weights.items()}
    start = replace(dense, weights=weights)
    for lr in (1e-2, 1e30):
        job = replace(job_of(recipe=Recipe("sgd", lr, 60, 30, 10, momentum=0.9)), start=start)
        outcome = ours(job, EVERY_TRAVERSAL[way])
        assert outcome.status == ("diverged" if lr > 1 else "finished")
        for name, mask in start.masks.items():
            before, after = start.weights[name].view(torch.int32), outcome.end.weights[name].view(torch.int32)
            assert torch.equal(before[~mask], after[~mask])


def test_a_diverged_run_reports_the_iteration() -> None:
    job = job_of(recipe=Recipe("sgd", 1e30, 60, 30, 10))
    target = reference.train([job], [images()])[0]
    for costs in EVERY_TRAVERSAL.values():
        actual = ours(job, costs)
        assert (actual.status, actual.metrics["diverged_at"]) == ("diverged", target.metrics["diverged_at"])


# --- traversals ---


COSTS = TraversalCosts(
    weight=4, inner=5, pixel=3, pixel_update=0.5, dense=4, sparse_grad=4, pixel_forward=1.5, dense_forward=2
)


@pytest.mark.parametrize(
    ("network", "density", "mask0", "target"),
    [
        ("fc-70-64", 1, "zero", ["pixels", "all", "weights"]),
        ("fc-70-64", 0.1, "zero", ["weights", "weights", "weights"]),
        ("fc-70-64", 0.1, "freeze_init", ["pixels then weights", "all then weights", "all then weights"]),
        ("fc-70-64", 0.9, "freeze_init", ["pixels", "all", "all then weights"]),
    ],
)
def test_the_traversal_of_a_layer(network: str, density: float, mask0: str, target: list[Traversal]) -> None:
    """Surviving weights, or all; with weights frozen at values other than 0, the outputs need all."""
    assert list(choose_traversals(job_of(network, density, mask0=mask0), images(), COSTS).values()) == target


def test_the_traversal_changes_where_the_costs_cross() -> None:
    """Per layer, at the density where two traversals cost the same, computed by hand."""
    costs = replace(COSTS, sparse_grad=1e6)
    nonzero = np.count_nonzero(images().train_images[:1000]) / images().train_images[:1000].size
    first = (128 * 63 * (60 * nonzero * 3 / 64 + 0.5)) / (63 * 70 * 4)
    second = (70 * 64 * 4) / (70 * 64 * 5)
    assert first < 0.95 and second == 0.8
    for layer, crossing, other in (("fc1", first, "pixels"), ("fc2", second, "all")):
        for side, target in ((0.97, "weights"), (1.03, other)):
            assert choose_traversals(job_of("fc-70-64", crossing * side), images(), costs)[layer] == target
    # Frozen at other values, from gradients over the surviving weights to gradients over all.
    first = 128 * 63 * (60 * nonzero * (3 - 1.5) / 64 + 0.5) / (63 * 70 * 4)
    second = (70 * 64 * (4 - 2)) / (70 * 64 * 4)
    for layer, crossing, other in (("fc1", first, "pixels"), ("fc2", second, "all")):
        for side, target in ((0.97, f"{other} then weights"), (1.03, other)):
            assert (
                choose_traversals(job_of("fc-70-64", crossing * side, mask0="freeze_init"), images(), COSTS)[layer]
                == target
            )


def test_every_combination_of_traversals_agrees() -> None:
    job = job_of("fc-40-20-12", 0.3, replace(RECIPES["adam"], iterations=20))
    target = reference.train([job], [images()])[0]
    assert all(isinstance(layer, Dense) for layer in job.layers)
    firsts: list[Traversal] = ["weights", "pixels", "pixels then weights"]
    others: list[Traversal] = ["weights", "all", "all then weights"]
    for first, *rest in product(firsts, others, others, others):
        network = MLPTrainer(job, images(), dict(zip(("fc1", "fc2", "fc3", "fc4"), (first, *rest), strict=True)))
        network.load(job.start.state)
        network.train(0, 20)
        assert distance(network.state(), target.end) < 1e-4
