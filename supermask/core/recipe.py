"""Training recipe with every number resolved: all that an engine needs besides initial state, seed and data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """Training settings. All of them are part of a run's identity."""

    optimizer: Literal["adam", "sgd", "none"]
    """`none` for networks that are not trained."""
    lr: float
    batch_size: int
    iterations: int
    """Mini-batches from initialization to the end, independent of the iteration that a run starts at."""
    evaluate_every: int
    momentum: float = 0.0
    """Momentum of SGD. Adam has betas (0.9, 0.999) and epsilon 1e-8 (Zhou et al. 2019, supplement)."""
    weight_decay: float = 0.0
    """Added to the gradient as weight_decay * w, for every parameter."""
    lr_milestones: tuple[int, ...] = ()
    """Iterations at which the learning rate is multiplied by `drop_factor`."""
    drop_factor: float = 0.1
    warmup_iterations: int = 0
    """Iterations over which the learning rate rises linearly from 0 to `lr`."""

    def learning_rate(self, iteration: int) -> float:
        """Learning rate of mini-batch number `iteration`; the first is 0."""
        num_drops = sum(iteration >= milestone for milestone in self.lr_milestones)
        warmup = min(1.0, (iteration + 1) / self.warmup_iterations) if self.warmup_iterations else 1.0
        return self.lr * warmup * self.drop_factor**num_drops

    def at_final_learning_rate(self) -> Recipe:
        """Return this recipe at the constant learning rate that it ends with, for fine-tuning."""
        return replace(
            self, lr=self.learning_rate(self.iterations - 1), lr_milestones=(), drop_factor=1.0, warmup_iterations=0
        )

    def to_data(self) -> dict[str, Any]:
        """JSON-serializable dict under the stored keys."""
        data = {_STORED_KEYS.get(name, name): value for name, value in asdict(self).items()}
        return {**data, "drops": list(self.lr_milestones)}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Recipe:
        """Inverse of `to_data`."""
        fields = {_FIELDS.get(key, key): value for key, value in data.items()}
        return cls(**{**fields, "lr_milestones": tuple(data["drops"])})


_STORED_KEYS = {"lr_milestones": "drops", "warmup_iterations": "warmup"}
"""Field -> its key in stored and hashed data, where the two differ. A key never changes: run ids are hashes of them."""
_FIELDS = {key: name for name, key in _STORED_KEYS.items()}

UNTRAINED = Recipe(optimizer="none", lr=0.0, batch_size=1, iterations=0, evaluate_every=1)
"""Recipe of an untrained network that is only evaluated: its mask on its initial weights."""


def epochs_to_iterations(epochs: float, training_images: int, batch_size: int) -> int:
    """Number of mini-batches in `epochs`: ceil(epochs * training_images / batch_size), in exact arithmetic.

    Epochs are concatenated, so every batch is full and every image is seen once per epoch.
    """
    return max(1, ceil(Fraction(str(epochs)) * training_images / batch_size))
