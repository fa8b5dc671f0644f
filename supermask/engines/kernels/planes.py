"""Sixteen images side by side as planes of lines: filled from bytes, pooled, and the way back of pooling.

A channel of `IMAGES` images is a plane: `(positions, IMAGES)` floats, flattened. A row of pixels is `pitch` = width + 1
positions apart from the next: the one column between them is zero, the right border of one row and the left border of
the next; so are a row above and what comes below. A neighbour of a pixel is then at a fixed distance, and so is
the same pixel's line in the next plane, `plane` positions on. Pixel (y, x) is position (y + 1) * pitch + x + 1.

Source: docs/performance.md.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from supermask.engines.kernels.compiling import kernel, part
from supermask.engines.kernels.line import IMAGES, load_line, nothing, store_largest, store_line, store_where

BLOCK = 8
"""Positions whose sums a kernel holds in registers: two `Lanes`."""


class Shape(NamedTuple):
    """A stack of planes, as kernels are told it. Lengths count positions."""

    channels: int
    height: int
    width: int
    pitch: int
    plane: int

    @property
    def size(self) -> int:
        """Floats of the whole stack, and of what a 4x4 patch at its end looks at behind it."""
        return (self.channels * self.plane + 2 * self.pitch) * IMAGES


def shape_of(channels: int, height: int, width: int) -> Shape:
    """The planes of images of this size.

    Blocks may run over the last pixel by BLOCK - 1 positions and look one row and one position further. The distance
    of planes is odd, so that the same pixel of all channels is spread over the whole of a cache.
    Source: docs/performance.md.
    """
    pitch = width + 1
    return Shape(channels, height, width, pitch, ((height + 2) * pitch + BLOCK) | 1)


def blocks(height: int, width: int) -> np.ndarray:
    """Where the blocks of a band of `height` rows begin: positions from the band's first pixel on, int64.

    Rows are whole blocks where the width allows it; else blocks run on across the borders, where what they compute is
    garbage. Source: docs/performance.md.
    """
    pitch = width + 1
    if width % BLOCK == 0:
        return np.add.outer(np.arange(height) * pitch, np.arange(0, width, BLOCK)).ravel()
    return np.arange(0, (height - 1) * pitch + width, BLOCK)


@kernel
def put_images(images, batch, first, shade, shape, out):
    """Line i of every pixel is that of image batch[first + i], 0 behind the last: shade[byte]. `images` is flat."""
    pixels = shape.height * shape.width
    for i in range(IMAGES):
        there = first + i < len(batch)
        begin = batch[first + i] * shape.channels * pixels if there else 0
        for c in range(shape.channels):
            for y in range(shape.height):
                source = begin + c * pixels + y * shape.width
                to = (c * shape.plane + (y + 1) * shape.pitch + 1) * IMAGES + i
                for x in range(shape.width):
                    out[to + x * IMAGES] = shade[images[source + x]] if there else np.float32(0)


@part
def clear_border(shape, out):
    """Zeros where blocks ran over a row's end or the last row's."""
    for c in range(shape.channels):
        for y in range(1, shape.height + 1):
            store_line(out, (c * shape.plane + y * shape.pitch) * IMAGES, nothing())
        end = c * shape.plane + (shape.height + 1) * shape.pitch
        for extra in range(BLOCK):
            store_line(out, (end + extra) * IMAGES, nothing())


@part
def pool_rows(channels, width, x, plane, pitch, out, out_at, out_plane, out_step, codes, codes_at, codes_plane):
    """One row of 2x2 maxima: out[c, i] = max of x[c, 0..1, 2i..2i+1], and in `codes` which of the four it was.

    Of a stack of two-row bands `x` to lines `out_step` floats apart, `out_plane` floats a channel.
    """
    for c in range(channels):
        for i in range(width):
            a = (c * plane + 2 * i) * IMAGES
            below = a + pitch * IMAGES
            to, mark = out_at + c * out_plane + i * out_step, (codes_at + c * codes_plane + i) * IMAGES
            store_largest(x, a, a + IMAGES, below, below + IMAGES, out, to, codes, mark)


@kernel
def unpool(shape, codes, d, d_at, d_plane, d_row, d_step, out):
    """The gradient before a 2x2 max-pooling: d where the maximum was, 0 elsewhere. `shape` is that of `out`.

    Line (c, y, x) of `d` is at d_at + c * d_plane + y * d_row + x * d_step, in floats. An odd last row or column of
    `out` is not written: it stays zero.
    """
    height, width = shape.height // 2, shape.width // 2
    mark = 0
    for c in range(shape.channels):
        for y in range(height):
            for x in range(width):
                values = load_line(d, d_at + c * d_plane + y * d_row + x * d_step)
                a = (c * shape.plane + (2 * y + 1) * shape.pitch + 2 * x + 1) * IMAGES
                below = a + shape.pitch * IMAGES
                store_where(values, codes, mark, a, a + IMAGES, below, below + IMAGES, out)
                mark += IMAGES
