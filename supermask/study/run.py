"""A run: one training run, described by exactly what determines its outcome, and identified by the hash of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from supermask.core.learned_masks import MaskLearning
from supermask.core.pruning import PruneStep
from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot
from supermask.datasets.specs import DEFAULT_OPTIONS, DataOptions, DatasetSpec, dataset_spec, effective_spec
from supermask.networks.network import NetworkFacts

NUMERICS_VERSION = 1
"""Increased when a change to the program changes numbers, so that new runs get other ids than old ones."""


@dataclass(frozen=True)
class Run:
    """One training run, or one evaluation of an untrained network (its recipe is `recipe.UNTRAINED`).

    `id` is the SHA-256, cut to 32 hex digits, of `to_data()`: of all other fields, the parent's id among them, except
    `data_spec` and `network_facts`, which the others determine.
    Names, labels, the study, the engine and the number of workers are not in it: they do not determine the outcome.
    """

    network: str
    """Canonical name: `fc-300-100`, not `fc`."""
    dataset: str
    """A key of `DATASETS`, or the locator of a user's own data."""
    seed: int
    """Number that determines every random draw."""
    level: int
    """0: the dense network. n: pruned n times in a chain, or once by the rates of n levels (one-shot). With a supermask
    level 1 learns the mask, level 2 applies it, and later levels prune it further."""
    recipe: Recipe
    """Optimizer, learning rate, batch size, length and evaluations."""
    parent: str | None = None
    """Id of the run that this one is pruned from; None for a dense run and for a mask learned from scratch."""
    step: PruneStep | None = None
    """The pruning round that leads from the parent to this run; None without a parent."""
    learning: MaskLearning | None = None
    """Settings of a run that learns a mask over fixed weights; None for other runs."""
    data_fingerprint: str | None = None
    """`ImageDataset.fingerprint` of data that is not the published dataset of that name; None for the published one."""
    data_source: str | None = None
    """`user_code.code_sha256` of the user's function that returns the data; None for other data."""
    data_options: DataOptions = DEFAULT_OPTIONS
    """Settings that change the data: without those that change nothing (`DataOptions.resolve`)."""
    data_spec: DatasetSpec | None = field(default=None, compare=False)
    """Specification of a user's own data, so that results are read without them; None for a dataset of `DATASETS`.
    Not in the id: fingerprint and options determine it."""
    initializer: str | None = None
    """Name of the initializer; None for the network's default (`networks.default_initializer`)."""
    network_source: str | None = None
    """`user_code.source_identity` of a network named by import path; None for a network of this package."""
    network_facts: NetworkFacts | None = field(default=None, compare=False, repr=False)
    """Facts of a network named by import path, once it was examined. They follow from its source: not in the id."""
    numerics: int = field(init=False, default=0)
    """The `NUMERICS_VERSION` that the run was planned with; a run from a store may have an older one."""
    id: str = field(init=False, default="")
    """32 hexadecimal digits."""
    planned_with: InitVar[int | None] = None

    def __post_init__(self, planned_with: int | None) -> None:
        object.__setattr__(self, "numerics", NUMERICS_VERSION if planned_with is None else planned_with)
        canonical = json.dumps(self.to_data(), sort_keys=True, separators=(",", ":"))
        object.__setattr__(self, "id", hashlib.sha256(canonical.encode()).hexdigest()[:32])

    @property
    def spec(self) -> DatasetSpec:
        """Specification of the dataset, with the number of validation images of this run."""
        return effective_spec(dataset_spec(self.dataset, self.data_spec), self.data_options)

    @property
    def is_trained(self) -> bool:
        """False for a network that is evaluated in its initial state."""
        return self.recipe.iterations > 0

    @property
    def required_snapshots(self) -> frozenset[Snapshot]:
        """Snapshots of the parent needed to score its weights and to compute the initial state."""
        return frozenset() if self.step is None else self.step.required_snapshots

    @property
    def initial_state_snapshots(self) -> frozenset[Snapshot]:
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
            **({} if self.data_source is None else {"data_source": self.data_source}),
            **({"data_options": options} if (options := self.data_options.to_data()) else {}),
            **({} if self.initializer is None else {"initializer": self.initializer}),
            **({} if self.network_source is None else {"network_source": self.network_source}),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Run:
        """Return the run of a `to_data` dict, with the facts of data and network if it has them; ignore other keys."""
        step, learning = data["step"], data.get("learning")
        spec, facts = data.get("data_spec"), data.get("network_facts")
        return cls(
            data["network"],
            data["dataset"],
            data["seed"],
            data["level"],
            Recipe.from_data(data["recipe"]),
            data["parent"],
            None if step is None else PruneStep(**step),
            None if learning is None else MaskLearning.from_data(learning),
            data.get("data_fingerprint"),
            data.get("data_source"),
            DataOptions.from_data(data.get("data_options", {})),
            None if spec is None else DatasetSpec.from_data(data["dataset"], spec),
            data.get("initializer"),
            data.get("network_source"),
            None if facts is None else NetworkFacts.from_data(facts),
            planned_with=data.get("numerics", 1),
        )
