"""A run: one training, described by exactly what determines its outcome, and named by the hash of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from supermask.core.actions import USES_W_FINAL
from supermask.core.criteria import NEEDS_GRADIENT
from supermask.core.learned_masks import MaskLearning
from supermask.core.pruning import Scope
from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot

NUMERICS_VERSION = 1
"""Raised when a change to the program changes numbers, so that old runs are not taken for new ones."""


@dataclass(frozen=True)
class PruneStepSpec:
    """`ticket.Step` as plain data: names instead of functions."""

    criterion: str
    mask1: str
    mask0: str
    scope: Scope
    rates: Mapping[str, float]
    levels: int
    w_init: Snapshot = "start"
    w_final: Snapshot = "end"
    rewind_to: Snapshot = "start"
    rescaled: bool = False
    criterion_source: str | None = None
    """SHA-256 of the file that a user's own criterion stands in: another text is another criterion."""
    rescaled_before: bool = True
    """False of a rescaled step from a level that was not."""

    @property
    def initial_state_snapshots(self) -> frozenset[Snapshot]:
        """Points of the parent that the start's values are made of, once its masks are known."""
        final = {self.w_final} if self.mask0 in USES_W_FINAL else set()
        return frozenset({self.w_init, self.rewind_to} | final) - {"start"}

    @property
    def required_snapshots(self) -> frozenset[Snapshot]:
        """Points of the parent that have to be there to score its weights and make the start."""
        also: set[Snapshot] = {"gradient"} if self.criterion in NEEDS_GRADIENT else set()
        also |= {"end"} if self.criterion == "learned" else set()
        return self.initial_state_snapshots | ({self.w_final} - {"start"}) | also

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON; what is usual and came later is left out, so that ids stay."""
        data = {**vars(self), "rates": dict(self.rates)}
        if self.rescaled_before:
            del data["rescaled_before"]
        return data


@dataclass(frozen=True)
class Run:
    """One training, or one measurement of an untrained network (its recipe is `recipe.UNTRAINED`).

    `id` is the SHA-256, cut to 32 hex digits, of the other fields and of the parent's id.
    Names, labels, the study, the engine and the number of workers are not in it.
    Source: house rule "its id is a hash of exactly what determines its outcome".
    """

    network: str
    """Canonical: `fc-300-100`, not `fc`."""
    dataset: str
    seed: int
    level: int
    recipe: Recipe
    parent: str | None = None
    step: PruneStepSpec | None = None
    learning: MaskLearning | None = None
    """Of a run that learns a mask over weights that stay; of others None."""
    numerics: int = field(init=False, default=0)
    """The `NUMERICS` that the run was planned with; of a run from a store it may be an older one."""
    id: str = field(init=False, default="")
    planned_with: InitVar[int | None] = None

    def __post_init__(self, planned_with: int | None) -> None:
        object.__setattr__(self, "numerics", NUMERICS_VERSION if planned_with is None else planned_with)
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "id", hashlib.sha256(canonical.encode()).hexdigest()[:32])

    @property
    def is_trained(self) -> bool:
        """False of a network that is measured as it starts."""
        return self.recipe.iterations > 0

    @property
    def points(self) -> frozenset[Snapshot]:
        """Points of the parent that have to be there to score its weights and make the start."""
        return frozenset() if self.step is None else self.step.required_snapshots

    @property
    def start_points(self) -> frozenset[Snapshot]:
        """Points of the parent that the start is made of, once the run's masks are known."""
        if self.step is None:
            return frozenset()
        return self.step.required_snapshots if self.learning else self.step.initial_state_snapshots

    def to_data(self) -> dict[str, Any]:
        """All that determines the outcome, as plain data for JSON."""
        return {
            "network": self.network,
            "dataset": self.dataset,
            "seed": self.seed,
            "level": self.level,
            "recipe": self.recipe.to_data(),
            "parent": self.parent,
            "step": None if self.step is None else self.step.to_data(),
            "numerics": self.numerics,
            **({} if self.learning is None else {"learning": self.learning.to_data()}),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Run:
        """The inverse of `to_data`; other keys are passed over."""
        step, learning = data["step"], data.get("learning")
        return cls(
            data["network"],
            data["dataset"],
            data["seed"],
            data["level"],
            Recipe.from_data(data["recipe"]),
            data["parent"],
            None if step is None else PruneStepSpec(**step),
            None if learning is None else MaskLearning.from_data(learning),
            data.get("numerics", 1),
        )
