"""The Study: a complete, explicit, validated configuration; what a study file becomes.

The models below are the file's keys, their types, defaults and rules, and nothing else; `loading` makes them from
files, scales and overrides, with errors that name file and line.

The keys of a study that learns supermasks: how long and with what (`learn`), and which kind (`supermask`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from supermask.core.errors import UserError, quote
from supermask.core.learned_masks import METHODS, SIGMOID, MaskLearning
from supermask.core.types import TensorKind
from supermask.study.claims import Claim
from supermask.study.fields import (
    Bool,
    Confidence,
    Count,
    Criterion,
    Dataset,
    Densities,
    Density,
    Epochs,
    Factor,
    Fraction,
    Label,
    Level,
    Levels,
    Logit,
    Mask0,
    Mask1,
    Network,
    NotNegative,
    OptimizerName,
    Positive,
    PositiveFloat,
    Rate,
    ReadPoint,
    RewindPoint,
    Schedule,
    Scope,
    Seeds,
    StrictModel,
    Title,
    validation_error,
    with_message,
)

Method = Annotated[
    Literal["bernoulli", "rounded", "edge_popup", "signed"],
    with_message(f"a way to learn a mask. Allowed: {', '.join(METHODS)}"),
]
Base = Annotated[
    Literal["init", "signed_constant", "constant"],
    with_message("what a mask can be put on. Allowed: init, signed_constant, constant"),
]


class LearnSettings(StrictModel):
    """How masks are trained: the paper's settings for FC on MNIST; the length is not published.

    Source: paper.md section 6 (SGD, momentum 0.9, batch 250, learning rate 100; 10 single samples).
    """

    optimizer: OptimizerName = "sgd"
    lr: Positive = 100.0
    batch_size: Count = 250
    epochs: Positive = 100.0
    evaluate_every: Count = 220
    """Iterations between two measurements of the validation loss, on `samples` masks each."""
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    samples: Count = 10
    hardened_at: Densities = (0.5, 0.2, 0.1)
    """Densities at which the mask of each layer's highest logits is measured."""


class Supermask(StrictModel):
    """One way to learn a mask over weights that stay. Source: paper.md section 6."""

    method: Method = "bernoulli"
    weights: Base = "init"
    multiplier: PositiveFloat = 1.0
    rescaled: Bool = False
    """Dynamic weight rescaling."""
    start_logit: Logit = 0.0
    start_from: Criterion | None = None
    """A criterion: logits start from its mask on the trained dense network, instead of from `start_logit`."""
    start_level: Level = 1
    """How many levels that mask is pruned by, in one shot."""
    confidence: Confidence = 2.0
    """c: logits are +c where it keeps, -c elsewhere."""
    graded: Bool = False
    """Logits by rank of its scores instead: 2 c (rank - share pruned)."""
    density: Density = 0.5
    threshold: PositiveFloat = 0.01
    optimizer: OptimizerName | None = None
    """Another than `learn.optimizer`; so too below."""
    lr: Positive | None = None
    weight_decay: NotNegative | None = None

    @model_validator(mode="after")
    def _check_no_unused_keys(self) -> Supermask:
        """What a method does not look at is not to be given, and `rounded` has to begin on one side of the cut."""
        unused = {
            "start_from": self.method not in SIGMOID,
            "start_logit": self.method not in SIGMOID or self.start_from is not None,
            **dict.fromkeys(("start_level", "confidence", "graded"), self.start_from is None),
            "density": self.method != "edge_popup",
            "threshold": self.method != "signed",
        }
        for key, is_unused in unused.items():
            if is_unused and getattr(self, key) != type(self).model_fields[key].default:
                start = f"start_from: {self.start_from}" if self.start_from else "no start_from"
                raise validation_error(f"{key} has no meaning with method {self.method} and {start}; leave it out.")
        if self.method == "rounded" and self.start_logit <= 0 and self.start_from is None:
            raise validation_error(
                f"start_logit: {self.start_logit:g} with method rounded prunes everything at once, and nothing learns; "
                "give one above 0."
            )
        return self

    def learning(self, learn: LearnSettings) -> MaskLearning:
        """As a run has it: what is not used, at its default."""
        return MaskLearning(
            method=self.method,
            weights=self.weights,
            multiplier=self.multiplier,
            rescaled=self.rescaled,
            start_logit=self.start_logit,
            confidence=self.confidence if self.start_from else 0.0,
            graded=self.graded,
            density=self.density,
            threshold=self.threshold,
            samples=learn.samples,
            hardened_at=learn.hardened_at,
        )

    def train_settings(self, learn: LearnSettings) -> dict[str, Any]:
        """`learn`'s keys of a `train` section, with this mask's own."""
        keys = ("optimizer", "lr", "batch_size", "epochs", "evaluate_every", "momentum", "weight_decay")
        own = {key: getattr(self, key) for key in ("optimizer", "lr", "weight_decay") if getattr(self, key) is not None}
        return {key: getattr(learn, key) for key in keys} | own


class Train(StrictModel):
    """The training recipe. The defaults are the paper's for FC on MNIST. Source: paper.md section 2."""

    optimizer: OptimizerName = "adam"
    lr: Positive = 1.2e-3
    batch_size: Count = 60
    epochs: Positive = 55.0
    evaluate_every: Count = 100
    """Iterations between two measurements of the validation loss."""
    momentum: Fraction = 0.9
    """SGD's; Adam has its own two and does not look at it."""
    weight_decay: NotNegative = 0.0
    lr_drops: Epochs = ()
    """Epochs at which the learning rate is multiplied by `lr_drop_factor`; those after the end are never reached."""
    lr_drop_factor: Factor = 0.1
    warmup_epochs: NotNegative = 0.0


class Rates(StrictModel):
    """Shares of the surviving weights removed in a level, by kind of tensor. Source: paper.md section 2."""

    conv: Rate = 0.1
    hidden: Rate = 0.2
    output: Rate = 0.1
    global_: Rate = Field(default=0.2, alias="global")
    """The one rate under `scope: global`, and not used otherwise."""

    def for_kind(self, kind: TensorKind) -> float:
        """The rate of a kind of tensor, under `scope: layer`."""
        return {"conv": self.conv, "hidden": self.hidden, "output": self.output}[kind]


class Prune(StrictModel):
    """How much is pruned, and when. Source: paper.md section 2."""

    schedule: Schedule = "iterative"
    scope: Scope = "layer"
    levels: Level = 24
    rates: Rates = Rates()


CRITERION_KEYS = ("criterion", "w_init", "w_final", "rewind_to", "learning_rate_rewinding")
"""Keys that a level looks at if it prunes by a criterion."""


class Treatment(StrictModel):
    """What is done between one training and the next: one line in a figure."""

    name: Label
    criterion: Criterion = "large_final"
    mask1: Mask1 = "rewind"
    mask0: Mask0 = "zero"
    rescaled: Bool = False
    w_init: ReadPoint = "start"
    w_final: ReadPoint = "end"
    rewind_to: RewindPoint = "start"
    learning_rate_rewinding: Bool = True
    schedule: Schedule = "iterative"
    scope: Scope = "layer"
    trained: Bool = True
    """False: each level's network is measured as it starts: a heuristic supermask. Under `iterative` its masks are
    those of the chain that the same criterion prunes with rewind and zero."""
    supermask: Supermask | None = None
    """If there is one, level 1 learns it, and the levels after go on from its mask."""
    levels: Levels | None = None
    """Instead of `prune.levels`; beyond the learned mask, where there is one: then 0 unless given."""

    @field_validator("rewind_to")
    @classmethod
    def _only_rewind_rewinds(cls, point: int | str, info: ValidationInfo) -> int | str:
        mask1 = info.data.get("mask1", "rewind")
        if point != "start" and mask1 != "rewind":
            raise validation_error(f"{quote(point)} needs mask1: rewind, but mask1 is {mask1}, which rewinds nothing.")
        return point

    @model_validator(mode="after")
    def _check_consistent(self) -> Treatment:
        learns = self.supermask is not None
        if not self.trained and isinstance(self.rewind_to, int):
            raise validation_error(
                f"rewind_to: {self.rewind_to} makes no sense of an untrained network: it has been nowhere."
            )
        if learns and self.schedule != "iterative":
            raise validation_error(
                "a learned supermask is one mask, gone on from level by level: its schedule is iterative."
            )
        if not learns and self.levels == 0:
            raise validation_error("levels: 0 leaves nothing to do; give 1 or more, or a supermask to learn.")
        if learns and not self.trained and (self.levels or 0) > 1:
            raise validation_error(
                f"levels: {self.levels} of untrained networks after a learned mask: they would not differ; use 1."
            )
        if learns:
            self._check_no_unused_keys(self.levels or 0)
        return self

    def _check_no_unused_keys(self, levels: int) -> None:
        """Beside a learned mask, what no level looks at is not to be given."""
        unused = {2: (), 1: CRITERION_KEYS, 0: (*CRITERION_KEYS, "mask1", "mask0", "rescaled", "trained")}[
            min(levels, 2)
        ]
        for key in unused:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                own = " The mask's own rescaling is supermask: {rescaled: true}." if key == "rescaled" else ""
                raise validation_error(
                    f"{key}: {str(value).lower()} is looked at by no level: level 1 learns the mask, "
                    f"{'level 2 takes it' if levels else 'and none follows'}; give levels: {levels + 1} or leave it "
                    f"out.{own}"
                )

    def num_levels(self, study: Prune) -> int:
        """Levels of pruning; after a learned mask, where there is one."""
        if self.levels is not None:
            return self.levels
        return 0 if self.supermask is not None else study.levels

    @property
    def label(self) -> str:
        """Its name, unique in its study."""
        return self.name

    @property
    def identity(self) -> tuple[tuple[str, Any], ...]:
        """All that it does, without its name; types told apart (0 is not false)."""
        return tuple((key, (type(value).__name__, value)) for key, value in self if key != "name")


class Settings(StrictModel):
    """A study's keys except `treatments`, `reference` and `scales`."""

    title: Title = ""
    network: Network = "fc"
    dataset: Dataset = "digits"
    seeds: Seeds = (0, 1, 2, 3, 4)
    train: Train = Train()
    prune: Prune = Prune()
    learn: LearnSettings = LearnSettings()

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_of_seeds(cls, value: Any) -> Any:
        is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000
        return tuple(range(value)) if is_count else value


class Study(Settings):
    """A study with nothing left open. `load_study` or `study_from` makes one."""

    name: str
    """The file's stem: shown, and nothing else."""
    treatments: tuple[Treatment, ...] = Field(min_length=1)
    reference: str
    """The label of the treatment that all others are compared with."""
    claims: tuple[Claim, ...] = ()
    """What is claimed of its treatments."""

    @model_validator(mode="after")
    def _check_unique_labels(self) -> Study:
        labels = [t.label for t in self.treatments]
        assert len(set(labels)) == len(labels)
        assert self.reference in labels
        return self

    @property
    def reference_treatment(self) -> Treatment:
        """The treatment that all others are compared with."""
        return next(t for t in self.treatments if t.label == self.reference)

    def as_data(self) -> dict[str, Any]:
        """The whole study as plain data for JSON or YAML, without its name; itself a valid study, equal to this one."""
        data = self.model_dump(mode="json", by_alias=True, exclude={"name", "claims"})
        claims = {"claims": [claim.as_data() for claim in self.claims]} if self.claims else {}
        return {**data, "reference": {"name": self.reference}, **claims}

    def check_points(self, iterations: int) -> None:
        """Raises UserError if a treatment reads or rewinds to an iteration that the training does not get to."""
        late = [
            f"treatment {t.label!r}: {key}: {point} is not before the end of the training, which has {iterations:,} "
            f"iterations ({self.train.epochs:g} epochs); choose an earlier iteration, or end."
            for t, key, point in self._points()
            if point >= iterations
        ]
        if late:
            raise UserError("\n".join(f"study {quote(self.name)}: {line}" for line in late))

    def _points(self) -> Iterator[tuple[Treatment, str, int]]:
        for treatment in self.treatments:
            for key in ("w_init", "w_final", "rewind_to"):
                point = getattr(treatment, key)
                if isinstance(point, int):
                    yield treatment, key, point
