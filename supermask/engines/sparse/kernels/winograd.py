"""Dense 3x3 convolutions by Winograd's F(2x2, 3x3): 16 multiplications for 4 pixels instead of 36.

Shape letters and planes as in `conv`: N = 16 images, C input channels, O output channels. Besides:

    T   TILES = 4 tiles of 2x2 output pixels, computed together: T * N = 64 floats, one vec64
    S   PARTS = 16 numbers of a transformed patch or filter

Positions `at`, `to`, `x_at`, ... count floats from the beginning of a flat array.

Forward, with ' for the transpose: V = B' x B of each 4x4 patch of the input (additions only), U = G g G' of each 3x3
filter; M[s, o] = sum over channels c of U[s, o, c] * V[s, c]; A' M A are the 2x2 output pixels.

    B' = 1  0 -1  0     G =  1    0    0     A' = 1 1  1  0
         0  1  1  0         1/2  1/2  1/2         0 1 -1 -1
         0 -1  1  0         1/2 -1/2  1/2
         0  1  0 -1          0    0    1

Gradient of the filters: dL/dg = G' (dL/dU) G, where dL/dU is the sum over tiles and images of (A d A') * V, element by
element; d: gradient of the tile's 2x2 output pixels. The gradient at the input is a convolution with mirrored filters.

Rounding differs from the direct sum: where all terms are 0 the result may be about 1e-9 instead of 0.

Source: Zhou et al. 2019, Table S1 (Conv2, Conv4, Conv6); Lavin and Gray, Fast Algorithms for Convolutional Neural
Networks (2015), F(2x2, 3x3); speed: docs/performance.md.
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

TILES_PER_STEP = 32
"""Tiles over which gradients are summed in registers: their transformed patches and gradients, one row of four, with 64
channels each, take half of a second-level cache of 2 MB."""


def tile_starts(height: int, width: int) -> np.ndarray:
    """Return the first pixel (y, x) of the 2x2 tiles that cover an image, row by row, int64 `(n, 2)`.

    n is a multiple of TILES: the last tile is repeated, and computed again with the same result.
    Source: docs/performance.md.
    """
    starts = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    return np.array(starts + starts[-1:] * (-len(starts) % TILES))


# --- forward, and the gradient at the input ---


@jit_inline
def part_size(rows, columns):
    """Return the distance between the S parts of transformed filters, in floats.

    Not a power of two: the parts of one filter would compete for the same lines of a cache.
    """
    return rows * columns + VEC16_WIDTH


@jit_entry
def transform_filters(weight, steps, rows, columns, out):
    """Write element s of U = G g G' to out[s, row, column], for the filter g of every row and column.

    `out`: `(S, part_size)`. The weight of row r, column c, tap t is at steps[0] + r * steps[1] + c * steps[2] + t *
    steps[3] of `weight`, so that one kernel transforms filters as they are, and transposed and mirrored.
    """
    base, row, column, tap = steps
    for r in range(rows):
        for c in range(columns):
            at, to = base + r * row + c * column, r * columns + c
            a0, a1, a2, a3 = _g_transform_column(weight[at], weight[at + 3 * tap], weight[at + 6 * tap])
            at += tap
            b0, b1, b2, b3 = _g_transform_column(weight[at], weight[at + 3 * tap], weight[at + 6 * tap])
            at += tap
            c0, c1, c2, c3 = _g_transform_column(weight[at], weight[at + 3 * tap], weight[at + 6 * tap])
            # Columns first, then rows of the result: G (g G') in two passes of the same function.
            size = part_size(rows, columns)
            _store_strided(out, to, size, _g_transform_column(a0, b0, c0))
            _store_strided(out, to + 4 * size, size, _g_transform_column(a1, b1, c1))
            _store_strided(out, to + 8 * size, size, _g_transform_column(a2, b2, c2))
            _store_strided(out, to + 12 * size, size, _g_transform_column(a3, b3, c3))


@jit_inline
def _g_transform_column(a, b, c):
    """Return G times a column of three."""
    half = np.float32(0.5)
    ends, middle = half * (a + c), half * b
    return a, ends + middle, ends - middle, c


@jit_inline
def _store_strided(out, to, step, values):
    """Write four values `step` floats apart."""
    out[to], out[to + step], out[to + 2 * step], out[to + 3 * step] = values


@jit_entry
def dense_conv(u, bias, x, shape, tiles, relu, v, m, pixels, where, out):
    """Convolve planes to planes of the same size: ReLU of the sums if `relu`, else the sums where `where` > 0.

    `u`: transformed filters, `(S, part_size(O, C))`. `bias` `(O,)`. `x`: planes of C channels. `out`, `where`: planes
    of `shape`. `tiles`: as `tile_starts`. Scratch: `v` `(S, C, T * N)`, `m` `(S, O, T * N)`, `pixels` `(4, N)`.
    """
    for first in range(0, len(tiles), TILES):
        _multiply(u, x, shape, tiles, first, v, m)
        for o in range(shape.channels):
            for i in range(TILES):
                y, column = tiles[first + i, 0], tiles[first + i, 1]
                to = (o * shape.plane + (y + 1) * shape.pitch + column + 1) * VEC16_WIDTH
                below = to + shape.pitch * VEC16_WIDTH
                values = _output_tile(m, o, i, shape.channels, bias, pixels)
                if relu:
                    values = relu_where(values, values)
                else:
                    store16(pixels, 0, load16(where, to))
                    store16(pixels, VEC16_WIDTH, load16(where, to + VEC16_WIDTH))
                    store16(pixels, 2 * VEC16_WIDTH, load16(where, below))
                    store16(pixels, 3 * VEC16_WIDTH, load16(where, below + VEC16_WIDTH))
                    values = relu_where(values, load(pixels, 0))
                store(pixels, 0, values)
                store16(out, to, load16(pixels, 0))
                # With an odd height or width the last tiles reach into the border, which must stay zero.
                has_right, has_below = column + 1 < shape.width, y + 1 < shape.height
                if has_right:
                    store16(out, to + VEC16_WIDTH, load16(pixels, VEC16_WIDTH))
                if has_below:
                    store16(out, below, load16(pixels, 2 * VEC16_WIDTH))
                if has_right and has_below:
                    store16(out, below + VEC16_WIDTH, load16(pixels, 3 * VEC16_WIDTH))


@jit_entry
def dense_conv_max_pool(u, bias, x, shape, tiles, v, m, pixels, out, out_at, strides, codes):
    """Convolution, ReLU and 2x2 max-pooling: one tile is one window. `out` and `codes` as `sparse_conv_max_pool`."""
    height, width = shape.height // 2, shape.width // 2
    for first in range(0, len(tiles), TILES):
        _multiply(u, x, shape, tiles, first, v, m)
        for o in range(shape.channels):
            for i in range(TILES):
                y, column = tiles[first + i, 0] // 2, tiles[first + i, 1] // 2
                values = _output_tile(m, o, i, shape.channels, bias, pixels)
                store(pixels, 0, relu_where(values, values))
                to = out_at + o * strides[0] + y * strides[1] + column * strides[2]
                code_at = ((o * height + y) * width + column) * VEC16_WIDTH
                store_max(pixels, 0, VEC16_WIDTH, 2 * VEC16_WIDTH, 3 * VEC16_WIDTH, out, to, codes, code_at)


@jit_inline
def _multiply(u, x, shape, tiles, first, v, m):
    """m[s, o] = sum over channels c of u[s, o, c] * v[s, c], for the four tiles from `first` on; v from their patches.

    `v` `(S, C, T * N)`, `m` `(S, O, T * N)`.
    """
    # Four tiles of all channels are transformed before the products, which read each of them O times.
    plane, outputs = shape.plane * VEC16_WIDTH, shape.channels
    channels = len(x) // plane
    for c in range(channels):
        for i in range(TILES):
            y, column = tiles[first + i, 0], tiles[first + i, 1]
            patch = c * plane + (y * shape.pitch + column) * VEC16_WIDTH
            _transform_patch(
                x, patch, shape.pitch * VEC16_WIDTH, v, c * VECTOR_WIDTH + i * VEC16_WIDTH, channels * VECTOR_WIDTH
            )
    zero = splat(np.float32(0))
    for s in range(PARTS):
        for o in range(0, outputs, ROWS):
            u_at, v_at = s * part_size(outputs, channels) + o * channels, s * channels * VECTOR_WIDTH
            # Sixteen independent products, one per element of the transform; ROWS outputs at a time.
            t0, t1, t2, t3 = gemm_tile(u, u_at, channels, 1, v, v_at, VECTOR_WIDTH, channels, zero, zero, zero, zero)
            row = s * outputs + o
            store(m, row * VECTOR_WIDTH, t0)
            store(m, (row + 1) * VECTOR_WIDTH, t1)
            store(m, (row + 2) * VECTOR_WIDTH, t2)
            store(m, (row + 3) * VECTOR_WIDTH, t3)


@jit_inline
def _transform_patch(x, at, row, v, to, step):
    """Write element s of B' x B, of the 4x4 patch at `at`, to v[to + s * step]. Rows of x are `row` floats apart."""
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
    """Return B' times one column of a patch."""
    a, b = load16(x, at), load16(x, at + row)
    c, d = load16(x, at + 2 * row), load16(x, at + 3 * row)
    return subtract16(a, c), add16(b, c), subtract16(c, b), subtract16(b, d)


@jit_inline
def store_differences(a, b, c, d, v, to, step):
    """Write one row (a, b, c, d) times B, `step` floats apart."""
    store16(v, to, subtract16(a, c))
    store16(v, to + step, add16(b, c))
    store16(v, to + 2 * step, subtract16(c, b))
    store16(v, to + 3 * step, subtract16(b, d))


@jit_inline
def _output_tile(m, o, i, outputs, bias, pixels):
    """Return bias + A' M A of tile i of output o: pixels (0, 0), (0, 1), (1, 0), (1, 1), a vec16 each.

    `pixels`: scratch `(4, N)`, by which four vec16 become one vec64.
    """
    at, step = o * VECTOR_WIDTH + i * VEC16_WIDTH, outputs * VECTOR_WIDTH
    a0, a1 = _sums(m, at, 4 * step)
    b0, b1 = _sums(m, at + step, 4 * step)
    c0, c1 = _sums(m, at + 2 * step, 4 * step)
    d0, d1 = _sums(m, at + 3 * step, 4 * step)
    store16(pixels, 0, add16(add16(a0, b0), c0))
    store16(pixels, VEC16_WIDTH, subtract16(subtract16(b0, c0), d0))
    store16(pixels, 2 * VEC16_WIDTH, add16(add16(a1, b1), c1))
    store16(pixels, 3 * VEC16_WIDTH, subtract16(subtract16(b1, c1), d1))
    return add(load(pixels, 0), splat(bias[o]))


@jit_inline
def _sums(m, at, row):
    """Return A' times one column of M."""
    a, b = load16(m, at), load16(m, at + row)
    c, d = load16(m, at + 2 * row), load16(m, at + 3 * row)
    return add16(add16(a, b), c), subtract16(subtract16(b, c), d)


# --- gradient of the filters ---


@jit_entry
def dense_conv_weight_grad(x, channels, d, shape, tiles, v, w, sums, bias_sums):
    """sums[s, o / TILE, c, o % TILE] += sum over tiles and images of (A d A')[s, o] * (B' x B)[s, c]: dL/dU.

    `x`: planes of C channels; `d`: planes of `shape`; `tiles`: as `tile_starts`, each once. `bias_sums` += d, `(O, N)`.
    Scratch: `v` `(4, C padded, TILES_PER_STEP, N)` and `w` `(4, O, TILES_PER_STEP, N)`, one row of the transformed
    patches and gradients. Channels are padded to a multiple of three, for `accumulate_outer`; the sums of the padding
    are never read.
    """
    plane, pitch, padded, step = (
        shape.plane * VEC16_WIDTH,
        shape.pitch * VEC16_WIDTH,
        -(-channels // 3) * 3,
        TILES_PER_STEP * VEC16_WIDTH,
    )
    for first in range(0, len(tiles), TILES_PER_STEP):
        count = min(TILES_PER_STEP, len(tiles) - first)
        # Row by row of the 4x4 transforms: the scratch holds a quarter of the numbers and stays in cache.
        for i in range(4):
            for t in range(count):
                pixel = (tiles[first + t, 0] * shape.pitch + tiles[first + t, 1]) * VEC16_WIDTH
                for c in range(channels):
                    _transform_patch_row(
                        i, x, c * plane + pixel, pitch, v, (c * TILES_PER_STEP + t) * VEC16_WIDTH, padded * step
                    )
            for o in range(shape.channels):
                total = load16(bias_sums, o * VEC16_WIDTH)
                for t in range(count):
                    y, column = tiles[first + t, 0] + 1, tiles[first + t, 1] + 1
                    d_at, to = o * plane + y * pitch + column * VEC16_WIDTH, (o * TILES_PER_STEP + t) * VEC16_WIDTH
                    tile_sum = _transform_gradient_row(i, d, d_at, pitch, w, to, shape.channels * step)
                    # The bias needs the plain sum, which row 1 of the transform contains: no extra pass over d.
                    if i == 1:
                        total = add16(total, tile_sum)
                store16(bias_sums, o * VEC16_WIDTH, total)
            for j in range(4):
                for o in range(0, shape.channels, TILE):
                    for c in range(0, padded, 3):
                        w_at, v_at = (j * shape.channels + o) * step, (j * padded + c) * step
                        to = (((i * 4 + j) * shape.channels + o) * padded) + c * TILE
                        accumulate_outer(w, w_at, v, v_at, step, count, sums, to)


@jit_inline
def _transform_patch_row(i, x, at, row, v, to, step):
    """Write element j of row i of B' x B to v[to + j * step]."""
    # Row i of B' combines two rows of the patch, `minuend` and `subtrahend`; row 1 adds them.
    if i == 0:
        minuend, subtrahend = at, at + 2 * row
    elif i == 3:
        minuend, subtrahend = at + row, at + 3 * row
    elif i == 1:
        minuend, subtrahend = at + row, at + 2 * row
    else:
        minuend, subtrahend = at + 2 * row, at + row
    a, e = load16(x, minuend), load16(x, subtrahend)
    b, f = load16(x, minuend + VEC16_WIDTH), load16(x, subtrahend + VEC16_WIDTH)
    c, g = load16(x, minuend + 2 * VEC16_WIDTH), load16(x, subtrahend + 2 * VEC16_WIDTH)
    d, h = load16(x, minuend + 3 * VEC16_WIDTH), load16(x, subtrahend + 3 * VEC16_WIDTH)
    if i == 1:
        a, b, c, d = add16(a, e), add16(b, f), add16(c, g), add16(d, h)
    else:
        a, b, c, d = subtract16(a, e), subtract16(b, f), subtract16(c, g), subtract16(d, h)
    store_differences(a, b, c, d, v, to, step)


@jit_inline
def _transform_gradient_row(i, d, at, row, w, to, step):
    """Write element j of row i of A d A', of a 2x2 tile, to w[to + j * step]; return element 1.

    Element 1 of row 1 is the sum of the tile's four pixels, which the bias needs.
    """
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
    """g[row, column] = G' S G, the gradient of a filter from the gradient S of its transform; `sums` becomes zero.

    `sums`: as `dense_conv_weight_grad` leaves them. `g`: flat `(O, C, 3, 3)`.
    """
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
    """Return G' times a column of four floats, `step` apart."""
    half = np.float32(0.5)
    a, b, c, d = sums[at], sums[at + step], sums[at + 2 * step], sums[at + 3 * step]
    return a + half * (b + c), half * (b - c), half * (b + c) + d


@jit_inline
def _store_row(g, to, a, b, c, d):
    """Write one row (a, b, c, d) times G."""
    half = np.float32(0.5)
    g[to], g[to + 1], g[to + 2] = a + half * (b + c), half * (b - c), half * (b + c) + d
