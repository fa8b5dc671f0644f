"""Initial values of maskable tensors, drawn with NumPy from named streams."""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from supermask.core.rng import Stream

TRUNCATION = 2.0
"""In standard deviations of the underlying normal."""

TRUNCATED_STD = sqrt(1 - 2 * TRUNCATION * exp(-(TRUNCATION**2) / 2) / sqrt(2 * pi) / erf(TRUNCATION / sqrt(2)))
"""Standard deviation of a standard normal truncated at two standard deviations: 0.8796."""


def truncated_normal(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Normal draws, truncated at two of their standard deviations, whose *realised* standard deviation is `std`.

    Values beyond the cut are drawn again. Units: those of `std`.
    Source: paper.md section 2 ("realised standard deviation sqrt(2 / (fan_in + fan_out))").
    """
    draws = rng.standard_normal(int(np.prod(shape)))
    beyond = np.flatnonzero(np.abs(draws) > TRUNCATION)
    while beyond.size:
        draws[beyond] = rng.standard_normal(beyond.size)
        beyond = beyond[np.abs(draws[beyond]) > TRUNCATION]
    return (draws * (std / TRUNCATED_STD)).astype(np.float32).reshape(shape)


def max_abs_draw(std: float) -> float:
    """The bound that no draw of `truncated_normal(_, std, _)` exceeds in magnitude."""
    return TRUNCATION * std / TRUNCATED_STD


PEAK_STD = 0.25
"""Width of each peak of `bimodal`, in standard deviations of the layer's initialisation."""


def bimodal(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draws from two peaks, +-m with width `PEAK_WIDTH * std` each, whose overall standard deviation is `std`.

    m = std * sqrt(1 - PEAK_WIDTH**2), so that it differs from a Glorot normal in its shape and in nothing else.
    Source: paper.md section 4 (answer 6, open: the hypothesis is about the shape).
    """
    signs = 2.0 * rng.integers(0, 2, size=shape) - 1.0
    peaks = signs * sqrt(1 - PEAK_STD**2) + PEAK_STD * rng.standard_normal(shape)
    return (peaks * std).astype(np.float32)
