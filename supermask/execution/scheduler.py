"""The scheduler: which tasks are ready, in which order they start, and which weights no later run needs.

It holds no workers and waits for nothing, so any executor can drive it.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from supermask.core.types import Snapshot
from supermask.execution.tasks import (
    MAX_ATTEMPTS,
    Task,
    TaskResult,
    certificate_message,
    has_snapshot,
    is_final,
    stack_key,
)
from supermask.store import Store
from supermask.store.records import snapshot_name
from supermask.store.rows import BLOCKED_STATUS
from supermask.study.plan import RunGraph
from supermask.study.run import Run

KeepPolicy = Literal["all", "needed", "masks"]
"""Final weights that stay in the store.

`all`: those of every run. `needed`: those from which the study can be extended. `masks`: only those that runs of the
plan still have to read.
"""


OVERHEAD_IMAGES = 40_000
"""Cost of a run's start, test evaluations and commit, in forward passes of one image."""


def estimated_work(run: Run) -> float:
    """Return the rough cost of a run in forward passes of one image.

    A training step counts three passes for each image of its batch: one forward and about two for the gradients.
    """
    samples = 1 if run.learning is None else run.learning.num_samples
    evaluations = run.recipe.iterations / run.recipe.evaluate_every
    # 5,000: images of the validation set.
    return 3.0 * run.recipe.iterations * run.recipe.batch_size + samples * (OVERHEAD_IMAGES + 5_000 * evaluations)


class Scheduler:
    """State of a plan during its execution: tasks that wait, are ready, are in flight or have ended.

    The deepest ready level goes first: chains finish early, and the next level of a chain tends to run on the worker
    that has its parent in memory.
    """

    def __init__(self, plan: RunGraph, store: Store, damaged: Iterable[str] = ()) -> None:
        """Build the state from the store. Runs with damaged facts are set aside. Raises SystemFailure."""
        self.plan = plan
        self.store = store
        self.status: dict[str, str] = {}
        """Run id -> `finished`, `diverged` or `certificate_failed`; `ancestor_diverged` and
        `ancestor_certificate_failed` for the descendants of the latter two, which cannot be trained."""
        self.trained_on: dict[str, str] = {}
        """Run id -> fingerprint of the data that the stored run was trained on."""
        self._failed_once: set[str] = set()
        """Ids of runs whose certificate failed in an earlier command, and that are trained once more."""
        self.damaged = list(damaged)
        """One message per entry that was found damaged and set aside."""
        self._load_status()
        # Runs without a status can still be trained; the count keeps the weights that their initial states are made of.
        self._pending_descendants = dict.fromkeys(plan.runs, 0)
        for run in self.to_do():
            self._count_in_ancestors(run, 1)
        self._order = {run_id: i for i, run_id in enumerate(plan.runs)}
        self._tasks = {task.run.id: task for task in self._make_tasks()}
        self._work_left = sum(estimated_work(task.run) for task in self._tasks.values())
        self._ready: dict[Hashable, list[tuple[int, int, Task]]] = {}
        """One heap per stack key, so that taking a stack never moves tasks that cannot join it. Smallest first:
        (-level, place in the plan, task)."""
        self._waiting: dict[str, list[Task]] = {}
        """Run id of the nearest ancestor with a task -> tasks that wait for it."""
        self._reserved: set[str] = set()
        """Run ids of tasks that belong to a chain that a worker has: no other worker may take them."""
        self.postponed: dict[str, Task] = {}
        """Run id -> task that another command trains at the moment."""
        for task in self._tasks.values():
            # The nearest ancestor with a task need not be the parent: a replay of a grandparent is waited for as well.
            blocker = next((a.id for a in self._ancestors(task.run) if a.id in self._tasks), None)
            if blocker is None:
                self.requeue(task)
            else:
                self._waiting.setdefault(blocker, []).append(task)

    def to_do(self) -> list[Run]:
        """Return the runs that are not in the store and can still be trained."""
        return [run for run in self.plan.runs.values() if run.id not in self.status]

    @property
    def tasks_left(self) -> int:
        """Number of tasks without a result, including those in flight."""
        return len(self._tasks)

    @property
    def work_left(self) -> float:
        """Sum of `estimated_work` over the tasks without a result."""
        return self._work_left

    def take(self, is_trained: bool | None = None) -> Task | None:
        """Remove and return the next ready task, or None; with `is_trained` only one that is trained, or is not."""
        while heaps := self._heaps(is_trained):
            task = heapq.heappop(min(heaps, key=lambda heap: heap[0][:2]))[2]
            # A task in a heap may have ended since: its result was read from the store, or an ancestor failed.
            if self.is_pending(task):
                return task
        return None

    def is_pending(self, task: Task) -> bool:
        """Return True if the task has no result yet.

        By identity: a run that is trained again has a new task, and a late result of the old one does not count.
        """
        return self._tasks.get(task.run.id) is task

    def take_chain(self, task: Task, is_trained: bool | None = None) -> list[Task]:
        """Return a ready task and the tasks below it, down to the first branch, for one worker to train in order.

        With `is_trained`, down to the first that does not agree. The tasks below are reserved for that worker until
        `release`; those that another worker has are left to it.
        """
        chain = [task]
        while len(below := self._waiting.get(chain[-1].run.id, [])) == 1:
            # Reserved: below a run whose certificate failed, while the worker that has the chain is not done yet.
            if is_trained not in (None, below[0].run.is_trained) or below[0].run.id in self._reserved:
                break
            chain += below
        self._reserved.update(task.run.id for task in chain[1:])
        return chain

    def take_stack(self, limit: int, is_trained: bool | None = None) -> list[Task]:
        """Take the next task, and up to `limit - 1` ready ones that can be trained in one stack with it."""
        first = self.take(is_trained) if limit > 0 else None
        stack = [] if first is None else [first]
        if first is not None and not first.replay:
            heap = self._ready[stack_key(first)]
            while len(stack) < limit and heap:
                task = heapq.heappop(heap)[2]
                if self.is_pending(task):
                    stack.append(task)
        return stack

    def ready_count(self, is_trained: bool | None = None) -> int:
        """Return the number of ready tasks that no worker has taken; with `is_trained`, of that kind."""
        return sum(map(len, self._heaps(is_trained)))

    def _heaps(self, is_trained: bool | None) -> list[list[tuple[int, int, Task]]]:
        # Tasks of one heap have one recipe, so the first stands for all. Replays share one: all of them were trained.
        heaps = [heap for heap in self._ready.values() if heap]
        return heaps if is_trained is None else [heap for heap in heaps if heap[0][2].run.is_trained is is_trained]

    def requeue(self, task: Task) -> None:
        """Add a task to the ready ones."""
        heap = self._ready.setdefault(stack_key(task), [])
        heapq.heappush(heap, (-task.run.level, self._order[task.run.id], task))

    def postpone(self, task: Task) -> None:
        """Keep a task that was taken from becoming ready, until `resume`."""
        self.postponed[task.run.id] = task

    def resume(self, task: Task) -> None:
        """Make a postponed task ready again."""
        self.requeue(self.postponed.pop(task.run.id))

    def release(self, tasks: Iterable[Task]) -> None:
        """Give back tasks that their worker no longer has; those without a result can be taken by any worker."""
        for task in tasks:
            self._reserved.discard(task.run.id)
            if task.run.id in self.postponed:
                continue
            # Tasks further down an unfinished chain stay in `_waiting`: only the first unfinished one is ready.
            if self.is_pending(task) and all(ancestor.id not in self._tasks for ancestor in self._ancestors(task.run)):
                self.requeue(task)

    def finish(self, task: Task, result: TaskResult) -> bool:
        """Record a result: tasks that waited for it become ready, or are cancelled if it is not `finished`.

        Return False if the run's certificate failed for the first time: the run is set aside and becomes ready again.
        """
        assert result.status not in ("not_started", "locked"), "not the end of the task"
        if result.status == "certificate_failed" and result.attempts < MAX_ATTEMPTS and not result.has_emptied_layer:
            self._set_aside_failed(task.run.id)
            self._tasks[task.run.id] = second = replace(task, attempt=MAX_ATTEMPTS)
            self.postponed.pop(task.run.id, None)
            self.requeue(second)
            return False
        del self._tasks[task.run.id]
        self.postponed.pop(task.run.id, None)
        self._work_left -= estimated_work(task.run)
        if not task.replay:
            self.status[task.run.id] = result.status
            self._count_in_ancestors(task.run, -1)
        if self._has_failed(task.run.id):
            self._cancel_descendants(task.run)
        for waiting in self._waiting.pop(task.run.id, []):
            if waiting.run.id in self._tasks and waiting.run.id not in self._reserved:
                self.requeue(waiting)
        return True

    def unneeded_snapshots(self, keep: KeepPolicy, ended: Run | None = None) -> Iterator[tuple[Run, Snapshot]]:
        """Yield snapshots (`end`: the final weights) that no run of the plan will read and the policy does not keep.

        Examines the run `ended` and its ancestors, or all runs. `needed` keeps everything of the dense runs, learned
        masks and last levels, and of other runs the snapshots that the initial states of their descendants are made
        of: then any level or treatment can be added to the study without a replay.
        """
        if keep == "all":
            return
        for run in self.plan.runs.values() if ended is None else (ended, *self._ancestors(ended)):
            children = self.plan.children[run.id]
            extendable = run.level == 0 or run.learning is not None or not children
            if self.status.get(run.id) != "finished" or not run.is_trained or (keep == "needed" and extendable):
                continue
            # Snapshots that only other studies read are not this plan's to drop.
            snapshots: set[Snapshot] = {"end"}
            snapshots.update(*(child.required_snapshots for child in children))
            for point in sorted(snapshots - self._still_needed(children, keep), key=str):
                if has_snapshot(self.store, run, point):
                    yield run, point

    def drop_unneeded(self, keep: KeepPolicy, ended: Run | None = None) -> None:
        """Drop what `unneeded_snapshots` yields. Raises SystemFailure."""
        for run, point in self.unneeded_snapshots(keep, ended):
            if point == "end":
                self.store.drop_weights(run.id)
            else:
                self.store.drop_snapshot(run.id, snapshot_name(point))

    def _still_needed(self, children: Iterable[Run], keep: KeepPolicy) -> set[Snapshot]:
        """Return a run's snapshots that its children, or the initial states of their descendants, will read."""
        needed: set[Snapshot] = set()
        for child in children:
            if child.id not in self.status:
                needed |= child.required_snapshots
            elif keep == "needed" or self._pending_descendants[child.id]:
                # The child's masks are in the store; its descendants need only what its initial weights came from.
                needed |= child.initial_state_snapshots
        return needed

    def _load_status(self) -> None:
        stored_ids = self.store.run_ids()
        stored, damaged = self.store.check_runs(run_id for run_id in self.plan.runs if run_id in stored_ids)
        for run_id, facts in stored.items():
            if is_final(facts):
                self.status[run_id] = str(facts["status"])
                self.trained_on[run_id] = str(facts["data"]["fingerprint"])
            else:
                self._set_aside_failed(run_id)
                self._failed_once.add(run_id)
        for damage in damaged:
            self.store.quarantine(damage.key, damage.what)
            self.damaged.append(f"{damage.key} in the store is damaged: {damage.what}. It is set aside and recomputed.")
        # Parents come before children in a plan, so one pass reaches all descendants.
        for run in self.plan.runs.values():
            if run.parent is not None and self._has_failed(run.parent):
                self.status[run.id] = BLOCKED_STATUS[self.status[run.parent]]

    def _make_tasks(self) -> Iterator[Task]:
        needed = self.plan.required_snapshots(lambda run_id: run_id in self.status)
        for run in self.plan.runs.values():
            if run.id not in self.status:
                # Also for children that are in the store, as after this run was set aside: `verify` reads them again.
                snapshots = needed[run.id].union(*(child.required_snapshots for child in self.plan.children[run.id]))
                yield Task(run, snapshots, attempt=MAX_ATTEMPTS if run.id in self._failed_once else 1)
            elif missing := frozenset(p for p in needed[run.id] if not has_snapshot(self.store, run, p)):
                yield Task(run, missing, replay=True)

    def _set_aside_failed(self, run_id: str) -> None:
        """Quarantine a run whose certificate failed once, unless another command has done so and trained it again."""
        if self.store.has(run_id) and not is_final(facts := self.store.facts(run_id)):
            self.store.quarantine(run_id, f"{certificate_message(facts)}. The run is trained once more.")

    def _has_failed(self, run_id: str) -> bool:
        return self.status.get(run_id, "finished") != "finished"

    def _cancel_descendants(self, run: Run) -> None:
        descendants = list(self.plan.children[run.id])
        while descendants:
            descendant = descendants.pop()
            if descendant.id not in self.status:
                self.status[descendant.id] = BLOCKED_STATUS[self.status[run.id]]
                self._count_in_ancestors(descendant, -1)
            self.postponed.pop(descendant.id, None)
            if self._tasks.pop(descendant.id, None) is not None:
                self._work_left -= estimated_work(descendant)
            descendants += self.plan.children[descendant.id]

    def _ancestors(self, run: Run) -> Iterator[Run]:
        while run.parent is not None:
            run = self.plan.runs[run.parent]
            yield run

    def _count_in_ancestors(self, run: Run, change: int) -> None:
        for ancestor in self._ancestors(run):
            self._pending_descendants[ancestor.id] += change
