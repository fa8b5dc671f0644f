"""The weights of one tensor that train, as a row without gaps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supermask.engines.job import Array
from supermask.engines.kernels import units
from supermask.engines.kernels.lanes import aligned, padded

Floats = NDArray[np.float32]


class Trained:
    """Weights, gradient and moments of the places `flat` of a tensor, in this order; those move that are `alive`."""

    def __init__(self, shape: tuple[int, ...], flat: NDArray[np.int64], alive: NDArray[np.bool_]) -> None:
        self.shape, self.flat = shape, flat
        bits = np.zeros(padded(flat.size), bool)
        bits[: flat.size] = alive
        self.words = np.packbits(bits, bitorder="little").view(np.uint64)
        self.w, self.g, self.m, self.v = (aligned(padded(flat.size)) for _ in range(4))
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
        values = aligned(padded(size + 1))
        self.copies.append((values, places.astype(np.int32)))
        return values

    def spread(self) -> None:
        """Brings the copies up to date."""
        for values, places in self.copies:
            units.scatter(self.w, places, values)

    def move(self, how: Array, step: int) -> None:
        """The optimiser's step how[step] along the gradient, which becomes zero."""
        units.move(how, step, self.words, self.g, self.w, self.m, self.v)
        self.g.fill(0)
        self.spread()
