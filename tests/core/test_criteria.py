"""Criteria: a literal table of the kept weights of a six-weight layer per criterion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import GRADIENT, W_FINAL, W_INIT, eighths, kept_at, six

from supermask.core.criteria import CRITERIA, NEEDS_GRADIENT
from supermask.core.masks import keep_top, prune_count
from supermask.core.rng import child_streams, random_stream

# The six weights (tiny.py) in eighths, with derived values:
#
#   weight                      0     1     2     3     4     5
#   w_i                         4    -5     3    -2     1     6
#   w_f                         7    -1    -4    -8     3    -5
#   abs(w_f) - abs(w_i)         3    -4     1     6     2    -1
#   abs(w_f - w_i)              3     4     7     6     2    11
#   same sign                 yes   yes    no   yes   yes    no
#   rank of abs(w_i)            4     5     3     2     1     6
#   rank of abs(w_f)            5     1     3     6     2     4
#   min of the two ranks        4     1     3     2     1     4
#   max of the two ranks        5     5     3     6     2     6
#   dL/dw                       1    -2     5     7    -6    1/2
#   abs(dL/dw * w_i)            4    10    15    14     6     3

TABLE: dict[str, tuple[str, str, str, str]] = {
    # criterion -> weights that are always kept, weights of which chance keeps the rest:
    #                               3 of 6      or       4 of 6
    "large_final": ("0 3 5", "", "0 2 3 5", ""),
    "small_final": ("1 2 4", "", "1 2 4 5", ""),
    "large_init": ("0 1 5", "", "0 1 2 5", ""),
    "small_init": ("2 3 4", "", "0 2 3 4", ""),
    "large_init_large_final": ("0 2 5", "", "0 2 3 5", ""),
    "small_init_small_final": ("2 4", "0 1", "0 1 2 4", ""),
    "magnitude_increase": ("0 3 4", "", "0 2 3 4", ""),
    "movement": ("2 3 5", "", "1 2 3 5", ""),
    "random": ("", "0 1 2 3 4 5", "", "0 1 2 3 4 5"),
    "large_final_same_sign": ("0 3 4", "", "0 1 3 4", ""),
    "large_final_diff_sign": ("2 5", "0 1 3 4", "2 5", "0 1 3 4"),
    "magnitude_increase_same_sign": ("0 3 4", "", "0 1 3 4", ""),
    "magnitude_increase_diff_sign": ("2 5", "0 1 3 4", "2 5", "0 1 3 4"),
    "magnitude_increase_same_sign_literal": ("0 3 4", "", "0 3 4", "2 5"),
    "snip": ("1 2 3", "", "1 2 3 4", ""),
    "grad": ("2 3 4", "", "1 2 3 4", ""),
}


def to_set(text: str) -> set[int]:
    return {int(place) for place in text.split()}


def kept_set(criterion: str, count: int, seed: int = 0) -> set[int]:
    layer = six()
    scores = CRITERIA[criterion](layer, random_stream(seed, "score"))
    mask = keep_top({"six": scores}, {"six": layer.alive}, {"six": count}, child_streams(seed))["six"]
    return set(np.flatnonzero(mask.numpy()).tolist())


def test_table_lists_every_criterion_in_order() -> None:
    assert list(TABLE) == list(CRITERIA)
    assert set(CRITERIA) >= NEEDS_GRADIENT


@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_kept_weights_of_six(criterion: str, rate: float) -> None:
    count = 6 - prune_count(6, rate)
    sure, by_chance = map(to_set, TABLE[criterion][:2] if count == 3 else TABLE[criterion][2:])
    found = [kept_set(criterion, count, seed) for seed in range(60)]
    assert all(len(kept) == count and sure <= kept <= sure | by_chance for kept in found)
    assert set.union(*found) == sure | by_chance
    assert set.intersection(*found) == sure


@pytest.mark.parametrize(
    ("criterion", "eighths_or_ranks"),
    {
        "large_final": [7, 1, 4, 8, 3, 5],
        "small_final": [-7, -1, -4, -8, -3, -5],
        "large_init": [4, 5, 3, 2, 1, 6],
        "small_init": [-4, -5, -3, -2, -1, -6],
        "magnitude_increase": [3, -4, 1, 6, 2, -1],
        "movement": [3, 4, 7, 6, 2, 11],
        "random": [0, 0, 0, 0, 0, 0],
        "large_final_same_sign": [7, 1, 0, 8, 3, 0],
        "large_final_diff_sign": [0, 0, 4, 0, 0, 5],
        "magnitude_increase_same_sign": [3, -4, -np.inf, 6, 2, -np.inf],
        "magnitude_increase_diff_sign": [-np.inf, -np.inf, 1, -np.inf, -np.inf, -1],
        "grad": [1, 2, 5, 7, 6, 0.5],
    }.items(),
)
def test_scores(criterion: str, eighths_or_ranks: list[float]) -> None:
    scores = CRITERIA[criterion](six(), random_stream(0))
    assert scores.shape == (2, 3)
    assert torch.equal(scores, eighths(eighths_or_ranks))


def test_scores_from_ranks_and_products() -> None:
    sixths = [CRITERIA[c](six(), random_stream(0)) * 6 for c in ("large_init_large_final", "small_init_small_final")]
    assert sixths[0].flatten().tolist() == pytest.approx([4, 1, 3, 2, 1, 4])
    assert sixths[1].flatten().tolist() == pytest.approx([-5, -5, -3, -6, -2, -6])
    assert (CRITERIA["snip"](six(), random_stream(0)) * 64).flatten().tolist() == [4, 10, 15, 14, 6, 3]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_do_not_modify_their_inputs(criterion: str) -> None:
    layer = six()
    CRITERIA[criterion](layer, random_stream(0)).add_(1)
    assert torch.equal(layer.w_init, eighths(W_INIT)) and torch.equal(layer.w_final, eighths(W_FINAL))
    assert layer.gradient is not None and torch.equal(layer.gradient, eighths(GRADIENT))
    assert layer.alive.all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_pruned_weights_do_not_change_scores_of_others(criterion: str) -> None:
    """The frozen values of pruned weights do not influence the scores of alive weights."""
    layer = replace(six(), alive=kept_at([0, 1, 3, 4]))
    other = replace(layer, w_init=layer.w_init.clone(), w_final=layer.w_final.clone())
    for dead in (2, 5):
        other.w_init.view(-1)[dead], other.w_final.view(-1)[dead] = 50.0, -70.0
    one, two = (CRITERIA[criterion](x, random_stream(0))[layer.alive] for x in (layer, other))
    assert torch.equal(one, two)


def test_large_init_large_final_prunes_equal_shares_by_both_conditions() -> None:
    """Definition by search: the alpha at which each condition alone prunes the same number of weights."""
    rng = np.random.default_rng(1)
    w_i, w_f = np.abs(rng.normal(size=200)), np.abs(3 * rng.normal(size=200))
    layer = replace(
        six(), w_init=torch.from_numpy(w_i), w_final=torch.from_numpy(w_f), alive=torch.ones(200, dtype=torch.bool)
    )
    for threshold in range(1, 200):
        pruned_each = threshold  # pruned by each condition alone: the smallest w_i, and the smallest w_f
        survivors = (w_i > np.sort(w_i)[pruned_each - 1]) & (w_f > np.sort(w_f)[pruned_each - 1])
        count = int(survivors.sum())
        lowest = CRITERIA["large_init_large_final"](layer, random_stream(0)).numpy()
        assert set(np.flatnonzero(survivors)) == set(np.flatnonzero(lowest > threshold / 200 + 1e-9)), (
            threshold,
            count,
        )


# --- cases in which the authors' code differs ---


def test_shrunk_weight_of_the_same_sign_outranks_one_of_another_sign() -> None:
    """Weight 1 shrank and kept its sign; 2 grew and changed it. With score 0, weight 2 or 5 is kept instead."""
    assert kept_set("magnitude_increase_same_sign", 4) == {0, 1, 3, 4}
    literal = CRITERIA["magnitude_increase_same_sign_literal"](six(), random_stream(0)).flatten()
    assert literal[1] < literal[2] == literal[5] == 0
    assert kept_set("magnitude_increase_same_sign_literal", 4) in ({0, 2, 3, 4}, {0, 3, 4, 5})


@pytest.mark.parametrize("criterion", ["movement", "magnitude_increase"])
def test_weights_of_dead_pixels_tie_at_zero(criterion: str) -> None:
    """Weights of inputs that are always black never move, so ties decide which of them are kept."""
    rng = np.random.default_rng(0)
    w_init = torch.from_numpy(rng.normal(size=(8, 30)).astype(np.float32))
    w_final = w_init.clone()
    w_final[:, 5:] *= 1.5  # weights of other pixels grow
    layer = replace(six(), w_init=w_init, w_final=w_final, alive=torch.ones(8, 30, dtype=torch.bool))
    scores = {"fc1": CRITERIA[criterion](layer, random_stream(0))}
    assert int((scores["fc1"] == 0).sum()) == 40
    times_kept = torch.zeros(8, 5)
    for seed in range(200):
        mask = keep_top(scores, {"fc1": layer.alive}, {"fc1": 220}, child_streams(seed))["fc1"]
        assert mask[:, 5:].all()
        times_kept += mask[:, :5]
    assert int(times_kept.sum()) == 200 * 20
    assert times_kept.min() > 60 and times_kept.max() < 140  # 100 expected, standard deviation 7


@pytest.mark.parametrize("criterion", sorted(NEEDS_GRADIENT))
def test_missing_gradient_is_an_internal_error(criterion: str) -> None:
    with pytest.raises(AssertionError):
        CRITERIA[criterion](replace(six(), gradient=None), random_stream(0))
