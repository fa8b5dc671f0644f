"""Initializers other than Glorot's: draws, standard deviations, actions that draw again, and their certificates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.trainings import data

from supermask.core.certificate import certify
from supermask.core.initializers import INITIALIZERS, draw_weights
from supermask.core.invariants import MASK1_INVARIANTS, Array, LayerView
from supermask.core.pruning import ParentRun, PruneStep, apply_masks, compute_masks
from supermask.core.recipe import Recipe
from supermask.core.rng import Stream, child_streams, random_stream
from supermask.core.types import InitialState, Layer, LearningCurve, NetworkState, PrunableTensor, TrainingResult
from supermask.engines.job import TrainingJob
from supermask.engines.reference import train
from supermask.networks.registry import named_network

FORMULAS = {
    "glorot_normal": lambda i, o: (2 / (i + o)) ** 0.5,
    "glorot_normal_wide": lambda i, o: 1.18 * (2 / (i + o)) ** 0.5,
    "kaiming_normal": lambda i, o: (2 / i) ** 0.5,
    "kaiming_uniform": lambda i, o: (2 / i) ** 0.5,
    "orthogonal": lambda i, o: 1 / max(o, i) ** 0.5,
    "bimodal": lambda i, o: (2 / (i + o)) ** 0.5,
    "constant": lambda i, o: (2 / (i + o)) ** 0.5,
}


def test_every_initializer_has_a_formula() -> None:
    assert FORMULAS.keys() == INITIALIZERS.keys()


@pytest.mark.parametrize("initializer", INITIALIZERS)
@pytest.mark.parametrize("shape", [(100, 300), (300, 100)])
def test_draws_have_the_deviation_of_the_formula(initializer: str, shape: tuple[int, int]) -> None:
    tensor = PrunableTensor("w", shape, "hidden", initializer=initializer)
    values = draw_weights(tensor, random_stream(0, "test")).astype(np.float64)
    expected = FORMULAS[initializer](shape[1], shape[0])
    assert values.shape == shape
    assert abs(tensor.std / expected - 1) < 1e-12
    assert abs((values**2).mean() ** 0.5 / expected - 1) < 0.01
    assert abs(values.mean()) < 0.02 * expected
    assert np.array_equal(values, draw_weights(tensor, random_stream(0, "test")))


def test_orthogonal_rows_or_columns() -> None:
    for shape in ((4, 2, 3, 3), (30, 2, 3, 3)):
        matrix = draw_weights(PrunableTensor("w", shape, "conv", initializer="orthogonal"), random_stream(1, "test"))
        matrix = matrix.reshape(shape[0], -1).astype(np.float64)
        product = matrix @ matrix.T if shape[0] < 18 else matrix.T @ matrix
        assert np.allclose(product, np.eye(len(product)), atol=1e-6)


def test_the_wide_control_has_the_mean_magnitude_of_two_peaks() -> None:
    def magnitude(name: str) -> float:
        tensor = PrunableTensor("w", (400, 400), "hidden", initializer=name)
        return float(np.abs(draw_weights(tensor, random_stream(0, "test"))).mean())

    assert abs(magnitude("glorot_normal_wide") / magnitude("bimodal") - 1) < 0.02
    assert magnitude("glorot_normal_wide") / magnitude("glorot_normal") > 1.17


def test_given_fans_replace_those_of_the_shape() -> None:
    assert PrunableTensor("w", (4, 6, 3, 3), "conv").fans == (54, 36)
    assert PrunableTensor("w", (4, 6, 3, 3), "conv", 18, 27).std == (2 / 45) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("initializer", [*INITIALIZERS, "own"])
@pytest.mark.parametrize("mask1", ["reinit", "constant", "signed_reinit", "signed_constant", "bimodal_reinit"])
def test_actions_that_draw_use_the_initializer_and_are_certified(initializer: str, mask1: str) -> None:
    network = named_network("resnet20-2", (1, 8, 8), 4, initializer)
    dense = network.initial_state(0)
    moved = {
        n: w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1)) for n, w in dense.weights.items()
    }
    parent = ParentRun(dense, {"end": NetworkState(moved, dense.unmasked)}, network.tensors)
    step = PruneStep("large_final", mask1, "freeze_reinit", {"conv": 0.3, "output": 0.1, "hidden": 0.1})
    streams = child_streams(0, "level", 1)
    start = apply_masks(compute_masks(parent, step, streams), parent, step, streams)
    result = TrainingResult("finished", start.state, {}, LearningCurve(), {})

    def broken(tensors: dict[str, PrunableTensor]) -> list[str]:
        of = replace(parent, prunable=tensors)
        checks = certify(tensors, start, result, of, step, trained=network.trained_others).checks
        return [name for name, items in checks.items() if items]

    assert broken(network.tensors) == []
    if mask1 in ("constant", "signed_constant"):
        wider = {n: replace(t, initializer="own", own_std=2 * t.std) for n, t in network.tensors.items()}
        assert "mask1_promise" in broken(wider)


@pytest.mark.parametrize("mask1", MASK1_INVARIANTS)
def test_a_layer_of_zeros_is_certified_after_every_mask1_action(mask1: str) -> None:
    """A module may initialize a layer with zeros; its measured standard deviation is 0."""
    tensor = PrunableTensor("w", (20, 30), "hidden", initializer="own", own_std=0.0, own_draw=_draw_zeros)
    masks = {"w": torch.ones(20, 30, dtype=torch.bool)}
    dense = InitialState({"w": torch.zeros(20, 30)}, masks, {})
    end = NetworkState({"w": torch.randn(20, 30, generator=torch.Generator().manual_seed(1))}, {})
    parent = ParentRun(dense, {"end": end}, {"w": tensor})
    step = PruneStep("large_final", mask1, "zero", {"hidden": 0.3})
    streams = child_streams(0, "level", 1)
    start = apply_masks(compute_masks(parent, step, streams), parent, step, streams)
    result = TrainingResult("finished", start.state, {}, LearningCurve(), {})
    assert certify({"w": tensor}, start, result, parent, step, trained=()).passed


def test_zeros_of_a_layer_with_a_deviation_are_no_draws_of_two_peaks() -> None:
    w_init = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    layer = Layer(1.0, w_init, w_init + 1, torch.ones(20, 30, dtype=torch.bool), w_init, initializer="own")
    everywhere = np.ones((20, 30), dtype=bool)
    view = LayerView(layer, everywhere, np.zeros((20, 30), dtype=np.float32), 1.0)
    assert not MASK1_INVARIANTS["bimodal_reinit"](view, everywhere[everywhere])


def _draw_zeros(rng: Stream) -> Array:
    return np.zeros((20, 30), dtype=np.float32)


@pytest.mark.parametrize("initializer", ["kaiming_normal", "orthogonal", "own"])
def test_values_from_before_are_no_fresh_draws(initializer: str) -> None:
    network = named_network("resnet20-4", (1, 8, 8), 4, initializer)
    dense = network.initial_state(0)
    end = train([TrainingJob(network, dense, Recipe("sgd", 0.05, 16, 4, 4), 0)], [data((1, 8, 8), 4)])[0].end
    parent = ParentRun(dense, {"end": end}, network.tensors)
    step = PruneStep("random", "rewind", "zero", {"conv": 0.3, "output": 0.1, "hidden": 0.1})
    streams = child_streams(0, "level", 1)
    start = apply_masks(compute_masks(parent, step, streams), parent, step, streams)
    result = TrainingResult("finished", start.state, {}, LearningCurve(), {})
    checks = certify(network.tensors, start, result, parent, replace(step, mask1="reinit")).checks
    assert checks["mask1_promise"]
