"""Progress of a study as text: one line per treatment, from its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from supermask.core.text import Row, format_table
from supermask.store.rows import STATUSES
from supermask.store.tables import treatment_labels

COLUMN_TITLES = {
    "finished": "finished",
    "diverged": "diverged",
    "certificate_failed": "refused",
    "ancestor_diverged": "blocked",
    "ancestor_certificate_failed": "blocked by refused",
    "to_do": "to do",
}
"""Status -> column title. Blocked runs are descendants of a run that diverged or was refused."""

ALWAYS_SHOWN = ("finished", "to_do")
"""Statuses whose columns are shown even if all counts are zero."""

END_STATUSES = {
    "finished": "finished",
    "diverged": "diverged",
    "certificate_failed": "with a certificate that does not hold",
    "ancestor_diverged": "not possible, because a level before them diverged",
    "ancestor_certificate_failed": "not possible, because the certificate of a level before them does not hold",
    "to_do": "to do",
}
"""Status -> wording in a sentence."""


def format_counts(statuses: Sequence[str]) -> str:
    """Format the number of runs by status: `185 runs: 184 finished, 1 diverged`."""
    counts = ", ".join(
        f"{statuses.count(status):,} {END_STATUSES[status]}" for status in STATUSES if status in statuses
    )
    return f"{len(statuses):,} runs: {counts}"


@dataclass(frozen=True)
class DeepestLevel:
    """Means over the finished runs at the deepest level of a treatment that has any."""

    level: int
    density: float
    """Kept weights / all weights, in [0, 1]."""
    accuracy: float
    """Test accuracy at early stopping, in [0, 1]."""
    seeds: int


@dataclass(frozen=True)
class TreatmentProgress:
    """Progress of a treatment, or of the dense network."""

    label: str
    counts: dict[str, int]
    """Number of runs of each of `STATUSES`."""
    last: DeepestLevel | None


def treatment_progress(label: str, rows: Iterable[Row]) -> TreatmentProgress:
    """Return the progress of the treatment `label`, or of the dense network if it is `dense`."""
    labeled = [row for row in rows if label in treatment_labels(row)]
    finished = [row for row in labeled if row["status"] == "finished"]
    counts = {status: sum(row["status"] == status for row in labeled) for status in STATUSES}
    if not finished:
        return TreatmentProgress(label, counts, None)
    level = max(int(row["level"] or 0) for row in finished)
    deepest = [row for row in finished if row["level"] == level]
    density = fmean(float(row["density"] or 0) for row in deepest)
    accuracy = fmean(float(row["early_stop_test_accuracy"] or 0) for row in deepest)
    return TreatmentProgress(label, counts, DeepestLevel(level, density, accuracy, len(deepest)))


def format_status(labels: Iterable[str], rows: Sequence[Row]) -> str:
    """Format a table with one line per treatment; a status that no run has gets no column."""
    treatments = [treatment_progress(label, rows) for label in labels]
    columns = {
        status: title
        for status, title in COLUMN_TITLES.items()
        if status in ALWAYS_SHOWN or any(progress.counts.get(status) for progress in treatments)
    }
    table = [
        [progress.label, *(progress.counts[status] for status in columns), *_level_cells(progress.last)]
        for progress in treatments
    ]
    return format_table(["treatment", *columns.values(), "last level", "remaining", "test accuracy", "seeds"], table)


def _level_cells(last: DeepestLevel | None) -> tuple[str, ...]:
    if last is None:
        return ("-",) * 4
    return str(last.level), f"{100 * last.density:.3g}%", f"{100 * last.accuracy:.2f}%", str(last.seeds)
