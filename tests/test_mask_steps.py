"""The steps that masks need: kept is what is above a threshold; a factor that the level before did not carry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LAYERS, MASKABLES, RATES, dense, level_streams, parent_of, step_with, train
from torch import Tensor

from supermask.actions import CARRIES_W_INIT, MASK1_ACTIONS
from supermask.certificate import certify
from supermask.criteria import CRITERIA, KNOWN, learned
from supermask.engines.choice import Choice, choose
from supermask.errors import UserError
from supermask.learned import METHODS, Learning, keep_scores, learning_start
from supermask.networks import architecture
from supermask.records import inverted
from supermask.rng import streams
from supermask.ticket import Parent, Step, keep_counts, next_masks, next_start
from supermask.types import Curve, Outcome, State

TAKE = Step(learned, "rewind", "zero", {}, "threshold")


def parent_that_learned(learning: Learning, spread: float = 1.0) -> Parent:
    """Logits at random, a run that ended there."""
    start = learning_start(learning, LAYERS, 0, None, None, streams(0))
    rng = np.random.default_rng(0)
    logits = {n: torch.from_numpy(rng.normal(0, spread, w.shape).astype(np.float32)) for n, w in start.weights.items()}
    end = inverted(replace(start.state, logits=logits), learning)
    return Parent(start, {"end": end}, MASKABLES, lambda m: {n: keep_scores(learning, t) for n, t in m.items()})


def taken(parent: Parent, **changes: Any) -> tuple[dict[str, Tensor], Step]:
    step = step_with(TAKE, **changes)
    return next_masks(parent, step, level_streams(2)), step


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_keeps_exactly_what_is_above_it(method: Any) -> None:
    """However few or many; by the method's own definition."""
    parent = parent_that_learned(Learning(method, density=0.3, threshold=0.5))
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
    parent = parent_that_learned(Learning())
    masks = {n: torch.arange(m.numel()).reshape(m.shape) % 2 == 0 for n, m in parent.start.masks.items()}
    found, _ = taken(replace(parent, start=replace(parent.start, masks=masks)))
    for name, mask in found.items():
        assert torch.equal(mask, masks[name] & (parent.points["end"].logits[name] > 0))


def test_nothing_is_counted_under_a_threshold() -> None:
    with pytest.raises(AssertionError, match="a threshold keeps what is above it"):
        keep_counts(parent_that_learned(Learning()), TAKE)


@pytest.mark.parametrize("method", METHODS)
def test_the_certificate_of_a_mask_that_was_taken(method: Any) -> None:
    """Holds; and one weight more or less than the logits say is a wrong count."""
    learning = Learning(method)
    parent, point = parent_that_learned(learning), "end" if method == "signed" else "start"
    step = step_with(TAKE, w_init=point, rewind_to=point)
    start = next_start(parent, step, level_streams(2))
    outcome = Outcome("finished", start.state, {}, Curve(), {})
    assert certify(MASKABLES, start, outcome, parent, step).held
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
    assert set(KNOWN) - set(CRITERIA) == {"learned"} and KNOWN["learned"] is learned
    with pytest.raises(AssertionError):
        next_masks(parent_of(dense(), train(dense(), 0)), TAKE, level_streams(1))


@pytest.mark.parametrize("mask1", MASK1_ACTIONS)
@pytest.mark.parametrize("before", [True, False])
def test_the_factor_of_a_second_level(mask1: str, before: bool) -> None:
    """In all (weights in layer / kept), whether or not the level before carries (weights in layer / alive) already."""
    first = Step(CRITERIA["large_final"], "rewind", "zero", RATES, rescaled=before)
    level_1 = next_start(parent_of(dense(), train(dense(), 0)), first, level_streams(1))
    parent = parent_of(level_1, train(level_1, 1))
    plain = Step(CRITERIA["movement"], mask1, "zero", RATES)
    rescaled = replace(plain, rescaled=True, rescaled_before=before)
    one, other = (next_start(parent, step, level_streams(2)) for step in (plain, rescaled))
    outcome = train(other, 2)
    assert certify(MASKABLES, other, outcome, parent, rescaled).held
    wrong = certify(MASKABLES, other, outcome, parent, replace(rescaled, rescaled_before=not before))
    assert wrong.held == (mask1 not in CARRIES_W_INIT)
    for name, mask in one.masks.items():
        carried = int(level_1.masks[name].sum()) if mask1 in CARRIES_W_INIT and before else mask.numel()
        factor = np.float32(carried / int(mask.sum()))
        np.testing.assert_allclose(other.weights[name].numpy(), one.weights[name].numpy() * factor, rtol=1e-6)
        if mask1 == "rewind":
            whole = dense().weights[name].numpy() * mask.numpy() * np.float32(mask.numel() / int(mask.sum()))
            np.testing.assert_allclose(other.weights[name].numpy(), whole, rtol=1e-6)


def test_a_mask_that_inverts_is_at_the_end_what_it_inverted() -> None:
    state = State({"a": torch.tensor([1.0, 2.0, -3.0])}, {}, {"a": torch.tensor([-0.5, 0.5, -0.001])})
    assert inverted(state, Learning("signed")).weights["a"].tolist() == [-1, 2, 3]
    for method in ("bernoulli", "rounded", "edge_popup"):
        assert inverted(state, Learning(method)).weights["a"].tolist() == [1, 2, -3]  # type: ignore[arg-type]


# --- which engine learns it ---


@pytest.mark.parametrize("method", METHODS)
def test_the_sparse_engine_learns_what_it_can(method: Any) -> None:
    fc, conv = architecture("fc-20", (1, 8, 8), 10), architecture("conv2", (3, 32, 32), 10)
    learning = Learning(method)
    assert choose("reference", fc, "cpu", learning) == Choice("reference", "it was asked for")
    found = choose("auto", fc, "cpu", learning)
    if method in ("bernoulli", "rounded"):
        assert found == Choice("sparse", "auto: it learns masks of fully connected layers faster")
        obstacle = "learns masks of fully connected layers alone"
    else:
        obstacle = "learns masks by bernoulli and rounded alone"
        assert found == Choice("reference", f"auto: the sparse engine {obstacle}")
        with pytest.raises(UserError, match=f"{obstacle}: use --engine auto"):
            choose("sparse", fc, "cpu", learning)
    assert choose("auto", conv, "cpu", learning).engine == "reference"
    with pytest.raises(UserError, match="the sparse engine learns masks"):
        choose("sparse", conv, "cpu", learning)
    assert choose("auto", fc, "cuda", learning).engine == "stacked"
