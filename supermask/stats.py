"""Comparing two treatments over independent seeds, at one pruning level at a time.

Levels of one chain are correlated, so nothing here ever pools levels: each test sees one level's values, one a seed,
and `holm` corrects for the number of levels that are shown. Source: paper.md section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SIGNIFICANCE = 0.05
"""A difference is called significant where its Holm-adjusted p-value is below this. Source: paper.md section 7."""

CONFIDENCE = 0.95

Test = Literal["paired t", "Welch t"]


@dataclass(frozen=True)
class MeanInterval:
    """The mean of n independent values and its 95% t-interval; `low` and `high` are None where n < 2."""

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """treatment - reference, at one level. What could not be computed is None, and `note` says why."""

    n: int
    """Runs of the treatment (= pairs, where the test is paired)."""
    n_reference: int
    test: Test
    difference: float
    """Mean of the treatment minus mean of the reference, in the values' own unit."""
    interval95: tuple[float, float] | None
    """95% t-interval of `difference`."""
    t: float | None
    degrees_of_freedom: float | None
    p: float | None
    """Two-sided, for this level alone: not corrected for the number of levels."""
    hedges_g: float | None
    """`difference` in units of the pooled standard deviation, with Hedges's small-sample correction."""
    note: str = ""


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Mean and mean -+ t(0.975, n-1) s / sqrt(n). Raises ValueError where there are no values."""
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values was asked for")
    mean = _mean(values)
    if n < 2:
        return MeanInterval(n, mean, None, None)
    half = _t_quantile(n - 1) * math.sqrt(_variance(values) / n)
    return MeanInterval(n, mean, mean - half, mean + half)


def compare(treatment: Mapping[int, float], reference: Mapping[int, float]) -> Comparison:
    """Two-sided t-test of treatment - reference, each a mapping seed -> value at one and the same level.

    Paired by seed where both have the same seeds (runs of one seed share initial weights and data order), Welch's
    otherwise. A t-test is undefined without variance:

    - fewer than two values on a side: no interval, no p;
    - all values equal (all differences exactly 0, e.g. both treatments are the same run): p = 1;
    - the same non-zero difference in every seed: no p. Accuracies and iterations come in steps, so a few equal steps
      are common; p = 0 would call that infinite evidence.

    Raises ValueError where a side is empty. Source: paper.md section 7.
    """
    if not treatment or not reference:
        raise ValueError("a comparison needs at least one value on each side")
    paired = treatment.keys() == reference.keys()
    seeds = sorted(treatment)
    ours = [treatment[s] for s in seeds]
    theirs = [reference[s] for s in sorted(reference)]
    if paired:
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        return _t_test("paired t", ours, theirs, _variance(differences) / len(seeds), len(seeds) - 1.0)
    squares = _variance(ours) / len(ours), _variance(theirs) / len(theirs)
    return _t_test("Welch t", ours, theirs, sum(squares), _welch_degrees(squares, len(ours), len(theirs)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given: max over j <= i of min(1, (m - j) p_(j)), j from 0.

    m counts the p-values that exist; a None (nothing could be tested) stays None. Controls the family-wise error
    rate whatever the dependence between the tests, which matters here: levels are correlated.
    """
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (ps[index] or 0.0)))
        adjusted[index] = largest
    return adjusted


def _t_test(test: Test, ours: list[float], theirs: list[float], square_error: float, degrees: float) -> Comparison:
    """The comparison, given the squared standard error of the mean difference and its degrees of freedom."""
    n, m = len(ours), len(theirs)
    difference = _mean(ours) - _mean(theirs)
    if min(n, m) < 2:
        return Comparison(n, m, test, difference, None, None, None, None, None, "fewer than two runs on a side")
    # Differences of stored decimals carry rounding errors: a spread of that size is no spread.
    rounding = 16 * 2.0**-52 * max(abs(value) for value in ours + theirs)
    if math.sqrt(square_error) <= rounding:
        if abs(difference) <= rounding:
            return Comparison(n, m, test, 0.0, (0.0, 0.0), 0.0, degrees, 1.0, 0.0, "no difference in any run")
        g = _hedges_g(ours, theirs, difference, rounding, paired=test == "paired t")
        return Comparison(n, m, test, difference, None, None, None, None, g, "no variance: t is undefined")
    error = math.sqrt(square_error)
    t = difference / error
    half = _t_quantile(degrees) * error
    g = _hedges_g(ours, theirs, difference, rounding, paired=test == "paired t")
    interval = (difference - half, difference + half)
    return Comparison(n, m, test, difference, interval, t, degrees, _two_sided(t, degrees), g)


def _hedges_g(
    ours: list[float], theirs: list[float], difference: float, rounding: float, *, paired: bool
) -> float | None:
    """J(df) difference / s, s the pooled within-treatment standard deviation, J(df) the exact correction.

    The same s for both tests, so that effect sizes can be compared; df = pairs - 1, or n + m - 2 for Welch's.
    """
    n, m = len(ours), len(theirs)
    pooled = math.sqrt(((n - 1) * _variance(ours) + (m - 1) * _variance(theirs)) / (n + m - 2))
    if pooled <= rounding:
        return None
    degrees = n - 1 if paired else n + m - 2
    if degrees < 2:  # J(1) = 0: the effect size cannot be estimated
        return None
    correction = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)
    return correction * difference / pooled


def _welch_degrees(squares: tuple[float, float], n: int, m: int) -> float:
    """Welch-Satterthwaite, from the two squared standard errors."""
    if min(n, m) < 2 or sum(squares) == 0.0:
        return float(n + m - 2)
    return float(sum(squares) ** 2 / (squares[0] ** 2 / (n - 1) + squares[1] ** 2 / (m - 1)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    """With n - 1; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _t_quantile(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + CONFIDENCE / 2))


def _two_sided(t: float, degrees: float) -> float:
    from scipy.special import stdtr

    return float(2.0 * stdtr(degrees, -abs(t)))
