"""Progress of a study as text: one line per treatment, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from supermask.core.text import Row, format_table, pluralize
from supermask.reporting.figures.labels import escape_invisible
from supermask.store.rows import STATUSES
from supermask.store.tables import treatment_labels

COLUMN_TITLES = {
    "finished": "finished",
    "diverged": "diverged",
    "certificate_failed": "failed",
    "ancestor_diverged": "blocked",
    "ancestor_certificate_failed": "blocked by failed",
    "to_do": "to do",
}
"""Status -> column title. `failed`: the certificate. Blocked runs are descendants of a run that diverged or failed."""

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
    accuracy: float | None
    """Test accuracy at early stopping, in [0, 1]; None if the runs were trained on different data."""
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
    has_same_data = len({row.get("data_fingerprint") for row in deepest}) == 1
    accuracy = fmean(float(row["early_stop_test_accuracy"] or 0) for row in deepest) if has_same_data else None
    return TreatmentProgress(label, counts, DeepestLevel(level, density, accuracy, len(deepest)))


def format_status(labels: Iterable[str], rows: Sequence[Row]) -> str:
    """Format a table with one line per treatment, and notes if runs differ in environment or data.

    A status that no run has gets no column.
    """
    treatments = [treatment_progress(label, rows) for label in labels]
    columns = {
        status: title
        for status, title in COLUMN_TITLES.items()
        if status in ALWAYS_SHOWN or any(progress.counts.get(status) for progress in treatments)
    }
    table = [
        [
            escape_invisible(progress.label),
            *(progress.counts[status] for status in columns),
            *_level_cells(progress.last),
        ]
        for progress in treatments
    ]
    titles = ["treatment", *columns.values(), "last level", "remaining", "test accuracy", "seeds"]
    notes = [note for note in (environment_note(rows), mixed_data_note(rows)) if note]
    return format_table(titles, table) + "".join(f"\n{note}\n" for note in notes)


def environment_note(rows: Iterable[Row]) -> str:
    """Describe the environments of the runs of a study if there are several; else return an empty string."""
    engines: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in {str(row["id"]): row for row in rows if row.get("environment")}.values():
        fingerprint = str(row["environment"])
        engines[fingerprint] = f"{row.get('engine')} engine, torch {row.get('torch')}"
        counts[fingerprint] += 1
    if len(counts) < 2:
        return ""
    return (
        f"These runs mix {len(counts)} environments: {_list_counts(counts, engines)}. Repeated runs are bit-identical "
        "only within one environment; means and tests combine all of them."
    )


def mixed_data_note(rows: Iterable[Row]) -> str:
    """Describe the data of the runs of a study if their fingerprints differ; else return an empty string."""
    runs = {str(row["id"]): row for row in rows if row.get("data_fingerprint")}.values()
    counts = Counter(str(row["data_fingerprint"]) for row in runs)
    if len(counts) < 2:
        return ""
    return (
        f"These runs were trained on {len(counts)} different versions of the data: {_list_counts(counts)}. Their "
        "accuracies are not averaged. Keep each version of the data in a store of its own (--store)."
    )


def _list_counts(counts: Counter[str], descriptions: Mapping[str, str] | None = None) -> str:
    """List fingerprints, the most frequent first: `12 runs in 1f2e3d4c (sparse engine, torch 2.10.0)`."""
    details = descriptions or {}
    return "; ".join(
        f"{pluralize(count, 'run')} in {fingerprint[:8]}"
        + (f" ({details[fingerprint]})" if fingerprint in details else "")
        for fingerprint, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _level_cells(last: DeepestLevel | None) -> tuple[str, ...]:
    if last is None:
        return ("-",) * 4
    accuracy = "mixed data" if last.accuracy is None else f"{100 * last.accuracy:.2f}%"
    return str(last.level), f"{100 * last.density:.3g}%", accuracy, str(last.seeds)
