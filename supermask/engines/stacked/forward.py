"""A stack of networks computes: one batched product a layer, and one product for replicas that share their images.

Masks that are learned, of many replicas at once: `engines.learning.masked` with a leading axis.

The data sets of a stack, once each on the device; whose batches are whose.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from supermask.core.learned_masks import SIGMOID, MaskLearning, batched_uniform_samples, edge_popup_count
from supermask.core.types import SplitData, Weights
from supermask.engines.job import Array
from supermask.engines.reference import on_device
from supermask.engines.reference_masks import StraightThrough
from supermask.engines.stacked.convolutions import conv3x3, max_pool2x2
from supermask.networks.sequential import Architecture, Conv, Pool

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BatchGroup:
    """Consecutive batches, each seen by equally many consecutive replicas."""

    batch: int
    """The first one's number."""
    batches: int
    replica: int
    """The number of the first replica that sees it."""
    each: int
    """Replicas a batch."""


def group_batches(sees: Sequence[Hashable]) -> list[BatchGroup]:
    """Blocks, from what each replica sees; only neighbours are found to share it."""
    found: list[BatchGroup] = []
    batch = replica = 0
    for each, equals in groupby(len(list(same)) for _, same in groupby(sees)):
        batches = len(list(equals))
        found.append(BatchGroup(batch, batches, replica, each))
        batch, replica = batch + batches, replica + batches * each
    return found


def forward(
    layers: Architecture, tensors: Weights, pixels: Tensor, blocks: Sequence[BatchGroup], ways: Mapping[str, str]
) -> Tensor:
    """The outputs of every replica on the images that it sees, `(replicas, images, classes)`.

    `tensors` have a leading axis of replicas; `pixels`: `(batches, images, channels, height, width)`; `ways`: how each
    convolution is computed, by its layer's name.
    """
    x, shared = pixels, True
    for layer in layers:
        if isinstance(layer, Pool):
            x = max_pool2x2(x)
            continue
        w, b = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
        if isinstance(layer, Conv):
            computed: Layer = partial(conv3x3, way=ways[layer.name])
        else:
            computed = _dense
            x = x.flatten(2).mT if x.dim() == 5 else x
        x = _shared_first_layer(computed, x, w, b, blocks) if shared else computed(x, w, b)
        shared = False
        if isinstance(layer, Conv) or not layer.last:
            x = x.relu()
    return x.mT


def _dense(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """`(replicas, outputs, images)` of `(replicas, inputs, images)`: so gradients lie in memory as weights do."""
    return torch.baddbmm(b[:, :, None], w, x)


def _shared_first_layer(computed: Layer, x: Tensor, w: Tensor, b: Tensor, blocks: Sequence[BatchGroup]) -> Tensor:
    """The first layer: to replicas that see the same images it is one wide layer."""
    found = []
    outputs = 1 if x.dim() == 3 else 2
    sizes = [block.batches * block.each for block in blocks]
    # Not slices, nor parts where there is one: their gradients would be zeros first, then copies.
    parts = zip(torch.split(w, sizes), torch.split(b, sizes), strict=True) if len(blocks) > 1 else [(w, b)]
    for block, (own, biases) in zip(blocks, parts, strict=True):
        wide, bias = (t.reshape(block.batches, block.each * t.shape[1], *t.shape[2:]) for t in (own, biases))
        y = computed(x[block.batch : block.batch + block.batches], wide, bias)
        parted = y.reshape(*y.shape[:outputs], block.each, -1, *y.shape[outputs + 1 :])
        found.append(parted.movedim(outputs, 1).flatten(0, 1))
    return found[0] if len(found) == 1 else torch.cat(found)


def masked_weights(learning: MaskLearning, logits: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """The weights of one pass of each replica, differentiable in the logits.

    b w, or b w (size / ones) under dynamic weight rescaling. Shape: that of the logits, `(replicas, *kernel)`; `keys`:
    int32 `(replicas, 2)`, for the coins of `bernoulli`. Source: paper.md section 6.
    """
    soft = logits.sigmoid() if learning.method in SIGMOID else logits
    b: Tensor = StraightThrough.apply(soft, _mask(learning, soft.detach(), logits.detach(), keys))  # type: ignore[no-untyped-call]
    used = b * weights
    if learning.rescaled:
        # The gradient flows through the ratio: d(ones)/db is 1, at zeros too; the sign of b where it may invert.
        counted = b.abs() if learning.method == "signed" else b
        ones = torch.sum(counted.flatten(1), 1).clamp(min=1.0)
        used = used * (logits[0].numel() / ones).view(-1, *[1] * (logits.dim() - 1))
    return used


def _mask(learning: MaskLearning, soft: Tensor, logits: Tensor, keys: Tensor) -> Tensor:
    if learning.method == "bernoulli":
        return (batched_uniform_samples(keys, logits) < soft).float()
    if learning.method == "rounded":
        return (logits > 0).float()
    if learning.method == "signed":
        return logits.sign() * (logits.abs() > learning.threshold)
    each = logits.flatten(1)
    cut = each.kthvalue(each.shape[1] - edge_popup_count(each.shape[1], learning.density), 1, keepdim=True).values
    return (each > cut).float().view_as(logits)


class DeviceImages:
    """Training images of all replicas in one row, `(n, channels, height, width)` uint8; and what is measured on."""

    def __init__(self, data: Sequence[SplitData], device: torch.device) -> None:
        self._device = device
        self._there: dict[int, tuple[Array, Tensor]] = {}
        # The data themselves are held here and above, so that an array's id stays its own.
        self._held: dict[tuple[int, int], SplitData] = {}
        self._offsets: dict[tuple[int, int], int] = {}
        self._maximum = torch.tensor(float(data[0].pixel_maximum), device=device)
        self.update(data)

    def update(self, data: Sequence[SplitData]) -> bool:
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

    def offset(self, data: SplitData) -> int:
        """Where the training images of this data begin."""
        return self._offsets[_key(data)]

    def scaled(self, pixels: Tensor) -> Tensor:
        """As networks see them."""
        return pixels.float().div_(self._maximum)

    def get(self, array: Array) -> Tensor:
        """An array that is measured on, on the device; it is sent once."""
        if id(array) not in self._there:
            # The array itself is held, so that its id stays its own.
            self._there[id(array)] = (array, on_device(array, self._device))
        return self._there[id(array)][1]

    def to_device(self, array: Array) -> Tensor:
        """A copy on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _key(data: SplitData) -> tuple[int, int]:
    return id(data.train_images), id(data.train_labels)
