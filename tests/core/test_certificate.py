"""Certificates: correct runs of every treatment pass; each fault is detected by the check that names it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import MASKABLES, RATES, chain, dense, level_streams, parent_of, step_with, train
from torch import Tensor

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import MIN_MOVEMENT, Certificate, certify
from supermask.core.criteria import CRITERIA
from supermask.core.initializers import truncated_normal
from supermask.core.invariants import MASK0_INVARIANTS, MASK1_INVARIANTS
from supermask.core.pruning import ParentRun, PruneStep, apply_masks, prune_and_reset
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, LearningCurve, NetworkState, PrunableTensor, TrainingResult

PLAIN = PruneStep(CRITERIA["large_final"], "rewind", "zero", RATES)
ALWAYS = {"only_kernels_are_masked", "no_layer_is_emptied", "frozen_is_frozen", "biases_train"}
ALWAYS |= {"optimizer_holds_nothing_frozen"}
OF_CHILDREN = ALWAYS | {"kept_count", "dead_stays_dead", "mask1_promise", "mask0_promise", "others_rewound"}


class Case:
    """Two levels of a correct chain. The second run is the one that a test falsifies."""

    def __init__(self, **changes: Any) -> None:
        self.step = step_with(PLAIN, **changes)
        runs = chain([self.step] * 2)
        self.parent = parent_of(*runs[1])
        self.start, self.result = runs[2]

    def certificate(self, start: InitialState | None = None, result: TrainingResult | None = None) -> Certificate:
        """Return the certificate of the run, with its start (then trained correctly) or its result replaced."""
        if start is not None and result is None:
            result = train(start, 2)
        return certify(MASKABLES, start or self.start, result or self.result, self.parent, self.step)

    def start_with(self, name: str, values: Tensor) -> InitialState:
        """Return the run's start with one kernel replaced."""
        return replace(self.start, weights={**self.start.weights, name: values})

    def masks_with(self, name: str, mask: Tensor) -> InitialState:
        """Return the run's start with one mask replaced and its values recomputed."""
        return apply_masks({**self.start.masks, name: mask}, self.parent, self.step, level_streams(2))


def failed_checks(certificate: Certificate) -> dict[str, list[str]]:
    assert certificate.passed == (not any(certificate.checks.values()))
    return {check: layers for check, layers in certificate.checks.items() if layers}


def changed(tensor: Tensor, where: Tensor, value: float, count: int = 1) -> Tensor:
    """Return a copy in which the first `count` weights of `where` are `value`."""
    copy = tensor.clone()
    places = where.flatten().nonzero().flatten()[:count]
    assert len(places) == count
    copy.view(-1)[places] = torch.tensor(value, dtype=copy.dtype)
    return copy


# --- correct runs ---


def check_chain(steps: list[PruneStep], points: tuple[int, ...] = ()) -> None:
    runs = chain(steps, points=points)
    assert failed_checks(certify(MASKABLES, *runs[0], None, None)) == {}
    for parent, run, step in zip(runs, runs[1:], steps, strict=False):
        found = certify(MASKABLES, *run, parent_of(*parent), step)
        assert found.checks.keys() == OF_CHILDREN
        assert failed_checks(found) == {}


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_certificate_passes_for_every_pair_of_actions(mask1: str, mask0: str, rescaled: bool) -> None:
    """Each pair uses another criterion. One-shot chains end with layers of a few weights."""
    number = 8 * list(MASK1_ACTIONS).index(mask1) + list(MASK0_ACTIONS).index(mask0)
    criterion = list(CRITERIA.values())[number % len(CRITERIA)]
    step = PruneStep(criterion, mask1, mask0, RATES, rescaled=rescaled)
    check_chain([step] * 3)
    check_chain([step_with(step, levels=3)] * 4)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_certificate_passes_for_every_criterion(criterion: str, scope: Any) -> None:
    check_chain([step_with(PLAIN, criterion=CRITERIA[criterion], scope=scope)] * 3)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_certificate_passes_for_every_mask1_action_under_global_ranking(mask1: str, rescaled: bool) -> None:
    step = PruneStep(CRITERIA["movement"], mask1, "zero_if_shrunk", RATES, "global", rescaled=rescaled)
    check_chain([step] * 4)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
def test_certificate_passes_for_late_rewinding_and_other_snapshots(mask0: str, rescaled: bool) -> None:
    step = step_with(PLAIN, mask0=mask0, rescaled=rescaled)
    check_chain([step_with(step, rewind_to=10), step, step], points=(10,))
    check_chain([step_with(step, rewind_to="end")] * 3)
    check_chain([step_with(step, w_init=10, w_final="lowest_validation_loss")] * 3, points=(10,))


@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_certificate_passes_for_weights_that_start_at_zero(mask1: str) -> None:
    """In a long chain of zero_if_shrunk_everywhere more and more kept weights are 0 and have no sign."""
    step = step_with(PLAIN, mask1=mask1, mask0="zero_if_shrunk_everywhere", criterion=CRITERIA["small_final"])
    check_chain([step] * 10)


def test_certificate_passes_with_dead_pixels() -> None:
    start = dense()
    result = train(start, 0, still=5)
    child = prune_and_reset(parent_of(start, result), PLAIN, level_streams(1))
    assert failed_checks(certify(MASKABLES, child, train(child, 1, still=5), parent_of(start, result), PLAIN)) == {}


def test_certificate_as_plain_data() -> None:
    case = Case()
    assert case.certificate().to_data() == {"held": True, "checks": {name: [] for name in OF_CHILDREN}}
    assert certify(MASKABLES, dense(), train(dense(), 0), None, None).checks.keys() == ALWAYS | {"dense"}


# --- faults of training ---


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
    slight = replace(result, end=NetworkState(weights, result.end.unmasked), points={})
    found = {bound: certify(MASKABLES, start, slight, None, None, max_input=bound) for bound in (1.0, 10.0, math.inf)}
    assert ["fc1.bias" in certificate.checks["biases_train"] for certificate in found.values()] == [True, False, False]


def test_bias_of_one_unit_held_at_every_snapshot_is_detected() -> None:
    """The unit's weights moved in both intervals between the three states."""
    case = Case()
    states = [case.result.end, *case.result.points.values()]
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
    dense_run = chain([], points=(10,))[0]
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


# --- faults of masks ---


@pytest.mark.parametrize(("name", "asked"), [("fc1.weight", 294), ("fc2.weight", 192)])
@pytest.mark.parametrize("by", [-1, 1])
def test_wrong_count_is_detected(name: str, asked: int, by: int) -> None:
    case = Case()
    alive, mask = case.parent.start.masks[name], case.start.masks[name]
    start = case.masks_with(name, changed(mask, mask if by < 0 else alive & ~mask, by > 0))
    assert failed_checks(case.certificate(start)) == {"kept_count": [f"{name}: {asked + by} kept, {asked} asked"]}


def test_wrong_count_over_all_layers_is_detected() -> None:
    case = Case(scope="global")
    mask = case.start.masks["fc1.weight"]
    start = case.masks_with("fc1.weight", changed(mask, mask, False))
    assert failed_checks(case.certificate(start)) == {"kept_count": ["all: 505 kept, 506 asked"]}


def test_counts_are_rounded_half_to_even_at_every_level() -> None:
    """Half of 5 is 2.5, which rounds to 2; half of 3 is 1.5, which rounds to 2."""
    tensor = PrunableTensor("fc.weight", (5, 1), "hidden")
    start = InitialState(
        {"fc.weight": torch.arange(1.0, 6.0).reshape(5, 1)}, {"fc.weight": torch.ones(5, 1).bool()}, {}
    )
    end = NetworkState({"fc.weight": torch.arange(1.0, 6.0).reshape(5, 1)}, {})
    parent = ParentRun(start, {"end": end}, {"fc.weight": tensor})
    for levels, asked in ((1, 3), (2, 1)):
        step = PruneStep(CRITERIA["large_final"], "rewind", "zero", {"hidden": 0.5}, levels=levels)
        child = prune_and_reset(parent, step, level_streams(1))
        found = certify(
            {"fc.weight": tensor}, child, TrainingResult("finished", child.state, {}, None, {}), parent, step
        )  # type: ignore[arg-type]
        assert int(child.masks["fc.weight"].sum()) == asked and found.passed


def test_revived_weight_is_detected() -> None:
    """The revived weight replaces an alive one, so that the count is right."""
    case = Case()
    mask, dead = case.start.masks["fc1.weight"], ~case.parent.start.masks["fc1.weight"]
    start = case.masks_with("fc1.weight", changed(changed(mask, mask, False), dead, True))
    assert failed_checks(case.certificate(start)) == {"dead_stays_dead": ["fc1.weight"]}


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
def test_frozen_value_changed_between_levels_is_detected(mask0: str) -> None:
    case = Case(mask0=mask0)
    values, dead = case.start.weights["fc1.weight"], ~case.parent.start.masks["fc1.weight"]
    start = case.start_with("fc1.weight", changed(values, dead, 0.123))
    assert failed_checks(case.certificate(start)) == {"dead_stays_dead": ["fc1.weight"]}


def test_emptied_layer_is_detected() -> None:
    case = Case()
    start = case.masks_with("fc2.weight", torch.zeros(10, 30, dtype=torch.bool))
    found = failed_checks(case.certificate(start))
    assert found == {"no_layer_is_emptied": ["fc2.weight"], "kept_count": ["fc2.weight: 0 kept, 192 asked"]}


def test_masked_bias_is_detected() -> None:
    case = Case()
    masks = {**case.start.masks, "fc1.bias": torch.ones(30, dtype=torch.bool)}
    start = replace(case.start, masks=masks)
    expected = {"only_kernels_are_masked": ["fc1.bias is masked, but is not a kernel"]}
    assert failed_checks(case.certificate(start, case.result)) == expected


def test_missing_mask_and_mask_of_another_shape_are_detected() -> None:
    case = Case()
    without = replace(case.start, masks={"fc1.weight": case.start.masks["fc1.weight"]})
    assert failed_checks(case.certificate(without, case.result)) == {
        "only_kernels_are_masked": ["fc2.weight has no mask"]
    }
    other = replace(case.start, masks={**case.start.masks, "fc2.weight": torch.ones(1, 30, dtype=torch.bool)})
    found = failed_checks(case.certificate(other, case.result))
    assert found == {"only_kernels_are_masked": ["fc2.weight: mask of another shape"]}


def test_masked_dense_run_is_detected() -> None:
    start = dense()
    masked = replace(
        start, masks={**start.masks, "fc2.weight": changed(start.masks["fc2.weight"], start.masks["fc2.weight"], False)}
    )
    assert failed_checks(certify(MASKABLES, masked, train(masked, 0), None, None)) == {"dense": ["fc2.weight"]}


# --- faults of start values ---


def failures_after_one_wrong_kept_weight(
    case: Case, new: Callable[[Tensor], Tensor], name: str = "fc1.weight"
) -> dict[str, list[str]]:
    values, mask = case.start.weights[name].clone(), case.start.masks[name]
    place = tuple((mask & (values != 0)).nonzero()[0].tolist())
    values[place] = new(values[place])
    return failed_checks(case.certificate(case.start_with(name, values)))


ONE_KEPT_WEIGHT_WRONG: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "rewind": [lambda v: torch.nextafter(v, v * 2), lambda v: -v, lambda v: v * 0],
    "reinit": [lambda v: v + 2, lambda v: v * 0],
    "reshuffle": [lambda v: torch.nextafter(v, v * 2), lambda v: -v, lambda v: v * 0],
    "constant": [lambda v: torch.nextafter(v, v * 2), lambda v: v * 0],
    "signed_reinit": [lambda v: v + 2, lambda v: -v, lambda v: v * 0],
    "signed_reshuffle": [lambda v: torch.nextafter(v, v * 2), lambda v: -v, lambda v: v * 0],
    "signed_constant": [lambda v: torch.nextafter(v, v * 2), lambda v: -v, lambda v: v * 0],
    "bimodal_reinit": [lambda v: v * 0],
    "signed_bimodal_reinit": [lambda v: -v, lambda v: v * 0],
    "permute": [lambda v: torch.nextafter(v, v * 2), lambda v: -v, lambda v: v * 0],
    "randomise_signs": [lambda v: torch.nextafter(v, v * 2), lambda v: v * 0],
}


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("mask1", MASK1_INVARIANTS)
def test_one_wrong_kept_weight_is_detected(mask1: str, rescaled: bool) -> None:
    """Faults: one ulp, a flipped sign, a zero, a value outside the initializer's range."""
    case = Case(mask1=mask1, rescaled=rescaled)
    for new in ONE_KEPT_WEIGHT_WRONG[mask1]:
        assert failures_after_one_wrong_kept_weight(case, new) == {"mask1_promise": ["fc1.weight"]}


@pytest.mark.parametrize("mask1", ["reshuffle", "signed_reshuffle", "permute"])
def test_shuffle_that_repeats_a_value_is_detected(mask1: str) -> None:
    """One value occurs twice and another one is missing."""
    case = Case(mask1=mask1)
    values, mask = case.start.weights["fc2.weight"].clone(), case.start.masks["fc2.weight"]
    one, two = (tuple(place) for place in ((values > 0) & mask).nonzero()[:2].tolist())
    values[one] = values[two]
    assert failed_checks(case.certificate(case.start_with("fc2.weight", values))) == {"mask1_promise": ["fc2.weight"]}


@pytest.mark.parametrize("mask1", [name for name in MASK1_ACTIONS if name != "rewind"])
@pytest.mark.parametrize("left_at", ["start", "end"])
def test_mask1_action_that_was_not_performed_is_detected(mask1: str, left_at: str) -> None:
    """Weights that were never set are still at w_i or, without rewinding, at w_f."""
    case = Case(mask1=mask1)
    name = "fc1.weight"
    untouched = case.parent.state_at(left_at).weights[name].where(case.start.masks[name], case.start.weights[name])  # type: ignore[arg-type]
    found = failed_checks(case.certificate(case.start_with(name, untouched)))
    if (mask1, left_at) == ("signed_constant", "start"):
        assert found == {}  # From the second level on, w_i already is the signed constant.
    else:
        assert found == {"mask1_promise": [name]}


def test_kept_weights_that_were_not_rewound_are_detected() -> None:
    case = Case()
    name = "fc2.weight"
    values = case.result.end.weights[name].where(case.start.masks[name], case.start.weights[name])
    assert failed_checks(case.certificate(case.start_with(name, values))) == {"mask1_promise": [name]}


@pytest.mark.parametrize("mask0", [name for name in MASK0_ACTIONS if name != "freeze_reinit"])
def test_one_wrong_pruned_weight_is_detected(mask0: str) -> None:
    case = Case(mask0=mask0)
    for name in MASKABLES:
        pruned = case.parent.start.masks[name] & ~case.start.masks[name]
        start = case.start_with(name, changed(case.start.weights[name], pruned, 0.01))
        assert failed_checks(case.certificate(start)) == {"mask0_promise": [name]}


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_pruned_weight_that_is_not_a_fresh_draw_is_detected(value: float) -> None:
    case = Case(mask0="freeze_reinit")
    pruned = case.parent.start.masks["fc1.weight"] & ~case.start.masks["fc1.weight"]
    start = case.start_with("fc1.weight", changed(case.start.weights["fc1.weight"], pruned, value))
    assert failed_checks(case.certificate(start)) == {"mask0_promise": ["fc1.weight"]}


def test_shrunk_kept_weight_that_is_not_zero_is_detected() -> None:
    case = Case(mask0="zero_if_shrunk_everywhere")
    name = "fc1.weight"
    layer = case.parent.layers(case.step)[name]
    shrunk = case.start.masks[name] & (layer.w_final.abs() < layer.w_init.abs())
    start = case.start_with(name, changed(case.start.weights[name], shrunk, 0.01))
    found = failed_checks(case.certificate(start))
    assert found == {"mask1_promise": [f"{name}: kept weights that shrank do not start at 0"]}


@pytest.mark.parametrize("name", ["fc1.bias", "fc2.bias"])
def test_bias_that_was_not_rewound_is_detected(name: str) -> None:
    case = Case()
    not_rewound = replace(
        case.start, unmasked={**case.start.unmasked, name: case.parent.state_at("end").unmasked[name]}
    )
    assert failed_checks(case.certificate(not_rewound)) == {"others_rewound": [name]}
    missing = replace(case.start, unmasked={n: t for n, t in case.start.unmasked.items() if n != name})
    assert failed_checks(case.certificate(missing, case.result)) == {"others_rewound": [f"{name}: not in both"]}


def test_rewinding_to_another_iteration_is_detected() -> None:
    dense_run = chain([], points=(10,))[0]
    parent = parent_of(*dense_run)
    start = prune_and_reset(parent, PLAIN, level_streams(1))
    found = failed_checks(certify(MASKABLES, start, train(start, 1), parent, step_with(PLAIN, rewind_to=10)))
    assert found == {"mask1_promise": [*MASKABLES], "others_rewound": ["fc1.bias", "fc2.bias"]}


# --- every expected action x every other performed action ---


def one_layer(shape: tuple[int, int]) -> ParentRun:
    """Return a dense run of one layer whose weights grew and shrank, some through zero."""
    tensor = PrunableTensor("fc.weight", shape, "hidden")
    w_init = torch.from_numpy(truncated_normal(shape, tensor.std, random_stream(0, "init")))
    w_final = w_init + tensor.std * torch.from_numpy(
        random_stream(0, "train").standard_normal(shape).astype(np.float32)
    )
    start = InitialState({"fc.weight": w_init}, {"fc.weight": torch.ones(shape, dtype=torch.bool)}, {})
    return ParentRun(start, {"end": NetworkState({"fc.weight": w_final}, {})}, {"fc.weight": tensor})


def refused(parent: ParentRun, promised: PruneStep, performed: PruneStep) -> bool:
    start = prune_and_reset(parent, performed, level_streams(1))
    found = certify(dict(parent.prunable), start, train(start, 1), parent, promised)
    assert failed_checks(found).keys() <= {"mask1_promise", "mask0_promise"}
    return not found.passed


HALF = PruneStep(CRITERIA["magnitude_increase"], "rewind", "zero", {"hidden": 0.5})
MASK1_PAIRS = list(itertools.permutations(MASK1_ACTIONS, 2))
MASK0_PAIRS = list(itertools.permutations(MASK0_ACTIONS, 2))


@pytest.mark.parametrize(("promised", "performed"), MASK1_PAIRS)
def test_every_other_mask1_action_is_detected_in_a_large_layer(promised: str, performed: str) -> None:
    """In a layer of 6,400 weights no two actions can be confused."""
    assert refused(one_layer((64, 100)), step_with(HALF, mask1=promised), step_with(HALF, mask1=performed))


@pytest.mark.parametrize(("promised", "performed"), MASK0_PAIRS)
def test_every_other_mask0_action_is_detected_in_a_large_layer(promised: str, performed: str) -> None:
    """The kept weights distinguish `zero_if_shrunk_everywhere` from `zero_if_shrunk`."""
    parent = one_layer((64, 100))
    step = step_with(HALF, criterion=CRITERIA["random"])
    assert refused(parent, step_with(step, mask0=promised), step_with(step, mask0=performed))


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
def test_missing_and_unwanted_rescaling_are_detected(mask1: str, rescaled: bool) -> None:
    promised = step_with(HALF, mask1=mask1, rescaled=rescaled)
    assert refused(one_layer((64, 100)), promised, step_with(promised, rescaled=not rescaled))


def with_w_init(parent: ParentRun, change: Callable[[Tensor], Tensor]) -> ParentRun:
    """Return the same run with changed initial weights."""
    weights = {n: change(w) for n, w in parent.start.weights.items()}
    return replace(parent, start=replace(parent.start, weights=weights))


@pytest.mark.parametrize("mask1", ["reshuffle", "signed_reshuffle", "permute"])
def test_shuffle_of_positive_weights_that_moves_nothing_is_detected(mask1: str) -> None:
    parent = with_w_init(one_layer((64, 100)), torch.abs)
    assert refused(parent, step_with(HALF, mask1=mask1), HALF)
    assert not refused(parent, step_with(HALF, mask1=mask1), step_with(HALF, mask1=mask1))


@pytest.mark.parametrize("mask1", ["reshuffle", "signed_reshuffle", "permute"])
def test_shuffle_with_zeros_of_both_signs_passes(mask1: str) -> None:
    half_zero = with_w_init(one_layer((64, 100)), lambda w: torch.where(w.abs() < w.abs().median(), w * 0, w))
    assert not refused(half_zero, step_with(HALF, mask1=mask1), step_with(HALF, mask1=mask1))


CONFUSED_IN_SMALL_LAYERS = {
    # (expected, performed) in a layer of 40 weights, 20 of them kept
    ("reinit", "signed_reinit"),
    ("reinit", "bimodal_reinit"),
    ("reinit", "signed_bimodal_reinit"),
    ("reinit", "permute"),
    ("bimodal_reinit", "permute"),
    ("signed_reinit", "signed_bimodal_reinit"),
    ("bimodal_reinit", "reinit"),
    ("bimodal_reinit", "signed_reinit"),
    ("bimodal_reinit", "signed_bimodal_reinit"),
    ("signed_bimodal_reinit", "signed_reinit"),
    ("reshuffle", "rewind"),
    ("reshuffle", "signed_reshuffle"),
    ("signed_reshuffle", "rewind"),
    ("constant", "signed_constant"),
    ("permute", "rewind"),
    ("permute", "reshuffle"),
    ("permute", "signed_reshuffle"),
    ("randomise_signs", "rewind"),
    ("zero_random", "zero_if_shrunk"),
}


def test_small_layers_confuse_only_actions_that_chance_can_confuse() -> None:
    """A pair passes in a small layer only if chance can produce it; exact invariants never do."""
    parent = one_layer((4, 10))
    step = step_with(HALF, criterion=CRITERIA["random"])
    found = {(a, b) for a, b in MASK1_PAIRS if not refused(parent, step_with(step, mask1=a), step_with(step, mask1=b))}
    found |= {(a, b) for a, b in MASK0_PAIRS if not refused(parent, step_with(step, mask0=a), step_with(step, mask0=b))}
    assert found == CONFUSED_IN_SMALL_LAYERS


def test_every_action_has_an_invariant() -> None:
    assert list(MASK1_INVARIANTS) == list(MASK1_ACTIONS) == list(ONE_KEPT_WEIGHT_WRONG)
    assert list(MASK0_INVARIANTS) == list(MASK0_ACTIONS)
