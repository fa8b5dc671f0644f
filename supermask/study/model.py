"""The Study: a complete, explicit, validated configuration; what a study file becomes.

The models below are the file's keys, their types, defaults and rules, and nothing else; `loading` makes them from
files, scales and overrides, with errors that name file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from supermask.errors import UserError
from supermask.study.claim import Claim
from supermask.study.supermask import Learn, Supermask
from supermask.study.values import (
    Count,
    Criterion,
    Dataset,
    Epochs,
    Factor,
    Fraction,
    Keys,
    Label,
    Level,
    Levels,
    Mask0,
    Mask1,
    Network,
    NotNegative,
    OptimizerName,
    Positive,
    Rate,
    ReadPoint,
    RewindPoint,
    Schedule,
    Scope,
    Seeds,
    Switch,
    Title,
    fault,
)
from supermask.study.yaml_tree import shown
from supermask.types import Kind


class Train(Keys):
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


class Rates(Keys):
    """Shares of the surviving weights removed in a level, by kind of tensor. Source: paper.md section 2."""

    conv: Rate = 0.1
    hidden: Rate = 0.2
    output: Rate = 0.1
    global_: Rate = Field(default=0.2, alias="global")
    """The one rate under `scope: global`, and not used otherwise."""

    def of(self, kind: Kind) -> float:
        """The rate of a kind of tensor, under `scope: layer`."""
        return {"conv": self.conv, "hidden": self.hidden, "output": self.output}[kind]


class Prune(Keys):
    """How much is pruned, and when. Source: paper.md section 2."""

    schedule: Schedule = "iterative"
    scope: Scope = "layer"
    levels: Level = 24
    rates: Rates = Rates()


SCORING = ("criterion", "w_init", "w_final", "rewind_to", "learning_rate_rewinding")
"""Keys that a level looks at if it prunes by a criterion."""


class Treatment(Keys):
    """What is done between one training and the next: one line in a figure."""

    name: Label
    criterion: Criterion = "large_final"
    mask1: Mask1 = "rewind"
    mask0: Mask0 = "zero"
    rescaled: Switch = False
    w_init: ReadPoint = "start"
    w_final: ReadPoint = "end"
    rewind_to: RewindPoint = "start"
    learning_rate_rewinding: Switch = True
    schedule: Schedule = "iterative"
    scope: Scope = "layer"
    trained: Switch = True
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
            raise fault(f"{shown(point)} needs mask1: rewind, but mask1 is {mask1}, which rewinds nothing.")
        return point

    @model_validator(mode="after")
    def _possible(self) -> Treatment:
        learns = self.supermask is not None
        if not self.trained and isinstance(self.rewind_to, int):
            raise fault(f"rewind_to: {self.rewind_to} makes no sense of an untrained network: it has been nowhere.")
        if learns and self.schedule != "iterative":
            raise fault("a learned supermask is one mask, gone on from level by level: its schedule is iterative.")
        if not learns and self.levels == 0:
            raise fault("levels: 0 leaves nothing to do; give 1 or more, or a supermask to learn.")
        if learns and not self.trained and (self.levels or 0) > 1:
            raise fault(
                f"levels: {self.levels} of untrained networks after a learned mask: they would not differ; use 1."
            )
        if learns:
            self._all_is_used(self.levels or 0)
        return self

    def _all_is_used(self, levels: int) -> None:
        """Beside a learned mask, what no level looks at is not to be given."""
        unused = {2: (), 1: SCORING, 0: (*SCORING, "mask1", "mask0", "rescaled", "trained")}[min(levels, 2)]
        for key in unused:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                own = " The mask's own rescaling is supermask: {rescaled: true}." if key == "rescaled" else ""
                raise fault(
                    f"{key}: {str(value).lower()} is looked at by no level: level 1 learns the mask, "
                    f"{'level 2 takes it' if levels else 'and none follows'}; give levels: {levels + 1} or leave it "
                    f"out.{own}"
                )

    def levels_of(self, study: Prune) -> int:
        """Levels of pruning; after a learned mask, where there is one."""
        if self.levels is not None:
            return self.levels
        return 0 if self.supermask is not None else study.levels

    @property
    def label(self) -> str:
        """Its name, unique in its study."""
        return self.name

    @property
    def content(self) -> tuple[tuple[str, Any], ...]:
        """All that it does, without its name; types told apart (0 is not false)."""
        return tuple((key, (type(value).__name__, value)) for key, value in self if key != "name")


class Settings(Keys):
    """A study's keys except `treatments`, `reference` and `scales`."""

    title: Title = ""
    network: Network = "fc"
    dataset: Dataset = "digits"
    seeds: Seeds = (0, 1, 2, 3, 4)
    train: Train = Train()
    prune: Prune = Prune()
    learn: Learn = Learn()

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
    def _labels_tell_apart(self) -> Study:
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
            raise UserError("\n".join(f"study {shown(self.name)}: {line}" for line in late))

    def _points(self) -> Iterator[tuple[Treatment, str, int]]:
        for treatment in self.treatments:
            for key in ("w_init", "w_final", "rewind_to"):
                point = getattr(treatment, key)
                if isinstance(point, int):
                    yield treatment, key, point
