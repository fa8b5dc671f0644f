"""Statistics against scipy, statsmodels or a plain NumPy formula: 1,000 random cases each, to 1e-10."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_ind, ttost_paired

from supermask.analysis.stats import (
    bootstrap_median,
    compare,
    compare_to_constant,
    equivalence,
    holm,
    mean_interval,
    one_sided_p,
    power,
    sign_flip_p,
)

CASES = 1000
Values = np.ndarray[tuple[int], np.dtype[np.float64]]


def close(expected: object) -> object:
    return pytest.approx(expected, rel=1e-10, abs=1e-10)


def accuracies(rng: np.random.Generator, n: int) -> Values:
    """Accuracies in percentage points: rounded to 0.01 as stored, or unrounded."""
    values = rng.normal(rng.uniform(20, 99), 10 ** rng.uniform(-1.5, 1), n)
    return np.round(values, 2) if rng.random() < 0.5 else values


def pairs(seed: int, most: int = 12) -> Iterator[tuple[Values, Values]]:
    """Two treatments over the same seeds, with random differences and spreads."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        n = int(rng.integers(2, most + 1))
        ours = accuracies(rng, n)
        theirs = accuracies(rng, n) if rng.random() < 0.5 else np.round(ours + rng.normal(0, 1, n), 2)
        if np.ptp(ours - theirs) > 1e-9:
            yield ours, theirs


def samples(seed: int) -> Iterator[tuple[Values, Values]]:
    """Two treatments over different seeds, of different numbers."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        ours, theirs = (accuracies(rng, int(rng.integers(2, 13))) for _ in range(2))
        if min(np.ptp(ours), np.ptp(theirs)) > 1e-9:
            yield ours, theirs


def seeded(values: Values, first: int = 0) -> dict[int, float]:
    return {first + seed: float(value) for seed, value in enumerate(values)}


def g_by_formula(difference: float, deviation: float, degrees: int) -> float:
    correction = math.gamma(degrees / 2) / (math.sqrt(degrees / 2) * math.gamma((degrees - 1) / 2))
    return correction * difference / deviation


@pytest.mark.slow
def test_paired_t() -> None:
    for ours, theirs in pairs(1):
        found, oracle = compare(seeded(ours), seeded(theirs)), scipy_stats.ttest_rel(ours, theirs)
        assert found.test == "paired t"
        assert (found.t, found.p) == close((oracle.statistic, oracle.pvalue))
        assert found.interval95 == close(tuple(oracle.confidence_interval(0.95)))
        assert found.standard_error == close(scipy_stats.sem(ours - theirs))
        if len(ours) > 2:
            pooled = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
            assert found.std == close(pooled)
            assert found.hedges_g == close(g_by_formula(np.mean(ours - theirs), pooled, len(ours) - 1))


@pytest.mark.slow
def test_welch_t() -> None:
    for ours, theirs in samples(2):
        found = compare(seeded(ours), seeded(theirs, 100))
        oracle = scipy_stats.ttest_ind(ours, theirs, equal_var=False)
        assert found.test == "Welch t"
        assert (found.t, found.p, found.degrees_of_freedom) == close((oracle.statistic, oracle.pvalue, oracle.df))
        assert found.interval95 == close(tuple(oracle.confidence_interval(0.95)))
        degrees = len(ours) + len(theirs) - 2
        pooled = math.sqrt((sum((ours - ours.mean()) ** 2) + sum((theirs - theirs.mean()) ** 2)) / degrees)
        assert found.hedges_g == close(g_by_formula(ours.mean() - theirs.mean(), pooled, degrees))


@pytest.mark.slow
def test_one_sample_t_and_the_interval_of_a_mean() -> None:
    for ours, theirs in samples(3):
        constant = float(theirs[0])
        found, oracle = compare_to_constant(seeded(ours), constant), scipy_stats.ttest_1samp(ours, constant)
        assert (found.test, found.n_reference) == ("one-sample t", 0)
        assert (found.t, found.p) == close((oracle.statistic, oracle.pvalue))
        low, high = oracle.confidence_interval(0.95)
        mean = mean_interval(ours.tolist())
        assert (mean.low, mean.high) == close((low, high))
        assert found.interval95 == close((low - constant, high - constant))
        if len(ours) > 2:
            deviation = float(np.std(ours, ddof=1))
            assert found.hedges_g == close(g_by_formula(ours.mean() - constant, deviation, len(ours) - 1))


@pytest.mark.slow
def test_a_margin_moves_the_null_hypothesis_and_nothing_else() -> None:
    for ours, theirs in pairs(4):
        margin = float(ours[0] - theirs[-1])
        oracle = scipy_stats.ttest_rel(ours, theirs + margin)
        found, plain = compare(seeded(ours), seeded(theirs), margin), compare(seeded(ours), seeded(theirs))
        assert (found.t, found.p) == close((oracle.statistic, oracle.pvalue))
        assert (found.difference, found.interval95, found.hedges_g) == (
            plain.difference,
            plain.interval95,
            plain.hedges_g,
        )


def test_holm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: 0)  # the oracle calls it, 30 ms a case
    rng = np.random.default_rng(5)
    for _ in range(CASES):
        ps = rng.uniform(0, 1, int(rng.integers(1, 21))) ** int(rng.integers(1, 5))
        assert holm(ps.tolist()) == close(multipletests(ps, method="holm")[1].tolist())


@pytest.mark.slow
def test_two_one_sided_tests_of_pairs() -> None:
    for margin, (ours, theirs) in zip(np.random.default_rng(6).uniform(0.01, 5, CASES), pairs(6), strict=False):
        comparison = compare(seeded(ours), seeded(theirs))
        p, greater, less = ttost_paired(ours, theirs, -margin, margin)
        assert equivalence(comparison, margin).p == close(p)
        assert one_sided_p(comparison, -margin, "greater") == close(greater[1])
        assert one_sided_p(comparison, margin, "less") == close(less[1])


@pytest.mark.slow
def test_two_one_sided_tests_of_other_seeds() -> None:
    for margin, (ours, theirs) in zip(np.random.default_rng(7).uniform(0.01, 5, CASES), samples(7), strict=False):
        comparison = compare(seeded(ours), seeded(theirs, 100))
        p, greater, less = ttost_ind(ours, theirs, -margin, margin, usevar="unequal")
        found = equivalence(comparison, margin)
        assert found.p == close(p)
        assert (one_sided_p(comparison, -margin, "greater"), one_sided_p(comparison, margin, "less")) == close(
            (greater[1], less[1])
        )
        means = CompareMeans(DescrStatsW(ours), DescrStatsW(theirs))
        assert found.interval90 == close(tuple(means.tconfint_diff(alpha=0.1, usevar="unequal")))


@pytest.mark.slow
def test_two_one_sided_tests_against_a_number() -> None:
    for margin, (ours, theirs) in zip(np.random.default_rng(8).uniform(0.01, 5, CASES), samples(8), strict=False):
        constant = float(theirs[0])
        found, sample = equivalence(compare_to_constant(seeded(ours), constant), margin), DescrStatsW(ours)
        assert found.p == close(sample.ttost_mean(constant - margin, constant + margin)[0])
        assert found.interval90 == close(tuple(bound - constant for bound in sample.tconfint_mean(0.1)))


@pytest.mark.slow
def test_power() -> None:
    rng = np.random.default_rng(9)
    for _ in range(CASES):
        n, size, alpha = int(rng.integers(2, 60)), float(rng.uniform(-2, 2)), float(rng.choice([0.05, 0.01, 0.005]))
        spread = 10 ** rng.uniform(-4, 1)
        of_pairs, of_samples = (power(size * spread, spread, n, alpha, paired) for paired in (True, False))
        for found, oracle in ((of_pairs, TTestPower()), (of_samples, TTestIndPower())):
            expected = oracle.power(size, n, alpha)
            if math.isnan(expected):  # it adds up two tails, and has no number for one below 1e-50
                expected = oracle.power(abs(size), n, alpha / 2, alternative="larger")
            assert found == close(expected)


@pytest.mark.slow
def test_sign_flips() -> None:
    for ours, theirs in pairs(10, most=9):
        differences = np.round(ours - theirs, 2)
        oracle = scipy_stats.permutation_test(
            (differences,),
            lambda flipped, axis: flipped.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=math.inf,
        )
        assert sign_flip_p(differences.tolist()) == close(oracle.pvalue)


@pytest.mark.slow
def test_median_of_every_resample() -> None:
    rng = np.random.default_rng(11)
    resamples = {n: np.stack(np.meshgrid(*[np.arange(n)] * n), axis=-1).reshape(-1, n) for n in range(2, 6)}
    for _ in range(CASES):
        n = int(rng.integers(2, 6))
        values = accuracies(rng, n)
        medians = np.median(values[resamples[n]], axis=1)
        found = bootstrap_median(values.tolist())
        assert (found.n, found.median) == (n, close(np.median(values)))
        assert found.low == close(np.quantile(medians, 0.025, method="inverted_cdf"))
        assert found.high == close(-np.quantile(-medians, 0.025, method="inverted_cdf"))
