"""A repeated step: on a GPU recorded once as a CUDA graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from warnings import warn

import torch

from supermask.engines.stacked.device import is_out_of_memory

WARMUP_STEPS = 3
"""Steps done before the recording: meanwhile libraries initialize, allocate workspaces and pick their kernels, none of
which a recording allows."""


class CudaGraphStep:
    """`step` takes no argument and returns nothing; every tensor that it reads or writes keeps its address.

    The addresses are fixed because a replay repeats the recorded kernels with the recorded pointers.
    """

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step, self._device = step, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._can_record = device.type == "cuda"
        self._eager_steps = 0

    def __call__(self, times: int) -> None:
        """Do the step `times` times, without waiting for the GPU."""
        if self._device.type != "cuda":
            for _ in range(times):
                self._step()
            return
        eager = min(times, max(0, WARMUP_STEPS - self._eager_steps))
        self._run_eagerly(eager)
        if times > eager and self._graph is None and self._can_record:
            self._record()
        if self._graph is None:
            self._run_eagerly(times - eager)
            return
        for _ in range(times - eager):
            self._graph.replay()

    def _record(self) -> None:
        """Record the step. Recording does not execute it."""
        try:
            self._graph = _record_graph(self._step, self._device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._can_record = False
            reason = str(error).partition("\n")[0]
            warn(
                f"the training step could not be recorded as a CUDA graph ({reason}): it runs eagerly, which is slower",
                stacklevel=2,
            )

    def _run_eagerly(self, times: int) -> None:
        if not times:
            return
        with _on_side_stream(self._device):
            for _ in range(times):
                self._step()
        self._eager_steps += times


def _record_graph(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
    """Record a step as a CUDA graph; on failure leave PyTorch as it was, so that training continues without a graph.

    `torch.cuda.graph` does neither of two things if `capture_end` fails, as it does after an error in the step: it does
    not restore the current stream, and before PyTorch 2.12 the allocator stays in capture mode (pytorch pull request
    180395), in which it frees no memory that another stream has used.
    """
    # Memory that the eager steps left in the allocator's cache is not available to the graph's own pool.
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    # A pool of our own, because a graph whose capture has failed does not give the handle of its pool.
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    with _on_side_stream(device):
        try:
            graph.capture_begin(pool=pool)
            step()
        except BaseException:
            # The error of the step is the one to report, not that of the capture, which it has made invalid.
            with suppress(RuntimeError):
                graph.capture_end()
            _end_capture_mode(pool)
            raise
        try:
            graph.capture_end()
        except RuntimeError:
            _end_capture_mode(pool)
            raise
    return graph


def _end_capture_mode(pool: tuple[int, int]) -> None:
    """Take the allocator out of capture mode, if a failed capture has left it there."""
    # An error means that it has left it by itself: PyTorch 2.12 and later, or a capture that ended properly.
    with suppress(AttributeError, RuntimeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


@contextmanager
def _on_side_stream(device: torch.device) -> Iterator[None]:
    """Run a block on the side stream, ordered behind and before the work of the current stream."""
    side, main = _side_stream(device), torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        yield
    main.wait_stream(side)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all recordings and of the steps before them: the default stream cannot be recorded.

    One for all: cuBLAS keeps a workspace per stream, tens of MB, for the life of the process. It is allocated by the
    first eager step, outside of any graph's pool.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
