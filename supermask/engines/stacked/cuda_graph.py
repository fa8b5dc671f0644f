"""A repeated step: on a GPU recorded once as a CUDA graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable
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
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._can_record = False
            reason = str(error).partition("\n")[0]
            warn(
                f"the training step could not be recorded as a CUDA graph ({reason}): it runs eagerly, which is slower",
                stacklevel=2,
            )
        else:
            self._graph = graph

    def _run_eagerly(self, times: int) -> None:
        if not times:
            return
        # On a side stream, as PyTorch requires of the steps before a recording.
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(times):
                self._step()
        main.wait_stream(side)
        self._eager_steps += times
