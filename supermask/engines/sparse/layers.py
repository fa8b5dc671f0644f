"""What the layers of a convolutional network in training on a CPU have in common, and the fully connected ones.

Behind the convolutions images go through 64 at a time: a unit's values in these images are one `Lanes`.

The weights of one tensor that train, as a row without gaps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supermask.engines.job import Array
from supermask.engines.sparse.costs import CACHE_COLUMNS, BlockedIndex, KernelChoice, block_index
from supermask.engines.sparse.kernels import matmul
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros, round_up
from supermask.networks.sequential import Conv, Dense

Floats = NDArray[np.float32]


class CompactParam:
    """Weights, gradient and moments of the places `flat` of a tensor, in this order; those move that are `alive`."""

    def __init__(self, shape: tuple[int, ...], flat: NDArray[np.int64], alive: NDArray[np.bool_]) -> None:
        self.shape, self.flat = shape, flat
        bits = np.zeros(round_up(flat.size), bool)
        bits[: flat.size] = alive
        self.words = np.packbits(bits, bitorder="little").view(np.uint64)
        self.w, self.g, self.m, self.v = (aligned_zeros(round_up(flat.size)) for _ in range(4))
        self.copies: list[tuple[Floats, NDArray[np.int32]]] = []

    def put(self, array: Floats, values: Tensor) -> None:
        """Takes its places of a tensor."""
        array[: self.flat.size] = values.numpy().ravel()[self.flat]

    def get(self, array: Floats, others: Tensor) -> Tensor:
        """The tensor again; elsewhere it is as `others`."""
        values = others.numpy().copy()
        values.ravel()[self.flat] = array[: self.flat.size]
        return torch.from_numpy(values)

    def copy(self, places: NDArray[np.int64], size: int) -> Floats:
        """Zeros of this size, and room for one more, that follow the weights: weight k is always at places[k], too.

        The weights themselves, where that is the same.
        """
        if places.size == size and np.array_equal(places, np.arange(size)):
            return self.w
        values = aligned_zeros(round_up(size + 1))
        self.copies.append((values, places.astype(np.int32)))
        return values

    def sync_copies(self) -> None:
        """Brings the copies up to date."""
        for values, places in self.copies:
            matmul.scatter(self.w, places, values)

    def optimizer_step(self, how: Array, step: int) -> None:
        """The optimiser's step how[step] along the gradient, which becomes zero."""
        matmul.sparse_weight_step(how, step, self.words, self.g, self.w, self.m, self.v)
        self.g.fill(0)
        self.sync_copies()


class SparseLayer(ABC):
    """Kernel and bias of a layer, and how each of its products is walked over.

    `used` are the places that are not zero, where they are more than the mask's: pruned weights frozen at other values.
    """

    def __init__(self, layer: Conv | Dense, mask: Tensor, kind: KernelChoice, used: Tensor | None) -> None:
        self.name, self.kind = layer.name, kind
        self.rows, self.columns = layer.outputs, layer.inputs
        kept = mask.numpy().ravel()
        self.shape = tuple(mask.shape)
        flat = np.flatnonzero(kept)
        places = flat if used is None else np.flatnonzero(used.numpy())
        if kind.products:
            self.products = self._index(flat)
            flat = flat[self.products.order]
        else:
            flat = self._dense_index()
        self.weight = CompactParam(self.shape, flat, kept[flat])
        self.bias = CompactParam((self.rows,), np.arange(self.rows), np.ones(self.rows, bool))
        self.frozen = torch.zeros(self.shape)
        if kind.sums:
            self.forward_walk, self.backward_walk = self._index(places), self._index(places, mirrored=True)
            self.forward_flat = places[self.forward_walk.order]
            self.backward_flat = places[self.backward_walk.order]
        else:
            self.forward_walk, self.backward_walk = EMPTY_INDEX, EMPTY_INDEX
            self.forward_flat = self.backward_flat = self._dense_index()
        self.forward_weight = self._copy(self.forward_flat)
        self.backward_weight = self._copy(self.backward_flat) if kind.sums else self.forward_weight

    def _dense_index(self) -> Array:
        """All places of the tensor, in the order of the dense kernels."""
        return np.arange(int(np.prod(self.shape)))

    @abstractmethod
    def _index(self, flat: Array, mirrored: bool = False) -> BlockedIndex:
        """The order in which kernels walk over these places; `mirrored`, for the gradient at the input."""

    def _copy(self, flat: Array) -> Floats:
        """The weights at these places of the tensor, in this order, kept up to date."""
        place = np.full(np.prod(self.shape), flat.size)  # one behind the last for those that are not among them
        place[flat] = np.arange(flat.size)
        return self.weight.copy(place[self.weight.flat], flat.size)

    def load(self, weight: Tensor, bias: Tensor) -> None:
        """Sets all values, frozen ones included."""
        self.frozen = weight.clone()
        for values, flat in ((self.forward_weight, self.forward_flat), (self.backward_weight, self.backward_flat)):
            values[: flat.size] = weight.numpy().ravel()[flat]
        self.weight.put(self.weight.w, weight)
        self.bias.put(self.bias.w, bias)

    def optimizer_step(self, how: Array, step: int) -> None:
        """One step of the optimiser."""
        self.weight.optimizer_step(how, step)
        self.bias.optimizer_step(how, step)


EMPTY_INDEX = BlockedIndex(np.zeros((1, 1), np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))


class LinearLayer(SparseLayer):
    """A fully connected layer, and its ReLU except after the last."""

    def __init__(self, layer: Dense, mask: Tensor, kind: KernelChoice, batch: int, used: Tensor | None = None) -> None:
        self.last = layer.last
        super().__init__(layer, mask, kind, used)
        self.x, self.dx = aligned_zeros(self.columns * VECTOR_WIDTH), aligned_zeros(self.columns * VECTOR_WIDTH)
        self.y, self.d = aligned_zeros(self.rows * VECTOR_WIDTH), aligned_zeros(self.rows * VECTOR_WIDTH)
        self.nothing = aligned_zeros(round_up(self.columns))
        self.more = aligned_zeros(self.weight.g.size if kind.products and batch > VECTOR_WIDTH else 0)
        blocks = 0 if kind.products else -(-batch // VECTOR_WIDTH)
        self.x_images, self.all_d = aligned_zeros(blocks * self.x.size), aligned_zeros(blocks * self.d.size)
        self.batch = batch

    def _dense_index(self) -> Array:
        return matmul.panel_permutation(self.rows, self.columns)

    def _index(self, flat: Array, mirrored: bool = False) -> BlockedIndex:
        out, into = np.divmod(flat, self.columns)
        if mirrored:
            return block_index(into, out, out * VECTOR_WIDTH, (self.columns, self.rows), CACHE_COLUMNS)
        return block_index(out, into, into * VECTOR_WIDTH, (self.rows, self.columns), CACHE_COLUMNS)

    def forward(self) -> None:
        """y = ReLU(W x + bias), without ReLU after the last."""
        if self.kind.sums:
            bias, relu = self.bias.w[: self.rows], not self.last
            matmul.linear_forward(*_lists(self.forward_walk), self.forward_weight, bias, self.x, self.y, relu)
        else:
            matmul.dense_forward(self.forward_weight, self.bias.w, self.x, self.y)
            if not self.last:
                matmul.relu(self.y, self.y)

    def backward(self, block: int) -> None:
        """Adds to the gradients of weights and bias; the gradient at the input, where that is positive."""
        matmul.bias_grad(self.d, self.bias.g)
        self.accumulate_grad(block)
        if self.kind.sums:
            nothing = self.nothing[: self.columns]
            matmul.linear_forward(*_lists(self.backward_walk), self.backward_weight, nothing, self.d, self.dx, False)
            matmul.relu(self.dx, self.x)
        else:
            matmul.dense_input_grad(self.backward_weight, self.d, self.x, self.dx)

    def accumulate_grad(self, block: int) -> None:
        """Adds the block of images to the gradient of the weights, or keeps what their gradient is made of."""
        if self.kind.products:
            first, shares, offset = _lists(self.products)
            g = self.weight.g if block == 0 else self.more
            matmul.linear_weight_grad(first, shares, self.rows, offset, self.x, self.d, g)
            if block > 0:
                self.weight.g += self.more
        else:
            matmul.transpose_64(self.x, self.x_images[block * self.x.size : (block + 1) * self.x.size])
            self.all_d[block * self.d.size : (block + 1) * self.d.size] = self.d

    def optimizer_step(self, how: Array, step: int) -> None:
        """One step of the optimiser."""
        self.bias.optimizer_step(how, step)
        if self.kind.products:
            self.weight.optimizer_step(how, step)
        else:
            matmul.dense_weight_step(
                how, step, self.weight.words, self.all_d, self.x_images, self.rows, self.batch,
                self.weight.w, self.weight.m, self.weight.v,
            )  # fmt: skip
            self.weight.sync_copies()


def _lists(walk: BlockedIndex) -> tuple[Array, int, Array]:
    return walk.first.reshape(-1), len(walk.first), walk.offset
