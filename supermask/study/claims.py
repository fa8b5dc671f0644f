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

MEASURES = (
    "early_stop_test_accuracy",
    "final_test_accuracy",
    "thresholded_test_accuracy",
    "expected_test_accuracy",
)
"""Columns of `supermask table` that a clause can compare, in percentage points."""

LEARNED_MASK_MEASURES = ("thresholded_test_accuracy", "expected_test_accuracy")
"""Measures that only a learned mask has."""


def _descending(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2 or values[0] < values[1]:
        raise ValueError
    return values


SLUG_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
Points = Annotated[float, Field(ge=0, le=100), with_message("a number of percentage points from 0 to 100")]
Remaining = Annotated[
    tuple[Annotated[float, Field(gt=0, le=100), Finite], ...],
    AfterValidator(_descending),
    with_message("two shares of the weights in percent, the larger one first, such as [20, 5]"),
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
    """Comparison of one treatment with a reference, at the levels of a range.

    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """

    treatment: Label
    relation: Annotated[Relation, with_message(f"a relation. Allowed: {', '.join(RELATIONS)}")]
    reference: str
    """A treatment's label, `dense` or `chance`."""
    margin: Points = 0.0
    """Percentage points. `above`, `below`: the difference is larger than this. `at_least`, `at_most`: a difference of
    up to this in the other direction still counts as equal. `matches`: the difference is smaller than this."""
    remaining: Remaining | None = None
    """Range of levels, as percent of weights left; if not given, all levels that both sides have."""
    at: Annotated[Literal["levels", "best"], with_message("where to compare. Allowed: levels, best")] = "levels"
    """`levels`: at equal levels. `best`: each side at its level of best mean validation accuracy."""
    where: Annotated[Literal["every", "some"], with_message("how many levels. Allowed: every, some")] = "every"
    """Claimed of every such level, or of at least one."""
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
    detect: Annotated[NotNegative, with_message("a number of percentage points of at least 0")] = 0.5
    """The smallest difference that matters, in percentage points; reports state the number of seeds that detect it."""
    clauses: tuple[Clause, ...] = ()
    """At least one; `loading.load_claim` fills them in."""

    def as_data(self) -> dict[str, Any]:
        """Return the claim as a study file has it, without keys at their defaults."""
        data = self.model_dump(mode="json", exclude_defaults=True, exclude={"clauses"})
        return {**data, "clauses": [clause.as_data() for clause in self.clauses]}
