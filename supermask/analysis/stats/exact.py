"""The exact test of paired differences: what if every sign were a coin's?

The median of a few runs, and its bootstrap interval, without a single random number.
"""

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
"""Pairs up to which all 2^n sign patterns are counted; beyond, `DRAWN` of them are drawn."""

MONTE_CARLO_DRAWS = 200_000
"""Patterns drawn beyond `ENUMERATED` pairs: the standard error of p = 0.05 is 0.0005."""

_TIE = 1e-9
"""Sums this near to the observed one, relative to the sum of all sizes, are ties: decimals are stored rounded."""


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean of paired differences: the share of the 2^n sign patterns with |sum| >= |observed sum|.

    Assumes no normal distribution, only that without an effect a difference is as likely as its negative. Exact up to
    40 pairs: the signed sums of either half of the pairs are listed, and those that together are far enough out
    counted by bisection, in about 2^(n/2) steps. Beyond, 200,000 patterns from a fixed seed,
    (hits + 1) / (drawn + 1). Raises ValueError where there are no differences, or one is not finite.
    Source: Fisher (1935), The Design of Experiments.
    """
    import numpy as np

    if not len(differences):
        raise ValueError("a test of no differences was asked for")
    check_finite(differences, "differences")
    flipped = np.asarray(differences, dtype=np.float64)
    if not flipped.any():
        return 1.0
    flipped = flipped / np.abs(flipped).max()  # so that no sum overflows
    bound = abs(float(flipped.sum())) - _TIE * float(np.abs(flipped).sum())
    if len(flipped) > MAX_ENUMERATED:
        return _monte_carlo_p(flipped, bound)
    half = len(flipped) // 2
    left, right = _signed_sums(flipped[:half]), np.sort(_signed_sums(flipped[half:]))
    above = right.size * left.size - int(np.searchsorted(right, bound - left, side="left").sum())
    below = int(np.searchsorted(right, -bound - left, side="right").sum())
    return min(1.0, math.ldexp(above + below, -len(flipped)))


def paired_sign_flip_p(treatment: Mapping[int, float], reference: Mapping[int, float]) -> float | None:
    """`sign_flip_p` of treatment - reference, each a mapping seed -> value; None where the seeds are no pairs."""
    if treatment.keys() != reference.keys() or not treatment:
        return None
    return sign_flip_p([treatment[seed] - reference[seed] for seed in sorted(treatment)])


def min_sign_flip_p(n: int) -> float:
    """2 / 2^n: the p of n pairs that all differ the same way, the least that the test can give. 1 for one pair."""
    if n < 1:
        raise ValueError(f"the least p of {n} pairs was asked for; there has to be at least one")
    return math.ldexp(2.0, -n)


def exact_test_limit(n: int) -> str:
    """The sentence that says what an exact test of n pairs cannot reach; empty where it can, and without pairs."""
    if n < 1 or min_sign_flip_p(n) < SIGNIFICANCE:
        return ""
    enough = next(m for m in range(n, 64) if min_sign_flip_p(m) < SIGNIFICANCE)
    return (
        f"With {pluralize(n, 'paired seed')} an exact sign-flip test cannot give p below "
        f"{min_sign_flip_p(n):g}, so no difference could be significant (p < {SIGNIFICANCE:g}) by it; "
        f"{enough} seeds can reach {min_sign_flip_p(enough):g}."
    )


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of all 2^n sign patterns."""
    import numpy as np

    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _monte_carlo_p(values: NDArray[np.float64], bound: float) -> float:
    import numpy as np

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (MONTE_CARLO_DRAWS // 100, len(values)))
        hits += int((np.abs(signs @ values) >= bound).sum())
    return (hits + 1) / (MONTE_CARLO_DRAWS + 1)


@dataclass(frozen=True)
class MedianInterval:
    """The median of n independent values and its 95% bootstrap interval; `low` and `high` are None where n < 2."""

    n: int
    median: float
    low: float | None
    high: float | None


def bootstrap_median(values: Sequence[float]) -> MedianInterval:
    """Median, and the 2.5% and 97.5% points of the medians of all n^n resamples.

    Exact for every n, and free of rounding: the resamples with each median are counted, not drawn (in integers). `low`
    is the least median that 2.5% of the resamples do not exceed, `high` its mirror image. Up to n = 5 that is the whole
    range of the values: five runs cannot say more of a median (they bracket it with a probability of 1 - 2 / 2^5 =
    94%). Raises ValueError where there are no values, or one is not finite.
    """
    n = len(values)
    if n == 0:
        raise ValueError("the median of no values was asked for")
    check_finite(values, "values")
    ordered = sorted(values)
    median = _midpoint(ordered[(n - 1) // 2], ordered[n // 2])
    if n < 2:
        return MedianInterval(n, median, None, None)
    counts = sorted(_resamples(ordered))
    return MedianInterval(n, median, _tail(counts, n), _tail(counts[::-1], n))


def _resamples(ordered: Sequence[float]) -> list[tuple[float, int]]:
    """(median, number of resamples that have it) for each pair of values that a median can lie between."""
    n = len(ordered)
    if n % 2:
        at_most = [_at_least_half(n, k) for k in range(n + 1)]
        return [(ordered[k], at_most[k + 1] - at_most[k]) for k in range(n)]
    half = n // 2
    found = []
    at_most = [_at_least_half(n, k) for k in range(n + 1)]
    for i in range(n):
        # The lower middle is value i, the upper one value j > i: half of the draws are at most i and reach it, the
        # other half at least j and reach it.
        lower = math.comb(n, half) * ((i + 1) ** half - i**half)
        apart = [(j, lower * ((n - j) ** half - (n - j - 1) ** half)) for j in range(i + 1, n)]
        found += [(_midpoint(ordered[i], ordered[j]), count) for j, count in apart]
        # Both are value i: the rest of the resamples whose lower middle is.
        found.append((ordered[i], at_most[i + 1] - at_most[i] - sum(count for _, count in apart)))
    return found


def _at_least_half(n: int, k: int) -> int:
    """Resamples of n of which at least half the draws (the larger half, for odd n) are among the k lowest values."""
    return sum(math.comb(n, drawn) * k**drawn * (n - k) ** (n - drawn) for drawn in range((n + 1) // 2, n + 1))


def _tail(counts: Sequence[tuple[float, int]], n: int) -> float:
    """The first median, from one end, with at least 2.5% (a fortieth) of the resamples up to and including it."""
    seen = 0
    for median, count in counts:
        seen += count
        if 40 * seen >= n**n:
            return median
    raise AssertionError("the resamples do not add up")


def _midpoint(low: float, high: float) -> float:
    return low if low == high else low / 2 + high / 2
