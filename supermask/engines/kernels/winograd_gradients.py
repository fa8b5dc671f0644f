"""Gradients of the filters of dense 3x3 convolutions, as `winograd` computes these: dL/dg = G' (dL/dU) G.

dL/dU is the sum over tiles and images of `A d A'`, from the gradient d of 2x2 pixels of the output, times `B' x B`,
from the 4x4 patch that the tile was computed from, number by number: 16 products for 36.

Source: paper.md section 2 (Conv2/4/6); how fast: docs/performance.md.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.compiling import kernel, part
from supermask.engines.kernels.filters import TILE, add_outer
from supermask.engines.kernels.line import IMAGES, add_line, load_line, nothing, store_line, subtract_line
from supermask.engines.kernels.winograd import store_differences

TOGETHER = 32
"""Tiles over which gradients are summed before they are put down: half of a second cache of 2 MB, of 64 channels."""


@kernel
def products(x, channels, d, shape, places, v, w, sums, bias_sums):
    """sums[i, o / TILE, c, o % TILE] += sum over tiles and images of (A d A')[i, o] * (B' x B)[i, c]: dL/dU.

    `shape` is that of `d`; `places` as in `tiles`, each once. `v` and `w` are room for a row of the transformed patches
    and gradients of `TOGETHER` tiles. Channels are padded to a multiple of three; what comes out for the padding is
    garbage that nobody reads. `bias_sums[o]` += d[o], a line each.
    """
    plane, pitch, padded, step = shape.plane * IMAGES, shape.pitch * IMAGES, -(-channels // 3) * 3, TOGETHER * IMAGES
    for first in range(0, len(places), TOGETHER):
        count = min(TOGETHER, len(places) - first)
        for i in range(4):
            for t in range(count):
                here = (places[first + t, 0] * shape.pitch + places[first + t, 1]) * IMAGES
                for c in range(channels):
                    _transform_patch_row(i, x, c * plane + here, pitch, v, (c * TOGETHER + t) * IMAGES, padded * step)
            for o in range(shape.channels):
                total = load_line(bias_sums, o * IMAGES)
                for t in range(count):
                    y, across = places[first + t, 0] + 1, places[first + t, 1] + 1
                    here, to = o * plane + y * pitch + across * IMAGES, (o * TOGETHER + t) * IMAGES
                    whole = _transform_gradient_row(i, d, here, pitch, w, to, shape.channels * step)
                    if i == 1:
                        total = add_line(total, whole)
                store_line(bias_sums, o * IMAGES, total)
            for j in range(4):
                for o in range(0, shape.channels, TILE):
                    for c in range(0, padded, 3):
                        here, there = (j * shape.channels + o) * step, (j * padded + c) * step
                        to = (((i * 4 + j) * shape.channels + o) * padded) + c * TILE
                        add_outer(w, here, v, there, step, count, sums, to)


@part
def _transform_patch_row(i, x, at, row, v, to, step):
    """Row i of B' d B; number j goes to v[to + j * step]."""
    if i == 0:
        here, there = at, at + 2 * row
    elif i == 3:
        here, there = at + row, at + 3 * row
    elif i == 1:
        here, there = at + row, at + 2 * row
    else:
        here, there = at + 2 * row, at + row
    a, e = load_line(x, here), load_line(x, there)
    b, f = load_line(x, here + IMAGES), load_line(x, there + IMAGES)
    c, g = load_line(x, here + 2 * IMAGES), load_line(x, there + 2 * IMAGES)
    d, h = load_line(x, here + 3 * IMAGES), load_line(x, there + 3 * IMAGES)
    if i == 1:
        a, b, c, d = add_line(a, e), add_line(b, f), add_line(c, g), add_line(d, h)
    else:
        a, b, c, d = subtract_line(a, e), subtract_line(b, f), subtract_line(c, g), subtract_line(d, h)
    store_differences(a, b, c, d, v, to, step)


@part
def _transform_gradient_row(i, d, at, row, w, to, step):
    """Row i of A d A', of a tile of 2x2; number j goes to w[to + j * step]. Number 1 of row 1 is the tile's sum."""
    left, right = load_line(d, at), load_line(d, at + IMAGES)
    left_below, right_below = load_line(d, at + row), load_line(d, at + row + IMAGES)
    if i == 1:
        left, right = add_line(left, left_below), add_line(right, right_below)
    elif i == 2:
        left, right = subtract_line(left, left_below), subtract_line(right, right_below)
    elif i == 3:
        left, right = subtract_line(nothing(), left_below), subtract_line(nothing(), right_below)
    both = add_line(left, right)
    store_line(w, to, left)
    store_line(w, to + step, both)
    store_line(w, to + 2 * step, subtract_line(left, right))
    store_line(w, to + 3 * step, subtract_line(nothing(), right))
    return both


@kernel
def filter_gradients(sums, rows, columns, g):
    """g[row, column] = G' S G, the gradient of a filter from that of its transform; the sums become zero."""
    padded = -(-columns // 3) * 3
    size = rows * padded
    for r in range(rows):
        for c in range(columns):
            at, to = (r // TILE * padded + c) * TILE + r % TILE, (r * columns + c) * 9
            a0, a1, a2 = _from_ends_and_halves(sums, at, 4 * size)
            b0, b1, b2 = _from_ends_and_halves(sums, at + size, 4 * size)
            c0, c1, c2 = _from_ends_and_halves(sums, at + 2 * size, 4 * size)
            d0, d1, d2 = _from_ends_and_halves(sums, at + 3 * size, 4 * size)
            _put_three(g, to, a0, b0, c0, d0)
            _put_three(g, to + 3, a1, b1, c1, d1)
            _put_three(g, to + 6, a2, b2, c2, d2)
    for k in range(len(sums)):
        sums[k] = 0


@part
def _from_ends_and_halves(sums, at, step):
    """G' times a column of four."""
    half = np.float32(0.5)
    a, b, c, d = sums[at], sums[at + step], sums[at + 2 * step], sums[at + 3 * step]
    return a + half * (b + c), half * (b - c), half * (b + c) + d


@part
def _put_three(g, to, a, b, c, d):
    half = np.float32(0.5)
    g[to], g[to + 1], g[to + 2] = a + half * (b + c), half * (b - c), half * (b + c) + d
