"""What is ready to train, in what order, and whose weights nobody needs any more. Any executor can be driven by it."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator
from typing import Literal

from supermask.execute.stored import has_point
from supermask.execute.tasks import Result, Task, kind_of
from supermask.plan import Graph
from supermask.records import point_name
from supermask.runs import Run
from supermask.store import Damaged, Store
from supermask.types import Point

Keep = Literal["all", "needed", "masks"]
"""Whose weights are kept: everybody's; only those from which the study can be extended; only those of runs to come."""


BESIDE_TRAINING = 40_000
"""Images: what a run's evaluations, start and commit cost, in passes of one image through its network."""


def work(run: Run) -> float:
    """Roughly what a run costs, in passes of one image; a training step needs three for each of its images."""
    samples = 1 if run.learning is None else run.learning.passes
    evaluations = run.recipe.iterations / run.recipe.evaluate_every
    return 3.0 * run.recipe.iterations * run.recipe.batch_size + samples * (BESIDE_TRAINING + 5_000 * evaluations)


class Schedule:
    """The state of a plan while it is carried out: to do, ready, in flight, done.

    Deepest level first, so that chains end early and a chain's next level follows on the worker that has its parent.
    """

    def __init__(self, plan: Graph, store: Store, damaged: Iterable[str] = ()) -> None:
        """From what is in the store now; a run whose facts are damaged is set aside. Raises MachineError."""
        self.plan = plan
        self.store = store
        self.status: dict[str, str] = {}
        """Run id -> `finished`, `diverged`, `certificate_failed`; `ancestor_diverged` for runs that cannot be done."""
        self.damaged = list(damaged)
        """What was found damaged and set aside, one text each."""
        self._look_at_store()
        self._open_below = dict.fromkeys(plan.runs, 0)
        for run in self.to_do():
            self._count_in_ancestors(run, 1)
        self._order = {run_id: i for i, run_id in enumerate(plan.runs)}
        self._tasks = {task.run.id: task for task in self._make_tasks()}
        self._work_left = sum(work(task.run) for task in self._tasks.values())
        self._ready: dict[Hashable, list[tuple[int, int, Task]]] = {}
        """A heap for each kind: first who is to go first."""
        self._waiting: dict[str, list[Task]] = {}
        self._promised: set[str] = set()
        """Whose turn comes on the worker that is at the line above them."""
        for task in self._tasks.values():
            before = next((a.id for a in self._ancestors(task.run) if a.id in self._tasks), None)
            if before is None:
                self.again(task)
            else:
                self._waiting.setdefault(before, []).append(task)

    def to_do(self) -> list[Run]:
        """Runs that are not in the store and can still be done."""
        return [run for run in self.plan.runs.values() if run.id not in self.status]

    @property
    def tasks_left(self) -> int:
        """Tasks not yet ended, those in flight included."""
        return len(self._tasks)

    @property
    def work_left(self) -> float:
        """The same, each counted as `work` weighs it."""
        return self._work_left

    def next(self) -> Task | None:
        """The next task whose parent is there, or None."""
        while heaps := [heap for heap in self._ready.values() if heap]:
            task = heapq.heappop(min(heaps, key=lambda heap: heap[0][:2]))[2]
            if self.awaits(task):
                return task
        return None

    def awaits(self, task: Task) -> bool:
        """Whether the task's end is still to come."""
        return task.run.id in self._tasks

    def line(self, task: Task) -> list[Task]:
        """A ready task and what comes below it, as long as that is one task each: one worker does them unasked.

        Nobody else is given them, until they are `returned`.
        """
        found = [task]
        while len(below := self._waiting.get(found[-1].run.id, [])) == 1:
            found += below
        self._promised.update(each.run.id for each in found[1:])
        return found

    def next_alike(self, most: int) -> list[Task]:
        """The next task, and ready ones of the same network, data and recipe: what can be trained together."""
        first = self.next() if most > 0 else None
        found = [] if first is None else [first]
        if first is not None and not first.retrace:
            heap = self._ready[kind_of(first)]
            while len(found) < most and heap:
                task = heapq.heappop(heap)[2]
                if self.awaits(task):
                    found.append(task)
        return found

    @property
    def ready(self) -> int:
        """Tasks whose parents are there, and that nobody has taken."""
        return sum(map(len, self._ready.values()))

    def again(self, task: Task) -> None:
        """Puts a task (back) among the ready ones."""
        heap = self._ready.setdefault(kind_of(task), [])
        heapq.heappush(heap, (-task.run.level, self._order[task.run.id], task))

    def returned(self, tasks: Iterable[Task]) -> None:
        """Whoever was given these is not at them any more: what of them is left is for anybody."""
        for task in tasks:
            self._promised.discard(task.run.id)
            if self.awaits(task) and all(above.id not in self._tasks for above in self._ancestors(task.run)):
                self.again(task)

    def ended(self, task: Task, result: Result) -> None:
        """A task came to its end: what waited for it becomes ready, or impossible."""
        assert result.status != "not_started", "then the schedule has to be made again"
        del self._tasks[task.run.id]
        self._work_left -= work(task.run)
        if not task.retrace:
            self.status[task.run.id] = result.status
            self._count_in_ancestors(task.run, -1)
        if self._ended_badly(task.run.id):
            self._give_up_below(task.run)
        for waiting in self._waiting.pop(task.run.id, []):
            if waiting.run.id in self._tasks and waiting.run.id not in self._promised:
                self.again(waiting)

    def surplus(self, keep: Keep, ended: Run | None = None) -> Iterator[tuple[Run, Point]]:
        """Which finished runs' weights (`end`) and other points can be dropped: no run of the plan still reads them.

        Looks at a run that has just ended and its ancestors, or at all runs. `needed` keeps whole the dense runs,
        learned masks and the runs of the last levels, and of the others what the starts of their descendants are made
        of: any level or treatment can then be added to the study without training again.
        """
        if keep == "all":
            return
        for run in self.plan.runs.values() if ended is None else (ended, *self._ancestors(ended)):
            children = self.plan.children[run.id]
            extendable = run.level == 0 or run.learning is not None or not children
            if self.status.get(run.id) != "finished" or not run.trains or (keep == "needed" and extendable):
                continue
            points: set[Point] = {"end"}
            points.update(*(child.points for child in children))
            for point in sorted(points - self._still_read(children, keep), key=str):
                if has_point(self.store, run, point):
                    yield run, point

    def drop_surplus(self, keep: Keep, ended: Run | None = None) -> None:
        """Drops what `surplus` names. Raises MachineError."""
        for run, point in self.surplus(keep, ended):
            if point == "end":
                self.store.drop_weights(run.id)
            else:
                self.store.drop_point(run.id, point_name(point))

    def _still_read(self, children: Iterable[Run], keep: Keep) -> set[Point]:
        """Points of a run that its children, when they are trained, or their descendants' starts, are made of."""
        read: set[Point] = set()
        for child in children:
            if child.id not in self.status:
                read |= child.points
            elif keep == "needed" or self._open_below[child.id]:
                read |= child.start_points
        return read

    def _look_at_store(self) -> None:
        there = self.store.run_ids()
        for run in self.plan.runs.values():
            if run.id in there:
                try:
                    self.status[run.id] = self.store.facts(run.id)["status"]
                except Damaged as damage:
                    self.store.quarantine(run.id, damage.what)
                    self.damaged.append(str(damage))
        for run in self.plan.runs.values():
            if run.parent is not None and self._ended_badly(run.parent):
                self.status[run.id] = "ancestor_diverged"

    def _make_tasks(self) -> Iterator[Task]:
        needed = self.plan.points_needed(lambda run_id: run_id in self.status)
        for run in self.plan.runs.values():
            if run.id not in self.status:
                yield Task(run, needed[run.id])
            elif missing := frozenset(p for p in needed[run.id] if not has_point(self.store, run, p)):
                yield Task(run, missing, retrace=True)

    def _ended_badly(self, run_id: str) -> bool:
        return self.status.get(run_id, "finished") != "finished"

    def _give_up_below(self, run: Run) -> None:
        below = list(self.plan.children[run.id])
        while below:
            child = below.pop()
            if child.id not in self.status:
                self.status[child.id] = "ancestor_diverged"
                self._count_in_ancestors(child, -1)
            if self._tasks.pop(child.id, None) is not None:
                self._work_left -= work(child)
            below += self.plan.children[child.id]

    def _ancestors(self, run: Run) -> Iterator[Run]:
        while run.parent is not None:
            run = self.plan.runs[run.parent]
            yield run

    def _count_in_ancestors(self, run: Run, change: int) -> None:
        for ancestor in self._ancestors(run):
            self._open_below[ancestor.id] += change
