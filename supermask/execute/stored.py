"""What the store has of a task already, whoever put it there."""

from __future__ import annotations

from dataclasses import replace

from supermask.execute.tasks import Result, Task
from supermask.records import point_name
from supermask.runs import Run
from supermask.store import Store
from supermask.store.entry import Facts
from supermask.types import Point

TRACED = "points traced again"
"""Said of a stored run that has the points that it lacked."""


def has_point(store: Store, run: Run, point: Point) -> bool:
    """Whether a point of a stored run's trajectory is there; of a run that does not train, its end is its start."""
    if point == "end":
        return not run.trains or store.has_weights(run.id)
    return store.has_point(run.id, point_name(point))


def found(store: Store, task: Task) -> Result | None:
    """What became of a task, if all that it was to leave is in the store. Raises Damaged."""
    run = task.run
    if not store.has(run.id):
        return None
    facts = store.facts(run.id)
    # Weights may have been dropped since; who needs them says so.
    wanted = task.points if task.retrace else task.points - {"end"}
    if facts["status"] == "finished" and not all(has_point(store, run, point) for point in wanted):
        return None
    return replace(result_of(facts), message=TRACED) if task.retrace else result_of(facts)


def result_of(facts: Facts) -> Result:
    """What became of a stored run."""
    return Result(facts["id"], facts["status"], facts["seconds"], facts["metrics"], _refused(facts))


def _refused(facts: Facts) -> str:
    """What a failed certificate says, else nothing."""
    broken = {name: layers for name, layers in facts["certificate"]["checks"].items() if layers}
    return f"certificate refused: {broken}" if facts["status"] == "certificate_failed" else ""
