"""Claims about the treatments of a study, as a study file states them; they carry no verdict."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from supermask.study.fields import (
    Finite,
    Label,
    NotNegative,
    StrictModel,
    check_one_line,
    validation_error,
    with_message,
)

Relation = Literal["above", "below", "at_least", "at_most", "matches"]
RELATIONS: tuple[Relation, ...] = ("above", "below", "at_least", "at_most", "matches")
"""Relations of a clause. In a study file the relation is the key, and its value is the reference."""

DENSE, CHANCE = "dense", "chance"
"""References besides another treatment: the dense network, and chance (1 / classes)."""

ITERATION_MEASURE = "early_stop_iteration"
"""Convergence speed: iteration of the lowest validation loss. Censored at the last iteration."""

MEASURES = (
    "early_stop_test_accuracy",
    "final_test_accuracy",
    "thresholded_test_accuracy",
    "expected_test_accuracy",
    ITERATION_MEASURE,
)
"""Columns of `supermask table` that a clause can compare: accuracies in percentage points, or iterations."""

LEARNED_MASK_MEASURES = ("thresholded_test_accuracy", "expected_test_accuracy")
"""Measures that only a learned mask has."""


def _descending(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2 or values[0] < values[1]:
        raise ValueError
    return values


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(values) != 2 or values[0] > values[1]:
        raise ValueError
    return values


SLUG_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Margin = Annotated[
    float, Field(ge=0), Finite, with_message("a margin: a number of percentage points from 0 to 100, or of iterations")
]
Share = Annotated[float, Field(gt=0, le=100), Finite, with_message("a share in percent, above 0 and at most 100")]
Band = Annotated[
    tuple[Annotated[float, Field(gt=0, le=100), Finite], ...],
    AfterValidator(_descending),
    with_message("two shares of the weights in percent, the larger one first, such as [20, 5]"),
]
LevelBand = Annotated[
    tuple[Annotated[int, Field(ge=0, le=1000)], ...],
    AfterValidator(_ascending),
    with_message("two pruning levels, the smaller one first, such as [3, 8]"),
]
Slug = Annotated[str, Field(pattern=SLUG_PATTERN, max_length=60), with_message("a short name: a-z, 0-9 and -")]
Figure = Annotated[
    str, Field(pattern=rf"{SLUG_PATTERN}|^$", max_length=60), with_message("the name of a figure, such as accuracy")
]
Statement = Annotated[
    str,
    Field(min_length=1, max_length=500),
    AfterValidator(check_one_line),
    with_message("a sentence: one line of text (500 characters)"),
]


class Clause(StrictModel):
    """Comparison of one treatment with a reference over a band of levels.

    The band is part of the clause, so that it is fixed before the results are known.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """

    treatment: Label
    relation: Annotated[Relation, with_message(f"a relation. Allowed: {', '.join(RELATIONS)}")]
    reference: str
    """A treatment's label, `dense` or `chance`."""
    margin: Margin = 0.0
    """In the unit of the measure. `above`, `below`: the difference is larger than this. `at_least`, `at_most`: a
    difference of up to this in the other direction still counts as equal. `matches`: it is smaller than this."""
    share: Share | None = None
    """The margin as a share, in percent, of what `control` loses against the reference, per seed over the band."""
    control: str | None = None
    """Label of the treatment whose loss `share` refers to."""
    band: Band | None = None
    """Levels, as percent of weights left; if neither this nor `levels` is given, all levels that both sides have."""
    levels: LevelBand | None = None
    """Levels by number, first and last."""
    at: Annotated[Literal["levels", "best"], with_message("where to compare. Allowed: levels, best")] = "levels"
    """`levels`: at equal levels. `best`: in each seed, both sides at their level of best validation accuracy."""
    where: Annotated[
        Literal["mean", "every", "some"], with_message("how the levels count. Allowed: mean, every, some")
    ] = "mean"
    """Claimed of the mean over the band (one test), of every level of it, or of at least one."""
    measure: Annotated[
        Literal[
            "early_stop_test_accuracy",
            "final_test_accuracy",
            "thresholded_test_accuracy",
            "expected_test_accuracy",
            "early_stop_iteration",
        ],
        with_message(f"what a claim can be about. Allowed: {', '.join(MEASURES)}"),
    ] = "early_stop_test_accuracy"

    @model_validator(mode="after")
    def _check_decidable(self) -> Clause:
        for is_fault, text in (
            (
                self.relation in ("at_least", "at_most", "matches") and not self.margin and self.share is None,
                f"{self.relation} needs a margin in percentage points, or a share of what a control loses: how much "
                "less is still as good?",
            ),
            (self.margin and self.share is not None, "margin and share are two ways to say the same; leave one out."),
            (self.margin > 100 and not self.is_iterations, f"margin: {self.margin:g} percentage points; at most 100."),
            (
                (self.share is None) != (self.control is None),
                "share and control belong together, such as share: 25, control: random.",
            ),
            (self.band is not None and self.levels is not None, "band and levels both choose levels; leave one out."),
            (
                self.at == "best" and (self.band is not None or self.levels is not None),
                "at: best chooses the level; leave out band, levels and remaining.",
            ),
            (self.at == "best" and self.where != "mean", f"at: best is one comparison; leave out where: {self.where}."),
            (
                self.reference == CHANCE and (self.is_iterations or self.share is not None),
                f"{CHANCE} is an accuracy without a control: leave out share, and take an accuracy as measure.",
            ),
        ):
            if is_fault:
                raise validation_error(text)
        return self

    @property
    def is_iterations(self) -> bool:
        """True if the measure is a number of iterations, not an accuracy."""
        return self.measure == ITERATION_MEASURE

    def as_data(self) -> dict[str, Any]:
        """Return the clause as a study file has it: the relation is the key, the reference its value."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return {"treatment": data.pop("treatment"), data.pop("relation"): data.pop("reference"), **data}


class Claim(StrictModel):
    """A statement, and the clauses that must all hold for it."""

    id: Slug
    statement: Statement
    source: Statement = "the study file"
    figure: Figure = ""
    """The study's figure that shows it, such as `accuracy`."""
    detect: Annotated[NotNegative, with_message("a number of percentage points of at least 0")] = 0.0
    """A difference of interest: the number of seeds that shows it is stated instead of the one for the difference that
    was found; 0 for the latter."""
    clauses: tuple[Clause, ...] = ()
    """At least one; `loading.load_claim` fills them in."""

    def as_data(self) -> dict[str, Any]:
        """Return the claim as a study file has it, without keys at their defaults."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"clauses"})
        return {**data, "clauses": [clause.as_data() for clause in self.clauses]}
