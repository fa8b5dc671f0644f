"""A convolution in training on a CPU: its weights, buffers and products.

Images go through 16 at a time as planes (`kernels.planes`), up to four such groups, which meet in the fully connected
layers. What a group leaves on its way is kept in its slot for the way back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from supermask.engines.job import Array
from supermask.engines.sparse.costs import BlockedIndex, KernelChoice, block_index
from supermask.engines.sparse.kernels import conv, winograd
from supermask.engines.sparse.kernels import winograd as kernels_winograd
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros, round_up
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH
from supermask.engines.sparse.layers import Floats, SparseLayer
from supermask.networks.sequential import Conv

GROUPS = VECTOR_WIDTH // VEC16_WIDTH

CHANNELS_IN_CACHE = 16
"""Of planes, around one block: 3 rows of 10 lines a channel, 30 kB."""


@dataclass
class PixelLayout:
    """Where the lines of (channel, y, x) are: at + (c, y, x) * strides, in floats."""

    array: Floats
    at: int
    strides: tuple[int, int, int]


def plane_layout(shape: conv.PlaneShape, array: Floats) -> PixelLayout:
    """The pixels of a stack of planes."""
    strides = (shape.plane * VEC16_WIDTH, shape.pitch * VEC16_WIDTH, VEC16_WIDTH)
    return PixelLayout(array, (shape.pitch + 1) * VEC16_WIDTH, strides)


def flattened_layout(height: int, width: int, array: Floats, slot: int) -> PixelLayout:
    """The same images in the lanes of units, which are pixels in the order of `flatten`."""
    return PixelLayout(array, slot * VEC16_WIDTH, (height * width * VECTOR_WIDTH, width * VECTOR_WIDTH, VECTOR_WIDTH))


class Conv3x3Layer(SparseLayer):
    """A 3x3 convolution and its ReLU, and 2x2 max-pooling where one follows."""

    def __init__(self, layer: Conv, pooled: bool, mask: Tensor, kind: KernelChoice, used: Tensor | None = None) -> None:
        assert layer.outputs % conv.TILE == 0, "the dense kernels compute whole tiles"
        height, width = layer.side
        self.pooled = pooled
        self.inner, self.outer = (conv.shape_of(n, height, width) for n in (layer.inputs, layer.outputs))
        super().__init__(layer, mask, kind, used)
        self.x = [aligned_zeros(self.inner.size) for _ in range(GROUPS)]
        self.d, self.dx = aligned_zeros(self.outer.size), aligned_zeros(self.inner.size)
        self.starts, self.band_starts = conv.block_starts(height, width), conv.block_starts(2, width)
        band = 2 * self.outer.pitch + conv.BLOCK
        self.band = aligned_zeros(layer.outputs * band * VEC16_WIDTH if pooled else 0)
        self.tiles = winograd.tile_starts(height, width)
        self.each_tile = self.tiles[: -(-height // 2) * -(-width // 2)]
        self.windows = winograd.tile_starts(height // 2 * 2, width // 2 * 2) if pooled else self.tiles
        codes = layer.outputs * (height // 2) * (width // 2) * VEC16_WIDTH if pooled else 0
        self.codes = [np.zeros(codes, np.uint8) for _ in range(GROUPS)]
        self.bias_sums, self.nothing = (
            aligned_zeros(round_up(self.rows) * VEC16_WIDTH),
            aligned_zeros(round_up(self.columns)),
        )
        self.ones = np.ones(VECTOR_WIDTH, np.float32)
        self._allocate()
        self.out: list[PixelLayout] = []
        """Per slot, where the maxima go."""
        self.d_out: list[PixelLayout] = []
        """Per slot, where their gradient comes from."""
        self.next_x: list[Floats] = []

    def _allocate(self) -> None:
        """For the sums of gradients, and for what the dense kernels put down in between."""
        most, threes = max(self.rows, self.columns), -(-self.columns // 3) * 3
        parts, floats = winograd.PARTS, kernels_winograd.TILES_PER_STEP * VEC16_WIDTH * 4
        dense = not (self.kind.sums and self.kind.products)
        self.u, self.u_mirrored = (
            aligned_zeros(0 if self.kind.sums else parts * (self.rows * self.columns + VEC16_WIDTH)) for _ in range(2)
        )
        self.v, self.m = (
            aligned_zeros(max(parts * VECTOR_WIDTH, floats) * (most + 2) if dense else 0) for _ in range(2)
        )
        self.four = aligned_zeros(VECTOR_WIDTH)
        taps = round_up(self.weight.flat.size) * VEC16_WIDTH
        self.sums = aligned_zeros(taps if self.kind.products else parts * self.rows * threes)
        self.transformed = False

    def _offset(self, channels: Array, taps: Array) -> Array:
        ky, kx = np.divmod(taps, 3)
        offsets: Array = (channels * self.inner.plane + ky * self.inner.pitch + kx) * VEC16_WIDTH
        return offsets.astype(np.int32)

    def _index(self, flat: Array, mirrored: bool = False) -> BlockedIndex:
        out, into, tap = np.unravel_index(flat, (self.rows, self.columns, conv.TAPS))
        if mirrored:
            offset = self._offset(out, conv.TAPS - 1 - tap)
            return block_index(into, out, offset, (self.columns, self.rows), CHANNELS_IN_CACHE)
        return block_index(out, into, self._offset(into, tap), (self.rows, self.columns), CHANNELS_IN_CACHE)

    def load(self, weight: Tensor, bias: Tensor) -> None:
        super().load(weight, bias)
        self.transformed = False

    def optimizer_step(self, how: Array, step: int) -> None:
        super().optimizer_step(how, step)
        self.transformed = False

    def forward(self, slot: int) -> None:
        """From the slot's input to its output: planes, or maxima where pooled."""
        x, to = self.x[slot], self.out[slot] if self.pooled else None
        bias = self.bias.w[: self.rows]
        if self.kind.sums:
            walked = self.forward_walk
            given = (walked.first, walked.offset, self.forward_weight, bias, x, self.outer)
            if to:
                maxima = (to.array, to.at, to.strides, self.codes[slot])
                conv.sparse_conv_max_pool(*given, self.band_starts, self.band, *maxima)
            else:
                conv.sparse_conv(*given, self.starts, self.next_x[slot], self.next_x[slot])
            return
        if not self.transformed:
            self._transform()
        room = (self.v, self.m, self.four)
        if to:
            maxima = (to.array, to.at, to.strides, self.codes[slot])
            winograd.dense_conv_max_pool(self.u, bias, x, self.outer, self.windows, *room, *maxima)
        else:
            out = self.next_x[slot]
            winograd.dense_conv(self.u, bias, x, self.outer, self.tiles, True, *room, out, out)

    def _transform(self) -> None:
        nine, row = conv.TAPS, conv.TAPS * self.columns
        winograd.transform_filters(self.forward_weight, (0, row, nine, 1), self.rows, self.columns, self.u)
        mirrored = (nine - 1, nine, row, -1)
        winograd.transform_filters(self.forward_weight, mirrored, self.columns, self.rows, self.u_mirrored)
        self.transformed = True

    def backward(self, slot: int, first: bool) -> None:
        """Adds to the sums of the weights' gradients; the gradient at the input, unless this layer is the first.

        Where no pooling follows, `d` is the next layer's `dx`.
        """
        if self.pooled:
            come = self.d_out[slot]
            conv.max_unpool(self.outer, self.codes[slot], come.array, come.at, *come.strides, self.d)
        self.accumulate_grad(slot)
        if first:
            return
        x, nothing = self.x[slot], self.nothing[: self.columns]
        if self.kind.sums:
            walked = self.backward_walk
            given = (walked.first, walked.offset, self.backward_weight, nothing, self.d, self.inner)
            conv.sparse_conv(*given, self.starts, self.dx, x)
        else:
            room = (self.v, self.m, self.four)
            winograd.dense_conv(self.u_mirrored, nothing, self.d, self.inner, self.tiles, False, *room, x, self.dx)

    def accumulate_grad(self, slot: int) -> None:
        """Adds to the sums of the weights' gradients."""
        x, d = self.x[slot], self.d
        if self.kind.products:
            walked = self.products
            given = (x, d, self.outer, self.starts, self.sums, self.bias_sums, self.ones)
            conv.sparse_conv_weight_grad(walked.first, walked.offset, *given)
        else:
            room = (self.v, self.m)
            kernels_winograd.dense_conv_weight_grad(
                x, self.columns, d, self.outer, self.each_tile, *room, self.sums, self.bias_sums
            )

    def reduce_grad(self) -> None:
        """The gradients from their sums, which become zero."""
        conv.reduce_lines(self.bias_sums, self.bias.g)
        if self.kind.products:
            conv.reduce_lines(self.sums, self.weight.g)
        else:
            kernels_winograd.filter_gradients(self.sums, self.rows, self.columns, self.weight.g)
