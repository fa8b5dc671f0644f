"""What a study's rows have for a clause: values by treatment, level and seed, and what is missing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from supermask.core.text import Row
from supermask.datasets.specs import DATASETS
from supermask.store.tables import DENSE, treatment_labels
from supermask.study import Study

MAX_LISTED_RUNS = 5
"""Runs that are missing and are named one by one."""


@dataclass(frozen=True)
class LevelValues:
    """One treatment at one level: what is planned of it, and what has finished."""

    level: int
    remaining: float
    """Weights remaining, percent (mean over seeds)."""
    values: dict[int, float]
    """Seed -> percent, of the finished runs."""
    validation: float
    """Mean validation accuracy; minus infinity if none has finished."""


class ClaimData:
    """The rows of one study, as clauses ask for them."""

    def __init__(self, study: Study, rows: Sequence[Row]) -> None:
        self.study = study
        self.chance = 100.0 / DATASETS[study.dataset].classes
        self.data_notes = tuple(sorted({str(row["data_note"]) for row in rows if row.get("data_note")}))
        self._rows: dict[str, list[Row]] = defaultdict(list)
        # A mask that is gone on from is the start of a treatment, not its outcome.
        followed = {t.label for t in study.treatments if t.supermask is not None and t.num_levels(study.prune) > 0}
        for row in rows:
            for label in [DENSE] if row["level"] == 0 else treatment_labels(row):
                if not (row.get("supermask") and label in followed):
                    self._rows[label].append(row)

    def levels(self, label: str, measure: str) -> dict[int, LevelValues]:
        """Level -> what there is of a treatment, or of the dense network."""
        levels: dict[int, list[Row]] = defaultdict(list)
        for row in self._rows[label]:
            levels[int(row["level"] or 0)].append(row)
        return {level: _cell(level, rows, measure) for level, rows in sorted(levels.items())}

    def best_level(self, label: str, measure: str) -> dict[int, LevelValues]:
        """The one level of best mean validation accuracy, the first of equals."""
        cells = self.levels(label, measure)
        return dict([max(cells.items(), key=lambda item: item[1].validation)]) if cells else {}

    def describe_missing(self, label: str, levels: set[int]) -> list[str]:
        """Runs of a treatment that should be there and are not, in words; those that diverged by name."""
        absent = [row for row in self._rows[label] if row["status"] != "finished" and row["level"] in levels]
        by_status: dict[str, list[Row]] = defaultdict(list)
        for row in absent:
            by_status[str(row["status"])].append(row)
        said = []
        for status, rows in by_status.items():
            if status == "to_do":
                said.append(f"{label}: {len(rows)} to do")
                continue
            names = [f"level {row['level']} seed {row['seed']}" for row in rows[:MAX_LISTED_RUNS]]
            more = f" and {len(rows) - MAX_LISTED_RUNS} more" if len(rows) > MAX_LISTED_RUNS else ""
            said.append(f"{label}: {len(rows)} {status.replace('_', ' ')} ({', '.join(names)}{more})")
        return said


def _cell(level: int, rows: Sequence[Row], measure: str) -> LevelValues:
    values, validation = {}, []
    for row in rows:
        value, validated = row.get(measure), row.get("early_stop_validation_accuracy")
        if row["status"] == "finished" and isinstance(value, int | float) and math.isfinite(value):
            values[int(row["seed"] or 0)] = 100.0 * value
            if isinstance(validated, int | float):
                validation.append(float(validated))
    # An expected mask has no kept count of its own.
    densities = [float(row["density"]) for row in rows if isinstance(row.get("density"), int | float)]  # type: ignore[arg-type]
    remaining = 100.0 * fmean(densities) if densities else math.nan
    return LevelValues(level, remaining, values, fmean(validation) if validation else -math.inf)
