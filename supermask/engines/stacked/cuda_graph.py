"""A step that is done again and again: on a GPU recorded once, as a CUDA graph, and then replayed."""

from __future__ import annotations

from collections.abc import Callable
from warnings import warn

import torch

from supermask.engines.stacked.device import is_out_of_memory

WARMUP_STEPS = 3
"""Steps done before one is recorded: libraries set themselves up and choose their kernels meanwhile."""


class CudaGraphStep:
    """`step` takes nothing and gives nothing: what it reads and writes stays where it is in memory."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step, self._device = step, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recordable = device.type == "cuda"
        self._done = 0

    def __call__(self, times: int) -> None:
        """Does it so often; a GPU is not waited for."""
        if self._device.type != "cuda":
            for _ in range(times):
                self._step()
            return
        eager = min(times, max(0, WARMUP_STEPS - self._done))
        self._eagerly(eager)
        if times > eager and self._graph is None and self._recordable:
            self._record()
        if self._graph is None:
            self._eagerly(times - eager)
            return
        for _ in range(times - eager):
            self._graph.replay()

    def _record(self) -> None:
        """It is not done while it is recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._recordable = False
            said = str(error).partition("\n")[0]
            warn(f"a training step could not be recorded as a CUDA graph ({said}): it is slower so", stacklevel=2)
        else:
            self._graph = graph

    def _eagerly(self, times: int) -> None:
        if not times:
            return
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(times):
                self._step()
        here.wait_stream(aside)
        self._done += times
