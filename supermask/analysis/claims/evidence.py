"""The data of a clause: values by treatment, level and seed, and the missing runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from supermask.core.text import Row
from supermask.store.rows import check_same_data
from supermask.store.tables import DENSE, TREATMENT_SEPARATOR, treatment_labels
from supermask.study import Study

MAX_LISTED_RUNS = 5
"""Missing runs that are named one by one; the others are counted."""


@dataclass(frozen=True)
class LevelValues:
    """One treatment at one level: the values of its finished runs, and the density of all planned ones."""

    level: int
    remaining: float
    """Weights remaining, percent (mean over seeds)."""
    values: dict[int, float]
    """Seed -> percent, for finished runs."""
    validation: float
    """Mean validation accuracy, in [0, 1]; minus infinity if no run has finished."""


class ClaimData:
    """The rows of one study, grouped for the evaluation of clauses."""

    def __init__(self, study: Study, rows: Sequence[Row], classes: int) -> None:
        check_same_data(rows)
        self.study = study
        self.chance = 100.0 / classes
        self.data_notes = tuple(sorted({str(row["data_note"]) for row in rows if row.get("data_note")}))
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

    def levels(self, label: str, measure: str) -> dict[int, LevelValues]:
        """Level -> values of a treatment, or of a dense network (label from `dense_label`, level 0)."""
        levels: dict[int, list[Row]] = defaultdict(list)
        for row in self._rows[label]:
            levels[int(row["level"] or 0)].append(row)
        return {level: _cell(level, rows, measure) for level, rows in sorted(levels.items())}

    def best_level(self, label: str, measure: str) -> dict[int, LevelValues]:
        """The level of highest mean validation accuracy alone; the first of equal ones."""
        cells = self.levels(label, measure)
        return dict([max(cells.items(), key=lambda item: item[1].validation)]) if cells else {}

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
    values, validation = {}, []
    for row in rows:
        value, validated = row.get(measure), row.get("early_stop_validation_accuracy")
        if row["status"] == "finished" and isinstance(value, int | float) and math.isfinite(value):
            values[int(row["seed"] or 0)] = 100.0 * value
            if isinstance(validated, int | float):
                validation.append(float(validated))
    # A learned mask has no density before its training.
    densities = [float(row["density"]) for row in rows if isinstance(row.get("density"), int | float)]  # type: ignore[arg-type]
    remaining = 100.0 * fmean(densities) if densities else math.nan
    return LevelValues(level, remaining, values, fmean(validation) if validation else -math.inf)
