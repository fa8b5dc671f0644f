"""How far a study is: rows -> a line for each treatment."""

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
    "ancestor_diverged": "cut off",
    "to_do": "to do",
}
"""Status -> what it is called above its column; `cut off` runs stand below a run that did not finish."""

ALWAYS = ("finished", "to_do")
"""Columns that are there even where they are zero."""


END_STATUSES = {
    "finished": "finished",
    "diverged": "diverged",
    "certificate_failed": "with a certificate that does not hold",
    "ancestor_diverged": "not possible, because a level before them diverged",
    "to_do": "to do",
}
"""Status -> what is said of the runs that have it."""


def format_counts(statuses: Sequence[str]) -> str:
    """`185 runs: 184 finished, 1 diverged`."""
    counts = ", ".join(
        f"{statuses.count(status):,} {END_STATUSES[status]}" for status in STATUSES if status in statuses
    )
    return f"{len(statuses):,} runs: {counts}"


@dataclass(frozen=True)
class DeepestLevel:
    """The deepest level at which a treatment has a finished run: means over those runs."""

    level: int
    density: float
    """Kept weights over all weights, in [0, 1]."""
    accuracy: float
    """Test accuracy at early stopping, in [0, 1]."""
    seeds: int


@dataclass(frozen=True)
class TreatmentProgress:
    """How far a treatment (or the dense network) is."""

    label: str
    counts: dict[str, int]
    """For each of `STATUSES`, how many runs."""
    last: DeepestLevel | None


def treatment_progress(label: str, rows: Iterable[Row]) -> TreatmentProgress:
    """The progress of the treatment that is called `label`, or `dense`."""
    own = [row for row in rows if label in treatment_labels(row)]
    finished = [row for row in own if row["status"] == "finished"]
    counts = {status: sum(row["status"] == status for row in own) for status in STATUSES}
    if not finished:
        return TreatmentProgress(label, counts, None)
    level = max(int(row["level"] or 0) for row in finished)
    last = [row for row in finished if row["level"] == level]
    density = fmean(float(row["density"] or 0) for row in last)
    accuracy = fmean(float(row["early_stop_test_accuracy"] or 0) for row in last)
    return TreatmentProgress(label, counts, DeepestLevel(level, density, accuracy, len(last)))


def format_status(labels: Iterable[str], rows: Sequence[Row]) -> str:
    """A line for each of the treatments; what became of no run at all has no column."""
    found = [treatment_progress(label, rows) for label in labels]
    shown = {s: head for s, head in COLUMN_TITLES.items() if s in ALWAYS or any(each.counts[s] for each in found)}
    table = [[each.label, *(each.counts[status] for status in shown), *_last_level(each.last)] for each in found]
    heads = ["treatment", *shown.values(), "last level", "remaining", "test accuracy", "seeds"]
    return format_table(heads, table)


def _last_level(last: DeepestLevel | None) -> tuple[str, ...]:
    if last is None:
        return ("-",) * 4
    return str(last.level), f"{100 * last.density:.3g}%", f"{100 * last.accuracy:.2f}%", str(last.seeds)
