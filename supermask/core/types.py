"""The vocabulary: plain data that every other module speaks. Weights are float32 tensors on the CPU, masks bool.

Nothing here imports torch at run time, so that planning and `--help` stay fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[Any]

TensorKind = Literal["conv", "hidden", "output"]
"""What a maskable tensor is, and so which prune rate it has: a convolution, a hidden or the output Linear kernel."""

Weights = dict[str, "Tensor"]
"""Tensor name (as in the module's `state_dict`) -> values."""

Masks = dict[str, "Tensor"]
"""Maskable tensor name -> bool tensor of the same shape: True = kept (mask-1), False = pruned (mask-0)."""

Snapshot = int | Literal["start", "end", "lowest_validation_loss", "gradient"]
"""A place on a training's trajectory. An int is the iteration *after* which the weights are read (0 = untrained,
counted from the dense network's initialisation); `gradient` is dL/dw at the start, on the first batch."""


@dataclass(frozen=True)
class PrunableTensor:
    """One maskable tensor of a network: a Linear kernel `(out, in)` or a Conv kernel `(out, in, height, width)`."""

    name: str
    shape: tuple[int, ...]
    kind: TensorKind

    @property
    def size(self) -> int:
        """Number of weights."""
        product = 1
        for length in self.shape:
            product *= length
        return product

    @property
    def std(self) -> float:
        """Standard deviation of the initialisation: sqrt(2 / (fan_in + fan_out)), fans counted in weights."""
        window = 1
        for length in self.shape[2:]:
            window *= length
        return float((2.0 / ((self.shape[0] + self.shape[1]) * window)) ** 0.5)


@dataclass(frozen=True)
class Layer:
    """All that a criterion or an action may look at: one maskable tensor between two points of its trajectory.

    Every tensor has the shape of the kernel. Dead weights (`alive` False) carry their frozen values.
    """

    std: float
    """Standard deviation of the layer's original initialisation."""
    w_init: Tensor
    w_final: Tensor
    alive: Tensor
    w_rewind: Tensor
    """The weights at the point that `rewind` goes back to (the same tensor as `w_init`, unless a study says else)."""
    gradient: Tensor | None = None
    """dL/dw at the start of the parent's training, on its first batch; only there for criteria that ask for it."""
    mask_scores: Tensor | None = None
    """What a parent that learned a mask says of each weight: above 0 = keep; only there for such a parent."""


@dataclass(frozen=True)
class NetworkState:
    """A network at one point of its training: maskable weights, and everything else in its `state_dict`."""

    weights: Weights
    unmasked: Weights
    logits: Weights = field(default_factory=dict)
    """Of a mask that is being learned: then these train, and weights and others never move. Else empty."""


@dataclass(frozen=True)
class InitialState:
    """Where a run's training begins."""

    weights: Weights
    """Each maskable tensor's value when training begins, frozen values of pruned weights included."""
    masks: Masks
    unmasked: Weights
    """Biases, normalisation parameters and buffers: trained as usual, never masked."""
    first_iteration: int = 0
    """0, or k after late rewinding: data order and learning-rate schedule go on from there."""
    logits: Weights = field(default_factory=dict)
    """Where the logits of a mask that is to be learned begin; empty where weights are trained."""

    @property
    def state(self) -> NetworkState:
        """The start as a point of the trajectory."""
        return NetworkState(self.weights, self.unmasked, self.logits)


@dataclass(frozen=True)
class LearningCurve:
    """What was measured on the way; entry j belongs to `iterations[j]`. Losses are mean cross-entropies in nats."""

    iterations: list[int] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    """Mean over the batches since the entry before; NaN at the first entry, where nothing was trained yet."""
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves behind."""

    status: Literal["finished", "diverged"]
    end: NetworkState
    points: dict[Snapshot, NetworkState]
    curve: LearningCurve
    metrics: dict[str, int | float | None]
    """`early_stop_iteration`, `early_stop_validation_loss`, `early_stop_test_accuracy`, `final_validation_loss`,
    `final_test_accuracy`, `diverged_at` ... Accuracies are shares in [0, 1]."""
    optimizer_state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Maskable tensor name -> the optimiser's per-weight state, for the certificate; it is not stored."""
    last_sampled_weights: Weights = field(default_factory=dict)
    """Of a training that learned a mask: the weights that its last pass computed with, for the certificate."""
    supermask: dict[str, Any] = field(default_factory=dict)
    """Of a training that learned a mask: what the mask is worth, hardened in several ways (`engines.report`)."""


@dataclass(frozen=True)
class SplitData:
    """One seed's data. Images are uint8 `(n, channels, height, width)`, labels int64 `(n,)`.

    A network sees images / pixel_maximum in float32, and nothing else is done to them.
    """

    train_images: Array
    train_labels: Array
    train_indices: NDArray[np.int64]
    """Which of the training images are trained on: all but the validation split."""
    validation_images: Array
    validation_labels: Array
    test_images: Array
    test_labels: Array
    pixel_maximum: int
