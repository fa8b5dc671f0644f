"""From a job to its outcome: the one loop that every engine's trainings go through.

It decides what happens when (points to keep, evaluation, early stopping, divergence, checkpoints) and does no
arithmetic; a stepper does the arithmetic and decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from supermask.core.types import NetworkState, Snapshot, SplitData, TrainingResult, Weights
from supermask.engines.job import Array, MetricTracker, TrainingJob, stopping_points

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_FORMAT = 2
"""Of a checkpoint's arrays: one of another layout is not gone on from."""

LOGITS = "logits."
"""Before a tensor's name, in a checkpoint: the logits of its mask."""

OptimizerState = dict[str, dict[str, "Tensor"]]
"""Tensor name -> the optimiser's per-weight state, by PyTorch's names: `exp_avg`, `exp_avg_sq`; `momentum_buffer`."""


class EvaluatedNetwork(Protocol):
    """One network in training, as this loop looks at it between mini-batches.

    Mini-batches are numbered from the dense network's initialisation; batch, learning rate, the optimiser's step count
    and whatever is drawn follow from that number alone.
    """

    def load(self, state: NetworkState) -> None:
        """Sets every tensor."""

    def state(self) -> NetworkState:
        """A copy of every tensor."""

    def gradient(self, iteration: int) -> Weights:
        """dL/dw of every maskable tensor, pruned weights included, on mini-batch `iteration`; nothing moves."""

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Mean cross-entropy in nats, summed in float64, and accuracy (the first of equal logits counts)."""

    def optimizer_state(self) -> OptimizerState:
        """The optimiser's state; nothing for a tensor that has none."""

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        """The inverse, before mini-batch `iteration`."""


class Trainer(EvaluatedNetwork, Protocol):
    """A network that is trained by itself."""

    def train(self, first: int, last: int) -> Array:
        """Trains on mini-batches `first` to `last - 1`; their losses before each update, float32 `(last - first,)`."""


def run_training(stepper: Trainer, job: TrainingJob, data: SplitData) -> TrainingResult:
    """Trains from the job's start, or from its last checkpoint, to its outcome.

    Test accuracy is measured with the weights of lowest validation loss and with those of the end, once each, after
    training. Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    training = TrainingLoop(stepper, job, data)
    training.evaluate_initial()
    while training.steps_to_next_stop:
        training.advance(stepper.train(training.iteration, training.iteration + training.steps_to_next_stop))
    return training.result()


class TrainingLoop:
    """One training in progress: what has been seen so far. Who made it trains, and tells it of the losses."""

    def __init__(self, network: EvaluatedNetwork, job: TrainingJob, data: SplitData) -> None:
        self.network, self.job, self.data = network, job, data
        self.iteration = job.start.first_iteration
        self.watch = MetricTracker()
        self.points: dict[Snapshot, NetworkState] = {}
        self._begun = self._resumed()
        if not self._begun:
            network.load(job.start.state)
        self._stops = stopping_points(job.recipe, self.iteration, job.points)
        self._next = next(self._stops, None)

    def evaluate_initial(self) -> None:
        """Looks at the start; once, before the first mini-batch. Gone on from a checkpoint, that was done."""
        if self._begun:
            return
        if self.iteration in self.job.points:
            self.points[self.iteration] = self.network.state()
        if "gradient" in self.job.points:
            self.points["gradient"] = NetworkState(self.network.gradient(self.iteration), {})
        self._evaluate()

    @property
    def steps_to_next_stop(self) -> int:
        """Mini-batches until something is to be looked at; 0 at the end."""
        if self._next is None or self.watch.diverged_at is not None:
            return 0
        return self._next[0] - self.iteration

    def advance(self, losses: Array) -> None:
        """The network was trained on the next `len(losses)` mini-batches, at most as many as were left."""
        first, self.iteration = self.iteration, self.iteration + len(losses)
        if not self.watch.record_training(losses, first) or self._next is None or self.iteration < self._next[0]:
            return
        (stop, evaluated), self._next = self._next, next(self._stops, None)
        if stop in self.job.points:
            self.points[stop] = self.network.state()
        if evaluated:
            self._evaluate()
            if self.watch.diverged_at is None and self.job.checkpoints.should_save():
                self._save()

    def result(self) -> TrainingResult:
        """What the training leaves; the network is not trained on after this."""
        end, test = self.network.state(), (self.data.test_images, self.data.test_labels)
        if self.watch.diverged_at is not None:
            return TrainingResult("diverged", end, {}, self.watch.curve, self.watch.metrics(None, None))
        end_test = self.network.evaluate(*test)
        held = {n: s for n, s in self.network.optimizer_state().items() if n in self.job.start.masks}
        best_test = end_test
        if self.watch.best != len(self.watch.curve.iterations) - 1:
            self.network.load(self.points["lowest_validation_loss"])
            best_test = self.network.evaluate(*test)
        metrics = self.watch.metrics(best_test, end_test)
        wanted = {point: state for point, state in self.points.items() if point in self.job.points}
        return TrainingResult("finished", end, wanted, self.watch.curve, metrics, held)

    def _evaluate(self) -> None:
        measured = self.network.evaluate(self.data.validation_images, self.data.validation_labels)
        if self.watch.record_validation(self.iteration, *measured):
            self.points["lowest_validation_loss"] = self.network.state()
        if self.watch.diverged_at is None:
            self.job.checkpoints.on_evaluation(self.watch.curve)

    def _save(self) -> None:
        tensors = _flat("state", self.network.state())
        for name, state in self.network.optimizer_state().items():
            tensors |= {f"optimizer/{name}/{key}": value.numpy() for key, value in state.items()}
        for point, kept in self.points.items():
            tensors |= _flat(f"point/{point}", kept)
        for column, values in vars(self.watch.curve).items():
            tensors[f"curve/{column}"] = np.array(values, dtype=np.int64 if column == "iterations" else np.float64)
        facts = {"layout": CHECKPOINT_FORMAT, "iteration": self.iteration, "best": self.watch.best}
        self.job.checkpoints.save(facts, tensors)

    def _resumed(self) -> bool:
        """Goes back to the last checkpoint, if there is one that has every point it has passed."""
        saved = self.job.checkpoints.load()
        if saved is None:
            return False
        facts, arrays = saved
        if facts.get("layout") != CHECKPOINT_FORMAT:
            return False
        parts = _parts(arrays)
        points = _nested(parts["point"])
        passed = {p for p in self.job.points if p == "gradient" or (isinstance(p, int) and p <= facts["iteration"])}
        if not {str(p) for p in passed} <= points.keys():
            return False
        self.points = {int(p) if p.isdigit() else p: self._as_state(t) for p, t in points.items()}  # type: ignore[misc]
        self.network.load(self._as_state(parts["state"]))
        self.network.load_optimizer_state(_nested(parts["optimizer"]), facts["iteration"])
        for column, values in parts["curve"].items():
            getattr(self.watch.curve, column).extend(values.tolist())
        self.iteration, self.watch.best = facts["iteration"], facts["best"]
        return True

    def _as_state(self, tensors: Weights) -> NetworkState:
        masks = self.job.start.masks
        weights = {n: t for n, t in tensors.items() if n in masks}
        logits = {n.removeprefix(LOGITS): t for n, t in tensors.items() if n.startswith(LOGITS)}
        others = {n: t for n, t in tensors.items() if n not in masks and not n.startswith(LOGITS)}
        return NetworkState(weights, others, logits)


def _flat(prefix: str, state: NetworkState) -> dict[str, Array]:
    logits = {f"{LOGITS}{n}": t for n, t in state.logits.items()}
    return {f"{prefix}/{n}": t.cpu().numpy() for n, t in {**state.weights, **state.unmasked, **logits}.items()}


def _parts(arrays: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """What a checkpoint holds, as tensors of their own, by what comes before the first slash."""
    import torch

    parts: dict[str, dict[str, Any]] = {"state": {}, "optimizer": {}, "point": {}, "curve": {}}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        parts[part][name] = torch.from_numpy(array.copy())
    return parts


def _nested(named: Weights) -> dict[str, Weights]:
    """`{"a/b": t}` as `{"a": {"b": t}}`."""
    found: dict[str, Weights] = {}
    for key, tensor in named.items():
        first, _, rest = key.partition("/")
        found.setdefault(first, {})[rest] = tensor
    return found
