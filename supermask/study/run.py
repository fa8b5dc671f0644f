"""A run: one training run, described by exactly what determines its outcome, and identified by the hash of that."""

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
"""Increased when a change to the program changes numbers, so that new runs get other ids than old ones."""


@dataclass(frozen=True)
class PruneStepSpec:
    """`pruning.PruneStep` as plain data: names instead of functions."""

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
    """`user_code.code_sha256` of a user's criterion; None for a built-in one."""
    rescaled_before: bool = True
    """False if this step rescales but the level before did not; its weights then carry no factor yet."""

    @property
    def initial_state_snapshots(self) -> frozenset[Snapshot]:
        """Snapshots of the parent that the child's initial state is computed from, once its masks are known."""
        w_final = {self.w_final} if self.mask0 in USES_W_FINAL else set()
        return frozenset({self.w_init, self.rewind_to} | w_final) - {"start"}

    @property
    def required_snapshots(self) -> frozenset[Snapshot]:
        """Snapshots of the parent needed to score its weights and to compute the child's initial state."""
        scoring: set[Snapshot] = {"gradient"} if self.criterion in NEEDS_GRADIENT else set()
        # The logits of a learned mask are part of the parent's last snapshot.
        scoring |= {"end"} if self.criterion == "learned" else set()
        return self.initial_state_snapshots | ({self.w_final} - {"start"}) | scoring

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict. Fields added later are omitted at their default, so existing ids stay."""
        data = {**vars(self), "rates": dict(self.rates)}
        if self.rescaled_before:
            del data["rescaled_before"]
        return data


@dataclass(frozen=True)
class Run:
    """One training run, or one evaluation of an untrained network (its recipe is `recipe.UNTRAINED`).

    `id` is the SHA-256, cut to 32 hex digits, of the other fields, the parent's id among them.
    Names, labels, the study, the engine and the number of workers are not in it: they do not determine the outcome.
    """

    network: str
    """Canonical name: `fc-300-100`, not `fc`."""
    dataset: str
    seed: int
    level: int
    recipe: Recipe
    parent: str | None = None
    """Id of the run that this one is pruned from; None for a dense run and for a mask learned from scratch."""
    step: PruneStepSpec | None = None
    learning: MaskLearning | None = None
    """Settings of a run that learns a mask over fixed weights; None for other runs."""
    data_fingerprint: str | None = None
    """`ImageDataset.fingerprint` of data that is not the published dataset of that name; None for the published one."""
    numerics: int = field(init=False, default=0)
    """The `NUMERICS_VERSION` that the run was planned with; a run from a store may have an older one."""
    id: str = field(init=False, default="")
    planned_with: InitVar[int | None] = None

    def __post_init__(self, planned_with: int | None) -> None:
        object.__setattr__(self, "numerics", NUMERICS_VERSION if planned_with is None else planned_with)
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "id", hashlib.sha256(canonical.encode()).hexdigest()[:32])

    @property
    def is_trained(self) -> bool:
        """False for a network that is evaluated in its initial state."""
        return self.recipe.iterations > 0

    @property
    def points(self) -> frozenset[Snapshot]:
        """Snapshots of the parent needed to score its weights and to compute the initial state."""
        return frozenset() if self.step is None else self.step.required_snapshots

    @property
    def start_points(self) -> frozenset[Snapshot]:
        """Snapshots of the parent that the initial state is computed from, once the run's masks are known."""
        if self.step is None:
            return frozenset()
        # A learned mask's initial logits depend on the scores, which the masks do not contain.
        return self.step.required_snapshots if self.learning else self.step.initial_state_snapshots

    def to_data(self) -> dict[str, Any]:
        """Return all that determines the outcome as a JSON-serializable dict: the content of the id's hash."""
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
            **({} if self.data_fingerprint is None else {"data_fingerprint": self.data_fingerprint}),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Run:
        """Return the run of a `to_data` dict; other keys are ignored."""
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
            data.get("data_fingerprint"),
            planned_with=data.get("numerics", 1),
        )
