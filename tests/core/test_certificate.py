"""Certificates: correct runs of every treatment pass."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.certificates import ALWAYS, OF_CHILDREN, PLAIN, Case, failed_checks
from helpers.tiny import MASKABLES, RATES, chain, dense, level_streams, parent_of, step_with, train

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import certify
from supermask.core.criteria import CRITERIA
from supermask.core.pruning import PruneStep, prune_and_reset


def check_chain(steps: list[PruneStep], snapshots: tuple[int, ...] = ()) -> None:
    runs = chain(steps, snapshots=snapshots)
    assert failed_checks(certify(MASKABLES, *runs[0], None, None)) == {}
    for parent, run, step in zip(runs, runs[1:], steps, strict=False):
        found = certify(MASKABLES, *run, parent_of(*parent), step)
        assert found.checks.keys() == OF_CHILDREN
        assert failed_checks(found) == {}


@pytest.mark.slow
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
    check_chain([step_with(step, rewind_to=10), step, step], snapshots=(10,))
    check_chain([step_with(step, rewind_to="end")] * 3)
    check_chain([step_with(step, w_init=10, w_final="lowest_validation_loss")] * 3, snapshots=(10,))


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
