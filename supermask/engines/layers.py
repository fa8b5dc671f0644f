"""What the layers of a convolutional network in training on a CPU have in common, and the fully connected ones.

Behind the convolutions images go through 64 at a time: a unit's values in these images are one `Lanes`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from supermask.engines.costs import Kind
from supermask.engines.job import Array
from supermask.engines.kernels import panels, units
from supermask.engines.kernels.lanes import LANES, aligned, padded
from supermask.engines.shares import UNITS_IN_CACHE, Shares, in_shares
from supermask.engines.trained import Floats, Trained
from supermask.networks import Conv, Dense


class Layer(ABC):
    """Kernel and bias of a layer, and how each of its products is walked over.

    `used` are the places that are not zero, where they are more than the mask's: pruned weights frozen at other values.
    """

    def __init__(self, layer: Conv | Dense, mask: Tensor, kind: Kind, used: Tensor | None) -> None:
        self.name, self.kind = layer.name, kind
        self.rows, self.columns = layer.outputs, layer.inputs
        kept = mask.numpy().ravel()
        self.shape = tuple(mask.shape)
        flat = np.flatnonzero(kept)
        places = flat if used is None else np.flatnonzero(used.numpy())
        if kind.products:
            self.products = self._walk(flat)
            flat = flat[self.products.order]
        else:
            flat = self._everything()
        self.weight = Trained(self.shape, flat, kept[flat])
        self.bias = Trained((self.rows,), np.arange(self.rows), np.ones(self.rows, bool))
        self.frozen = torch.zeros(self.shape)
        if kind.sums:
            self.forward_walk, self.backward_walk = self._walk(places), self._walk(places, mirrored=True)
            self.forward_flat = places[self.forward_walk.order]
            self.backward_flat = places[self.backward_walk.order]
        else:
            self.forward_walk, self.backward_walk = NOWHERE, NOWHERE
            self.forward_flat = self.backward_flat = self._everything()
        self.forward_weight = self._copy(self.forward_flat)
        self.backward_weight = self._copy(self.backward_flat) if kind.sums else self.forward_weight

    def _everything(self) -> Array:
        """All places of the tensor, in the order of the dense kernels."""
        return np.arange(int(np.prod(self.shape)))

    @abstractmethod
    def _walk(self, flat: Array, mirrored: bool = False) -> Shares:
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

    def move(self, how: Array, step: int) -> None:
        """One step of the optimiser."""
        self.weight.move(how, step)
        self.bias.move(how, step)


NOWHERE = Shares(np.zeros((1, 1), np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))


class Units(Layer):
    """A fully connected layer, and its ReLU except after the last."""

    def __init__(self, layer: Dense, mask: Tensor, kind: Kind, batch: int, used: Tensor | None = None) -> None:
        self.last = layer.last
        super().__init__(layer, mask, kind, used)
        self.x, self.dx = aligned(self.columns * LANES), aligned(self.columns * LANES)
        self.y, self.d = aligned(self.rows * LANES), aligned(self.rows * LANES)
        self.nothing = aligned(padded(self.columns))
        self.more = aligned(self.weight.g.size if kind.products and batch > LANES else 0)
        blocks = 0 if kind.products else -(-batch // LANES)
        self.x_images, self.all_d = aligned(blocks * self.x.size), aligned(blocks * self.d.size)
        self.batch = batch

    def _everything(self) -> Array:
        return panels.panel_order(self.rows, self.columns)

    def _walk(self, flat: Array, mirrored: bool = False) -> Shares:
        out, into = np.divmod(flat, self.columns)
        if mirrored:
            return in_shares(into, out, out * LANES, (self.columns, self.rows), UNITS_IN_CACHE)
        return in_shares(out, into, into * LANES, (self.rows, self.columns), UNITS_IN_CACHE)

    def forward(self) -> None:
        """y = ReLU(W x + bias), without ReLU after the last."""
        if self.kind.sums:
            bias, relu = self.bias.w[: self.rows], not self.last
            units.outputs(*_lists(self.forward_walk), self.forward_weight, bias, self.x, self.y, relu)
        else:
            panels.outputs_of_panels(self.forward_weight, self.bias.w, self.x, self.y)
            if not self.last:
                units.keep_positive(self.y, self.y)

    def backward(self, block: int) -> None:
        """Adds to the gradients of weights and bias; the gradient at the input, where that is positive."""
        units.sums(self.d, self.bias.g)
        self.learn(block)
        if self.kind.sums:
            nothing = self.nothing[: self.columns]
            units.outputs(*_lists(self.backward_walk), self.backward_weight, nothing, self.d, self.dx, False)
            units.keep_positive(self.dx, self.x)
        else:
            panels.inputs_of_panels(self.backward_weight, self.d, self.x, self.dx)

    def learn(self, block: int) -> None:
        """Adds the block of images to the gradient of the weights, or keeps what their gradient is made of."""
        if self.kind.products:
            first, shares, offset = _lists(self.products)
            g = self.weight.g if block == 0 else self.more
            units.gradients(first, shares, self.rows, offset, self.x, self.d, g)
            if block > 0:
                self.weight.g += self.more
        else:
            panels.images_of_units(self.x, self.x_images[block * self.x.size : (block + 1) * self.x.size])
            self.all_d[block * self.d.size : (block + 1) * self.d.size] = self.d

    def move(self, how: Array, step: int) -> None:
        """One step of the optimiser."""
        self.bias.move(how, step)
        if self.kind.products:
            self.weight.move(how, step)
        else:
            panels.move_panels(
                how, step, self.weight.words, self.all_d, self.x_images, self.rows, self.batch,
                self.weight.w, self.weight.m, self.weight.v,
            )  # fmt: skip
            self.weight.spread()


def _lists(walk: Shares) -> tuple[Array, int, Array]:
    return walk.first.reshape(-1), len(walk.first), walk.offset
