"""One network of a stack, as the training loop sees it, and joint evaluation of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import proxy

from torch import Tensor

from supermask.core.types import NetworkState, Snapshot, SplitData, TrainingResult, Weights
from supermask.engines.job import Array, TrainingJob
from supermask.engines.reference import gradient
from supermask.engines.stacked.stack import Stack
from supermask.engines.training import OptimizerState, TrainingLoop


class Replica:
    """The network of one slot of a stack; an `EvaluatedNetwork` of the training loop.

    Copies of its state stay on the device until `state_to_cpu`.
    """

    def __init__(self, group: ReplicaGroup, job: TrainingJob, data: SplitData, slot: int) -> None:
        # A weak reference: a reference cycle would keep this stack in the GPU's memory beside the next one, until
        # Python's cycle collector happens to run.
        self._group: ReplicaGroup = proxy(group)
        self._job, self._data = job, data
        self.slot = slot
        """Index on the stack's leading axis; it changes when the stack is compacted."""
        self.has_trained = False
        """True after its first training step here; a run resumed at its last iteration has none."""

    @property
    def _stack(self) -> Stack:
        return self._group.stack

    def load(self, state: NetworkState) -> None:
        self._group.copy_improved()
        self._stack.load(self.slot, state)
        self._group.forget_evaluations(self)

    def state(self) -> NetworkState:
        stack = self._stack
        return NetworkState(*(self._select(tensors) for tensors in (stack.weights, stack.unmasked, stack.logits)))

    def keep_best(self) -> None:
        """Keep the present state as that of lowest validation loss."""
        self._group.improved.add(self)

    def best_state(self) -> NetworkState:
        """The state of the last `keep_best`: views, valid until the next one."""
        self._group.copy_improved()
        return self._stack.best_state(self.slot)

    def gradient(self, iteration: int) -> Weights:
        # Computed by the reference engine, once per run, so that `snip` and `grad` scores are bit-identical to its own.
        return gradient(self._job, self._data, state_to_cpu(self.state()), iteration)

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        return self._group.evaluate(self, images, labels)

    def is_evaluated_on(self, images: Array) -> bool:
        """True if these are its validation or its test images."""
        return images is self._data.validation_images or images is self._data.test_images

    def optimizer_state(self) -> OptimizerState:
        stack = self._stack
        return {
            name: {
                moment_name: moment[self.slot].to("cpu", copy=True)
                for moment_name, moment in zip(stack.moment_names, moments, strict=True)
            }
            for name, moments in stack.optimizer_state.items()
        }

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        stack = self._stack
        for name, moments in state.items():
            for moment_name, moment in zip(stack.moment_names, stack.optimizer_state[name], strict=True):
                moment[self.slot].copy_(moments[moment_name])

    def last_sampled_weights(self) -> Weights:
        """Masked weights of the last training pass, for a learned mask."""
        # A run resumed at its last iteration has no training pass: the first evaluation sample stands in.
        weights = self._stack.last_sampled_weights if self.has_trained else self._stack.first_sample()
        return {name: weights[name][self.slot].to("cpu", copy=True) for name in self._stack.logits}

    def _select(self, stacked: Weights) -> Weights:
        return {name: tensor.detach()[self.slot].clone() for name, tensor in stacked.items()}


class ReplicaGroup:
    """The replicas of a stack; evaluates all that pause at the same iteration in one pass over the images.

    The training loop asks for one replica at a time. The first request evaluates all of `pausing`; the others read
    their cached numbers.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.replicas: list[Replica] = []
        """By slot."""
        self.pausing: list[Replica] = []
        """Replicas that are evaluated next."""
        self.improved: set[Replica] = set()
        """Replicas whose present state is that of lowest validation loss and is not yet copied."""
        self._evaluations: dict[tuple[Replica, int], tuple[float, float]] = {}
        """(replica, id of the images) -> (loss, accuracy) of its present weights."""

    def add(self, job: TrainingJob, data: SplitData) -> Replica:
        """The replica of the next slot."""
        self.replicas.append(Replica(self, job, data, len(self.replicas)))
        return self.replicas[-1]

    def train(self, first_iterations: list[int], steps: int) -> Array:
        """`Stack.train`. All cached evaluations become invalid."""
        self.copy_improved()
        self._evaluations.clear()
        for replica in self.replicas:
            replica.has_trained = True
        return self.stack.train(first_iterations, steps)

    def copy_improved(self) -> None:
        """Copy the states of `improved`, all at once. Called before any weight or slot changes."""
        if self.improved:
            self.stack.keep_best(sorted(replica.slot for replica in self.improved))
            self.improved.clear()

    def forget_evaluations(self, replica: Replica) -> None:
        """Forget the cached evaluations of one replica, whose weights have changed."""
        self._evaluations = {key: numbers for key, numbers in self._evaluations.items() if key[0] is not replica}

    def evaluate(self, replica: Replica, images: Array, labels: Array) -> tuple[float, float]:
        """(loss, accuracy) of one replica; evaluates with it all pausing replicas that use the same images."""
        if (replica, id(images)) not in self._evaluations:
            others = [r for r in self.pausing if r is not replica and r.is_evaluated_on(images)]
            pending = [replica, *(r for r in others if (r, id(images)) not in self._evaluations)]
            pending.sort(key=lambda r: r.slot)
            numbers = self.stack.evaluate([r.slot for r in pending], images, labels)
            self._evaluations |= {(r, id(images)): pair for r, pair in zip(pending, numbers, strict=True)}
        return self._evaluations[replica, id(images)]

    def replace(self, leaving: Sequence[Replica], joining: Sequence[tuple[TrainingJob, SplitData]]) -> list[Replica]:
        """Replace finished replicas; grow the stack if there are more new ones, compact it if fewer."""
        self.copy_improved()
        self._evaluations.clear()
        free = sorted(replica.slot for replica in leaving)
        reused, count = free[: len(joining)], len(self.replicas)
        slots = [*reused, *range(count, count + len(joining) - len(reused))]
        new = [Replica(self, job, d, slot) for (job, d), slot in zip(joining, slots, strict=True)]
        for replica in new:
            self.replicas[replica.slot : replica.slot + 1] = [replica]
        jobs, data = [job for job, _ in joining], [d for _, d in joining]
        if reused:
            self.stack.replace(reused, jobs[: len(reused)], data[: len(reused)])
        if len(reused) < len(joining):
            self.stack.append(jobs[len(reused) :], data[len(reused) :])
        if len(reused) < len(free):
            self._compact(set(free[len(reused) :]))
        return new

    def _compact(self, free: set[int]) -> None:
        self.replicas = [r for r in self.replicas if r.slot not in free]
        if self.replicas:
            self.stack.select([r.slot for r in self.replicas])
        for slot, replica in enumerate(self.replicas):
            replica.slot = slot


IN_STACK = NetworkState({}, {})
"""Stands for a state of lowest validation loss that is a row of the stack's."""


class ReplicaLoop(TrainingLoop):
    """Training loop of a replica. The states of lowest validation loss of a stack are stacked too, and copied together.

    Each loop decides for itself if a state is its best; the copies wait until all of them have decided.
    """

    network: Replica

    def _keep_best(self) -> None:
        self.network.keep_best()
        # Replaces the state of a checkpoint, too, from which the run resumed.
        self.snapshots["lowest_validation_loss"] = IN_STACK

    def _kept_snapshots(self) -> dict[Snapshot, NetworkState]:
        if self.snapshots.get("lowest_validation_loss") is not IN_STACK:
            return self.snapshots
        return self.snapshots | {"lowest_validation_loss": self.network.best_state()}


def state_to_cpu(state: NetworkState) -> NetworkState:
    """The state with all tensors on the CPU, where the rest of the program expects them."""
    return NetworkState(*(_to_cpu(tensors) for tensors in (state.weights, state.unmasked, state.logits)))


def result_to_cpu(result: TrainingResult) -> TrainingResult:
    """The result with copies of all tensors on the CPU."""
    snapshots = {point: state_to_cpu(state) for point, state in result.snapshots.items()}
    return replace(result, end=state_to_cpu(result.end), snapshots=snapshots)


def _to_cpu(tensors: dict[str, Tensor]) -> Weights:
    # copy=True: on a CPU a state of lowest validation loss is a row of the stack, which the next run overwrites.
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
