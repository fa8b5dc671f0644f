"""Dense 3x3 convolutions over planes of sixteen images with 16 multiplications for 4 pixels instead of 36.

Of each 4x4 patch of a plane, `V = B' d B` is made (additions alone); of each 3x3 filter `U = G g G'`; the sum over
channels of their products, number by number, is `M`, and `A' M A` are 2x2 pixels of the output. With

    B' = 1  0 -1  0     G =  1    0    0     A' = 1 1  1  0
         0  1  1  0         1/2  1/2  1/2         0 1 -1 -1
         0 -1  1  0         1/2 -1/2  1/2
         0  1  0 -1          0    0    1

the middle is 16 dense products, four tiles of 2x2 pixels of sixteen images at a time.

Source: paper.md section 2 (Conv2/4/6); Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015),
F(2x2, 3x3); how fast: docs/performance.md.

Gradients of the filters of dense 3x3 convolutions, as `winograd` computes these: dL/dg = G' (dL/dU) G.

dL/dU is the sum over tiles and images of `A d A'`, from the gradient d of 2x2 pixels of the output, times `B' x B`,
from the 4x4 patch that the tile was computed from, number by number: 16 products for 36.

Source: paper.md section 2 (Conv2/4/6); how fast: docs/performance.md.
"""

from __future__ import annotations

import numpy as np

from supermask.engines.sparse.kernels.conv import TILE, accumulate_outer
from supermask.engines.sparse.kernels.jit import jit_entry, jit_inline
from supermask.engines.sparse.kernels.matmul import ROWS, gemm_tile
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, add, load, relu_where, splat, store
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH, add16, load16, store16, store_max, subtract16, zeros16

# mypy: disable-error-code="no-untyped-def"


PARTS = 16
"""Numbers of a transformed patch or filter."""

TILES = VECTOR_WIDTH // VEC16_WIDTH
"""Tiles whose products are computed together."""


def tile_starts(height: int, width: int) -> np.ndarray:
    """The pixels at which the 2x2 tiles begin that cover an image, row by row, int64 `(n, 2)` (y, x).

    n is a multiple of TILES: the last tile may come again. Source: docs/performance.md.
    """
    places = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    return np.array(places + places[-1:] * (-len(places) % TILES))


@jit_inline
def part_size(rows, columns):
    """How far apart the parts of transformed filters are: not a power of two, so that a cache holds all of them."""
    return rows * columns + VEC16_WIDTH


@jit_entry
def transform_filters(weight, steps, rows, columns, out):
    """out[i, row, column] = number i of G g G', for the filter g of every row and column.

    The weight of row r at tap t of column c is at steps[0] + r * steps[1] + c * steps[2] + t * steps[3].
    """
    base, row, column, tap = steps
    for r in range(rows):
        for c in range(columns):
            here, to = base + r * row + c * column, r * columns + c
            a0, a1, a2, a3 = _g_transform_column(weight[here], weight[here + 3 * tap], weight[here + 6 * tap])
            here += tap
            b0, b1, b2, b3 = _g_transform_column(weight[here], weight[here + 3 * tap], weight[here + 6 * tap])
            here += tap
            c0, c1, c2, c3 = _g_transform_column(weight[here], weight[here + 3 * tap], weight[here + 6 * tap])
            size = part_size(rows, columns)
            _store_strided(out, to, size, _g_transform_column(a0, b0, c0))
            _store_strided(out, to + 4 * size, size, _g_transform_column(a1, b1, c1))
            _store_strided(out, to + 8 * size, size, _g_transform_column(a2, b2, c2))
            _store_strided(out, to + 12 * size, size, _g_transform_column(a3, b3, c3))


@jit_inline
def _g_transform_column(a, b, c):
    """G times a column of three."""
    half = np.float32(0.5)
    ends, middle = half * (a + c), half * b
    return a, ends + middle, ends - middle, c


@jit_inline
def _store_strided(out, to, step, four):
    out[to], out[to + step], out[to + 2 * step], out[to + 3 * step] = four


@jit_entry
def dense_conv(u, bias, x, shape, places, relu, v, m, four, where, out):
    """Planes to planes of the same size: ReLU of the sums, or the sums where `where` > 0 and 0 elsewhere.

    `u` are the transformed filters, `shape` is that of `out`, `places` as in `tiles`; `v`,
    `m` and `four` are room for transformed patches and products of four tiles, and for four lines.
    """
    for first in range(0, len(places), TILES):
        _multiply(u, x, shape, places, first, v, m)
        for o in range(shape.channels):
            for i in range(TILES):
                y, across = places[first + i, 0], places[first + i, 1]
                to = (o * shape.plane + (y + 1) * shape.pitch + across + 1) * VEC16_WIDTH
                below = to + shape.pitch * VEC16_WIDTH
                values = _output_tile(m, o, i, shape.channels, bias, four)
                if relu:
                    values = relu_where(values, values)
                else:
                    store16(four, 0, load16(where, to))
                    store16(four, VEC16_WIDTH, load16(where, to + VEC16_WIDTH))
                    store16(four, 2 * VEC16_WIDTH, load16(where, below))
                    store16(four, 3 * VEC16_WIDTH, load16(where, below + VEC16_WIDTH))
                    values = relu_where(values, load(four, 0))
                store(four, 0, values)
                store16(out, to, load16(four, 0))
                right, down = across + 1 < shape.width, y + 1 < shape.height
                if right:
                    store16(out, to + VEC16_WIDTH, load16(four, VEC16_WIDTH))
                if down:
                    store16(out, below, load16(four, 2 * VEC16_WIDTH))
                if right and down:
                    store16(out, below + VEC16_WIDTH, load16(four, 3 * VEC16_WIDTH))


@jit_entry
def dense_conv_max_pool(u, bias, x, shape, places, v, m, four, out, out_at, strides, codes):
    """Convolution, ReLU and 2x2 max-pooling: a tile is a window. As in `filters.convolve_and_pool`."""
    height, width = shape.height // 2, shape.width // 2
    for first in range(0, len(places), TILES):
        _multiply(u, x, shape, places, first, v, m)
        for o in range(shape.channels):
            for i in range(TILES):
                y, across = places[first + i, 0] // 2, places[first + i, 1] // 2
                values = _output_tile(m, o, i, shape.channels, bias, four)
                store(four, 0, relu_where(values, values))
                to = out_at + o * strides[0] + y * strides[1] + across * strides[2]
                mark = ((o * height + y) * width + across) * VEC16_WIDTH
                store_max(four, 0, VEC16_WIDTH, 2 * VEC16_WIDTH, 3 * VEC16_WIDTH, out, to, codes, mark)


@jit_inline
def _multiply(u, x, shape, places, first, v, m):
    """m[i, o] = sum over the channels c of u[i, o, c] * v[i, c], for four tiles; v from the patches of `x`."""
    plane, outputs = shape.plane * VEC16_WIDTH, shape.channels
    channels = len(x) // plane
    for c in range(channels):
        for i in range(TILES):
            y, across = places[first + i, 0], places[first + i, 1]
            patch = c * plane + (y * shape.pitch + across) * VEC16_WIDTH
            _transform_patch(
                x, patch, shape.pitch * VEC16_WIDTH, v, c * VECTOR_WIDTH + i * VEC16_WIDTH, channels * VECTOR_WIDTH
            )
    zero = splat(np.float32(0))
    for i in range(PARTS):
        for o in range(0, outputs, ROWS):
            from_u, from_v = i * part_size(outputs, channels) + o * channels, i * channels * VECTOR_WIDTH
            t0, t1, t2, t3 = gemm_tile(
                u, from_u, channels, 1, v, from_v, VECTOR_WIDTH, channels, zero, zero, zero, zero
            )
            here = i * outputs + o
            store(m, here * VECTOR_WIDTH, t0)
            store(m, (here + 1) * VECTOR_WIDTH, t1)
            store(m, (here + 2) * VECTOR_WIDTH, t2)
            store(m, (here + 3) * VECTOR_WIDTH, t3)


@jit_inline
def _transform_patch(x, at, row, v, to, step):
    """B' d B of the patch at `at`; number i goes to v[to + i * step]."""
    a0, a1, a2, a3 = _differences(x, at, row)
    b0, b1, b2, b3 = _differences(x, at + VEC16_WIDTH, row)
    c0, c1, c2, c3 = _differences(x, at + 2 * VEC16_WIDTH, row)
    d0, d1, d2, d3 = _differences(x, at + 3 * VEC16_WIDTH, row)
    store_differences(a0, b0, c0, d0, v, to, step)
    store_differences(a1, b1, c1, d1, v, to + 4 * step, step)
    store_differences(a2, b2, c2, d2, v, to + 8 * step, step)
    store_differences(a3, b3, c3, d3, v, to + 12 * step, step)


@jit_inline
def _differences(x, at, row):
    """B' d of one column of a patch."""
    a, b = load16(x, at), load16(x, at + row)
    c, d = load16(x, at + 2 * row), load16(x, at + 3 * row)
    return subtract16(a, c), add16(b, c), subtract16(c, b), subtract16(b, d)


@jit_inline
def store_differences(a, b, c, d, v, to, step):
    store16(v, to, subtract16(a, c))
    store16(v, to + step, add16(b, c))
    store16(v, to + 2 * step, subtract16(c, b))
    store16(v, to + 3 * step, subtract16(b, d))


@jit_inline
def _output_tile(m, o, i, outputs, bias, four):
    """bias + A' M A of tile i of output o: its pixels (0, 0), (0, 1), (1, 0), (1, 1), a line each."""
    at, step = o * VECTOR_WIDTH + i * VEC16_WIDTH, outputs * VECTOR_WIDTH
    a0, a1 = _sums(m, at, 4 * step)
    b0, b1 = _sums(m, at + step, 4 * step)
    c0, c1 = _sums(m, at + 2 * step, 4 * step)
    d0, d1 = _sums(m, at + 3 * step, 4 * step)
    store16(four, 0, add16(add16(a0, b0), c0))
    store16(four, VEC16_WIDTH, subtract16(subtract16(b0, c0), d0))
    store16(four, 2 * VEC16_WIDTH, add16(add16(a1, b1), c1))
    store16(four, 3 * VEC16_WIDTH, subtract16(subtract16(b1, c1), d1))
    return add(load(four, 0), splat(bias[o]))


@jit_inline
def _sums(m, at, row):
    """A' M of one column."""
    a, b = load16(m, at), load16(m, at + row)
    c, d = load16(m, at + 2 * row), load16(m, at + 3 * row)
    return add16(add16(a, b), c), subtract16(subtract16(b, c), d)


# mypy: disable-error-code="no-untyped-def"


TILES_PER_STEP = 32
"""Tiles over which gradients are summed before they are put down: half of a second cache of 2 MB, of 64 channels."""


@jit_entry
def dense_conv_weight_grad(x, channels, d, shape, places, v, w, sums, bias_sums):
    """sums[i, o / TILE, c, o % TILE] += sum over tiles and images of (A d A')[i, o] * (B' x B)[i, c]: dL/dU.

    `shape` is that of `d`; `places` as in `tiles`, each once. `v` and `w` are room for a row of the transformed patches
    and gradients of `TOGETHER` tiles. Channels are padded to a multiple of three; what comes out for the padding is
    garbage that nobody reads. `bias_sums[o]` += d[o], a line each.
    """
    plane, pitch, padded, step = (
        shape.plane * VEC16_WIDTH,
        shape.pitch * VEC16_WIDTH,
        -(-channels // 3) * 3,
        TILES_PER_STEP * VEC16_WIDTH,
    )
    for first in range(0, len(places), TILES_PER_STEP):
        count = min(TILES_PER_STEP, len(places) - first)
        for i in range(4):
            for t in range(count):
                here = (places[first + t, 0] * shape.pitch + places[first + t, 1]) * VEC16_WIDTH
                for c in range(channels):
                    _transform_patch_row(
                        i, x, c * plane + here, pitch, v, (c * TILES_PER_STEP + t) * VEC16_WIDTH, padded * step
                    )
            for o in range(shape.channels):
                total = load16(bias_sums, o * VEC16_WIDTH)
                for t in range(count):
                    y, across = places[first + t, 0] + 1, places[first + t, 1] + 1
                    here, to = o * plane + y * pitch + across * VEC16_WIDTH, (o * TILES_PER_STEP + t) * VEC16_WIDTH
                    whole = _transform_gradient_row(i, d, here, pitch, w, to, shape.channels * step)
                    if i == 1:
                        total = add16(total, whole)
                store16(bias_sums, o * VEC16_WIDTH, total)
            for j in range(4):
                for o in range(0, shape.channels, TILE):
                    for c in range(0, padded, 3):
                        here, there = (j * shape.channels + o) * step, (j * padded + c) * step
                        to = (((i * 4 + j) * shape.channels + o) * padded) + c * TILE
                        accumulate_outer(w, here, v, there, step, count, sums, to)


@jit_inline
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
    a, e = load16(x, here), load16(x, there)
    b, f = load16(x, here + VEC16_WIDTH), load16(x, there + VEC16_WIDTH)
    c, g = load16(x, here + 2 * VEC16_WIDTH), load16(x, there + 2 * VEC16_WIDTH)
    d, h = load16(x, here + 3 * VEC16_WIDTH), load16(x, there + 3 * VEC16_WIDTH)
    if i == 1:
        a, b, c, d = add16(a, e), add16(b, f), add16(c, g), add16(d, h)
    else:
        a, b, c, d = subtract16(a, e), subtract16(b, f), subtract16(c, g), subtract16(d, h)
    store_differences(a, b, c, d, v, to, step)


@jit_inline
def _transform_gradient_row(i, d, at, row, w, to, step):
    """Row i of A d A', of a tile of 2x2; number j goes to w[to + j * step]. Number 1 of row 1 is the tile's sum."""
    left, right = load16(d, at), load16(d, at + VEC16_WIDTH)
    left_below, right_below = load16(d, at + row), load16(d, at + row + VEC16_WIDTH)
    if i == 1:
        left, right = add16(left, left_below), add16(right, right_below)
    elif i == 2:
        left, right = subtract16(left, left_below), subtract16(right, right_below)
    elif i == 3:
        left, right = subtract16(zeros16(), left_below), subtract16(zeros16(), right_below)
    both = add16(left, right)
    store16(w, to, left)
    store16(w, to + step, both)
    store16(w, to + 2 * step, subtract16(left, right))
    store16(w, to + 3 * step, subtract16(zeros16(), right))
    return both


@jit_entry
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
            _store_row(g, to, a0, b0, c0, d0)
            _store_row(g, to + 3, a1, b1, c1, d1)
            _store_row(g, to + 6, a2, b2, c2, d2)
    for k in range(len(sums)):
        sums[k] = 0


@jit_inline
def _from_ends_and_halves(sums, at, step):
    """G' times a column of four."""
    half = np.float32(0.5)
    a, b, c, d = sums[at], sums[at + step], sums[at + 2 * step], sums[at + 3 * step]
    return a + half * (b + c), half * (b - c), half * (b + c) + d


@jit_inline
def _store_row(g, to, a, b, c, d):
    half = np.float32(0.5)
    g[to], g[to + 1], g[to + 2] = a + half * (b + c), half * (b - c), half * (b + c) + d
