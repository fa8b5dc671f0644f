"""The exact test of paired differences: what if every sign were a coin's?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from supermask.stats.comparing import SIGNIFICANCE
from supermask.stats.moments import refuse_not_finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENUMERATED = 40
"""Pairs up to which all 2^n sign patterns are counted; beyond, `DRAWN` of them are drawn."""

DRAWN = 200_000
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
    refuse_not_finite(differences, "differences")
    flipped = np.asarray(differences, dtype=np.float64)
    if not flipped.any():
        return 1.0
    flipped = flipped / np.abs(flipped).max()  # so that no sum overflows
    bound = abs(float(flipped.sum())) - _TIE * float(np.abs(flipped).sum())
    if len(flipped) > ENUMERATED:
        return _drawn_p(flipped, bound)
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


def least_sign_flip_p(n: int) -> float:
    """2 / 2^n: the p of n pairs that all differ the same way, the least that the test can give. 1 for one pair."""
    if n < 1:
        raise ValueError(f"the least p of {n} pairs was asked for; there has to be at least one")
    return math.ldexp(2.0, -n)


def exact_remark(n: int) -> str:
    """The sentence that says what an exact test of n pairs cannot reach; empty where it can, and without pairs."""
    if n < 1 or least_sign_flip_p(n) < SIGNIFICANCE:
        return ""
    enough = next(m for m in range(n, 64) if least_sign_flip_p(m) < SIGNIFICANCE)
    return (
        f"With {n} paired seed{'s' if n > 1 else ''} an exact sign-flip test cannot give p below "
        f"{least_sign_flip_p(n):g}, so no difference could be significant (p < {SIGNIFICANCE:g}) by it; "
        f"{enough} seeds can reach {least_sign_flip_p(enough):g}."
    )


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of all 2^n sign patterns."""
    import numpy as np

    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _drawn_p(values: NDArray[np.float64], bound: float) -> float:
    import numpy as np

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (DRAWN // 100, len(values)))
        hits += int((np.abs(signs @ values) >= bound).sum())
    return (hits + 1) / (DRAWN + 1)
