"""Certificates: faults of training, and what arithmetic and chance can do to biases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.certificates import OF_CHILDREN, PLAIN, Case, changed, failed_checks
from helpers.tiny import MASKABLES, chain, dense, level_streams, parent_of, step_with, train
from torch import Tensor

from supermask.core.actions import MASK0_ACTIONS
from supermask.core.certificate import MIN_MOVEMENT, certify
from supermask.core.pruning import prune_and_reset
from supermask.core.types import InitialState, LearningCurve, NetworkState, TrainingResult


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("value", [np.nan, 0.1, -0.0])
def test_changed_frozen_weight_is_detected(mask0: str, value: float) -> None:
    case = Case(mask0=mask0)
    where = ~case.start.masks["fc1.weight"]
    end = changed(case.result.end.weights["fc1.weight"], where, value)
    result = replace(
        case.result, end=NetworkState({**case.result.end.weights, "fc1.weight": end}, case.result.end.unmasked)
    )
    assert failed_checks(case.certificate(result=result)) == {"frozen_is_frozen": ["fc1.weight"]}


def test_frozen_weight_that_differs_by_one_ulp_is_detected() -> None:
    case = Case(mask0="freeze_init")
    where = ~case.start.masks["fc2.weight"]
    end = case.result.end.weights["fc2.weight"].clone()
    end[where] = torch.nextafter(end[where], torch.tensor(9.0))
    result = replace(
        case.result, end=NetworkState({**case.result.end.weights, "fc2.weight": end}, case.result.end.unmasked)
    )
    assert failed_checks(case.certificate(result=result)) == {"frozen_is_frozen": ["fc2.weight"]}


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [1e-30, np.nan])
def test_optimizer_state_of_a_frozen_weight_is_detected(key: str, value: float) -> None:
    case = Case()
    state = dict(case.result.optimizer_state["fc1.weight"])
    state[key] = changed(state[key], ~case.start.masks["fc1.weight"], value)
    result = replace(case.result, optimizer_state={**case.result.optimizer_state, "fc1.weight": state})
    assert failed_checks(case.certificate(result=result)) == {"optimizer_holds_nothing_frozen": [f"fc1.weight: {key}"]}


def with_bias(result: TrainingResult, name: str, values: Tensor) -> TrainingResult:
    return replace(result, end=NetworkState(result.end.weights, {**result.end.unmasked, name: values}))


def test_bias_held_at_zero_is_detected() -> None:
    """The biases of a whole layer, or of three of its units, are held at zero as if they were masked."""
    case = Case()
    three_held = case.result.end.unmasked["fc1.bias"].clone()
    three_held[[3, 8, 9]] = 0
    for held in (three_held, torch.zeros(30)):
        result = with_bias(case.result, "fc1.bias", held)
        assert failed_checks(case.certificate(result=result)) == {"biases_train": ["fc1.bias"]}


def test_movements_that_large_inputs_can_make_prove_nothing_about_biases() -> None:
    """A weight moves by at most its input times the movement of the bias, which rounding can hide."""
    case = Case()
    result = with_bias(case.result, "fc1.bias", torch.zeros(30))
    moved = result.end.weights["fc1.weight"] - case.start.weights["fc1.weight"]
    # Four times as far as rounding hides for inputs up to 1: too little for inputs up to 10.
    scale = 4 * MIN_MOVEMENT / moved.abs().amax(1, keepdim=True).clamp(min=1e-30)
    weights = {**result.end.weights, "fc1.weight": moved * scale}
    start = replace(case.start, weights={**case.start.weights, "fc1.weight": torch.zeros_like(moved)})
    start = replace(start, masks={**start.masks, "fc1.weight": torch.ones_like(moved, dtype=torch.bool)})
    slight = replace(result, end=NetworkState(weights, result.end.unmasked), snapshots={})
    found = {bound: certify(MASKABLES, start, slight, None, None, max_input=bound) for bound in (1.0, 10.0, math.inf)}
    assert ["fc1.bias" in certificate.checks["biases_train"] for certificate in found.values()] == [True, False, False]


def test_bias_of_one_unit_held_at_every_snapshot_is_detected() -> None:
    """The unit's weights moved in both intervals between the three states."""
    case = Case()
    states = [case.result.end, *case.result.snapshots.values()]
    for state in states:
        if "fc1.bias" in state.unmasked:
            state.unmasked["fc1.bias"][3] = 0
    assert failed_checks(case.certificate()) == {"biases_train": ["fc1.bias"]}


def test_one_bias_that_returns_to_zero_is_noted() -> None:
    """One bias, or the biases of units with equal weights, can return to their initial values by chance."""
    case = Case()
    returned = case.result.end.unmasked["fc1.bias"].clone()
    returned[3] = 0
    certificate = case.certificate(result=with_bias(case.result, "fc1.bias", returned))
    assert certificate.passed
    message = "fc1.bias: unchanged in units whose weights moved (3), which chance can cause"
    assert certificate.notes == {"biases_train": [message]}
    assert certificate.to_data()["notes"] == {"biases_train": [message]}
    returned[[4, 5]] = 0
    twins = with_bias(case.result, "fc1.bias", returned)
    for weights in (case.start.weights, twins.end.weights):
        weights["fc1.weight"][[4, 5]] = weights["fc1.weight"][3].clone()
    assert certify_biases(case.start, twins) == {"biases_train": [message.replace("(3)", "(3, 4, 5)")]}


def certify_biases(start: InitialState, result: TrainingResult) -> dict[str, list[str]]:
    """Return the notes of a run without its parent, which has no failed check except `dense`."""
    certificate = certify(MASKABLES, start, result, None, None)
    assert failed_checks(certificate).keys() <= {"dense", "frozen_is_frozen"}
    return certificate.notes


@pytest.mark.parametrize(("start_bias", "movement"), [(0.5, 1e-3), (0.0, 1e-26)])
def test_bias_steps_below_the_resolution_of_float32_pass(start_bias: float, movement: float) -> None:
    """Steps below half a unit in the last place of a bias, or flushed to 0, leave the biases of a whole layer."""
    start = dense()
    start.unmasked["fc1.bias"].fill_(start_bias)
    start.weights["fc1.weight"].zero_()
    moved = {**start.weights, "fc1.weight": torch.full((30, 20), movement) * torch.rand(30, 20)}
    result = TrainingResult("finished", NetworkState(moved, start.unmasked), {}, LearningCurve(), {})
    certificate = certify(MASKABLES, start, result, None, None)
    assert certificate.passed and not certificate.notes
    moved["fc1.weight"] += 0.1 + 0.1 * torch.rand(30, 20)
    assert failed_checks(certify(MASKABLES, start, result, None, None)) == {"biases_train": ["fc1.bias"]}


def test_bias_held_after_late_rewinding_is_detected() -> None:
    dense_run = chain([], snapshots=(10,))[0]
    step = step_with(PLAIN, rewind_to=10)
    start = prune_and_reset(parent_of(*dense_run), step, level_streams(1))
    result = with_bias(train(start, 1), "fc2.bias", start.unmasked["fc2.bias"].clone())
    assert failed_checks(certify(MASKABLES, start, result, parent_of(*dense_run), step)) == {
        "biases_train": ["fc2.bias"]
    }


def silent_unit(start: InitialState, result: TrainingResult, shrink: float, unit: int = 0) -> TrainingResult:
    """Replace a unit of fc1 by one that was never active: nothing of it changed, except by weight decay."""
    weights, others = dict(result.end.weights), dict(result.end.unmasked)
    weights["fc1.weight"] = weights["fc1.weight"].clone()
    weights["fc1.weight"][unit] = start.weights["fc1.weight"][unit] * shrink
    others["fc1.bias"] = others["fc1.bias"].clone()
    others["fc1.bias"][unit] = start.unmasked["fc1.bias"][unit]
    return replace(result, end=NetworkState(weights, others))


def test_silent_unit_passes() -> None:
    case = Case()
    assert failed_checks(case.certificate(result=silent_unit(case.start, case.result, 1.0))) == {}


def test_biases_are_not_checked_under_weight_decay() -> None:
    """Weight decay moves the weights of silent units, whose biases stay."""
    case = Case()
    result = case.result
    for unit in range(3):
        result = silent_unit(case.start, result, 0.9, unit)
    assert failed_checks(case.certificate(result=result)) == {"biases_train": ["fc1.bias"]}
    found = certify(MASKABLES, case.start, result, case.parent, case.step, weight_decay=1e-4)
    assert found.passed and found.checks.keys() == OF_CHILDREN - {"biases_train"}


def test_diverged_run_is_checked_by_its_frozen_weights() -> None:
    case = Case()
    weights = {n: w.masked_fill(case.start.masks[n], torch.nan) for n, w in case.result.end.weights.items()}
    others = {n: torch.full_like(t, torch.nan) for n, t in case.result.end.unmasked.items()}
    assert (
        failed_checks(
            case.certificate(
                result=TrainingResult("diverged", NetworkState(weights, others), {}, case.result.curve, {})
            )
        )
        == {}
    )
