"""A training recipe with every number resolved: what an engine needs to know beyond start, seed and data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Everything here is part of a run's identity."""

    optimizer: Literal["adam", "sgd", "none"]
    """`none` of what is not trained."""
    lr: float
    batch_size: int
    iterations: int
    """Mini-batches from initialisation to the end, whatever iteration a run starts at."""
    evaluate_every: int
    momentum: float = 0.0
    """SGD's; Adam has (0.9, 0.999) and epsilon 1e-8 (paper.md section 2)."""
    weight_decay: float = 0.0
    """Added to the gradient as weight_decay * w, for every parameter."""
    lr_milestones: tuple[int, ...] = ()
    """Iterations from which on the learning rate is multiplied by `drop_factor` once more."""
    drop_factor: float = 0.1
    warmup_iterations: int = 0
    """Iterations over which the learning rate grows linearly from 0 to `lr`."""

    def learning_rate(self, iteration: int) -> float:
        """The learning rate of mini-batch number `iteration` (the first is 0)."""
        dropped = sum(iteration >= drop for drop in self.lr_milestones)
        warmed = min(1.0, (iteration + 1) / self.warmup_iterations) if self.warmup_iterations else 1.0
        return self.lr * warmed * self.drop_factor**dropped

    def at_final_learning_rate(self) -> Recipe:
        """The same recipe at the constant learning rate that this one ends with: fine-tuning."""
        return replace(
            self, lr=self.learning_rate(self.iterations - 1), lr_milestones=(), drop_factor=1.0, warmup_iterations=0
        )

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {_STORED_KEYS.get(name, name): value for name, value in asdict(self).items()}
        return {**data, "drops": list(self.lr_milestones)}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Recipe:
        """The inverse of `to_data`."""
        fields = {_FIELDS.get(key, key): value for key, value in data.items()}
        return cls(**{**fields, "lr_milestones": tuple(data["drops"])})


_STORED_KEYS = {"lr_milestones": "drops", "warmup_iterations": "warmup"}
"""Field -> its key in stored and hashed data, where the two differ. A key never changes: run ids are hashes of them."""
_FIELDS = {key: name for name, key in _STORED_KEYS.items()}

UNTRAINED = Recipe(optimizer="none", lr=0.0, batch_size=1, iterations=0, evaluate_every=1)
"""Of a network that is measured as it starts: its mask on its start weights."""


def epochs_to_iterations(epochs: float, training_images: int, batch_size: int) -> int:
    """Mini-batches in `epochs` passes: ceil(epochs * training_images / batch_size), in exact arithmetic.

    Passes follow each other without a gap, so every batch is full and every image is seen once a pass.
    """
    return max(1, ceil(Fraction(str(epochs)) * training_images / batch_size))
