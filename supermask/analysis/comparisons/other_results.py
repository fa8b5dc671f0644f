"""Results of others as plain data, and those of rows of another store or table of runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from supermask.analysis.summary import Metric
from supermask.core.errors import UserError, check_one_of, quote
from supermask.core.text import Row
from supermask.store.tables import AUXILIARY, COLUMNS, treatment_labels

METRICS = tuple(
    name
    for name in COLUMNS
    if name.endswith(("_accuracy", "_loss")) or name in ("early_stop_iteration", "expected_density")
)
"""Columns that can be compared. Accuracies and shares are compared in percent."""


@dataclass(frozen=True)
class OtherResult:
    """Result of one run that somebody else made."""

    treatment: str
    level: int | None
    """None if only the density is known."""
    density: float | None
    """Share of weights remaining, in [0, 1]."""
    seed: str | None
    value: float
    """In the metric's unit: percent for accuracies."""


@dataclass(frozen=True)
class OtherResults:
    """Results of somebody else, and notes on how they were read."""

    source: str
    """Name of the file or store, for messages."""
    results: tuple[OtherResult, ...]
    notes: tuple[str, ...] = ()


def find_metric(column: str) -> Metric:
    """Return the metric of a column of `METRICS`. Raises UserError for any other column."""
    check_one_of("a metric that can be compared", column, METRICS)
    title = column.replace("_", " ")
    if column.endswith("_loss"):
        return Metric(column, 1.0, "nats", f"{title} (nats)")
    if column == "early_stop_iteration":
        return Metric(column, 1.0, "iterations", "early-stopping iteration")
    return Metric(column, 100.0, "percent", f"{title} (%)")


def row_results(rows: Sequence[Row], metric: Metric, source: str) -> OtherResults:
    """Return the finished runs of another store or table of runs; a run of several treatments is one of each."""
    results = []
    for row in rows:
        value = row.get(metric.column)
        if row.get("status") != "finished" or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        density = row.get("density")
        results += [
            OtherResult(
                label,
                int(row["level"] or 0),
                float(density) if isinstance(density, int | float) else None,
                str(row["seed"]),
                float(value) * metric.scale,
            )
            for label in treatment_labels(row)
            if label != AUXILIARY
        ]
    check_distinct_runs((result.treatment, result.level, result.seed) for result in results)
    if not results:
        raise UserError(f"{source} has no finished run of this study with {metric.column}.")
    return OtherResults(source, tuple(results))


def check_distinct_runs(runs: Iterable[tuple[str, object, object]]) -> None:
    """Raise UserError if two runs have the same treatment, level and seed: rows of several settings, such as scales."""
    seen: set[tuple[str, object, object]] = set()
    for run in runs:
        if run in seen:
            treatment, level, seed = run
            raise UserError(
                f"there are several runs of treatment {quote(treatment)} at level {level} with seed {seed}: rows of "
                "several settings. Select one with scale=NAME or KEY=VALUE."
            )
        seen.add(run)
