"""Tasks, from start to commit: what a worker process does, whichever executor started it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from supermask.datasets import Images
from supermask.engines.job import Checkpoints, Data, Job
from supermask.errors import MachineError, UserError
from supermask.execute.checkpoints import Interrupted, StoredCheckpoints
from supermask.execute.committing import Committing, judged
from supermask.execute.data import DataHere, check_same_data
from supermask.execute.engine import Engine, Engines
from supermask.execute.stored import TRACED, found
from supermask.execute.tasks import Line, Result, Site, Task, kind_of
from supermask.lineage import Lineage, NotKept, layers_of
from supermask.store import Damaged, Store
from supermask.types import Outcome, Start

Done = TypeVar("Done")

Stopping = Callable[[], bool]
"""Asked at every evaluation: if true, a checkpoint is saved and Interrupted raised."""


def never() -> bool:
    """Nobody stops it."""
    return False


@lru_cache(maxsize=1)
def worker_at(site: Site) -> Worker:
    """This process's worker: its data set and its last few starts stay in memory from task to task."""
    return Worker(site)


class Worker:
    """Trains runs and commits them. What is found damaged on the way is set aside."""

    def __init__(self, site: Site) -> None:
        import torch

        torch.set_num_threads(site.threads)
        self.site = site
        self.store = Store(site.store)
        self.lineage = Lineage(self.store)
        self._engines = Engines(site, self.store)
        self._data = DataHere(site.data_dir)
        self._committing = Committing(self.store, self.lineage)

    def perform(self, task: Task, stopping: Stopping = never) -> Result:
        """Trains one run, certifies and commits it. Raises UserError, MachineError and Interrupted."""
        began = time.perf_counter()
        begun = self.begin(task, stopping)
        if isinstance(begun, Result):
            return begun
        outcome = begun.engine.train(begun.job, begun.data)
        return self.finish(begun, outcome, lambda: time.perf_counter() - began)

    def perform_lines(self, lines: Sequence[Line], stopping: Stopping = never) -> list[Result]:
        """The same, each line from its first task on until one does not finish; results in the order of their ends.

        Lines are trained side by side where the stacked engine was chosen, else one after another.
        """
        sides = SideBySide(self, lines, stopping)
        while (head := sides.head) is not None:
            if (size := self._engines.stack_of(head)) == 1:
                sides.went(self.perform(head, stopping))
            else:
                sides.train(self._engines.engine(head), size)
        return sides.results

    def begin(self, task: Task, stopping: Stopping) -> Begun | Result:
        """A training that can begin; or what became of it already, or why it cannot."""
        # Another process on the same store may have done it since the schedule was made.
        return self._attempt(task, lambda: self._found(task) or self._begun(task, stopping))

    def finish(self, begun: Begun, outcome: Outcome, seconds: Callable[[], float]) -> Result:
        """Certifies and commits; `seconds`: what the run took, asked when its certificate is made."""
        return self._attempt(begun.task, lambda: self._finished(begun, outcome, seconds))

    def _attempt(self, task: Task, do: Callable[[], Done]) -> Done | Result:
        try:
            return do()
        except NotKept as gone:
            said = f"{gone.key} is not in the store any more: it is trained again."
            return Result(task.run.id, "not_started", message=said, lacking=gone.key)
        except Damaged as damage:
            self.store.quarantine(damage.key, damage.what)
            said = f"{damage.key} in the store is damaged: {damage.what}. It was set aside and is computed again."
            return Result(task.run.id, "not_started", message=said, lacking=damage.key)

    def _found(self, task: Task) -> Result | None:
        return found(self.store, task)

    def _begun(self, task: Task, stopping: Stopping) -> Begun:
        run, start, images = task.run, self._start(task), self._data.images(task.run)
        if (before := run.id if task.retrace else run.parent) is not None:
            check_same_data(self.store, before, images)
        engine, every = self._engines.engine(task), self.site.checkpoint_seconds
        fingerprint = engine.environment["fingerprint"]
        checkpoints = StoredCheckpoints(self.store, run.id, start, fingerprint, every, stopping, run.recipe.iterations)
        return Begun(task, start, images, self._data.of(run), engine, checkpoints, _job(task, start, checkpoints))

    def _start(self, task: Task) -> Start:
        if task.retrace:
            return self.lineage.parent(task.run.id).start
        try:
            return self.lineage.start_of(task.run)
        except (ValueError, UserError) as error:
            raise UserError(f"run {task.run.id} (level {task.run.level}, seed {task.run.seed}): {error}") from error

    def _finished(self, begun: Begun, outcome: Outcome, seconds: Callable[[], float]) -> Result:
        task, run, start, images = begun.task, begun.task.run, begun.start, begun.images
        if task.retrace:
            self._committing.commit_again(task, start, outcome)
            result = Result(run.id, "finished", seconds(), outcome.metrics, TRACED)
        else:
            if run.learning is not None:
                outcome = judged(run, begun.job, begun.data, outcome, self.site.device)
            certificate = self._committing.certificate(run, start, outcome, images)
            choice = begun.engine.choice
            about = {
                "engine": choice.engine,
                "engine_reason": choice.why,
                "environment": begun.engine.environment,
                "seconds": round(seconds(), 3),
                "data": {"fingerprint": images.fingerprint, "note": images.note},
            }
            result = self._committing.commit(run, start, outcome, certificate, about)
        begun.checkpoints.remove()
        return result


@dataclass(frozen=True)
class Begun:
    """A task whose training can begin."""

    task: Task
    start: Start
    images: Images
    data: Data
    engine: Engine
    checkpoints: StoredCheckpoints
    job: Job


class SideBySide:
    """Lines on their way; feeds a stack with those that are alike: what ends is committed, and its line's next joins.

    The stacked engine's `Feed`.
    """

    def __init__(self, worker: Worker, lines: Sequence[Line], stopping: Stopping) -> None:
        self._worker, self._stopping = worker, stopping
        self._waiting = deque(lines)
        self._in_stack: dict[int, tuple[Begun, Line, float]] = {}
        """By the job's id: what was begun, of which line, and the seconds that its start took."""
        self._kind: object = None
        self._error: UserError | MachineError | None = None
        self.results: list[Result] = []

    @property
    def head(self) -> Task | None:
        """The first task of the first line that waits; the stack's network and recipe are its."""
        return self._waiting[0][0] if self._waiting else None

    def went(self, result: Result) -> None:
        """The first line's first task came to its end."""
        self._ended(self._waiting.popleft(), result)

    def train(self, engine: Engine, size: int) -> None:
        """Trains the first line, and those that are alike, in a stack of at most so many."""
        self._kind = kind_of(self._waiting[0][0])
        try:
            engine.train_from(self, size)
        except Interrupted:
            raise self._error or Interrupted from None

    def more(self, room: int) -> list[tuple[Job, Data]]:
        """Trainings of waiting lines that can join.

        Raises UserError and MachineError for one that cannot begin, after those in training have saved checkpoints.
        """
        if self._error is not None:
            raise self._error
        joining: list[tuple[Job, Data]] = []
        others: list[Line] = []
        while self._waiting and len(joining) < room:
            line = self._waiting.popleft()
            if kind_of(line[0]) != self._kind:
                others.append(line)
                continue
            began = time.perf_counter()
            try:
                begun = self._worker.begin(line[0], self._stops)
            except (UserError, MachineError) as error:
                if len(self._in_stack) == len(joining):
                    raise
                self._error = error
                return []
            if isinstance(begun, Result):
                self._ended(line, begun)
            else:
                self._in_stack[id(begun.job)] = begun, line, time.perf_counter() - began
                joining.append((begun.job, begun.data))
        self._waiting.extendleft(reversed(others))
        return joining

    def ended(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """A training of the stack came to its end."""
        begun, line, before = self._in_stack.pop(id(job))
        since = time.perf_counter() - before - seconds
        self._ended(line, self._worker.finish(begun, outcome, lambda: time.perf_counter() - since))

    def _stops(self) -> bool:
        return self._error is not None or self._stopping()

    def _ended(self, line: Line, result: Result) -> None:
        self.results.append(result)
        if result.status == "finished" and len(line) > 1:
            self._waiting.appendleft(line[1:])


def _job(task: Task, start: Start, checkpoints: Checkpoints) -> Job:
    run, points = task.run, task.points - {"end"} if task.run.trains else frozenset()
    if run.learning is not None:
        # What was learned up to there is the mask.
        points = frozenset({"lowest_validation_loss"})
    return Job(layers_of(run), start, run.recipe, run.seed, points, checkpoints, run.learning)
