"""How the page's templates write numbers, and the sentences that depend on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supermask.analysis.claims.sentences import describe_tests
from supermask.core.errors import sanitize
from supermask.core.text import format_number, format_p_cell, format_range, pluralize

if TYPE_CHECKING:
    from supermask.reporting.html.content import Report

MISSING = "–"
ICONS = {"supported": "✓", "not supported": "○", "contradicted": "✕", "not enough data": "?"}
OUTCOME_ICONS = {"holds": "✓", "opposite": "✕", "undecided": "○", "untested": "?"}
RELATIONS = {"above": "above", "below": "below", "at_least": "at least", "at_most": "at most", "matches": "matches"}


def headline(report: Report) -> str:
    """The one sentence on top: the verdicts, how many seeds, and what was trained on what."""
    seeds = sorted({len(part.seeds) for part in report.studies})
    subjects = " and ".join(sorted({part.subject for part in report.studies})) or "nothing"
    n = f"n = {format_range(seeds)} seeds" if seeds != [1] else "n = 1 seed, so no test and no interval"
    scale = f", scale={report.scale}" if report.scale else ""
    told = pluralize(len(report.studies), "study", "studies")
    return f"{_verdicts(report)} {told} of {subjects}{scale}; {n}; {pluralize(report.making.runs, 'run')}."


def _verdicts(report: Report) -> str:
    if not report.claims:
        return "No claim was evaluated."
    told = [f"{n} {verdict}" for verdict, n in report.verdicts.items() if n]
    listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    return f"Of {pluralize(len(report.claims), 'claim')}, {listed}."


def format_fixed(value: float | None, digits: int = 2) -> str:
    """With so many decimals."""
    return MISSING if value is None else format_number(value, digits)


def format_signed(value: float | None, digits: int = 2) -> str:
    """With its sign."""
    return MISSING if value is None else format_number(value, digits, signed=True)


def format_interval(ends: tuple[float, float] | None, digits: int = 2) -> str:
    """`[−0.10, +0.41]`."""
    return (
        MISSING if ends is None else f"[{format_number(ends[0], digits, True)}, {format_number(ends[1], digits, True)}]"
    )


def format_p(p: float | None) -> str:
    """`0.013`; `< 0.001`."""
    return MISSING if p is None else format_p_cell(p)


def format_minutes(minutes: float) -> str:
    """Minutes with as many digits as they deserve."""
    return f"{minutes:,.0f}" if minutes >= 10 else f"{minutes:.2g}"


FILTERS: dict[str, Callable[..., Any]] = {
    "headline": headline,
    "format_range": format_range,
    "pluralize": pluralize,
    "format_fixed": format_fixed,
    "format_signed": format_signed,
    "format_interval": format_interval,
    "format_p": format_p,
    "format_minutes": format_minutes,
    "sanitize": sanitize,
    "describe_tests": describe_tests,
    "icon": ICONS.__getitem__,
    "outcome_icon": OUTCOME_ICONS.__getitem__,
    "relation": lambda name: RELATIONS.get(name, name),
    "verdict_class": lambda verdict: "verdict-" + verdict.replace(" ", "-"),
}
