"""How many seeds it takes to see a difference, given the spread seen here."""

from __future__ import annotations

import math

from supermask.analysis.stats.comparison import SIGNIFICANCE, Comparison, nct_cdf, t_ppf

MAX_SEEDS = 10_000
"""`seeds_needed` looks no further."""


def power(difference: float, spread: float, n: int, alpha: float = SIGNIFICANCE, paired: bool = True) -> float:
    """The probability that a two-sided t-test at level `alpha` finds a true difference significant, n seeds each.

    P(|T| > t(1 - alpha/2)) for the noncentral t. Paired (or one sample): n - 1 degrees of freedom, noncentrality
    |difference| sqrt(n) / spread, spread = standard deviation of the paired differences. Unpaired: 2n - 2,
    |difference| sqrt(n / 2) / spread, spread = that within a treatment. Raises ValueError for n < 2, a spread that is
    not above 0, an alpha outside of (0, 1), anything not finite.
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
    """The least n (for each treatment) at which the t-test finds `difference` with this power; None above 10,000.

    For tests at m levels, corrected by Holm, alpha / m is on the safe side. Raises ValueError for a difference of 0,
    which no number of seeds shows, a power outside of (0, 1), and as `power` does.
    """
    _check(difference, spread, alpha)
    if difference == 0:
        raise ValueError("no number of seeds shows a difference of 0; give the least difference that would matter")
    if not 0 < power < 1:
        raise ValueError(f"the power has to lie between 0 and 1; it is {power}")
    if _power(difference, spread, MAX_SEEDS, alpha, paired) < power:
        return None
    low, high = 1, MAX_SEEDS  # power grows with n: too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        if _power(difference, spread, middle, alpha, paired) < power:
            low = middle
        else:
            high = middle
    return high


_power = power  # `seeds_needed` has an argument of that name


def paired_spread(comparison: Comparison) -> float | None:
    """The spread that `power` and `seeds_needed` mean, as seen in a comparison; None where none was to be seen.

    The standard deviation of the paired differences, or of the one sample; for Welch's that within a treatment, pooled
    (and `paired=False`).
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
