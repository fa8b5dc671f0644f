"""Checkpoints of a run in the store, from which an interrupted training resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from supermask.core.recipe import Recipe
from supermask.core.types import InitialState, LearningCurve
from supermask.engines.job import Array
from supermask.store import Store
from supermask.store.checkpoint_tensors import check_checkpoint
from supermask.store.files.notes import StatusNotes
from supermask.store.records import state_hash

NOTE_SECONDS = 1.0
"""Minimum time between two notes of a learning curve. Shorter runs leave none."""


class TaskInterrupted(BaseException):
    """A task was asked to stop. Its checkpoint was just saved.

    A BaseException, so that no `except Exception` of a user's criterion can swallow it.
    """


class StoreCheckpointer:
    """Checkpoints of one run in the store.

    A checkpoint is used only by a training that will be bit-identical to the interrupted one: with the same
    environment fingerprint and the same initial state.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        start: InitialState,
        fingerprint: str,
        interval_seconds: float,
        should_stop: Callable[[], bool],
        recipe: Recipe,
    ) -> None:
        """`recipe`: the run's, for the check of a loaded checkpoint and for its progress note."""
        self._store, self._run_id, self._start, self._fingerprint = store, run_id, start, fingerprint
        self._interval_seconds, self._should_stop, self._last_save = interval_seconds, should_stop, time.monotonic()
        self._notes, self._last_note = StatusNotes(store.root), time.monotonic()
        self._recipe = recipe

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """Return the last checkpoint, or None if there is none of this very training."""
        entry = self._store.load_checkpoint(self._run_id)
        if entry is None or entry.facts["of"] != self._key:
            return None
        try:
            check_checkpoint(entry.facts["engine"], entry.tensors, self._start, self._recipe)
        except ValueError:
            # Sealed, but not of this training: it is replaced at the next save.
            return None
        return entry.facts["engine"], entry.tensors

    def should_save(self) -> bool:
        """Return True if a checkpoint is due."""
        return self._should_stop() or time.monotonic() - self._last_save >= self._interval_seconds

    def on_evaluation(self, curve: LearningCurve) -> None:
        """Write the learning curve so far as a note, for the dashboard."""
        if time.monotonic() - self._last_note >= NOTE_SECONDS:
            columns = ("iterations", "validation_loss", "validation_accuracy")
            note = {"run": self._run_id, "of": self._recipe.iterations, "updated": time.time()}
            self._notes.write("curves", self._run_id, note | {name: getattr(curve, name) for name in columns})
            self._last_note = time.monotonic()

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None:
        """Replace the checkpoint. Raises TaskInterrupted if the task was asked to stop."""
        self._store.save_checkpoint(self._run_id, {"of": self._key, "engine": facts}, tensors)
        self._last_save = time.monotonic()
        # Checked after the save, so that a request to stop never loses the iterations before it.
        if self._should_stop():
            raise TaskInterrupted

    def remove(self) -> None:
        """Remove the checkpoint and the note of a run that is committed."""
        self._store.remove_checkpoint(self._run_id)
        self._notes.remove("curves", self._run_id)

    @cached_property
    def _key(self) -> dict[str, str]:
        return {"environment": self._fingerprint, "start": state_hash(self._start)}
