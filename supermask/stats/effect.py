"""The interval of an effect size, by the noncentral t."""

from __future__ import annotations

from supermask.stats.comparing import CONFIDENCE, Comparison
from supermask.stats.student import chi_quantile, noncentral_t_below


def effect_interval(comparison: Comparison) -> tuple[float, float] | None:
    """95% interval of the effect size (difference / deviation) that `hedges_g` estimates.

    (l_low, l_high) standard_error / deviation, where P(T <= t; l_low) = 0.975 and P(T <= t; l_high) = 0.025 for the
    noncentral t of noncentrality l, t = difference / standard_error. Exact for one sample; for pairs it takes the
    ratio of the two deviations as known (Algina and Keselman 2003), for Welch's also its degrees of freedom.
    None where there is no t or no deviation; (0, 0) where no run differs.
    """
    error, degrees, deviation = comparison.standard_error, comparison.degrees_of_freedom, comparison.deviation
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
    furthest = t * chi_quantile(1 - tail, degrees) + 4.0
    return _noncentrality(1 - tail, t, degrees, furthest), _noncentrality(tail, t, degrees, furthest)


def _noncentrality(probability: float, t: float, degrees: float, furthest: float) -> float:
    """The l with P(T <= t; l) = probability, which falls as l grows: by bisection, down to neighbouring floats."""
    low, high = -2.0, furthest
    middle = (low + high) / 2
    while low < middle < high:
        if noncentral_t_below(t, degrees, middle) > probability:
            low = middle
        else:
            high = middle
        middle = (low + high) / 2
    return middle
