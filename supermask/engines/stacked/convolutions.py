"""Many 3x3 convolutions at once, each of its own images with its own kernel; several ways, the fastest is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from math import inf
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, unfold

from supermask.engines.reference import flush_denormals
from supermask.engines.selection import Precision
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS, CudaGraphStep
from supermask.engines.stacked.device import (
    autocast_factory,
    cached_measurement,
    empty_cache,
    is_out_of_memory,
    matmul_precision,
)
from supermask.networks.sequential import Architecture, Conv

ConvAlgorithm = Callable[[Tensor, Tensor, Tensor], Tensor]


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
    # Unbound and not indexed: the gradient of each index would be a whole stack of zeros.
    return torch.stack([conv2d(*one, padding=1) for one in _each(x, w, b)])


def _multi_stream(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The same, on a few streams of a GPU that take turns: beside each other, and branches of a recorded step.

    Autograd goes back on the stream on which it went forward, and waits where streams meet.
    """
    if not x.is_cuda:
        return _one_by_one(x, w, b)
    here, streams = torch.cuda.current_stream(x.device), _side_streams(x.device)[: len(w)]
    found = []
    for stream in streams:
        stream.wait_stream(here)
        for tensor in (x, w, b):
            # Autograd lets go of it when the last branch back is only begun: nobody may write over it before its end.
            tensor.record_stream(stream)
    for r, one in enumerate(_each(x, w, b)):
        with torch.cuda.stream(streams[r % len(streams)]):
            found.append(conv2d(*one, padding=1))
    for stream in streams:
        here.wait_stream(stream)
    for tensor in found:
        tensor.record_stream(here)
    return torch.stack(found)


STREAMS = 4


@cache
def _side_streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]  # type: ignore[no-untyped-call]


def _each(x: Tensor, w: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return zip(x.unbind(), w.unbind(), b.unbind(), strict=True)


CONV_ALGORITHMS: dict[str, ConvAlgorithm] = {
    "grouped": _grouped,
    "grouped, channels last": _channels_last,
    "columns": _columns,
    "one by one": _one_by_one,
    "branches": _multi_stream,
}


def conv3x3(x: Tensor, w: Tensor, b: Tensor, way: str) -> Tensor:
    """3x3 convolutions, stride 1, "same" padding, of replicas' own images.

    x: `(replicas, images, channels, height, width)`, w: `(replicas, outputs, channels, 3, 3)`, b: `(replicas,
    outputs)`; result: `(replicas, images, outputs, height, width)`, in whatever order in memory.
    """
    return CONV_ALGORITHMS[way](x, w, b)


def max_pool2x2(x: Tensor) -> Tensor:
    """2x2 max-pooling, stride 2, of the last two axes."""
    turned = x.transpose(0, 1)
    if turned.is_contiguous():
        # As a grouped convolution leaves it: so nothing is copied.
        return _pooled(turned).transpose(0, 1)
    return _pooled(x)


def _pooled(x: Tensor) -> Tensor:
    found = max_pool2d(x.flatten(0, 1), 2)
    return found.reshape(*x.shape[:2], *found.shape[1:])


def fastest_algorithms(
    layers: Architecture, batch: int, replicas: int, device: str, precision: Precision
) -> dict[str, str]:
    """The fastest way of each convolution, by its layer's name; measured once a shape and machine, and kept.

    `replicas` is rounded up to a power of two. Source: docs/performance.md.
    """
    rounded = 1 << max(0, replicas - 1).bit_length()
    shapes = {x.name: (x.inputs, x.outputs, *x.side) for x in layers if isinstance(x, Conv)}
    return {name: _fastest(shape, batch, rounded, device, precision) for name, shape in shapes.items()}


Shape = tuple[int, int, int, int]
"""Of a convolution: channels that it is given, channels that it makes, height, width."""


@lru_cache
def _fastest(shape: Shape, batch: int, replicas: int, device: str, precision: Precision) -> str:
    place = torch.device(device)
    # One by one it is, on a CPU, what branches are.
    offered = [name for name in CONV_ALGORITHMS if place.type == "cuda" or name != "branches"]

    def measure() -> str:
        with flush_denormals(), matmul_precision(precision, place):
            return fastest_algorithm(offered, shape, batch, replicas, place, precision)

    return cached_measurement("way", [shape, batch, replicas, precision, offered], place, measure)


def fastest_algorithm(
    offered: Sequence[str], shape: Shape, batch: int, replicas: int, place: torch.device, precision: Precision
) -> str:
    """Of these ways, forward and backward; of as many replicas as there is memory for."""
    seconds: dict[str, float] = {}
    while not seconds:
        for name in offered:
            try:
                given = _given(shape, batch, replicas, place)
                enough = 3 * min(seconds.values(), default=inf) if place.type == "cpu" else inf
                seconds[name] = _seconds(CONV_ALGORITHMS[name], given, autocast_factory(precision, place), enough)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            empty_cache(place)
        if not seconds and replicas == 1:
            return "one by one"
        replicas = max(1, replicas // 2)
    return min(seconds, key=lambda name: seconds[name])


def _given(shape: Shape, batch: int, replicas: int, place: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    inputs, outputs, height, width = shape
    sizes = (replicas, batch, inputs, height, width), (replicas, outputs, inputs, 3, 3), (replicas, outputs)
    x, w, b = (torch.randn(size, device=place, requires_grad=True) for size in sizes)
    return x, w, b


def _seconds(
    way: ConvAlgorithm,
    given: tuple[Tensor, Tensor, Tensor],
    computing: Callable[[], AbstractContextManager[None]],
    enough: float,
) -> float:
    """Of one pass forward and backward, the median of three after one; of fewer where that takes `LONG`.

    The first is all there is if it takes more than `enough`. On a GPU passes are recorded, as a step is.
    """

    def both() -> None:
        with computing():
            total = way(*given).float().sum()
        torch.autograd.grad(total, given)

    gpu, repeated = given[0].is_cuda, CudaGraphStep(both, given[0].device)
    if gpu:
        repeated(WARMUP_STEPS + 1)
        torch.cuda.synchronize()
    found: list[float] = []
    while len(found) < 2 or (len(found) < 4 and sum(found) < MAX_MEASURE_SECONDS):
        began = time.perf_counter()
        repeated(1)
        if gpu:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
        if found[0] > enough:
            return found[0]
    return median(found[1:])


MAX_MEASURE_SECONDS = 1.0
"""Seconds."""
