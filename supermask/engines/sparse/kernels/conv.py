"""3x3 "same" convolutions over the surviving weights, and their pooling, for 16 images side by side.

Shape letters:

    N   VEC16_WIDTH = 16 images, the lanes of one vec16
    C   input channels, O output channels (filters), H height, W width
    K   surviving taps of a list, by block of channels, then by filter
    Q   blocks of channels

Positions `at`, `x_at`, `out_at`, ... count floats from the beginning of a flat array; `to` is where a result goes.

Layout: one channel of N images is a plane, `(positions, N)` floats, flat. Rows of pixels are `pitch` = W + 1 positions
apart: the column between them is zero and serves as right border of one row and left border of the next. So are the row
above the first and the positions after the last. Pixel (y, x) is position (y + 1) * pitch + x + 1. The next channel's
plane begins `plane` positions later.

Because of the border, a tap (channel, ky, kx) of a filter reads its input at a fixed distance from its output position.
A block of output positions is therefore a sum of weights times blocks of the input, as in a fully connected layer. The
gradient at the input is the same sum with mirrored taps. Each function is one product of a training step.

Source: Zhou et al. 2019, Table S1 (Conv2, Conv4, Conv6); speed: docs/performance.md.
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
"""Positions whose sums a kernel holds in registers: two vec64."""

TAPS = 9
"""Weights of a filter per input channel."""

TILE = 8
"""Filters whose gradients are summed together: with three channels each, 24 registers of AVX-512."""


class PlaneShape(NamedTuple):
    """Shape of a stack of planes, as the kernels read it. Lengths count positions."""

    channels: int
    height: int
    width: int
    pitch: int
    plane: int

    @property
    def size(self) -> int:
        """Floats of the whole stack, including those behind its end that a 4x4 patch of the last rows reads."""
        return (self.channels * self.plane + 2 * self.pitch) * VEC16_WIDTH


def shape_of(channels: int, height: int, width: int) -> PlaneShape:
    """Return the shape of the planes of images of this size.

    Blocks may run over the last pixel by BLOCK - 1 positions and read one row and one position further. The distance
    between planes is odd: a power of two would map the same pixel of all channels to few lines of a cache.
    Source: docs/performance.md.
    """
    pitch = width + 1
    return PlaneShape(channels, height, width, pitch, ((height + 2) * pitch + BLOCK) | 1)


def block_starts(height: int, width: int) -> np.ndarray:
    """Return the first position of each block of a band of `height` rows, from the band's first pixel on, int64.

    Rows consist of whole blocks where the width allows it. Else blocks run across the borders; the values computed
    there are not used, and `clear_border` sets them to zero. Source: docs/performance.md.
    """
    pitch = width + 1
    if width % BLOCK == 0:
        return np.add.outer(np.arange(height) * pitch, np.arange(0, width, BLOCK)).ravel()
    return np.arange(0, (height - 1) * pitch + width, BLOCK)


# --- images and pooling ---


@jit_entry
def pack_images(images, batch, first, shade, shape, out):
    """Write image batch[first + i] to lane i of every pixel of `out`, 0 behind the last image.

    `images`: uint8, flat `(images, C, H, W)`. `shade`, float32 `(256,)`: value of each byte. `out`: planes of `shape`.
    """
    pixels = shape.height * shape.width
    for i in range(VEC16_WIDTH):
        # Lanes behind the last image compute the response to a black image; their gradient is zero.
        exists = first + i < len(batch)
        begin = batch[first + i] * shape.channels * pixels if exists else 0
        for c in range(shape.channels):
            for y in range(shape.height):
                source = begin + c * pixels + y * shape.width
                to = (c * shape.plane + (y + 1) * shape.pitch + 1) * VEC16_WIDTH + i
                for x in range(shape.width):
                    out[to + x * VEC16_WIDTH] = shade[images[source + x]] if exists else np.float32(0)


@jit_inline
def clear_border(shape, out):
    """Set the border of planes to zero, where blocks ran over a row's end or over the last row."""
    for c in range(shape.channels):
        for y in range(1, shape.height + 1):
            store16(out, (c * shape.plane + y * shape.pitch) * VEC16_WIDTH, zeros16())
        end = c * shape.plane + (shape.height + 1) * shape.pitch
        for extra in range(BLOCK):
            store16(out, (end + extra) * VEC16_WIDTH, zeros16())


@jit_inline
def max_pool_rows(channels, width, x, plane, pitch, out, out_at, out_plane, out_step, codes, codes_at, codes_plane):
    """Compute one row of 2x2 maxima, out[c, i] = max of x[c, 0..1, 2i..2i+1], and their numbers 0 to 3 in `codes`.

    `x`: bands of two rows, `plane` positions per channel. `out`: vec16 `out_step` floats apart, `out_plane` floats per
    channel. `codes`: uint8, 16 per maximum.
    """
    for c in range(channels):
        for i in range(width):
            a = (c * plane + 2 * i) * VEC16_WIDTH
            below = a + pitch * VEC16_WIDTH
            to, code_at = out_at + c * out_plane + i * out_step, (codes_at + c * codes_plane + i) * VEC16_WIDTH
            store_max(x, a, a + VEC16_WIDTH, below, below + VEC16_WIDTH, out, to, codes, code_at)


@jit_entry
def max_unpool(shape, codes, d, d_at, d_plane, d_row, d_step, out):
    """Compute the gradient before a 2x2 max-pooling: d where the maximum was, 0 elsewhere. `shape` is that of `out`.

    The vec16 (c, y, x) of `d` is at d_at + c * d_plane + y * d_row + x * d_step, in floats. An odd last row or column
    of `out` is not written: it stays zero.
    """
    height, width = shape.height // 2, shape.width // 2
    code_at = 0
    for c in range(shape.channels):
        for y in range(height):
            for x in range(width):
                values = load16(d, d_at + c * d_plane + y * d_row + x * d_step)
                a = (c * shape.plane + (2 * y + 1) * shape.pitch + 2 * x + 1) * VEC16_WIDTH
                below = a + shape.pitch * VEC16_WIDTH
                store_max_grad(values, codes, code_at, a, a + VEC16_WIDTH, below, below + VEC16_WIDTH, out)
                code_at += VEC16_WIDTH


# --- sparse convolutions ---


@jit_inline
def prefetch_block(array, offset, planes, plane):
    """Prefetch the block at `offset` of every plane: these are more streams than the processor itself predicts."""
    for c in range(planes):
        for i in range(BLOCK):
            prefetch(array, offset + c * plane + i * VEC16_WIDTH)


@jit_inline
def sparse_conv_block(first, offset, weight, bias, x, x_at, starts, out, out_at, out_plane):
    """out[o] = bias[o] + sum over the taps k of filter o of weight[k] * x[offset[k]:], for each block in `starts`.

    `first` `(Q, O + 1)`: the taps of filter o in channel block q are `first[q, o]` to `first[q, o + 1] - 1`. `offset`,
    `weight` `(K,)`. Channel blocks are so small that their surroundings of one block of positions stay in the
    first-level cache while all filters read them.
    """
    channel_blocks, filters = first.shape[0], first.shape[1] - 1
    for start in starts:
        # All filters of one block of positions before the next: its surroundings stay in the first-level cache.
        begin = x_at + start * VEC16_WIDTH
        for q in range(channel_blocks):
            for o in range(filters):
                to = out_at + start * VEC16_WIDTH + o * out_plane
                if q == 0:
                    low = splat(bias[o])
                    high = low
                else:
                    low, high = load(out, to), load(out, to + VECTOR_WIDTH)
                for k in range(first[q, o], first[q, o + 1]):
                    w, at = load_scalar(weight, k), begin + load_scalar(offset, k)
                    low, high = fma(w, load(x, at), low), fma(w, load(x, at + VECTOR_WIDTH), high)
                store(out, to, low)
                store(out, to + VECTOR_WIDTH, high)


@jit_inline
def relu(filters, starts, out, out_at, out_plane, where):
    """Keep `out` where `where` > 0, set it to 0 elsewhere: ReLU for `where` = `out`, else its derivative."""
    for o in range(filters):
        for start in starts:
            for half in range(2):
                to = out_at + o * out_plane + start * VEC16_WIDTH + half * VECTOR_WIDTH
                store(out, to, relu_where(load(out, to), load(where, to)))


@jit_entry
def sparse_conv(first, offset, weight, bias, x, shape, starts, out, where):
    """Convolve planes to planes of the same size, as `sparse_conv_block`; 0 where `where` is not > 0.

    `x` `(C, positions, N)`; `out`, `where`: planes of `shape`. `where` = `out` is ReLU; `where` = the layer's input
    gives the gradient at the input.
    """
    to, out_plane = (shape.pitch + 1) * VEC16_WIDTH, shape.plane * VEC16_WIDTH
    ahead = (2 * shape.pitch + 2 + BLOCK) * VEC16_WIDTH
    channels = len(x) // out_plane
    # Block by block: the sums are still in the first-level cache when they are compared.
    for b in range(len(starts)):
        block = starts[b : b + 1]
        prefetch_block(x, ahead + block[0] * VEC16_WIDTH, channels, out_plane)
        prefetch_block(where, to + (block[0] + BLOCK) * VEC16_WIDTH, shape.channels, out_plane)
        prefetch_block(out, to + (block[0] + BLOCK) * VEC16_WIDTH, shape.channels, out_plane)
        sparse_conv_block(first, offset, weight, bias, x, 0, block, out, to, out_plane)
        relu(shape.channels, block, out, to, out_plane, where)
    # Whole blocks end at the row's last pixel and never touch the border.
    if shape.width % BLOCK:
        clear_border(shape, out)


@jit_entry
def sparse_conv_max_pool(first, offset, weight, bias, x, shape, starts, band, out, out_at, strides, codes):
    """Convolution, ReLU and 2x2 max-pooling, two rows of pixels at a time; `starts` are the blocks of two rows.

    `shape`: that of the convolution's output, of which only two rows exist at a time, in `band`. The vec16 (c, y, x) of
    the maxima goes to out_at + (c, y, x) * strides. `codes`: uint8 `(O, H / 2, W / 2, N)`.
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
        # `band` is overwritten by the next two rows.
        to = out_at + y * strides[1]
        max_pool_rows(
            filters, width, band, band_plane // VEC16_WIDTH, shape.pitch,
            out, to, strides[0], strides[2], codes, y * width, height * width,
        )  # fmt: skip


@jit_entry
def sparse_conv_weight_grad(first, offset, x, d, shape, starts, sums, bias_sums, ones):
    """sums[k] += d[o] * x[offset[k]:] over all positions, for the taps k of filter o: dL/dw, per image.

    `bias_sums[o]` += d[o] likewise. `sums` `(K, N)`, `bias_sums` `(O, N)`; `d`: planes of `shape`; `first` and `offset`
    as in `sparse_conv_block`.
    """
    plane = shape.plane * VEC16_WIDTH
    channels = len(x) // plane
    for start in starts:
        begin = start * VEC16_WIDTH
        prefetch_block(x, begin + (2 * shape.pitch + 2 + BLOCK) * VEC16_WIDTH, channels, plane)
        prefetch_block(d, begin + (shape.pitch + 1 + BLOCK) * VEC16_WIDTH, shape.channels, plane)
        for q in range(first.shape[0]):
            for o in range(shape.channels):
                # A block may run over the border, where d is zero: it adds nothing.
                d_at = (o * shape.plane + shape.pitch + 1) * VEC16_WIDTH + begin
                # The gradient of 8 positions stays in registers while all taps of the filter use it.
                low, high = load(d, d_at), load(d, d_at + VECTOR_WIDTH)
                if q == 0:
                    accumulate_products(bias_sums, o * VEC16_WIDTH, low, high, ones, 0, 0)
                for k in range(first[q, o], first[q, o + 1]):
                    x_at = begin + load_scalar(offset, k)
                    accumulate_products(sums, k * VEC16_WIDTH, low, high, x, x_at, x_at + VECTOR_WIDTH)


@jit_inline
def accumulate_outer(d, d_at, x, x_at, step, count, sums, to):
    """sums[j, i] += the sum of d[i] * x[j] over `count` vec16, for `TILE` rows i of `d` and three rows j of `x`.

    Rows are `step` floats apart. `sums` `(3, TILE)` at `to`.
    """
    # 24 accumulators in registers: 11 loads serve 24 multiply-adds per vec16.
    z = zeros16()
    a0, b0, c0, d0, e0, f0, g0, h0 = z, z, z, z, z, z, z, z
    a1, b1, c1, d1, e1, f1, g1, h1 = z, z, z, z, z, z, z, z
    a2, b2, c2, d2, e2, f2, g2, h2 = z, z, z, z, z, z, z, z
    for p in range(0, count * VEC16_WIDTH, VEC16_WIDTH):
        xp, dp = x_at + p, d_at + p
        x0, x1, x2 = load16(x, xp), load16(x, xp + step), load16(x, xp + 2 * step)
        y = load16(d, dp)
        a0, a1, a2 = fma16(y, x0, a0), fma16(y, x1, a1), fma16(y, x2, a2)
        y = load16(d, dp + step)
        b0, b1, b2 = fma16(y, x0, b0), fma16(y, x1, b1), fma16(y, x2, b2)
        y = load16(d, dp + 2 * step)
        c0, c1, c2 = fma16(y, x0, c0), fma16(y, x1, c1), fma16(y, x2, c2)
        y = load16(d, dp + 3 * step)
        d0, d1, d2 = fma16(y, x0, d0), fma16(y, x1, d1), fma16(y, x2, d2)
        y = load16(d, dp + 4 * step)
        e0, e1, e2 = fma16(y, x0, e0), fma16(y, x1, e1), fma16(y, x2, e2)
        y = load16(d, dp + 5 * step)
        f0, f1, f2 = fma16(y, x0, f0), fma16(y, x1, f1), fma16(y, x2, f2)
        y = load16(d, dp + 6 * step)
        g0, g1, g2 = fma16(y, x0, g0), fma16(y, x1, g1), fma16(y, x2, g2)
        y = load16(d, dp + 7 * step)
        h0, h1, h2 = fma16(y, x0, h0), fma16(y, x1, h1), fma16(y, x2, h2)
    accumulate_sums(sums, to, a0, b0, c0, d0, e0, f0, g0, h0)
    accumulate_sums(sums, to + TILE, a1, b1, c1, d1, e1, f1, g1, h1)
    accumulate_sums(sums, to + 2 * TILE, a2, b2, c2, d2, e2, f2, g2, h2)


@jit_entry
def reduce_lines(sums, out):
    """out[k] = the sum of the vec16 k of `sums`, which becomes zero. `len(out)` is a multiple of 8."""
    for k in range(0, len(out), TILE):
        for i in range(k, k + TILE):
            out[i] = 0
        at = k * VEC16_WIDTH
        accumulate_sums(
            out, k,
            load16(sums, at), load16(sums, at + VEC16_WIDTH),
            load16(sums, at + 2 * VEC16_WIDTH), load16(sums, at + 3 * VEC16_WIDTH),
            load16(sums, at + 4 * VEC16_WIDTH), load16(sums, at + 5 * VEC16_WIDTH),
            load16(sums, at + 6 * VEC16_WIDTH), load16(sums, at + 7 * VEC16_WIDTH),
        )  # fmt: skip
        for i in range(k, k + TILE):
            store16(sums, i * VEC16_WIDTH, zeros16())
