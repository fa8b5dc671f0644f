"""Exact sign-flip test and exact bootstrap median, against full enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask.analysis.stats import bootstrap_median, exact_test_limit, min_sign_flip_p, sign_flip_p


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=10))
def test_sign_flip_p_agrees_with_enumeration(steps: list[int]) -> None:
    """Integers: no rounding errors and many ties."""
    patterns = itertools.product((-1, 1), repeat=len(steps))
    hits = sum(abs(sum(s * d for s, d in zip(signs, steps, strict=True))) >= abs(sum(steps)) for signs in patterns)
    assert sign_flip_p([step / 100 for step in steps]) == hits / 2 ** len(steps)
    assert sign_flip_p([step * 1e300 for step in steps]) == hits / 2 ** len(steps)


@pytest.mark.parametrize("n", range(1, 41))
def test_min_p_is_that_of_pairs_that_all_differ_in_one_direction(n: int) -> None:
    assert sign_flip_p([0.1 + 0.01 * i for i in range(n)]) == min_sign_flip_p(n) == 2 / 2**n


def test_forty_equal_pairs_agree_with_the_binomial_test() -> None:
    """40 equal sizes, 25 of them up: a binomial test."""
    expected = sum(math.comb(40, k) for k in range(41) if abs(2 * k - 40) >= 10) / 2**40
    assert sign_flip_p([0.3] * 25 + [-0.3] * 15) == expected


def test_monte_carlo_p_is_repeatable() -> None:
    differences = [0.3] * 38 + [-0.3] * 22
    expected = sum(math.comb(60, k) for k in range(61) if abs(2 * k - 60) >= 16) / 2**60
    found = sign_flip_p(differences)
    assert found == pytest.approx(expected, abs=0.0025)  # five standard errors
    assert found == sign_flip_p(differences)
    assert sign_flip_p([0.3] * 60) == 1 / 200_001


def test_no_difference_at_all() -> None:
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.2, -0.2]) == 1.0


def test_exact_test_limit_of_few_seeds() -> None:
    assert exact_test_limit(5) == (
        "With 5 paired seeds an exact sign-flip test cannot give p below 0.0625, so no difference could be significant "
        "(p < 0.05) by it; 6 seeds can reach 0.03125."
    )
    assert exact_test_limit(1).startswith("With 1 paired seed an")
    assert all(exact_test_limit(n) for n in range(1, 6))
    assert [exact_test_limit(n) for n in (0, 6, 7, 100)] == [""] * 4
    with pytest.raises(ValueError, match="at least one"):
        min_sign_flip_p(0)


def medians_by_multisets(values: list[float]) -> Counter[float]:
    """Resamples by their counts of each value; a multinomial coefficient gives the number of orders."""
    n, medians = len(values), Counter[float]()
    for chosen in itertools.combinations_with_replacement(range(n), n):
        orders = math.factorial(n)
        for times in Counter(chosen).values():
            orders //= math.factorial(times)
        medians[(values[chosen[(n - 1) // 2]] + values[chosen[n // 2]]) / 2] += orders
    return medians


@pytest.mark.parametrize("n", [2, 3, 6, 7, 8, 9])
@pytest.mark.parametrize("ties", [False, True])
def test_median_agrees_with_enumerated_resamples(n: int, ties: bool) -> None:
    values = sorted(np.random.default_rng(n).integers(0, 4 if ties else 1000, n).tolist())
    medians = medians_by_multisets(values)
    assert sum(medians.values()) == n**n

    def at_most(bound: float) -> Fraction:
        return Fraction(sum(count for median, count in medians.items() if median <= bound), n**n)

    def at_least(bound: float) -> Fraction:
        return Fraction(sum(count for median, count in medians.items() if median >= bound), n**n)

    found = bootstrap_median([float(value) for value in values])
    assert found.low == min(median for median in medians if at_most(median) >= Fraction(1, 40))
    assert found.high == max(median for median in medians if at_least(median) >= Fraction(1, 40))


@pytest.mark.parametrize("n", [15, 16, 40, 101])
def test_median_agrees_with_drawn_resamples(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.normal(97, 1, n)
    medians = np.median(values[rng.integers(0, n, (20_000, n))], axis=1)
    found = bootstrap_median(values.tolist())
    assert found.low is not None
    assert found.high is not None
    # 0.025 -+ five standard errors of the drawing
    assert np.mean(medians < found.low) < 0.025 + 0.0055
    assert np.mean(medians <= found.low) > 0.025 - 0.0055
    assert np.mean(medians > found.high) < 0.025 + 0.0055
    assert np.mean(medians >= found.high) > 0.025 - 0.0055


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_median_changes_sign_with_the_values_and_ignores_their_order(values: list[float]) -> None:
    found, mirrored = bootstrap_median(values), bootstrap_median([-value for value in values[::-1]])
    assert found.median == -mirrored.median
    if len(values) == 1:
        assert (found.low, found.high) == (None, None)
    else:
        assert mirrored.low is not None
        assert mirrored.high is not None
        assert (found.low, found.high) == (-mirrored.high, -mirrored.low)


def test_median_interval_of_five_runs_is_their_range() -> None:
    found = bootstrap_median([96.0, 99.0, 97.0, 97.5, 98.0])
    assert (found.median, found.low, found.high) == (97.5, 96.0, 99.0)
    assert bootstrap_median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).low == 2.0
