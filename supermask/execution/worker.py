"""Tasks, from start to commit: what a worker process does, whichever executor started it."""

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
from supermask.execution.commit import RunCommitter, with_mask_evaluation
from supermask.execution.resources import DatasetCache, EngineSelector, SelectedEngine, check_data_fingerprint
from supermask.execution.tasks import REPLAYED, Chain, Task, TaskResult, WorkerConfig, stack_key, stored_result
from supermask.store import CorruptEntry, Store
from supermask.store.replay import SnapshotMissing, StateReplayer, run_architecture

T = TypeVar("T")

ShouldStop = Callable[[], bool]
"""Asked at every evaluation: if true, a checkpoint is saved and Interrupted raised."""


def never_stop() -> bool:
    """Nobody stops it."""
    return False


@lru_cache(maxsize=1)
def get_worker(site: WorkerConfig) -> Worker:
    """This process's worker: its data set and its last few starts stay in memory from task to task."""
    return Worker(site)


class Worker:
    """Trains runs and commits them. What is found damaged on the way is set aside."""

    def __init__(self, site: WorkerConfig) -> None:
        import torch

        torch.set_num_threads(site.threads)
        self.site = site
        self.store = Store(site.store)
        self.lineage = StateReplayer(self.store)
        self._engines = EngineSelector(site, self.store)
        self._data = DatasetCache(site.data_dir)
        self._committing = RunCommitter(self.store, self.lineage)

    def run_task(self, task: Task, stopping: ShouldStop = never_stop) -> TaskResult:
        """Trains one run, certifies and commits it. Raises UserError, MachineError and Interrupted."""
        began = time.perf_counter()
        begun = self.prepare(task, stopping)
        if isinstance(begun, TaskResult):
            return begun
        outcome = begun.engine.train(begun.job, begun.data)
        return self.commit(begun, outcome, lambda: time.perf_counter() - began)

    def run_chains(self, lines: Sequence[Chain], stopping: ShouldStop = never_stop) -> list[TaskResult]:
        """The same, each line from its first task on until one does not finish; results in the order of their ends.

        Lines are trained side by side where the stacked engine was chosen, else one after another.
        """
        sides = ChainFeed(self, lines, stopping)
        while (head := sides.next_task) is not None:
            if (size := self._engines.stack_size(head)) == 1:
                sides.record(self.run_task(head, stopping))
            else:
                sides.train(self._engines.engine(head), size)
        return sides.results

    def prepare(self, task: Task, stopping: ShouldStop) -> PreparedTask | TaskResult:
        """A training that can begin; or what became of it already, or why it cannot."""
        # Another process on the same store may have done it since the schedule was made.
        return self._guard_damage(task, lambda: self._found(task) or self._prepare(task, stopping))

    def commit(self, begun: PreparedTask, outcome: TrainingResult, seconds: Callable[[], float]) -> TaskResult:
        """Certifies and commits; `seconds`: what the run took, asked when its certificate is made."""
        return self._guard_damage(begun.task, lambda: self._finished(begun, outcome, seconds))

    def _guard_damage(self, task: Task, do: Callable[[], T]) -> T | TaskResult:
        try:
            return do()
        except SnapshotMissing as gone:
            said = f"{gone.key} is not in the store any more: it is trained again."
            return TaskResult(task.run.id, "not_started", message=said, missing_key=gone.key)
        except CorruptEntry as damage:
            self.store.quarantine(damage.key, damage.what)
            said = f"{damage.key} in the store is damaged: {damage.what}. It was set aside and is computed again."
            return TaskResult(task.run.id, "not_started", message=said, missing_key=damage.key)

    def _found(self, task: Task) -> TaskResult | None:
        return stored_result(self.store, task)

    def _prepare(self, task: Task, stopping: ShouldStop) -> PreparedTask:
        run, start, images = task.run, self._start(task), self._data.images(task.run)
        if (before := run.id if task.replay else run.parent) is not None:
            check_data_fingerprint(self.store, before, images)
        engine, every = self._engines.engine(task), self.site.checkpoint_seconds
        fingerprint = engine.environment["fingerprint"]
        checkpoints = StoreCheckpointer(self.store, run.id, start, fingerprint, every, stopping, run.recipe.iterations)
        return PreparedTask(
            task, start, images, self._data.split_for(run), engine, checkpoints, _job(task, start, checkpoints)
        )

    def _start(self, task: Task) -> InitialState:
        if task.replay:
            return self.lineage.parent_run(task.run.id).start
        try:
            return self.lineage.initial_state(task.run)
        except (ValueError, UserError) as error:
            raise UserError(f"run {task.run.id} (level {task.run.level}, seed {task.run.seed}): {error}") from error

    def _finished(self, begun: PreparedTask, outcome: TrainingResult, seconds: Callable[[], float]) -> TaskResult:
        task, run, start, images = begun.task, begun.task.run, begun.start, begun.images
        if task.replay:
            self._committing.commit_replay(task, start, outcome)
            result = TaskResult(run.id, "finished", seconds(), outcome.metrics, REPLAYED)
        else:
            if run.learning is not None:
                outcome = with_mask_evaluation(run, begun.job, begun.data, outcome, self.site.device)
            certificate = self._committing.certificate(run, start, outcome, images)
            choice = begun.engine.choice
            about = {
                "engine": choice.engine,
                "engine_reason": choice.reason,
                "environment": begun.engine.environment,
                "seconds": round(seconds(), 3),
                "data": {"fingerprint": images.fingerprint, "note": images.note},
            }
            result = self._committing.commit(run, start, outcome, certificate, about)
        begun.checkpoints.remove()
        return result


@dataclass(frozen=True)
class PreparedTask:
    """A task whose training can begin."""

    task: Task
    start: InitialState
    images: ImageDataset
    data: SplitData
    engine: SelectedEngine
    checkpoints: StoreCheckpointer
    job: TrainingJob


class ChainFeed:
    """Lines on their way; feeds a stack with those that are alike: what ends is committed, and its line's next joins.

    The stacked engine's `Feed`.
    """

    def __init__(self, worker: Worker, lines: Sequence[Chain], stopping: ShouldStop) -> None:
        self._worker, self._stopping = worker, stopping
        self._waiting = deque(lines)
        self._in_stack: dict[int, tuple[PreparedTask, Chain, float]] = {}
        """By the job's id: what was begun, of which line, and the seconds that its start took."""
        self._kind: object = None
        self._error: UserError | SystemFailure | None = None
        self.results: list[TaskResult] = []

    @property
    def next_task(self) -> Task | None:
        """The first task of the first line that waits; the stack's network and recipe are its."""
        return self._waiting[0][0] if self._waiting else None

    def record(self, result: TaskResult) -> None:
        """The first line's first task came to its end."""
        self._ended(self._waiting.popleft(), result)

    def train(self, engine: SelectedEngine, size: int) -> None:
        """Trains the first line, and those that are alike, in a stack of at most so many."""
        self._kind = stack_key(self._waiting[0][0])
        try:
            engine.train_stream(self, size)
        except TaskInterrupted:
            raise self._error or TaskInterrupted from None

    def next_jobs(self, room: int) -> list[tuple[TrainingJob, SplitData]]:
        """Trainings of waiting lines that can join.

        Raises UserError and MachineError for one that cannot begin, after those in training have saved checkpoints.
        """
        if self._error is not None:
            raise self._error
        joining: list[tuple[TrainingJob, SplitData]] = []
        others: list[Chain] = []
        while self._waiting and len(joining) < room:
            line = self._waiting.popleft()
            if stack_key(line[0]) != self._kind:
                others.append(line)
                continue
            began = time.perf_counter()
            try:
                begun = self._worker.prepare(line[0], self._stops)
            except (UserError, SystemFailure) as error:
                if len(self._in_stack) == len(joining):
                    raise
                self._error = error
                return []
            if isinstance(begun, TaskResult):
                self._ended(line, begun)
            else:
                self._in_stack[id(begun.job)] = begun, line, time.perf_counter() - began
                joining.append((begun.job, begun.data))
        self._waiting.extendleft(reversed(others))
        return joining

    def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
        """A training of the stack came to its end."""
        begun, line, before = self._in_stack.pop(id(job))
        since = time.perf_counter() - before - seconds
        self._ended(line, self._worker.commit(begun, outcome, lambda: time.perf_counter() - since))

    def _stops(self) -> bool:
        return self._error is not None or self._stopping()

    def _ended(self, line: Chain, result: TaskResult) -> None:
        self.results.append(result)
        if result.status == "finished" and len(line) > 1:
            self._waiting.appendleft(line[1:])


def _job(task: Task, start: InitialState, checkpoints: Checkpointer) -> TrainingJob:
    run, points = task.run, task.snapshots - {"end"} if task.run.is_trained else frozenset()
    if run.learning is not None:
        # What was learned up to there is the mask.
        points = frozenset({"lowest_validation_loss"})
    return TrainingJob(run_architecture(run), start, run.recipe, run.seed, points, checkpoints, run.learning)
