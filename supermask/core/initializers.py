"""Initial values of prunable tensors, drawn with NumPy from named streams."""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from supermask.core.rng import Stream

TRUNCATION = 2.0
"""Cut, in standard deviations of the underlying normal."""

TRUNCATED_STD = sqrt(1 - 2 * TRUNCATION * exp(-(TRUNCATION**2) / 2) / sqrt(2 * pi) / erf(TRUNCATION / sqrt(2)))
"""Standard deviation of a standard normal truncated at two standard deviations: 0.8796."""


def truncated_normal(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draw normal values, truncated at two standard deviations, whose *realized* standard deviation is `std`.

    Values beyond the cut are drawn again. Units of `std`; Glorot's is sqrt(2 / (fan_in + fan_out)).
    Source: Zhou et al. 2019, supplement (Glorot normal initialization).
    """
    draws = rng.standard_normal(int(np.prod(shape)))
    beyond = np.flatnonzero(np.abs(draws) > TRUNCATION)
    while beyond.size:
        draws[beyond] = rng.standard_normal(beyond.size)
        beyond = beyond[np.abs(draws[beyond]) > TRUNCATION]
    return (draws * (std / TRUNCATED_STD)).astype(np.float32).reshape(shape)


def max_abs_draw(std: float) -> float:
    """Largest magnitude that `truncated_normal(_, std, _)` can draw."""
    return TRUNCATION * std / TRUNCATED_STD


PEAK_STD = 0.25
"""Standard deviation of each peak of `bimodal`, in standard deviations of the layer's initialization."""


def bimodal(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draw from two peaks at +m and -m, each with standard deviation `PEAK_STD * std`; overall it is `std`.

    m = std * sqrt(1 - PEAK_STD**2), so only the shape differs from a Glorot normal. The mean magnitude is 18% larger.
    Source: Zhou et al. 2019, authors' response, item 6 (open).
    """
    signs = 2.0 * rng.integers(0, 2, size=shape) - 1.0
    peaks = signs * sqrt(1 - PEAK_STD**2) + PEAK_STD * rng.standard_normal(shape)
    return (peaks * std).astype(np.float32)
