"""Studies that train in no time, and the smallest executor there is: one worker in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from supermask.datasets.facts import DATASETS
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.tasks import Result, Site, Task
from supermask.execute.worker import Worker
from supermask.plan import Plan, make_plan
from supermask.rows import rows_of_plan
from supermask.store import Store
from supermask.study import study_from
from supermask.study.model import Prune, Train
from supermask.types import Point, Start, State

TRAIN = {"epochs": 0.6, "evaluate_every": 4, "batch_size": 60}
"""12 iterations of 60 images."""


def small_plan(*treatments: dict[str, Any], **changes: Any) -> Plan:
    """A plan on digits with 1,480 weights; keys of `train` and `prune` (levels, epochs, lr ...) find their place."""
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
    return make_plan(study_from(data))


PLACES = {"prune": Prune.model_fields, "train": Train.model_fields}


@dataclass
class Carried:
    """What a plan carried out in this process leaves: its last schedule, and every task with its result."""

    schedule: Schedule
    ended: list[tuple[Task, Result]] = field(default_factory=list)

    @property
    def trained(self) -> list[str]:
        """Ids of the runs that were trained for the first time."""
        return [task.run.id for task, result in self.ended if not task.retrace and result.status != "not_started"]

    @property
    def retraced(self) -> dict[str, frozenset[Point]]:
        """Ids of the runs that were trained again, and the points they were trained for."""
        return {task.run.id: task.points for task, _ in self.ended if task.retrace}


def carry_out(
    plan: Plan,
    store: Path,
    keep: Keep = "all",
    worker: Worker | None = None,
    before: Callable[[Schedule, Task], None] = lambda schedule, task: None,
    **site: Any,
) -> Carried:
    """Every task, one after another, as a worker process would do it."""
    worker = worker or Worker(Site(store, **site))
    carried = Carried(Schedule(plan, worker.store))
    carried.schedule.drop_surplus(keep)
    while carried.schedule.tasks_left:
        task = carried.schedule.next()
        assert task is not None
        before(carried.schedule, task)
        result = worker.perform(task)
        carried.ended.append((task, result))
        if result.status == "not_started":
            carried.schedule = Schedule(plan, worker.store, [*carried.schedule.damaged, result.message])
        else:
            carried.schedule.ended(task, result)
            carried.schedule.drop_surplus(keep, task.run)
    return carried


def contents(store: Path | Store) -> dict[str, dict[str, str]]:
    """Run id -> hashes of its tensors, every byte that is there read and checked."""
    store = store if isinstance(store, Store) else Store(store)
    for run_id in store.run_ids():
        store.read(run_id)
    for key in store.point_keys():
        store.read_point(*key.split("-"))
    return {run_id: store.contents(run_id) for run_id in store.run_ids()}


def facts(store: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Facts of the plan's stored runs, without how long they took."""
    at = Store(store)
    return {run_id: {**at.facts(run_id), "seconds": None} for run_id in plan.runs if at.has(run_id)}


def leftovers(store: Path) -> list[str]:
    """What should not be there when nobody works on the store."""
    return [str(path.relative_to(store)) for kind in ("staging", "checkpoints") for path in (store / kind).glob("*")]


def same_state(one: State, other: State) -> bool:
    """Bit for bit."""
    named = ({**state.weights, **state.others} for state in (one, other))
    a, b = ({name: t.numpy().tobytes() for name, t in tensors.items()} for tensors in named)
    return a == b


def same_start(one: Start, other: Start) -> bool:
    """Bit for bit."""
    masks = one.masks.keys() == other.masks.keys() and all(torch.equal(m, other.masks[n]) for n, m in one.masks.items())
    return masks and same_state(one.state, other.state) and one.first_iteration == other.first_iteration


def same_table(plan: Plan, one: Path, other: Path) -> None:
    """The rows of `supermask table` of two engines: equal, but for what was measured, which agrees to a thousandth of a
    loss and to two images of an accuracy; and for who trained it.
    """
    for own, others in zip(rows_of_plan(plan, Store(one))[0], rows_of_plan(plan, Store(other))[0], strict=True):
        assert own.keys() == others.keys()
        for column in own.keys() - {"seconds", "engine", "environment"}:
            given, wanted = own[column], others[column]
            if column.endswith("_loss"):
                assert given == pytest.approx(wanted, rel=1e-3), column
            elif column.endswith("_accuracy"):
                assert given == pytest.approx(wanted, abs=2 / DATASETS["digits"].test_images + 1e-9), column
            else:
                assert given == wanted, column
