"""Checkpoints in memory, and the kill of a run after one of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from supermask.engines.job import Array


class Killed(BaseException):
    """Ends a run as a signal ends a process."""


class Memory:
    """Checkpointer in memory; the run is killed right after checkpoint number `kill_after`."""

    def __init__(self, kill_after: int | None, every: int = 1) -> None:
        self.kill_after, self.every = kill_after, every
        self.asked = self.count = 0
        self.saved: tuple[str, dict[str, Array]] | None = None

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        return None if self.saved is None else (json.loads(self.saved[0]), self.saved[1])

    def on_evaluation(self, curve: object) -> None: ...

    def should_save(self) -> bool:
        self.asked += 1
        return self.asked % self.every == 0

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None:
        self.saved = json.dumps(facts, allow_nan=False), {n: np.array(t, copy=True) for n, t in tensors.items()}
        self.count += 1
        if self.count == self.kill_after:
            raise Killed
