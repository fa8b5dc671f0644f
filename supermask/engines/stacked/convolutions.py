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
from warnings import warn

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, unfold

from supermask.engines.precision import matmul_precision
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import MatmulPrecision
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS, CudaGraphStep
from supermask.engines.stacked.device import (
    autocast_factory,
    cached_measurement,
    empty_cache,
    is_out_of_memory,
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
    """im2col: every pixel's 3x3 neighborhood as a column, (R, C * 9, B * H * W), then one batched matrix product."""
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


def choose_conv_algorithms(
    layers: Architecture, batch_size: int, replicas: int, device: str, precision: MatmulPrecision
) -> dict[str, str]:
    """Layer name -> the fastest algorithm of each convolution; measured once per shape and machine, then cached.

    `replicas` is rounded up to a power of two, so that few sizes are measured. Source: docs/performance.md.
    """
    rounded = 1 << max(0, replicas - 1).bit_length()
    return {
        x.name: _choose_for_shape(
            (x.inputs, x.outputs, *x.side), batch_size, rounded, device, precision, is_first=x is layers[0]
        )
        for x in layers
        if isinstance(x, Conv)
    }


ConvShape = tuple[int, int, int, int]
"""(C, O, H, W) of a convolution."""

NUM_SEEDS = 5
"""Seeds of synthetic replicas, as in a study of five seeds; replicas of one seed share their mini-batches."""


@lru_cache
def _choose_for_shape(
    shape: ConvShape, batch_size: int, replicas: int, device_name: str, precision: MatmulPrecision, is_first: bool
) -> str:
    device = torch.device(device_name)
    # On a CPU "branches" is "one by one".
    candidates = [name for name in CONV_ALGORITHMS if device.type == "cuda" or name != "branches"]

    def measure() -> str:
        with flush_denormals(), matmul_precision(precision, device):
            return measure_fastest_algorithm(
                candidates, shape, batch_size, replicas, device, precision, is_first=is_first
            )

    settings = [shape, batch_size, replicas, precision, candidates, *(["first layer"] if is_first else [])]
    return cached_measurement("way", settings, device, measure)


def measure_fastest_algorithm(
    candidates: Sequence[str],
    shape: ConvShape,
    batch_size: int,
    replicas: int,
    device: torch.device,
    precision: MatmulPrecision,
    *,
    is_first: bool = False,
) -> str:
    """The candidate with the shortest forward and backward pass.

    Measured with `replicas`, or half as many, and so on, until at least one candidate fits into memory. `is_first`: the
    network's first layer, which is computed differently, see `forward`. A candidate that fails otherwise (cuDNN may
    have no kernel for it on this GPU) is dropped with a warning; its error is raised if no candidate is left.
    """
    seconds: dict[str, float] = {}
    errors: dict[str, RuntimeError] = {}
    """Candidate that does not work on this machine -> its error."""
    while not seconds:
        working = [name for name in candidates if name not in errors]
        if not working:
            raise next(iter(errors.values()))
        for name in working:
            try:
                inputs = _make_inputs(shape, batch_size, replicas, device, is_first)
                # On a CPU the slowest candidates take seconds: stop after one pass of 3 times the best.
                cutoff = 3 * min(seconds.values(), default=math.inf) if device.type == "cpu" else math.inf
                seconds[name] = _time_pass(CONV_ALGORITHMS[name], inputs, autocast_factory(precision, device), cutoff)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    assert isinstance(error, RuntimeError)
                    errors[name] = error
                    _warn_of_error(name, str(error).partition("\n")[0])
            empty_cache(device)
        if not seconds and replicas == 1 and len(errors) < len(candidates):
            # "one by one" needs the least memory of all.
            return next(name for name in ("one by one", *working) if name not in errors)
        replicas = max(1, replicas // 2)
    return min(seconds, key=lambda name: seconds[name])


@cache
def _warn_of_error(name: str, reason: str) -> None:
    """Warn once per process, algorithm and reason: every convolution of a network is measured."""
    warn(f"the convolution algorithm {name!r} does not work on this machine ({reason}): it is not used", stacklevel=2)


def _make_inputs(
    shape: ConvShape, batch_size: int, replicas: int, device: torch.device, is_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x, w, b as at the top of this file.

    In the first layer replicas that share a mini-batch are one wide layer: N batches and replicas / N times the output
    channels; its images need no gradient.
    """
    inputs, outputs, height, width = shape
    if is_first:
        batches = min(NUM_SEEDS, replicas)
        replicas, outputs = batches, outputs * math.ceil(replicas / batches)
    sizes = (replicas, batch_size, inputs, height, width), (replicas, outputs, inputs, 3, 3), (replicas, outputs)
    # Not torch.randn: after a failed recording of a CUDA graph PyTorch's default generator of the GPU raises an error.
    x, w, b = (_fractions(size, device) for size in sizes)
    return x.requires_grad_(not is_first), w.requires_grad_(), b.requires_grad_()


def _fractions(size: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers spread over [-0.5, 0.5), the same at every call: fractional parts of multiples of the golden ratio."""
    count = math.prod(size)
    return torch.arange(count, device=device, dtype=torch.float32).mul_(0.618034).frac_().sub_(0.5).view(size)


MAX_MEASURE_SECONDS = 1.0


def _time_pass(
    algorithm: ConvAlgorithm,
    inputs: tuple[Tensor, Tensor, Tensor],
    autocast: Callable[[], AbstractContextManager[None]],
    cutoff: float,
) -> float:
    """Seconds of one forward and backward pass: the median of three, after a first one that is not counted.

    Fewer than three beyond `MAX_MEASURE_SECONDS`; the first alone if it takes more than `cutoff` seconds. On a GPU the
    passes are replayed as a CUDA graph, as in training.
    """

    differentiated = [t for t in inputs if t.requires_grad]

    def forward_and_backward() -> None:
        with autocast():
            total = algorithm(*inputs).float().sum()
        torch.autograd.grad(total, differentiated)

    is_gpu, step = inputs[0].is_cuda, CudaGraphStep(forward_and_backward, inputs[0].device)
    if is_gpu:
        step(WARMUP_STEPS + 1)
        torch.cuda.synchronize()
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 4 and sum(seconds) < MAX_MEASURE_SECONDS):
        start_time = time.perf_counter()
        step(1)
        if is_gpu:
            # Kernel launches return at once: without this only the launch would be timed.
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start_time)
        if seconds[0] > cutoff:
            return seconds[0]
    return median(seconds[1:])
