"""The data of a clause: values by treatment, level and seed, and the missing runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from supermask.core.text import Row, Value
from supermask.store.rows import check_same_data
from supermask.store.tables import DENSE, TREATMENT_SEPARATOR, treatment_labels
from supermask.study import Study
from supermask.study.claims import ITERATION_MEASURE

VALIDATED = "early_stop_validation_accuracy"

MAX_LISTED_RUNS = 5
"""Missing runs that are named one by one; the others are counted."""


MAX_RISE = 0.1
"""Points of validation accuracy per doubling of iterations; a learned mask that rises faster has not converged."""


@dataclass(frozen=True)
class LevelValues:
    """One treatment at one level: the values of its finished runs, and the density of all planned ones."""

    level: int
    remaining: float
    """Weights remaining, percent (mean over seeds)."""
    values: dict[int, float]
    """Seed -> value, for finished runs: percent, or iterations."""
    censored: frozenset[int] = frozenset()
    """Seeds whose lowest validation loss was at the last iteration; empty unless iterations are compared."""


class ClaimData:
    """The rows of one study, grouped for the evaluation of clauses."""

    def __init__(self, study: Study, rows: Sequence[Row], classes: int) -> None:
        check_same_data(rows)
        self.study = study
        self.chance = 100.0 / classes
        self.data_notes = tuple(sorted({str(row["data_note"]) for row in rows if row.get("data_note")}))
        self.network = next((str(row["network"]) for row in rows if row.get("network")), study.network)
        self._rows: dict[str, list[Row]] = defaultdict(list)
        # A learned mask that is trained further is the initial state of its treatment and not a result of it.
        trained_further = {
            t.label for t in study.treatments if t.supermask is not None and t.num_levels(study.prune) > 0
        }
        for row in rows:
            for label in treatment_labels(row):
                if row["level"] == 0:
                    self._rows[label if label == DENSE else _own_dense_label(label)].append(row)
                elif not (row.get("supermask") and label in trained_further):
                    self._rows[label].append(row)

    def dense_label(self, treatment: str) -> str:
        """Label of the dense network that a treatment is pruned from: `dense`, unless it has one of its own."""
        own = _own_dense_label(treatment)
        return own if own in self._rows else DENSE

    def describe_setting(self, labels: Sequence[str] = ()) -> str:
        """Network, data and length of training: `fc-300-100 on mnist, 16,500 iterations`.

        If masks are learned in one of these treatments: `..., masks learned for 110,000`.
        """
        iterations = next((row["iterations"] for row in self._rows[DENSE] if row.get("iterations")), None)
        length = f", {iterations:,} iterations" if isinstance(iterations, int) else ""
        learned = {
            row["iterations"]
            for label in labels
            for row in self._rows[label]
            if row.get("supermask") and isinstance(row.get("iterations"), int)
        }
        if len(learned) == 1:
            length += f", masks learned for {learned.pop():,}"
        return f"{self.network} on {self.study.dataset}{length}"

    def finished_run_ids(self, labels: Sequence[str]) -> set[str]:
        """Return the ids of the finished runs of these treatments."""
        return {str(row["id"]) for label in labels for row in self._rows[label] if row["status"] == "finished"}

    def level_numbers(self, label: str) -> set[int]:
        """All levels of a treatment, finished or not."""
        return {int(row["level"] or 0) for row in self._rows[label]}

    def levels(self, label: str, measure: str) -> dict[int, LevelValues]:
        """Level -> values of a treatment, or of a dense network (label from `dense_label`, level 0)."""
        levels: dict[int, list[Row]] = defaultdict(list)
        for row in self._rows[label]:
            levels[int(row["level"] or 0)].append(row)
        return {level: _cell(level, rows, measure) for level, rows in sorted(levels.items())}

    def best_level(self, label: str, measure: str) -> dict[int, LevelValues]:
        """In each seed, the value at its level of best validation accuracy (the first of equal ones).

        A seed counts if it has finished at every planned level: else its best level may be one that is missing.
        The key and `level` are the most frequent best level.
        """
        planned = self.level_numbers(label)
        by_seed: dict[int, list[Row]] = defaultdict(list)
        for row in self._rows[label]:
            if row["status"] == "finished" and _finite(row.get(VALIDATED)) is not None:
                by_seed[int(row["seed"] or 0)].append(row)
        if not planned:
            return {}
        best = [
            max(sorted(rows, key=lambda row: int(row["level"] or 0)), key=lambda row: _finite(row[VALIDATED]) or 0.0)
            for rows in by_seed.values()
            if {int(row["level"] or 0) for row in rows} == planned
        ]
        levels = Counter(int(row["level"] or 0) for row in best)
        level = min(levels, key=lambda level: (-levels[level], level)) if levels else min(planned)
        return {level: _cell(level, best, measure)}

    def describe_nonconvergence(self, label: str) -> str:
        """Reason why the learned masks of a treatment have not converged; empty if they have, or if none is learned.

        The rise of the validation accuracy per doubling of iterations, mean over seeds, may be 0.1 points.
        """
        learned = [row for row in self._rows[label] if row.get("supermask") and row["status"] == "finished"]
        rises = [_finite(row.get("validation_rise")) for row in learned]
        if None in rises:
            return (
                f"{label}: whether its masks have converged is not known, because the column validation_rise is empty; "
                "write the table again, from the store"
            )
        rise = 100.0 * fmean(value for value in rises if value is not None) if rises else 0.0
        if rise <= MAX_RISE:
            return ""
        return (
            f"{label} has not converged: its validation accuracy still rises by {rise:.2f} points per doubling of "
            f"iterations (limit: {MAX_RISE:g}); learn it longer (learn.epochs)"
        )

    def describe_missing(self, label: str, levels: set[int]) -> list[str]:
        """Sentences on the unfinished runs of a treatment at these levels, by status; diverged runs are named."""
        absent = [row for row in self._rows[label] if row["status"] != "finished" and row["level"] in levels]
        by_status: dict[str, list[Row]] = defaultdict(list)
        for row in absent:
            by_status[str(row["status"])].append(row)
        sentences = []
        for status, rows in by_status.items():
            if status == "to_do":
                sentences.append(f"{label}: {len(rows)} to do")
                continue
            names = [f"level {row['level']} seed {row['seed']}" for row in rows[:MAX_LISTED_RUNS]]
            more = f" and {len(rows) - MAX_LISTED_RUNS} more" if len(rows) > MAX_LISTED_RUNS else ""
            sentences.append(f"{label}: {len(rows)} {status.replace('_', ' ')} ({', '.join(names)}{more})")
        return sentences


def _own_dense_label(treatment: str) -> str:
    # No label of a treatment contains the separator of labels.
    return f"dense network{TREATMENT_SEPARATOR}{treatment}"


def _cell(level: int, rows: Sequence[Row], measure: str) -> LevelValues:
    is_iterations = measure == ITERATION_MEASURE
    values: dict[int, float] = {}
    censored = set()
    for row in rows:
        value = _finite(row.get(measure))
        if row["status"] == "finished" and value is not None:
            seed = int(row["seed"] or 0)
            values[seed] = value if is_iterations else 100.0 * value
            if is_iterations and value >= (_finite(row.get("iterations")) or math.inf):
                censored.add(seed)
    # A learned mask has no density before its training.
    densities = [density for row in rows if (density := _finite(row.get("density"))) is not None]
    return LevelValues(level, 100.0 * fmean(densities) if densities else math.nan, values, frozenset(censored))


def _finite(value: Value) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
