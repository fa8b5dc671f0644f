"""The (w_i, w_f) plane of a layer: where kept and pruned weights lie, and their counts in hexagons.

Distributions of a layer's weights before and after masking.

A fully connected first layer seen from its images: how much of each pixel a mask keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class WeightPlane:
    """One point a weight that was alive; one-dimensional arrays in C order of the kernel."""

    w_i: NDArray[Any]
    w_f: NDArray[Any]
    kept: NDArray[np.bool_]


def weight_plane(
    w_i: NDArray[Any], w_f: NDArray[Any], mask: NDArray[np.bool_], alive: NDArray[np.bool_] | None = None
) -> WeightPlane:
    """The alive weights of one layer (all of them, if `alive` is not given) as the criterion saw them.

    All arrays have the kernel's shape. Source: paper.md section 8; Figure 2 of the paper.
    """
    among = np.ones(mask.shape, dtype=bool) if alive is None else alive
    return WeightPlane(w_i[among], w_f[among], mask[among])


@dataclass(frozen=True)
class HexbinCounts:
    """Counts in a honeycomb; an entry a hexagon that is not empty."""

    x: NDArray[np.float64]
    """Centres, in units of w_i."""
    y: NDArray[np.float64]
    """Centres, in units of w_f."""
    kept: NDArray[np.int64]
    pruned: NDArray[np.int64]
    width: float
    """Between two neighbours in a row, in units of w_i; every second row is shifted by half of it."""
    rise: float
    """Between two rows of the same shift, in units of w_f; the row between lies halfway."""
    outside: int
    """Weights beyond the limits: in no hexagon."""


def hexbin(plane: WeightPlane, limits: tuple[float, float], columns: int, rows: int) -> HexbinCounts:
    """The plane in hexagons that cover [-limits[0], limits[0]] x [-limits[1], limits[1]].

    `columns` hexagons side by side from edge to edge of w_i, and `rows` double rows in w_f. A weight belongs to the
    nearest of the centres, distances measured in columns and, times sqrt(3), in double rows, so that the hexagons are
    regular where width and rise are drawn as 1 and sqrt(3). Raises ValueError if limits are not positive.
    """
    if min(limits) <= 0:
        raise ValueError(f"a plane has limits above 0, not {limits}")
    width, rise = 2 * limits[0] / columns, 2 * limits[1] / rows
    inside = (np.abs(plane.w_i) <= limits[0]) & (np.abs(plane.w_f) <= limits[1])
    across, up = plane.w_i[inside] / np.float64(width), plane.w_f[inside] / np.float64(rise)
    # Two rectangular grids, one shifted by half a step both ways: the nearest centre is the nearest of either's.
    near = np.stack([np.round(across), np.round(up)])
    shifted = np.stack([np.floor(across) + 0.5, np.floor(up) + 0.5])
    distance, to_shifted = ((across - grid[0]) ** 2 + 3 * (up - grid[1]) ** 2 for grid in (near, shifted))
    # Twice the centres are whole numbers, at most one step beyond the limits: each has a place in a table.
    twice = (np.where(distance <= to_shifted, near, shifted) * 2).astype(np.int64)
    high = 2 * rows + 3
    places, found = (twice[0] + columns + 1) * high + twice[1] + rows + 1, plane.kept[inside]
    kept, pruned = (np.bincount(places[flag], minlength=(2 * columns + 3) * high) for flag in (found, ~found))
    filled = np.flatnonzero(kept + pruned)
    x = (filled // high - columns - 1) / 2 * width
    y = (filled % high - rows - 1) / 2 * rise
    outside = int(inside.size - inside.sum())
    return HexbinCounts(x, y, kept[filled], pruned[filled], width, rise, outside)


@dataclass(frozen=True)
class Distribution:
    """Counts of one layer's weights between edges; `edges` has one entry more than the counts."""

    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    """All that were alive before the mask."""
    after: NDArray[np.int64]
    """Those that the mask keeps."""
    outside: int
    """Alive weights beyond the edges: in no count."""


def weight_distribution(
    values: NDArray[Any], mask: NDArray[np.bool_], alive: NDArray[np.bool_] | None, edges: NDArray[np.float64]
) -> Distribution:
    """Counts of w_i or w_f of one layer, of the alive weights and of the kept ones.

    All arrays but `edges` have the kernel's shape; `alive` None is all of them. Source: paper.md section 8.
    """
    before = values[np.ones(mask.shape, dtype=bool) if alive is None else alive]
    counts = np.histogram(before, edges)[0]
    after = np.histogram(values[mask if alive is None else mask & alive], edges)[0]
    return Distribution(edges, counts, after, int(before.size - counts.sum()))


def symmetric_limit(values: Sequence[NDArray[Any]], share: float = 0.999) -> float:
    """The magnitude that `share` of the values do not exceed, in whichever array it is largest; above 0."""
    found = [float(np.quantile(np.abs(array), share)) for array in values if array.size]
    return max(found, default=0.0) or 1.0


def pixel_map(mask: NDArray[np.bool_], image_shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """Share of each pixel's weights that are kept, in [0, 1]; shape (height, width), channels taken together.

    `mask` is that of a first layer, (units, channels * height * width). Raises ValueError for any other shape (a
    convolution has no weights of a pixel's own). Source: paper.md section 8.
    """
    channels, height, width = image_shape
    if mask.ndim != 2 or mask.shape[1] != channels * height * width:
        raise ValueError(f"a mask of shape {mask.shape} has no weights of its own for each pixel of {image_shape}")
    share: NDArray[np.float64] = mask.reshape(-1, channels, height, width).mean(axis=(0, 1))
    return share
