"""Many 3x3 convolutions at once, each of its own images with its own kernel; several ways, the fastest is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, unfold

from supermask.engines.choice import Precision
from supermask.engines.stacked.precision import computing_in
from supermask.networks import Architecture, Conv

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def _grouped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One convolution with a group a replica: replicas are channels."""
    images = x.transpose(0, 1).flatten(1, 2)
    found = conv2d(images, w.flatten(0, 1), b.flatten(), padding=1, groups=len(w))
    return found.reshape(len(found), *w.shape[:2], *found.shape[2:]).transpose(0, 1)


def _channels_last(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The same, channels beside each other in memory."""
    images = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    found = conv2d(images, w.flatten(0, 1), b.flatten(), padding=1, groups=len(w))
    return found.reshape(len(found), *w.shape[:2], *found.shape[2:]).transpose(0, 1)


def _columns(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Every pixel's neighbourhood as a column, then one batched product."""
    columns = unfold(x.flatten(0, 1), 3, padding=1)
    columns = columns.reshape(*x.shape[:2], *columns.shape[1:]).transpose(1, 2).flatten(2)
    found = torch.baddbmm(b[:, :, None], w.flatten(2), columns)
    return found.reshape(*w.shape[:2], x.shape[1], *x.shape[3:]).transpose(1, 2)


def _one_by_one(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A convolution a replica, one after another."""
    return torch.stack([conv2d(x[r], w[r], b[r], padding=1) for r in range(len(w))])


WAYS: dict[str, Way] = {
    "grouped": _grouped,
    "grouped, channels last": _channels_last,
    "columns": _columns,
    "one by one": _one_by_one,
}


def convolved(x: Tensor, w: Tensor, b: Tensor, way: str) -> Tensor:
    """3x3 convolutions, stride 1, "same" padding, of replicas' own images.

    x: `(replicas, images, channels, height, width)`, w: `(replicas, outputs, channels, 3, 3)`, b: `(replicas,
    outputs)`; result: `(replicas, images, outputs, height, width)`, in whatever order in memory.
    """
    return WAYS[way](x, w, b)


def pooled(x: Tensor) -> Tensor:
    """2x2 max-pooling, stride 2, of the last two axes."""
    turned = x.transpose(0, 1)
    if turned.is_contiguous():
        # As a grouped convolution leaves it: so nothing is copied.
        return _pooled(turned).transpose(0, 1)
    return _pooled(x)


def _pooled(x: Tensor) -> Tensor:
    found = max_pool2d(x.flatten(0, 1), 2)
    return found.reshape(*x.shape[:2], *found.shape[1:])


def ways_here(layers: Architecture, batch: int, replicas: int, device: str, precision: Precision) -> dict[str, str]:
    """The fastest way of each convolution, by its layer's name; measured once a shape in this process.

    `replicas` is rounded up to a power of two. Source: docs/performance.md.
    """
    rounded = 1 << max(0, replicas - 1).bit_length()
    shapes = {x.name: (x.inputs, x.outputs, *x.side) for x in layers if isinstance(x, Conv)}
    return {name: _fastest(shape, batch, rounded, device, precision) for name, shape in shapes.items()}


@lru_cache
def _fastest(shape: tuple[int, int, int, int], batch: int, replicas: int, device: str, precision: Precision) -> str:
    inputs, outputs, height, width = shape
    place = torch.device(device)
    x, w, b = (
        torch.randn(size, device=place)
        for size in ((replicas, batch, inputs, height, width), (replicas, outputs, inputs, 3, 3), (replicas, outputs))
    )
    for tensor in (x, w, b):
        tensor.requires_grad_()
    seconds = {name: _seconds(way, (x, w, b), computing_in(precision, place)) for name, way in WAYS.items()}
    return min(seconds, key=lambda name: seconds[name])


def _seconds(
    way: Way, given: tuple[Tensor, Tensor, Tensor], computing: Callable[[], AbstractContextManager[None]]
) -> float:
    """Of one pass forward and backward, the median of three after one."""
    found = []
    for _ in range(4):
        began = time.perf_counter()
        with computing():
            total = way(*given).float().sum()
        torch.autograd.grad(total, given)
        if given[0].is_cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return median(found[1:])
