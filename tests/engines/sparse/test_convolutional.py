"""The convolutional trainer against the reference engine: frozen weights, bit-identical repetition, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers.sparse_jobs import STEPS
from helpers.trainings import data
from torch import Tensor

from supermask.core.recipe import Recipe
from supermask.core.types import InitialState, NetworkState, TrainingResult
from supermask.engines import reference
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.sparse.convolutional import ConvNetTrainer
from supermask.engines.sparse.costs import KernelChoice, KernelCost, LayerKernelCosts, choose_kernels
from supermask.engines.training import run_training
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Conv, Dense, architecture, initial_state

CLASSES = 3
ADAM = Recipe("adam", 2e-3, 10, 40, 20)
SGD = Recipe("sgd", 0.05, 10, 40, 20)
MOMENTUM = Recipe("sgd", 0.02, 10, 40, 20, momentum=0.9, weight_decay=1e-3)

CHEAP, EXPENSIVE = KernelCost(0, 1), KernelCost(1, 0)
EVERY_CHOICE = [LayerKernelCosts(*ways, *ways) for ways in product([CHEAP, EXPENSIVE], repeat=2)]
"""Sparse or dense forward passes, with sparse or dense gradients, at any density."""

AS_MEASURED = LayerKernelCosts(KernelCost(1.5, 1), KernelCost(1.6, 1), KernelCost(1.8, 1), KernelCost(2.5, 1))


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with flush_denormals():
        yield


def start_of(network: str, shape: tuple[int, int, int], density: float, frozen: float | None = 0.0) -> InitialState:
    """A random mask; pruned weights frozen at one value, or at their initial ones (None)."""
    start = initial_state(architecture(network, shape, CLASSES), 0)
    rng = np.random.default_rng(0)
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < density) for n, w in start.weights.items()}
    weights = {n: w if frozen is None else w.where(masks[n], torch.tensor(frozen)) for n, w in start.weights.items()}
    biases = {n: b + 0.01 for n, b in start.unmasked.items()}
    return InitialState(weights, masks, biases)


def job_of(
    recipe: Recipe = ADAM,
    network: str = "conv2",
    shape: tuple[int, int, int] = (2, 8, 8),
    density: float = 0.3,
    frozen: float | None = 0.0,
) -> TrainingJob:
    layers = architecture(network, shape, CLASSES)
    return TrainingJob(sequential_network(layers), start_of(network, shape, density, frozen), recipe, seed=0)


def loaded(job: TrainingJob, costs: LayerKernelCosts = AS_MEASURED) -> ConvNetTrainer:
    images = job.layers[0]
    assert isinstance(images, Conv)
    made = ConvNetTrainer(job, data((images.inputs, *images.side), CLASSES), costs)
    made.load(job.start.state)
    return made


def reference_of(job: TrainingJob, iterations: int) -> TrainingResult:
    recipe = replace(job.recipe, iterations=iterations, evaluate_every=iterations)
    images = job.layers[0]
    assert isinstance(images, Conv)
    return reference.train([replace(job, recipe=recipe)], [data((images.inputs, *images.side), CLASSES)])[0]


def tensors(state: NetworkState) -> dict[str, Tensor]:
    return {**state.weights, **state.unmasked}


def assert_moved_alike(actual: NetworkState, expected: NetworkState, start: NetworkState) -> None:
    """Weights agree to 1e-5 of their norm, and steps to 1e-4 of theirs, up to rounding of small steps."""
    for name, target in tensors(expected).items():
        ours, before = tensors(actual)[name], tensors(start)[name]
        step = target - before
        assert (ours - target).norm() <= 1e-5 * target.norm(), name
        assert (ours - target).norm() <= 1e-4 * step.norm() + 1e-7 * target.norm(), name


SMALL = [("conv2", (2, 8, 8)), ("conv2", (1, 7, 5))]
LARGE = [("conv4", (3, 9, 6)), ("conv6", (1, 16, 8))]
# Nothing is frozen at density 1. Frozen values are a matter of one layer, and the small networks have every kernel.
ONE_STEP = [
    *((*network, density, frozen) for network, density, frozen in product(SMALL, [0.3, 0.05, 0.005], [0.0, None])),
    *((*network, *case) for network, case in product(LARGE, [(0.3, None), (0.05, 0.0), (0.005, None)])),
    *((*network, 1, 0.0) for network in SMALL + LARGE),
]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "shape", "density", "frozen"), ONE_STEP)
def test_one_step(network: str, shape: tuple[int, int, int], density: float, frozen: float | None) -> None:
    job = job_of(MOMENTUM, network, shape, density, frozen)
    expected = reference_of(job, 1)
    for costs in EVERY_CHOICE:
        ours = loaded(job, costs)
        losses = ours.train(0, 1)
        assert losses.dtype == np.float32
        np.testing.assert_allclose(losses, expected.curve.training_loss[1:], rtol=1e-5)
        assert_moved_alike(ours.state(), expected.end, job.start.state)


@pytest.mark.slow
@pytest.mark.parametrize("costs", EVERY_CHOICE, ids=str)
@pytest.mark.parametrize("density", [1, 0.05])
def test_one_step_of_adam(density: float, costs: LayerKernelCosts) -> None:
    """Adam's first step is the gradient's sign: where a gradient is only rounding, signs may differ."""
    job = job_of(replace(ADAM, weight_decay=0.01), density=density, frozen=None)
    expected = reference_of(job, 1)
    ours = loaded(job, costs)
    ours.train(0, 1)
    moments, after = ours.optimizer_state(), ours.state()
    wanted = {**expected.end.weights, **expected.end.unmasked}
    for name, target in expected.optimizer_state.items():
        for key, values in target.items():
            assert (moments[name][key] - values).norm() <= 1e-5 * values.norm(), (name, key)
        clear = target["exp_avg"].abs() > 1e-4 * target["exp_avg"].abs().max()
        gone = ({**after.weights, **after.unmasked}[name] - wanted[name]).abs()
        assert gone[clear].max() <= 1e-5 * ADAM.lr + 1e-7
        assert gone.max() <= 2.001 * ADAM.lr


LONG = [
    *((recipe, density, 0.0) for recipe in (ADAM, MOMENTUM) for density in (1, 0.3, 0.05, 0.005)),
    (ADAM, 0.3, None),
    (MOMENTUM, 0.05, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "density", "frozen"), LONG)
def test_many_steps(recipe: Recipe, density: float, frozen: float | None) -> None:
    job = job_of(replace(recipe, iterations=STEPS), "conv2", (1, 6, 7), density, frozen)
    expected = reference_of(job, STEPS)
    ours = loaded(job)
    losses = ours.train(0, STEPS)
    assert losses.mean(dtype=np.float64) == pytest.approx(expected.curve.training_loss[1], rel=1e-3)
    images = data((1, 6, 7), CLASSES)
    loss, accuracy = ours.evaluate(images.validation_images, images.validation_labels)
    assert loss == pytest.approx(expected.curve.validation_loss[1], rel=1e-3, abs=1e-6)
    assert accuracy == pytest.approx(expected.curve.validation_accuracy[1])


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 16, 17, 64, 65, 150])
def test_batches_of_any_size(batch: int) -> None:
    job = job_of(replace(SGD, batch_size=batch), density=0.5)
    expected = reference_of(job, 1)
    for costs in (EVERY_CHOICE[0], EVERY_CHOICE[-1]):
        ours = loaded(job, costs)
        ours.train(0, 1)
        assert_moved_alike(ours.state(), expected.end, job.start.state)


@pytest.mark.slow
def test_a_run_has_the_result_of_the_reference() -> None:
    job = job_of(MOMENTUM, "conv4")
    job = replace(job, snapshots=frozenset({7, "gradient"}))
    images = data((2, 8, 8), CLASSES)
    ours, expected = (
        run_training(ConvNetTrainer(job, images, AS_MEASURED), job, images),
        reference.train([job], [images])[0],
    )
    assert ours.snapshots.keys() == expected.snapshots.keys()
    assert_moved_alike(ours.snapshots[7], expected.snapshots[7], job.start.state)
    for name, target in expected.snapshots["gradient"].weights.items():
        torch.testing.assert_close(ours.snapshots["gradient"].weights[name], target, rtol=1e-5, atol=1e-6)
    for key, number in expected.metrics.items():
        assert ours.metrics[key] == (number if number is None else pytest.approx(number, rel=1e-3))
    assert ours.optimizer_state.keys() == expected.optimizer_state.keys()


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [0.0, -0.0, 0.01, None], ids=["0", "-0", "0.01", "initial values"])
@pytest.mark.parametrize("costs", EVERY_CHOICE, ids=str)
def test_frozen_weights_stay_bit_identical_with_zero_moments(costs: LayerKernelCosts, frozen: float | None) -> None:
    for recipe in (replace(ADAM, weight_decay=0.1), MOMENTUM):
        job = job_of(recipe, frozen=frozen)
        ours = loaded(job, costs)
        ours.train(0, 3)
        for name, mask in job.start.masks.items():
            before, after = (s.weights[name].view(torch.int32) for s in (job.start.state, ours.state()))
            assert torch.equal(before[~mask], after[~mask])
            assert (before[mask] != after[mask]).float().mean() > 0.3
            state = ours.optimizer_state()[name]
            assert state
            assert not any(values[~mask].view(torch.int32).any() for values in state.values())


def test_divergence_shows_in_the_losses() -> None:
    job = job_of(replace(SGD, lr=1e20))
    with np.errstate(all="ignore"):
        assert not np.isfinite(loaded(job).train(0, 10)).all()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [ADAM, SGD, MOMENTUM], ids=["Adam", "SGD", "momentum"])
@pytest.mark.parametrize("costs", EVERY_CHOICE, ids=str)
def test_training_in_parts_through_a_checkpoint_is_bit_identical(costs: LayerKernelCosts, recipe: Recipe) -> None:
    job = job_of(recipe)
    whole, first, second = (loaded(job, costs) for _ in range(3))
    losses = whole.train(0, 6)
    parts = [first.train(0, 2)]
    images = data((2, 8, 8), CLASSES)
    first.evaluate(images.test_images, images.test_labels)  # must not change the state
    second.load(first.state())
    second.load_optimizer_state(first.optimizer_state(), 2)
    parts.append(second.train(2, 6))
    assert np.array_equal(np.concatenate(parts), losses)
    for name, values in tensors(whole.state()).items():
        assert torch.equal(values.view(torch.int32), tensors(second.state())[name].view(torch.int32))
    for name, kept in whole.optimizer_state().items():
        assert all(torch.equal(kept[key], second.optimizer_state()[name][key]) for key in kept)


def test_states_are_copies() -> None:
    ours = loaded(job_of())
    before = ours.state()
    copies = {n: t.clone() for n, t in tensors(before).items()}
    ours.train(0, 1)
    assert all(torch.equal(values, copies[name]) for name, values in tensors(before).items())


def test_the_cheapest_kernels_are_chosen() -> None:
    sparse, dense, only_gradients = KernelChoice(True, True), KernelChoice(False, False), KernelChoice(False, True)
    linear, conv = Dense("fc", 64, 64, False), Conv("conv", 64, 64, (8, 8))
    assert [choose_kernels(linear, d, d, AS_MEASURED) for d in (1.0, 0.5, 0.4)] == [dense, dense, sparse]
    assert [choose_kernels(conv, d, d, AS_MEASURED) for d in (1.0, 0.65, 0.6)] == [
        dense,
        KernelChoice(True, False),
        sparse,
    ]
    assert (
        choose_kernels(linear, 1.0, 0.1, AS_MEASURED) == choose_kernels(conv, 1.0, 0.1, AS_MEASURED) == only_gradients
    )
    for odd in (Dense("fc", 64, 10, True), Conv("conv", 3, 64, (8, 8))):
        assert choose_kernels(odd, 1.0, 1.0, AS_MEASURED) == sparse
