"""The worker: trains, certifies and commits tasks, in whichever process an executor started."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from supermask.core.errors import SystemFailure, UserError
from supermask.core.types import InitialState, SplitData, TrainingResult
from supermask.datasets import ImageDataset
from supermask.engines.job import Checkpointer, TrainingJob
from supermask.execution.checkpoints import StoreCheckpointer, TaskInterrupted
from supermask.execution.commit import RunCommitter, add_mask_evaluation
from supermask.execution.losses import load_loss
from supermask.execution.resources import DatasetCache, EngineSelector, SelectedEngine, check_data_fingerprint
from supermask.execution.run_locks import RunLock, lock_holder, lock_run
from supermask.execution.tasks import REPLAYED, Chain, Task, TaskResult, WorkerConfig, stack_key, stored_result
from supermask.store import CorruptEntry, Store
from supermask.store.replay import SnapshotMissing, StateReplayer
from supermask.study.networks import run_network

T = TypeVar("T")

ShouldStop = Callable[[], bool]
"""Called at every evaluation. If it returns True, a checkpoint is saved and TaskInterrupted raised."""


def never_stop() -> bool:
    """Return False: the default `ShouldStop`."""
    return False


@lru_cache(maxsize=1)
def get_worker(config: WorkerConfig) -> Worker:
    """Return this process's worker. Its data set and its last initial states stay in memory between tasks."""
    return Worker(config)


class Worker:
    """Trains runs and commits them to the store. Sets aside entries that it finds damaged."""

    def __init__(self, config: WorkerConfig) -> None:
        import torch

        # Sums have different bits on another number of threads, so a run always trains on the configured number.
        torch.set_num_threads(config.threads)
        self.config = config
        self.store = Store(config.store)
        self.replayer = StateReplayer(self.store)
        self._engines = EngineSelector(config, self.store)
        self._data = DatasetCache(config.data_dir)
        self._committer = RunCommitter(self.store, self.replayer)

    def run_task(self, task: Task, should_stop: ShouldStop = never_stop) -> TaskResult:
        """Train, certify and commit one run. Raises UserError, SystemFailure and TaskInterrupted."""
        began = time.perf_counter()
        prepared = self.prepare(task, should_stop)
        if isinstance(prepared, TaskResult):
            return prepared
        try:
            outcome = prepared.engine.train(prepared.job, prepared.data)
            return self.commit(prepared, outcome, lambda: time.perf_counter() - began)
        finally:
            prepared.lock.release()

    def run_chains(self, chains: Sequence[Chain], should_stop: ShouldStop = never_stop) -> list[TaskResult]:
        """Train chains, each up to its first task that does not finish; return results in the order of their ends.

        Chains are trained in stacks where the stacked engine was selected, else one after another.
        """
        feed = ChainFeed(self, chains, should_stop)
        while (head := feed.next_task) is not None:
            if (stack_size := self._engines.stack_size(head)) == 1:
                feed.record(self.run_task(head, should_stop))
            else:
                feed.train_stack(self._engines.engine(head), stack_size)
        return feed.results

    def prepare(self, task: Task, should_stop: ShouldStop) -> PreparedTask | TaskResult:
        """Lock a task's run and prepare its training; or return its result if it is stored already or cannot start."""
        lock = lock_run(self.store.root, task.run.id)
        if lock is None:
            holder = lock_holder(self.store.root, task.run.id)
            return TaskResult(task.run.id, "locked", message=f"{holder} trains it")
        try:
            # Only now, with the lock: another process may have finished the run since the scheduler was built.
            prepared = self._handle_damage(
                task, lambda: self._stored_result(task) or self._prepare(task, should_stop, lock)
            )
        except BaseException:
            lock.release()
            raise
        if isinstance(prepared, TaskResult):
            lock.release()
        return prepared

    def commit(self, prepared: PreparedTask, outcome: TrainingResult, seconds: Callable[[], float]) -> TaskResult:
        """Certify and commit a trained run. `seconds()` returns its duration and is called after the certificate."""
        try:
            return self._handle_damage(prepared.task, lambda: self._commit(prepared, outcome, seconds))
        finally:
            prepared.lock.release()

    def _handle_damage(self, task: Task, action: Callable[[], T]) -> T | TaskResult:
        """Return the action's value; or the result `not_started`, if the action found its input missing or damaged."""
        try:
            return action()
        except SnapshotMissing as missing:
            message = f"{missing.key} is not in the store any more: it is trained again."
            return TaskResult(task.run.id, "not_started", message=message, missing_key=missing.key)
        except CorruptEntry as damage:
            self.store.quarantine(damage.key, damage.what)
            message = f"{damage.key} in the store is damaged: {damage.what}. It was set aside and is computed again."
            return TaskResult(task.run.id, "not_started", message=message, missing_key=damage.key, is_damage=True)

    def _stored_result(self, task: Task) -> TaskResult | None:
        return stored_result(self.store, task)

    def _prepare(self, task: Task, should_stop: ShouldStop, lock: RunLock) -> PreparedTask:
        run, start, images = task.run, self._initial_state(task), self._data.images(task.run)
        # A chain must not change its data set halfway: the new run has to see the data of the run that it continues.
        if (predecessor := run.id if task.replay else run.parent) is not None:
            check_data_fingerprint(self.store, predecessor, images)
        engine = self._engines.engine(task)
        checkpointer = StoreCheckpointer(
            self.store,
            run.id,
            start,
            engine.environment["fingerprint"],
            self.config.checkpoint_seconds,
            should_stop,
            run.recipe,
        )
        job = _make_job(task, start, checkpointer)
        return PreparedTask(task, start, images, self._data.split_for(run), engine, checkpointer, job, lock)

    def _initial_state(self, task: Task) -> InitialState:
        if task.replay:
            return self.replayer.parent_run(task.run.id).start
        try:
            return self.replayer.initial_state(task.run)
        except (ValueError, UserError) as error:
            raise UserError(f"run {task.run.id} (level {task.run.level}, seed {task.run.seed}): {error}") from error

    def _commit(self, prepared: PreparedTask, outcome: TrainingResult, seconds: Callable[[], float]) -> TaskResult:
        task, run, start, images = prepared.task, prepared.task.run, prepared.start, prepared.images
        if task.replay:
            self._committer.commit_replay(task, start, outcome)
            result = TaskResult(run.id, "finished", seconds(), outcome.metrics, REPLAYED)
        else:
            if run.learning is not None:
                outcome = add_mask_evaluation(run, prepared.job, prepared.data, outcome, self.config.device)
            certificate = self._committer.certificate(run, start, outcome, images)
            choice = prepared.engine.choice
            provenance = {
                "engine": choice.engine,
                "engine_reason": choice.reason,
                "environment": prepared.engine.environment,
                "seconds": round(seconds(), 3),
                "data": {"fingerprint": images.fingerprint, "note": images.note},
            }
            if task.attempt > 1:
                provenance["attempts"] = task.attempt
            result = self._committer.commit(run, start, outcome, certificate, provenance)
        # Only after the commit: a kill in between leaves a checkpoint too many, never one too few.
        prepared.checkpointer.remove()
        return result


@dataclass(frozen=True)
class PreparedTask:
    """A task with everything that its training needs."""

    task: Task
    start: InitialState
    images: ImageDataset
    data: SplitData
    engine: SelectedEngine
    checkpointer: StoreCheckpointer
    job: TrainingJob
    lock: RunLock


class ChainFeed:
    """Feeds chains to a stack: when a run ends, it is committed, and the next run of its chain joins the stack.

    Implements the stacked engine's `JobSource`.
    """

    def __init__(self, worker: Worker, chains: Sequence[Chain], should_stop: ShouldStop) -> None:
        self._worker, self._should_stop = worker, should_stop
        self._waiting = deque(chains)
        self._in_stack: dict[int, tuple[PreparedTask, Chain, float]] = {}
        """`id(job)` -> prepared task, its chain, and the seconds that its preparation took."""
        self._stack_key: object = None
        self._error: UserError | SystemFailure | None = None
        """Error of a task that could not be prepared, raised once the rest of the stack has saved checkpoints."""
        self.results: list[TaskResult] = []

    @property
    def next_task(self) -> Task | None:
        """First task of the first waiting chain; it determines the network and recipe of the next stack."""
        return self._waiting[0][0] if self._waiting else None

    def record(self, result: TaskResult) -> None:
        """Record the result of `next_task`."""
        self._finish(self._waiting.popleft(), result)

    def train_stack(self, engine: SelectedEngine, stack_size: int) -> None:
        """Train the first chain and all chains of the same kind, at most `stack_size` runs at once."""
        self._stack_key = stack_key(self._waiting[0][0])
        try:
            engine.train_stream(self, stack_size)
        except TaskInterrupted:
            raise self._error or TaskInterrupted from None
        finally:
            # Empty unless the stack was interrupted.
            for prepared, _, _ in self._in_stack.values():
                prepared.lock.release()

    def next_jobs(self, limit: int) -> list[tuple[TrainingJob, SplitData]]:
        """Return at most `limit` trainings that can join the stack.

        Raises UserError and SystemFailure of a task that cannot start, after the running ones have saved checkpoints.
        """
        if self._error is not None:
            raise self._error
        joining: list[tuple[TrainingJob, SplitData]] = []
        other_kinds: list[Chain] = []
        while self._waiting and len(joining) < limit:
            chain = self._waiting.popleft()
            if stack_key(chain[0]) != self._stack_key:
                other_kinds.append(chain)
                continue
            began = time.perf_counter()
            try:
                prepared = self._worker.prepare(chain[0], self._is_stopping)
            except (UserError, SystemFailure) as error:
                # Jobs in training besides those that are just joining: they get the chance to save a checkpoint, as
                # `_is_stopping` is now True for them. Without any, the error can be raised at once.
                if len(self._in_stack) == len(joining):
                    raise
                self._error = error
                return []
            if isinstance(prepared, TaskResult):
                self._finish(chain, prepared)
            else:
                self._in_stack[id(prepared.job)] = prepared, chain, time.perf_counter() - began
                joining.append((prepared.job, prepared.data))
        # Back to the front in their old order.
        self._waiting.extendleft(reversed(other_kinds))
        return joining

    def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
        """Commit a training that ended. `seconds`: its share of the stack's time."""
        prepared, chain, preparation = self._in_stack.pop(id(job))
        # A run's duration: its preparation, its share of the stack, and the commit that starts now.
        began = time.perf_counter() - preparation - seconds
        self._finish(chain, self._worker.commit(prepared, outcome, lambda: time.perf_counter() - began))

    def _is_stopping(self) -> bool:
        return self._error is not None or self._should_stop()

    def _finish(self, chain: Chain, result: TaskResult) -> None:
        self.results.append(result)
        if result.status == "finished" and len(chain) > 1:
            # To the front: the child's initial state is made from the parent that is still in memory.
            self._waiting.appendleft(chain[1:])


def _make_job(task: Task, start: InitialState, checkpointer: Checkpointer) -> TrainingJob:
    run = task.run
    snapshots = task.snapshots - {"end"} if run.is_trained else frozenset()
    if run.learning is not None:
        # The mask itself is read from the logits at this point.
        snapshots = frozenset({"lowest_validation_loss"})
    loss = load_loss(run)
    return TrainingJob(run_network(run), start, run.recipe, run.seed, snapshots, checkpointer, run.learning, loss)
