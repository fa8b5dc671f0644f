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
        distinct = {(id(d.train_images), id(d.train_labels)): d for d in data}
        self.offsets, passed = {}, 0
        for key, d in distinct.items():
            self.offsets[key], passed = passed, passed + len(d.train_labels)
        pixels = [on_device(d.train_images, device) for d in distinct.values()]
        labels = [on_device(d.train_labels, device) for d in distinct.values()]
        self.pixels = pixels[0] if len(pixels) == 1 else torch.cat(pixels)
        self.labels = labels[0] if len(labels) == 1 else torch.cat(labels)
        self._maximum = torch.tensor(float(data[0].pixel_maximum), device=device)

    def offset(self, data: Data) -> int:
        """Where the training images of this data begin."""
        return self.offsets[id(data.train_images), id(data.train_labels)]

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
