"""Claims about a study's treatments, as a study file states them: data, without any verdict."""

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
"""What a clause can say of a treatment: each is a key whose value is what it is compared with."""

DENSE, CHANCE = "dense", "chance"
"""What a treatment can be compared with besides another treatment: the dense network, 1 / classes."""

MEASURES = (
    "early_stop_test_accuracy",
    "final_test_accuracy",
    "thresholded_test_accuracy",
    "expected_test_accuracy",
)
"""Columns of `supermask table` that a clause can be about, in percentage points."""


LEARNED_MASK_MEASURES = ("thresholded_test_accuracy", "expected_test_accuracy")
"""Those of them that only a learned mask has."""


def _descending(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2 or values[0] < values[1]:
        raise ValueError
    return values


MAX_TEXT = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Points = Annotated[float, Field(ge=0, le=100), with_message("a number of percentage points from 0 to 100")]
Remaining = Annotated[
    tuple[Annotated[float, Field(gt=0, le=100), Finite], ...],
    AfterValidator(_descending),
    with_message("two shares of the weights in percent, the larger one first, such as [20, 5]"),
]
Slug = Annotated[str, Field(pattern=MAX_TEXT, max_length=60), with_message("a short name: a-z, 0-9 and -")]
Figure = Annotated[
    str, Field(pattern=rf"{MAX_TEXT}|^$", max_length=60), with_message("the name of a figure, such as accuracy")
]
Statement = Annotated[
    str,
    Field(min_length=1, max_length=500),
    AfterValidator(check_one_line),
    with_message("a sentence: one line of text (500 characters)"),
]


class Clause(StrictModel):
    """One treatment against another, at the levels named. Source: paper.md sections 7 and 9."""

    treatment: Label
    relation: Annotated[Relation, with_message(f"a relation. Allowed: {', '.join(RELATIONS)}")]
    reference: str
    """A treatment's label, `dense` or `chance`."""
    margin: Points = 0.0
    """Percentage points. `above` and `below`: by more than this. `at_least`, `at_most`: this much less, or more, is
    still as good. `matches`: differs by less than this."""
    remaining: Remaining | None = None
    """Of the levels only those with so many of the weights left, in percent; all that both have, if not given."""
    at: Annotated[Literal["levels", "best"], with_message("where to compare. Allowed: levels, best")] = "levels"
    """`best`: each side at its level of best mean validation accuracy."""
    where: Annotated[Literal["every", "some"], with_message("how many levels. Allowed: every, some")] = "every"
    """Whether it is claimed of every such level, or of some."""
    measure: Annotated[
        Literal[
            "early_stop_test_accuracy", "final_test_accuracy", "thresholded_test_accuracy", "expected_test_accuracy"
        ],
        with_message(f"what a claim can be about. Allowed: {', '.join(MEASURES)}"),
    ] = "early_stop_test_accuracy"

    @model_validator(mode="after")
    def _check_decidable(self) -> Clause:
        if self.relation in ("at_least", "at_most", "matches") and self.margin == 0:
            raise validation_error(
                f"{self.relation} needs a margin in percentage points: how much less is still as good?"
            )
        if self.at == "best" and self.remaining is not None:
            raise validation_error("at: best chooses the level; leave out remaining.")
        return self

    def as_data(self) -> dict[str, Any]:
        """As a study file has it: the relation is a key, its value what the treatment is compared with."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return {"treatment": data.pop("treatment"), data.pop("relation"): data.pop("reference"), **data}


class Claim(StrictModel):
    """A statement, and the clauses that all have to hold for it."""

    id: Slug
    statement: Statement
    source: Statement = "the study file"
    figure: Figure = ""
    """The study's figure that shows it, such as `accuracy`."""
    detect: Annotated[NotNegative, with_message("a number of percentage points of at least 0")] = 0.5
    """The smallest difference that would matter, in points: how many seeds it takes to see it is told."""
    clauses: tuple[Clause, ...] = ()
    """At least one: `claim_loading` reads them."""

    def as_data(self) -> dict[str, Any]:
        """As a study file has it, without what is not set."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"clauses"})
        return {**data, "clauses": [clause.as_data() for clause in self.clauses]}
