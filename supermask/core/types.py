"""Plain data types of the whole package. Weights are float32 tensors on the CPU; masks are bool.

Nothing here imports torch at run time, so that planning and `--help` stay fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

from supermask.core.recipe import ChannelStatistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from supermask.core.rng import Stream

    Array = NDArray[Any]

TensorKind = Literal["conv", "hidden", "output"]
"""Kind of a prunable tensor, which selects its prune rate: Conv kernel, hidden Linear kernel, kernel of the logits."""

Weights = dict[str, "Tensor"]
"""Tensor name (as in the module's `state_dict`) -> values."""

Masks = dict[str, "Tensor"]
"""Prunable tensor name -> bool tensor of the same shape: True = kept (mask-1), False = pruned (mask-0)."""

Snapshot = int | Literal["start", "end", "lowest_validation_loss", "gradient"]
"""Point on a training trajectory at which weights are read. An int k means after k iterations, counted from the dense
network's initialization (0 = untrained). `gradient` is dL/dw at the start, on the first batch."""


@dataclass(frozen=True)
class PrunableTensor:
    """One prunable tensor of a network: a Linear kernel `(out, in)` or a Conv kernel `(out, in / groups, *window)`.

    Kernels of transposed convolutions are `(in, out / groups, *window)`; then both fans are given.
    """

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    fan_in: int = 0
    """Inputs of one output value, counted in weights. 0 = those of the shape `(out, in, *window)`."""
    fan_out: int = 0
    """Outputs that one input value reaches, counted in weights. 0 = those of the shape."""
    initializer: str = "glorot_normal"
    """Name in `initializers.INITIALIZERS`, or `own`: the module's own constructor."""
    own_std: float = 0.0
    """Root mean square of the tensor as its module initializes it; the `std` of the initializer `own`."""
    own_draw: Callable[[Stream], Array] | None = field(default=None, compare=False, repr=False)
    """Draws the tensor as its module initializes it. None unless the initializer is `own` and the code was imported."""

    @property
    def size(self) -> int:
        """Number of weights."""
        product = 1
        for length in self.shape:
            product *= length
        return product

    @property
    def fans(self) -> tuple[int, int]:
        """(fan_in, fan_out), counted in weights."""
        window = 1
        for length in self.shape[2:]:
            window *= length
        return self.fan_in or self.shape[1] * window, self.fan_out or self.shape[0] * window

    @property
    def glorot_std(self) -> float:
        """Glorot's standard deviation, sqrt(2 / (fan_in + fan_out)), fans counted in weights."""
        return float((2.0 / sum(self.fans)) ** 0.5)

    @property
    def std(self) -> float:
        """Standard deviation of the initializer's draws."""
        if self.initializer in ("kaiming_normal", "kaiming_uniform"):
            return float((2.0 / self.fans[0]) ** 0.5)
        if self.initializer == "orthogonal":
            return float(max(self.shape[0], self.size // self.shape[0]) ** -0.5)
        if self.initializer == "glorot_normal_wide":
            return WIDE_FACTOR * self.glorot_std
        return self.own_std if self.initializer == "own" else self.glorot_std


WIDE_FACTOR = 1.18
"""Factor of the initializer `glorot_normal_wide`, whose mean magnitude is then that of `bimodal`."""


@dataclass(frozen=True)
class Layer:
    """Input of criteria and actions: one prunable tensor at two points of its trajectory.

    Every tensor has the shape of the kernel. Weights that were pruned before (`alive` False) have their frozen values.
    """

    std: float
    """Standard deviation of the layer's original initialization."""
    w_init: Tensor
    """w_i: weights at the start of the level, unless the study chooses another snapshot."""
    w_final: Tensor
    """w_f: weights at the end of the level, unless the study chooses another snapshot."""
    alive: Tensor
    """Bool: not pruned at an earlier level."""
    w_rewind: Tensor
    """Weights at the study's `rewind_to`; by default the same tensor as `w_init`."""
    gradient: Tensor | None = None
    """dL/dw at the start of the parent's training, on its first batch. None unless the criterion needs it."""
    mask_scores: Tensor | None = None
    """Score of each weight in the mask that the parent learned, above 0 = keep. None unless it learned a mask."""
    initializer: str = "glorot_normal"
    """Name of the layer's original initializer (`PrunableTensor.initializer`)."""
    draw: Callable[[Stream], Array] | None = field(default=None, compare=False, repr=False)
    """Fresh draws from the original initializer. None means truncated Glorot normal draws with deviation `std`."""


@dataclass(frozen=True)
class NetworkState:
    """Tensors of a network at one point of its training."""

    weights: Weights
    """Prunable tensors."""
    unmasked: Weights
    """All other tensors of the `state_dict`: biases, normalization parameters, buffers."""
    logits: Weights = field(default_factory=dict)
    """Logits of a mask that is being learned; then only these train. Empty where weights are trained."""


@dataclass(frozen=True)
class InitialState:
    """State from which a run starts training."""

    weights: Weights
    """Prunable tensors, with the frozen values of pruned weights."""
    masks: Masks
    """Prunable tensor name -> bool tensor, True = kept."""
    unmasked: Weights
    """Biases, normalization parameters and buffers; trained as usual, never masked."""
    first_iteration: int = 0
    """0, or k after late rewinding: data order and learning-rate schedule continue from iteration k."""
    logits: Weights = field(default_factory=dict)
    """Initial logits of a mask that is to be learned. Empty where weights are trained."""

    @property
    def state(self) -> NetworkState:
        """The tensors alone, as a point of the trajectory."""
        return NetworkState(self.weights, self.unmasked, self.logits)


@dataclass(frozen=True)
class LearningCurve:
    """Evaluations during training; entry j belongs to `iterations[j]`. Losses are mean cross-entropies in nats."""

    iterations: list[int] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    """Mean over the batches since the previous entry; NaN at the first entry, before any training."""
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """Result of one training."""

    status: Literal["finished", "diverged"]
    """Outcome of the training; a diverged one has no snapshots."""
    end: NetworkState
    """Network after the last iteration."""
    snapshots: dict[Snapshot, NetworkState]
    """Snapshots that were asked for, beside the start."""
    curve: LearningCurve
    """Losses and accuracies during training."""
    metrics: dict[str, int | float | None]
    """`early_stop_iteration`, `early_stop_validation_loss`, `early_stop_test_accuracy`, `final_validation_loss`,
    `final_test_accuracy`, `diverged_at` ... Accuracies are shares in [0, 1]."""
    optimizer_state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Trained tensor name -> optimizer state, of the tensor's shape, for the certificate. Not stored."""
    last_sampled_weights: Weights = field(default_factory=dict)
    """Masked weights of the last forward pass of a training that learned a mask, for the certificate."""
    supermask: dict[str, Any] = field(default_factory=dict)
    """Evaluations of a learned mask (`engines.mask_evaluation`)."""


@dataclass(frozen=True)
class SplitData:
    """Data of one seed. Images are uint8 `(n, channels, height, width)`; labels are int64 `(n,)`.

    Networks get images / max_pixel in float32, and normalized if the recipe says so.
    """

    train_images: Array
    train_labels: Array
    train_indices: NDArray[np.int64]
    """Indices of the images to train on: all but the validation split."""
    validation_images: Array
    validation_labels: Array
    test_images: Array
    test_labels: Array
    max_pixel: int

    @cached_property
    def channel_statistics(self) -> ChannelStatistics:
        """Mean and standard deviation of pixels / max_pixel over the images to train on, per channel.

        Computed once, from counts of pixel values, and exact before the last rounding. The standard deviation has the
        divisor n; for a channel with one value it is given as 1, so that it can be divided by.
        """
        import numpy as np

        channels = self.train_images.shape[1]
        counts = np.zeros((channels, 256), np.int64)
        # A thousand images at once: they are gathered from a memory map.
        for first in range(0, len(self.train_indices), 1000):
            images = self.train_images[self.train_indices[first : first + 1000]]
            for channel in range(channels):
                counts[channel] += np.bincount(images[:, channel].ravel(), minlength=256)
        mean, std = [], []
        for histogram in counts.tolist():
            n = sum(histogram)
            total = sum(value * count for value, count in enumerate(histogram))
            squares = sum(value**2 * count for value, count in enumerate(histogram))
            mean.append(total / (n * self.max_pixel))
            # Integers: n sum(x^2) - sum(x)^2 cancels digits.
            std.append(sqrt(n * squares - total**2) / (n * self.max_pixel) or 1.0)
        return ChannelStatistics(tuple(mean), tuple(std))
