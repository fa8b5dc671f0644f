"""Overlap of masks and chance: enumeration of small masks, SciPy's hypergeometric distribution, Monte Carlo."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from supermask.analysis.masks import ALL_LAYERS, ChanceOverlap, chance_overlap, layer_overlaps, overlap_matrix
from supermask.analysis.masks.overlap import pairwise_overlaps
from supermask.core.rng import random_stream

Counts = list[tuple[int, int, int]]
Bools = NDArray[np.bool_]


def at(places: str, shape: tuple[int, ...] = (2, 3)) -> Bools:
    """The mask that keeps the weights at these digits."""
    mask = np.zeros(int(np.prod(shape)), dtype=bool)
    mask[[int(place) for place in places]] = True
    return mask.reshape(shape)


# --- by hand ---


def test_two_masks_of_six_weights_by_hand() -> None:
    """Kept 1, 2, 3 and 2, 3, 4, 5: two in common, five in either; X - 1 of three draws from three and three."""
    found = layer_overlaps({"a": at("123")}, {"a": at("2345")})["a"]
    assert (found.weights, found.kept_a, found.kept_b, found.kept_both) == (6, 3, 4, 2)
    assert found.jaccard == 2 / 5
    # P(X = 1, 2, 3) = 4, 12, 4 of 20 choices of three, with J = 1/6, 2/5, 3/4.
    assert found.chance.expected == pytest.approx((4 * Fraction(1, 6) + 12 * Fraction(2, 5) + 4 * Fraction(3, 4)) / 20)
    assert (found.chance.low, found.chance.high) == (1 / 6, 3 / 4)
    assert found.chance_position == "within"
    assert not found.nested


def test_the_sum_over_layers_by_hand() -> None:
    """Two layers of two weights, one kept in each by both: X = 0, 1, 2 with probability 1/4, 1/2, 1/4."""
    one = {"a": at("0", (1, 2)), "b": at("0", (1, 2))}
    other = {"a": at("0", (1, 2)), "b": at("1", (1, 2))}
    found = layer_overlaps(one, other)
    assert [found[name].jaccard for name in found] == [1, 0, 1 / 3]
    assert list(found) == ["a", "b", ALL_LAYERS]
    assert found[ALL_LAYERS].chance.expected == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 * 1)
    assert (found[ALL_LAYERS].chance.low, found[ALL_LAYERS].chance.high) == (0, 1)


def test_full_empty_and_nested_masks() -> None:
    empty, full, some, more = at(""), at("012345"), at("12"), at("124")
    for one, other, jaccard in ((empty, empty, 1), (empty, some, 0), (full, some, 1 / 3), (full, full, 1)):
        found = layer_overlaps({"a": one}, {"a": other})[ALL_LAYERS]
        assert found.jaccard == jaccard
        assert found.chance.expected == pytest.approx(jaccard)
        assert (found.chance.low, found.chance.high) == (jaccard, jaccard)
        assert (found.chance_position, found.nested) == ("within", True)
    assert layer_overlaps({"a": some}, {"a": more})["a"].nested


def test_above_and_below_chance() -> None:
    half, rest = np.arange(400).reshape(20, 20) < 200, np.arange(400).reshape(20, 20) >= 190
    assert layer_overlaps({"a": half}, {"a": half})["a"].chance_position == "above"
    assert layer_overlaps({"a": half}, {"a": rest})["a"].chance_position == "below"


def test_chance_among_alive_weights() -> None:
    """Both keep three of weights 1 to 5, with 2 and 3 in common; weight 0, kept by one only, does not count."""
    alive = {"a": at("12345")}
    found = layer_overlaps({"a": at("0123")}, {"a": at("234")}, alive)["a"]
    assert (found.weights, found.kept_a, found.kept_b, found.kept_both) == (5, 3, 3, 2)
    assert found.chance == chance_overlap([(5, 3, 3)])


def test_masks_with_the_same_candidates_are_compared_on_them() -> None:
    alive, full = {"a": at("1234")}, {"a": at("012345")}
    masks = [{"a": at("12")}, {"a": at("23")}, {"a": at("24")}]
    pairs = pairwise_overlaps(masks, [alive, {"a": at("1234")}, full])
    assert {pair: found["a"].weights for pair, found in pairs.items()} == {(0, 1): 4, (0, 2): 6, (1, 2): 6}


def test_masks_of_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="different networks"):
        layer_overlaps({"a": at("1")}, {"b": at("1")})
    with pytest.raises(ValueError, match="different networks"):
        layer_overlaps({"a": at("1")}, {"a": at("1", (3, 2))})


def test_the_matrix_is_symmetric_and_agrees_with_its_pairs() -> None:
    masks = [{"a": at(places), "b": at(places[:1])} for places in ("012", "123", "45")]
    pairs = pairwise_overlaps(masks, [{"a": at("012345"), "b": at("012345")}] * 3)
    found = overlap_matrix(pairs, 3)
    assert list(found) == ["a", "b", ALL_LAYERS]
    for layer, matrix in found.items():
        assert np.array_equal(matrix.jaccard, matrix.jaccard.T)
        assert np.array_equal(np.diag(matrix.jaccard), np.ones(3))
        assert np.isnan(np.diag(matrix.expected)).all()
        for (row, column), pair in pairs.items():
            assert matrix.jaccard[column, row] == pair[layer].jaccard
            assert matrix.high[row, column] == pair[layer].chance.high
            assert matrix.chance_position(row, column) == pair[layer].chance_position


# --- chance, by other means ---


def by_enumeration(layers: Counts) -> dict[Fraction, Fraction]:
    """J -> probability: mask A keeps the first weights of each layer, mask B every possible choice."""
    common = {0: 1}
    for weights, one, other in layers:
        found: dict[int, int] = {}
        for choice in combinations(range(weights), other):
            inside = sum(place < one for place in choice)
            for so_far, ways in common.items():
                found[so_far + inside] = found.get(so_far + inside, 0) + ways
        common = found
    either = sum(one + other for _, one, other in layers)
    total = sum(common.values())
    return {
        Fraction(x, either - x) if either else Fraction(1): Fraction(ways, total) for x, ways in sorted(common.items())
    }


layer_counts = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


@pytest.mark.slow
@given(st.lists(layer_counts, min_size=1, max_size=3))
def test_chance_agrees_with_enumeration(layers: Counts) -> None:
    exact = by_enumeration(layers)
    found = chance_overlap(layers)
    assert found.expected == pytest.approx(float(sum(j * p for j, p in exact.items())), abs=1e-12)
    below = float(sum(p for j, p in exact.items() if float(j) < found.low))
    above = float(sum(p for j, p in exact.items() if float(j) > found.high))
    assert max(below, above) <= 0.025 + 1e-12
    # Neither end could be moved inwards.
    assert below + float(exact[next(j for j in exact if float(j) == found.low)]) >= 0.025 - 1e-12
    assert above + float(exact[next(j for j in exact if float(j) == found.high)]) >= 0.025 - 1e-12


def by_scipy(weights: int, one: int, other: int) -> ChanceOverlap:
    """The distribution over its whole support, by SciPy."""
    x = np.arange(max(0, one + other - weights), min(one, other) + 1)
    law = stats.hypergeom(weights, one, other)
    low, high = law.ppf([0.025, 0.975])
    return ChanceOverlap(
        float(law.pmf(x) @ (x / (one + other - x))), *(float(q / (one + other - q)) for q in (low, high))
    )


@pytest.mark.parametrize(
    ("weights", "one", "other"),
    [(235_200, 152_880, 152_880), (235_200, 3166, 3166), (30_000, 5, 29_000), (1000, 107, 800), (4_000_000, 40, 60)],
)
def test_chance_of_real_layers_agrees_with_scipy(weights: int, one: int, other: int) -> None:
    found, expected = chance_overlap([(weights, one, other)]), by_scipy(weights, one, other)
    assert found.expected == pytest.approx(expected.expected, rel=1e-7)
    assert (found.low, found.high) == (expected.low, expected.high)


@settings(max_examples=20)
@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0, 1))
def test_chance_of_large_counts(weights: int, one: float, other: float) -> None:
    """J is convex in the intersection, so its mean is at least J of the mean intersection (Jensen)."""
    a, b = round(one * weights), round(other * weights)
    found = chance_overlap([(weights, a, b)])
    common = a * b / weights
    assert 0 <= found.low <= found.high <= 1
    assert (common / (a + b - common) if a or b else 1) - 1e-9 <= found.expected <= 1 + 1e-9


@pytest.mark.slow
def test_chance_over_all_layers_agrees_with_random_masks() -> None:
    """20,000 pairs of random masks over three layers: mean within 4 standard errors, 95% within the range."""
    layers, draws = [(500, 100, 130), (80, 60, 20), (30, 3, 25)], 20_000
    rng = random_stream(0, "overlap")
    common = np.zeros(draws)
    for weights, one, other in layers:
        kept = [rng.random((draws, weights)).argsort(axis=1) < count for count in (one, other)]
        common += (kept[0] & kept[1]).sum(axis=1)
    jaccard = common / (sum(one + other for _, one, other in layers) - common)
    found = chance_overlap(layers)
    assert abs(jaccard.mean() - found.expected) < 4 * jaccard.std() / np.sqrt(draws)
    inside = float(np.mean((jaccard >= found.low) & (jaccard <= found.high)))
    assert 0.95 - 0.005 < inside < 0.975
    assert float(np.mean(jaccard < found.low)) < 0.025 + 0.005
    assert float(np.mean(jaccard > found.high)) < 0.025 + 0.005


def test_the_order_of_layers_and_masks_does_not_matter() -> None:
    assert chance_overlap([(10, 3, 4), (20, 5, 6)]) == chance_overlap([(20, 6, 5), (10, 4, 3)])
