"""The products of a 3x3 "same" convolution over planes of sixteen images (`planes`), of surviving weights alone.

A tap (channel, ky, kx) of a filter looks at one fixed distance from where its output stands, so that an output's block
of positions is a sum of weights times blocks of the input, as in a fully connected layer. Each function is one product
of the training step. The gradient at the input is the same sum as the output, of mirrored taps.

Source: paper.md section 2 (Conv2/4/6); how and how fast: docs/performance.md.

Sixteen images side by side as planes of lines: filled from bytes, pooled, and the way back of pooling.

A channel of `IMAGES` images is a plane: `(positions, IMAGES)` floats, flattened. A row of pixels is `pitch` = width + 1
positions apart from the next: the one column between them is zero, the right border of one row and the left border of
the next; so are a row above and what comes below. A neighbour of a pixel is then at a fixed distance, and so is
the same pixel's line in the next plane, `plane` positions on. Pixel (y, x) is position (y + 1) * pitch + x + 1.

Source: docs/performance.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_entry, jit_inline
from supermask.engines.sparse.kernels.simd import (
    VECTOR_WIDTH,
    fma,
    load,
    load_scalar,
    prefetch,
    relu_where,
    splat,
    store,
)
from supermask.engines.sparse.kernels.simd16 import (
    VEC16_WIDTH,
    accumulate_products,
    accumulate_sums,
    fma16,
    load16,
    store16,
    store_max,
    store_max_grad,
    zeros16,
)

# mypy: disable-error-code="no-untyped-def"


BLOCK = 8
"""Positions whose sums a kernel holds in registers: two `Lanes`."""


class PlaneShape(NamedTuple):
    """A stack of planes, as kernels are told it. Lengths count positions."""

    channels: int
    height: int
    width: int
    pitch: int
    plane: int

    @property
    def size(self) -> int:
        """Floats of the whole stack, and of what a 4x4 patch at its end looks at behind it."""
        return (self.channels * self.plane + 2 * self.pitch) * VEC16_WIDTH


def shape_of(channels: int, height: int, width: int) -> PlaneShape:
    """The planes of images of this size.

    Blocks may run over the last pixel by BLOCK - 1 positions and look one row and one position further. The distance
    of planes is odd, so that the same pixel of all channels is spread over the whole of a cache.
    Source: docs/performance.md.
    """
    pitch = width + 1
    return PlaneShape(channels, height, width, pitch, ((height + 2) * pitch + BLOCK) | 1)


def block_starts(height: int, width: int) -> np.ndarray:
    """Where the blocks of a band of `height` rows begin: positions from the band's first pixel on, int64.

    Rows are whole blocks where the width allows it; else blocks run on across the borders, where what they compute is
    garbage. Source: docs/performance.md.
    """
    pitch = width + 1
    if width % BLOCK == 0:
        return np.add.outer(np.arange(height) * pitch, np.arange(0, width, BLOCK)).ravel()
    return np.arange(0, (height - 1) * pitch + width, BLOCK)


@jit_entry
def pack_images(images, batch, first, shade, shape, out):
    """Line i of every pixel is that of image batch[first + i], 0 behind the last: shade[byte]. `images` is flat."""
    pixels = shape.height * shape.width
    for i in range(VEC16_WIDTH):
        there = first + i < len(batch)
        begin = batch[first + i] * shape.channels * pixels if there else 0
        for c in range(shape.channels):
            for y in range(shape.height):
                source = begin + c * pixels + y * shape.width
                to = (c * shape.plane + (y + 1) * shape.pitch + 1) * VEC16_WIDTH + i
                for x in range(shape.width):
                    out[to + x * VEC16_WIDTH] = shade[images[source + x]] if there else np.float32(0)


@jit_inline
def clear_border(shape, out):
    """Zeros where blocks ran over a row's end or the last row's."""
    for c in range(shape.channels):
        for y in range(1, shape.height + 1):
            store16(out, (c * shape.plane + y * shape.pitch) * VEC16_WIDTH, zeros16())
        end = c * shape.plane + (shape.height + 1) * shape.pitch
        for extra in range(BLOCK):
            store16(out, (end + extra) * VEC16_WIDTH, zeros16())


@jit_inline
def max_pool_rows(channels, width, x, plane, pitch, out, out_at, out_plane, out_step, codes, codes_at, codes_plane):
    """One row of 2x2 maxima: out[c, i] = max of x[c, 0..1, 2i..2i+1], and in `codes` which of the four it was.

    Of a stack of two-row bands `x` to lines `out_step` floats apart, `out_plane` floats a channel.
    """
    for c in range(channels):
        for i in range(width):
            a = (c * plane + 2 * i) * VEC16_WIDTH
            below = a + pitch * VEC16_WIDTH
            to, mark = out_at + c * out_plane + i * out_step, (codes_at + c * codes_plane + i) * VEC16_WIDTH
            store_max(x, a, a + VEC16_WIDTH, below, below + VEC16_WIDTH, out, to, codes, mark)


@jit_entry
def max_unpool(shape, codes, d, d_at, d_plane, d_row, d_step, out):
    """The gradient before a 2x2 max-pooling: d where the maximum was, 0 elsewhere. `shape` is that of `out`.

    Line (c, y, x) of `d` is at d_at + c * d_plane + y * d_row + x * d_step, in floats. An odd last row or column of
    `out` is not written: it stays zero.
    """
    height, width = shape.height // 2, shape.width // 2
    mark = 0
    for c in range(shape.channels):
        for y in range(height):
            for x in range(width):
                values = load16(d, d_at + c * d_plane + y * d_row + x * d_step)
                a = (c * shape.plane + (2 * y + 1) * shape.pitch + 2 * x + 1) * VEC16_WIDTH
                below = a + shape.pitch * VEC16_WIDTH
                store_max_grad(values, codes, mark, a, a + VEC16_WIDTH, below, below + VEC16_WIDTH, out)
                mark += VEC16_WIDTH


# mypy: disable-error-code="no-untyped-def"


TAPS = 9

TILE = 8
"""Filters whose gradients are summed together: with three channels each, 24 registers of AVX-512."""


@jit_inline
def prefetch_block(array, offset, planes, plane):
    """Asks for the block of every plane that begins at `offset`: more streams than a processor foresees by itself."""
    for c in range(planes):
        for i in range(BLOCK):
            prefetch(array, offset + c * plane + i * VEC16_WIDTH)


@jit_inline
def sparse_conv_block(first, offset, weight, bias, x, x_at, starts, out, out_at, out_plane):
    """out[o] = bias[o] + sum over the surviving taps k of filter o of weight[k] * x[offset[k]:], for each block.

    `first[q, o]` to `first[q, o + 1]` are the taps of filter o in the q-th share of the channels: shares are so small
    that a block's surroundings in them stay in the first cache while all filters look at them.
    """
    shares, filters = first.shape[0], first.shape[1] - 1
    for start in starts:
        begin = x_at + start * VEC16_WIDTH
        for q in range(shares):
            for o in range(filters):
                to = out_at + start * VEC16_WIDTH + o * out_plane
                if q == 0:
                    low = splat(bias[o])
                    high = low
                else:
                    low, high = load(out, to), load(out, to + VECTOR_WIDTH)
                for k in range(first[q, o], first[q, o + 1]):
                    w, here = load_scalar(weight, k), begin + load_scalar(offset, k)
                    low, high = fma(w, load(x, here), low), fma(w, load(x, here + VECTOR_WIDTH), high)
                store(out, to, low)
                store(out, to + VECTOR_WIDTH, high)


@jit_inline
def relu(filters, starts, out, out_at, out_plane, where):
    """out where `where` > 0, else 0: ReLU of `out` itself, or its derivative."""
    for o in range(filters):
        for start in starts:
            for half in range(2):
                to = out_at + o * out_plane + start * VEC16_WIDTH + half * VECTOR_WIDTH
                store(out, to, relu_where(load(out, to), load(where, to)))


@jit_entry
def sparse_conv(first, offset, weight, bias, x, shape, starts, out, where):
    """Planes to planes of the same size, as `sums_of_weights`; 0 where `where` is not > 0.

    With `where` = `out` that is ReLU. `shape` is that of `out`.
    """
    to, out_plane = (shape.pitch + 1) * VEC16_WIDTH, shape.plane * VEC16_WIDTH
    ahead = (2 * shape.pitch + 2 + BLOCK) * VEC16_WIDTH
    channels = len(x) // out_plane
    # Block by block: what was just summed is still in the first cache when it is compared.
    for b in range(len(starts)):
        some = starts[b : b + 1]
        prefetch_block(x, ahead + some[0] * VEC16_WIDTH, channels, out_plane)
        prefetch_block(where, to + (some[0] + BLOCK) * VEC16_WIDTH, shape.channels, out_plane)
        prefetch_block(out, to + (some[0] + BLOCK) * VEC16_WIDTH, shape.channels, out_plane)
        sparse_conv_block(first, offset, weight, bias, x, 0, some, out, to, out_plane)
        relu(shape.channels, some, out, to, out_plane, where)
    if shape.width % BLOCK:
        clear_border(shape, out)


@jit_entry
def sparse_conv_max_pool(first, offset, weight, bias, x, shape, starts, band, out, out_at, strides, codes):
    """Convolution, ReLU and 2x2 max-pooling, two rows of pixels at a time; `starts` are the blocks of two rows.

    `shape` is that of the convolution's output, of which only two rows are there at a time, in `band`. Line (c, y, x)
    of the maxima goes to out_at + (c, y, x) * strides.
    """
    height, width = shape.height // 2, shape.width // 2
    filters, band_plane = shape.channels, len(band) // shape.channels
    plane = shape.plane * VEC16_WIDTH
    channels = len(x) // plane
    for y in range(height):
        x_at = 2 * y * shape.pitch * VEC16_WIDTH
        for i in range(0, 2 * shape.pitch, BLOCK):
            prefetch_block(x, x_at + (4 * shape.pitch + i) * VEC16_WIDTH, channels, plane)
        sparse_conv_block(first, offset, weight, bias, x, x_at, starts, band, 0, band_plane)
        relu(filters, starts, band, 0, band_plane, band)
        to = out_at + y * strides[1]
        max_pool_rows(
            filters, width, band, band_plane // VEC16_WIDTH, shape.pitch,
            out, to, strides[0], strides[2], codes, y * width, height * width,
        )  # fmt: skip


@jit_entry
def sparse_conv_weight_grad(first, offset, x, d, shape, starts, sums, bias_sums, ones):
    """sums[k] += d[o] * x[offset[k]:] over all positions, for the surviving taps k of filter o: dL/dw, by image.

    `bias_sums[o]` += d[o] likewise; a line each. `shape` is that of `d`, `first` as in `sums_of_weights`.
    """
    plane = shape.plane * VEC16_WIDTH
    channels = len(x) // plane
    for start in starts:
        begin = start * VEC16_WIDTH
        prefetch_block(x, begin + (2 * shape.pitch + 2 + BLOCK) * VEC16_WIDTH, channels, plane)
        prefetch_block(d, begin + (shape.pitch + 1 + BLOCK) * VEC16_WIDTH, shape.channels, plane)
        for q in range(first.shape[0]):
            for o in range(shape.channels):
                here = (o * shape.plane + shape.pitch + 1) * VEC16_WIDTH + begin
                low, high = load(d, here), load(d, here + VECTOR_WIDTH)
                if q == 0:
                    accumulate_products(bias_sums, o * VEC16_WIDTH, low, high, ones, 0, 0)
                for k in range(first[q, o], first[q, o + 1]):
                    there = begin + load_scalar(offset, k)
                    accumulate_products(sums, k * VEC16_WIDTH, low, high, x, there, there + VECTOR_WIDTH)


@jit_inline
def accumulate_outer(d, d_at, x, x_at, step, count, sums, to):
    """sums[j, i] += the sum of d[i] * x[j] over `count` lines, for `TILE` rows i of `d` and three j of `x`."""
    z = zeros16()
    a0, b0, c0, d0, e0, f0, g0, h0 = z, z, z, z, z, z, z, z
    a1, b1, c1, d1, e1, f1, g1, h1 = z, z, z, z, z, z, z, z
    a2, b2, c2, d2, e2, f2, g2, h2 = z, z, z, z, z, z, z, z
    for p in range(0, count * VEC16_WIDTH, VEC16_WIDTH):
        there, here = x_at + p, d_at + p
        x0, x1, x2 = load16(x, there), load16(x, there + step), load16(x, there + 2 * step)
        y = load16(d, here)
        a0, a1, a2 = fma16(y, x0, a0), fma16(y, x1, a1), fma16(y, x2, a2)
        y = load16(d, here + step)
        b0, b1, b2 = fma16(y, x0, b0), fma16(y, x1, b1), fma16(y, x2, b2)
        y = load16(d, here + 2 * step)
        c0, c1, c2 = fma16(y, x0, c0), fma16(y, x1, c1), fma16(y, x2, c2)
        y = load16(d, here + 3 * step)
        d0, d1, d2 = fma16(y, x0, d0), fma16(y, x1, d1), fma16(y, x2, d2)
        y = load16(d, here + 4 * step)
        e0, e1, e2 = fma16(y, x0, e0), fma16(y, x1, e1), fma16(y, x2, e2)
        y = load16(d, here + 5 * step)
        f0, f1, f2 = fma16(y, x0, f0), fma16(y, x1, f1), fma16(y, x2, f2)
        y = load16(d, here + 6 * step)
        g0, g1, g2 = fma16(y, x0, g0), fma16(y, x1, g1), fma16(y, x2, g2)
        y = load16(d, here + 7 * step)
        h0, h1, h2 = fma16(y, x0, h0), fma16(y, x1, h1), fma16(y, x2, h2)
    accumulate_sums(sums, to, a0, b0, c0, d0, e0, f0, g0, h0)
    accumulate_sums(sums, to + TILE, a1, b1, c1, d1, e1, f1, g1, h1)
    accumulate_sums(sums, to + 2 * TILE, a2, b2, c2, d2, e2, f2, g2, h2)


@jit_entry
def reduce_lines(sums, out):
    """out[k] = the sum of line k, whose numbers become zero; `len(out)` is a multiple of 8."""
    for k in range(0, len(out), TILE):
        for i in range(k, k + TILE):
            out[i] = 0
        lines = k * VEC16_WIDTH
        accumulate_sums(
            out, k,
            load16(sums, lines), load16(sums, lines + VEC16_WIDTH),
            load16(sums, lines + 2 * VEC16_WIDTH), load16(sums, lines + 3 * VEC16_WIDTH),
            load16(sums, lines + 4 * VEC16_WIDTH), load16(sums, lines + 5 * VEC16_WIDTH),
            load16(sums, lines + 6 * VEC16_WIDTH), load16(sums, lines + 7 * VEC16_WIDTH),
        )  # fmt: skip
        for i in range(k, k + TILE):
            store16(sums, i * VEC16_WIDTH, zeros16())
