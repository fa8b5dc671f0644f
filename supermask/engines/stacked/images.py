"""The data sets of a stack, once each on the device; whose batches are whose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from supermask.engines.job import Array, Data
from supermask.engines.reference import on_device


class Images:
    """Training images of all replicas in one row, `(n, channels, height, width)` uint8; and what is measured on."""

    def __init__(self, data: Sequence[Data], device: torch.device) -> None:
        self._device = device
        self._there: dict[int, tuple[Array, Tensor]] = {}
        # The data themselves are held here and above, so that an array's id stays its own.
        self._held: dict[tuple[int, int], Data] = {}
        self._offsets: dict[tuple[int, int], int] = {}
        self._maximum = torch.tensor(float(data[0].pixel_maximum), device=device)
        self.hold(data)

    def hold(self, data: Sequence[Data]) -> bool:
        """Sends what a stack of these data needs, where it is not there yet; forgets what was measured on by others.

        Returns whether the training images lie elsewhere in memory now.
        """
        measured = {
            id(a) for d in data for a in (d.validation_images, d.validation_labels, d.test_images, d.test_labels)
        }
        self._there = {key: there for key, there in self._there.items() if key in measured}
        if all(_key(d) in self._held for d in data):
            return False
        self._held, passed = {_key(d): d for d in data}, 0
        for key, d in self._held.items():
            self._offsets[key], passed = passed, passed + len(d.train_labels)
        pixels = [on_device(d.train_images, self._device) for d in self._held.values()]
        labels = [on_device(d.train_labels, self._device) for d in self._held.values()]
        self.pixels = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
        self.labels = labels[0] if len(labels) == 1 else torch.cat(labels)
        return True

    def offset(self, data: Data) -> int:
        """Where the training images of this data begin."""
        return self._offsets[_key(data)]

    def scaled(self, pixels: Tensor) -> Tensor:
        """As networks see them."""
        return pixels.float().div_(self._maximum)

    def there(self, array: Array) -> Tensor:
        """An array that is measured on, on the device; it is sent once."""
        if id(array) not in self._there:
            # The array itself is held, so that its id stays its own.
            self._there[id(array)] = (array, on_device(array, self._device))
        return self._there[id(array)][1]

    def send(self, array: Array) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _key(data: Data) -> tuple[int, int]:
    return id(data.train_images), id(data.train_labels)
