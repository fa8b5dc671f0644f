"""Student's t, central and noncentral, one number at a time. scipy is imported when it is first needed."""

from __future__ import annotations

import math

_LARGE = 1000.0


def t_below(t: float, degrees: float) -> float:
    """P(T <= t)."""
    from scipy.special import stdtr

    return float(stdtr(degrees, t))


def t_quantile(probability: float, degrees: float) -> float:
    """The t with P(T <= t) = probability."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def noncentral_t_below(t: float, degrees: float, noncentrality: float) -> float:
    """P((Z + noncentrality) / S <= t), Z standard normal, S^2 chi-squared over its degrees of freedom.

    scipy's where it gives a number: it does not in the far tails, below 1e-50. Beyond a noncentrality of 1000, where it
    is slow, Z is left out: an error below 1e-5.
    """
    from scipy.special import gammaincc, nctdtr

    if noncentrality < -_LARGE:
        return 1.0 - noncentral_t_below(-t, degrees, -noncentrality)
    if noncentrality > _LARGE:
        ratio = noncentrality / t if t > 0 else math.inf
        return float(gammaincc(degrees / 2, degrees / 2 * ratio * ratio))
    p = float(nctdtr(degrees, noncentrality, t))
    return p if not math.isnan(p) else float(noncentrality < t)


def chi_quantile(probability: float, degrees: float) -> float:
    """The s with P(S <= s) = probability, S^2 chi-squared over its degrees of freedom."""
    from scipy.special import gammaincinv

    return math.sqrt(gammaincinv(degrees / 2, probability) * 2 / degrees)
