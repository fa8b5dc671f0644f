"""Formulas of learned masks: base weights, initial logits, and masks from logits."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import LAYERS, MASKABLES, RATES, dense, level_streams, parent_of, train
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from supermask.core.criteria import CRITERIA
from supermask.core.learned_masks import (
    METHODS,
    SIGMOID,
    MaskLearning,
    base_weights,
    edge_popup_threshold,
    expected_kept_shares,
    heuristic_logits,
    initial_mask_state,
    inversion_signs,
    mask_scores,
    probabilities,
    threshold_masks,
)
from supermask.core.pruning import ParentRun, PruneStep, compute_masks
from supermask.core.rng import child_streams, random_stream
from supermask.core.types import InitialState, PrunableTensor
from supermask.networks.sequential import initial_state, prunable_tensors

KERNEL = MASKABLES["fc1.weight"]


def initial_state_of(
    learning: MaskLearning, seed: int = 0, parent: ParentRun | None = None, step: PruneStep | None = None
) -> InitialState:
    return initial_mask_state(
        learning, prunable_tensors(LAYERS), initial_state(LAYERS, seed), seed, parent, step, level_streams(1, seed)
    )


# --- base weights ---


@pytest.mark.parametrize("multiplier", [1.0, 2.0, 0.3])
def test_base_weights_are_w_i_or_constants(multiplier: float) -> None:
    """float32 values times the multiplier; biases are 0 and no weight is pruned."""
    w_init, s = dense().weights["fc1.weight"].numpy(), np.float32(KERNEL.std)
    assert pytest.approx((2 / 50) ** 0.5) == s
    for base, values in (("init", w_init), ("signed_constant", np.sign(w_init) * s)):
        start = initial_state_of(MaskLearning(weights=base, multiplier=multiplier))  # type: ignore[arg-type]
        assert np.array_equal(start.weights["fc1.weight"].numpy(), values * np.float32(multiplier))
    start = initial_state_of(MaskLearning(weights="constant", multiplier=multiplier))
    values = start.weights["fc1.weight"].numpy()
    assert set(np.abs(values).ravel()) == {s * np.float32(multiplier)}
    assert 0.4 < (values > 0).mean() < 0.6
    assert 0.4 < (np.sign(values) == np.sign(w_init)).mean() < 0.6
    assert start.weights.keys() == start.logits.keys() == start.masks.keys() == MASKABLES.keys()
    assert all(bool(mask.all()) for mask in start.masks.values())
    assert not any(bool(bias.any()) for bias in start.unmasked.values()) and start.first_iteration == 0


def test_random_signs_come_from_their_own_stream() -> None:
    """The signs depend on seed and layer only."""
    expected = 2 * random_stream(0, "supermask", "signs", "fc1.weight").integers(0, 2, size=(30, 20)) - 1
    learning = MaskLearning(weights="constant")
    found = initial_state_of(learning).weights["fc1.weight"]
    assert np.array_equal(np.sign(found.numpy()), expected)
    assert torch.equal(initial_state_of(replace(learning, method="signed")).weights["fc1.weight"], found)
    assert not torch.equal(initial_state_of(learning, seed=1).weights["fc1.weight"], found)


def test_base_weight_of_a_zero_weight() -> None:
    zero = torch.zeros(KERNEL.shape)
    assert not base_weights(MaskLearning(weights="signed_constant"), KERNEL, zero, child_streams(0)).any()
    assert base_weights(MaskLearning(weights="constant"), KERNEL, zero, child_streams(0)).all()


# --- initial logits ---


@pytest.mark.parametrize("method", METHODS)
def test_initial_logits(method: Any) -> None:
    """Constant for methods with a sigmoid, else draws from the layer's initializer."""
    start = initial_state_of(MaskLearning(method, start_logit=-0.7))
    for name, logits in start.logits.items():
        assert logits.dtype == torch.float32 and logits.shape == MASKABLES[name].shape
        if method in SIGMOID:
            assert torch.equal(logits, torch.full(logits.shape, -0.7))
        else:
            assert logits.std().item() == pytest.approx(MASKABLES[name].std, rel=0.15)
            assert logits.unique().numel() == logits.numel()
            assert not torch.equal(logits, start.weights[name])
    again, other = initial_state_of(MaskLearning(method)), initial_state_of(MaskLearning(method), seed=1)
    if method not in SIGMOID:
        assert torch.equal(again.logits["fc1.weight"], start.logits["fc1.weight"])
        assert not torch.equal(other.logits["fc1.weight"], start.logits["fc1.weight"])


def heuristic_step(criterion: str, levels: int = 2) -> tuple[ParentRun, PruneStep]:
    """Return a trained dense run, part of whose weights never moved, and a one-shot pruning step."""
    start = dense()
    result = train(start, 0, still=6)
    return parent_of(start, result), PruneStep(CRITERIA[criterion], "rewind", "zero", RATES, levels=levels)


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_logits_from_a_heuristic_mask(criterion: str, levels: int) -> None:
    """+c where a ticket of that criterion keeps, with the same ties; -c elsewhere."""
    parent, step = heuristic_step(criterion, levels)
    start = initial_state_of(MaskLearning(confidence=3.0), 0, parent, step)
    masks = compute_masks(parent, step, level_streams(1))
    for name, kept in masks.items():
        assert torch.equal(start.logits[name], torch.where(kept, 3.0, -3.0))
    exact = {1: (420, 240), 2: (294, 192), 4: (144, 123)}[levels]
    assert tuple(int((start.logits[n] > 0).sum()) for n in MASKABLES) == exact
    assert torch.equal(start.weights["fc1.weight"], dense().weights["fc1.weight"])


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_graded_logits_follow_the_ranks_of_scores(criterion: str, levels: int) -> None:
    """Above 0 where the mask keeps, in the order of the scores, over a range of 2 c."""
    parent, step = heuristic_step(criterion, levels)
    start = initial_state_of(MaskLearning(confidence=3.0, graded=True), 0, parent, step)
    masks, layers = compute_masks(parent, step, level_streams(1)), parent.layers(step)
    for name, kept in masks.items():
        logits = start.logits[name]
        assert logits.dtype == torch.float32
        assert torch.equal(logits > 0, kept)
        assert float(logits.max() - logits.min()) < 6
        scores = step.criterion(layers[name], level_streams(1)("score", name)).flatten()
        order = scores.argsort(stable=True)
        rising, by_score = logits.flatten()[order], scores[order]
        higher = by_score[1:] > by_score[:-1]
        assert bool((rising[1:] > rising[:-1])[higher].all())
        same = ~higher & (kept.flatten()[order][1:] == kept.flatten()[order][:-1])
        assert bool((rising[1:] == rising[:-1])[same].all())


def test_graded_logits_by_hand() -> None:
    """Six weights with ranks 1/6 to 1, three kept: 2 c (rank - 1/2). Tied weights share their mean rank."""
    name = "fc.weight"
    scores = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.6, 0.3]])
    found = graded_logits(scores, 3)[name]
    torch.testing.assert_close(found, 4 * torch.tensor([[5, 1, 4], [2, 6, 3]]) / 6 - 2)
    tied = graded_logits(torch.tensor([[0.5, 0.1, 0.5], [0.2, 0.6, 0.5]]), 3)[name]
    # Two of the three tied weights are kept, with ranks 4 and 5 of 6. The third has rank 3, so its logit is 0.
    assert sorted(tied.flatten().tolist()) == pytest.approx([-4 / 3, -2 / 3, 0, 1, 1, 2])


def graded_logits(scores: torch.Tensor, keep: int) -> dict[str, torch.Tensor]:
    name = "fc.weight"
    start = InitialState({name: scores}, {name: torch.ones(scores.shape, dtype=torch.bool)}, {})
    parent = ParentRun(start, {"end": start.state}, {name: PrunableTensor(name, (2, 3), "hidden")})
    step = PruneStep(lambda layer, rng: layer.w_final, "rewind", "zero", {"hidden": 1 - keep / 6})
    return heuristic_logits(MaskLearning(confidence=2.0, graded=True), parent, step, level_streams(1))


# --- masks from logits ---

LOGITS = npst.arrays(np.float32, (3, 7), elements=st.floats(-4, 4, width=32))


@pytest.mark.slow
@given(LOGITS, st.sampled_from(list(METHODS)), st.floats(0.05, 0.95), st.floats(0.01, 2))
def test_mask_keeps_scores_above_zero(m: Any, method: Any, density: float, threshold: float) -> None:
    """Mask, scores and probabilities of every method, against the method's definition."""
    learning = MaskLearning(method, density=density, threshold=threshold)
    logits = torch.from_numpy(m)
    mask = threshold_masks(learning, {"a": logits}, {"a": logits > -9})["a"].numpy()
    assert np.array_equal(mask, (mask_scores(learning, logits) > 0).numpy())
    p = probabilities(learning, logits).numpy()
    assert np.array_equal(mask, p > 0.5) or method == "bernoulli"
    if method in SIGMOID:
        assert np.array_equal(mask, m > 0)
        assert np.array_equal(mask, p > 0.5) or np.abs(m[mask != (p > 0.5)]).max() < 1e-6
    elif method == "edge_popup":
        keep = min(max(round(density * 21), 1), 20)
        cut = np.sort(m.ravel())[20 - keep]
        assert np.array_equal(mask, m > cut) and mask.sum() <= keep
        assert mask.sum() == keep or (m == cut).sum() > 1
    else:
        assert np.array_equal(mask, (m > np.float32(threshold)) | (m < -np.float32(threshold)))
        assert np.array_equal(np.sign(m), inversion_signs(learning, logits).numpy())  # type: ignore[union-attr]
    if method == "bernoulli":
        np.testing.assert_allclose(p, 1 / (1 + np.exp(-m.astype(np.float64))), rtol=1e-6)
    else:
        assert set(p.ravel()) <= {0, 1}
    if method != "signed":
        assert inversion_signs(learning, logits) == 1


@pytest.mark.parametrize(("density", "kept"), [(0.001, 1), (0.1, 2), (0.5, 10), (0.52, 10), (0.54, 11), (0.999, 19)])
def test_edge_popup_count(density: float, kept: int) -> None:
    """At least one weight and never all; 0.52 * 20 = 10.4 rounds to 10."""
    logits = torch.arange(20.0)[torch.from_numpy(np.random.default_rng(0).permutation(20))].reshape(4, 5)
    assert int((logits > edge_popup_threshold(logits, density)).sum()) == kept


def test_logit_at_the_threshold_is_pruned() -> None:
    for method, logit in (("bernoulli", 0.0), ("rounded", 0.0), ("signed", 0.01), ("signed", -0.01)):
        logits, start = {"a": torch.full((2, 2), logit)}, {"a": torch.ones(2, 2, dtype=torch.bool)}
        assert not threshold_masks(MaskLearning(method), logits, start)["a"].any()  # type: ignore[arg-type]


def test_tensors_without_logits_keep_all_weights() -> None:
    learning = MaskLearning(exclude=("stem", "fc?.bias"))
    assert [learning.masks_tensor(name) for name in ("stem.weight", "fc1.bias", "fc1.weight")] == [False, False, True]
    assert [MaskLearning(only=("fc*",)).masks_tensor(name) for name in ("stem.weight", "fc1.weight")] == [False, True]
    start = {"stem.weight": torch.ones(3, dtype=torch.bool), "fc1.weight": torch.ones(1, dtype=torch.bool)}
    logits = {"fc1.weight": torch.zeros(1)}
    masks = threshold_masks(learning, logits, start)
    assert masks["stem.weight"].all() and not masks["fc1.weight"].any()
    assert expected_kept_shares(learning, logits, start) == ({"stem.weight": 1.0, "fc1.weight": 0.5}, 3.5 / 4)


def test_mask_learning_round_trips_through_json() -> None:
    other: dict[str, Any] = {
        "method": "signed", "weights": "constant", "multiplier": 2.0, "rescaled": True, "start_logit": 1.0,
        "confidence": 3.0, "graded": True, "density": 0.3, "threshold": 0.2, "samples": 3, "hardened_at": (0.5, 0.1),
        "others_lr": 0.1, "only": ("fc*",), "exclude": ("fc1", "fc2"),
    }  # fmt: skip
    assert list(other) == [field.name for field in fields(MaskLearning)]
    learning = MaskLearning(**other)
    through_json = json.loads(json.dumps(learning.to_data()))
    assert MaskLearning.from_data(through_json) == learning != MaskLearning()
    assert [MaskLearning(method).num_samples for method in METHODS] == [10, 1, 1, 1]  # type: ignore[arg-type]
