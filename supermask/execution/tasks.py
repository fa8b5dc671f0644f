"""Tasks and their results: the plain data that the coordinator and the workers exchange."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import pluralize
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
    has_emptied_layer: bool = False
    """With `certificate_failed`: the masks keep no weight in a layer, which another training cannot change."""


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
        has_emptied_layer=bool(emptied_layers(facts)),
    )


def is_final(facts: RunFacts) -> bool:
    """Return False for a run whose certificate failed and that has to be trained once more.

    Masks follow from the parent, so another training of a run with an emptied layer has the same outcome.
    """
    has_ended = facts.get("attempts", 1) >= MAX_ATTEMPTS or bool(emptied_layers(facts))
    return bool(facts["status"] != "certificate_failed" or has_ended)


def emptied_layers(facts: RunFacts) -> list[str]:
    """Return the layers in which the masks of a run keep no weight."""
    return list(facts["certificate"]["checks"].get("no_layer_is_emptied", []))


EMPTIED_ADVICE = {
    "layer": "use a lower rate (prune.rates) or fewer levels",
    "global": "all layers are ranked together (scope: global); use a lower rate (prune.rates: 'global'), fewer levels, "
    "or exclude the layer (prune.exclude)",
    "threshold": "the learned mask keeps none; change how it is learned (start_logit, lr, learn.epochs)",
}
"""Scope of a pruning step -> what to do if it leaves a layer no weight."""


def emptied_message(store: Store, run_ids: Iterable[str]) -> str:
    """Return one sentence about those of the runs that have an emptied layer, with advice; empty if none has."""
    emptied = [facts for facts in map(store.facts, run_ids) if emptied_layers(facts)]
    if not emptied:
        return ""
    one = emptied[0]
    verb = "is not a result" if len(emptied) == 1 else "are no results"
    return (
        f"{pluralize(len(emptied), 'run')} with an emptied layer {verb}: {certificate_message(one)} (level "
        f"{one['level']}, seed {one['seed']}, run {one['id']})."
    )


def certificate_message(facts: RunFacts) -> str:
    """Return the failed checks of a run's certificate with their layers as text; empty if the certificate holds.

    An emptied layer is named alone, with advice: it is no fault of the training.
    """
    if facts["status"] != "certificate_failed":
        return ""
    if (emptied := emptied_layers(facts)) and facts["step"] is not None:
        return f"no weight is left in {', '.join(emptied)}: {EMPTIED_ADVICE[facts['step']['scope']]}"
    checks: dict[str, list[str]] = facts["certificate"]["checks"]
    return "certificate failed: " + "; ".join(
        f"{name} ({', '.join(layers)})" for name, layers in checks.items() if layers
    )
