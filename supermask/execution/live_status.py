"""Notes in the store about a command in progress, for the dashboard."""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from supermask.execution.coordinator import StudyInterrupted
from supermask.execution.progress import EtaEstimator
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult
from supermask.store.files.notes import Note, StatusNotes, note_id
from supermask.study import Study
from supermask.study.plan_inputs import PlanInputs

UPDATE_SECONDS = 2.0
"""Seconds between two notes."""

MAX_FAILURES = 100
"""Latest failures that are kept in a note. The store has all of them."""

RETENTION_SECONDS = 7 * 86400.0
"""Age at which the notes of ended commands are removed."""


class LiveStatusWriter:
    """Writes the notes of one command: its studies, and every two seconds its progress, from a thread of its own.

    A context manager. Leaving it by an exception notes the state `stopped` or `failed`, else `ended`. Notes that cannot
    be written are skipped: they never end a training.
    """

    def __init__(
        self, studies: Sequence[Study], scheduler: Scheduler, workers: int, inputs: Sequence[PlanInputs] = ()
    ) -> None:
        self._notes = StatusNotes(scheduler.store.root)
        self._scheduler = scheduler
        self._eta = EtaEstimator()
        # One note per command: several commands may train into the same store.
        self._name = secrets.token_hex(16)
        self._in_flight: dict[str, float] = {}
        """Run id -> start, in seconds since the epoch."""
        self._failures: deque[dict[str, str]] = deque(maxlen=MAX_FAILURES)
        self._failure_count = 0
        self._state, self._message = "running", ""
        # Two locks: `_lock` guards the fields and is never held during a write; `_writing` orders the writes.
        self._lock, self._writing, self._over = threading.Lock(), threading.Lock(), threading.Event()
        study_notes = [{"name": study.name, "study": study.as_data()} for study in studies]
        # Data and code that a study file does not contain: without them, a reader would plan other run ids.
        for note, plan_inputs in zip(study_notes, inputs, strict=False):
            if data := plan_inputs.to_data():
                note["inputs"] = data
        self._studies = {note_id(note): note for note in study_notes}
        self._constant: Note = {
            "studies": list(self._studies),
            "pid": os.getpid(),
            "host": platform.node(),
            "workers": workers,
            "began": time.time(),
            "tasks": scheduler.tasks_left,
        }

    def on_start(self, task: Task) -> None:
        """Record that a worker started a task."""
        with self._lock:
            self._in_flight[task.run.id] = time.time()

    def on_end(self, scheduler: Scheduler, task: Task, result: TaskResult) -> None:
        """Record the result of a task."""
        with self._lock:
            self._scheduler = scheduler
            self._eta.update(scheduler, result.seconds)
            if result.status == "locked":
                return
            self._in_flight.pop(task.run.id, None)
            # A run whose certificate failed, and that is trained once more, has no status yet.
            is_final = result.status != "certificate_failed" or task.run.id in scheduler.status
            if result.status != "finished" and is_final:
                message = result.message or f"at iteration {result.metrics.get('diverged_at')}"
                self._failures.append({"run": task.run.id, "status": result.status, "message": message})
                self._failure_count += 1

    def __enter__(self) -> LiveStatusWriter:
        for name, note in self._studies.items():
            self._notes.write("studies", name, note)
        if self._scheduler.tasks_left:
            self._remove_stale()
            self._write()
            threading.Thread(target=self._loop, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over.set()
            self._in_flight.clear()
            if error is not None:
                # SystemExit: the reader of the output is gone (`| head`). That is a stop, not a failure.
                is_stop = isinstance(error, StudyInterrupted | KeyboardInterrupt | SystemExit)
                text = str(error) or type(error).__name__
                self._state, self._message = ("stopped", "") if is_stop else ("failed", text)
            else:
                self._state = "ended"
        # A command that had nothing to do leaves no progress note.
        if self._constant["tasks"]:
            self._write()

    def _loop(self) -> None:
        while not self._over.wait(UPDATE_SECONDS):
            self._write()

    def _write(self) -> None:
        # `_lock` is released before the write: `on_start` and `on_end` never wait for the disk.
        with self._writing:
            with self._lock:
                note = self._note()
            self._notes.write("progress", self._name, note)

    def _note(self) -> Note:
        return self._constant | {
            "state": self._state,
            "message": self._message,
            "updated": time.time(),
            "left": self._scheduler.tasks_left,
            "seconds_left": self._eta.seconds_left(self._scheduler),
            "in_flight": [{"run": run_id, "since": since} for run_id, since in self._in_flight.items()],
            "failures": list(self._failures),
            "failure_count": self._failure_count,
        }

    def _remove_stale(self) -> None:
        """Remove notes of commands that ended long ago, and curves of runs that were killed and never resumed."""
        for kind in ("progress", "curves"):
            for name, note in self._notes.read(kind).items():
                # Notes are not trusted: `updated` may be of any type.
                with suppress(TypeError):
                    if time.time() - note.get("updated", 0.0) > RETENTION_SECONDS:
                        self._notes.remove(kind, name)
