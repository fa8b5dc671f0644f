"""Notes of what is going on, for whoever looks at a store while something is trained into it."""

from __future__ import annotations

import os
import platform
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from supermask.execution.coordinator import StudyInterrupted
from supermask.execution.progress import EtaEstimator
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult
from supermask.store.files.notes import Note, StatusNotes, note_id
from supermask.study import Study

UPDATE_INTERVAL = 2.0
"""Between two notes, at the least."""

MAX_FAILURES = 100
"""That are noted; all are in the store."""

RETENTION_SECONDS = 7 * 86400.0
"""How long what has ended stays noted."""


class LiveStatusWriter:
    """The notes of one command: its studies, and how far it is, written every two seconds by a thread of its own.

    A context: left by an exception it notes `stopped` or `failed`, else `ended`. Nothing fails if it cannot write.
    """

    def __init__(self, studies: Sequence[Study], schedule: Scheduler, workers: int) -> None:
        self._notes = StatusNotes(schedule.store.root)
        self._schedule = schedule
        self._pace = EtaEstimator()
        self._name = secrets.token_hex(16)
        self._in_flight: dict[str, float] = {}
        self._failures: list[dict[str, str]] = []
        self._state, self._message = "running", ""
        self._lock, self._writing, self._over = threading.Lock(), threading.Lock(), threading.Event()
        described = [{"name": study.name, "study": study.as_data()} for study in studies]
        self._studies = {note_id(note): note for note in described}
        self._constant: Note = {
            "studies": list(self._studies),
            "pid": os.getpid(),
            "host": platform.node(),
            "workers": workers,
            "began": time.time(),
            "tasks": schedule.tasks_left,
        }

    def on_start(self, task: Task) -> None:
        """A worker has it."""
        with self._lock:
            self._in_flight[task.run.id] = time.time()

    def on_end(self, schedule: Scheduler, task: Task, result: TaskResult) -> None:
        """A task came to its end."""
        with self._lock:
            self._schedule = schedule
            self._pace.update(schedule)
            self._in_flight.pop(task.run.id, None)
            if result.status != "finished" and len(self._failures) < MAX_FAILURES:
                message = result.message or f"at iteration {result.metrics.get('diverged_at')}"
                self._failures.append({"run": task.run.id, "status": result.status, "message": message})

    def __enter__(self) -> LiveStatusWriter:
        for name, note in self._studies.items():
            self._notes.write("studies", name, note)
        if self._schedule.tasks_left:
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
                # Who reads the output may be gone (`| head`): SystemExit says no more than that.
                stopped = isinstance(error, StudyInterrupted | KeyboardInterrupt | SystemExit)
                said = str(error) or type(error).__name__
                self._state, self._message = ("stopped", "") if stopped else ("failed", said)
            else:
                self._state = "ended"
        if self._constant["tasks"]:
            self._write()

    def _loop(self) -> None:
        while not self._over.wait(UPDATE_INTERVAL):
            self._write()

    def _write(self) -> None:
        # Whoever trains waits for what is noted, never for the disk.
        with self._writing:
            with self._lock:
                note = self._note()
            self._notes.write("progress", self._name, note)

    def _note(self) -> Note:
        return self._constant | {
            "state": self._state,
            "message": self._message,
            "updated": time.time(),
            "left": self._schedule.tasks_left,
            "seconds_left": self._pace.seconds_left(self._schedule),
            "in_flight": [{"run": run_id, "since": since} for run_id, since in self._in_flight.items()],
            "failures": list(self._failures),
        }

    def _remove_stale(self) -> None:
        """Commands that ended long ago, and curves of runs that were killed and never gone on with."""
        for kind in ("progress", "curves"):
            for name, note in self._notes.read(kind).items():
                with suppress(TypeError):
                    if time.time() - note.get("updated", 0.0) > RETENTION_SECONDS:
                        self._notes.remove(kind, name)
