"""Means, t-tests and Holm's correction against scipy or a plain NumPy formula, and the degenerate cases."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from supermask.analysis.stats import compare, holm, mean_interval, paired_sign_flip_p, sign_flip_p

accuracies = st.integers(0, 10_000).map(lambda hits: hits / 10_000)


def seeded(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.slow
@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8))
def test_paired_test_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    found = compare(seeded(ours), seeded(theirs))
    assert (found.test, found.n, found.n_reference) == ("paired t", len(pairs), len(pairs))
    differences = np.subtract(ours, theirs)
    assert found.difference == pytest.approx(differences.mean(), abs=1e-12)
    if np.ptp(differences) > 1e-9:
        oracle = scipy_stats.ttest_rel(ours, theirs)
        assert found.p == pytest.approx(oracle.pvalue, rel=1e-6)
        assert found.t == pytest.approx(oracle.statistic, rel=1e-6, abs=1e-9)
        assert found.interval95 == pytest.approx(tuple(oracle.confidence_interval(0.95)), rel=1e-6, abs=1e-9)
    else:
        assert found.p == (1.0 if abs(differences.mean()) < 1e-9 else None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Precision loss")  # the oracle's, where one side has no variance
@given(st.lists(accuracies, min_size=2, max_size=8), st.lists(accuracies, min_size=2, max_size=8))
def test_welch_test_agrees_with_scipy(ours: list[float], theirs: list[float]) -> None:
    found = compare(seeded(ours), {seed + 100: value for seed, value in enumerate(theirs)})
    assert (found.test, found.n, found.n_reference) == ("Welch t", len(ours), len(theirs))
    if max(np.ptp(ours), np.ptp(theirs)) > 1e-9:
        oracle = scipy_stats.ttest_ind(ours, theirs, equal_var=False)
        assert found.p == pytest.approx(oracle.pvalue, rel=1e-6)
        assert found.degrees_of_freedom == pytest.approx(oracle.df, rel=1e-6)
        assert found.interval95 == pytest.approx(tuple(oracle.confidence_interval(0.95)), rel=1e-6, abs=1e-9)


def test_pairs_are_made_by_seed_not_by_order() -> None:
    found = compare({3: 0.9, 1: 0.5, 2: 0.7}, {1: 0.4, 2: 0.61, 3: 0.79})
    oracle = scipy_stats.ttest_rel([0.5, 0.7, 0.9], [0.4, 0.61, 0.79])
    assert found.p == pytest.approx(oracle.pvalue)


def test_seeds_that_only_overlap_are_not_paired() -> None:
    assert compare({0: 0.1, 1: 0.2, 2: 0.4}, {0: 0.1, 1: 0.3}).test == "Welch t"


@pytest.mark.parametrize("paired", [True, False])
def test_hedges_g_is_the_corrected_difference_over_the_pooled_deviation(paired: bool) -> None:
    ours, theirs = [0.91, 0.93, 0.92, 0.96], [0.90, 0.94, 0.89, 0.91]
    shift = 0 if paired else 10
    found = compare(seeded(ours), {seed + shift: value for seed, value in enumerate(theirs)})
    pooled = math.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    degrees = 3 if paired else 6
    correction = math.gamma(degrees / 2) / (math.sqrt(degrees / 2) * math.gamma((degrees - 1) / 2))
    assert correction == pytest.approx(1 - 3 / (4 * degrees - 1), rel=0.01)  # the usual approximation
    assert found.hedges_g == pytest.approx(correction * (np.mean(ours) - np.mean(theirs)) / pooled)


def test_one_run_on_a_side_gives_a_difference_only() -> None:
    for reference in ({0: 0.5}, {1: 0.5}, {1: 0.4, 2: 0.6}):
        found = compare({0: 0.75}, reference)
        assert found.difference == pytest.approx(0.25)
        assert (found.interval95, found.t, found.p, found.hedges_g) == (None, None, None, None)
        assert found.note == "fewer than two runs on a side"


def test_the_same_run_on_both_sides_is_no_difference() -> None:
    values = {0: 0.91, 1: 0.93, 2: 0.97}
    found = compare(values, values)
    assert (found.difference, found.interval95, found.p, found.hedges_g) == (0.0, (0.0, 0.0), 1.0, 0.0)


def test_a_rounding_error_in_every_run_is_no_difference() -> None:
    found = compare(seeded([0.1 + 0.2, 0.1 + 0.2]), seeded([0.3, 0.3]))
    assert (found.difference, found.p, found.note) == (0.0, 1.0, "no difference in any run")


@pytest.mark.parametrize("reference", [{0: 0.2, 1: 0.3, 2: 0.4}, {5: 0.1, 6: 0.1}])
def test_equal_non_zero_differences_are_not_infinite_evidence(reference: dict[int, float]) -> None:
    treatment = {seed: 0.3 + (0.1 * seed if len(reference) == 3 else 0.0) for seed in range(3)}
    found = compare(treatment, reference)  # 0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4: not the same floats
    assert found.p is None
    assert found.interval95 is None
    assert found.difference == pytest.approx(0.1 if len(reference) == 3 else 0.2)
    assert "no variance" in found.note


def test_two_pairs_have_no_effect_size() -> None:
    found = compare({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.5})
    assert found.p is not None
    assert found.hedges_g is None


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        compare({}, {0: 1.0})
    with pytest.raises(ValueError, match="at least one value"):
        compare({0: 1.0}, {})
    with pytest.raises(ValueError, match="a mean needs at least one value"):
        mean_interval([])


@given(st.lists(accuracies, min_size=2, max_size=10))
def test_mean_interval_agrees_with_scipy(values: list[float]) -> None:
    found = mean_interval(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values))
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.low == pytest.approx(np.mean(values) - half, abs=1e-9)
    assert found.high == pytest.approx(np.mean(values) + half, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    assert mean_interval([0.5]) == mean_interval((0.5,))
    assert (mean_interval([0.5]).low, mean_interval([0.5]).high) == (None, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None, 0.02, None, 0.04]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(ps: list[float], alpha: float) -> None:
    """The textbook procedure: from the smallest p, reject while p_(j) * (m - j) < alpha."""
    rejected = set()
    for j, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        if ps[index] * (len(ps) - j) >= alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(ps)) if p is not None and p < alpha} == rejected


def test_family_wise_false_positive_rate_is_five_percent() -> None:
    """8 levels without a true difference, 5 paired seeds: share of studies with a significant level after Holm."""
    studies, levels, seeds = 1000, 8, 5
    rng = np.random.default_rng(20)
    shared = rng.normal(0.9, 0.02, (studies, levels, seeds))
    ours, theirs = shared + rng.normal(0, 0.01, (2, studies, levels, seeds))
    false_alarms = 0
    for study in range(studies):
        ps = [
            compare(seeded(ours[study, level].tolist()), seeded(theirs[study, level].tolist())).p
            for level in range(levels)
        ]
        false_alarms += any(p is not None and p < 0.05 for p in holm(ps))
    # Binomial(1000, 0.049): four standard deviations are 2.7 points; without Holm it would be 34%.
    assert 0.022 < false_alarms / studies < 0.076


def test_the_example_of_the_statistics_page() -> None:
    page = Path(__file__).parents[3] / "docs" / "statistics.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


def test_importing_stats_does_not_import_scipy() -> None:
    code = "import sys, supermask.analysis.stats; sys.exit('scipy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sign_flips_need_pairs() -> None:
    ours, theirs = {0: 1.0, 1: 2.5, 2: 3.0}, {0: 0.5, 1: 1.0, 2: 1.0}
    assert paired_sign_flip_p(ours, theirs) == sign_flip_p([0.5, 1.5, 2.0]) == 0.25
    assert paired_sign_flip_p(ours, {0: 0.5, 1: 1.0, 3: 1.0}) is None
    assert paired_sign_flip_p({}, {}) is None
