"""What is ready to train, in what order, and whose weights nobody needs any more. Any executor can be driven by it."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator
from typing import Literal

from supermask.core.types import Snapshot
from supermask.execution.tasks import Task, TaskResult, has_snapshot, stack_key
from supermask.store import CorruptEntry, Store
from supermask.store.records import snapshot_name
from supermask.study.plan import RunGraph
from supermask.study.run import Run

KeepPolicy = Literal["all", "needed", "masks"]
"""Whose weights are kept: everybody's; only those from which the study can be extended; only those of runs to come."""


OVERHEAD_IMAGES = 40_000
"""Images: what a run's evaluations, start and commit cost, in passes of one image through its network."""


def estimated_work(run: Run) -> float:
    """Roughly what a run costs, in passes of one image; a training step needs three for each of its images."""
    samples = 1 if run.learning is None else run.learning.num_samples
    evaluations = run.recipe.iterations / run.recipe.evaluate_every
    return 3.0 * run.recipe.iterations * run.recipe.batch_size + samples * (OVERHEAD_IMAGES + 5_000 * evaluations)


class Scheduler:
    """The state of a plan while it is carried out: to do, ready, in flight, done.

    Deepest level first, so that chains end early and a chain's next level follows on the worker that has its parent.
    """

    def __init__(self, plan: RunGraph, store: Store, damaged: Iterable[str] = ()) -> None:
        """From what is in the store now; a run whose facts are damaged is set aside. Raises MachineError."""
        self.plan = plan
        self.store = store
        self.status: dict[str, str] = {}
        """Run id -> `finished`, `diverged`, `certificate_failed`; `ancestor_diverged` for runs that cannot be done."""
        self.damaged = list(damaged)
        """What was found damaged and set aside, one text each."""
        self._load_status()
        self._pending_descendants = dict.fromkeys(plan.runs, 0)
        for run in self.to_do():
            self._count_in_ancestors(run, 1)
        self._order = {run_id: i for i, run_id in enumerate(plan.runs)}
        self._tasks = {task.run.id: task for task in self._make_tasks()}
        self._work_left = sum(estimated_work(task.run) for task in self._tasks.values())
        self._ready: dict[Hashable, list[tuple[int, int, Task]]] = {}
        """A heap for each kind: first who is to go first."""
        self._waiting: dict[str, list[Task]] = {}
        self._reserved: set[str] = set()
        """Whose turn comes on the worker that is at the line above them."""
        for task in self._tasks.values():
            before = next((a.id for a in self._ancestors(task.run) if a.id in self._tasks), None)
            if before is None:
                self.requeue(task)
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

    def take(self) -> Task | None:
        """The next task whose parent is there, or None."""
        while heaps := [heap for heap in self._ready.values() if heap]:
            task = heapq.heappop(min(heaps, key=lambda heap: heap[0][:2]))[2]
            if self.is_pending(task):
                return task
        return None

    def is_pending(self, task: Task) -> bool:
        """Whether the task's end is still to come."""
        return task.run.id in self._tasks

    def take_chain(self, task: Task) -> list[Task]:
        """A ready task and what comes below it, as long as that is one task each: one worker does them unasked.

        Nobody else is given them, until they are `returned`.
        """
        found = [task]
        while len(below := self._waiting.get(found[-1].run.id, [])) == 1:
            found += below
        self._reserved.update(each.run.id for each in found[1:])
        return found

    def take_stack(self, most: int) -> list[Task]:
        """The next task, and ready ones of the same network, data and recipe: what can be trained together."""
        first = self.take() if most > 0 else None
        found = [] if first is None else [first]
        if first is not None and not first.replay:
            heap = self._ready[stack_key(first)]
            while len(found) < most and heap:
                task = heapq.heappop(heap)[2]
                if self.is_pending(task):
                    found.append(task)
        return found

    @property
    def ready_count(self) -> int:
        """Tasks whose parents are there, and that nobody has taken."""
        return sum(map(len, self._ready.values()))

    def requeue(self, task: Task) -> None:
        """Puts a task (back) among the ready ones."""
        heap = self._ready.setdefault(stack_key(task), [])
        heapq.heappush(heap, (-task.run.level, self._order[task.run.id], task))

    def release(self, tasks: Iterable[Task]) -> None:
        """Whoever was given these is not at them any more: what of them is left is for anybody."""
        for task in tasks:
            self._reserved.discard(task.run.id)
            if self.is_pending(task) and all(above.id not in self._tasks for above in self._ancestors(task.run)):
                self.requeue(task)

    def finish(self, task: Task, result: TaskResult) -> None:
        """A task came to its end: what waited for it becomes ready, or impossible."""
        assert result.status != "not_started", "then the schedule has to be made again"
        del self._tasks[task.run.id]
        self._work_left -= estimated_work(task.run)
        if not task.replay:
            self.status[task.run.id] = result.status
            self._count_in_ancestors(task.run, -1)
        if self._failed(task.run.id):
            self._cancel_descendants(task.run)
        for waiting in self._waiting.pop(task.run.id, []):
            if waiting.run.id in self._tasks and waiting.run.id not in self._reserved:
                self.requeue(waiting)

    def droppable(self, keep: KeepPolicy, ended: Run | None = None) -> Iterator[tuple[Run, Snapshot]]:
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
            if self.status.get(run.id) != "finished" or not run.is_trained or (keep == "needed" and extendable):
                continue
            points: set[Snapshot] = {"end"}
            points.update(*(child.points for child in children))
            for point in sorted(points - self._still_needed(children, keep), key=str):
                if has_snapshot(self.store, run, point):
                    yield run, point

    def drop_unneeded(self, keep: KeepPolicy, ended: Run | None = None) -> None:
        """Drops what `surplus` names. Raises MachineError."""
        for run, point in self.droppable(keep, ended):
            if point == "end":
                self.store.drop_weights(run.id)
            else:
                self.store.drop_snapshot(run.id, snapshot_name(point))

    def _still_needed(self, children: Iterable[Run], keep: KeepPolicy) -> set[Snapshot]:
        """Points of a run that its children, when they are trained, or their descendants' starts, are made of."""
        read: set[Snapshot] = set()
        for child in children:
            if child.id not in self.status:
                read |= child.points
            elif keep == "needed" or self._pending_descendants[child.id]:
                read |= child.start_points
        return read

    def _load_status(self) -> None:
        there = self.store.run_ids()
        for run in self.plan.runs.values():
            if run.id in there:
                try:
                    self.status[run.id] = self.store.facts(run.id)["status"]
                except CorruptEntry as damage:
                    self.store.quarantine(run.id, damage.what)
                    self.damaged.append(str(damage))
        for run in self.plan.runs.values():
            if run.parent is not None and self._failed(run.parent):
                self.status[run.id] = "ancestor_diverged"

    def _make_tasks(self) -> Iterator[Task]:
        needed = self.plan.required_snapshots(lambda run_id: run_id in self.status)
        for run in self.plan.runs.values():
            if run.id not in self.status:
                yield Task(run, needed[run.id])
            elif missing := frozenset(p for p in needed[run.id] if not has_snapshot(self.store, run, p)):
                yield Task(run, missing, replay=True)

    def _failed(self, run_id: str) -> bool:
        return self.status.get(run_id, "finished") != "finished"

    def _cancel_descendants(self, run: Run) -> None:
        below = list(self.plan.children[run.id])
        while below:
            child = below.pop()
            if child.id not in self.status:
                self.status[child.id] = "ancestor_diverged"
                self._count_in_ancestors(child, -1)
            if self._tasks.pop(child.id, None) is not None:
                self._work_left -= estimated_work(child)
            below += self.plan.children[child.id]

    def _ancestors(self, run: Run) -> Iterator[Run]:
        while run.parent is not None:
            run = self.plan.runs[run.parent]
            yield run

    def _count_in_ancestors(self, run: Run, change: int) -> None:
        for ancestor in self._ancestors(run):
            self._pending_descendants[ancestor.id] += change
