"""Primary endpoints: means over a band, relations with constant margins and shares, ratios of error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from supermask.analysis.stats import (
    Relation,
    RelationTest,
    check_relation,
    compare,
    error_ratio,
    seed_means,
    seeds_needed,
)

RNG = np.random.default_rng(11)


def by_seed(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


def run_test(relation: Relation, differences: dict[int, float], margin: float | dict[int, float]) -> RelationTest:
    return check_relation(relation, compare(differences, dict.fromkeys(differences, 0.0)), differences, margin)


def test_seeds_that_lack_a_level_are_left_out() -> None:
    assert seed_means([{0: 1.0, 1: 5.0, 2: 0.0}, {1: 7.0, 0: 2.0}]) == {0: 1.5, 1: 6.0}
    assert seed_means([{0: 1.0}, {1: 2.0}]) == seed_means([]) == {}


def oracle(relation: str, values: np.ndarray, margin: np.ndarray) -> tuple[float, float]:  # type: ignore[type-arg]
    """(p of the relation, p of its opposite) by scipy alone."""

    def p(sign: int, side: str) -> float:
        return float(scipy_stats.ttest_1samp(values - sign * margin, 0.0, alternative=side).pvalue)

    if relation == "matches":
        side, sign = ("greater", 1) if values.mean() > 0 else ("less", -1)
        return max(p(-1, "greater"), p(1, "less")), p(sign, side)
    if relation in ("above", "below"):
        both = p(1 if relation == "above" else -1, "two-sided")
        return both, both
    if relation == "at_least":
        return p(-1, "greater"), p(-1, "less")
    return p(1, "less"), p(1, "greater")


@pytest.mark.slow
@pytest.mark.parametrize("relation", ["above", "below", "at_least", "at_most", "matches"])
@pytest.mark.parametrize("is_share", [False, True])
def test_relations_agree_with_scipy(relation: Relation, is_share: bool) -> None:
    for _ in range(200):
        n = int(RNG.integers(2, 12))
        values = RNG.normal(RNG.normal(0, 0.5), 0.3, n)
        margin = RNG.normal(0.4, 0.1, n) if is_share else np.full(n, 0.4)
        result = run_test(relation, by_seed(values), by_seed(margin) if is_share else 0.4)
        p, p_opposite = oracle(relation, values, margin)
        assert result.p == pytest.approx(p, rel=1e-7, abs=1e-12)
        assert result.p_opposite == pytest.approx(p_opposite, rel=1e-7, abs=1e-12)
        assert not (result.holds and result.is_reversed)
        beyond = {
            "above": values.mean() > margin.mean(),
            "below": values.mean() < -margin.mean(),
            "at_least": values.mean() > -margin.mean(),
            "at_most": values.mean() < margin.mean(),
            "matches": abs(values.mean()) < margin.mean(),
        }[relation]
        assert result.has_claimed_sign == beyond
        assert result.holds == (beyond and p < 0.05)


def test_treatments_that_are_the_same_runs_are_equal_and_not_different() -> None:
    same = dict.fromkeys(range(5), 0.0)
    assert run_test("matches", same, 0.2).holds and run_test("at_least", same, 0.2).holds
    for relation in ("above", "below"):
        result = run_test(relation, same, 0.0)
        assert result.p == 1.0 and not result.holds and not result.is_reversed and result.seeds_needed is None


def test_the_same_difference_in_every_seed_is_not_tested() -> None:
    result = run_test("above", dict.fromkeys(range(5), 1.0), 0.0)
    assert result.p is None and result.p_opposite is None and not result.holds
    share = run_test("at_least", dict.fromkeys(range(5), 1.0), dict.fromkeys(range(5), 0.5))
    assert share.p is None and not share.holds


def test_seeds_needed_are_for_the_distance_to_the_margin() -> None:
    values = np.array([0.1, 0.3, -0.1, 0.2, 0.0])
    spread = float(values.std(ddof=1))
    assert run_test("above", by_seed(values), 0.0).seeds_needed == seeds_needed(0.1, spread)
    # A one-sided test at 5% has the power of a two-sided one at 10%.
    assert run_test("at_least", by_seed(values), 0.2).seeds_needed == seeds_needed(0.3, spread, alpha=0.1)
    assert run_test("matches", by_seed(values), 0.2).seeds_needed == seeds_needed(0.1, spread, alpha=0.1)


def test_error_ratios_are_geometric_means_with_a_t_interval_of_logarithms() -> None:
    ours, theirs = 98 + RNG.normal(0, 0.2, (3, 6)), 97 + RNG.normal(0, 0.2, (3, 6))
    levels = [(by_seed(a), by_seed(b)) for a, b in zip(ours, theirs, strict=True)]
    result = error_ratio(levels)
    logs = np.log((100 - ours) / (100 - theirs)).mean(axis=0)
    low, high = scipy_stats.t.interval(0.95, 5, logs.mean(), scipy_stats.sem(logs))
    assert result is not None
    assert result.ratio == pytest.approx(math.exp(logs.mean()), rel=1e-12)
    assert (result.low, result.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))


def test_error_ratios_need_errors_and_seeds() -> None:
    assert error_ratio([({0: 100.0}, {0: 98.0})]) is None
    assert error_ratio([({0: 98.0}, {0: 100.0})]) is None
    assert error_ratio([({0: 98.0}, {1: 97.0})]) is None
    assert error_ratio([]) is None
    single = error_ratio([({0: 98.0}, {0: 96.0})])
    assert single is not None and single.ratio == pytest.approx(0.5) and single.low is single.high is None


def test_a_margin_is_at_least_zero() -> None:
    differences = by_seed(np.array([0.1, 0.2, 0.3]))
    for margin in (-0.1, dict.fromkeys(differences, -0.1)):
        with pytest.raises(ValueError, match=r"a margin is at least 0; this one is -0\.1"):
            run_test("at_least", differences, margin)


def test_the_seeds_needed_are_for_the_corrected_level() -> None:
    differences = by_seed(np.array([0.1, 0.2, -0.3, 0.4, 0.1]))
    comparison = compare(differences, dict.fromkeys(differences, 0.0))
    spread = float(np.std(list(differences.values()), ddof=1))
    test = check_relation("above", comparison, differences, 0.0, corrected_over=4)
    assert test.seeds_needed == seeds_needed(0.1, spread, alpha=0.05 / 4)
    test = check_relation("at_least", comparison, differences, 0.1, corrected_over=4)
    assert test.seeds_needed == seeds_needed(0.2, spread, alpha=2 * 0.05 / 4)
