"""Comparisons with results of others as text, CSV and JSON."""

from __future__ import annotations

from dataclasses import asdict

from supermask.analysis.comparisons.cells import CELL_SIGNIFICANCE, CellComparison, ResultComparison, TreatmentCounts
from supermask.core import text
from supermask.core.errors import sanitize
from supermask.core.text import format_number, format_p_cell, format_percent, json_line

HEADS = (
    "treatment",
    "level",
    "left %",
    "n",
    "mean",
    "sd",
    "their n",
    "mean",
    "sd",
    "difference",
    "95% interval",
    "p",
    "",
)


def format_text(result: ResultComparison) -> str:
    """Return an aligned table of the cells, counts by treatment, and the conclusions."""
    digits = 2 if result.metric.unit == "percent" else 4 if result.metric.unit == "nats" else 0
    cells = [_cells(cell, digits) for cell in result.cells]
    parts = [
        f"{sanitize(result.study)} ({result.subject}) and {sanitize(result.source)}: {result.metric.title}\n",
        text.format_table(HEADS, cells),
    ]
    if len(result.by_treatment) > 1:
        heads = ("treatment", "cells", f"p < {CELL_SIGNIFICANCE:g}", "by chance", "after Holm", "equivalent")
        counts = [_counts(count) for count in (*result.by_treatment, result.total)]
        parts.append(text.format_table(heads, counts))
    parts.append("\n".join([*result.summary(), *map(text.escape_controls, result.notes)]) + "\n")
    return "\n".join(parts)


def format_csv(result: ResultComparison) -> str:
    """Return one line per cell, with every number."""
    rows = result.data_rows()
    return text.format_csv(list(rows[0]), [list(row.values()) for row in rows])


def format_json(result: ResultComparison) -> str:
    """Return one JSON object: counts, conclusions and cells."""
    total = result.total
    data = {
        "study": result.study,
        "subject": result.subject,
        "source": result.source,
        "metric": result.metric.column,
        "unit": result.metric.unit,
        "margin": result.margin,
        "significance": CELL_SIGNIFICANCE,
        "total": {**asdict(total), "expected_by_chance": total.expected_by_chance},
        "treatments": [{**asdict(c), "expected_by_chance": c.expected_by_chance} for c in result.by_treatment],
        "shared_runs": result.shared_runs,
        "equal_runs": result.equal_runs,
        "notes": list(result.notes),
        "cells": result.data_rows(),
    }
    return json_line(data) + "\n"


def _cells(cell: CellComparison, digits: int) -> list[object]:
    comparison = cell.comparison
    interval = ""
    if comparison.interval95:
        low, high = comparison.interval95
        interval = f"{low:+.{digits}f} to {high:+.{digits}f}"
    marks = [name for name, holds in (("differs", cell.differs), ("equivalent", cell.equivalent)) if holds]
    return [
        cell.treatment,
        cell.level,
        format_percent(cell.remaining),
        cell.n,
        format_number(cell.mean, digits),
        "" if cell.std is None else format_number(cell.std, digits),
        cell.other_n,
        format_number(cell.other_mean, digits),
        "" if cell.other_std is None else format_number(cell.other_std, digits),
        f"{comparison.difference:+.{digits}f}",
        interval,
        "not tested" if comparison.p is None else format_p_cell(comparison.p, CELL_SIGNIFICANCE),
        ", ".join(marks),
    ]


def _counts(count: TreatmentCounts) -> list[object]:
    chance = format_number(count.expected_by_chance)
    return [count.treatment, count.cells, count.differing, chance, count.differing_after_holm, count.equivalent]
