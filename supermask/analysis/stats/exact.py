"""Exact sign-flip test of paired differences, and the exact bootstrap interval of a median."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supermask.analysis.stats.comparison import SIGNIFICANCE, check_finite
from supermask.core.text import pluralize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_ENUMERATED = 40
"""Pairs up to which all 2^n sign patterns are counted; beyond, `MONTE_CARLO_DRAWS` of them are drawn."""

MONTE_CARLO_DRAWS = 200_000
"""Sign patterns drawn beyond `MAX_ENUMERATED` pairs: the standard error of p = 0.05 is 0.0005."""

_TIE = 1e-9
"""Relative to the sum of magnitudes: sums this close to the observed one are ties, since values are stored rounded."""


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean of paired differences: the share of the 2^n sign patterns with |sum| >= |observed sum|.

    It assumes no normal distribution, only that without an effect a difference is as likely as its negative. Exact up
    to 40 pairs, in about 2^(n/2) steps: the signed sums of each half of the pairs are listed, and pairs of sums beyond
    the bound are counted by binary search. Beyond 40, 200,000 patterns from a fixed seed, (hits + 1) / (draws + 1).
    Raises ValueError without differences, or if one is not finite.
    Source: Fisher (1935), The Design of Experiments.
    """
    import numpy as np

    if not len(differences):
        raise ValueError("a test needs at least one difference")
    check_finite(differences, "differences")
    values = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return 1.0
    # Scaled, so that no sum overflows.
    values = values / np.abs(values).max()
    bound = abs(float(values.sum())) - _TIE * float(np.abs(values).sum())
    if len(values) > MAX_ENUMERATED:
        return _monte_carlo_p(values, bound)
    half = len(values) // 2
    left, right = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    above = right.size * left.size - int(np.searchsorted(right, bound - left, side="left").sum())
    below = int(np.searchsorted(right, -bound - left, side="right").sum())
    return min(1.0, math.ldexp(above + below, -len(values)))


def paired_sign_flip_p(treatment: Mapping[int, float], reference: Mapping[int, float]) -> float | None:
    """`sign_flip_p` of treatment - reference, both seed -> value; None unless both have the same seeds."""
    if treatment.keys() != reference.keys() or not treatment:
        return None
    return sign_flip_p([treatment[seed] - reference[seed] for seed in sorted(treatment)])


def min_sign_flip_p(n: int) -> float:
    """2 / 2^n, the smallest p of n pairs: all differ in the same direction. 1 for one pair."""
    if n < 1:
        raise ValueError(f"the smallest p needs at least one pair; there are {n}")
    return math.ldexp(2.0, -n)


def exact_test_limit(n: int) -> str:
    """Sentence on the smallest p of an exact test of n pairs; empty if it is below 0.05, and without pairs."""
    if n < 1 or min_sign_flip_p(n) < SIGNIFICANCE:
        return ""
    enough = next(m for m in range(n, 64) if min_sign_flip_p(m) < SIGNIFICANCE)
    return (
        f"With {pluralize(n, 'paired seed')} an exact sign-flip test cannot give p below "
        f"{min_sign_flip_p(n):g}, so no difference could be significant (p < {SIGNIFICANCE:g}) by it; "
        f"{enough} seeds can reach {min_sign_flip_p(enough):g}."
    )


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The signed sums of all 2^n sign patterns, (2^n,)."""
    import numpy as np

    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _monte_carlo_p(values: NDArray[np.float64], bound: float) -> float:
    import numpy as np

    rng = np.random.default_rng(0)
    hits = 0
    # In 100 parts, which bounds the memory for the sign patterns.
    for _ in range(100):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (MONTE_CARLO_DRAWS // 100, len(values)))
        hits += int((np.abs(signs @ values) >= bound).sum())
    return (hits + 1) / (MONTE_CARLO_DRAWS + 1)


@dataclass(frozen=True)
class MedianInterval:
    """Median of n independent values and its 95% bootstrap interval; `low` and `high` are None if n < 2."""

    n: int
    median: float
    low: float | None
    high: float | None


def bootstrap_median(values: Sequence[float]) -> MedianInterval:
    """Median, and the 2.5% and 97.5% quantiles of the medians of all n^n resamples.

    Exact for every n and without random numbers: the resamples with each median are counted, in integers. `low` is the
    smallest median that 2.5% of the resamples do not exceed, `high` its mirror image. Up to n = 5 the interval is the
    whole range of the values, which contains the true median with a probability of 1 - 2 / 2^5 = 94% for n = 5.
    Raises ValueError without values, or if one is not finite.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a median needs at least one value")
    check_finite(values, "values")
    ordered = sorted(values)
    median = _midpoint(ordered[(n - 1) // 2], ordered[n // 2])
    if n < 2:
        return MedianInterval(n, median, None, None)
    counts = sorted(_count_resamples(ordered))
    return MedianInterval(n, median, _tail_median(counts, n), _tail_median(counts[::-1], n))


def _count_resamples(ordered: Sequence[float]) -> list[tuple[float, int]]:
    """(median, number of resamples with it); a median may occur several times."""
    n = len(ordered)
    if n % 2:
        cumulative = [_count_half_below(n, k) for k in range(n + 1)]
        return [(ordered[k], cumulative[k + 1] - cumulative[k]) for k in range(n)]
    half = n // 2
    counts = []
    cumulative = [_count_half_below(n, k) for k in range(n + 1)]
    for i in range(n):
        # The lower middle value is i and the upper one j > i: half of the draws are <= i, at least one of them i; the
        # other half are >= j, at least one of them j.
        lower_half = math.comb(n, half) * ((i + 1) ** half - i**half)
        with_upper = [(j, lower_half * ((n - j) ** half - (n - j - 1) ** half)) for j in range(i + 1, n)]
        counts += [(_midpoint(ordered[i], ordered[j]), count) for j, count in with_upper]
        # Both middle values are i: all other resamples whose lower middle value is i.
        counts.append((ordered[i], cumulative[i + 1] - cumulative[i] - sum(count for _, count in with_upper)))
    return counts


def _count_half_below(n: int, k: int) -> int:
    """Resamples in which at least half of the n draws, rounded up, are among the k lowest values."""
    return sum(math.comb(n, low) * k**low * (n - k) ** (n - low) for low in range((n + 1) // 2, n + 1))


def _tail_median(counts: Sequence[tuple[float, int]], n: int) -> float:
    """The first median with at least 2.5% (1/40) of the resamples up to and including it; `counts` from one end."""
    cumulative = 0
    for median, count in counts:
        cumulative += count
        if 40 * cumulative >= n**n:
            return median
    raise AssertionError("the resamples do not add up to n^n")


def _midpoint(low: float, high: float) -> float:
    return low if low == high else low / 2 + high / 2
