"""The coordinator: dispatches tasks to workers, collects results, counts failures.

It is the same for every executor. Executors differ in their `WorkerPool`: processes, tasks of a Ray cluster, jobs of
Slurm.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from supermask.core.errors import SystemFailure
from supermask.execution.run_locks import is_locked, lock_holder, remove_stale_locks
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.signals import StopSignal, raise_on_stop_signals
from supermask.execution.tasks import Chain, Task, TaskResult, WorkerConfig, stored_result
from supermask.store import CorruptEntry, Store
from supermask.study.plan import RunGraph

MAX_WORKER_CRASHES = 3
"""Deaths of worker processes per run, and times that an entry is found damaged, after which the study is given up."""

MAX_NODE_LOSSES = 20
"""The same for lost nodes. The limit is higher because preemption of a node is not a fault of the run."""

MAX_STACK = 512
"""Chains sent to a worker that chooses the size of its stack itself."""

MIN_CHAINS_PER_GPU = 64
"""Chains that stay on one GPU. A step of fewer small networks takes as long as one of 64. Chosen, not measured."""

SHUTDOWN_GRACE_SECONDS = 1.2
"""Time that workers have to save checkpoints when they are asked to stop, before they are killed."""

SHUTDOWN_SECONDS_PER_STACKED_RUN = 0.1
"""Additional time per run of a stack. Its runs save at one stop, one after another: 4 MB each for the paper's
fully connected network, 40 MB for its convolutional ones. Chosen, not measured."""

MAX_MISSING_INPUTS = 20
"""Times that an input may be missing because another command dropped it, before the study is given up."""

LOCK_POLL_SECONDS = 0.5
"""Time between two checks of the runs that other commands train."""

STORE_POLL_SECONDS = 1.0
"""Time between two reads of the store for results of assignments that hold several tasks."""

TaskListener = Callable[[Scheduler, Task, TaskResult], None]
"""Called with each result of a task, in the process that coordinates."""

StartListener = Callable[[Task], None]
"""Called once per task that a worker starts, before the task's result; again after a worker crash."""


def ignore_start(task: Task) -> None:
    """Do nothing: the default `StartListener`."""


@dataclass(frozen=True)
class ExecutionRequest:
    """A plan to execute, and the settings that every executor takes."""

    plan: RunGraph
    config: WorkerConfig
    workers: int
    """Assignments in flight at once."""
    listener: TaskListener
    keep: KeepPolicy = "all"
    scheduler: Scheduler | None = None
    """The plan's scheduler, if it exists already: to build one reads the facts of every finished run."""
    on_start: StartListener = ignore_start
    evaluation_workers: int = 0
    """Workers beside those of a GPU, for runs that are only evaluated; 0: the same workers train and evaluate."""


def shutdown_grace_seconds(config: WorkerConfig) -> float:
    """Return the time that a worker of this configuration has to save its checkpoints."""
    stack = MAX_STACK if config.stack is None else config.stack
    return SHUTDOWN_GRACE_SECONDS + SHUTDOWN_SECONDS_PER_STACKED_RUN * (stack - 1)


class StudyInterrupted(Exception):
    """The study was interrupted with `remaining` tasks left. Finished runs are kept."""

    def __init__(self, remaining: int, signal_number: int = signal.SIGINT) -> None:
        super().__init__(remaining)
        self.remaining = remaining
        self.signal_number = signal_number


@dataclass(frozen=True, eq=False)
class Assignment:
    """Chains of tasks that are sent to one worker together. Compared by identity."""

    chains: Sequence[Chain]
    evaluates_only: bool = False
    """True for runs that are only evaluated, sent to one of the `evaluation_workers`."""

    @property
    def tasks(self) -> list[Task]:
        """Tasks of all chains."""
        return [task for chain in self.chains for task in chain]


@dataclass(frozen=True)
class WorkerDied:
    """The answer of a worker pool for an assignment whose worker died."""

    node_lost: bool = False
    """True if the whole node was lost."""


WorkerAnswer = Sequence[TaskResult] | WorkerDied


class WorkerPool(Protocol):
    """Workers of any kind: processes, cluster tasks, queued jobs."""

    prefers_whole_chains: bool
    """True if an answer takes long, so that each worker should get whole chains even if it trains one run at a time."""

    def capacity(self) -> int:
        """Assignments that can be in flight at once. May change during a study."""

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send each assignment to a worker."""

    def poll(self) -> list[tuple[Assignment, WorkerAnswer]]:
        """Wait for a moment or for the first answer, then return the answers that arrived.

        Raises UserError and SystemFailure that a worker raised.
        """


class Coordinator:
    """Drives a scheduler with a worker pool.

    A worker reports its results when its whole assignment is done. Until then the coordinator reads them from the
    store, which workers write to directly: so progress is shown per run, and a crash costs only unfinished runs.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        config: WorkerConfig,
        listener: TaskListener,
        keep: KeepPolicy,
        on_start: StartListener,
        evaluation_workers: int = 0,
    ) -> None:
        self.scheduler = scheduler
        self._evaluation_workers = evaluation_workers
        self._trained_only = True if evaluation_workers else None
        """Filter of the tasks that are not sent to `evaluation_workers`: None for all tasks."""
        self.needs_reschedule = False
        """True if the scheduler must be rebuilt from the store as soon as nothing is in flight."""
        self.in_flight: dict[Assignment, None] = {}
        """An ordered set, oldest assignment first."""
        self._stack = MAX_STACK if config.stack is None else config.stack
        self._min_stack = 1 if config.device == "cpu" else min(self._stack, MIN_CHAINS_PER_GPU)
        """Chains that are sent to one worker even if other workers are idle."""
        self._listener, self._keep, self._on_start = listener, keep, on_start
        self._last_poll = time.monotonic()
        self._announced: set[str] = set()
        """Ids of the runs in flight that were passed to `on_start`."""
        self._reported_missing: set[str] = set()
        """Store keys that this scheduler's tasks found missing. One damaged parent can block a whole stack."""
        self._worker_crashes: Counter[str] = Counter()
        self._node_losses: Counter[str] = Counter()
        self._missing_counts: Counter[str] = Counter()
        self._last_lock_check = time.monotonic()
        self._reported_locks: set[str] = set()

    def run(self, pool: WorkerPool) -> None:
        """Send tasks to the pool and collect results until no task is left."""
        while self.scheduler.tasks_left:
            # A scheduler that is about to be rebuilt must not start tasks: their parents may have been set aside.
            if not self.needs_reschedule:
                self._check_locks()
                self._dispatch(pool)
            if not self.in_flight and not self.needs_reschedule and self.scheduler.tasks_left:
                assert self.scheduler.postponed, "tasks that never become ready"
                self._wait_for_locks()
            for assignment, answer in pool.poll() if self.in_flight else ():
                self._on_worker_answer(assignment, answer)
            self._poll_store()
            if self.needs_reschedule and not self.in_flight:
                self.scheduler = Scheduler(self.scheduler.plan, self.scheduler.store, self.scheduler.damaged)
                self.needs_reschedule = False
                self._reported_missing.clear()

    def remaining_tasks(self) -> int:
        """Count the tasks without a result in the store."""
        # Workers may have committed tasks of their assignments that they have not reported yet; other commands, tasks
        # that they had locked.
        in_flight = [task for assignment in self.in_flight for task in assignment.tasks]
        pending = [task for task in in_flight if self.scheduler.is_pending(task)]
        pending += [task for task in self.scheduler.postponed.values() if task not in pending]
        return self.scheduler.tasks_left - sum(self._stored_result(task) is not None for task in pending)

    def _dispatch(self, pool: WorkerPool) -> None:
        capacity, assignments = pool.capacity(), self._take_evaluations()
        evaluating = sum(assignment.evaluates_only for assignment in self.in_flight)
        # With more ready chains than workers, several chains share a worker: a queued job is worth its waiting time.
        chains_per_worker = -(-self.scheduler.ready_count() // capacity) if pool.prefers_whole_chains else 0
        while (free := capacity - len(self.in_flight) + evaluating) > 0 and (
            chains := self._take_chains(free, chains_per_worker)
        ):
            assignments.append(Assignment(chains))
            self.in_flight[assignments[-1]] = None
        if assignments:
            pool.submit(assignments)
        for assignment in assignments:
            self._notify_started(self._running_tasks(assignment))

    def _take_evaluations(self) -> list[Assignment]:
        """Take runs that are only evaluated for the idle workers of that kind, one for each."""
        assignments: list[Assignment] = []
        free = self._evaluation_workers - sum(assignment.evaluates_only for assignment in self.in_flight)
        while free > len(assignments) and (task := self.scheduler.take(is_trained=False)):
            assignments.append(Assignment([[task]], evaluates_only=True))
        self.in_flight |= dict.fromkeys(assignments)
        return assignments

    def _check_locks(self) -> None:
        """Record results of runs that other commands train; make those ready that are not locked any more."""
        if time.monotonic() - self._last_lock_check < LOCK_POLL_SECONDS:
            return
        for task in list(self.scheduler.postponed.values()):
            if not self._collect_stored([task]) and not is_locked(self.scheduler.store.root, task.run.id):
                # The other command was interrupted or killed: one of our workers resumes from its checkpoint.
                self.scheduler.resume(task)
        self._last_lock_check = time.monotonic()

    def _wait_for_locks(self) -> None:
        """Wait a moment for other commands, which train every run that could be started."""
        for task in self.scheduler.postponed.values():
            if task.run.id not in self._reported_locks:
                self._reported_locks.add(task.run.id)
                message = f"waiting for {lock_holder(self.scheduler.store.root, task.run.id)}, which trains it"
                self._listener(self.scheduler, task, TaskResult(task.run.id, "locked", message=message))
        time.sleep(LOCK_POLL_SECONDS)

    def _take_chains(self, free: int, chains_per_worker: int) -> list[Chain]:
        """Take the chains of the next of `free` idle workers.

        With stacks: enough chains to fill a stack and to refill it once, but at most an equal share of the ready ones,
        so that no idle worker goes without. Without stacks: `chains_per_worker` whole chains, or one task if it is 0.
        """
        scheduler, kind = self.scheduler, self._trained_only
        if self._stack > 1:
            share = max(self._min_stack, -(-scheduler.ready_count(kind) // free))
            return [
                scheduler.take_chain(task, kind) for task in scheduler.take_stack(min(2 * self._stack, share), kind)
            ]
        tasks = [task for _ in range(chains_per_worker or 1) if (task := scheduler.take(kind))]
        return [scheduler.take_chain(task, kind) if chains_per_worker else [task] for task in tasks]

    def _pending_heads(self, assignment: Assignment) -> Iterator[Task]:
        """Yield the first task without a result of each chain."""
        for chain in assignment.chains:
            yield from islice(filter(self.scheduler.is_pending, chain), 1)

    def _running_tasks(self, assignment: Assignment) -> list[Task]:
        """Return the tasks in training, as far as this process can know: a worker trains at most one stack at once."""
        return [*islice(self._pending_heads(assignment), self._stack)]

    def _notify_started(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            if task.run.id not in self._announced:
                self._announced.add(task.run.id)
                self._on_start(task)

    def _poll_store(self) -> None:
        if time.monotonic() - self._last_poll < STORE_POLL_SECONDS:
            return
        for assignment in self.in_flight:
            # The result of a single task arrives with its answer; only longer assignments have intermediate results.
            if len(assignment.tasks) > 1:
                # Each pass may reveal that the next level of a chain has finished too.
                while self._collect_stored(self._running_tasks(assignment)):
                    pass
                self._notify_started(self._running_tasks(assignment))
        self._last_poll = time.monotonic()

    def _collect_stored(self, tasks: Sequence[Task]) -> bool:
        """Record the tasks that have a result in the store. Return True if any has."""
        finished = [(task, result) for task in tasks if (result := self._stored_result(task)) is not None]
        for task, result in finished:
            self._on_task_end(task, result)
        return bool(finished)

    def _stored_result(self, task: Task) -> TaskResult | None:
        """Return the task's result from the store, or None. Damage is left to the worker that gets the task."""
        try:
            return stored_result(self.scheduler.store, task)
        except CorruptEntry:
            return None

    def _on_worker_answer(self, assignment: Assignment, answer: WorkerAnswer) -> None:
        """Record the results of an assignment, or the death of its worker."""
        tasks = {task.run.id: task for task in assignment.tasks}
        for result in () if isinstance(answer, WorkerDied) else answer:
            # Results that were read from the store before are not recorded twice.
            if not self.scheduler.is_pending(tasks[result.run_id]):
                continue
            if result.status == "locked":
                self.scheduler.postpone(tasks[result.run_id])
            else:
                self._on_task_end(tasks[result.run_id], result)
        if isinstance(answer, WorkerDied):
            # Runs that the worker committed before it died are neither trained again nor blamed for the crash.
            while self._collect_stored([*self._pending_heads(assignment)]):
                pass
            self._count_crash(assignment, answer.node_lost)
        del self.in_flight[assignment]
        self._announced -= tasks.keys()
        self.scheduler.release(tasks.values())

    def _count_crash(self, assignment: Assignment, node_lost: bool) -> None:
        """Count a crash against every run that may have been in training.

        Raises SystemFailure for a run that reaches the limit.
        """
        suspects = self._running_tasks(assignment)
        counts, limit, culprit = (
            (self._node_losses, MAX_NODE_LOSSES, "a node")
            if node_lost
            else (self._worker_crashes, MAX_WORKER_CRASHES, "a worker process")
        )
        for task in suspects:
            counts[task.run.id] += 1
            if counts[task.run.id] == limit:
                advice = "--workers 1" if len(suspects) == 1 else "--workers 1, or a smaller --stack"
                raise SystemFailure(
                    f"{culprit} died {limit} times while run {task.run.id} (seed {task.run.seed}, level "
                    f"{task.run.level}) was trained; is the memory full? Try {advice}. Finished runs are kept."
                )

    def _on_task_end(self, task: Task, result: TaskResult) -> None:
        """Record one result. Raises SystemFailure for an entry that was found damaged too often."""
        self._notify_started([task])
        if result.status == "not_started":
            self.needs_reschedule = True
            self._record_missing_input(result)
        elif self.scheduler.finish(task, result):
            self.scheduler.drop_unneeded(self._keep, task.run)
        else:
            result = replace(result, message=f"{result.message}; it is set aside and trained once more")
            self._announced.discard(task.run.id)
        self._listener(self.scheduler, task, result)

    def _record_missing_input(self, result: TaskResult) -> None:
        """Report and count a missing or damaged entry once per scheduler, for any number of tasks that need it."""
        if result.missing_key in self._reported_missing:
            return
        self._reported_missing.add(result.missing_key)
        self.scheduler.damaged.append(result.message)
        self._missing_counts[result.missing_key] += 1
        limit = MAX_WORKER_CRASHES if result.is_damage else MAX_MISSING_INPUTS
        if self._missing_counts[result.missing_key] == limit:
            cause = "is the disk of the store failing?" if result.is_damage else "does another command drop weights?"
            raise SystemFailure(f"{result.message} This happened {limit} times: {cause}")


@contextmanager
def open_coordinator(request: ExecutionRequest) -> Iterator[Coordinator]:
    """Prepare the store and yield the request's coordinator. A stop signal within raises StudyInterrupted."""
    store = Store(request.config.store)
    scheduler = request.scheduler or Scheduler(request.plan, store)
    try:
        store.remove_stale()
    except SystemFailure:
        # Nothing is left to train: a store on a read-only disk is complete, whatever was left in it.
        if scheduler.tasks_left:
            raise
    remove_stale_locks(store.root)
    coordinator = Coordinator(
        scheduler, request.config, request.listener, request.keep, request.on_start, request.evaluation_workers
    )
    try:
        with raise_on_stop_signals():
            coordinator.scheduler.drop_unneeded(request.keep)
            yield coordinator
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, StopSignal) else signal.SIGINT
        raise StudyInterrupted(coordinator.remaining_tasks(), number) from None
