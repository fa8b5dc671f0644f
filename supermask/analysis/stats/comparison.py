"""Means and t-tests: two treatments at one level, or one treatment and a number.

Several tests shown together: their p-values, corrected for their number.

The interval of an effect size, by the noncentral t.

Mean and variance of a few values, summed without loss; and the refusal of values that are none.

Student's t, central and noncentral, one number at a time. scipy is imported when it is first needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


def check_finite(values: Iterable[float], what: str) -> None:
    """Raises ValueError where one of the values is NaN or infinite."""
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{what} have to be finite numbers; one is {value}")


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """With n - 1; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def rounding_error(values: Iterable[float]) -> float:
    """The rounding error that differences of stored decimals of this size carry: a spread no larger is no spread."""
    return 16 * 2.0**-52 * max(abs(value) for value in values)


_LARGE = 1000.0


def t_cdf(t: float, degrees: float) -> float:
    """P(T <= t)."""
    from scipy.special import stdtr

    return float(stdtr(degrees, t))


def t_ppf(probability: float, degrees: float) -> float:
    """The t with P(T <= t) = probability."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def nct_cdf(t: float, degrees: float, noncentrality: float) -> float:
    """P((Z + noncentrality) / S <= t), Z standard normal, S^2 chi-squared over its degrees of freedom.

    scipy's where it gives a number: it does not in the far tails, below 1e-50. Beyond a noncentrality of 1000, where it
    is slow, Z is left out: an error below 1e-5.
    """
    from scipy.special import gammaincc, nctdtr

    if noncentrality < -_LARGE:
        return 1.0 - nct_cdf(-t, degrees, -noncentrality)
    if noncentrality > _LARGE:
        ratio = noncentrality / t if t > 0 else math.inf
        return float(gammaincc(degrees / 2, degrees / 2 * ratio * ratio))
    p = float(nctdtr(degrees, noncentrality, t))
    return p if not math.isnan(p) else float(noncentrality < t)


def chi_ppf(probability: float, degrees: float) -> float:
    """The s with P(S <= s) = probability, S^2 chi-squared over its degrees of freedom."""
    from scipy.special import gammaincinv

    return math.sqrt(gammaincinv(degrees / 2, probability) * 2 / degrees)


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
    std: float | None = None
    """Standard deviation within a treatment: pooled over the two, or of the one sample; 0 where there was no spread."""


@dataclass(frozen=True)
class _TTestInputs:
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
    check_finite(values, "values")
    middle = mean(values)
    if n < 2:
        return MeanInterval(n, middle, None, None)
    half = t_ppf(0.5 + CONFIDENCE / 2, n - 1) * math.sqrt(variance(values) / n)
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
    check_finite([*ours, *theirs, margin], "values and margin")
    n, m = len(ours), len(theirs)
    squares = variance(ours) / n, variance(theirs) / m
    pooled = math.sqrt(((n - 1) * variance(ours) + (m - 1) * variance(theirs)) / max(1, n + m - 2))
    difference = mean(ours) - mean(theirs)
    rounding = rounding_error(ours + theirs)
    if treatment.keys() == reference.keys():
        error = math.sqrt(variance([a - b for a, b in zip(ours, theirs, strict=True)]) / n)
        seen = _TTestInputs("paired t", n, m, difference, error, n - 1.0, pooled, n - 1, rounding)
    else:
        degrees = _welch_degrees(squares, n, m)
        seen = _TTestInputs("Welch t", n, m, difference, math.sqrt(sum(squares)), degrees, pooled, n + m - 2, rounding)
    return _t_test(seen, margin)


def compare_to_constant(values: Mapping[int, float], constant: float) -> Comparison:
    """Two-sided t-test that the mean of `values` (seed -> value) is `constant`: t = (mean - constant) / (s / sqrt(n)).

    `n_reference` is 0, Hedges's g is in units of the sample's own standard deviation. Where there is no variance, as
    in `compare`. Raises ValueError where there are no values, or one or the constant is not finite.
    """
    if not values:
        raise ValueError("a comparison needs at least one value")
    ours = [values[seed] for seed in sorted(values)]
    check_finite([*ours, constant], "values and constant")
    n, deviation = len(ours), math.sqrt(variance(ours))
    difference = mean(ours) - constant
    error = math.sqrt(variance(ours) / n)
    rounding = rounding_error([*ours, constant])
    return _t_test(_TTestInputs("one-sample t", n, 0, difference, error, n - 1.0, deviation, n - 1, rounding), 0.0)


def hedges_correction(degrees: int) -> float:
    """J = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)): E[J d] is the effect size, where d is the plain quotient."""
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)


def _t_test(seen: _TTestInputs, margin: float) -> Comparison:
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
    half = t_ppf(0.5 + CONFIDENCE / 2, seen.degrees) * error
    interval = (seen.difference - half, seen.difference + half)
    p = 2.0 * t_cdf(-abs(t), seen.degrees)
    g = _hedges_g(seen)
    return Comparison(n, m, seen.test, seen.difference, interval, t, seen.degrees, p, g, "", margin, error, deviation)


def _hedges_g(seen: _TTestInputs) -> float | None:
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


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given: max over j <= i of min(1, (m - j) p_(j)), j from 0.

    m counts the p-values that exist; a None (nothing could be tested) stays None. Controls the family-wise error
    rate whatever the dependence between the tests, which matters here: levels are correlated. Raises ValueError for
    what is no probability. Source: paper.md section 7.
    """
    for p in ps:
        if p is not None and not 0.0 <= p <= 1.0:
            raise ValueError(f"a p-value lies between 0 and 1; one is {p}")
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (ps[index] or 0.0)))
        adjusted[index] = largest
    return adjusted


def effect_interval(comparison: Comparison) -> tuple[float, float] | None:
    """95% interval of the effect size (difference / deviation) that `hedges_g` estimates.

    (l_low, l_high) standard_error / deviation, where P(T <= t; l_low) = 0.975 and P(T <= t; l_high) = 0.025 for the
    noncentral t of noncentrality l, t = difference / standard_error. Exact for one sample; for pairs it takes the
    ratio of the two deviations as known (Algina and Keselman 2003), for Welch's also its degrees of freedom.
    None where there is no t or no deviation; (0, 0) where no run differs.
    """
    error, degrees, deviation = comparison.standard_error, comparison.degrees_of_freedom, comparison.std
    if error is None or degrees is None or not deviation:
        return None
    if error == 0.0:
        return (0.0, 0.0)
    t = comparison.difference / error
    low, high = _noncentralities(abs(t), degrees)
    if t < 0:
        low, high = -high, -low
    return low * error / deviation, high * error / deviation


def _noncentralities(t: float, degrees: float) -> tuple[float, float]:
    """The 95% interval of the noncentrality, given t >= 0."""
    tail = (1 - CONFIDENCE) / 2
    # Both are at their least where t = 0, at -+ 1.96; the upper one is never above this.
    furthest = t * chi_ppf(1 - tail, degrees) + 4.0
    return _noncentrality(1 - tail, t, degrees, furthest), _noncentrality(tail, t, degrees, furthest)


def _noncentrality(probability: float, t: float, degrees: float, furthest: float) -> float:
    """The l with P(T <= t; l) = probability, which falls as l grows: by bisection, down to neighbouring floats."""
    low, high = -2.0, furthest
    middle = (low + high) / 2
    while low < middle < high:
        if nct_cdf(t, degrees, middle) > probability:
            low = middle
        else:
            high = middle
        middle = (low + high) / 2
    return middle
