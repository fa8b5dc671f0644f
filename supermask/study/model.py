"""The Study: a complete, explicit, validated configuration; what a study file becomes.

The models below are the file's keys, their types, defaults and rules, and nothing else; `loading` makes them from
files, scales and overrides, with errors that name file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from supermask import networks
from supermask.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.criteria import CRITERIA
from supermask.datasets.facts import DATASETS
from supermask.errors import UserError, did_you_mean
from supermask.networks import canonical_name
from supermask.study.import_path import NamedFunction, import_function, is_import_path
from supermask.study.yaml_tree import shown
from supermask.types import Kind

PRUNE_RATE = "a prune rate: it is the share of the surviving weights removed in a level, above 0 and below 1"


def _fault(text: str) -> PydanticCustomError:
    return PydanticCustomError("rule", "{text}", {"text": text})


def _rule(what: str) -> WrapValidator:
    """Whatever pydantic finds wrong with a value, the message is `VALUE is not {what}.` Lists stand for tuples."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(tuple(value) if isinstance(value, list) else value)
        except ValidationError:
            raise _fault(f"{shown(value)} is not {what}.") from None

    return WrapValidator(check)


def _choice(what: str, allowed: Collection[str], also: str, other: Callable[[str], bool]) -> PlainValidator:
    """One of `allowed`, or a name that `other` accepts; `other` may raise UserError."""

    def check(value: Any) -> str:
        if isinstance(value, str):
            try:
                if value in allowed or other(value):
                    return value
            except UserError as error:
                raise _fault(str(error)) from error
        near = did_you_mean(value, allowed) if isinstance(value, str) else ""
        raise _fault(f"{shown(value)} is not {what}{near or '.'} Allowed: {', '.join(allowed)}{also}.")

    return PlainValidator(check)


def _is_network(name: str) -> bool:
    try:
        return bool(canonical_name(name))
    except UserError:
        return False


def resolve_criterion(name: str) -> NamedFunction:
    """The function of a criterion: the package's own, or the user's by import path, with its source's SHA-256.

    Raises UserError: see `import_path.import_function`.
    """
    if name in CRITERIA:
        return NamedFunction(name, CRITERIA[name])
    return import_function(name, ("layer", "rng"))


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(values)):
        raise ValueError
    return values


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError
    return values


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _free_label(text: str) -> str:
    if text == "dense" or " | " in text or text != text.strip():
        raise ValueError
    return text


Finite = Field(allow_inf_nan=False)
Count = Annotated[int, Field(ge=1), _rule("a whole number of at least 1")]
Level = Annotated[int, Field(ge=1, le=1000), _rule("a number of pruning levels: a whole number from 1 to 1000")]
Positive = Annotated[float, Field(gt=0), Finite, _rule("a number above 0")]
NotNegative = Annotated[float, Field(ge=0), Finite, _rule("a number of at least 0")]
Fraction = Annotated[float, Field(ge=0, lt=1), _rule("a number of at least 0 and below 1")]
Factor = Annotated[float, Field(gt=0, lt=1), _rule("a factor above 0 and below 1")]
Rate = Annotated[float, Field(gt=0, lt=1), _rule(PRUNE_RATE)]
Switch = Annotated[bool, _rule("true or false")]
Epochs = Annotated[
    tuple[Annotated[float, Field(gt=0), Finite], ...],
    AfterValidator(_ascending),
    _rule("a list of epochs: numbers above 0, ascending"),
]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
    Field(min_length=1, max_length=10_000),
    AfterValidator(_distinct),
    _rule("a number of seeds (1 to 10,000: 5 means 0 to 4) or a list of distinct whole numbers of at least 0"),
]
Title = Annotated[str, Field(max_length=200), AfterValidator(_one_line), _rule("one line of text (200 characters)")]
Label = Annotated[
    str,
    Field(min_length=1, max_length=80),
    AfterValidator(_one_line),
    AfterValidator(_free_label),
    _rule("a name for a treatment: one line of text (80 characters); 'dense' and ' | ' have a meaning of their own"),
]
_OWN = ", or module:function of your own"
Network = Annotated[
    str, _choice("a network", networks.NAMES, ", or fc with the widths of its hidden layers (fc-300-100)", _is_network)
]
Dataset = Annotated[str, _choice("a dataset", DATASETS, "", lambda name: False)]
Criterion = Annotated[
    str,
    _choice("a criterion", CRITERIA, _OWN, lambda name: is_import_path(name) and bool(resolve_criterion(name))),
]
Mask1 = Annotated[str, _choice("a mask-1 action", MASK1_ACTIONS, "", lambda name: False)]
Mask0 = Annotated[str, _choice("a mask-0 action", MASK0_ACTIONS, "", lambda name: False)]
Schedule = Annotated[Literal["iterative", "one_shot"], _rule("a schedule. Allowed: iterative, one_shot")]
Scope = Annotated[Literal["layer", "global"], _rule("a scope. Allowed: layer, global")]
Iteration = Annotated[int, Field(ge=0)]
ReadPoint = Annotated[
    Iteration | Literal["start", "end", "lowest_validation_loss"],
    _rule("a point of the training. Allowed: start, end, lowest_validation_loss, or an iteration (0, 1, 2, ...)"),
]
RewindPoint = Annotated[
    Iteration | Literal["start", "end"],
    _rule("a point to rewind to. Allowed: start, end, or an iteration (0, 1, 2, ...)"),
]


class _Keys(BaseModel):
    """Plain data: nothing is converted, nothing unknown is let through, nothing changes later."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Train(_Keys):
    """The training recipe. The defaults are the paper's for FC on MNIST. Source: paper.md section 2."""

    optimizer: Annotated[Literal["adam", "sgd"], _rule("an optimizer. Allowed: adam, sgd")] = "adam"
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


class Rates(_Keys):
    """Shares of the surviving weights removed in a level, by kind of tensor. Source: paper.md section 2."""

    conv: Rate = 0.1
    hidden: Rate = 0.2
    output: Rate = 0.1
    global_: Rate = Field(default=0.2, alias="global")
    """The one rate under `scope: global`, and not used otherwise."""

    def of(self, kind: Kind) -> float:
        """The rate of a kind of tensor, under `scope: layer`."""
        return {"conv": self.conv, "hidden": self.hidden, "output": self.output}[kind]


class Prune(_Keys):
    """How much is pruned, and when. Source: paper.md section 2."""

    schedule: Schedule = "iterative"
    scope: Scope = "layer"
    levels: Level = 24
    rates: Rates = Rates()


class Treatment(_Keys):
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

    @field_validator("rewind_to")
    @classmethod
    def _only_rewind_rewinds(cls, point: int | str, info: ValidationInfo) -> int | str:
        mask1 = info.data.get("mask1", "rewind")
        if point != "start" and mask1 != "rewind":
            raise _fault(f"{shown(point)} needs mask1: rewind, but mask1 is {mask1}, which rewinds nothing.")
        return point

    @property
    def label(self) -> str:
        """Its name, unique in its study."""
        return self.name

    @property
    def content(self) -> tuple[tuple[str, Any], ...]:
        """All that it does, without its name; types told apart (0 is not false)."""
        return tuple((key, (type(value).__name__, value)) for key, value in self if key != "name")


class Settings(_Keys):
    """A study's keys except `treatments`, `reference` and `scales`."""

    title: Title = ""
    network: Network = "fc"
    dataset: Dataset = "digits"
    seeds: Seeds = (0, 1, 2, 3, 4)
    train: Train = Train()
    prune: Prune = Prune()

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
        data = self.model_dump(mode="json", by_alias=True, exclude={"name"})
        return {**data, "reference": {"name": self.reference}}

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
