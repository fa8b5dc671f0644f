"""A layer's weights in the (w_i, w_f) plane, as hexagon counts and as distributions, and the pixel map of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WeightPlane:
    """One point per weight that was alive; arrays (n,) in the kernel's C order."""

    w_i: NDArray[Any]
    w_f: NDArray[Any]
    kept: NDArray[np.bool_]


def weight_plane(
    w_i: NDArray[Any], w_f: NDArray[Any], mask: NDArray[np.bool_], alive: NDArray[np.bool_] | None = None
) -> WeightPlane:
    """The alive weights of one layer (by default all) in the plane in which the criterion ranks them.

    All arrays have the kernel's shape. Source: Zhou et al. 2019, Sec. 2, Fig. 2.
    """
    candidates = np.ones(mask.shape, dtype=bool) if alive is None else alive
    return WeightPlane(w_i[candidates], w_f[candidates], mask[candidates])


@dataclass(frozen=True)
class HexbinCounts:
    """Counts per hexagon; one entry per hexagon that is not empty."""

    x: NDArray[np.float64]
    """Centers, in units of w_i."""
    y: NDArray[np.float64]
    """Centers, in units of w_f."""
    kept: NDArray[np.int64]
    pruned: NDArray[np.int64]
    width: float
    """Distance of neighbors in a row, in units of w_i; every second row is shifted by half of it."""
    rise: float
    """Distance of two rows with the same shift, in units of w_f; the shifted row lies halfway."""
    outside: int
    """Weights beyond the limits, counted in no hexagon."""


def hexbin(plane: WeightPlane, limits: tuple[float, float], columns: int, rows: int) -> HexbinCounts:
    """Count the plane's points in hexagons that cover [-limits[0], limits[0]] x [-limits[1], limits[1]].

    `columns` hexagons side by side along w_i and `rows` double rows along w_f. A weight belongs to the nearest center,
    with distances in units of a column along w_i and of a double row / sqrt(3) along w_f: the hexagons are regular if
    width and rise are drawn in the ratio 1 to sqrt(3). Raises ValueError if a limit is not positive.
    """
    if min(limits) <= 0:
        raise ValueError(f"the limits of a plane have to be above 0; they are {limits}")
    width, rise = 2 * limits[0] / columns, 2 * limits[1] / rows
    inside = (np.abs(plane.w_i) <= limits[0]) & (np.abs(plane.w_f) <= limits[1])
    x, y = plane.w_i[inside] / np.float64(width), plane.w_f[inside] / np.float64(rise)
    # A honeycomb is two rectangular grids, one shifted by half a step both ways. The nearest center is the nearer of
    # the nearest centers of the two.
    nearest = np.stack([np.round(x), np.round(y)])
    nearest_shifted = np.stack([np.floor(x) + 0.5, np.floor(y) + 0.5])
    distance, distance_shifted = ((x - c[0]) ** 2 + 3 * (y - c[1]) ** 2 for c in (nearest, nearest_shifted))
    # Twice the centers are integers, at most one step beyond the limits: they index a table of counts.
    twice = (np.where(distance <= distance_shifted, nearest, nearest_shifted) * 2).astype(np.int64)
    stride = 2 * rows + 3
    indices, is_kept = (twice[0] + columns + 1) * stride + twice[1] + rows + 1, plane.kept[inside]
    kept, pruned = (np.bincount(indices[flag], minlength=(2 * columns + 3) * stride) for flag in (is_kept, ~is_kept))
    nonempty = np.flatnonzero(kept + pruned)
    center_x = (nonempty // stride - columns - 1) / 2 * width
    center_y = (nonempty % stride - rows - 1) / 2 * rise
    outside = int(inside.size - inside.sum())
    return HexbinCounts(center_x, center_y, kept[nonempty], pruned[nonempty], width, rise, outside)


@dataclass(frozen=True)
class Distribution:
    """Histogram of one layer's weights; `edges` has one entry more than the counts."""

    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    """Alive weights before the mask is applied."""
    after: NDArray[np.int64]
    """Weights that the mask keeps."""
    outside: int
    """Alive weights beyond the edges, in no count."""


def weight_distribution(
    values: NDArray[Any], mask: NDArray[np.bool_], alive: NDArray[np.bool_] | None, edges: NDArray[np.float64]
) -> Distribution:
    """Histogram of w_i or w_f of one layer, for the alive weights (by default all) and for the kept ones.

    All arrays but `edges` have the kernel's shape. Source: Zhou et al. 2019, Figs. S2 and S3.
    """
    before = values[np.ones(mask.shape, dtype=bool) if alive is None else alive]
    counts = np.histogram(before, edges)[0]
    after = np.histogram(values[mask if alive is None else mask & alive], edges)[0]
    return Distribution(edges, counts, after, int(before.size - counts.sum()))


def symmetric_limit(values: Sequence[NDArray[Any]], share: float = 0.999) -> float:
    """The `share` quantile of the magnitudes of each array; the largest of them. 1.0 if all are 0."""
    quantiles = [float(np.quantile(np.abs(array), share)) for array in values if array.size]
    return max(quantiles, default=0.0) or 1.0


def pixel_map(mask: NDArray[np.bool_], image_shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Share of each pixel's weights that are kept, in [0, 1]: (height, width), the mean over units and channels.

    `mask` is that of a fully connected first layer, (units, channels * height * width). Raises ValueError for any
    other shape; a convolution has no weights of a single pixel. Source: Zhou et al. 2019, Figs. S2 and S3.
    """
    channels, height, width = image_shape
    if mask.ndim != 2 or mask.shape[1] != channels * height * width:
        raise ValueError(
            f"a mask of shape {mask.shape} is not one of a fully connected first layer for images of {image_shape}"
        )
    share: NDArray[np.float64] = mask.reshape(-1, channels, height, width).mean(axis=(0, 1))
    return share
