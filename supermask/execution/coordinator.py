"""A plan being carried out: what is given to whom, what became of it, what went wrong how often.

The same for every executor; what differs is its `Crew`: processes, tasks of a cluster, jobs of a queue.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from supermask.core.errors import SystemFailure
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Chain, Task, TaskResult, WorkerConfig, stored_result
from supermask.store import CorruptEntry, Store
from supermask.study.plan import RunGraph

MAX_WORKER_CRASHES = 3
"""How often a worker may die in the middle of a run, and an entry be found damaged, before the study is given up."""

MAX_NODE_LOSSES = 20
"""How often a node may: nodes are preempted, and that is nobody's fault."""

MAX_STACK = 512
"""Lines that fill a stack whose size only the worker knows."""

MIN_CHAINS_PER_GPU = 64
"""Lines that are not spread over several GPUs: a step of fewer small networks takes as long. Chosen, not measured."""

STORE_POLL_SECONDS = 1.0
"""Between two looks at the store for what has ended in portions of several tasks."""

TaskListener = Callable[[Scheduler, Task, TaskResult], None]


class StudyInterrupted(Exception):
    """The study was interrupted: `left` tasks are still to be done. Nothing that was finished is lost."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.remaining = left


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a worker is given at once: lines of tasks."""

    chains: Sequence[Chain]

    @property
    def tasks(self) -> list[Task]:
        """All of them."""
        return [task for line in self.chains for task in line]


@dataclass(frozen=True)
class WorkerDied:
    """What became of a worker, in place of its answer."""

    node_lost: bool = False
    """The whole node did."""


class WorkerPool(Protocol):
    """Workers, wherever they are."""

    prefers_whole_chains: bool
    """Whether a worker is given whole lines, where it trains one run at a time too: for answers take long."""

    def capacity(self) -> int:
        """How many portions can be under way at once; may change."""

    def submit(self, portions: Sequence[Assignment]) -> None:
        """Gives each to a worker."""

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        """Waits a moment, or until there are some: what workers said of their portions, at their end.

        Raises UserError and MachineError that a worker met.
        """


class Coordinator:
    """The schedule of a plan being carried out, and who is at what.

    A worker tells of its tasks when it is through with its portion. Before that, what has ended is seen in the store.
    """

    def __init__(
        self,
        schedule: Scheduler,
        site: WorkerConfig,
        listener: TaskListener,
        keep: KeepPolicy,
        starting: Callable[[Task], None],
    ) -> None:
        self.schedule = schedule
        self.needs_reschedule = False
        """Whether the schedule has to be made again, once nothing is in flight."""
        self.in_flight: dict[Assignment, None] = {}
        """In the order in which they were given."""
        self._stack = MAX_STACK if site.stack is None else site.stack
        self._min_stack = 1 if site.device == "cpu" else min(self._stack, MIN_CHAINS_PER_GPU)
        """Lines that go to one worker, though others are free."""
        self._listener, self._keep, self._starting = listener, keep, starting
        self._last_poll = time.monotonic()
        self._announced: set[str] = set()
        """Runs under way whose beginning was told of."""
        self._reported_missing: set[str] = set()
        """What this schedule's tasks could not begin without: one damaged parent may keep a whole stack from it."""
        self._deaths: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._missing_counts: Counter[str] = Counter()

    def run(self, crew: WorkerPool) -> None:
        """Keeps the crew busy until nothing is left to do."""
        while self.schedule.tasks_left:
            if not self.needs_reschedule:
                self._dispatch(crew)
            assert self.in_flight or self.needs_reschedule, "tasks that never become ready"
            for portion, answer in crew.poll() if self.in_flight else ():
                self._on_worker_result(portion, answer)
            self._poll_store()
            if self.needs_reschedule and not self.in_flight:
                self.schedule = Scheduler(self.schedule.plan, self.schedule.store, self.schedule.damaged)
                self.needs_reschedule = False
                self._reported_missing.clear()

    def remaining_tasks(self) -> int:
        """Tasks still to be done, by what is in the store now."""
        under_way = [task for portion in self.in_flight for task in portion.tasks if self.schedule.is_pending(task)]
        return self.schedule.tasks_left - sum(self._stored_result(task) is not None for task in under_way)

    def _dispatch(self, crew: WorkerPool) -> None:
        room, portions = crew.capacity(), []
        # Where more lines are ready than there is room for, several share a worker.
        each = -(-self.schedule.ready_count // room) if crew.prefers_whole_chains else 0
        while (free := room - len(self.in_flight)) > 0 and (lines := self._take_chains(free, each)):
            portions.append(Assignment(lines))
            self.in_flight[portions[-1]] = None
        if portions:
            crew.submit(portions)
        for portion in portions:
            self._notify_started(self._running(portion))

    def _take_chains(self, free: int, each: int) -> list[Chain]:
        """What the next of so many free workers is given: lines that fill a stack, and fill it up again when some of it
        are through, as long as that leaves the others theirs; or `each` lines; or a task.
        """
        schedule = self.schedule
        if self._stack > 1:
            share = max(self._min_stack, -(-schedule.ready_count // free))
            return [schedule.take_chain(task) for task in schedule.take_stack(min(2 * self._stack, share))]
        tasks = [task for _ in range(each or 1) if (task := schedule.take())]
        return [schedule.take_chain(task) if each else [task] for task in tasks]

    def _pending_heads(self, portion: Assignment) -> Iterator[Task]:
        """The first of each line whose end is still to come."""
        for line in portion.chains:
            yield from islice(filter(self.schedule.is_pending, line), 1)

    def _running(self, portion: Assignment) -> list[Task]:
        """What is trained of it, as far as is known here."""
        return [*islice(self._pending_heads(portion), self._stack)]

    def _notify_started(self, tasks: Iterable[Task]) -> None:
        """Tells of those of which it was not told yet."""
        for task in tasks:
            if task.run.id not in self._announced:
                self._announced.add(task.run.id)
                self._starting(task)

    def _poll_store(self) -> None:
        if time.monotonic() - self._last_poll < STORE_POLL_SECONDS:
            return
        for portion in self.in_flight:
            if len(portion.tasks) > 1:
                while self._collect_finished(self._running(portion)):
                    pass
                self._notify_started(self._running(portion))
        self._last_poll = time.monotonic()

    def _collect_finished(self, tasks: Sequence[Task]) -> bool:
        """Whether any of these has ended, by what is in the store."""
        ended = [(task, result) for task in tasks if (result := self._stored_result(task)) is not None]
        for task, result in ended:
            self._on_task_end(task, result)
        return bool(ended)

    def _stored_result(self, task: Task) -> TaskResult | None:
        """What became of it; whoever is given a task whose entry is damaged sets that aside."""
        try:
            return stored_result(self.schedule.store, task)
        except CorruptEntry:
            return None

    def _on_worker_result(self, portion: Assignment, answer: Sequence[TaskResult] | WorkerDied) -> None:
        """A worker is through with its portion, or died in the middle of it."""
        tasks = {task.run.id: task for task in portion.tasks}
        for result in () if isinstance(answer, WorkerDied) else answer:
            if self.schedule.is_pending(tasks[result.run_id]):
                self._on_task_end(tasks[result.run_id], result)
        if isinstance(answer, WorkerDied):
            while self._collect_finished([*self._pending_heads(portion)]):
                pass
            self._count_crash(portion, answer.node_lost)
        del self.in_flight[portion]
        self._announced -= tasks.keys()
        self.schedule.release(tasks.values())

    def _count_crash(self, portion: Assignment, node: bool) -> None:
        """Of the runs that may have been in training. Raises MachineError for one in which workers die too often."""
        begun = self._running(portion)
        counted, most, what = (
            (self._nodes, MAX_NODE_LOSSES, "a node") if node else (self._deaths, MAX_WORKER_CRASHES, "a worker process")
        )
        for task in begun:
            counted[task.run.id] += 1
            if counted[task.run.id] == most:
                fewer = "--workers 1" if len(begun) == 1 else "--workers 1, or a smaller --stack"
                raise SystemFailure(
                    f"{what} died {most} times while run {task.run.id} (seed {task.run.seed}, level "
                    f"{task.run.level}) was trained; is the memory full? Try {fewer}. Finished runs are kept."
                )

    def _on_task_end(self, task: Task, result: TaskResult) -> None:
        """Raises MachineError for an entry that is found damaged too often."""
        self._notify_started([task])
        if result.status == "not_started":
            self.needs_reschedule = True
            self._record_missing_input(result)
        else:
            self.schedule.finish(task, result)
            self.schedule.drop_unneeded(self._keep, task.run)
        self._listener(self.schedule, task, result)

    def _record_missing_input(self, result: TaskResult) -> None:
        """Said and counted once, however many tasks found it."""
        if result.missing_key in self._reported_missing:
            return
        self._reported_missing.add(result.missing_key)
        self.schedule.damaged.append(result.message)
        self._missing_counts[result.missing_key] += 1
        if self._missing_counts[result.missing_key] == MAX_WORKER_CRASHES:
            raise SystemFailure(
                f"{result.message} This happened {MAX_WORKER_CRASHES} times: is the disk of the store failing?"
            )


@contextmanager
def open_coordinator(
    plan: RunGraph,
    site: WorkerConfig,
    listener: TaskListener,
    keep: KeepPolicy,
    schedule: Scheduler | None,
    starting: Callable[[Task], None],
) -> Iterator[Coordinator]:
    """What every executor begins with; Ctrl-C within is Stopped."""
    store = Store(site.store)
    store.remove_stale()
    ongoing = Coordinator(schedule or Scheduler(plan, store), site, listener, keep, starting)
    try:
        ongoing.schedule.drop_unneeded(keep)
        yield ongoing
    except KeyboardInterrupt:
        raise StudyInterrupted(ongoing.remaining_tasks()) from None
