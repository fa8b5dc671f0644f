"""A run's checkpoints in the store: where a training that was cut off goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from supermask.core.types import InitialState, LearningCurve
from supermask.engines.job import Array
from supermask.store import Store
from supermask.store.files.notes import StatusNotes
from supermask.store.records import state_hash

NOTE_SECONDS = 1.0
"""Between two notes of a curve; a run that is done sooner leaves none."""


class TaskInterrupted(BaseException):
    """A task was asked to stop; its run goes on from the checkpoint that was just saved."""


class StoreCheckpointer:
    """A run's checkpoints in the store.

    Gone on from only by a training that has to come to the same bits: in the same environment, from the same start.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        start: InitialState,
        fingerprint: str,
        every: float,
        stopping: Callable[[], bool],
        iterations: int,
    ) -> None:
        self._store, self._run_id, self._start, self._fingerprint = store, run_id, start, fingerprint
        self._every, self._stopping, self._last = every, stopping, time.monotonic()
        self._notes, self._noted = StatusNotes(store.root), time.monotonic()
        self._iterations = iterations

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The last checkpoint, unless it is another training's."""
        entry = self._store.load_checkpoint(self._run_id)
        if entry is None or entry.facts["of"] != self._key:
            return None
        return entry.facts["engine"], entry.tensors

    def should_save(self) -> bool:
        """Whether it is time to save."""
        return self._stopping() or time.monotonic() - self._last >= self._every

    def on_evaluation(self, curve: LearningCurve) -> None:
        """Notes the curve, for whoever looks at a run in flight."""
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            columns = ("iterations", "validation_loss", "validation_accuracy")
            note = {"run": self._run_id, "of": self._iterations, "updated": time.time()}
            self._notes.write("curves", self._run_id, note | {name: getattr(curve, name) for name in columns})
            self._noted = time.monotonic()

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None:
        """Replaces the checkpoint. Raises Interrupted if the task was asked to stop."""
        self._store.save_checkpoint(self._run_id, {"of": self._key, "engine": facts}, tensors)
        self._last = time.monotonic()
        if self._stopping():
            raise TaskInterrupted

    def remove(self) -> None:
        """The run is committed."""
        self._store.remove_checkpoint(self._run_id)
        self._notes.remove("curves", self._run_id)

    @cached_property
    def _key(self) -> dict[str, str]:
        return {"environment": self._fingerprint, "start": state_hash(self._start)}
