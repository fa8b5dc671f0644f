"""Initial values of prunable tensors, drawn with NumPy from named streams."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from supermask.core.rng import Stream
from supermask.core.types import PrunableTensor

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


def kaiming_normal(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draw from a normal distribution, not truncated; He's `std` is sqrt(2 / fan_in). Source: He et al. 2015."""
    return (rng.standard_normal(shape) * std).astype(np.float32)


def kaiming_uniform(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draw uniformly from [-sqrt(3) std, sqrt(3) std); He's `std` is sqrt(2 / fan_in). Source: He et al. 2015."""
    return (rng.uniform(-1.0, 1.0, size=shape) * (sqrt(3) * std)).astype(np.float32)


def orthogonal(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draw a matrix `(out, rest)` with orthonormal rows, or columns if it is taller than wide; uniform over all such.

    `std` follows from the shape, 1 / sqrt(max(out, rest)), and is not used. Source: Saxe et al. 2014.
    """
    rows, columns = shape[0], int(np.prod(shape[1:]))
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diagonal(r))  # without it, QR's sign convention makes the distribution non-uniform
    return np.ascontiguousarray(q if rows >= columns else q.T).astype(np.float32).reshape(shape)


def signed_constant(shape: tuple[int, ...], std: float, rng: Stream) -> NDArray[np.float32]:
    """Draw +std or -std with equal probability."""
    return (np.float32(std) * (2 * rng.integers(0, 2, size=shape) - 1).astype(np.float32)).astype(np.float32)


INITIALIZERS: dict[str, Callable[[tuple[int, ...], float, Stream], NDArray[np.float32]]] = {
    "glorot_normal": truncated_normal,
    "glorot_normal_wide": truncated_normal,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "orthogonal": orthogonal,
    "bimodal": bimodal,
    "constant": signed_constant,
}
"""Initializer -> draw of (shape, std, stream). `PrunableTensor.std` gives each its standard deviation.

`glorot_normal_wide` is the control of `bimodal`: 1.18 times as wide, so that its mean magnitude is as large.
"""

OWN = "own"
"""Initializer of import paths: the module's own constructors, under a seed of torch from the run's stream."""


def draw_weights(tensor: PrunableTensor, rng: Stream) -> NDArray[np.float32]:
    """Draw one tensor from its initializer, float32 of the tensor's shape.

    Raises ValueError for the initializer `own` if the module's code was not imported.
    """
    if tensor.initializer == OWN:
        if tensor.own_draw is None:
            raise ValueError(f"{tensor.name} is initialized by its module, whose code was not imported")
        return np.asarray(tensor.own_draw(rng), dtype=np.float32)
    return INITIALIZERS[tensor.initializer](tensor.shape, tensor.std, rng)
