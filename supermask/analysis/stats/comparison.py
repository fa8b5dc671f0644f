"""Means, t-tests, Holm's correction and effect sizes of two treatments at one level, or of one and a constant.

scipy is imported at the first call, so that commands that need no statistics start without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


def check_finite(values: Iterable[float], what: str) -> None:
    """Raise ValueError if one of the values is NaN or infinite."""
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{what} have to be finite numbers; one is {value}")


def mean(values: Sequence[float]) -> float:
    """Mean, with an exactly rounded sum: it does not depend on the order of the values."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Sample variance, with n - 1 in the denominator; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def rounding_error(values: Iterable[float]) -> float:
    """Rounding error of differences of stored decimals of this size; a spread no larger counts as none."""
    return 16 * 2.0**-52 * max(abs(value) for value in values)


_LARGE_NONCENTRALITY = 1000.0
"""Beyond it scipy's noncentral t is slow."""


def t_cdf(t: float, degrees: float) -> float:
    """P(T <= t) of Student's t."""
    from scipy.special import stdtr

    return float(stdtr(degrees, t))


def t_ppf(probability: float, degrees: float) -> float:
    """The t with P(T <= t) = probability."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def nct_cdf(t: float, degrees: float, noncentrality: float) -> float:
    """P((Z + noncentrality) / S <= t), Z standard normal, S^2 chi-squared / degrees of freedom.

    From scipy, which returns NaN in the far tails, below 1e-50: there 0 or 1. Beyond a noncentrality of 1000 Z is
    neglected, with an error below 1e-5.
    """
    from scipy.special import gammaincc, nctdtr

    if noncentrality < -_LARGE_NONCENTRALITY:
        return 1.0 - nct_cdf(-t, degrees, -noncentrality)
    if noncentrality > _LARGE_NONCENTRALITY:
        ratio = noncentrality / t if t > 0 else math.inf
        return float(gammaincc(degrees / 2, degrees / 2 * ratio * ratio))
    p = float(nctdtr(degrees, noncentrality, t))
    return p if not math.isnan(p) else float(noncentrality < t)


def chi_ppf(probability: float, degrees: float) -> float:
    """The s with P(S <= s) = probability, S^2 chi-squared / degrees of freedom."""
    from scipy.special import gammaincinv

    return math.sqrt(gammaincinv(degrees / 2, probability) * 2 / degrees)


SIGNIFICANCE = 0.05
"""A difference is significant if its Holm-adjusted p-value is below this."""

CONFIDENCE = 0.95

Test = Literal["paired t", "Welch t", "one-sample t"]


@dataclass(frozen=True)
class MeanInterval:
    """Mean of n independent values and its 95% t-interval; `low` and `high` are None if n < 2."""

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """treatment - reference at one level. Quantities that cannot be computed are None; `note` has the reason."""

    n: int
    """Runs of the treatment; number of pairs if the test is paired."""
    n_reference: int
    """Runs of the reference; 0 if it is a constant."""
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
    """`difference` / `std`, with Hedges's small-sample correction."""
    note: str = ""
    margin: float = 0.0
    """The difference under the null hypothesis of `t` and `p`."""
    standard_error: float | None = None
    """Standard error of `difference`; 0 if all differences are equal."""
    std: float | None = None
    """Standard deviation within a treatment, pooled over the two, or of the one sample; 0 without spread."""


@dataclass(frozen=True)
class _TTestInputs:
    """Sufficient statistics of a t-test."""

    test: Test
    n: int
    n_reference: int
    difference: float
    standard_error: float
    degrees: float
    deviation: float
    deviation_degrees: int
    rounding: float
    """Differences and errors no larger than this count as zero."""


PERCENT = (0.0, 100.0)
"""Bounds of accuracies in percent."""


def mean_interval(values: Sequence[float], bounds: tuple[float, float] | None = None) -> MeanInterval:
    """Mean and its interval mean -+ t(0.975, n - 1) s / sqrt(n), cut off at `bounds`, which no mean can exceed.

    Raises ValueError without values, or if one is not finite.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    check_finite(values, "values")
    middle = mean(values)
    if n < 2:
        return MeanInterval(n, middle, None, None)
    half = t_ppf(0.5 + CONFIDENCE / 2, n - 1) * math.sqrt(variance(values) / n)
    least, most = bounds or (-math.inf, math.inf)
    return MeanInterval(n, middle, max(least, middle - half), min(most, middle + half))


def compare(treatment: Mapping[int, float], reference: Mapping[int, float], margin: float = 0.0) -> Comparison:
    """Two-sided t-test of the null hypothesis treatment - reference = `margin`, at one level.

    Both are mappings seed -> value. Paired by seed if both have the same seeds (runs of one seed share initial weights
    and data order): t = (d - margin) / (s_d / sqrt(n)), n - 1 degrees of freedom. Otherwise Welch's test, with the
    standard error sqrt(s_1^2 / n + s_2^2 / m) and the Welch-Satterthwaite degrees of freedom.

    Without variance a t-test is undefined:

    - fewer than two values on a side: no interval, no p;
    - all differences exactly 0 (e.g. both treatments are the same run): p = 1; no p if `margin` is not 0;
    - the same nonzero difference in every seed: no p. Accuracies and iterations are discrete, so a few equal
      differences are common; p = 0 would count them as infinite evidence.

    Raises ValueError if a side is empty or a value is not finite.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
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
        inputs = _TTestInputs("paired t", n, m, difference, error, n - 1.0, pooled, n - 1, rounding)
    else:
        degrees = _welch_degrees(squares, n, m)
        error = math.sqrt(sum(squares))
        inputs = _TTestInputs("Welch t", n, m, difference, error, degrees, pooled, n + m - 2, rounding)
    return _t_test(inputs, margin)


def compare_to_constant(values: Mapping[int, float], constant: float) -> Comparison:
    """Two-sided t-test of the null hypothesis mean = `constant`: t = (mean - constant) / (s / sqrt(n)).

    `values`: seed -> value. In the result `n_reference` is 0, and Hedges's g is in units of the sample's standard
    deviation. Without variance as in `compare`. Raises ValueError without values, or if a number is not finite.
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
    """J = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)), so that E[J d] is the effect size, d = difference / s."""
    return math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)


def _t_test(inputs: _TTestInputs, margin: float) -> Comparison:
    n, m, error = inputs.n, inputs.n_reference, inputs.standard_error
    if n < 2 or (inputs.test != "one-sample t" and m < 2):
        note = "fewer than two runs" + (" on a side" if m else "")
        return Comparison(n, m, inputs.test, inputs.difference, None, None, None, None, None, note, margin)
    deviation = inputs.deviation if inputs.deviation > inputs.rounding else 0.0
    if error <= inputs.rounding:
        if abs(inputs.difference) > inputs.rounding:
            note = "no variance: t is undefined"
            return Comparison(
                n,
                m,
                inputs.test,
                inputs.difference,
                None,
                None,
                None,
                None,
                _hedges_g(inputs),
                note,
                margin,
                0.0,
                deviation,
            )
        t, p = (0.0, 1.0) if margin == 0.0 else (None, None)
        note = "no difference in any run"
        return Comparison(n, m, inputs.test, 0.0, (0.0, 0.0), t, inputs.degrees, p, 0.0, note, margin, 0.0, deviation)
    t = (inputs.difference - margin) / error
    half = t_ppf(0.5 + CONFIDENCE / 2, inputs.degrees) * error
    interval = (inputs.difference - half, inputs.difference + half)
    p = 2.0 * t_cdf(-abs(t), inputs.degrees)
    g = _hedges_g(inputs)
    return Comparison(
        n, m, inputs.test, inputs.difference, interval, t, inputs.degrees, p, g, "", margin, error, deviation
    )


def _hedges_g(inputs: _TTestInputs) -> float | None:
    """J(df) difference / s, s the standard deviation within a treatment, J(df) the exact correction.

    s is the same for paired and Welch's tests, so that effect sizes are comparable; df = pairs - 1, or n + m - 2 for
    Welch's.
    """
    if inputs.deviation <= inputs.rounding:
        return None
    if inputs.deviation_degrees < 2:  # J(1) = 0: the effect size cannot be estimated
        return None
    return hedges_correction(inputs.deviation_degrees) * inputs.difference / inputs.deviation


def _welch_degrees(squares: tuple[float, float], n: int, m: int) -> float:
    """Welch-Satterthwaite degrees of freedom, from the two squared standard errors."""
    if min(n, m) < 2 or sum(squares) == 0.0:
        return float(n + m - 2)
    if not 1e-140 < max(squares) < 1e140:
        # Their squares would leave the range of floats. Only the ratio matters.
        squares = squares[0] / max(squares), squares[1] / max(squares)
    return float(sum(squares) ** 2 / (squares[0] ** 2 / (n - 1) + squares[1] ** 2 / (m - 1)))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the given order: max over j <= i of min(1, (m - j) p_(j)), j from 0.

    m is the number of p-values; None (not tested) stays None and does not count. Controls the family-wise error rate
    under any dependence between the tests; levels are correlated. Raises ValueError if a number is not in [0, 1].
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
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
    """95% interval of the effect size difference / std that `hedges_g` estimates.

    (l_low, l_high) standard_error / std, where P(T <= t; l_low) = 0.975 and P(T <= t; l_high) = 0.025 for the
    noncentral t with noncentrality l, t = difference / standard_error. Exact for one sample; for pairs the ratio of the
    two standard deviations is taken as known (Algina and Keselman 2003), for Welch's also the degrees of freedom.
    None if there is no t or no std; (0, 0) if no run differs.
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
    """The 95% interval of the noncentrality, for t >= 0."""
    tail = (1 - CONFIDENCE) / 2
    # Bounds of the bisection: both ends are smallest at t = 0, where they are -+1.96; the upper one is below this.
    upper_bound = t * chi_ppf(1 - tail, degrees) + 4.0
    return _noncentrality(1 - tail, t, degrees, upper_bound), _noncentrality(tail, t, degrees, upper_bound)


def _noncentrality(probability: float, t: float, degrees: float, upper_bound: float) -> float:
    """The l with P(T <= t; l) = probability, which decreases in l: by bisection down to adjacent floats."""
    low, high = -2.0, upper_bound
    middle = (low + high) / 2
    while low < middle < high:
        if nct_cdf(t, degrees, middle) > probability:
            low = middle
        else:
            high = middle
        middle = (low + high) / 2
    return middle
