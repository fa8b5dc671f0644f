"""Means and t-tests: two treatments at one level, or one treatment and a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from supermask.stats.moments import mean, refuse_not_finite, rounding_of, variance
from supermask.stats.student import t_below, t_quantile

SIGNIFICANCE = 0.05
"""A difference is called significant where its Holm-adjusted p-value is below this. Source: paper.md section 7."""

CONFIDENCE = 0.95

Test = Literal["paired t", "Welch t", "one-sample t"]


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
    """Runs of the reference; 0 where it is a number."""
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
    """`difference` in units of `deviation`, with Hedges's small-sample correction."""
    note: str = ""
    margin: float = 0.0
    """`t` and `p` are of the null hypothesis that the difference is this."""
    standard_error: float | None = None
    """Of `difference`; 0 where there was no spread."""
    deviation: float | None = None
    """Standard deviation within a treatment: pooled over the two, or of the one sample; 0 where there was no spread."""


@dataclass(frozen=True)
class _Seen:
    """What a t-test needs of the values."""

    test: Test
    n: int
    n_reference: int
    difference: float
    standard_error: float
    degrees: float
    deviation: float
    deviation_degrees: int
    rounding: float
    """Differences and errors no larger than this are zero."""


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Mean and mean -+ t(0.975, n-1) s / sqrt(n). Raises ValueError where there are no values, or one is not finite."""
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values was asked for")
    refuse_not_finite(values, "values")
    middle = mean(values)
    if n < 2:
        return MeanInterval(n, middle, None, None)
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * math.sqrt(variance(values) / n)
    return MeanInterval(n, middle, middle - half, middle + half)


def compare(treatment: Mapping[int, float], reference: Mapping[int, float], margin: float = 0.0) -> Comparison:
    """Two-sided t-test that treatment - reference is `margin`; each a mapping seed -> value at one and the same level.

    Paired by seed where both have the same seeds (runs of one seed share initial weights and data order):
    t = (d - margin) / (s_d / sqrt(n)), n - 1 degrees of freedom. Welch's otherwise, with
    sqrt(s_1^2 / n + s_2^2 / m) and Welch-Satterthwaite's degrees. A t-test is undefined without variance:

    - fewer than two values on a side: no interval, no p;
    - all values equal (all differences exactly 0, e.g. both treatments are the same run): p = 1; no p for another
      margin than 0;
    - the same non-zero difference in every seed: no p. Accuracies and iterations come in steps, so a few equal steps
      are common; p = 0 would call that infinite evidence.

    Raises ValueError where a side is empty or a value is not finite. Source: paper.md section 7.
    """
    if not treatment or not reference:
        raise ValueError("a comparison needs at least one value on each side")
    seeds = sorted(treatment)
    ours = [treatment[s] for s in seeds]
    theirs = [reference[s] for s in sorted(reference)]
    refuse_not_finite([*ours, *theirs, margin], "values and margin")
    n, m = len(ours), len(theirs)
    squares = variance(ours) / n, variance(theirs) / m
    pooled = math.sqrt(((n - 1) * variance(ours) + (m - 1) * variance(theirs)) / max(1, n + m - 2))
    difference = mean(ours) - mean(theirs)
    rounding = rounding_of(ours + theirs)
    if treatment.keys() == reference.keys():
        error = math.sqrt(variance([a - b for a, b in zip(ours, theirs, strict=True)]) / n)
        seen = _Seen("paired t", n, m, difference, error, n - 1.0, pooled, n - 1, rounding)
    else:
        degrees = _welch_degrees(squares, n, m)
        seen = _Seen("Welch t", n, m, difference, math.sqrt(sum(squares)), degrees, pooled, n + m - 2, rounding)
    return _t_test(seen, margin)


def against(values: Mapping[int, float], constant: float) -> Comparison:
    """Two-sided t-test that the mean of `values` (seed -> value) is `constant`: t = (mean - constant) / (s / sqrt(n)).

    `n_reference` is 0, Hedges's g is in units of the sample's own standard deviation. Where there is no variance, as
    in `compare`. Raises ValueError where there are no values, or one or the constant is not finite.
    """
    if not values:
        raise ValueError("a comparison needs at least one value")
    ours = [values[seed] for seed in sorted(values)]
    refuse_not_finite([*ours, constant], "values and constant")
    n, deviation = len(ours), math.sqrt(variance(ours))
    difference = mean(ours) - constant
    error = math.sqrt(variance(ours) / n)
    rounding = rounding_of([*ours, constant])
    return _t_test(_Seen("one-sample t", n, 0, difference, error, n - 1.0, deviation, n - 1, rounding), 0.0)


def hedges_correction(degrees: int) -> float:
    """J = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)): E[J d] is the effect size, where d is the plain quotient."""
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)


def _t_test(seen: _Seen, margin: float) -> Comparison:
    n, m, error = seen.n, seen.n_reference, seen.standard_error
    if n < 2 or (seen.test != "one-sample t" and m < 2):
        note = "fewer than two runs" + (" on a side" if m else "")
        return Comparison(n, m, seen.test, seen.difference, None, None, None, None, None, note, margin)
    deviation = seen.deviation if seen.deviation > seen.rounding else 0.0
    if error <= seen.rounding:
        if abs(seen.difference) > seen.rounding:
            note = "no variance: t is undefined"
            return Comparison(
                n, m, seen.test, seen.difference, None, None, None, None, _hedges_g(seen), note, margin, 0.0, deviation
            )
        t, p = (0.0, 1.0) if margin == 0.0 else (None, None)
        note = "no difference in any run"
        return Comparison(n, m, seen.test, 0.0, (0.0, 0.0), t, seen.degrees, p, 0.0, note, margin, 0.0, deviation)
    t = (seen.difference - margin) / error
    half = t_quantile(0.5 + CONFIDENCE / 2, seen.degrees) * error
    interval = (seen.difference - half, seen.difference + half)
    p = 2.0 * t_below(-abs(t), seen.degrees)
    g = _hedges_g(seen)
    return Comparison(n, m, seen.test, seen.difference, interval, t, seen.degrees, p, g, "", margin, error, deviation)


def _hedges_g(seen: _Seen) -> float | None:
    """J(df) difference / s, s the deviation within a treatment, J(df) the exact correction.

    The same s for paired and Welch's, so that effect sizes can be compared; df = pairs - 1, or n + m - 2 for Welch's.
    """
    if seen.deviation <= seen.rounding:
        return None
    if seen.deviation_degrees < 2:  # J(1) = 0: the effect size cannot be estimated
        return None
    return hedges_correction(seen.deviation_degrees) * seen.difference / seen.deviation


def _welch_degrees(squares: tuple[float, float], n: int, m: int) -> float:
    """Welch-Satterthwaite, from the two squared standard errors."""
    if min(n, m) < 2 or sum(squares) == 0.0:
        return float(n + m - 2)
    return float(sum(squares) ** 2 / (squares[0] ** 2 / (n - 1) + squares[1] ** 2 / (m - 1)))
