"""From jobs to outcomes: which are stacked, and how they go on together until each is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from supermask.engines.choice import Precision, check_precision
from supermask.engines.job import Data, Job
from supermask.engines.loop import Training
from supermask.engines.reference import tiny_is_zero
from supermask.engines.stacked.convolutions import ways_here
from supermask.engines.stacked.precision import products_in
from supermask.engines.stacked.replica import Replica, Together, outcome_on_cpu
from supermask.engines.stacked.stack import Stack
from supermask.types import Outcome

Ways = Mapping[str, str]
"""How each convolution is computed, by its layer's name."""


class Feed(Protocol):
    """Where a stack's trainings come from, and go to."""

    def more(self, room: int) -> Sequence[tuple[Job, Data]]:
        """At most `room` trainings that join now, of the stack's network, recipe and learning.

        None: there are none now. Asked wherever trainings end; and, while there is room, wherever they are evaluated.
        """

    def ended(self, job: Job, outcome: Outcome, seconds: float) -> None:
        """A training came to its end (`seconds`: its share of the stack's time); asked before `more` is again.

        `job` is the very object that `more` gave.
        """


def train_from(
    feed: Feed, size: int, device: str = "cpu", precision: str = "float32", ways: Ways | None = None
) -> None:
    """Trains what the feed gives, at most `size` at once, until it gives nothing and all have ended.

    Jobs of one seed share their batches if they have the same `Data` object and came together. `precision`: of
    products, see `choice.Precision`. `ways`: how convolutions are computed (default: the fastest, as measured here).
    Raises UserError for a precision that the device does not have, and whatever the feed raises.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    place = torch.device(device)
    fed = _Fed(size, place, check_precision(precision, place.type), ways)
    joining = feed.more(size)
    while joining or fed.trainings:
        assert len(joining) <= size - len(fed.trainings), "more trainings than there is room for"
        for job, outcome, seconds in fed.go_on(joining):
            feed.ended(job, outcome, seconds)
        joining = feed.more(fed.room) if fed.room else ()


def train(
    jobs: Sequence[Job], data: Sequence[Data], device: str = "cpu", precision: str = "float32", ways: Ways | None = None
) -> list[Outcome]:
    """Trains all jobs to their outcomes, those of one network and recipe at once; `data[i]` is the data of `jobs[i]`.

    Jobs of one seed share their batches if they have the same `Data` object. `precision`, `ways` and errors: as with
    `train_from`. Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    # Of their own, should one be given twice.
    own = [replace(job) for job in jobs]
    given = _AtOnce()
    for numbers in _stacks(own, data):
        given.waiting = [(own[i], data[i]) for i in numbers]
        train_from(given, len(numbers), device, precision, ways)
    return [given.outcomes[id(job)] for job in own]


class _AtOnce:
    """Feeds all that there is at the beginning."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Job, Data]] = []
        self.outcomes: dict[int, Outcome] = {}

    def more(self, room: int) -> list[tuple[Job, Data]]:
        now, self.waiting = self.waiting, []
        return now

    def ended(self, job: Job, outcome: Outcome, seconds: float) -> None:
        self.outcomes[id(job)] = outcome


def _stacks(jobs: Sequence[Job], data: Sequence[Data]) -> list[list[int]]:
    """Which jobs go together."""
    stacks: dict[Any, list[int]] = {}
    for i, (job, d) in enumerate(zip(jobs, data, strict=True)):
        stacks.setdefault(_kind(job, d), []).append(i)
    return list(stacks.values())


def _kind(job: Job, data: Data) -> Any:
    """What all of a stack have in common."""
    return job.layers, job.recipe, job.learning, data.pixel_maximum


class _Fed:
    """A stack in training: who is in it, and how much of its time each has taken."""

    def __init__(self, size: int, device: torch.device, precision: Precision, ways: Ways | None) -> None:
        self._size, self._device, self._precision, self._ways = size, device, precision, ways
        self._kind: Any = None
        self._together: Together | None = None
        self.trainings: dict[Replica, Training] = {}
        self._left: list[Replica] = []
        """Those whose places are free."""
        self._seconds: dict[Replica, float] = {}

    @property
    def room(self) -> int:
        """For how many others. Whoever joined where only a point is kept would be evaluated at pauses of its own."""
        here = self._left or any(t.iteration % t.job.recipe.evaluate_every == 0 for t in self.trainings.values())
        return self._size - len(self.trainings) if here else 0

    def go_on(self, joining: Sequence[tuple[Job, Data]]) -> list[tuple[Job, Outcome, float]]:
        """Lets these join, and trains all to the next pause of one of them; returns those that ended there.

        How numbers are computed here holds for training alone, and not for what the feed computes.
        """
        with tiny_is_zero(), products_in(self._precision, self._device):
            self._join(joining)
            if all(training.left for training in self.trainings.values()):
                self._train()
            return self._end([r for r, training in self.trainings.items() if not training.left])

    def _join(self, joining: Sequence[tuple[Job, Data]]) -> None:
        kinds = [_kind(job, d) for job, d in joining]
        self._kind = self._kind or kinds[0]
        assert all(kind == self._kind for kind in kinds), "trainings that cannot be stacked"
        # Those that see the same batches become neighbours.
        joining = sorted(joining, key=lambda one: (one[0].seed, id(one[1]), one[0].start.first_iteration))
        if self._together is None:
            self._together = Together(self._stack(joining))
            made = [self._together.add(job, d) for job, d in joining]
        elif joining or self._left:
            made = self._together.renew(self._left, joining)
        else:
            return
        self._left = []
        self._seconds |= dict.fromkeys(made, 0.0)
        with self._shared(made):
            new = {r: Training(r, job, d) for r, (job, d) in zip(made, joining, strict=True)}
            self.trainings |= new
            self._together.pausing = made
            for training in new.values():
                training.begin()

    def _stack(self, joining: Sequence[tuple[Job, Data]]) -> Stack:
        jobs, data = [job for job, _ in joining], [d for _, d in joining]
        layers, batch = jobs[0].layers, jobs[0].recipe.batch_size
        ways = self._ways
        if ways is None:
            ways = ways_here(layers, batch, self._size, str(self._device), self._precision)
        return Stack(jobs, data, self._device, self._precision, ways)

    def _train(self) -> None:
        """To the next pause of one of them."""
        together = self._together
        assert together is not None
        trainings = [self.trainings[replica] for replica in together.replicas]
        steps = min(training.left for training in trainings)
        together.pausing = [r for r, t in zip(together.replicas, trainings, strict=True) if t.left == steps]
        with self._shared(together.replicas):
            losses = together.train([training.iteration for training in trainings], steps)
        raised: BaseException | None = None
        with self._shared(together.pausing):
            for training, own in zip(trainings, losses, strict=True):
                # One may be told to stop when it has saved its checkpoint: the others save theirs.
                try:
                    training.passed(own)
                except BaseException as error:
                    raised = raised or error
        if raised is not None:
            raise raised

    def _end(self, ended: list[Replica]) -> list[tuple[Job, Outcome, float]]:
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


def _outcome(training: Training, replica: Replica) -> Outcome:
    # First: its weights are then put back to those of the lowest validation loss.
    passed = replica.last_pass() if training.job.learning is not None else {}
    return replace(outcome_on_cpu(training.outcome()), last_pass=passed)
