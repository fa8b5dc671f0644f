"""Filters of the page's templates: formatting of numbers, and sentences that contain numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from supermask.analysis.claims.sentences import describe_tests
from supermask.core.errors import sanitize
from supermask.core.text import format_number, format_p_cell, pluralize
from supermask.reporting.figures.caption import format_seeds
from supermask.reporting.figures.labels import escape_invisible

if TYPE_CHECKING:
    from supermask.reporting.html.content import Report

MISSING = "–"
ICONS = {"supported": "✓", "not supported": "○", "contradicted": "✕", "not enough data": "?", "no verdict": "·"}
OUTCOME_ICONS = {"holds": "✓", "opposite": "✕", "undecided": "○", "untested": "?"}
RELATIONS = {"above": "above", "below": "below", "at_least": "at least", "at_most": "at most", "matches": "matches"}


def headline(report: Report) -> str:
    """Return the first sentence of the report: verdicts, studies, networks, data sets, seeds and runs."""
    seeds = {len(part.seeds) for part in report.studies}
    subjects = " and ".join(sorted({part.subject for part in report.studies})) or "no network"
    n = format_seeds(seeds) + (", so no test and no interval" if seeds == {1} else "")
    scale = f", scale={report.scale}" if report.scale else ""
    studies = pluralize(len(report.studies), "study", "studies")
    return f"{_count_verdicts(report)} {studies} of {subjects}{scale}; {n}; {pluralize(report.provenance.runs, 'run')}."


def _count_verdicts(report: Report) -> str:
    if not report.claims:
        return "No claim was evaluated."
    if report.is_demonstration:
        return "A demonstration: no verdicts."
    counts = [f"{n} {verdict}" for verdict, n in report.verdicts.items() if n]
    listed = counts[0] if len(counts) == 1 else f"{', '.join(counts[:-1])} and {counts[-1]}"
    return f"Of {pluralize(sum(report.verdicts.values()), 'claim')}, {listed}."


def format_fixed(value: float | None, digits: int = 2) -> str:
    """Format a number with this many decimals, or a dash if it is missing."""
    return MISSING if value is None else format_number(value, digits)


def format_signed(value: float | None, digits: int = 2) -> str:
    """Format a number with its sign."""
    return MISSING if value is None else format_number(value, digits, signed=True)


def format_interval(ends: tuple[float, float] | None, digits: int = 2) -> str:
    """Format an interval: `[−0.10, +0.41]`."""
    return (
        MISSING if ends is None else f"[{format_number(ends[0], digits, True)}, {format_number(ends[1], digits, True)}]"
    )


def format_p(p: float | None) -> str:
    """Format a p-value in a table cell: `0.013`, `< 0.001`. In sentences `core.text.format_p` adds `p =`."""
    return MISSING if p is None else format_p_cell(p)


def format_minutes(minutes: float) -> str:
    """Format minutes: two significant digits below 10, whole minutes above."""
    return f"{minutes:,.0f}" if minutes >= 10 else f"{minutes:.2g}"


FILTERS: dict[str, Callable[..., Any]] = {
    "headline": headline,
    "pluralize": pluralize,
    "format_fixed": format_fixed,
    "format_signed": format_signed,
    "format_interval": format_interval,
    "format_p": format_p,
    "format_minutes": format_minutes,
    "sanitize": sanitize,
    "escape_invisible": escape_invisible,
    "describe_tests": describe_tests,
    "icon": ICONS.__getitem__,
    "outcome_icon": OUTCOME_ICONS.__getitem__,
    "relation": lambda name: RELATIONS.get(name, name),
    "verdict_class": lambda verdict: "verdict-" + verdict.replace(" ", "-"),
}
