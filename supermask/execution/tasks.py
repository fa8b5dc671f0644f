"""What workers are told and what they answer, as plain data.

What the store has of a task already, whoever put it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from supermask.core.types import Snapshot
from supermask.engines.selection import Precision
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.records import snapshot_name
from supermask.study.run import Run

TaskStatus = Literal["finished", "diverged", "certificate_failed", "not_started"]


@dataclass(frozen=True)
class WorkerConfig:
    """Where and with what runs are trained; nothing of it is in a run's id."""

    store: Path
    data_dir: Path | None = None
    engine: str = "reference"
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    stack: int | None = 1
    """Runs that the stacked engine trains at once at most; None: as many as are fastest where it trains."""
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Task:
    """A run to train; or, with `retrace`, a stored one to train again for points of its trajectory that it lacks."""

    run: Run
    snapshots: frozenset[Snapshot] = frozenset()
    replay: bool = False


def stack_key(task: Task) -> tuple[object, ...] | None:
    """Equal for tasks that can be stacked; None for what is trained again, which is trained alone."""
    run = task.run
    return None if task.replay else (run.network, run.dataset, run.recipe, run.learning)


Chain = Sequence[Task]
"""A task and what comes below it: each is ready when the one before it has ended well."""


@dataclass(frozen=True)
class TaskResult:
    """What became of a task."""

    run_id: str
    status: TaskStatus
    """`not_started`: what it starts from is damaged or not there; the schedule has to be made again."""
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    missing_key: str = ""
    """With `not_started`: the store's key of what is damaged or not there."""


REPLAYED = "points traced again"
"""Said of a stored run that has the points that it lacked."""


def has_snapshot(store: Store, run: Run, point: Snapshot) -> bool:
    """Whether a point of a stored run's trajectory is there; of a run that does not train, its end is its start."""
    if point == "end":
        return not run.is_trained or store.has_weights(run.id)
    return store.has_snapshot(run.id, snapshot_name(point))


def stored_result(store: Store, task: Task) -> TaskResult | None:
    """What became of a task, if all that it was to leave is in the store. Raises Damaged."""
    run = task.run
    if not store.has(run.id):
        return None
    facts = store.facts(run.id)
    # Weights may have been dropped since; who needs them says so.
    wanted = task.snapshots if task.replay else task.snapshots - {"end"}
    if facts["status"] == "finished" and not all(has_snapshot(store, run, point) for point in wanted):
        return None
    return replace(result_from_facts(facts), message=REPLAYED) if task.replay else result_from_facts(facts)


def result_from_facts(facts: RunFacts) -> TaskResult:
    """What became of a stored run."""
    return TaskResult(facts["id"], facts["status"], facts["seconds"], facts["metrics"], _certificate_message(facts))


def _certificate_message(facts: RunFacts) -> str:
    """What a failed certificate says, else nothing."""
    broken = {name: layers for name, layers in facts["certificate"]["checks"].items() if layers}
    return f"certificate refused: {broken}" if facts["status"] == "certificate_failed" else ""
