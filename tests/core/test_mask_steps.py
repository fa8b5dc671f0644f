"""Pruning steps for learned masks: selection by threshold, and rescaling after a level that was not rescaled."""

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
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state, prunable_tensors
from supermask.store.records import apply_inversion

THRESHOLD_STEP = PruneStep(learned_mask, "rewind", "zero", {}, "threshold")


def parent_with_learned_mask(learning: MaskLearning, spread: float = 1.0) -> ParentRun:
    """Return a run that ended with random logits."""
    start = initial_mask_state(
        learning, prunable_tensors(LAYERS), initial_state(LAYERS, 0), 0, None, None, child_streams(0)
    )
    rng = np.random.default_rng(0)
    logits = {n: torch.from_numpy(rng.normal(0, spread, w.shape).astype(np.float32)) for n, w in start.weights.items()}
    end = apply_inversion(replace(start.state, logits=logits), learning)
    return ParentRun(start, {"end": end}, MASKABLES, lambda m: {n: mask_scores(learning, t) for n, t in m.items()})


def masks_by_threshold(parent: ParentRun, **changes: Any) -> tuple[dict[str, Tensor], PruneStep]:
    step = step_with(THRESHOLD_STEP, **changes)
    return compute_masks(parent, step, level_streams(2)), step


@pytest.mark.parametrize("method", METHODS)
def test_threshold_keeps_the_learned_mask(method: Any) -> None:
    """Compared with the method's own definition."""
    parent = parent_with_learned_mask(MaskLearning(method, density=0.3, threshold=0.5))
    masks, _ = masks_by_threshold(parent)
    for name, mask in masks.items():
        m = parent.snapshots["end"].logits[name]
        wanted = {
            "bernoulli": m.sigmoid() > 0.5,
            "rounded": m > 0,
            "edge_popup": m >= m.flatten().topk(round(0.3 * m.numel())).values.min(),
            "signed": m.abs() > 0.5,
        }[method]
        assert torch.equal(mask, wanted)


def test_pruned_weight_stays_pruned_above_the_threshold() -> None:
    parent = parent_with_learned_mask(MaskLearning())
    masks = {n: torch.arange(m.numel()).reshape(m.shape) % 2 == 0 for n, m in parent.start.masks.items()}
    found, _ = masks_by_threshold(replace(parent, start=replace(parent.start, masks=masks)))
    for name, mask in found.items():
        assert torch.equal(mask, masks[name] & (parent.snapshots["end"].logits[name] > 0))


def test_threshold_has_no_count() -> None:
    with pytest.raises(AssertionError, match="a threshold has no count"):
        keep_counts(parent_with_learned_mask(MaskLearning()), THRESHOLD_STEP)


@pytest.mark.parametrize("method", METHODS)
def test_certificate_of_a_learned_mask_step(method: Any) -> None:
    """It passes; one weight fewer than the logits select is a wrong count."""
    learning = MaskLearning(method)
    parent, point = parent_with_learned_mask(learning), "end" if method == "signed" else "start"
    step = step_with(THRESHOLD_STEP, w_init=point, rewind_to=point)
    start = prune_and_reset(parent, step, level_streams(2))
    result = TrainingResult("finished", start.state, {}, LearningCurve(), {})
    assert certify(MASKABLES, start, result, parent, step).passed
    alive = {n: torch.arange(m.numel()).reshape(m.shape) % 2 == 0 for n, m in parent.start.masks.items()}
    half_pruned = replace(parent, start=replace(parent.start, masks=alive))
    half = prune_and_reset(half_pruned, step, level_streams(2))
    assert certify(MASKABLES, half, replace(result, end=half.state), half_pruned, step).passed
    name = "fc2.weight"
    kept, place = int(start.masks[name].sum()), tuple(start.masks[name].nonzero()[0].tolist())
    masks, weights = start.masks[name].clone(), start.weights[name].clone()
    masks[place], weights[place] = False, 0.0
    forged = replace(start, masks={**start.masks, name: masks}, weights={**start.weights, name: weights})
    found = certify(MASKABLES, forged, replace(result, end=forged.state), parent, step).checks
    assert {check: layers for check, layers in found.items() if layers} == {
        "kept_count": [f"{name}: {kept - 1} kept, {kept} asked"]
    }


def test_learned_criterion_cannot_be_named_in_a_study() -> None:
    assert set(ALL_CRITERIA) - set(CRITERIA) == {"learned"} and ALL_CRITERIA["learned"] is learned_mask
    with pytest.raises(AssertionError):
        compute_masks(parent_of(dense(), train(dense(), 0)), THRESHOLD_STEP, level_streams(1))


@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
@pytest.mark.parametrize("before", [True, False])
def test_rescale_factor_of_a_second_level(mask1: str, before: bool) -> None:
    """The total factor is (weights in layer / kept), whether or not the previous level was rescaled."""
    first = PruneStep(CRITERIA["large_final"], "rewind", "zero", RATES, rescaled=before)
    level_1 = prune_and_reset(parent_of(dense(), train(dense(), 0)), first, level_streams(1))
    parent = parent_of(level_1, train(level_1, 1))
    plain = PruneStep(CRITERIA["movement"], mask1, "zero", RATES)
    rescaled = replace(plain, rescaled=True, rescaled_before=before)
    one, other = (prune_and_reset(parent, step, level_streams(2)) for step in (plain, rescaled))
    result = train(other, 2)
    assert certify(MASKABLES, other, result, parent, rescaled).passed
    wrong = certify(MASKABLES, other, result, parent, replace(rescaled, rescaled_before=not before))
    assert wrong.passed == (mask1 not in KEEPS_W_INIT_VALUES)
    for name, mask in one.masks.items():
        plan_run = int(level_1.masks[name].sum()) if mask1 in KEEPS_W_INIT_VALUES and before else mask.numel()
        factor = np.float32(plan_run / int(mask.sum()))
        np.testing.assert_allclose(other.weights[name].numpy(), one.weights[name].numpy() * factor, rtol=1e-6)
        if mask1 == "rewind":
            whole = dense().weights[name].numpy() * mask.numpy() * np.float32(mask.numel() / int(mask.sum()))
            np.testing.assert_allclose(other.weights[name].numpy(), whole, rtol=1e-6)


def test_signed_mask_inverts_the_final_weights() -> None:
    state = NetworkState({"a": torch.tensor([1.0, 2.0, -3.0])}, {}, {"a": torch.tensor([-0.5, 0.5, -0.001])})
    assert apply_inversion(state, MaskLearning("signed")).weights["a"].tolist() == [-1, 2, 3]
    for method in ("bernoulli", "rounded", "edge_popup"):
        assert apply_inversion(state, MaskLearning(method)).weights["a"].tolist() == [1, 2, -3]  # type: ignore[arg-type]


# --- choice of engine ---


@pytest.mark.parametrize("method", METHODS)
def test_sparse_engine_learns_the_masks_it_supports(method: Any) -> None:
    fc, conv = (
        sequential_network(architecture(name, shape, 10))
        for name, shape in (("fc-20", (1, 8, 8)), ("conv2", (3, 32, 32)))
    )
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
