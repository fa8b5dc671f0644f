"""The median of a few runs, and its bootstrap interval, without a single random number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from supermask.stats.moments import refuse_not_finite


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
    refuse_not_finite(values, "values")
    ordered = sorted(values)
    median = _between(ordered[(n - 1) // 2], ordered[n // 2])
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
        found += [(_between(ordered[i], ordered[j]), count) for j, count in apart]
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


def _between(low: float, high: float) -> float:
    return low if low == high else low / 2 + high / 2
