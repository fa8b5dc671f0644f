"""From jobs to outcomes: which are stacked, and how they go on together until each is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from supermask.core.types import SplitData, TrainingResult
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import Precision, validate_precision
from supermask.engines.stacked.convolutions import fastest_algorithms
from supermask.engines.stacked.device import matmul_precision
from supermask.engines.stacked.replica import Replica, ReplicaGroup, outcome_on_cpu
from supermask.engines.stacked.stack import Stack
from supermask.engines.training import TrainingLoop

ConvAlgorithms = Mapping[str, str]
"""How each convolution is computed, by its layer's name."""


class JobSource(Protocol):
    """Where a stack's trainings come from, and go to."""

    def next_jobs(self, room: int) -> Sequence[tuple[TrainingJob, SplitData]]:
        """At most `room` trainings that join now, of the stack's network, recipe and learning.

        None: there are none now. Asked wherever trainings end; and, while there is room, wherever they are evaluated.
        """

    def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
        """A training came to its end (`seconds`: its share of the stack's time); asked before `more` is again.

        `job` is the very object that `more` gave.
        """


def train_stream(
    feed: JobSource, size: int, device: str = "cpu", precision: str = "float32", ways: ConvAlgorithms | None = None
) -> None:
    """Trains what the feed gives, at most `size` at once, until it gives nothing and all have ended.

    Jobs of one seed share their batches if they have the same `Data` object and came together. `precision`: of
    products, see `choice.Precision`. `ways`: how convolutions are computed (default: the fastest, as measured here).
    Raises UserError for a precision that the device does not have, and whatever the feed raises.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    place = torch.device(device)
    fed = _StackRunner(size, place, validate_precision(precision, place.type), ways)
    joining = feed.next_jobs(size)
    while joining or fed.trainings:
        assert len(joining) <= size - len(fed.trainings), "more trainings than there is room for"
        for job, outcome, seconds in fed.run_to_next_stop(joining):
            feed.on_finished(job, outcome, seconds)
        joining = feed.next_jobs(fed.free_slots) if fed.free_slots else ()


def train(
    jobs: Sequence[TrainingJob],
    data: Sequence[SplitData],
    device: str = "cpu",
    precision: str = "float32",
    ways: ConvAlgorithms | None = None,
) -> list[TrainingResult]:
    """Trains all jobs to their outcomes, those of one network and recipe at once; `data[i]` is the data of `jobs[i]`.

    Jobs of one seed share their batches if they have the same `Data` object. `precision`, `ways` and errors: as with
    `train_from`. Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    # Of their own, should one be given twice.
    own = [replace(job) for job in jobs]
    given = _FixedJobs()
    for numbers in _stacks(own, data):
        given.waiting = [(own[i], data[i]) for i in numbers]
        train_stream(given, len(numbers), device, precision, ways)
    return [given.outcomes[id(job)] for job in own]


class _FixedJobs:
    """Feeds all that there is at the beginning."""

    def __init__(self) -> None:
        self.waiting: list[tuple[TrainingJob, SplitData]] = []
        self.outcomes: dict[int, TrainingResult] = {}

    def next_jobs(self, room: int) -> list[tuple[TrainingJob, SplitData]]:
        now, self.waiting = self.waiting, []
        return now

    def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
        self.outcomes[id(job)] = outcome


def _stacks(jobs: Sequence[TrainingJob], data: Sequence[SplitData]) -> list[list[int]]:
    """Which jobs go together."""
    stacks: dict[Any, list[int]] = {}
    for i, (job, d) in enumerate(zip(jobs, data, strict=True)):
        stacks.setdefault(_stack_key(job, d), []).append(i)
    return list(stacks.values())


def _stack_key(job: TrainingJob, data: SplitData) -> Any:
    """What all of a stack have in common."""
    return job.layers, job.recipe, job.learning, data.pixel_maximum


class _StackRunner:
    """A stack in training: who is in it, and how much of its time each has taken."""

    def __init__(self, size: int, device: torch.device, precision: Precision, ways: ConvAlgorithms | None) -> None:
        self._size, self._device, self._precision, self._ways = size, device, precision, ways
        self._kind: Any = None
        self._together: ReplicaGroup | None = None
        self.trainings: dict[Replica, TrainingLoop] = {}
        self._left: list[Replica] = []
        """Those whose places are free."""
        self._seconds: dict[Replica, float] = {}

    @property
    def free_slots(self) -> int:
        """For how many others. Whoever joined where only a point is kept would be evaluated at pauses of its own."""
        here = self._left or any(t.iteration % t.job.recipe.evaluate_every == 0 for t in self.trainings.values())
        return self._size - len(self.trainings) if here else 0

    def run_to_next_stop(
        self, joining: Sequence[tuple[TrainingJob, SplitData]]
    ) -> list[tuple[TrainingJob, TrainingResult, float]]:
        """Lets these join, and trains all to the next pause of one of them; returns those that ended there.

        How numbers are computed here holds for training alone, and not for what the feed computes.
        """
        with flush_denormals(), matmul_precision(self._precision, self._device):
            self._join(joining)
            if all(training.steps_to_next_stop for training in self.trainings.values()):
                self._train()
            return self._end([r for r, training in self.trainings.items() if not training.steps_to_next_stop])

    def _join(self, joining: Sequence[tuple[TrainingJob, SplitData]]) -> None:
        kinds = [_stack_key(job, d) for job, d in joining]
        self._kind = self._kind or kinds[0]
        assert all(kind == self._kind for kind in kinds), "trainings that cannot be stacked"
        # Those that see the same batches become neighbours.
        joining = sorted(joining, key=lambda one: (one[0].seed, id(one[1]), one[0].start.first_iteration))
        if self._together is None:
            self._together = ReplicaGroup(self._stack(joining))
            made = [self._together.add(job, d) for job, d in joining]
        elif joining or self._left:
            made = self._together.replace(self._left, joining)
        else:
            return
        self._left = []
        self._seconds |= dict.fromkeys(made, 0.0)
        with self._shared(made):
            new = {r: TrainingLoop(r, job, d) for r, (job, d) in zip(made, joining, strict=True)}
            self.trainings |= new
            self._together.pausing = made
            for training in new.values():
                training.evaluate_initial()

    def _stack(self, joining: Sequence[tuple[TrainingJob, SplitData]]) -> Stack:
        jobs, data = [job for job, _ in joining], [d for _, d in joining]
        layers, batch = jobs[0].layers, jobs[0].recipe.batch_size
        ways = self._ways
        if ways is None:
            ways = fastest_algorithms(layers, batch, self._size, str(self._device), self._precision)
        return Stack(jobs, data, self._device, self._precision, ways)

    def _train(self) -> None:
        """To the next pause of one of them."""
        together = self._together
        assert together is not None
        trainings = [self.trainings[replica] for replica in together.replicas]
        steps = min(training.steps_to_next_stop for training in trainings)
        together.pausing = [
            r for r, t in zip(together.replicas, trainings, strict=True) if t.steps_to_next_stop == steps
        ]
        with self._shared(together.replicas):
            losses = together.train([training.iteration for training in trainings], steps)
        raised: BaseException | None = None
        with self._shared(together.pausing):
            for training, own in zip(trainings, losses, strict=True):
                # One may be told to stop when it has saved its checkpoint: the others save theirs.
                try:
                    training.advance(own)
                except BaseException as error:
                    raised = raised or error
        if raised is not None:
            raise raised

    def _end(self, ended: list[Replica]) -> list[tuple[TrainingJob, TrainingResult, float]]:
        assert self._together is not None
        self._together.pausing = self._left = ended
        with self._shared(ended):
            outcomes = [_outcome(self.trainings[replica], replica) for replica in ended]
        jobs = [self.trainings.pop(replica).job for replica in ended]
        return list(zip(jobs, outcomes, [self._seconds.pop(replica) for replica in ended], strict=True))

    @contextmanager
    def _shared(self, replicas: Sequence[Replica]) -> Iterator[None]:
        """What is done here is done for these, in equal shares."""
        began = time.perf_counter()
        yield
        for replica in replicas:
            self._seconds[replica] += (time.perf_counter() - began) / len(replicas)


def _outcome(training: TrainingLoop, replica: Replica) -> TrainingResult:
    # First: its weights are then put back to those of the lowest validation loss.
    passed = replica.last_pass() if training.job.learning is not None else {}
    return replace(outcome_on_cpu(training.result()), last_sampled_weights=passed)
