"""Mean and variance of a few values, summed without loss; and the refusal of values that are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def refuse_not_finite(values: Iterable[float], what: str) -> None:
    """Raises ValueError where one of the values is NaN or infinite."""
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{what} have to be finite numbers; one is {value}")


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """With n - 1; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def rounding_of(values: Iterable[float]) -> float:
    """The rounding error that differences of stored decimals of this size carry: a spread no larger is no spread."""
    return 16 * 2.0**-52 * max(abs(value) for value in values)
