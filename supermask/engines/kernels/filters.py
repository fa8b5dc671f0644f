"""The products of a 3x3 "same" convolution over planes of sixteen images (`planes`), of surviving weights alone.

A tap (channel, ky, kx) of a filter looks at one fixed distance from where its output stands, so that an output's block
of positions is a sum of weights times blocks of the input, as in a fully connected layer. Each function is one product
of the training step. The gradient at the input is the same sum as the output, of mirrored taps.

Source: paper.md section 2 (Conv2/4/6); how and how fast: docs/performance.md.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from supermask.engines.kernels.bits import prefetch
from supermask.engines.kernels.compiling import kernel, part
from supermask.engines.kernels.lanes import LANES, at, fma, load, positive, splat, store
from supermask.engines.kernels.line import (
    IMAGES,
    add_products,
    add_sums,
    fma_line,
    load_line,
    nothing,
    store_line,
)
from supermask.engines.kernels.planes import BLOCK, clear_border, pool_rows

TAPS = 9

TILE = 8
"""Filters whose gradients are summed together: with three channels each, 24 registers of AVX-512."""


@part
def ask_ahead(array, offset, planes, plane):
    """Asks for the block of every plane that begins at `offset`: more streams than a processor foresees by itself."""
    for c in range(planes):
        for i in range(BLOCK):
            prefetch(array, offset + c * plane + i * IMAGES)


@part
def sums_of_weights(first, offset, weight, bias, x, x_at, starts, out, out_at, out_plane):
    """out[o] = bias[o] + sum over the surviving taps k of filter o of weight[k] * x[offset[k]:], for each block.

    `first[q, o]` to `first[q, o + 1]` are the taps of filter o in the q-th share of the channels: shares are so small
    that a block's surroundings in them stay in the first cache while all filters look at them.
    """
    shares, filters = first.shape[0], first.shape[1] - 1
    for start in starts:
        begin = x_at + start * IMAGES
        for q in range(shares):
            for o in range(filters):
                to = out_at + start * IMAGES + o * out_plane
                if q == 0:
                    low = splat(bias[o])
                    high = low
                else:
                    low, high = load(out, to), load(out, to + LANES)
                for k in range(first[q, o], first[q, o + 1]):
                    w, here = at(weight, k), begin + at(offset, k)
                    low, high = fma(w, load(x, here), low), fma(w, load(x, here + LANES), high)
                store(out, to, low)
                store(out, to + LANES, high)


@part
def keep_positive(filters, starts, out, out_at, out_plane, where):
    """out where `where` > 0, else 0: ReLU of `out` itself, or its derivative."""
    for o in range(filters):
        for start in starts:
            for half in range(2):
                to = out_at + o * out_plane + start * IMAGES + half * LANES
                store(out, to, positive(load(out, to), load(where, to)))


@kernel
def convolve(first, offset, weight, bias, x, shape, starts, out, where):
    """Planes to planes of the same size, as `sums_of_weights`; 0 where `where` is not > 0.

    With `where` = `out` that is ReLU. `shape` is that of `out`.
    """
    to, out_plane = (shape.pitch + 1) * IMAGES, shape.plane * IMAGES
    ahead = (2 * shape.pitch + 2 + BLOCK) * IMAGES
    channels = len(x) // out_plane
    # Block by block: what was just summed is still in the first cache when it is compared.
    for b in range(len(starts)):
        some = starts[b : b + 1]
        ask_ahead(x, ahead + some[0] * IMAGES, channels, out_plane)
        ask_ahead(where, to + (some[0] + BLOCK) * IMAGES, shape.channels, out_plane)
        ask_ahead(out, to + (some[0] + BLOCK) * IMAGES, shape.channels, out_plane)
        sums_of_weights(first, offset, weight, bias, x, 0, some, out, to, out_plane)
        keep_positive(shape.channels, some, out, to, out_plane, where)
    if shape.width % BLOCK:
        clear_border(shape, out)


@kernel
def convolve_and_pool(first, offset, weight, bias, x, shape, starts, band, out, out_at, strides, codes):
    """Convolution, ReLU and 2x2 max-pooling, two rows of pixels at a time; `starts` are the blocks of two rows.

    `shape` is that of the convolution's output, of which only two rows are there at a time, in `band`. Line (c, y, x)
    of the maxima goes to out_at + (c, y, x) * strides.
    """
    height, width = shape.height // 2, shape.width // 2
    filters, band_plane = shape.channels, len(band) // shape.channels
    plane = shape.plane * IMAGES
    channels = len(x) // plane
    for y in range(height):
        x_at = 2 * y * shape.pitch * IMAGES
        for i in range(0, 2 * shape.pitch, BLOCK):
            ask_ahead(x, x_at + (4 * shape.pitch + i) * IMAGES, channels, plane)
        sums_of_weights(first, offset, weight, bias, x, x_at, starts, band, 0, band_plane)
        keep_positive(filters, starts, band, 0, band_plane, band)
        to = out_at + y * strides[1]
        pool_rows(
            filters, width, band, band_plane // IMAGES, shape.pitch,
            out, to, strides[0], strides[2], codes, y * width, height * width,
        )  # fmt: skip


@kernel
def products_of_weights(first, offset, x, d, shape, starts, sums, bias_sums, ones):
    """sums[k] += d[o] * x[offset[k]:] over all positions, for the surviving taps k of filter o: dL/dw, by image.

    `bias_sums[o]` += d[o] likewise; a line each. `shape` is that of `d`, `first` as in `sums_of_weights`.
    """
    plane = shape.plane * IMAGES
    channels = len(x) // plane
    for start in starts:
        begin = start * IMAGES
        ask_ahead(x, begin + (2 * shape.pitch + 2 + BLOCK) * IMAGES, channels, plane)
        ask_ahead(d, begin + (shape.pitch + 1 + BLOCK) * IMAGES, shape.channels, plane)
        for q in range(first.shape[0]):
            for o in range(shape.channels):
                here = (o * shape.plane + shape.pitch + 1) * IMAGES + begin
                low, high = load(d, here), load(d, here + LANES)
                if q == 0:
                    add_products(bias_sums, o * IMAGES, low, high, ones, 0, 0)
                for k in range(first[q, o], first[q, o + 1]):
                    there = begin + at(offset, k)
                    add_products(sums, k * IMAGES, low, high, x, there, there + LANES)


@part
def add_outer(d, d_at, x, x_at, step, count, sums, to):
    """sums[j, i] += the sum of d[i] * x[j] over `count` lines, for `TILE` rows i of `d` and three j of `x`."""
    z = nothing()
    a0, b0, c0, d0, e0, f0, g0, h0 = z, z, z, z, z, z, z, z
    a1, b1, c1, d1, e1, f1, g1, h1 = z, z, z, z, z, z, z, z
    a2, b2, c2, d2, e2, f2, g2, h2 = z, z, z, z, z, z, z, z
    for p in range(0, count * IMAGES, IMAGES):
        there, here = x_at + p, d_at + p
        x0, x1, x2 = load_line(x, there), load_line(x, there + step), load_line(x, there + 2 * step)
        y = load_line(d, here)
        a0, a1, a2 = fma_line(y, x0, a0), fma_line(y, x1, a1), fma_line(y, x2, a2)
        y = load_line(d, here + step)
        b0, b1, b2 = fma_line(y, x0, b0), fma_line(y, x1, b1), fma_line(y, x2, b2)
        y = load_line(d, here + 2 * step)
        c0, c1, c2 = fma_line(y, x0, c0), fma_line(y, x1, c1), fma_line(y, x2, c2)
        y = load_line(d, here + 3 * step)
        d0, d1, d2 = fma_line(y, x0, d0), fma_line(y, x1, d1), fma_line(y, x2, d2)
        y = load_line(d, here + 4 * step)
        e0, e1, e2 = fma_line(y, x0, e0), fma_line(y, x1, e1), fma_line(y, x2, e2)
        y = load_line(d, here + 5 * step)
        f0, f1, f2 = fma_line(y, x0, f0), fma_line(y, x1, f1), fma_line(y, x2, f2)
        y = load_line(d, here + 6 * step)
        g0, g1, g2 = fma_line(y, x0, g0), fma_line(y, x1, g1), fma_line(y, x2, g2)
        y = load_line(d, here + 7 * step)
        h0, h1, h2 = fma_line(y, x0, h0), fma_line(y, x1, h1), fma_line(y, x2, h2)
    add_sums(sums, to, a0, b0, c0, d0, e0, f0, g0, h0)
    add_sums(sums, to + TILE, a1, b1, c1, d1, e1, f1, g1, h1)
    add_sums(sums, to + 2 * TILE, a2, b2, c2, d2, e2, f2, g2, h2)


@kernel
def fold(sums, out):
    """out[k] = the sum of line k, whose numbers become zero; `len(out)` is a multiple of 8."""
    for k in range(0, len(out), TILE):
        for i in range(k, k + TILE):
            out[i] = 0
        lines = k * IMAGES
        add_sums(
            out, k,
            load_line(sums, lines), load_line(sums, lines + IMAGES),
            load_line(sums, lines + 2 * IMAGES), load_line(sums, lines + 3 * IMAGES),
            load_line(sums, lines + 4 * IMAGES), load_line(sums, lines + 5 * IMAGES),
            load_line(sums, lines + 6 * IMAGES), load_line(sums, lines + 7 * IMAGES),
        )  # fmt: skip
        for i in range(k, k + TILE):
            store_line(sums, i * IMAGES, nothing())
