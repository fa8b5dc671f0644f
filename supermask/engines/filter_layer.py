"""A convolution in training on a CPU: its weights, buffers and products.

Images go through 16 at a time as planes (`kernels.planes`), up to four such groups, which meet in the fully connected
layers. What a group leaves on its way is kept in its slot for the way back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from supermask.engines.costs import Kind
from supermask.engines.job import Array
from supermask.engines.kernels import filters, planes, winograd, winograd_gradients
from supermask.engines.kernels.lanes import LANES, aligned, padded
from supermask.engines.kernels.line import IMAGES
from supermask.engines.layers import Layer
from supermask.engines.shares import Shares, in_shares
from supermask.engines.trained import Floats
from supermask.networks import Conv

SLOTS = LANES // IMAGES

CHANNELS_IN_CACHE = 16
"""Of planes, around one block: 3 rows of 10 lines a channel, 30 kB."""


@dataclass
class Lines:
    """Where the lines of (channel, y, x) are: at + (c, y, x) * strides, in floats."""

    array: Floats
    at: int
    strides: tuple[int, int, int]


def lines_of(shape: planes.Shape, array: Floats) -> Lines:
    """The pixels of a stack of planes."""
    strides = (shape.plane * IMAGES, shape.pitch * IMAGES, IMAGES)
    return Lines(array, (shape.pitch + 1) * IMAGES, strides)


def lines_of_units(height: int, width: int, array: Floats, slot: int) -> Lines:
    """The same images in the lanes of units, which are pixels in the order of `flatten`."""
    return Lines(array, slot * IMAGES, (height * width * LANES, width * LANES, LANES))


class Filters(Layer):
    """A 3x3 convolution and its ReLU, and 2x2 max-pooling where one follows."""

    def __init__(self, layer: Conv, pooled: bool, mask: Tensor, kind: Kind, used: Tensor | None = None) -> None:
        assert layer.outputs % filters.TILE == 0, "the dense kernels compute whole tiles"
        height, width = layer.side
        self.pooled = pooled
        self.inner, self.outer = (planes.shape_of(n, height, width) for n in (layer.inputs, layer.outputs))
        super().__init__(layer, mask, kind, used)
        self.x = [aligned(self.inner.size) for _ in range(SLOTS)]
        self.d, self.dx = aligned(self.outer.size), aligned(self.inner.size)
        self.starts, self.band_starts = planes.blocks(height, width), planes.blocks(2, width)
        band = 2 * self.outer.pitch + planes.BLOCK
        self.band = aligned(layer.outputs * band * IMAGES if pooled else 0)
        self.tiles = winograd.tiles(height, width)
        self.each_tile = self.tiles[: -(-height // 2) * -(-width // 2)]
        self.windows = winograd.tiles(height // 2 * 2, width // 2 * 2) if pooled else self.tiles
        codes = layer.outputs * (height // 2) * (width // 2) * IMAGES if pooled else 0
        self.codes = [np.zeros(codes, np.uint8) for _ in range(SLOTS)]
        self.bias_sums, self.nothing = aligned(padded(self.rows) * IMAGES), aligned(padded(self.columns))
        self.ones = np.ones(LANES, np.float32)
        self._make_room()
        self.out: list[Lines] = []
        """Per slot, where the maxima go."""
        self.d_out: list[Lines] = []
        """Per slot, where their gradient comes from."""
        self.next_x: list[Floats] = []

    def _make_room(self) -> None:
        """For the sums of gradients, and for what the dense kernels put down in between."""
        most, threes = max(self.rows, self.columns), -(-self.columns // 3) * 3
        parts, floats = winograd.PARTS, winograd_gradients.TOGETHER * IMAGES * 4
        dense = not (self.kind.sums and self.kind.products)
        self.u, self.u_mirrored = (
            aligned(0 if self.kind.sums else parts * (self.rows * self.columns + IMAGES)) for _ in range(2)
        )
        self.v, self.m = (aligned(max(parts * LANES, floats) * (most + 2) if dense else 0) for _ in range(2))
        self.four = aligned(LANES)
        taps = padded(self.weight.flat.size) * IMAGES
        self.sums = aligned(taps if self.kind.products else parts * self.rows * threes)
        self.transformed = False

    def _offset(self, channels: Array, taps: Array) -> Array:
        ky, kx = np.divmod(taps, 3)
        offsets: Array = (channels * self.inner.plane + ky * self.inner.pitch + kx) * IMAGES
        return offsets.astype(np.int32)

    def _walk(self, flat: Array, mirrored: bool = False) -> Shares:
        out, into, tap = np.unravel_index(flat, (self.rows, self.columns, filters.TAPS))
        if mirrored:
            offset = self._offset(out, filters.TAPS - 1 - tap)
            return in_shares(into, out, offset, (self.columns, self.rows), CHANNELS_IN_CACHE)
        return in_shares(out, into, self._offset(into, tap), (self.rows, self.columns), CHANNELS_IN_CACHE)

    def load(self, weight: Tensor, bias: Tensor) -> None:
        super().load(weight, bias)
        self.transformed = False

    def move(self, how: Array, step: int) -> None:
        super().move(how, step)
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
                filters.convolve_and_pool(*given, self.band_starts, self.band, *maxima)
            else:
                filters.convolve(*given, self.starts, self.next_x[slot], self.next_x[slot])
            return
        if not self.transformed:
            self._transform()
        room = (self.v, self.m, self.four)
        if to:
            maxima = (to.array, to.at, to.strides, self.codes[slot])
            winograd.convolve_and_pool(self.u, bias, x, self.outer, self.windows, *room, *maxima)
        else:
            out = self.next_x[slot]
            winograd.convolve(self.u, bias, x, self.outer, self.tiles, True, *room, out, out)

    def _transform(self) -> None:
        nine, row = filters.TAPS, filters.TAPS * self.columns
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
            planes.unpool(self.outer, self.codes[slot], come.array, come.at, *come.strides, self.d)
        self.learn(slot)
        if first:
            return
        x, nothing = self.x[slot], self.nothing[: self.columns]
        if self.kind.sums:
            walked = self.backward_walk
            given = (walked.first, walked.offset, self.backward_weight, nothing, self.d, self.inner)
            filters.convolve(*given, self.starts, self.dx, x)
        else:
            room = (self.v, self.m, self.four)
            winograd.convolve(self.u_mirrored, nothing, self.d, self.inner, self.tiles, False, *room, x, self.dx)

    def learn(self, slot: int) -> None:
        """Adds to the sums of the weights' gradients."""
        x, d = self.x[slot], self.d
        if self.kind.products:
            walked = self.products
            given = (x, d, self.outer, self.starts, self.sums, self.bias_sums, self.ones)
            filters.products_of_weights(walked.first, walked.offset, *given)
        else:
            room = (self.v, self.m)
            winograd_gradients.products(
                x, self.columns, d, self.outer, self.each_tile, *room, self.sums, self.bias_sums
            )

    def collect(self) -> None:
        """The gradients from their sums, which become zero."""
        filters.fold(self.bias_sums, self.bias.g)
        if self.kind.products:
            filters.fold(self.sums, self.weight.g)
        else:
            winograd_gradients.filter_gradients(self.sums, self.rows, self.columns, self.weight.g)
