"""Tests against a margin or a constant, power, effect sizes, and degenerate cases with few runs."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy import special as scipy_special

from supermask.analysis.stats import (
    Comparison,
    Equivalence,
    bootstrap_median,
    compare,
    compare_to_constant,
    effect_interval,
    equivalence,
    holm,
    mean_interval,
    one_sided_p,
    paired_spread,
    power,
    seeds_needed,
    sign_flip_p,
)
from supermask.analysis.stats.comparison import nct_cdf, t_ppf

accuracies = st.integers(0, 10_000).map(lambda hits: hits / 100)


def seeded(*values: float, first: int = 0) -> dict[int, float]:
    return {first + seed: value for seed, value in enumerate(values)}


OURS, THEIRS = seeded(97.1, 97.4, 96.8, 97.2, 97.6), seeded(96.0, 96.5, 95.9, 96.4, 96.3)
COMPARISONS = {
    "pairs": compare(OURS, THEIRS),
    "other seeds": compare(OURS, seeded(*THEIRS.values(), first=10)),
    "a number": compare_to_constant(OURS, 96.2),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_one_sided_ps_are_halves_of_the_two_sided_one_and_add_up_to_one(name: str) -> None:
    found = COMPARISONS[name]
    assert found.p is not None
    assert found.difference > 0
    assert one_sided_p(found, 0.0, "greater") == pytest.approx(found.p / 2)
    assert one_sided_p(found, 0.0, "less") == pytest.approx(1 - found.p / 2)


@pytest.mark.parametrize("name", COMPARISONS)
def test_p_at_the_bounds_of_the_intervals(name: str) -> None:
    found = COMPARISONS[name]
    assert found.interval95 is not None
    assert one_sided_p(found, found.interval95[0], "greater") == pytest.approx(0.025)
    assert one_sided_p(found, found.interval95[1], "less") == pytest.approx(0.025)
    low, high = equivalence(found, 1.0).interval90 or (0.0, 0.0)
    assert one_sided_p(found, low, "greater") == pytest.approx(0.05)
    assert one_sided_p(found, high, "less") == pytest.approx(0.05)


@given(
    st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8),
    st.floats(0.01, 50),
    st.booleans(),
)
def test_equivalent_is_the_90_percent_interval_inside_the_margin(
    values: list[tuple[float, float]], margin: float, paired: bool
) -> None:
    ours, theirs = seeded(*(a for a, _ in values)), seeded(*(b for _, b in values), first=0 if paired else 50)
    found = equivalence(compare(ours, theirs), margin)
    if found.interval90 is None:
        assert (found.p, found.equivalent) == (None, False)
    elif min(abs(abs(bound) - margin) for bound in found.interval90) > 1e-9:
        assert found.equivalent == (-margin < found.interval90[0] and found.interval90[1] < margin)


def test_not_significant_is_not_equivalent() -> None:
    comparison = compare(seeded(97.0, 91.0, 95.0), seeded(93.0, 96.0, 94.0))
    assert comparison.p is not None
    assert comparison.p > 0.5
    assert not equivalence(comparison, 0.5).equivalent


def test_the_same_runs_on_both_sides_are_equivalent_within_any_margin() -> None:
    same = compare(OURS, OURS)
    assert equivalence(same, 1e-6) == Equivalence(0.0, 1e-6, (0.0, 0.0), True)
    assert [one_sided_p(same, shift, "greater") for shift in (-0.1, 0.0, 0.1)] == [0.0, 0.5, 1.0]
    assert [one_sided_p(same, shift, "less") for shift in (-0.1, 0.0, 0.1)] == [1.0, 0.5, 0.0]
    assert effect_interval(same) == (0.0, 0.0)
    moved = compare(OURS, OURS, margin=0.5)
    assert (moved.t, moved.p, moved.interval95, moved.margin) == (None, None, (0.0, 0.0), 0.5)


CONSTANT_SHIFT = compare(OURS, {seed: value - 0.3 for seed, value in OURS.items()})
NO_TEST = {
    "one pair": compare(seeded(97.0), seeded(96.0)),
    "one run": compare_to_constant(seeded(97.0), 96.0),
    "one run on a side": compare(OURS, seeded(96.0, first=9)),
    "the same difference in every run": CONSTANT_SHIFT,
    "the same value in every run": compare_to_constant(seeded(97.0, 97.0, 97.0), 96.0),
}


@pytest.mark.parametrize("name", NO_TEST)
def test_no_p_without_spread_or_runs(name: str) -> None:
    found = NO_TEST[name]
    assert found.p is None
    assert found.note
    assert one_sided_p(found, -50.0, "greater") is None
    assert equivalence(found, 50.0) == Equivalence(None, 50.0, None, False)
    assert paired_spread(found) is None
    assert effect_interval(found) is None


def test_one_run_against_a_constant_has_no_one_sided_p() -> None:
    assert compare_to_constant(seeded(97.0), 96.0).note == "fewer than two runs"


def test_the_spread_is_that_of_the_differences_or_within_a_treatment() -> None:
    ours, theirs = np.array(list(OURS.values())), np.array(list(THEIRS.values()))
    pooled = math.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / 2)
    assert paired_spread(COMPARISONS["pairs"]) == pytest.approx((ours - theirs).std(ddof=1))
    assert paired_spread(COMPARISONS["other seeds"]) == pytest.approx(pooled)
    assert paired_spread(COMPARISONS["a number"]) == pytest.approx(ours.std(ddof=1))


def noncentral_by_integration(t: float, degrees: float, noncentrality: float) -> float:
    """E[Phi(t S - noncentrality)], S^2 chi-squared / degrees of freedom."""

    def density(s: float) -> float:
        log = degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2) + (degrees - 1) * math.log(s)
        return 2 * math.exp(log - degrees * s * s / 2)

    edge = noncentrality / t
    points = sorted({0.0, *(min(max(edge + k / t, 0.0), 6.0) for k in range(-8, 9)), 6.0})
    return sum(
        integrate.quad(lambda s: scipy_special.ndtr(t * s - noncentrality) * density(s), low, high, epsabs=1e-13)[0]
        for low, high in pairwise(points)
    )


@pytest.mark.parametrize("degrees", [2, 4, 9, 40])
@pytest.mark.parametrize("noncentrality", [-1.9, 0.0, 3.0, 10.0, 40.0, 300.0])
def test_noncentral_t_agrees_with_its_integral(degrees: int, noncentrality: float) -> None:
    for t in (0.5, 2.5, 40.0, 250.0):
        expected = noncentral_by_integration(t, degrees, noncentrality)
        assert nct_cdf(t, degrees, noncentrality) == pytest.approx(expected, abs=1e-10)
        assert nct_cdf(-t, degrees, -noncentrality) == pytest.approx(1 - expected, abs=1e-10)


@pytest.mark.parametrize("degrees", [1, 4, 30])
def test_noncentral_t_is_continuous_where_the_approximation_begins(degrees: int) -> None:
    for quotient in (0.5, 1.0, 2.0):
        below, above = (nct_cdf(nc / quotient, degrees, nc) for nc in (999.999, 1000.001))
        assert below == pytest.approx(above, abs=1e-5)
        assert nct_cdf(-1e6 / quotient, degrees, -1e6) == pytest.approx(1 - above, abs=1e-5)


@pytest.mark.parametrize("name", COMPARISONS)
def test_effect_interval_has_the_noncentral_t_probabilities_at_its_ends(name: str) -> None:
    found = COMPARISONS[name]
    assert found.t is not None
    assert found.degrees_of_freedom is not None
    assert found.standard_error
    assert found.std
    low, high = effect_interval(found) or (0.0, 0.0)
    assert low < (found.hedges_g or 0.0) < high
    unit = found.std / found.standard_error
    for bound, p in ((low, 0.975), (high, 0.025)):
        by_hand = noncentral_by_integration(found.t, found.degrees_of_freedom, bound * unit)
        assert by_hand == pytest.approx(p, abs=1e-9)


def test_effect_interval_changes_sign_with_the_difference() -> None:
    low, high = effect_interval(compare(OURS, THEIRS)) or (0.0, 0.0)
    assert effect_interval(compare(THEIRS, OURS)) == pytest.approx((-high, -low))


@pytest.mark.slow
def test_effect_interval_covers_the_true_value_95_percent_of_the_time() -> None:
    """Pairs that share half of their variance; the true effect size is 1."""
    rng, effect, studies = np.random.default_rng(12), 1.0, 2000
    shared = rng.normal(0, math.sqrt(0.5), (studies, 6))
    theirs, ours = (shared + rng.normal(0, math.sqrt(0.5), (studies, 6)) for _ in range(2))
    covered = 0
    for a, b in zip(ours + effect, theirs, strict=True):
        low, high = effect_interval(compare(seeded(*a.tolist()), seeded(*b.tolist()))) or (0.0, 0.0)
        covered += low < effect < high
    assert 0.93 < covered / studies < 0.97


@pytest.mark.parametrize("n", [2, 3, 5, 8, 30])
@pytest.mark.parametrize("paired", [True, False])
def test_power_for_no_difference_is_alpha(n: int, paired: bool) -> None:
    for alpha in (0.05, 0.01):
        assert power(0.0, 1.0, n, alpha, paired) == pytest.approx(alpha)


def test_power_agrees_with_simulation() -> None:
    rng = np.random.default_rng(13)
    differences = rng.normal(0.5, 0.4, (20_000, 5))
    t = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / math.sqrt(5))
    found = float(np.mean(np.abs(t) > t_ppf(0.975, 4)))
    assert power(0.5, 0.4, 5) == pytest.approx(found, abs=0.015)


@given(st.floats(0.02, 5), st.floats(0.05, 0.99), st.sampled_from([0.05, 0.01, 0.005]), st.booleans())
def test_seeds_needed_is_the_smallest_number(size: float, wanted: float, alpha: float, paired: bool) -> None:
    n = seeds_needed(size, 1.0, wanted, alpha, paired)
    assert n == seeds_needed(-10 * size, 10.0, wanted, alpha, paired)
    if n is None:
        assert power(size, 1.0, 10_000, alpha, paired) < wanted
    else:
        assert power(size, 1.0, n, alpha, paired) >= wanted
        assert n == 2 or power(size, 1.0, n - 1, alpha, paired) < wanted


def test_seeds_needed_agrees_with_the_textbook() -> None:
    """Cohen's medium effect, 80%: 34 pairs, 64 in each group. Source: Cohen (1988), section 2.4."""
    assert seeds_needed(0.5, 1.0) == 34
    assert seeds_needed(0.5, 1.0, paired=False) == 64


def test_seeds_needed_for_a_tiny_difference_is_none() -> None:
    assert seeds_needed(0.001, 1.0) is None
    with pytest.raises(ValueError, match="no number of seeds shows a difference of 0"):
        seeds_needed(0.0, 1.0)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    calls = [
        lambda: mean_interval([97.0, bad]),
        lambda: mean_interval([bad]),
        lambda: compare(seeded(97.0, bad), seeded(96.0, 95.0)),
        lambda: compare(seeded(97.0), seeded(bad)),
        lambda: compare(OURS, THEIRS, margin=bad),
        lambda: compare_to_constant(seeded(97.0, bad), 96.0),
        lambda: compare_to_constant(OURS, bad),
        lambda: one_sided_p(COMPARISONS["pairs"], bad, "less"),
        lambda: equivalence(COMPARISONS["pairs"], bad),
        lambda: sign_flip_p([0.1, bad]),
        lambda: bootstrap_median([0.1, bad]),
        lambda: power(bad, 1.0, 5),
        lambda: power(1.0, bad, 5),
        lambda: seeds_needed(bad, 1.0),
        lambda: holm([0.1, bad]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"finite|between"):
            call()


def test_invalid_arguments_are_refused() -> None:
    pairs: Comparison = COMPARISONS["pairs"]
    calls = {
        "the margin": lambda: equivalence(pairs, 0.0),
        "the side": lambda: one_sided_p(pairs, 0.0, "two"),  # type: ignore[arg-type]
        "at least 2 seeds": lambda: power(1.0, 1.0, 1),
        "the spread": lambda: power(1.0, 0.0, 5),
        "alpha": lambda: power(1.0, 1.0, 5, alpha=1.0),
        "the power": lambda: seeds_needed(1.0, 1.0, power=1.0),
        "p-value": lambda: holm([1.5]),
        "at least one value": lambda: compare_to_constant({}, 0.0),
        "at least one difference": lambda: sign_flip_p([]),
        "a median needs": lambda: bootstrap_median([]),
    }
    for text, call in calls.items():
        with pytest.raises(ValueError, match=text):
            call()
