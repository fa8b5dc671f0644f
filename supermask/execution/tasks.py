"""Tasks and their results: the plain data that the coordinator and the workers exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from supermask.core.errors import SystemFailure, UserError
from supermask.core.types import Snapshot
from supermask.engines.job import stack_settings
from supermask.engines.selection import MatmulPrecision
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import snapshot_name
from supermask.study.run import Run

TaskStatus = Literal["finished", "diverged", "certificate_failed", "not_started", "locked"]


@dataclass(frozen=True)
class WorkerConfig:
    """Paths and settings of a worker. None of them is part of a run's id."""

    store: Path
    data_dir: Path | None = None
    engine: str = "reference"
    device: str = "cpu"
    threads: int = 1
    precision: MatmulPrecision = "float32"
    stack: int | None = 1
    """Maximum number of runs that the stacked engine trains at once; None: the fastest, measured by the worker."""
    checkpoint_seconds: float = 60.0
    evaluates_only: bool = False
    """True for a worker beside those of a GPU, which evaluates runs that are not trained."""

    def for_evaluation(self) -> WorkerConfig:
        """Return the configuration of a worker on the CPU, beside those of a GPU, for runs that are not trained."""
        return replace(self, engine="reference", device="cpu", precision="float32", stack=1, evaluates_only=True)


@dataclass(frozen=True)
class WorkerError:
    """An exception that ended a worker's assignment, as plain data.

    The exception itself is not sent: an object of a user's class may not survive pickling, and unpickling runs code.
    """

    text: str
    is_user_error: bool
    traceback: str = ""
    """Traceback in the worker of an exception that is neither UserError nor SystemFailure; empty for these."""

    def error(self) -> Exception:
        """Return the exception to raise here."""
        if not self.traceback:
            return (UserError if self.is_user_error else SystemFailure)(self.text)
        error = RuntimeError(f"a worker process failed: {self.text}")
        error.add_note(self.traceback)
        return error


@dataclass(frozen=True)
class Task:
    """A run to train, or a stored run to replay for snapshots that it lacks."""

    run: Run
    snapshots: frozenset[Snapshot] = frozenset()
    """Snapshots of the run's trajectory that later runs will read."""
    replay: bool = False
    attempt: int = 1
    """2 if the certificate of the first training failed."""


MAX_ATTEMPTS = 2
"""Trainings of a run whose certificate fails, before it ends its chain."""


def stack_key(task: Task) -> tuple[object, ...] | None:
    """Return a key that is equal for tasks that can share a stack.

    A replay has the key None and is trained alone, because it has to repeat the run's first training bit for bit.
    """
    run = task.run
    if task.replay:
        return None
    return (run.network, run.dataset, run.data_options, *stack_settings(run.recipe, run.learning))


Chain = Sequence[Task]
"""Tasks in order, each the only child of the one before: a task can start when the one before it has finished."""


@dataclass(frozen=True)
class TaskResult:
    """The result of a task."""

    run_id: str
    status: TaskStatus
    """`not_started`: the task's input is damaged or missing, and the scheduler has to be rebuilt. `locked`: another
    process trains the run."""
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    missing_key: str = ""
    """Store key of the damaged or missing input of a task that was `not_started`."""
    is_damage: bool = False
    """With `not_started`: the input is damaged; False if it was dropped."""
    attempts: int = 1
    """Trainings of the run so far, with `certificate_failed`."""


REPLAYED = "missing snapshots replayed"
"""Message of a finished replay."""


def has_snapshot(store: Store, run: Run, point: Snapshot) -> bool:
    """Return True if the store has this snapshot of a stored run.

    The end of an untrained run is its initial state, which is regenerated and never stored.
    """
    if point == "end":
        return not run.is_trained or store.has_weights(run.id)
    return store.has_snapshot(run.id, snapshot_name(point))


def stored_result(store: Store, task: Task) -> TaskResult | None:
    """Return the task's result if the store has everything the task should leave, else None. Raises CorruptEntry."""
    run = task.run
    if not store.has(run.id):
        return None
    facts = store.facts(run.id)
    # Final weights may have been dropped after the run finished. A task that reads them reports it as a missing input.
    required = task.snapshots if task.replay else task.snapshots - {"end"}
    if facts["status"] == "finished" and not all(has_snapshot(store, run, point) for point in required):
        return None
    return replace(result_from_facts(facts), message=REPLAYED) if task.replay else result_from_facts(facts)


def result_from_facts(facts: RunFacts) -> TaskResult:
    """Return the result of a stored run."""
    return TaskResult(
        facts["id"],
        facts["status"],
        facts["seconds"],
        facts["metrics"],
        certificate_message(facts),
        attempts=facts.get("attempts", 1),
    )


def is_final(facts: RunFacts) -> bool:
    """Return False for a run whose certificate failed and that has to be trained once more."""
    return bool(facts["status"] != "certificate_failed" or facts.get("attempts", 1) >= MAX_ATTEMPTS)


def certificate_message(facts: RunFacts) -> str:
    """Return the failed checks of a run's certificate with their layers as text; empty if the certificate holds."""
    if facts["status"] != "certificate_failed":
        return ""
    checks: dict[str, list[str]] = facts["certificate"]["checks"]
    return "certificate failed: " + "; ".join(
        f"{name} ({', '.join(layers)})" for name, layers in checks.items() if layers
    )
