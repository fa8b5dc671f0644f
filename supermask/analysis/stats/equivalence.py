"""One-sided tests against a margin, and the equivalence test (TOST)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from supermask.analysis.stats.comparison import SIGNIFICANCE, Comparison, t_cdf, t_ppf

Side = Literal["greater", "less"]


@dataclass(frozen=True)
class Equivalence:
    """Result of two one-sided tests that a difference lies within -+ margin."""

    p: float | None
    """The larger of the two one-sided p, of this level alone. None if there is no test (see `Comparison.note`)."""
    margin: float
    """In the values' own unit."""
    interval90: tuple[float, float] | None
    """90% t-interval of the difference; inside -+ margin if and only if p < 0.05."""
    equivalent: bool
    """p < 0.05."""


def one_sided_p(comparison: Comparison, shift: float, side: Side) -> float | None:
    """One-sided p of the null hypothesis "difference <= shift" (`greater`) or "difference >= shift" (`less`).

    t = (difference - shift) / standard_error with the comparison's own degrees of freedom, for each kind of test.
    None if t is undefined: fewer than two runs, or the same nonzero difference in every run (see `compare`). If no run
    differs (both treatments led to the same runs), the difference is exactly 0: p is 0 or 1, and 0.5 for shift 0.
    Raises ValueError for a shift that is not finite, or another side.
    """
    if not math.isfinite(shift):
        raise ValueError(f"the shift has to be a finite number; it is {shift}")
    if side not in ("greater", "less"):
        raise ValueError(f"the side is 'greater' or 'less'; it is {side!r}")
    error, degrees = comparison.standard_error, comparison.degrees_of_freedom
    if error is None or degrees is None:
        return None
    excess = comparison.difference - shift if side == "greater" else shift - comparison.difference
    if error == 0.0:
        return 0.5 if excess == 0.0 else float(excess < 0)
    return t_cdf(-excess / error, degrees)


def equivalence(comparison: Comparison, margin: float) -> Equivalence:
    """Two one-sided tests (TOST): p = max(p of "difference <= -margin", p of "difference >= margin").

    The margin is in the values' unit and has to be stated before the values are seen. A difference that is not
    significant is not thereby equivalent. Raises ValueError unless the margin is finite and above 0.
    Source: Schuirmann (1987).
    """
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"the margin of an equivalence has to be above 0 and finite; it is {margin}")
    above, below = one_sided_p(comparison, -margin, "greater"), one_sided_p(comparison, margin, "less")
    error, degrees = comparison.standard_error, comparison.degrees_of_freedom
    if above is None or below is None or error is None or degrees is None:
        return Equivalence(None, margin, None, False)
    half = t_ppf(1 - SIGNIFICANCE, degrees) * error
    p = max(above, below)
    return Equivalence(p, margin, (comparison.difference - half, comparison.difference + half), p < SIGNIFICANCE)
