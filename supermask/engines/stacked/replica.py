"""One network of a stack, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import proxy

from torch import Tensor

from supermask.core.types import NetworkState, SplitData, TrainingResult, Weights
from supermask.engines.job import Array, TrainingJob
from supermask.engines.reference import gradient
from supermask.engines.stacked.stack import Stack
from supermask.engines.training import OptimizerState


class Replica:
    """The loop's `Network`. Its copies stay on the device until `on_cpu`."""

    def __init__(self, together: ReplicaGroup, job: TrainingJob, data: SplitData, place: int) -> None:
        # Weakly: a ring of references would keep a stack in a GPU's memory beside the next one.
        self._together: ReplicaGroup = proxy(together)
        self._job, self._data = job, data
        self.place = place
        self.has_trained = False
        """Whether it was trained here."""

    @property
    def _stack(self) -> Stack:
        return self._together.stack

    def load(self, state: NetworkState) -> None:
        self._stack.load(self.place, state)
        self._together.invalidate(self)

    def state(self) -> NetworkState:
        stack = self._stack
        return NetworkState(*(self._own(tensors) for tensors in (stack.weights, stack.others, stack.logits)))

    def gradient(self, iteration: int) -> Weights:
        # Once a training: the reference's own, so that scores are the same bits.
        return gradient(self._job, self._data, on_cpu(self.state()), iteration)

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        return self._together.evaluate(self, images, labels)

    def evaluates_on(self, images: Array) -> bool:
        """Whether these are its validation or its test images."""
        return images is self._data.validation_images or images is self._data.test_images

    def optimizer_state(self) -> OptimizerState:
        stack = self._stack
        return {
            name: {key: kept[self.place].to("cpu", copy=True) for key, kept in zip(stack.names, moments, strict=True)}
            for name, moments in stack.optimizer_state.items()
        }

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        stack = self._stack
        for name, own in state.items():
            for key, kept in zip(stack.names, stack.optimizer_state[name], strict=True):
                kept[self.place].copy_(own[key])

    def last_pass(self) -> Weights:
        """Of a mask that is learned: the weights that its last pass computed with."""
        # Gone on from a checkpoint at its very end, there was no pass.
        passed = self._stack.passed if self.has_trained else self._stack.first_sample()
        return {name: passed[name][self.place].to("cpu", copy=True) for name in self._stack.logits}

    def _own(self, stacked: Weights) -> Weights:
        return {name: tensor.detach()[self.place].clone() for name, tensor in stacked.items()}


class ReplicaGroup:
    """Whose measuring can be done at once: of those that pause at the same time, with one look at the images."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.replicas: list[Replica] = []
        self.pausing: list[Replica] = []
        """Those that are going to be measured now."""
        self._found: dict[tuple[Replica, int], tuple[float, float]] = {}

    def add(self, job: TrainingJob, data: SplitData) -> Replica:
        """The network of the next place."""
        self.replicas.append(Replica(self, job, data, len(self.replicas)))
        return self.replicas[-1]

    def train(self, firsts: list[int], steps: int) -> Array:
        """`Stack.train`; what was measured is forgotten."""
        self._found.clear()
        for replica in self.replicas:
            replica.has_trained = True
        return self.stack.train(firsts, steps)

    def invalidate(self, replica: Replica) -> None:
        """What was measured of it does not hold any more."""
        self._found = {key: found for key, found in self._found.items() if key[0] is not replica}

    def evaluate(self, replica: Replica, images: Array, labels: Array) -> tuple[float, float]:
        """Measures it, and with it those that are going to be measured on the same images."""
        if (replica, id(images)) not in self._found:
            others = [r for r in self.pausing if r is not replica and r.evaluates_on(images)]
            new = [replica, *(r for r in others if (r, id(images)) not in self._found)]
            new.sort(key=lambda r: r.place)
            numbers = self.stack.measure([r.place for r in new], images, labels)
            self._found |= {(r, id(images)): found for r, found in zip(new, numbers, strict=True)}
        return self._found[replica, id(images)]

    def replace(self, leaving: Sequence[Replica], joining: Sequence[tuple[TrainingJob, SplitData]]) -> list[Replica]:
        """Newcomers take the places of those who leave; new ones where there are more, else the others close ranks."""
        self._found.clear()
        free = sorted(replica.place for replica in leaving)
        taken, count = free[: len(joining)], len(self.replicas)
        places = [*taken, *range(count, count + len(joining) - len(taken))]
        made = [Replica(self, job, d, place) for (job, d), place in zip(joining, places, strict=True)]
        for replica in made:
            self.replicas[replica.place : replica.place + 1] = [replica]
        jobs, data = [job for job, _ in joining], [d for _, d in joining]
        if taken:
            self.stack.replace(taken, jobs[: len(taken)], data[: len(taken)])
        if len(taken) < len(joining):
            self.stack.append(jobs[len(taken) :], data[len(taken) :])
        if len(taken) < len(free):
            self._compact(set(free[len(taken) :]))
        return made

    def _compact(self, free: set[int]) -> None:
        self.replicas = [r for r in self.replicas if r.place not in free]
        if self.replicas:
            self.stack.select([r.place for r in self.replicas])
        for place, replica in enumerate(self.replicas):
            replica.place = place


def on_cpu(state: NetworkState) -> NetworkState:
    """A state as the rest of the program has them."""
    return NetworkState(*(_to_cpu(tensors) for tensors in (state.weights, state.unmasked, state.logits)))


def outcome_on_cpu(outcome: TrainingResult) -> TrainingResult:
    """An outcome as the rest of the program has them."""
    return replace(outcome, end=on_cpu(outcome.end), points={p: on_cpu(s) for p, s in outcome.points.items()})


def _to_cpu(tensors: dict[str, Tensor]) -> Weights:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
