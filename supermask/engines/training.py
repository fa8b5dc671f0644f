"""The training loop of every engine: from a job, or its last checkpoint, to its result.

The loop decides when a run stops to take a snapshot, to evaluate, to save a checkpoint, or because it diverged. It
computes nothing itself. A trainer computes and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from supermask.core.types import NetworkState, Snapshot, SplitData, TrainingResult, Weights
from supermask.engines.job import Array, MetricTracker, TrainingJob, stopping_points

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT_FORMAT = 2
"""Version of the layout of a checkpoint's arrays. A run does not resume from a checkpoint of another version."""

LOGITS = "logits."
"""Prefix, in a checkpoint, of the name of a tensor that holds mask logits."""

OptimizerState = dict[str, dict[str, "Tensor"]]
"""Tensor name -> the optimizer's state, by PyTorch's names: per weight `exp_avg`, `exp_avg_sq`; `momentum_buffer`.

The reference engine adds Adam's `step`, of shape (): a tensor takes no step where it has no gradient."""


class EvaluatedNetwork(Protocol):
    """One network in training, as the loop uses it between mini-batches.

    Mini-batches are numbered from the initialization of the dense network. Batch, learning rate and all random draws
    follow from that number alone.
    """

    def load(self, state: NetworkState) -> None:
        """Set every tensor."""

    def state(self) -> NetworkState:
        """Return a copy of every tensor."""

    def gradient(self, iteration: int) -> Weights:
        """Return dL/dw of every prunable tensor, pruned weights included, on mini-batch `iteration`. Change nothing."""

    def evaluate(self, images: Array, labels: Array) -> tuple[float, float]:
        """Return the mean cross-entropy in nats, summed in float64, and the accuracy (first of equal logits)."""

    def optimizer_state(self) -> OptimizerState:
        """Return a copy of the optimizer's state; an empty dict for a tensor without one."""

    def load_optimizer_state(self, state: OptimizerState, iteration: int) -> None:
        """Set the optimizer's state to that before mini-batch `iteration`."""


class Trainer(EvaluatedNetwork, Protocol):
    """A network that is trained alone, not in a stack."""

    def train(self, first: int, last: int) -> Array:
        """Train on mini-batches `first` to `last - 1`; return the loss before each step, float32 `(last - first,)`."""


def run_training(trainer: Trainer, job: TrainingJob, data: SplitData) -> TrainingResult:
    """Train from the initial state, or from the last checkpoint, to the result.

    Test accuracy is measured after training, once with the weights of lowest validation loss and once with the final
    weights. Source: Zhou et al. 2019, Sec. 1 and 2.
    """
    loop = TrainingLoop(trainer, job, data)
    loop.evaluate_initial()
    while loop.steps_to_next_stop:
        loop.advance(trainer.train(loop.iteration, loop.iteration + loop.steps_to_next_stop))
    return loop.result()


class TrainingLoop:
    """State of one training run. The caller performs the steps and passes the losses to `advance()`."""

    def __init__(self, network: EvaluatedNetwork, job: TrainingJob, data: SplitData) -> None:
        self.network, self.job, self.data = network, job, data
        self.iteration = job.start.first_iteration
        self.tracker = MetricTracker()
        self.snapshots: dict[Snapshot, NetworkState] = {}
        self._resumed = self._resume()
        if not self._resumed:
            network.load(job.start.state)
        # `iteration` is that of the checkpoint if the run resumed: earlier stops are not repeated.
        self._stops = stopping_points(job.recipe, self.iteration, job.snapshots)
        self._next_stop = next(self._stops, None)

    def evaluate_initial(self) -> None:
        """Evaluate the initial state, once, before the first mini-batch. A resumed run has done so already."""
        if self._resumed:
            return
        if self.iteration in self.job.snapshots:
            self.snapshots[self.iteration] = self.network.state()
        if "gradient" in self.job.snapshots:
            self.snapshots["gradient"] = NetworkState(self.network.gradient(self.iteration), {})
        self._evaluate()

    @property
    def steps_to_next_stop(self) -> int:
        """Mini-batches until the next snapshot or evaluation; 0 at the end."""
        if self._next_stop is None or self.tracker.diverged_at is not None:
            return 0
        return self._next_stop[0] - self.iteration

    def advance(self, losses: Array) -> None:
        """Record the losses of the next `len(losses)` mini-batches, at most `steps_to_next_stop`; stop if due."""
        first, self.iteration = self.iteration, self.iteration + len(losses)
        if (
            not self.tracker.record_training(losses, first)
            or self._next_stop is None
            or self.iteration < self._next_stop[0]
        ):
            return
        (stop, is_evaluation), self._next_stop = self._next_stop, next(self._stops, None)
        if stop in self.job.snapshots:
            self.snapshots[stop] = self.network.state()
        if is_evaluation:
            self._evaluate()
            # No checkpoint of a diverged run: resuming from it would train on.
            if self.tracker.diverged_at is None and self.job.checkpointer.should_save():
                self._save()

    def result(self) -> TrainingResult:
        """Return the result of the run. The network must not be trained further: its weights may be the best ones."""
        end, test = self.network.state(), (self.data.test_images, self.data.test_labels)
        if self.tracker.diverged_at is not None:
            return TrainingResult("diverged", end, {}, self.tracker.curve, self.tracker.metrics(None, None))
        end_test = self.network.evaluate(*test)
        # Without Adam's counts of steps: the certificate compares the state per weight with masks.
        states = self.network.optimizer_state().items()
        optimizer_state = {name: {k: v for k, v in state.items() if k != "step"} for name, state in states}
        # If the last evaluation was the best, best and final weights are the same: one test evaluation is enough.
        best_test = end_test
        if self.tracker.best != len(self.tracker.curve.iterations) - 1:
            self.network.load(self._kept_snapshots()["lowest_validation_loss"])
            best_test = self.network.evaluate(*test)
        metrics = self.tracker.metrics(best_test, end_test)
        requested = {point: state for point, state in self._kept_snapshots().items() if point in self.job.snapshots}
        return TrainingResult("finished", end, requested, self.tracker.curve, metrics, optimizer_state)

    def _evaluate(self) -> None:
        loss, accuracy = self.network.evaluate(self.data.validation_images, self.data.validation_labels)
        if self.tracker.record_validation(self.iteration, loss, accuracy):
            self._keep_best()
        if self.tracker.diverged_at is None:
            self.job.checkpointer.on_evaluation(self.tracker.curve)

    def _keep_best(self) -> None:
        """Keep the present state as that of lowest validation loss."""
        self.snapshots["lowest_validation_loss"] = self.network.state()

    def _kept_snapshots(self) -> dict[Snapshot, NetworkState]:
        """Return all snapshots so far, and the state of lowest validation loss."""
        return self.snapshots

    def _save(self) -> None:
        tensors = _flatten_state("state", self.network.state())
        for name, moments in self.network.optimizer_state().items():
            tensors |= {f"optimizer/{name}/{key}": value.numpy() for key, value in moments.items()}
        for point, state in self._kept_snapshots().items():
            tensors |= _flatten_state(f"point/{point}", state)
        for column, values in vars(self.tracker.curve).items():
            tensors[f"curve/{column}"] = np.array(values, dtype=np.int64 if column == "iterations" else np.float64)
        # The curve is in the tensors: its first training loss is NaN, which JSON does not have.
        facts = {"layout": CHECKPOINT_FORMAT, "iteration": self.iteration, "best": self.tracker.best}
        self.job.checkpointer.save(facts, tensors)

    def _resume(self) -> bool:
        """Load the last checkpoint, if there is one with every snapshot it should have by now."""
        saved = self.job.checkpointer.load()
        if saved is None:
            return False
        facts, arrays = saved
        if facts.get("layout") != CHECKPOINT_FORMAT:
            return False
        parts = _split_by_part(arrays)
        snapshots = _nest(parts["point"], str.partition)
        # A checkpoint written before a snapshot was requested lacks it, and its iteration has passed: start over.
        due = {p for p in self.job.snapshots if p == "gradient" or (isinstance(p, int) and p <= facts["iteration"])}
        if not {str(p) for p in due} <= snapshots.keys():
            return False
        self.snapshots = {int(p) if p.isdigit() else p: self._to_state(t) for p, t in snapshots.items()}  # type: ignore[misc]
        self.network.load(self._to_state(parts["state"]))
        self.network.load_optimizer_state(_nest(parts["optimizer"], str.rpartition), facts["iteration"])
        for column, values in parts["curve"].items():
            getattr(self.tracker.curve, column).extend(values.tolist())
        self.iteration, self.tracker.best = facts["iteration"], facts["best"]
        return True

    def _to_state(self, tensors: Weights) -> NetworkState:
        start = self.job.start
        weights = {n: t for n, t in tensors.items() if n in start.weights}
        unmasked = {n: t for n, t in tensors.items() if n in start.unmasked}
        # By the names of the job: a module may call its last layer `logits`.
        logits = {n: tensors[f"{LOGITS}{n}"] for n in start.logits if f"{LOGITS}{n}" in tensors}
        return NetworkState(weights, unmasked, logits)


def _flatten_state(prefix: str, state: NetworkState) -> dict[str, Array]:
    logits = {f"{LOGITS}{n}": t for n, t in state.logits.items()}
    return {f"{prefix}/{n}": t.cpu().numpy() for n, t in {**state.weights, **state.unmasked, **logits}.items()}


def _split_by_part(arrays: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """Return a checkpoint's arrays as tensors with their own memory, by the part of the key before the first slash."""
    import torch

    parts: dict[str, dict[str, Any]] = {"state": {}, "optimizer": {}, "point": {}, "curve": {}}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        # A copy: arrays decoded from a file are read-only, and torch warns about those.
        parts[part][name] = torch.from_numpy(array.copy())
    return parts


def _nest(tensors: Weights, split: Callable[[str, str], tuple[str, str, str]]) -> dict[str, Weights]:
    """Return `{"a/b": t}` as `{"a": {"b": t}}`. `split`: at which slash; the names of modules may have further ones."""
    nested: dict[str, Weights] = {}
    for key, tensor in tensors.items():
        first, _, rest = split(key, "/")
        nested.setdefault(first, {})[rest] = tensor
    return nested
