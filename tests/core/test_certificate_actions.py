"""Certificates: every expected action against every other performed action."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.certificates import failed_checks
from helpers.tiny import level_streams, step_with, train
from torch import Tensor

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.certificate import certify
from supermask.core.criteria import CRITERIA
from supermask.core.initializers import truncated_normal
from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, NetworkState, PrunableTensor


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
