"""A stack of networks computes: one batched product a layer, and one product for replicas that share their images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from supermask.engines.stacked.convolutions import convolved, pooled
from supermask.networks import Architecture, Conv, Pool
from supermask.types import Weights

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """Consecutive batches, each seen by equally many consecutive replicas."""

    batch: int
    """The first one's number."""
    batches: int
    replica: int
    """The number of the first replica that sees it."""
    each: int
    """Replicas a batch."""


def blocks_of(sees: Sequence[Hashable]) -> list[Block]:
    """Blocks, from what each replica sees; only neighbours are found to share it."""
    found: list[Block] = []
    batch = replica = 0
    for each, equals in groupby(len(list(same)) for _, same in groupby(sees)):
        batches = len(list(equals))
        found.append(Block(batch, batches, replica, each))
        batch, replica = batch + batches, replica + batches * each
    return found


def logits_of(
    layers: Architecture, tensors: Weights, pixels: Tensor, blocks: Sequence[Block], ways: Mapping[str, str]
) -> Tensor:
    """The outputs of every replica on the images that it sees, `(replicas, images, classes)`.

    `tensors` have a leading axis of replicas; `pixels`: `(batches, images, channels, height, width)`; `ways`: how each
    convolution is computed, by its layer's name.
    """
    x, shared = pixels, True
    for layer in layers:
        if isinstance(layer, Pool):
            x = pooled(x)
            continue
        w, b = tensors[f"{layer.name}.weight"], tensors[f"{layer.name}.bias"]
        if isinstance(layer, Conv):
            computed: Layer = partial(convolved, way=ways[layer.name])
        else:
            computed = _dense
            x = x.flatten(2).mT if x.dim() == 5 else x
        x = _shared(computed, x, w, b, blocks) if shared else computed(x, w, b)
        shared = False
        if isinstance(layer, Conv) or not layer.last:
            x = x.relu()
    return x.mT


def _dense(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """`(replicas, outputs, images)` of `(replicas, inputs, images)`: so gradients lie in memory as weights do."""
    return torch.baddbmm(b[:, :, None], w, x)


def _shared(computed: Layer, x: Tensor, w: Tensor, b: Tensor, blocks: Sequence[Block]) -> Tensor:
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
