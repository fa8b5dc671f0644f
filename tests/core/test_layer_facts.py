"""Facts of layers: ties drawn at random, sign changes and shrinkage, against loops over single weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny import RATES, chain, dense, level_streams, parent_of, train
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.layer_facts import count_ties_drawn, count_weight_changes
from supermask.core.masks import count_random_ties, keep_top
from supermask.core.pruning import ParentRun, PruneStep, compute_scores, prune_and_reset
from supermask.core.rng import child_streams
from supermask.core.types import InitialState, NetworkState


def ties_by_hand(scores: list[float], alive: list[bool], kept: list[bool]) -> int:
    """Kept weights that another alive weight of the same score could have been drawn for."""
    lowest = min(score for score, is_kept in zip(scores, kept, strict=True) if is_kept)
    is_tied = [a and score == lowest for score, a in zip(scores, alive, strict=True)]
    left_out = any(tied and not k for tied, k in zip(is_tied, kept, strict=True))
    return sum(tied and k for tied, k in zip(is_tied, kept, strict=True)) if left_out else 0


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4))
def test_ties_are_those_counted_by_hand(seed: int, size: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    scores = {name: torch.tensor(rng.integers(0, values, size), dtype=torch.float32) for name in "ab"}
    alive = {name: torch.tensor(rng.random(size) < 0.8) for name in "ab"}
    keep = {name: int(rng.integers(0, int(alive[name].sum()) + 1)) for name in "ab"}
    masks = keep_top(scores, alive, keep, child_streams(seed))
    ties = count_random_ties(scores, alive, masks)
    for name in "ab":
        if keep[name]:
            assert ties[name] == ties_by_hand(scores[name].tolist(), alive[name].tolist(), masks[name].tolist())
        else:
            assert ties[name] == 0
    total = sum(keep.values())
    masks = keep_top(scores, alive, total, child_streams(seed))
    joined = [[value for name in "ab" for value in part[name].tolist()] for part in (scores, alive, masks)]
    expected = ties_by_hand(*joined) if total else 0
    assert sum(count_random_ties(scores, alive, masks, "global").values()) == expected


def test_the_random_criterion_draws_all_and_the_last_of_a_plateau_draws_nothing() -> None:
    alive = {"a": torch.ones(5, dtype=torch.bool)}
    scores = {"a": torch.tensor([3.0, 1.0, 1.0, 0.0, 0.0])}
    for keep, drawn in ((1, 0), (2, 1), (3, 0), (4, 1), (5, 0)):
        masks = keep_top(scores, alive, {"a": keep}, child_streams(0))
        assert count_random_ties(scores, alive, masks) == {"a": drawn}
    random = {"a": torch.zeros(5)}
    assert count_random_ties(random, alive, keep_top(random, alive, {"a": 3}, child_streams(0))) == {"a": 3}
    assert count_random_ties(random, alive, alive, "threshold") == {"a": 0}


def ties_of(parent: ParentRun, step: PruneStep) -> dict[str, int]:
    scores, start = compute_scores(parent, step, level_streams(1)), prune_and_reset(parent, step, level_streams(1))
    return count_ties_drawn(scores, start.masks, parent, step)


@pytest.mark.parametrize(
    ("criterion", "still", "drawn"), [("large_final", 0, False), ("movement", 15, True), ("random", 0, True)]
)
def test_weights_that_never_moved_are_drawn_at_random_under_movement(criterion: str, still: int, drawn: bool) -> None:
    parent = parent_of(dense(), train(dense(), 0, still=still))
    step = PruneStep(criterion, "rewind", "zero", RATES)
    ties = ties_of(parent, step)
    assert (ties["fc1.weight"] > 0) == drawn
    assert set(ties) == set(dense().masks)


def test_tensors_that_are_never_pruned_draw_no_ties() -> None:
    parent = parent_of(dense(), train(dense(), 0))
    for scope in ("layer", "global"):
        step = PruneStep("random", "rewind", "zero", RATES, scope=scope, exclude=("fc1.weight",))
        ties = ties_of(parent, step)
        kept = int(prune_and_reset(parent, step, level_streams(1)).masks["fc2.weight"].sum())
        assert ties == {"fc1.weight": 0, "fc2.weight": kept}


def test_changes_are_those_counted_weight_by_weight() -> None:
    for start, result in chain([PruneStep("large_final", "rewind", "zero", RATES)] * 2):
        facts = count_weight_changes(start, result.end)
        for name, mask in start.masks.items():
            pairs = [
                (float(before), float(after))
                for before, after, kept in zip(
                    start.weights[name].flatten(), result.end.weights[name].flatten(), mask.flatten(), strict=True
                )
                if kept
            ]
            assert facts[name] == {
                "sign_changed": sum(before < 0 < after or after < 0 < before for before, after in pairs),
                "shrunk": sum(abs(after) < abs(before) for before, after in pairs),
            }
            assert 0 < facts[name]["sign_changed"] < len(pairs)


def test_a_weight_that_starts_at_zero_has_no_sign_to_change() -> None:
    weights, end = torch.tensor([0.0, 1.0, -1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    start = InitialState({"a": weights}, {"a": torch.tensor([True, True, True, False])}, {})
    assert count_weight_changes(start, NetworkState({"a": end}, {})) == {"a": {"sign_changed": 1, "shrunk": 1}}
