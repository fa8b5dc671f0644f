"""The sparse engine on fully connected networks: the reference's numbers, its own bits again, frozen weights held."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from test_engine_resume import Killed, Memory
from trainings import bits, data

from supermask.actions import MASK0_ACTIONS
from supermask.certificate import certify
from supermask.criteria import CRITERIA
from supermask.engines import reference, sparse
from supermask.engines.costs import Cost, LayerCosts
from supermask.engines.fully_connected import FullyConnected
from supermask.engines.job import BatchOrder, Data, Job
from supermask.engines.reference import tiny_is_zero
from supermask.engines.walks import Walk, WalkCosts, walks
from supermask.networks import Dense, architecture, initial_start, maskables
from supermask.recipe import Recipe
from supermask.rng import stream
from supermask.types import Layer, Outcome, Point, Start, State

SHAPE, CLASSES = (1, 9, 7), 10
"""63 pixels: not a multiple of the eight that are read at once, nor of the 64 lanes."""

RECIPES = {
    "adam": Recipe("adam", 2e-3, 60, 200, 100),
    "adam with weight decay": Recipe("adam", 2e-3, 60, 200, 100, weight_decay=1e-3),
    "sgd": Recipe("sgd", 0.05, 60, 200, 100),
    "momentum with weight decay": Recipe("sgd", 0.01, 60, 200, 100, momentum=0.9, weight_decay=1e-3),
    "schedule": Recipe("sgd", 0.05, 60, 200, 100, momentum=0.5, drops=(50, 120), drop_factor=0.5, warmup=20),
}
DENSITIES = (1, 0.3, 0.05, 0.005)
NETWORKS = ("fc-70-30", "fc-24", "fc-40-20-12")

NO_CONVOLUTIONS = LayerCosts(*[Cost(1, 1)] * 4)


def cheap(*ways: str) -> sparse.Costs:
    """Costs with which these ways are taken wherever they can be."""
    names = [field.name for field in fields(WalkCosts)]
    return sparse.Costs(WalkCosts(**{name: 1.0 if name in ways else 1e6 for name in names}), NO_CONVOLUTIONS)


EVERY_WAY = {
    "over weights": cheap("weight", "inner"),
    "over everything": cheap("pixel", "held", "whole"),
    "over everything, then weights": cheap("pixel_forward", "whole_forward", "learnt"),
}


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with tiny_is_zero():
        yield


@cache
def images() -> Data:
    """Half of the pixels are dark, and one in five is dark in all images."""
    made = data(SHAPE, CLASSES, train=300)
    rng = np.random.default_rng(1)
    never = rng.random(SHAPE) < 0.2
    for some in (made.train_images, made.validation_images, made.test_images):
        some[rng.random(some.shape) < 0.5] = 0
        some[:, never] = 0
    # One pixel is lit in the first batch alone: its weights go on moving when their gradient is 0 again.
    for some in (made.train_images, made.validation_images, made.test_images):
        some[:, 0, 4, 3] = 0
    made.train_images[BatchOrder(0, made.train_indices, 60).batch(0)[0], 0, 4, 3] = 16
    return made


def start_of(network: str, density: float, mask0: str = "zero") -> Start:
    """A ticket of large_final with about so many weights left, its pruned weights set by a mask-0 action."""
    dense = initial_start(architecture(network, SHAPE, CLASSES), 0)
    weights, masks = {}, {}
    for name, before in dense.weights.items():
        rng = stream(0, "moved", name)
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
    # At zero biases a class that is as frequent as the logits say has a gradient that is nothing but rounding, and
    # Adam's first step is its sign.
    biases = {
        n: b + torch.from_numpy(stream(0, n).normal(0, 0.1, b.shape).astype(np.float32))
        for n, b in dense.others.items()
    }
    return Start(weights, masks, biases)


def job_of(
    network: str = "fc-70-30", density: float = 0.3, recipe: Recipe = RECIPES["adam"], mask0: str = "zero"
) -> Job:
    return Job(architecture(network, SHAPE, CLASSES), start_of(network, density, mask0), recipe, seed=0)


def ours(job: Job, costs: sparse.Costs) -> Outcome:
    return sparse.train([job], [images()], costs)[0]


@cache
def expected(network: str, density: float, recipe: str, mask0: str, iterations: int) -> Outcome:
    job = job_of(network, density, replace(RECIPES[recipe], iterations=iterations), mask0)
    return reference.train([job], [images()])[0]


def distance(found: State, wanted: State) -> float:
    """The largest distance between two tensors of the same name, as a share of the longer one's length."""
    pairs = [
        (tensor, {**found.weights, **found.others}[name])
        for name, tensor in {**wanted.weights, **wanted.others}.items()
    ]
    return max(float((a - b).norm() / max(a.norm(), 1e-6)) for a, b in pairs)


# ------------------------------------------------------------------------------------------- the same numbers, and fast


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("recipe", ["adam", "momentum with weight decay"])
def test_every_mask0_action(recipe: str, mask0: str, density: float, way: str) -> None:
    agree("fc-70-30", density, recipe, mask0, EVERY_WAY[way])


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_and_optimiser(network: str, recipe: str, density: float, way: str) -> None:
    agree(network, density, recipe, "zero", EVERY_WAY[way])


def agree(network: str, density: float, recipe: str, mask0: str, costs: sparse.Costs) -> None:
    """After 1 step to 1e-5, after 200 to 1e-3 in every loss; the certificate holds; frozen values keep their bits."""
    job = job_of(network, density, RECIPES[recipe], mask0)
    first = expected(network, density, recipe, mask0, 1)
    one = ours(replace(job, recipe=replace(job.recipe, iterations=1)), costs)
    assert distance(one.end, first.end) < 1e-5
    np.testing.assert_allclose(one.curve.training_loss[1:], first.curve.training_loss[1:], rtol=1e-5)
    for name, state in first.optimizer_state.items():
        for key, wanted in state.items():
            found = one.optimizer_state[name][key]
            assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())

    many, whole = expected(network, density, recipe, mask0, 200), ours(job, costs)
    assert whole.curve.iterations == many.curve.iterations
    for column in ("training_loss", "validation_loss"):
        np.testing.assert_allclose(getattr(whole.curve, column), getattr(many.curve, column), atol=1e-3)
    assert whole.metrics["final_test_loss"] == pytest.approx(many.metrics["final_test_loss"], abs=1e-3)

    certificate = certify(maskables(job.layers), job.start, whole, None, None, job.recipe.weight_decay)
    broken = {name for name, layers in certificate.checks.items() if layers}
    assert broken == (set() if density == 1 else {"dense"})  # it has no parent, and so should be dense
    for name, mask in job.start.masks.items():
        before, after = job.start.weights[name].view(torch.int32), whole.end.weights[name].view(torch.int32)
        assert torch.equal(before[~mask], after[~mask])


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("batch", [1, 20, 63, 64, 65, 150])
def test_any_batch_size(batch: int, way: str) -> None:
    job = job_of(recipe=replace(RECIPES["adam"], batch_size=batch, iterations=5, evaluate_every=1))
    wanted = reference.train([job], [images()])[0]
    found = ours(job, EVERY_WAY[way])
    np.testing.assert_allclose(found.curve.training_loss, wanted.curve.training_loss, rtol=1e-4)
    np.testing.assert_allclose(found.curve.validation_loss, wanted.curve.validation_loss, rtol=1e-4)
    assert found.curve.validation_accuracy == pytest.approx(wanted.curve.validation_accuracy, abs=0.06)


# ------------------------------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("way", EVERY_WAY)
def test_equal_bits_again(way: str) -> None:
    job = job_of(recipe=replace(RECIPES["adam"], iterations=50))
    assert bits(ours(job, EVERY_WAY[way])) == bits(ours(job, EVERY_WAY[way]))


def test_equal_bits_whatever_else_runs() -> None:
    """Trainings at the same time, in threads: kernels hold no lock and share nothing."""
    jobs = [job_of(density=density, recipe=replace(RECIPES["adam"], iterations=60)) for density in (1, 0.3, 0.05)]
    alone = [bits(ours(job, costs)) for costs in EVERY_WAY.values() for job in jobs]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(ours, jobs * len(EVERY_WAY), [costs for costs in EVERY_WAY.values() for _ in jobs]))
    assert [bits(outcome) for outcome in together] == alone


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_training_goes_on_to_the_same_bits(recipe: str, way: str) -> None:
    points: frozenset[Point] = frozenset({3, 20, 47, "gradient", "lowest_validation_loss"})
    job = replace(job_of(recipe=replace(RECIPES[recipe], iterations=50, evaluate_every=10)), points=points)
    whole = ours(job, EVERY_WAY[way])
    for kill_after in (1, 4):
        killed = replace(job, checkpoints=Memory(kill_after))
        with pytest.raises(Killed):
            ours(killed, EVERY_WAY[way])
        assert bits(ours(killed, EVERY_WAY[way])) == bits(whole)


def test_the_gradient_at_the_start_is_the_references() -> None:
    job = replace(job_of(density=0.3), points=frozenset({"gradient"}))
    found = ours(job, EVERY_WAY["over weights"]).points["gradient"]
    wanted = reference.train([job], [images()])[0].points["gradient"]
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in wanted.weights.items())


@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_late_start_counts_its_own_steps(way: str) -> None:
    """Adam's bias correction begins with the training, batches and learning rate go on from where it starts."""
    job = job_of(recipe=replace(RECIPES["adam"], iterations=40, evaluate_every=10))
    job = replace(job, start=replace(job.start, first_iteration=30))
    found, wanted = ours(job, EVERY_WAY[way]), reference.train([job], [images()])[0]
    np.testing.assert_allclose(found.curve.training_loss[1:], wanted.curve.training_loss[1:], rtol=1e-4)
    assert distance(found.end, wanted.end) < 1e-4


# ----------------------------------------------------------------------------------------------------- frozen is frozen


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize("frozen", [-0.0, 0.25, 1e-30])
def test_frozen_values_keep_their_bits_under_any_gradient(frozen: float, way: str) -> None:
    """-0 too, and where activations grow until gradients are not finite."""
    dense = start_of("fc-70-30", 0.3)
    weights = {n: w.where(dense.masks[n], torch.tensor(frozen)) for n, w in dense.weights.items()}
    start = replace(dense, weights=weights)
    for lr in (1e-2, 1e30):
        job = replace(job_of(recipe=Recipe("sgd", lr, 60, 30, 10, momentum=0.9)), start=start)
        outcome = ours(job, EVERY_WAY[way])
        assert outcome.status == ("diverged" if lr > 1 else "finished")
        for name, mask in start.masks.items():
            before, after = start.weights[name].view(torch.int32), outcome.end.weights[name].view(torch.int32)
            assert torch.equal(before[~mask], after[~mask])


def test_a_diverged_training_says_when() -> None:
    job = job_of(recipe=Recipe("sgd", 1e30, 60, 30, 10))
    wanted = reference.train([job], [images()])[0]
    for costs in EVERY_WAY.values():
        found = ours(job, costs)
        assert (found.status, found.metrics["diverged_at"]) == ("diverged", wanted.metrics["diverged_at"])


# ------------------------------------------------------------------------------------------------- what is walked over


COSTS = WalkCosts(weight=4, inner=5, pixel=3, held=0.5, whole=4, learnt=4, pixel_forward=1.5, whole_forward=2)


@pytest.mark.parametrize(
    ("network", "density", "mask0", "wanted"),
    [
        ("fc-70-64", 1, "zero", ["pixels", "all", "weights"]),
        ("fc-70-64", 0.1, "zero", ["weights", "weights", "weights"]),
        ("fc-70-64", 0.1, "freeze_init", ["pixels then weights", "all then weights", "all then weights"]),
        ("fc-70-64", 0.9, "freeze_init", ["pixels", "all", "all then weights"]),
    ],
)
def test_what_a_layer_walks_over(network: str, density: float, mask0: str, wanted: list[Walk]) -> None:
    """Few weights, or all; where something is frozen at another value than 0, all for the outputs at least."""
    assert list(walks(job_of(network, density, mask0=mask0), images(), COSTS).values()) == wanted


def test_the_walk_changes_where_the_costs_cross() -> None:
    """For each layer, at the density where two ways cost the same, as computed by hand."""
    costs = replace(COSTS, learnt=1e6)
    lit = np.count_nonzero(images().train_images[:1000]) / images().train_images[:1000].size
    first = (128 * 63 * (60 * lit * 3 / 64 + 0.5)) / (63 * 70 * 4)
    second = (70 * 64 * 4) / (70 * 64 * 5)
    assert first < 0.95 and second == 0.8
    for layer, crossing, other in (("fc1", first, "pixels"), ("fc2", second, "all")):
        for side, wanted in ((0.97, "weights"), (1.03, other)):
            assert walks(job_of("fc-70-64", crossing * side), images(), costs)[layer] == wanted
    # Frozen at other values, from gradients over the surviving weights to gradients over everything.
    first = 128 * 63 * (60 * lit * (3 - 1.5) / 64 + 0.5) / (63 * 70 * 4)
    second = (70 * 64 * (4 - 2)) / (70 * 64 * 4)
    for layer, crossing, other in (("fc1", first, "pixels"), ("fc2", second, "all")):
        for side, wanted in ((0.97, f"{other} then weights"), (1.03, other)):
            assert walks(job_of("fc-70-64", crossing * side, mask0="freeze_init"), images(), COSTS)[layer] == wanted


def test_every_mixture_of_walks_gives_the_same_numbers() -> None:
    job = job_of("fc-40-20-12", 0.3, replace(RECIPES["adam"], iterations=20))
    wanted = reference.train([job], [images()])[0]
    assert all(isinstance(layer, Dense) for layer in job.layers)
    firsts: list[Walk] = ["weights", "pixels", "pixels then weights"]
    others: list[Walk] = ["weights", "all", "all then weights"]
    for first, *rest in product(firsts, others, others, others):
        network = FullyConnected(job, images(), dict(zip(("fc1", "fc2", "fc3", "fc4"), (first, *rest), strict=True)))
        network.load(job.start.state)
        network.train(0, 20)
        assert distance(network.state(), wanted.end) < 1e-4
