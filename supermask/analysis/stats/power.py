"""Power of a t-test, and the seeds needed for a given power."""

from __future__ import annotations

import math

from supermask.analysis.stats.comparison import SIGNIFICANCE, Comparison, nct_cdf, t_ppf

MAX_SEEDS = 10_000
"""Largest n that `seeds_needed` considers."""


def power(difference: float, spread: float, n: int, alpha: float = SIGNIFICANCE, paired: bool = True) -> float:
    """Probability that a two-sided t-test with n seeds per treatment finds a true difference significant.

    P(|T| > t(1 - alpha/2)) for the noncentral t. Paired or one sample: n - 1 degrees of freedom, noncentrality
    |difference| sqrt(n) / spread, with the standard deviation of the paired differences as spread. Unpaired: 2n - 2
    degrees of freedom, noncentrality |difference| sqrt(n / 2) / spread, with the standard deviation within a treatment.
    Raises ValueError for n < 2, a spread that is not above 0, an alpha outside (0, 1), and numbers that are not finite.
    """
    _check(difference, spread, alpha)
    if n < 2:
        raise ValueError(f"a t-test takes at least 2 seeds; n is {n}")
    degrees = n - 1 if paired else 2 * n - 2
    noncentrality = abs(difference) / spread * math.sqrt(n if paired else n / 2)
    bound = t_ppf(1 - alpha / 2, degrees)
    above = 1 - nct_cdf(bound, degrees, noncentrality)
    return min(1.0, above + nct_cdf(-bound, degrees, noncentrality))


def seeds_needed(
    difference: float, spread: float, power: float = 0.8, alpha: float = SIGNIFICANCE, paired: bool = True
) -> int | None:
    """Smallest n per treatment at which the t-test has this power for `difference`; None if above 10,000.

    For tests at m levels with Holm's correction, alpha / m is conservative. Raises ValueError for a difference of 0, a
    power outside (0, 1), and as `power` does.
    """
    _check(difference, spread, alpha)
    if difference == 0:
        raise ValueError("no number of seeds shows a difference of 0: give the smallest difference of interest")
    if not 0 < power < 1:
        raise ValueError(f"the power has to lie between 0 and 1; it is {power}")
    if _power(difference, spread, MAX_SEEDS, alpha, paired) < power:
        return None
    # Bisection: power increases with n; `low` seeds are too few, `high` are enough.
    low, high = 1, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        if _power(difference, spread, middle, alpha, paired) < power:
            low = middle
        else:
            high = middle
    return high


_power = power
"""Alias: `seeds_needed` has an argument named `power`."""


def paired_spread(comparison: Comparison) -> float | None:
    """The spread argument of `power` and `seeds_needed`, from a comparison; None without spread.

    The standard deviation of the paired differences, or of the one sample; for Welch's test the pooled standard
    deviation within a treatment, to be used with `paired=False`.
    """
    error = comparison.standard_error
    if not error:
        return None
    return comparison.std if comparison.test == "Welch t" else error * math.sqrt(comparison.n)


def _check(difference: float, spread: float, alpha: float) -> None:
    if not math.isfinite(difference):
        raise ValueError(f"the difference has to be a finite number; it is {difference}")
    if not (math.isfinite(spread) and spread > 0):
        raise ValueError(f"the spread has to be above 0 and finite; it is {spread}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha has to lie between 0 and 1; it is {alpha}")
