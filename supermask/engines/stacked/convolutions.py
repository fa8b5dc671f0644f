"""3x3 convolutions of many replicas at once: five algorithms, and the measurement that picks the fastest.

Shapes: R replicas, B images of a batch, C input channels, O output channels, H and W height and width in pixels.
Every algorithm maps x (R, B, C, H, W), w (R, O, C, 3, 3), b (R, O) to (R, B, O, H, W): replica r convolves its own
images with its own kernels, stride 1, "same" padding. The algorithms differ in speed and in the order of sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
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
"""(x, w, b) -> result, with the shapes at the top of this file."""


def _conv_grouped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One convolution with R groups: the replicas' channels side by side, (B, R * C, H, W)."""
    images = x.transpose(0, 1).flatten(1, 2)
    result = conv2d(images, w.flatten(0, 1), b.flatten(), padding=1, groups=len(w))
    return result.reshape(len(result), *w.shape[:2], *result.shape[2:]).transpose(0, 1)


def _conv_channels_last(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """One convolution with R groups, channels last in memory."""
    images = x.transpose(0, 1).flatten(1, 2).contiguous(memory_format=torch.channels_last)
    result = conv2d(images, w.flatten(0, 1), b.flatten(), padding=1, groups=len(w))
    return result.reshape(len(result), *w.shape[:2], *result.shape[2:]).transpose(0, 1)


def _conv_columns(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Every pixel's 3x3 neighborhood as a column, (R, C * 9, B * H * W), then one batched matrix product."""
    columns = unfold(x.flatten(0, 1), 3, padding=1)
    columns = columns.reshape(*x.shape[:2], *columns.shape[1:]).transpose(1, 2).flatten(2)
    result = torch.baddbmm(b[:, :, None], w.flatten(2), columns)
    return result.reshape(*w.shape[:2], x.shape[1], *x.shape[3:]).transpose(1, 2)


def _conv_sequential(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """R convolutions, one after another."""
    # unbind() and not an index per replica: the gradient of each index would be a whole stack of zeros.
    return torch.stack([conv2d(*replica, padding=1) for replica in _unbind(x, w, b)])


def _conv_multi_stream(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """R convolutions, round robin on a few CUDA streams: concurrent kernels, and branches of a recorded step.

    Autograd runs each backward operation on the stream of its forward operation and synchronizes where streams meet.
    """
    if not x.is_cuda:
        return _conv_sequential(x, w, b)
    main, streams = torch.cuda.current_stream(x.device), _side_streams(x.device)[: len(w)]
    results = []
    for stream in streams:
        stream.wait_stream(main)
        for tensor in (x, w, b):
            # Autograd frees the inputs when the last backward branch is launched, not when it has finished. Without
            # this the allocator could hand their memory to another tensor while a branch still reads it.
            tensor.record_stream(stream)
    for r, replica in enumerate(_unbind(x, w, b)):
        with torch.cuda.stream(streams[r % len(streams)]):
            results.append(conv2d(*replica, padding=1))
    for stream in streams:
        main.wait_stream(stream)
    for tensor in results:
        # They were allocated on a side stream and are read on the main one.
        tensor.record_stream(main)
    return torch.stack(results)


NUM_STREAMS = 4


@cache
def _side_streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(NUM_STREAMS)]  # type: ignore[no-untyped-call]


def _unbind(x: Tensor, w: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    return zip(x.unbind(), w.unbind(), b.unbind(), strict=True)


# The names are recorded with every run and part of the environment's fingerprint.
CONV_ALGORITHMS: dict[str, ConvAlgorithm] = {
    "grouped": _conv_grouped,
    "grouped, channels last": _conv_channels_last,
    "columns": _conv_columns,
    "one by one": _conv_sequential,
    "branches": _conv_multi_stream,
}


def conv3x3(x: Tensor, w: Tensor, b: Tensor, algorithm: str) -> Tensor:
    """Convolve each replica's images with its own kernels: 3x3, stride 1, "same" padding.

    x (R, B, C, H, W), w (R, O, C, 3, 3), b (R, O); result (R, B, O, H, W) in any memory layout. `algorithm`: a key of
    `CONV_ALGORITHMS`.
    """
    return CONV_ALGORITHMS[algorithm](x, w, b)


def max_pool2x2(x: Tensor) -> Tensor:
    """2x2 max-pooling with stride 2 over the last two axes: (R, B, C, H, W) to (R, B, C, H // 2, W // 2)."""
    batch_first = x.transpose(0, 1)
    if batch_first.is_contiguous():
        # The memory layout that a grouped convolution leaves: pooling over (B, R, ...) avoids a copy.
        return _pool(batch_first).transpose(0, 1)
    return _pool(x)


def _pool(x: Tensor) -> Tensor:
    result = max_pool2d(x.flatten(0, 1), 2)
    return result.reshape(*x.shape[:2], *result.shape[1:])


def fastest_algorithms(
    layers: Architecture, batch_size: int, replicas: int, device: str, precision: Precision
) -> dict[str, str]:
    """Layer name -> the fastest algorithm of each convolution; measured once per shape and machine, then cached.

    `replicas` is rounded up to a power of two, so that few sizes are measured. Source: docs/performance.md.
    """
    rounded = 1 << max(0, replicas - 1).bit_length()
    shapes = {x.name: (x.inputs, x.outputs, *x.side) for x in layers if isinstance(x, Conv)}
    return {name: _fastest_for_shape(shape, batch_size, rounded, device, precision) for name, shape in shapes.items()}


ConvShape = tuple[int, int, int, int]
"""(C, O, H, W) of a convolution."""


@lru_cache
def _fastest_for_shape(shape: ConvShape, batch_size: int, replicas: int, device_name: str, precision: Precision) -> str:
    device = torch.device(device_name)
    # On a CPU "branches" is "one by one".
    candidates = [name for name in CONV_ALGORITHMS if device.type == "cuda" or name != "branches"]

    def measure() -> str:
        with flush_denormals(), matmul_precision(precision, device):
            return fastest_algorithm(candidates, shape, batch_size, replicas, device, precision)

    return cached_measurement("way", [shape, batch_size, replicas, precision, candidates], device, measure)


def fastest_algorithm(
    candidates: Sequence[str],
    shape: ConvShape,
    batch_size: int,
    replicas: int,
    device: torch.device,
    precision: Precision,
) -> str:
    """The candidate with the shortest forward and backward pass.

    Measured with `replicas`, or half as many, and so on, until at least one candidate fits into memory.
    """
    seconds: dict[str, float] = {}
    while not seconds:
        for name in candidates:
            try:
                inputs = _make_inputs(shape, batch_size, replicas, device)
                # On a CPU the slowest candidates take seconds: stop after one pass of 3 times the best.
                cutoff = 3 * min(seconds.values(), default=math.inf) if device.type == "cpu" else math.inf
                seconds[name] = _pass_seconds(
                    CONV_ALGORITHMS[name], inputs, autocast_factory(precision, device), cutoff
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            empty_cache(device)
        if not seconds and replicas == 1:
            # It needs the least memory of all.
            return "one by one"
        replicas = max(1, replicas // 2)
    return min(seconds, key=lambda name: seconds[name])


def _make_inputs(
    shape: ConvShape, batch_size: int, replicas: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, b as at the top of this file."""
    inputs, outputs, height, width = shape
    sizes = (replicas, batch_size, inputs, height, width), (replicas, outputs, inputs, 3, 3), (replicas, outputs)
    # Not torch.randn: after a failed recording of a CUDA graph PyTorch's default generator of the GPU raises an error.
    x, w, b = (_fractions(size, device).requires_grad_() for size in sizes)
    return x, w, b


def _fractions(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers spread over [-0.5, 0.5), the same at every call: fractional parts of multiples of the golden ratio."""
    count = math.prod(size)
    return torch.arange(count, device=device, dtype=torch.float32).mul_(0.618034).frac_().sub_(0.5).view(size)


MAX_MEASURE_SECONDS = 1.0


def _pass_seconds(
    algorithm: ConvAlgorithm,
    inputs: tuple[Tensor, Tensor, Tensor],
    autocast: Callable[[], AbstractContextManager[None]],
    cutoff: float,
) -> float:
    """Seconds of one forward and backward pass: the median of three, after a first one that is not counted.

    Fewer than three beyond `MAX_MEASURE_SECONDS`; the first alone if it takes more than `cutoff` seconds. On a GPU the
    passes are replayed as a CUDA graph, as in training.
    """

    def forward_and_backward() -> None:
        with autocast():
            total = algorithm(*inputs).float().sum()
        torch.autograd.grad(total, inputs)

    is_gpu, step = inputs[0].is_cuda, CudaGraphStep(forward_and_backward, inputs[0].device)
    if is_gpu:
        step(WARMUP_STEPS + 1)
        torch.cuda.synchronize()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 4 and sum(seconds) < MAX_MEASURE_SECONDS):
        began = time.perf_counter()
        step(1)
        if is_gpu:
            # Kernel launches return at once: without this only the launch would be timed.
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        if seconds[0] > cutoff:
            return seconds[0]
    return median(seconds[1:])
