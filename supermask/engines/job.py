"""Input of every engine, and the parts all engines share: order of batches, stopping points, metrics of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import Recipe
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, LearningCurve, Snapshot
from supermask.networks.network import Network
from supermask.networks.sequential import Architecture

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

LossFunction = Callable[["Tensor", "Tensor"], "Tensor"]
"""(logits `(B, classes)`, labels `(B,)`) -> loss of a mini-batch, a scalar."""


class Checkpointer(Protocol):
    """Storage for the state of one training run, so that a killed run resumes and is bit-identical."""

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """Return the facts and tensors of the last checkpoint, or None if there is none."""

    def should_save(self) -> bool:
        """Return True if the engine should save a checkpoint now. Called at every evaluation."""

    def on_evaluation(self, curve: LearningCurve) -> None:
        """Receive the learning curve so far, at every evaluation. Read it; do not keep it."""

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None:
        """Store a copy: the arrays belong to the run, which keeps changing them. May raise to end the run."""


class NullCheckpointer:
    """Checkpointer of runs that are never interrupted: saves nothing."""

    def load(self) -> None:
        return None

    def should_save(self) -> bool:
        return False

    def on_evaluation(self, curve: LearningCurve) -> None: ...

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None: ...


@dataclass(frozen=True)
class TrainingJob:
    """One training run to perform."""

    network: Network
    start: InitialState
    recipe: Recipe
    seed: int
    snapshots: frozenset[Snapshot] = frozenset()
    """Snapshots of the trajectory to keep besides the end."""
    checkpointer: Checkpointer = field(default_factory=NullCheckpointer)
    learning: MaskLearning | None = None
    """Settings of mask learning; None if the weights are trained."""
    loss: LossFunction | None = None
    """The function that `recipe.loss` names; None for cross-entropy, and where nothing is trained."""

    @property
    def layers(self) -> Architecture:
        """Layers of one of the paper's networks, for the engines that train these alone."""
        assert self.network.layers is not None, self.network.name
        return self.network.layers

    def __post_init__(self) -> None:
        iterations = range(self.start.first_iteration, self.recipe.iterations + 1)
        assert len(iterations) > 0, "the training would begin after its end"
        assert all(p in iterations for p in self.snapshots if isinstance(p, int)), "a snapshot that is never reached"


def stack_settings(recipe: Recipe, learning: MaskLearning | None) -> tuple[Recipe, MaskLearning | None]:
    """Return the settings with those reset that may differ within one stack; equal results can share a stack.

    A step of a stack has the optimizer, its momentum and decay, the batch size, the way to learn a mask and the
    interval of evaluations in its code and shapes. Learning rates are its data, and the length of a training and the
    initial values of weights and logits do not occur in it.
    """
    constant = Recipe(recipe.optimizer, 0.0, recipe.batch_size, 0, recipe.evaluate_every)
    data_of_a_step = ("lr", "iterations", "lr_milestones", "drop_factor", "warmup_iterations", "schedule")
    common = replace(recipe, **{name: getattr(constant, name) for name in data_of_a_step})
    if learning is None:
        return common, None
    initial_values = ("weights", "multiplier", "start_logit", "confidence", "graded", "hardened_at")
    return common, replace(learning, **{name: getattr(MaskLearning(), name) for name in initial_values})


class BatchSampler:
    """Order of the training images: one endless sequence of epochs, each a permutation from its own random stream.

    Batch i takes places i * batch_size to (i + 1) * batch_size of that sequence. It therefore depends on the seed and
    on i only: not on the level, the treatment, or the iteration at which a run was resumed.
    Differs from the paper: it names neither a seed for the order nor the treatment of a last, partial batch; here the
    order comes from named, seeded streams, and no batch is partial.
    """

    def __init__(self, seed: int, indices: NDArray[np.int64], batch_size: int) -> None:
        self.seed, self.indices, self._batch_size = seed, indices, batch_size
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def batch(self, iteration: int) -> NDArray[np.int64]:
        """Return the indices into the training images of one mini-batch, int64 `(batch_size,)`."""
        n, first = self.indices.size, iteration * self._batch_size
        last = first + self._batch_size
        # A batch larger than the data set spans several epochs.
        parts = [self._epoch(e)[max(first - e * n, 0) : last - e * n] for e in range(first // n, (last - 1) // n + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batches(self, first: int, last: int) -> NDArray[np.int64]:
        """Return mini-batches `first` to `last - 1`, int64 `(last - first, batch_size)`."""
        n, size = self.indices.size, self._batch_size
        epochs = range(first * size // n, (last * size - 1) // n + 1)
        # All batches of an interval in one array: the stacked engine sends them to the device at once.
        sequence = np.concatenate([self._epoch(e) for e in epochs]) if first < last else self.indices[:0]
        begin = first * size - epochs.start * n
        return sequence[begin : begin + (last - first) * size].reshape(last - first, size)

    def _epoch(self, number: int) -> NDArray[np.int64]:
        """Indices of the training images in the order of one epoch, int64 `(images,)`."""
        if number not in self._epochs:
            # Batches come in order, so only the epoch before may still be needed: memory stays at two permutations.
            self._epochs = {e: order for e, order in self._epochs.items() if e >= number - 1}
            self._epochs[number] = self.indices[
                random_stream(self.seed, "order", number).permutation(self.indices.size)
            ]
        return self._epochs[number]


def stopping_points(recipe: Recipe, first: int, snapshots: frozenset[Snapshot]) -> Iterator[tuple[int, bool]]:
    """Yield the iterations after `first` at which an engine stops, with True where it evaluates.

    Evaluations are at multiples of `evaluate_every` and at the end; the other stops are snapshots.
    """
    evaluated = {*range(0, recipe.iterations, recipe.evaluate_every), recipe.iterations}
    reached = {p for p in snapshots if isinstance(p, int)}
    for iteration in sorted(i for i in evaluated | reached if i > first):
        yield iteration, iteration in evaluated


@dataclass
class MetricTracker:
    """Learning curve, early stopping and divergence of one training run, from the losses passed to it.

    Source: Zhou et al. 2019, Sec. 2 (test accuracy at the iteration of lowest validation loss).
    """

    curve: LearningCurve = field(default_factory=LearningCurve)
    best: int | None = None
    """Index into the curve of the lowest validation loss so far; the first of equal ones."""
    diverged_at: int | None = None
    _losses_since_evaluation: list[Array] = field(default_factory=list)
    """Training losses since the last evaluation."""

    def record_training(self, losses: Array, first: int) -> bool:
        """Record the losses of the iterations after `first`, in nats.

        Return False, and set `diverged_at`, at the first loss that is not finite.
        """
        self._losses_since_evaluation.append(losses)
        not_finite = np.flatnonzero(~np.isfinite(losses))
        if not_finite.size:
            self.diverged_at = first + int(not_finite[0]) + 1
        return not not_finite.size

    def record_validation(self, iteration: int, loss: float, accuracy: float) -> bool:
        """Record one evaluation; return True if it is the best so far. A loss that is not finite ends the run."""
        if not math.isfinite(loss):
            self.diverged_at = iteration
            return False
        self.curve.iterations.append(iteration)
        self.curve.training_loss.append(self._mean_training_loss())
        self.curve.validation_loss.append(loss)
        self.curve.validation_accuracy.append(accuracy)
        losses = self.curve.validation_loss
        if self.best is None or loss < losses[self.best]:
            self.best = len(losses) - 1
            return True
        return False

    def _mean_training_loss(self) -> float:
        """Mean since the last evaluation, summed in float64; NaN at the first evaluation, before any step."""
        losses, self._losses_since_evaluation = self._losses_since_evaluation, []
        return float(np.concatenate(losses).mean(dtype=np.float64)) if losses else math.nan

    def metrics(
        self, best_test: tuple[float, float] | None, end_test: tuple[float, float] | None
    ) -> dict[str, int | float | None]:
        """Return the run's metrics: losses in nats, accuracies as shares in [0, 1].

        None stands for a value that is unknown or not finite. A diverged run has only its initial values.
        `best_test` and `end_test` are (loss, accuracy) on the test set.
        Source: Zhou et al. 2019, Sec. 2 (test accuracy at the iteration of lowest validation loss).
        """
        curve, finished = self.curve, self.diverged_at is None
        # A run whose initial state is not finite has no evaluation at all.
        first, last = (0, len(curve.iterations) - 1) if curve.iterations else (None, None)
        best = self.best if finished else None
        metrics: dict[str, int | float | None] = {
            "diverged_at": self.diverged_at,
            "early_stop_iteration": None if best is None else curve.iterations[best],
        }
        for name, index in (("initial", first), ("early_stop", best), ("final", last if finished else None)):
            metrics[f"{name}_validation_loss"] = None if index is None else curve.validation_loss[index]
            metrics[f"{name}_validation_accuracy"] = None if index is None else curve.validation_accuracy[index]
        for name, test in (("early_stop", best_test), ("final", end_test)):
            metrics[f"{name}_test_loss"], metrics[f"{name}_test_accuracy"] = test or (None, None)
        # JSON has no NaN and no infinity.
        return {name: n if n is None or math.isfinite(n) else None for name, n in metrics.items()}


def flatten_images(images: Array) -> Array:
    """Return uint8 images as one flat, read-only view: kernels are then compiled for a single array type."""
    flat = images.reshape(-1)
    # Memory maps shared by workers are read-only, and for numba that is another type.
    flat.flags.writeable = False
    return flat
