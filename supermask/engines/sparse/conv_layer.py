"""One convolution in training on a CPU: its weights, buffers and products.

Images are processed 16 at a time, as planes (`kernels.conv`), in up to four groups that meet in the fully connected
layers. The backward pass of a group needs its activations, which stay in its slot: index 0 to `GROUPS` - 1 of the lists
below. Shape letters as in `kernels.conv`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from supermask.engines.job import Array
from supermask.engines.sparse.costs import BlockedIndex, KernelChoice, block_index
from supermask.engines.sparse.kernels import conv, winograd
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros, round_up
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH
from supermask.engines.sparse.layers import Floats, SparseLayer
from supermask.networks.sequential import Conv

GROUPS = VECTOR_WIDTH // VEC16_WIDTH

CHANNELS_IN_CACHE = 16
"""Channels per block. Around one block of positions a channel has 3 rows of 10 vec16: 30 kB for 16 channels."""


@dataclass
class PixelLayout:
    """Positions of pixels in an array: (channel, y, x) is at `offset` + (channel, y, x) * `strides`, in floats."""

    array: Floats
    offset: int
    strides: tuple[int, int, int]


def plane_layout(shape: conv.PlaneShape, array: Floats) -> PixelLayout:
    """Return the layout of the pixels of a stack of planes."""
    strides = (shape.plane * VEC16_WIDTH, shape.pitch * VEC16_WIDTH, VEC16_WIDTH)
    return PixelLayout(array, (shape.pitch + 1) * VEC16_WIDTH, strides)


def flattened_layout(height: int, width: int, array: Floats, slot: int) -> PixelLayout:
    """Return the layout of a group's pixels as inputs of a fully connected layer, in the order of `torch.flatten`.

    There a unit has 64 lanes, 16 of them for each group.
    """
    return PixelLayout(array, slot * VEC16_WIDTH, (height * width * VECTOR_WIDTH, width * VECTOR_WIDTH, VECTOR_WIDTH))


class Conv3x3Layer(SparseLayer):
    """A 3x3 convolution and its ReLU, and 2x2 max-pooling where one follows."""

    def __init__(
        self, layer: Conv, pooled: bool, mask: Tensor, choice: KernelChoice, nonzero: Tensor | None = None
    ) -> None:
        assert layer.outputs % conv.TILE == 0, "the dense kernels compute whole tiles"
        height, width = layer.side
        self.pooled = pooled
        self.inner, self.outer = (conv.shape_of(n, height, width) for n in (layer.inputs, layer.outputs))
        super().__init__(layer, mask, choice, nonzero)
        self.x = [aligned_zeros(self.inner.size) for _ in range(GROUPS)]
        """Input planes, per slot."""
        self.d, self.dx = aligned_zeros(self.outer.size), aligned_zeros(self.inner.size)
        """Gradient before ReLU and pooling, and gradient at the input; planes of the group in the backward pass."""
        # With pooling only two rows of the output exist at a time: their maxima are all that the next layer reads.
        self.starts, self.band_starts = conv.block_starts(height, width), conv.block_starts(2, width)
        band_positions = 2 * self.outer.pitch + conv.BLOCK
        self.band = aligned_zeros(layer.outputs * band_positions * VEC16_WIDTH if pooled else 0)
        self.tiles = winograd.tile_starts(height, width)
        # Without the repeated last tile, which would be counted twice in a sum.
        self.unique_tiles = self.tiles[: -(-height // 2) * -(-width // 2)]
        # An odd last row or column has no window.
        self.windows = winograd.tile_starts(height // 2 * 2, width // 2 * 2) if pooled else self.tiles
        # The backward pass of pooling needs the position of each maximum, and nothing else of the output.
        codes = layer.outputs * (height // 2) * (width // 2) * VEC16_WIDTH if pooled else 0
        self.codes = [np.zeros(codes, np.uint8) for _ in range(GROUPS)]
        """Position of each maximum in its window, per slot."""
        self.bias_sums, self.zero_bias = (
            aligned_zeros(round_up(self.rows) * VEC16_WIDTH),
            aligned_zeros(round_up(self.columns)),
        )
        # The gradient of the bias is the weights' kernel with x = 1.
        self.ones = np.ones(VECTOR_WIDTH, np.float32)
        self._allocate()
        self.out: list[PixelLayout] = []
        """Destination of the maxima, per slot, if pooled."""
        self.d_out: list[PixelLayout] = []
        """Source of their gradient, per slot, if pooled."""
        self.next_x: list[Floats] = []
        """Destination of the output planes, per slot, if not pooled."""

    def _allocate(self) -> None:
        """Allocate the sums of gradients, and the scratch of the dense kernels where they are used."""
        most_channels, padded = max(self.rows, self.columns), -(-self.columns // 3) * 3
        parts, step_floats = winograd.PARTS, winograd.TILES_PER_STEP * VEC16_WIDTH * 4
        is_dense = not (self.choice.sparse_forward and self.choice.sparse_grad)
        self.u, self.u_mirrored = (
            aligned_zeros(0 if self.choice.sparse_forward else parts * (self.rows * self.columns + VEC16_WIDTH))
            for _ in range(2)
        )
        # Shared by the forward pass (16 parts of 64 floats) and the gradient (4 parts of a row of tiles) per channel.
        self.v, self.m = (
            aligned_zeros(max(parts * VECTOR_WIDTH, step_floats) * (most_channels + 2) if is_dense else 0)
            for _ in range(2)
        )
        self.pixels = aligned_zeros(VECTOR_WIDTH)
        # Sums stay apart by image, or by part of the transform, until the end of the mini-batch.
        tap_sums = round_up(self.weight.flat.size) * VEC16_WIDTH
        self.sums = aligned_zeros(tap_sums if self.choice.sparse_grad else parts * self.rows * padded)
        self.is_transformed = False
        """True while `u` and `u_mirrored` belong to the current weights."""

    def _offset(self, channels: Array, taps: Array) -> Array:
        """Distance from an output position to the input that a tap reads, in floats."""
        ky, kx = np.divmod(taps, 3)
        offsets: Array = (channels * self.inner.plane + ky * self.inner.pitch + kx) * VEC16_WIDTH
        return offsets.astype(np.int32)

    def _index(self, flat: Array, mirrored: bool = False) -> BlockedIndex:
        out, into, tap = np.unravel_index(flat, (self.rows, self.columns, conv.TAPS))
        if mirrored:
            # Planes of input and output have the same pitch and distance, so the offsets hold for both.
            offset = self._offset(out, conv.TAPS - 1 - tap)
            return block_index(into, out, offset, (self.columns, self.rows), CHANNELS_IN_CACHE)
        return block_index(out, into, self._offset(into, tap), (self.rows, self.columns), CHANNELS_IN_CACHE)

    def load(self, weight: Tensor, bias: Tensor) -> None:
        super().load(weight, bias)
        self.is_transformed = False

    def optimizer_step(self, steps: Array, step: int) -> None:
        super().optimizer_step(steps, step)
        self.is_transformed = False

    def forward(self, slot: int) -> None:
        """Compute the output of a slot: planes, or maxima if pooled."""
        x, out = self.x[slot], self.out[slot] if self.pooled else None
        bias = self.bias.w[: self.rows]
        if self.choice.sparse_forward:
            index = self.forward_index
            inputs = (index.first, index.offset, self.forward_weight, bias, x, self.outer)
            if out:
                maxima = (out.array, out.offset, out.strides, self.codes[slot])
                conv.sparse_conv_max_pool(*inputs, self.band_starts, self.band, *maxima)
            else:
                conv.sparse_conv(*inputs, self.starts, self.next_x[slot], self.next_x[slot])
            return
        if not self.is_transformed:
            self._transform()
        scratch = (self.v, self.m, self.pixels)
        if out:
            maxima = (out.array, out.offset, out.strides, self.codes[slot])
            winograd.dense_conv_max_pool(self.u, bias, x, self.outer, self.windows, *scratch, *maxima)
        else:
            planes = self.next_x[slot]
            winograd.dense_conv(self.u, bias, x, self.outer, self.tiles, True, *scratch, planes, planes)

    def _transform(self) -> None:
        """Transform the filters once per step, for all slots; for the gradient, mirrored and transposed."""
        nine, row = conv.TAPS, conv.TAPS * self.columns
        winograd.transform_filters(self.forward_weight, (0, row, nine, 1), self.rows, self.columns, self.u)
        # Taps are read from 8 down to 0, and rows and columns change roles.
        mirrored = (nine - 1, nine, row, -1)
        winograd.transform_filters(self.forward_weight, mirrored, self.columns, self.rows, self.u_mirrored)
        self.is_transformed = True

    def backward(self, slot: int, first: bool) -> None:
        """Add a slot to the sums of the weights' gradients; compute `dx`, unless this layer is the first.

        If no pooling follows, `d` is the next layer's `dx`.
        """
        if self.pooled:
            source = self.d_out[slot]
            conv.max_unpool(self.outer, self.codes[slot], source.array, source.offset, *source.strides, self.d)
        self.accumulate_grad(slot)
        if first:
            return
        x, no_bias = self.x[slot], self.zero_bias[: self.columns]
        if self.choice.sparse_forward:
            index = self.backward_index
            inputs = (index.first, index.offset, self.backward_weight, no_bias, self.d, self.inner)
            conv.sparse_conv(*inputs, self.starts, self.dx, x)
        else:
            scratch = (self.v, self.m, self.pixels)
            winograd.dense_conv(self.u_mirrored, no_bias, self.d, self.inner, self.tiles, False, *scratch, x, self.dx)

    def accumulate_grad(self, slot: int) -> None:
        """Add a slot to the sums of the weights' gradients."""
        x, d = self.x[slot], self.d
        if self.choice.sparse_grad:
            index = self.grad_index
            inputs = (x, d, self.outer, self.starts, self.sums, self.bias_sums, self.ones)
            conv.sparse_conv_weight_grad(index.first, index.offset, *inputs)
        else:
            winograd.dense_conv_weight_grad(
                x, self.columns, d, self.outer, self.unique_tiles, self.v, self.m, self.sums, self.bias_sums
            )

    def reduce_grad(self) -> None:
        """Compute the gradients from their sums per image, or per transformed filter, and set the sums to zero."""
        conv.reduce_lines(self.bias_sums, self.bias.g)
        if self.choice.sparse_grad:
            conv.reduce_lines(self.sums, self.weight.g)
        else:
            winograd.filter_gradients(self.sums, self.rows, self.columns, self.weight.g)
