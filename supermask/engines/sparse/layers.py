"""Layers of a convolutional network on a CPU: the common base, and the fully connected layers.

Behind the convolutions, images are processed 64 at a time: a unit's values in these images are one vec64. Shapes:
B = `VECTOR_WIDTH` = 64 images, I inputs, O outputs, NB blocks of B images in a mini-batch.
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
    """Weights, gradient and moments of the elements `flat` of a tensor, in this order, without gaps.

    `flat`, int64 `(K,)`: positions in the flattened tensor. `trained`, bool `(K,)`: False for pruned weights. All
    arrays are padded to a multiple of B; the padding is never trained.
    """

    def __init__(self, shape: tuple[int, ...], flat: NDArray[np.int64], trained: NDArray[np.bool_]) -> None:
        self.shape, self.flat = shape, flat
        bits = np.zeros(round_up(flat.size), bool)
        bits[: flat.size] = trained
        self.trained_bits = np.packbits(bits, bitorder="little").view(np.uint64)
        self.w, self.g, self.m, self.v = (aligned_zeros(round_up(flat.size)) for _ in range(4))
        self.copies: list[tuple[Floats, NDArray[np.int32]]] = []

    def put(self, array: Floats, tensor: Tensor) -> None:
        """Write the tensor's elements to `array`, which is laid out as `w`."""
        array[: self.flat.size] = tensor.numpy().ravel()[self.flat]

    def get(self, array: Floats, background: Tensor) -> Tensor:
        """Return the tensor of `array`; its other elements are those of `background`."""
        values = background.numpy().copy()
        values.ravel()[self.flat] = array[: self.flat.size]
        return torch.from_numpy(values)

    def copy(self, positions: NDArray[np.int64], size: int) -> Floats:
        """Return an array in another order that follows the weights: weight k is always at positions[k], too.

        `size` elements and at least one more, where weights go that the copy does not have. Returns `w` itself if the
        order is the same.
        """
        if positions.size == size and np.array_equal(positions, np.arange(size)):
            return self.w
        values = aligned_zeros(round_up(size + 1))
        self.copies.append((values, positions.astype(np.int32)))
        return values

    def sync_copies(self) -> None:
        """Write the weights to all copies."""
        for values, positions in self.copies:
            matmul.scatter(self.w, positions, values)

    def optimizer_step(self, steps: Array, step: int) -> None:
        """Take the optimizer step with hyperparameters steps[step] along the gradient; set the gradient to zero."""
        matmul.sparse_weight_step(steps, step, self.trained_bits, self.g, self.w, self.m, self.v)
        self.g.fill(0)
        self.sync_copies()


class SparseLayer(ABC):
    """Kernel and bias of a layer, in the order that each of its products reads.

    A weight may exist up to three times: in `weight`, which is trained, in `forward_weight` and in `backward_weight`.
    After every step the copies are synchronized. `nonzero`: mask of the elements that are not zero, if these are more
    than the surviving ones (pruned weights frozen at other values). Frozen elements exist in the copies only.
    """

    def __init__(self, layer: Conv | Dense, mask: Tensor, choice: KernelChoice, nonzero: Tensor | None) -> None:
        self.name, self.choice = layer.name, choice
        self.rows, self.columns = layer.outputs, layer.inputs
        surviving = mask.numpy().ravel()
        self.shape = tuple(mask.shape)
        flat = np.flatnonzero(surviving)
        nonzero_flat = flat if nonzero is None else np.flatnonzero(nonzero.numpy())
        if choice.sparse_grad:
            self.grad_index = self._index(flat)
            flat = flat[self.grad_index.order]
        else:
            flat = self._dense_order()
        self.weight = CompactParam(self.shape, flat, surviving[flat])
        # Biases are never pruned.
        self.bias = CompactParam((self.rows,), np.arange(self.rows), np.ones(self.rows, bool))
        self.frozen = torch.zeros(self.shape)
        if choice.sparse_forward:
            self.forward_index = self._index(nonzero_flat)
            self.backward_index = self._index(nonzero_flat, mirrored=True)
            self.forward_flat = nonzero_flat[self.forward_index.order]
            self.backward_flat = nonzero_flat[self.backward_index.order]
        else:
            self.forward_index, self.backward_index = EMPTY_INDEX, EMPTY_INDEX
            self.forward_flat = self.backward_flat = self._dense_order()
        self.forward_weight = self._copy(self.forward_flat)
        self.backward_weight = self._copy(self.backward_flat) if choice.sparse_forward else self.forward_weight

    def _dense_order(self) -> Array:
        """Positions of all elements of the tensor, in the order of the dense kernels."""
        return np.arange(int(np.prod(self.shape)))

    @abstractmethod
    def _index(self, flat: Array, mirrored: bool = False) -> BlockedIndex:
        """Order in which kernels traverse these elements; `mirrored`: for the gradient at the input."""

    def _copy(self, flat: Array) -> Floats:
        """Return a copy of the weights at these positions of the tensor, in this order, that follows the weights."""
        # Elements that the copy lacks go to the position behind its end.
        position = np.full(np.prod(self.shape), flat.size)
        position[flat] = np.arange(flat.size)
        return self.weight.copy(position[self.weight.flat], flat.size)

    def load(self, weight: Tensor, bias: Tensor) -> None:
        """Set all values, frozen ones included."""
        self.frozen = weight.clone()
        # The copies are filled here, not by `sync_copies`: frozen elements are not in `weight` if that is compact.
        for values, flat in ((self.forward_weight, self.forward_flat), (self.backward_weight, self.backward_flat)):
            values[: flat.size] = weight.numpy().ravel()[flat]
        self.weight.put(self.weight.w, weight)
        self.bias.put(self.bias.w, bias)

    def optimizer_step(self, steps: Array, step: int) -> None:
        """Take one optimizer step with hyperparameters steps[step]."""
        self.weight.optimizer_step(steps, step)
        self.bias.optimizer_step(steps, step)


EMPTY_INDEX = BlockedIndex(np.zeros((1, 1), np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))


class LinearLayer(SparseLayer):
    """A fully connected layer, and its ReLU except after the last."""

    def __init__(
        self, layer: Dense, mask: Tensor, choice: KernelChoice, batch: int, nonzero: Tensor | None = None
    ) -> None:
        self.last = layer.last
        super().__init__(layer, mask, choice, nonzero)
        self.x, self.dx = aligned_zeros(self.columns * VECTOR_WIDTH), aligned_zeros(self.columns * VECTOR_WIDTH)
        """Input and the gradient at it, `(I, B)`."""
        self.y, self.d = aligned_zeros(self.rows * VECTOR_WIDTH), aligned_zeros(self.rows * VECTOR_WIDTH)
        """Output and the gradient at it, `(O, B)`."""
        self.zero_bias = aligned_zeros(round_up(self.columns))
        self.block_grad = aligned_zeros(self.weight.g.size if choice.sparse_grad and batch > VECTOR_WIDTH else 0)
        # The dense gradient is computed once per step, over all blocks: their inputs and gradients are kept until then.
        blocks = 0 if choice.sparse_grad else -(-batch // VECTOR_WIDTH)
        self.x_by_image, self.d_blocks = aligned_zeros(blocks * self.x.size), aligned_zeros(blocks * self.d.size)
        self.batch = batch

    def _dense_order(self) -> Array:
        return matmul.panel_permutation(self.rows, self.columns)

    def _index(self, flat: Array, mirrored: bool = False) -> BlockedIndex:
        rows, columns = np.divmod(flat, self.columns)
        if mirrored:
            return block_index(columns, rows, rows * VECTOR_WIDTH, (self.columns, self.rows), CACHE_COLUMNS)
        return block_index(rows, columns, columns * VECTOR_WIDTH, (self.rows, self.columns), CACHE_COLUMNS)

    def forward(self) -> None:
        """Compute y = ReLU(W x + bias), without ReLU in the last layer."""
        if self.choice.sparse_forward:
            bias, relu = self.bias.w[: self.rows], not self.last
            matmul.linear_forward(*_lists(self.forward_index), self.forward_weight, bias, self.x, self.y, relu)
        else:
            matmul.dense_forward(self.forward_weight, self.bias.w, self.x, self.y)
            if not self.last:
                matmul.relu(self.y, self.y)

    def backward(self, block: int) -> None:
        """Add a block of images to the gradients of weights and bias; compute dx, 0 where x is not > 0."""
        matmul.bias_grad(self.d, self.bias.g)
        self.accumulate_grad(block)
        if self.choice.sparse_forward:
            no_bias = self.zero_bias[: self.columns]
            matmul.linear_forward(*_lists(self.backward_index), self.backward_weight, no_bias, self.d, self.dx, False)
            matmul.relu(self.dx, self.x)
        else:
            matmul.dense_input_grad(self.backward_weight, self.d, self.x, self.dx)

    def accumulate_grad(self, block: int) -> None:
        """Add a block of images to the gradient of the weights, or keep its inputs and gradients for the dense one."""
        if self.choice.sparse_grad:
            first, blocks, offset = _lists(self.grad_index)
            # The kernel overwrites its output; further blocks are summed in a fixed order.
            g = self.weight.g if block == 0 else self.block_grad
            matmul.linear_weight_grad(first, blocks, self.rows, offset, self.x, self.d, g)
            if block > 0:
                self.weight.g += self.block_grad
        else:
            matmul.transpose_64(self.x, self.x_by_image[block * self.x.size : (block + 1) * self.x.size])
            self.d_blocks[block * self.d.size : (block + 1) * self.d.size] = self.d

    def optimizer_step(self, steps: Array, step: int) -> None:
        """Take one optimizer step with hyperparameters steps[step]."""
        self.bias.optimizer_step(steps, step)
        if self.choice.sparse_grad:
            self.weight.optimizer_step(steps, step)
        else:
            matmul.dense_weight_step(
                steps, step, self.weight.trained_bits, self.d_blocks, self.x_by_image, self.rows, self.batch,
                self.weight.w, self.weight.m, self.weight.v,
            )  # fmt: skip
            self.weight.sync_copies()


def _lists(index: BlockedIndex) -> tuple[Array, int, Array]:
    """Return an index as the kernels' arguments `first` (flat), `blocks` and `offset`."""
    return index.first.reshape(-1), len(index.first), index.offset
