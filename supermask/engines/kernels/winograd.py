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
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.compiling import kernel, part
from supermask.engines.kernels.lanes import LANES, add, load, positive, splat, store
from supermask.engines.kernels.line import IMAGES, add_line, load_line, store_largest, store_line, subtract_line
from supermask.engines.kernels.products import ROWS, tile

PARTS = 16
"""Numbers of a transformed patch or filter."""

TILES = LANES // IMAGES
"""Tiles whose products are computed together."""


def tiles(height: int, width: int) -> np.ndarray:
    """The pixels at which the 2x2 tiles begin that cover an image, row by row, int64 `(n, 2)` (y, x).

    n is a multiple of TILES: the last tile may come again. Source: docs/performance.md.
    """
    places = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    return np.array(places + places[-1:] * (-len(places) % TILES))


@part
def part_size(rows, columns):
    """How far apart the parts of transformed filters are: not a power of two, so that a cache holds all of them."""
    return rows * columns + IMAGES


@kernel
def transform_filters(weight, steps, rows, columns, out):
    """out[i, row, column] = number i of G g G', for the filter g of every row and column.

    The weight of row r at tap t of column c is at steps[0] + r * steps[1] + c * steps[2] + t * steps[3].
    """
    base, row, column, tap = steps
    for r in range(rows):
        for c in range(columns):
            here, to = base + r * row + c * column, r * columns + c
            a0, a1, a2, a3 = _ends_and_halves(weight[here], weight[here + 3 * tap], weight[here + 6 * tap])
            here += tap
            b0, b1, b2, b3 = _ends_and_halves(weight[here], weight[here + 3 * tap], weight[here + 6 * tap])
            here += tap
            c0, c1, c2, c3 = _ends_and_halves(weight[here], weight[here + 3 * tap], weight[here + 6 * tap])
            size = part_size(rows, columns)
            _put(out, to, size, _ends_and_halves(a0, b0, c0))
            _put(out, to + 4 * size, size, _ends_and_halves(a1, b1, c1))
            _put(out, to + 8 * size, size, _ends_and_halves(a2, b2, c2))
            _put(out, to + 12 * size, size, _ends_and_halves(a3, b3, c3))


@part
def _ends_and_halves(a, b, c):
    """G times a column of three."""
    half = np.float32(0.5)
    ends, middle = half * (a + c), half * b
    return a, ends + middle, ends - middle, c


@part
def _put(out, to, step, four):
    out[to], out[to + step], out[to + 2 * step], out[to + 3 * step] = four


@kernel
def convolve(u, bias, x, shape, places, relu, v, m, four, where, out):
    """Planes to planes of the same size: ReLU of the sums, or the sums where `where` > 0 and 0 elsewhere.

    `u` are the transformed filters, `shape` is that of `out`, `places` as in `tiles`; `v`,
    `m` and `four` are room for transformed patches and products of four tiles, and for four lines.
    """
    for first in range(0, len(places), TILES):
        _multiply(u, x, shape, places, first, v, m)
        for o in range(shape.channels):
            for i in range(TILES):
                y, across = places[first + i, 0], places[first + i, 1]
                to = (o * shape.plane + (y + 1) * shape.pitch + across + 1) * IMAGES
                below = to + shape.pitch * IMAGES
                values = _four_pixels(m, o, i, shape.channels, bias, four)
                if relu:
                    values = positive(values, values)
                else:
                    store_line(four, 0, load_line(where, to))
                    store_line(four, IMAGES, load_line(where, to + IMAGES))
                    store_line(four, 2 * IMAGES, load_line(where, below))
                    store_line(four, 3 * IMAGES, load_line(where, below + IMAGES))
                    values = positive(values, load(four, 0))
                store(four, 0, values)
                store_line(out, to, load_line(four, 0))
                right, down = across + 1 < shape.width, y + 1 < shape.height
                if right:
                    store_line(out, to + IMAGES, load_line(four, IMAGES))
                if down:
                    store_line(out, below, load_line(four, 2 * IMAGES))
                if right and down:
                    store_line(out, below + IMAGES, load_line(four, 3 * IMAGES))


@kernel
def convolve_and_pool(u, bias, x, shape, places, v, m, four, out, out_at, strides, codes):
    """Convolution, ReLU and 2x2 max-pooling: a tile is a window. As in `filters.convolve_and_pool`."""
    height, width = shape.height // 2, shape.width // 2
    for first in range(0, len(places), TILES):
        _multiply(u, x, shape, places, first, v, m)
        for o in range(shape.channels):
            for i in range(TILES):
                y, across = places[first + i, 0] // 2, places[first + i, 1] // 2
                values = _four_pixels(m, o, i, shape.channels, bias, four)
                store(four, 0, positive(values, values))
                to = out_at + o * strides[0] + y * strides[1] + across * strides[2]
                mark = ((o * height + y) * width + across) * IMAGES
                store_largest(four, 0, IMAGES, 2 * IMAGES, 3 * IMAGES, out, to, codes, mark)


@part
def _multiply(u, x, shape, places, first, v, m):
    """m[i, o] = sum over the channels c of u[i, o, c] * v[i, c], for four tiles; v from the patches of `x`."""
    plane, outputs = shape.plane * IMAGES, shape.channels
    channels = len(x) // plane
    for c in range(channels):
        for i in range(TILES):
            y, across = places[first + i, 0], places[first + i, 1]
            patch = c * plane + (y * shape.pitch + across) * IMAGES
            _transform_patch(x, patch, shape.pitch * IMAGES, v, c * LANES + i * IMAGES, channels * LANES)
    zero = splat(np.float32(0))
    for i in range(PARTS):
        for o in range(0, outputs, ROWS):
            from_u, from_v = i * part_size(outputs, channels) + o * channels, i * channels * LANES
            t0, t1, t2, t3 = tile(u, from_u, channels, 1, v, from_v, LANES, channels, zero, zero, zero, zero)
            here = i * outputs + o
            store(m, here * LANES, t0)
            store(m, (here + 1) * LANES, t1)
            store(m, (here + 2) * LANES, t2)
            store(m, (here + 3) * LANES, t3)


@part
def _transform_patch(x, at, row, v, to, step):
    """B' d B of the patch at `at`; number i goes to v[to + i * step]."""
    a0, a1, a2, a3 = _differences(x, at, row)
    b0, b1, b2, b3 = _differences(x, at + IMAGES, row)
    c0, c1, c2, c3 = _differences(x, at + 2 * IMAGES, row)
    d0, d1, d2, d3 = _differences(x, at + 3 * IMAGES, row)
    store_differences(a0, b0, c0, d0, v, to, step)
    store_differences(a1, b1, c1, d1, v, to + 4 * step, step)
    store_differences(a2, b2, c2, d2, v, to + 8 * step, step)
    store_differences(a3, b3, c3, d3, v, to + 12 * step, step)


@part
def _differences(x, at, row):
    """B' d of one column of a patch."""
    a, b = load_line(x, at), load_line(x, at + row)
    c, d = load_line(x, at + 2 * row), load_line(x, at + 3 * row)
    return subtract_line(a, c), add_line(b, c), subtract_line(c, b), subtract_line(b, d)


@part
def store_differences(a, b, c, d, v, to, step):
    store_line(v, to, subtract_line(a, c))
    store_line(v, to + step, add_line(b, c))
    store_line(v, to + 2 * step, subtract_line(c, b))
    store_line(v, to + 3 * step, subtract_line(b, d))


@part
def _four_pixels(m, o, i, outputs, bias, four):
    """bias + A' M A of tile i of output o: its pixels (0, 0), (0, 1), (1, 0), (1, 1), a line each."""
    at, step = o * LANES + i * IMAGES, outputs * LANES
    a0, a1 = _sums(m, at, 4 * step)
    b0, b1 = _sums(m, at + step, 4 * step)
    c0, c1 = _sums(m, at + 2 * step, 4 * step)
    d0, d1 = _sums(m, at + 3 * step, 4 * step)
    store_line(four, 0, add_line(add_line(a0, b0), c0))
    store_line(four, IMAGES, subtract_line(subtract_line(b0, c0), d0))
    store_line(four, 2 * IMAGES, add_line(add_line(a1, b1), c1))
    store_line(four, 3 * IMAGES, subtract_line(subtract_line(b1, c1), d1))
    return add(load(four, 0), splat(bias[o]))


@part
def _sums(m, at, row):
    """A' M of one column."""
    a, b = load_line(m, at), load_line(m, at + row)
    c, d = load_line(m, at + 2 * row), load_line(m, at + 3 * row)
    return add_line(add_line(a, b), c), subtract_line(subtract_line(b, c), d)
