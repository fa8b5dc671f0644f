"""The Study: a complete, explicit, validated configuration.

The models are the keys of a study file with their types, defaults and rules. `loading` builds them from files, scales
and overrides, with errors that name file and line.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator, model_validator

from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError, quote
from supermask.core.recipe import CROSS_ENTROPY
from supermask.core.text import pluralize
from supermask.datasets.specs import DataOptions
from supermask.networks.network import is_user_network
from supermask.study.claims import Claim
from supermask.study.fields import (
    Bool,
    CriterionName,
    Dataset,
    ImageCount,
    Initializer,
    Label,
    Levels,
    Mask0,
    Mask1,
    NetworkName,
    NoiseShare,
    ReadPoint,
    RewindPoint,
    Schedule,
    Scope,
    Seeds,
    StrictModel,
    Title,
    validation_error,
)
from supermask.study.mask_settings import LearnSettings, Supermask
from supermask.study.prune_settings import Prune
from supermask.study.train_settings import Train

CRITERION_KEYS = ("criterion", "w_init", "w_final", "rewind_to", "learning_rate_rewinding")
"""Keys that a level uses only if it prunes by a criterion."""


class Treatment(StrictModel):
    """A way from one training run to the next: criterion, actions and points; one line in a figure."""

    name: Label
    """Label in figures and tables; by default made of the keys that differ."""
    criterion: CriterionName = "large_final"
    """A key of `CRITERIA`, or the import path of your own."""
    mask1: Mask1 = "rewind"
    """A key of `MASK1_ACTIONS`."""
    mask0: Mask0 = "zero"
    """A key of `MASK0_ACTIONS`."""
    rescaled: Bool = False
    """True: multiply the kept weights of a layer by (weights / kept weights)."""
    w_init: ReadPoint = "start"
    """Snapshot that the criterion reads as w_i."""
    w_final: ReadPoint = "end"
    """Snapshot that the criterion reads as w_f."""
    rewind_to: RewindPoint = "start"
    """Snapshot to which `mask1: rewind` sets kept weights."""
    learning_rate_rewinding: Bool = True
    """With `rewind_to: end`: True restarts the learning-rate schedule; False keeps its final rate."""
    schedule: Schedule = "iterative"
    """`iterative`: each level prunes the one before; `one_shot`: each level prunes the dense network."""
    scope: Scope = "layer"
    """`layer`: weights are ranked in each layer; `global`: across all layers."""
    trained: Bool = True
    """False: each level's network is evaluated untrained (a heuristic supermask). Under `iterative` its masks are those
    of the chain that the same criterion prunes with rewind and zero."""
    train: Train | None = None
    """Training settings of this treatment and of its own dense network; None: those of the study. `study.loading`
    completes the keys of a study file with the study's."""
    network: NetworkName | None = None
    """This treatment's own network: a name, or an import path with its arguments; None: that of the study."""
    initializer: Initializer | None = None
    """Initializer of this treatment's own dense network; None: that of the study."""
    supermask: Supermask | None = None
    """If given, level 1 learns this mask, and later levels start from it."""
    levels: Levels | None = None
    """Replaces `prune.levels`. With a supermask: the number of levels after it, 0 by default."""

    @field_validator("rewind_to")
    @classmethod
    def _only_rewind_rewinds(cls, point: int | str, info: ValidationInfo) -> int | str:
        mask1 = info.data.get("mask1", "rewind")
        if point != "start" and mask1 != "rewind":
            raise validation_error(f"{quote(point)} needs mask1: rewind, but mask1 is {mask1}, which does not rewind.")
        return point

    @model_validator(mode="after")
    def _check_consistent(self) -> Treatment:
        learns = self.supermask is not None
        if not self.trained and isinstance(self.rewind_to, int):
            raise validation_error(
                f"rewind_to: {self.rewind_to} needs trained: true; an untrained network has no iteration "
                f"{self.rewind_to}."
            )
        if not learns and not self.trained and self.schedule == "iterative" and self.mask0 != "zero":
            raise validation_error(
                f"mask0: {self.mask0} with trained: false needs schedule: one_shot; under iterative the masks are "
                "those of a chain that is pruned with mask0: zero, whose pruned weights are zero already."
            )
        if learns and self.schedule != "iterative":
            raise validation_error(
                "a learned supermask needs schedule: iterative, as later levels prune the learned mask further."
            )
        if not learns and self.levels == 0:
            raise validation_error("levels: 0 leaves nothing to prune; give 1 or more, or a supermask to learn.")
        if learns and not self.trained and (self.levels or 0) > 1:
            raise validation_error(
                f"levels: {self.levels} with trained: false after a learned mask: the levels would be equal; use 1."
            )
        if learns:
            self._check_no_unused_keys(self.levels or 0)
        if not self.learning_rate_rewinding and (self.rewind_to != "end" or not self.trained):
            reason = "trained: false" if not self.trained else f"rewind_to: {self.rewind_to}"
            raise validation_error(
                f"learning_rate_rewinding: false has no effect with {reason}; it is for networks that are trained from "
                "rewind_to: end. Leave it out."
            )
        return self

    def _check_no_unused_keys(self, levels: int) -> None:
        """Refuse keys that no level uses beside a learned mask.

        Example: without `levels: 1`, `mask1: randomise_signs` would have no effect, and its result would look as if
        signs did not matter.
        """
        unused = {2: (), 1: CRITERION_KEYS, 0: (*CRITERION_KEYS, "mask1", "mask0", "rescaled", "trained")}[
            min(levels, 2)
        ]
        if self.train is not None and not self.uses_train:
            raise validation_error(
                "train is not used by any level: level 1 learns the mask as learn and supermask say, and no level "
                "follows; give levels: 1 or leave it out."
            )
        for key in unused:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                hint = " The mask's own rescaling is supermask: {rescaled: true}." if key == "rescaled" else ""
                raise validation_error(
                    f"{key}: {str(value).lower()} is not used by any level: level 1 learns the mask, "
                    f"{'level 2 applies it' if levels else 'and no level follows'}; give levels: {levels + 1} or leave "
                    f"it out.{hint}"
                )

    @property
    def uses_train(self) -> bool:
        """False if the treatment only learns a mask, without a level that trains and without a trained network."""
        return self.supermask is None or bool(self.levels) or self.supermask.start_from is not None

    @property
    def uses_scope(self) -> bool:
        """False if no level prunes by a criterion: the treatment learns a mask, and at most applies it."""
        return self.supermask is None or (self.levels or 0) > 1 or self.supermask.start_from is not None

    def num_levels(self, prune: Prune) -> int:
        """Return the number of pruning levels; with a supermask, the number after it."""
        if self.levels is not None:
            return self.levels
        return 0 if self.supermask is not None else prune.levels

    @property
    def label(self) -> str:
        """The treatment's name, unique in its study."""
        return self.name

    @property
    def identity(self) -> tuple[tuple[str, Any], ...]:
        """All fields but the name, each with its type, so that 0 and false differ."""
        return tuple((key, (type(value).__name__, value)) for key, value in self if key != "name")


KEY_ALIASES = {
    "learning_rate": "train.lr",
    "batch": "train.batch_size",
    "batchsize": "train.batch_size",
    "optim": "train.optimizer",
    "wd": "train.weight_decay",
    "warmup": "train.warmup_epochs",
    "scheduler": "train.schedule",
    "lr_schedule": "train.schedule",
    "augmentation": "train.augment",
    "normalization": "train.normalize",
    "smoothing": "train.label_smoothing",
    "epsilon": "train.eps",
    "milestones": "train.lr_drops",
    "memory_format": "train.channels_last",
    "amp": "train.precision",
    "iterations": "train.epochs",
    "prune_rate": "prune.rates.hidden",
    "rate": "prune.rates.hidden",
    "rounds": "prune.levels",
    "model": "network",
    "arch": "network",
    "data": "dataset",
    "seed": "seeds",
    "criterion": "treatments",
    "mask0": "treatments",
    "mask1": "treatments",
}
"""Usual names of settings, and keys of treatments -> the keys of a study that are suggested for them."""


class Settings(StrictModel):
    """The keys of a study except `treatments`, `reference`, `claims` and `scales`."""

    key_aliases: ClassVar[Mapping[str, str]] = KEY_ALIASES

    title: Title = ""
    network: NetworkName = "fc"
    initializer: Initializer | None = None
    """None: `own` for a network named by import path, `glorot_normal` for every other."""
    dataset: Dataset = "digits"
    train_images: ImageCount | None = None
    """Train on a random subset of that many images, drawn per seed."""
    label_noise: NoiseShare = 0.0
    """Share of the training labels that are replaced by another class, drawn per seed."""
    validation: ImageCount | None = None
    """Images held out for validation; by default 5,000, or a tenth where there are fewer than 50,000."""
    seeds: Seeds = (0, 1, 2, 3, 4)
    train: Train = Train()
    prune: Prune = Prune()
    learn: LearnSettings = LearnSettings()

    @property
    def data_options(self) -> DataOptions:
        """Settings that change the data of the study's runs."""
        return DataOptions(self.train_images, self.label_noise, self.validation)

    @field_validator("seeds", mode="before")
    @classmethod
    def _expand_seed_count(cls, value: Any) -> Any:
        """Turn a number of seeds n into the seeds 0 to n - 1."""
        is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000
        return tuple(range(value)) if is_count else value


class Study(Settings):
    """A complete study: from keywords, from a dict (`study_from_dict`), or by its name or file (`load_study`).

    Keywords are the keys of a study file, with the same defaults and errors; `scale` chooses one of `scales`.

        Study("signs", dataset="digits", seeds=3, treatments=[{"criterion": ["large_final", "random"]}])
    """

    name: str
    """Stem of the file; only shown."""
    treatments: tuple[Treatment, ...] = Field(min_length=1)
    """The lines of a figure, in the order of the file."""
    reference: str
    """Label of the treatment that all others are compared with."""
    claims: tuple[Claim, ...] = ()
    """Claims about the treatments."""

    def __init__(self, name: str = "study", *, scale: str | None = None, **keys: Any) -> None:
        """Build a study from the keys of a study file. Raises UserError, one line per error."""
        from supermask.study.loading import study_from_dict

        study = study_from_dict(keys, [] if scale is None else [f"scale={scale}"], name)
        # The state of a pydantic model, which is frozen.
        for part in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
            object.__setattr__(self, part, getattr(study, part))

    # Validation makes a Study of fields that are complete already, as pydantic does where `__init__` is its own.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_fields(cls, **fields: Any) -> Study:
        """Return the study of validated fields."""
        return cls.model_validate(fields)

    @model_validator(mode="after")
    def _check_unique_labels(self) -> Study:
        labels = [t.label for t in self.treatments]
        assert len(set(labels)) == len(labels)
        assert self.reference in labels
        return self

    def __repr__(self) -> str:
        networks = ", ".join(dict.fromkeys(map(self.resolve_network_name, self.treatments)))
        counts = f"{pluralize(len(self.treatments), 'treatment')}, {pluralize(len(self.seeds), 'seed')}"
        return f"Study({self.name!r}, {networks} on {self.dataset}, {counts})"

    __str__ = __repr__

    def __dir__(self) -> list[str]:
        own = [name for name in vars(Study) if not name.startswith(("_", "model_"))]
        return sorted({*Study.model_fields, *own, "model_copy"})

    @property
    def user_criteria(self) -> tuple[str, ...]:
        """Import paths of the user's criteria that treatments name, each once."""
        named = [t.criterion for t in self.treatments]
        named += [t.supermask.start_from for t in self.treatments if t.supermask and t.supermask.start_from]
        return tuple(name for name in dict.fromkeys(named) if name not in CRITERIA)

    @property
    def user_networks(self) -> tuple[str, ...]:
        """Networks by import path, with their arguments, that the study or its treatments name, each once."""
        named = [self.network, *map(self.resolve_network_name, self.treatments)]
        return tuple(name for name in dict.fromkeys(named) if is_user_network(name))

    @property
    def user_losses(self) -> tuple[str, ...]:
        """Import paths of the user's losses that the study or its treatments name, each once."""
        named = [self.resolve_train(treatment).loss for treatment in self.treatments]
        return tuple(name for name in dict.fromkeys(named) if name != CROSS_ENTROPY)

    def resolve_train(self, treatment: Treatment) -> Train:
        """Return the training settings of a treatment: its own, else the study's."""
        return treatment.train or self.train

    def resolve_initializer(self, treatment: Treatment) -> str | None:
        """Return the initializer of a treatment: its own, else the study's; None: the network's default."""
        return treatment.initializer or self.initializer

    def resolve_network_name(self, treatment: Treatment) -> str:
        """Return the network of a treatment: its own, else the study's."""
        return treatment.network or self.network

    @property
    def reference_treatment(self) -> Treatment:
        """The treatment that all others are compared with."""
        return next(t for t in self.treatments if t.label == self.reference)

    def as_data(self) -> dict[str, Any]:
        """Return the study as a dict for JSON or YAML, without its name; `study_from_dict` gives an equal study.

        Keys added later are omitted at their default.
        """
        data = self.model_dump(mode="json", by_alias=True, exclude={"name", "claims"})
        for treatment in data["treatments"]:
            # Left out rather than null: a study without own settings is written as before there were any.
            for key in ("train", "network", "initializer"):
                if treatment[key] is None:
                    del treatment[key]
            if treatment["supermask"] and not treatment["supermask"]["others_lr"]:
                del treatment["supermask"]["others_lr"]
        if self.initializer is None:
            del data["initializer"]
        for key in ("only", "exclude"):
            if not data["prune"][key]:
                del data["prune"][key]
        claims = {"claims": [claim.as_data() for claim in self.claims]} if self.claims else {}
        return {**data, "reference": {"name": self.reference}, **claims}

    def check_points(self, iterations: int, train: Train | None = None) -> None:
        """Raise UserError if a treatment reads or rewinds to an iteration at or after the end of training.

        `iterations`: those of the treatments with the settings `train`, by default the study's.
        """
        train = train or self.train
        late = [
            f"treatment {t.label!r}: {key}: {point} is not before the end of the training, which has {iterations:,} "
            f"iterations ({train.epochs:g} epochs); choose an earlier iteration, or end."
            for t, key, point in self._points()
            if self.resolve_train(t) == train and point >= iterations
        ]
        if late:
            raise UserError("\n".join(f"study {quote(self.name)}: {line}" for line in late))

    def _points(self) -> Iterator[tuple[Treatment, str, int]]:
        for treatment in self.treatments:
            for key in ("w_init", "w_final", "rewind_to"):
                point = getattr(treatment, key)
                if isinstance(point, int):
                    yield treatment, key, point


def _study_signature() -> inspect.Signature:
    """Return the keywords of `Study`: the keys of a study file, for `help` and tab completion."""
    keys = [*Settings.model_fields, "treatments", "reference", "scales", "claims"]
    name = inspect.Parameter("name", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="study")
    keywords = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=...) for key in keys]
    return inspect.Signature(
        [name, *keywords, inspect.Parameter("scale", inspect.Parameter.KEYWORD_ONLY, default=None)]
    )


Study.__signature__ = _study_signature()
