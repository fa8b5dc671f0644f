"""Certificates: faults of the masks and of the values that a level starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.certificates import PLAIN, Case, changed, failed_checks
from helpers.tiny import MASKABLES, chain, dense, level_streams, parent_of, step_with, train
from torch import Tensor

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import certify
from supermask.core.criteria import CRITERIA
from supermask.core.invariants import MASK0_INVARIANTS, MASK1_INVARIANTS
from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.types import InitialState, NetworkState, PrunableTensor, TrainingResult

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
    dense_run = chain([], snapshots=(10,))[0]
    parent = parent_of(*dense_run)
    start = prune_and_reset(parent, PLAIN, level_streams(1))
    found = failed_checks(certify(MASKABLES, start, train(start, 1), parent, step_with(PLAIN, rewind_to=10)))
    assert found == {"mask1_promise": [*MASKABLES], "others_rewound": ["fc1.bias", "fc2.bias"]}


def test_every_action_has_an_invariant() -> None:
    assert list(MASK1_INVARIANTS) == list(MASK1_ACTIONS) == list(ONE_KEPT_WEIGHT_WRONG)
    assert list(MASK0_INVARIANTS) == list(MASK0_ACTIONS)
