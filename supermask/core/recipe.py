"""Training recipe with every number resolved: all that an engine needs besides initial state, seed and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from math import ceil, cos, inf, pi
from typing import Any, Literal

CROSS_ENTROPY = "cross_entropy"
"""Name of the default loss."""

MAX_COUNT = 2**53
"""Bound of seeds, iterations and other counts: integers up to here are exact in every JSON reader and table column."""
MAX_NUMBER = 1e300
"""Bound of learning rates, weight decay and other numbers."""
MAX_EPOCHS = 1e6
"""Bound of epochs: with the most images and the smallest batches the iterations stay below `MAX_COUNT`."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training images, drawn anew for every image of every mini-batch; 0 and False: none.

    Sources: He et al. 2016, Sec. 4.2 (crop, flip); DeVries & Taylor 2017 (cutout).
    """

    crop: int = 0
    """Pixels of zero padding on every side; a window of the image's size is cut out at a random place."""
    flip: bool = False
    """Mirror the image from left to right with probability 1/2."""
    cutout: int = 0
    """Side, in pixels, of a square whose inputs are set to 0 around a random pixel; it is cut off at the edges."""

    def __bool__(self) -> bool:
        """Return True if images are changed at all."""
        return self != Augmentation()


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel's pixels, as shares of the largest pixel value."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """Training settings. All of them are part of a run's identity."""

    optimizer: Literal["adam", "adamw", "sgd", "none"]
    """`none` for networks that are not trained."""
    lr: float
    batch_size: int
    iterations: int
    """Mini-batches from initialization to the end, independent of the iteration that a run starts at."""
    evaluate_every: int
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Added to the gradient as weight_decay * w, for every parameter that has one; under AdamW decoupled from it:
    w (1 - learning rate * weight_decay), before the step."""
    lr_milestones: tuple[int, ...] = ()
    """Iterations at which the learning rate is multiplied by `drop_factor`."""
    drop_factor: float = 0.1
    warmup_iterations: int = 0
    """Length W of the warm-up: at iteration i < W the learning rate is multiplied by (i + 1) / W, so the first one has
    lr / W and number W - 1 has the full rate."""
    schedule: Literal["step", "cosine", "linear"] = "step"
    """Course of the learning rate: constant between milestones; or falling from `lr` to 0 after the warm-up."""
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments (default: Zhou et al. 2019, supplement)."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment."""
    label_smoothing: float = 0.0
    """Share of the target distribution that is spread evenly over all classes, in [0, 1)."""
    loss: str = CROSS_ENTROPY
    """`cross_entropy`, or the import path of a function (logits, labels) -> loss of a mini-batch."""
    loss_source: str | None = None
    """`user_code.code_sha256` of a loss that is named by import path."""
    augment: Augmentation = field(default_factory=Augmentation)
    normalize: Literal["none", "per_channel"] | ChannelStatistics = "none"
    """Mean that is subtracted from the network's inputs, and standard deviation that they are divided by, in training
    and evaluation. `per_channel`: the statistics of the training images of the seed's split."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and the backward pass; weights, optimizer and evaluations stay in float32."""
    channels_last: bool = False
    """Memory layout of images and kernels."""
    compile: bool = False
    """Compile the training's forward and backward pass with `torch.compile`."""

    @property
    def max_input(self) -> float:
        """Largest magnitude that an input of the network can have; infinite where the data decide (`per_channel`)."""
        if self.normalize == "none":
            return 1.0
        if self.normalize == "per_channel":
            return inf
        channels = zip(self.normalize.mean, self.normalize.std, strict=True)
        return max(max(abs(mean), abs(1 - mean)) / std for mean, std in channels)

    def learning_rate(self, iteration: int) -> float:
        """Learning rate of mini-batch number `iteration`; the first is 0.

        `step` is lr * drop_factor^(number of milestones reached), in the warm-up too. With p = max(0, (iteration -
        warm-up) / (iterations - warm-up)): `cosine` is lr (1 + cos(pi p)) / 2, `linear` is lr (1 - p). In the warm-up
        all are multiplied by (iteration + 1) / warm-up.
        Sources: Loshchilov & Hutter 2017, Eq. 5 (cosine); Goyal et al. 2017, Sec. 2.2 (warm-up).
        """
        warmup = min(1.0, (iteration + 1) / self.warmup_iterations) if self.warmup_iterations else 1.0
        if self.schedule == "step":
            num_drops = sum(iteration >= milestone for milestone in self.lr_milestones)
            return self.lr * warmup * self.drop_factor**num_drops
        annealed = self.iterations - self.warmup_iterations
        progress = min(max(iteration - self.warmup_iterations, 0) / annealed, 1.0) if annealed > 0 else 0.0
        return self.lr * warmup * ((1 + cos(pi * progress)) / 2 if self.schedule == "cosine" else 1 - progress)

    def at_final_learning_rate(self) -> Recipe:
        """Return this recipe at the constant learning rate that it ends with, for fine-tuning."""
        return replace(
            self,
            lr=self.learning_rate(self.iterations - 1),
            lr_milestones=(),
            drop_factor=1.0,
            warmup_iterations=0,
            schedule="step",
        )

    def to_data(self) -> dict[str, Any]:
        """JSON-serializable dict under the stored keys.

        Fields added later are omitted at their default, so existing ids do not change.
        """
        data = {}
        for recipe_field in fields(self):
            name, value = recipe_field.name, getattr(self, recipe_field.name)
            if name in _ALWAYS_STORED or value != getattr(_DEFAULTS, name):
                data[_STORED_KEYS.get(name, name)] = _to_plain(value)
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_data`."""
        values = {_FIELDS.get(key, key): value for key, value in data.items()}
        values["lr_milestones"] = tuple(data["drops"])
        if "betas" in data:
            first, second = data["betas"]
            values["betas"] = (first, second)
        if "augment" in data:
            values["augment"] = Augmentation(**data["augment"])
        if isinstance(statistics := data.get("normalize"), Mapping):
            values["normalize"] = ChannelStatistics(tuple(statistics["mean"]), tuple(statistics["std"]))
        return cls(**values)


_STORED_KEYS = {"lr_milestones": "drops", "warmup_iterations": "warmup"}
"""Field -> its key in stored and hashed data, where the two differ. A key never changes: run ids are hashes of them."""
_FIELDS = {key: name for name, key in _STORED_KEYS.items()}
_ALWAYS_STORED = frozenset(
    {
        "optimizer",
        "lr",
        "batch_size",
        "iterations",
        "evaluate_every",
        "momentum",
        "weight_decay",
        "lr_milestones",
        "drop_factor",
        "warmup_iterations",
    }
)
"""Fields that are stored at their default too."""

UNTRAINED = Recipe(optimizer="none", lr=0.0, batch_size=1, iterations=0, evaluate_every=1)
"""Recipe of an untrained network that is only evaluated: its mask on its initial weights."""
_DEFAULTS = UNTRAINED


def _to_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, ChannelStatistics):
        return {"mean": list(value.mean), "std": list(value.std)}
    if isinstance(value, Augmentation):
        return {name: setting for name, setting in vars(value).items() if setting}
    return value


def epochs_to_iterations(epochs: float, training_images: int, batch_size: int) -> int:
    """Number of mini-batches in `epochs`: ceil(epochs * training_images / batch_size), in exact arithmetic.

    Epochs are concatenated, so every batch is full and every image is seen once per epoch.
    """
    return max(1, ceil(Fraction(str(epochs)) * training_images / batch_size))
