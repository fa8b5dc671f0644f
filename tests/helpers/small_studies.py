"""Studies that train in no time, and the smallest executor: one worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from supermask.core.types import InitialState, NetworkState, Snapshot
from supermask.datasets.specs import DATASETS
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.execution.worker import Worker
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import study_from_dict
from supermask.study.plan import Plan, make_plan
from supermask.study.prune_settings import Prune
from supermask.study.train_settings import Train

TRAIN = {"epochs": 0.6, "evaluate_every": 4, "batch_size": 60}
"""12 iterations of 60 images."""


def small_plan(*treatments: dict[str, Any], **changes: Any) -> Plan:
    """Return a plan on digits with 1,480 weights. Keys of `train` and `prune` (levels, epochs, lr ...) go there."""
    data: dict[str, Any] = {
        "network": "fc-20",
        "seeds": 1,
        "train": dict(TRAIN),
        "prune": {"levels": 2, "rates": {"hidden": 0.5, "output": 0.3, "global": 0.5}},
        "treatments": list(treatments) or [{"criterion": "large_final"}],
    }
    for key, value in changes.items():
        place = next((data[s] for s in ("prune", "train") if key in PLACES[s]), data)
        place[key] = value
    return make_plan(study_from_dict(data))


PLACES = {"prune": Prune.model_fields, "train": Train.model_fields}


@dataclass
class PlanRun:
    """A plan that was executed in this process: its last scheduler, and every task with its result."""

    schedule: Scheduler
    ended: list[tuple[Task, TaskResult]] = field(default_factory=list)

    @property
    def trained(self) -> list[str]:
        """Ids of the runs that were trained, not replayed."""
        return [task.run.id for task, result in self.ended if not task.replay and result.status != "not_started"]

    @property
    def replayed(self) -> dict[str, frozenset[Snapshot]]:
        """Ids of the replayed runs, and the snapshots they were replayed for."""
        return {task.run.id: task.snapshots for task, _ in self.ended if task.replay}


def train_plan(
    plan: Plan,
    store: Path,
    keep: KeepPolicy = "all",
    worker: Worker | None = None,
    before: Callable[[Scheduler, Task], None] = lambda schedule, task: None,
    **site: Any,
) -> PlanRun:
    """Execute every task in sequence, as a worker process would."""
    worker = worker or Worker(WorkerConfig(store, **site))
    plan_run = PlanRun(Scheduler(plan, worker.store))
    plan_run.schedule.drop_unneeded(keep)
    while plan_run.schedule.tasks_left:
        task = plan_run.schedule.take()
        assert task is not None
        before(plan_run.schedule, task)
        result = worker.run_task(task)
        plan_run.ended.append((task, result))
        if result.status == "not_started":
            plan_run.schedule = Scheduler(plan, worker.store, [*plan_run.schedule.damaged, result.message])
        else:
            plan_run.schedule.finish(task, result)
            plan_run.schedule.drop_unneeded(keep, task.run)
    return plan_run


class TrainedStore(Protocol):
    """Function that returns the store of a plan, trained once for all tests that read it."""

    def __call__(self, plan: Plan, keep: KeepPolicy = "all") -> Path: ...


def contents(store: Path | Store) -> dict[str, dict[str, str]]:
    """Return run id -> tensor hashes. Reads and checks every byte of runs and snapshots."""
    store = store if isinstance(store, Store) else Store(store)
    for run_id in store.run_ids():
        store.read(run_id)
    for key in store.snapshot_keys():
        store.read_snapshot(*key.split("-"))
    return {run_id: store.tensor_hashes(run_id) for run_id in store.run_ids()}


def facts(store: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the facts of the plan's stored runs, without their durations."""
    at = Store(store)
    return {run_id: {**at.facts(run_id), "seconds": None} for run_id in plan.runs if at.has(run_id)}


def leftovers(store: Path) -> list[str]:
    """Return the paths that must not exist while no process uses the store."""
    return [str(path.relative_to(store)) for kind in ("staging", "checkpoints") for path in (store / kind).glob("*")]


def same_state(one: NetworkState, other: NetworkState) -> bool:
    """Return True if both are bit-identical."""
    named = ({**state.weights, **state.unmasked} for state in (one, other))
    a, b = ({name: t.numpy().tobytes() for name, t in tensors.items()} for tensors in named)
    return a == b


def same_start(one: InitialState, other: InitialState) -> bool:
    """Return True if both are bit-identical."""
    masks = one.masks.keys() == other.masks.keys() and all(torch.equal(m, other.masks[n]) for n, m in one.masks.items())
    return masks and same_state(one.state, other.state) and one.first_iteration == other.first_iteration


def same_table(plan: Plan, one: Path, other: Path) -> None:
    """Check that the rows of `supermask table` of two engines agree.

    Losses agree to 0.1%, accuracies to two images; engine, environment and seconds may differ; all else is equal.
    """
    rows = (plan_rows(plan, Store(store))[0] for store in (one, other))
    for row, other_row in zip(*rows, strict=True):
        assert row.keys() == other_row.keys()
        for column in row.keys() - {"seconds", "engine", "environment"}:
            value, expected = row[column], other_row[column]
            if column.endswith("_loss"):
                assert value == pytest.approx(expected, rel=1e-3), column
            elif column.endswith("_accuracy"):
                assert value == pytest.approx(expected, abs=2 / DATASETS["digits"].test_images + 1e-9), column
            else:
                assert value == expected, column
