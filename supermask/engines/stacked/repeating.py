"""A step that is done again and again: on a GPU recorded once, as a CUDA graph, and then replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch

EAGER_STEPS = 3
"""Steps done before one is recorded: libraries set themselves up and choose their kernels meanwhile."""


class Repeated:
    """`step` takes nothing and gives nothing: what it reads and writes stays where it is in memory."""

    def __init__(self, step: Callable[[], None], device: torch.device) -> None:
        self._step, self._device = step, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._done = 0

    def __call__(self, times: int) -> None:
        """Does it so often; a GPU is not waited for."""
        if self._device.type != "cuda":
            for _ in range(times):
                self._step()
            return
        eager = min(times, max(0, EAGER_STEPS - self._done))
        self._eagerly(eager)
        if times > eager and self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
        for _ in range(times - eager):
            assert self._graph is not None
            self._graph.replay()

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
