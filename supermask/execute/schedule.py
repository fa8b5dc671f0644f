"""What is ready to train, in what order, and whose weights nobody needs any more. Any executor can be driven by it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from supermask.execute.worker import Result, Task
from supermask.plan import Plan
from supermask.records import point_name
from supermask.run import Run
from supermask.store import Damaged, Store
from supermask.types import Point

Keep = Literal["all", "needed", "masks"]


@dataclass
class Schedule:
    """The state of a plan while it is carried out: to do, ready, in flight, done.

    Deepest level first, so that chains end early and a chain's next level follows on the worker that has its parent.
    """

    plan: Plan
    store: Store
    status: dict[str, str] = field(default_factory=dict)
    """Run id -> `finished`, `diverged`, `certificate_failed`; or `ancestor_diverged`, for runs that cannot be done."""
    damaged: list[str] = field(default_factory=list)
    """What was found damaged and set aside, one text each."""

    def __post_init__(self) -> None:
        there = self.store.run_ids()
        for run in self.plan.runs.values():
            if run.id in there:
                self._look_at(run)
        for run in self.plan.runs.values():
            if run.parent is not None and self._ended_badly(run.parent):
                self.status[run.id] = "ancestor_diverged"
        self._open_below = dict.fromkeys(self.plan.runs, 0)
        for run in self.to_do():
            self._count_in_ancestors(run, 1)
        self._tasks = {task.run.id: task for task in self._make_tasks()}
        self._waiting: dict[str, list[Task]] = {}
        self._ready: list[tuple[int, int, Task]] = []
        self._order = {run_id: i for i, run_id in enumerate(self.plan.runs)}
        for task in self._tasks.values():
            before = next((a.id for a in self._ancestors(task.run) if a.id in self._tasks), None)
            if before is None:
                self._put(task)
            else:
                self._waiting.setdefault(before, []).append(task)

    def to_do(self) -> list[Run]:
        """Runs that are not in the store and can still be done."""
        return [run for run in self.plan.runs.values() if run.id not in self.status]

    @property
    def tasks_left(self) -> int:
        """Tasks not yet ended, those in flight included."""
        return len(self._tasks)

    def next(self) -> Task | None:
        """The next task whose parent is there, or None."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def again(self, task: Task) -> None:
        """Back to the ready ones: its worker died."""
        self._put(task)

    def ended(self, task: Task, result: Result) -> None:
        """A task came to its end: what waited for it becomes ready, or impossible."""
        del self._tasks[task.run.id]
        if not task.retrace:
            self.status[task.run.id] = result.status
            self._count_in_ancestors(task.run, -1)
        if self._ended_badly(task.run.id):
            self._give_up_below(task.run)
        for waiting in self._waiting.pop(task.run.id, []):
            if waiting.run.id in self._tasks:
                self._put(waiting)

    def droppable(self, run: Run, keep: Keep) -> Iterator[Run]:
        """Of a run that has ended and its ancestors, those whose weights no run of the plan needs any more.

        `needed` keeps the dense runs' weights and those of the last levels, from which a study can be extended.
        """
        if keep == "all":
            return
        for candidate in (run, *self._ancestors(run)):
            children = self.plan.children[candidate.id]
            extendable = candidate.level == 0 or not children
            needed = any(
                child.id not in self.status
                or (child.step is not None and "end" in child.step.start_points and self._open_below[child.id])
                for child in children
            )
            if candidate.id in self.status and not needed and (keep == "masks" or not extendable):
                yield candidate

    def _look_at(self, run: Run) -> None:
        try:
            self.status[run.id] = self.store.facts(run.id)["status"]
        except Damaged as damage:
            self.store.quarantine(run.id, damage.what)
            self.damaged.append(str(damage))

    def _make_tasks(self) -> Iterator[Task]:
        needed = self.plan.points_needed(lambda run_id: run_id in self.status)
        for run in self.plan.runs.values():
            if run.id not in self.status:
                yield Task(run, needed[run.id])
            elif missing := frozenset(p for p in needed[run.id] if not self._has(run, p)):
                yield Task(run, missing, retrace=True)

    def _has(self, run: Run, point: Point) -> bool:
        if point == "end":
            return self.store.has_weights(run.id)
        return self.store.has_point(run.id, point_name(point))

    def _ended_badly(self, run_id: str) -> bool:
        return self.status.get(run_id) in ("diverged", "certificate_failed", "ancestor_diverged")

    def _give_up_below(self, run: Run) -> None:
        below = list(self.plan.children[run.id])
        while below:
            child = below.pop()
            if child.id not in self.status:
                self.status[child.id] = "ancestor_diverged"
                self._count_in_ancestors(child, -1)
            self._tasks.pop(child.id, None)
            below += self.plan.children[child.id]

    def _ancestors(self, run: Run) -> Iterator[Run]:
        while run.parent is not None:
            run = self.plan.runs[run.parent]
            yield run

    def _count_in_ancestors(self, run: Run, change: int) -> None:
        for ancestor in self._ancestors(run):
            self._open_below[ancestor.id] += change

    def _put(self, task: Task) -> None:
        heapq.heappush(self._ready, (-task.run.level, self._order[task.run.id], task))
