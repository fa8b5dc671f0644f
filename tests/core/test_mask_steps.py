"""The steps that masks need: kept is what is above a threshold; a factor that the level before did not carry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import LAYERS, MASKABLES, RATES, dense, level_streams, parent_of, step_with, train
from torch import Tensor

from supermask.core.actions import KEEPS_W_INIT_VALUES, MASK1_ACTIONS
from supermask.core.certificate import certify
from supermask.core.criteria import ALL_CRITERIA, CRITERIA, learned_mask
from supermask.core.errors import UserError
from supermask.core.learned_masks import METHODS, MaskLearning, initial_mask_state, mask_scores
from supermask.core.pruning import ParentRun, PruneStep, compute_masks, keep_counts, prune_and_reset
from supermask.core.rng import child_streams
from supermask.core.types import LearningCurve, NetworkState, TrainingResult
from supermask.engines.selection import EngineChoice, select_engine
from supermask.networks.sequential import architecture, initial_state, prunable_tensors
from supermask.store.records import apply_inversion

TAKE = PruneStep(learned_mask, "rewind", "zero", {}, "threshold")


def parent_that_learned(learning: MaskLearning, spread: float = 1.0) -> ParentRun:
    """Logits at random, a run that ended there."""
    start = initial_mask_state(
        learning, prunable_tensors(LAYERS), initial_state(LAYERS, 0), 0, None, None, child_streams(0)
    )
    rng = np.random.default_rng(0)
    logits = {n: torch.from_numpy(rng.normal(0, spread, w.shape).astype(np.float32)) for n, w in start.weights.items()}
    end = apply_inversion(replace(start.state, logits=logits), learning)
    return ParentRun(start, {"end": end}, MASKABLES, lambda m: {n: mask_scores(learning, t) for n, t in m.items()})


def taken(parent: ParentRun, **changes: Any) -> tuple[dict[str, Tensor], PruneStep]:
    step = step_with(TAKE, **changes)
    return compute_masks(parent, step, level_streams(2)), step


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_keeps_exactly_what_is_above_it(method: Any) -> None:
    """However few or many; by the method's own definition."""
    parent = parent_that_learned(MaskLearning(method, density=0.3, threshold=0.5))
    masks, _ = taken(parent)
    for name, mask in masks.items():
        m = parent.points["end"].logits[name]
        wanted = {
            "bernoulli": m.sigmoid() > 0.5,
            "rounded": m > 0,
            "edge_popup": m >= m.flatten().topk(round(0.3 * m.numel())).values.min(),
            "signed": m.abs() > 0.5,
        }[method]
        assert torch.equal(mask, wanted)


def test_a_dead_weight_stays_dead_above_the_threshold() -> None:
    parent = parent_that_learned(MaskLearning())
    masks = {n: torch.arange(m.numel()).reshape(m.shape) % 2 == 0 for n, m in parent.start.masks.items()}
    found, _ = taken(replace(parent, start=replace(parent.start, masks=masks)))
    for name, mask in found.items():
        assert torch.equal(mask, masks[name] & (parent.points["end"].logits[name] > 0))


def test_nothing_is_counted_under_a_threshold() -> None:
    with pytest.raises(AssertionError, match="a threshold keeps what is above it"):
        keep_counts(parent_that_learned(MaskLearning()), TAKE)


@pytest.mark.parametrize("method", METHODS)
def test_the_certificate_of_a_mask_that_was_taken(method: Any) -> None:
    """Holds; and one weight more or less than the logits say is a wrong count."""
    learning = MaskLearning(method)
    parent, point = parent_that_learned(learning), "end" if method == "signed" else "start"
    step = step_with(TAKE, w_init=point, rewind_to=point)
    start = prune_and_reset(parent, step, level_streams(2))
    outcome = TrainingResult("finished", start.state, {}, LearningCurve(), {})
    assert certify(MASKABLES, start, outcome, parent, step).passed
    name = "fc2.weight"
    kept, place = int(start.masks[name].sum()), tuple(start.masks[name].nonzero()[0].tolist())
    masks, weights = start.masks[name].clone(), start.weights[name].clone()
    masks[place], weights[place] = False, 0.0
    forged = replace(start, masks={**start.masks, name: masks}, weights={**start.weights, name: weights})
    found = certify(MASKABLES, forged, replace(outcome, end=forged.state), parent, step).checks
    assert {check: layers for check, layers in found.items() if layers} == {
        "kept_count": [f"{name}: {kept - 1} kept, {kept} asked"]
    }


def test_learned_is_known_and_no_study_names_it() -> None:
    assert set(ALL_CRITERIA) - set(CRITERIA) == {"learned"} and ALL_CRITERIA["learned"] is learned_mask
    with pytest.raises(AssertionError):
        compute_masks(parent_of(dense(), train(dense(), 0)), TAKE, level_streams(1))


@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
@pytest.mark.parametrize("before", [True, False])
def test_the_factor_of_a_second_level(mask1: str, before: bool) -> None:
    """In all (weights in layer / kept), whether or not the level before carries (weights in layer / alive) already."""
    first = PruneStep(CRITERIA["large_final"], "rewind", "zero", RATES, rescaled=before)
    level_1 = prune_and_reset(parent_of(dense(), train(dense(), 0)), first, level_streams(1))
    parent = parent_of(level_1, train(level_1, 1))
    plain = PruneStep(CRITERIA["movement"], mask1, "zero", RATES)
    rescaled = replace(plain, rescaled=True, rescaled_before=before)
    one, other = (prune_and_reset(parent, step, level_streams(2)) for step in (plain, rescaled))
    outcome = train(other, 2)
    assert certify(MASKABLES, other, outcome, parent, rescaled).passed
    wrong = certify(MASKABLES, other, outcome, parent, replace(rescaled, rescaled_before=not before))
    assert wrong.passed == (mask1 not in KEEPS_W_INIT_VALUES)
    for name, mask in one.masks.items():
        carried = int(level_1.masks[name].sum()) if mask1 in KEEPS_W_INIT_VALUES and before else mask.numel()
        factor = np.float32(carried / int(mask.sum()))
        np.testing.assert_allclose(other.weights[name].numpy(), one.weights[name].numpy() * factor, rtol=1e-6)
        if mask1 == "rewind":
            whole = dense().weights[name].numpy() * mask.numpy() * np.float32(mask.numel() / int(mask.sum()))
            np.testing.assert_allclose(other.weights[name].numpy(), whole, rtol=1e-6)


def test_a_mask_that_inverts_is_at_the_end_what_it_inverted() -> None:
    state = NetworkState({"a": torch.tensor([1.0, 2.0, -3.0])}, {}, {"a": torch.tensor([-0.5, 0.5, -0.001])})
    assert apply_inversion(state, MaskLearning("signed")).weights["a"].tolist() == [-1, 2, 3]
    for method in ("bernoulli", "rounded", "edge_popup"):
        assert apply_inversion(state, MaskLearning(method)).weights["a"].tolist() == [1, 2, -3]  # type: ignore[arg-type]


# --- which engine learns it ---


@pytest.mark.parametrize("method", METHODS)
def test_the_sparse_engine_learns_what_it_can(method: Any) -> None:
    fc, conv = architecture("fc-20", (1, 8, 8), 10), architecture("conv2", (3, 32, 32), 10)
    learning = MaskLearning(method)
    assert select_engine("reference", fc, "cpu", learning) == EngineChoice("reference", "it was asked for")
    found = select_engine("auto", fc, "cpu", learning)
    if method in ("bernoulli", "rounded"):
        assert found == EngineChoice("sparse", "auto: it learns masks of fully connected layers faster")
        obstacle = "learns masks of fully connected layers alone"
    else:
        obstacle = "learns masks by bernoulli and rounded alone"
        assert found == EngineChoice("reference", f"auto: the sparse engine {obstacle}")
        with pytest.raises(UserError, match=f"{obstacle}: use --engine auto"):
            select_engine("sparse", fc, "cpu", learning)
    assert select_engine("auto", conv, "cpu", learning).engine == "reference"
    with pytest.raises(UserError, match="the sparse engine learns masks"):
        select_engine("sparse", conv, "cpu", learning)
    assert select_engine("auto", fc, "cuda", learning).engine == "stacked"
