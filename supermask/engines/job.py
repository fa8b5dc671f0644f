"""What every engine is given, and what engines share: data, the order of batches, the watch over a training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import Recipe
from supermask.core.rng import random_stream
from supermask.core.types import InitialState, LearningCurve, Snapshot
from supermask.networks.sequential import Architecture

Array = NDArray[Any]


class Checkpointer(Protocol):
    """Where a long training leaves its state, so that a killed one goes on from there to the same bits."""

    def load(self) -> tuple[dict[str, Any], dict[str, Array]] | None: ...

    def should_save(self) -> bool:
        """Whether the engine should save now; asked at every evaluation."""

    def on_evaluation(self, curve: LearningCurve) -> None:
        """Told of the curve so far, at every evaluation; to look at, not to keep."""

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None:
        """Keeps a copy: the arrays are the training's own, and it goes on changing them. May raise, to end it."""


class NullCheckpointer:
    """For trainings that nobody interrupts."""

    def load(self) -> None:
        return None

    def should_save(self) -> bool:
        return False

    def on_evaluation(self, curve: LearningCurve) -> None: ...

    def save(self, facts: dict[str, Any], tensors: dict[str, Array]) -> None: ...


@dataclass(frozen=True)
class TrainingJob:
    """One training to be done."""

    layers: Architecture
    start: InitialState
    recipe: Recipe
    seed: int
    points: frozenset[Snapshot] = frozenset()
    """Points of the trajectory to keep besides the end."""
    checkpoints: Checkpointer = field(default_factory=NullCheckpointer)
    learning: MaskLearning | None = None
    """How a mask is learned, where it is not the weights that are trained."""

    def __post_init__(self) -> None:
        passed = range(self.start.first_iteration, self.recipe.iterations + 1)
        assert len(passed) > 0, "the training would begin after its end"
        assert all(point in passed for point in self.points if isinstance(point, int)), "a point that is never passed"


class BatchSampler:
    """Which images make up mini-batch i: one endless sequence of passes, each a fresh permutation of its own stream.

    Batch i takes places i*batch_size to (i+1)*batch_size of that sequence, so it depends on the seed and i alone: not
    on the level, the treatment, or where a training was resumed.
    Source: paper.md section 10 (named streams). Differs from the paper: it does not say what happens to a last,
    partial batch; here there is none.
    """

    def __init__(self, seed: int, indices: NDArray[np.int64], batch_size: int) -> None:
        self._seed, self._indices, self._batch_size = seed, indices, batch_size
        self._passes: dict[int, NDArray[np.int64]] = {}

    def batch(self, iteration: int) -> NDArray[np.int64]:
        """Indices into the training images, int64 `(batch_size,)`."""
        n, first = self._indices.size, iteration * self._batch_size
        last = first + self._batch_size
        parts = [self._pass(p)[max(first - p * n, 0) : last - p * n] for p in range(first // n, (last - 1) // n + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batches(self, first: int, last: int) -> NDArray[np.int64]:
        """Mini-batches `first` to `last - 1`, int64 `(last - first, batch_size)`."""
        n, size = self._indices.size, self._batch_size
        passes = range(first * size // n, (last * size - 1) // n + 1)
        places = np.concatenate([self._pass(p) for p in passes]) if first < last else self._indices[:0]
        begin = first * size - passes.start * n
        return places[begin : begin + (last - first) * size].reshape(last - first, size)

    def _pass(self, number: int) -> NDArray[np.int64]:
        if number not in self._passes:
            self._passes = {p: order for p, order in self._passes.items() if p >= number - 1}
            self._passes[number] = self._indices[
                random_stream(self._seed, "order", number).permutation(self._indices.size)
            ]
        return self._passes[number]


def stopping_points(recipe: Recipe, first: int, points: frozenset[Snapshot]) -> Iterator[tuple[int, bool]]:
    """The iterations after `first` at which an engine pauses, and whether it evaluates there.

    Evaluations are at multiples of `evaluate_every` and at the end; the others are points to be kept.
    """
    evaluated = {*range(0, recipe.iterations, recipe.evaluate_every), recipe.iterations}
    kept = {p for p in points if isinstance(p, int)}
    for iteration in sorted(i for i in evaluated | kept if i > first):
        yield iteration, iteration in evaluated


@dataclass
class MetricTracker:
    """Early stopping and divergence of one training, from what it is told of its losses.

    Source: paper.md section 2 ("test accuracy at the iteration of lowest validation loss").
    """

    curve: LearningCurve = field(default_factory=LearningCurve)
    best: int | None = None
    """Index into the curve of the lowest validation loss so far; the first of equals."""
    diverged_at: int | None = None
    _losses_since_evaluation: list[Array] = field(default_factory=list)
    """Training losses since the last evaluation."""

    def record_training(self, losses: Array, first: int) -> bool:
        """Losses of the iterations after `first`; False, and `diverged_at` set, at the first that is not finite."""
        self._losses_since_evaluation.append(losses)
        broken = np.flatnonzero(~np.isfinite(losses))
        if broken.size:
            self.diverged_at = first + int(broken[0]) + 1
        return not broken.size

    def record_validation(self, iteration: int, loss: float, accuracy: float) -> bool:
        """One evaluation. True if it is the best so far. A loss that is not finite ends the run as diverged."""
        if not math.isfinite(loss):
            self.diverged_at = iteration
            return False
        self.curve.iterations.append(iteration)
        self.curve.training_loss.append(self._mean_since())
        self.curve.validation_loss.append(loss)
        self.curve.validation_accuracy.append(accuracy)
        losses = self.curve.validation_loss
        if self.best is None or loss < losses[self.best]:
            self.best = len(losses) - 1
            return True
        return False

    def _mean_since(self) -> float:
        losses, self._losses_since_evaluation = self._losses_since_evaluation, []
        return float(np.concatenate(losses).mean(dtype=np.float64)) if losses else math.nan

    def metrics(
        self, best_test: tuple[float, float] | None, end_test: tuple[float, float] | None
    ) -> dict[str, int | float | None]:
        """The run's numbers, None for what is unknown or not finite; of a diverged run only the initial ones are known.

        `best_test` and `end_test` are (loss, accuracy) on the test set.
        Source: paper.md section 2 ("test accuracy at the iteration of lowest validation loss").
        """
        curve, finished = self.curve, self.diverged_at is None
        first, last = (0, len(curve.iterations) - 1) if curve.iterations else (None, None)
        best = self.best if finished else None
        numbers: dict[str, int | float | None] = {
            "diverged_at": self.diverged_at,
            "early_stop_iteration": None if best is None else curve.iterations[best],
        }
        for name, at in (("initial", first), ("early_stop", best), ("final", last if finished else None)):
            numbers[f"{name}_validation_loss"] = None if at is None else curve.validation_loss[at]
            numbers[f"{name}_validation_accuracy"] = None if at is None else curve.validation_accuracy[at]
        for name, test in (("early_stop", best_test), ("final", end_test)):
            numbers[f"{name}_test_loss"], numbers[f"{name}_test_accuracy"] = test or (None, None)
        return {name: n if n is None or math.isfinite(n) else None for name, n in numbers.items()}


def flatten_images(images: Array) -> Array:
    """uint8 images as one read-only row: kernels are compiled once, for arrays of one type."""
    flat = images.reshape(-1)
    flat.flags.writeable = False
    return flat
