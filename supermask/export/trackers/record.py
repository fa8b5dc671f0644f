"""What a tracker is sent of a run: plain data, the same for every tracker."""

from __future__ import annotations

import math
from dataclasses import dataclass

from supermask.core.text import Row, Value
from supermask.core.types import LearningCurve
from supermask.store.tables import COLUMNS, DENSE

METRICS = (
    "weights",
    "kept",
    "density",
    "diverged_at",
    "early_stop_iteration",
    "early_stop_validation_loss",
    "early_stop_validation_accuracy",
    "early_stop_test_loss",
    "early_stop_test_accuracy",
    "final_validation_loss",
    "final_validation_accuracy",
    "final_test_loss",
    "final_test_accuracy",
    "test_accuracy_std",
    "thresholded_test_accuracy",
    "expected_test_accuracy",
    "expected_density",
    "initial_validation_loss",
    "initial_validation_accuracy",
    "seconds",
)
"""Columns of the table of runs that are measured of a run; all others say what it is, and are its params."""

TAGS: tuple[str, ...] = ("study", "treatment", "network", "dataset")
"""Columns that runs are grouped and looked for by; the study is there where one was named."""

MAX_NAME = 120
"""Characters of a run's name: what W&B takes, the shortest of the trackers."""


@dataclass(frozen=True)
class TrackerRun:
    """A finished run, as it is sent. Params and metrics are named as in `tables.COLUMNS`; what is null is left out."""

    run_id: str
    name: str
    """For people: `large_final, level 3, seed 0`; one line."""
    params: dict[str, int | float | str | bool]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    """`training_loss`, `validation_loss` (nats) and `validation_accuracy` (in [0, 1]) -> (iteration, value)."""
    tags: dict[str, str]
    """`TAGS`, as text."""
    began: float
    ended: float
    """Seconds since 1970; `ended` is when the run was stored."""


def to_tracker_run(row: Row, curve: LearningCurve, ended: float) -> TrackerRun:
    """From a run's row and curve. Numbers that are not finite are left out, as in every table."""
    there = {name: value for name in COLUMNS if (value := row.get(name)) is not None and not _is_unprintable(value)}
    tags = {name: str(there[name]) for name in TAGS if name in there}
    return TrackerRun(
        run_id=str(row["id"]),
        name=_name(row),
        params={name: value for name, value in there.items() if name not in METRICS},
        metrics={name: float(value) for name, value in there.items() if name in METRICS},
        curves=_curves(curve),
        tags=tags,
        began=ended - float(row.get("seconds") or 0),
        ended=ended,
    )


def _name(row: Row) -> str:
    """The treatment is cut where it is too long: level and seed are always there."""
    rest = f", level {row['level']}, seed {row['seed']}" if row["level"] else f", seed {row['seed']}"
    treatment = one_line(str(row.get("treatment") or DENSE))
    room = MAX_NAME - len(rest)
    return (treatment if len(treatment) <= room else treatment[: room - 4] + " ...") + rest


def one_line(text: str) -> str:
    """Characters that cannot be shown, line ends among them, become `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _curves(curve: LearningCurve) -> dict[str, list[tuple[int, float]]]:
    columns = {name: values for name, values in vars(curve).items() if name != "iterations"}
    pairs = {name: list(zip(curve.iterations, values, strict=True)) for name, values in columns.items()}
    finite = {name: [(at, value) for at, value in found if math.isfinite(value)] for name, found in pairs.items()}
    return {name: found for name, found in finite.items() if found}


def _is_unprintable(value: Value) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
