"""Plain data of one run, equal for every tracker: params, metrics, curves, tags."""

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
    "ties_drawn",
    "sign_changed",
    "shrunk",
    "validation_rise",
    "initial_validation_loss",
    "initial_validation_accuracy",
    "seconds",
)
"""Columns of the table of runs that hold measurements. All other columns describe the run and are its params."""

TAGS: tuple[str, ...] = ("study", "treatment", "network", "dataset")
"""Columns for grouping and search. The study is missing if the export named none."""

MAX_NAME = 120
"""Number of characters of a run's name: the limit of W&B, the lowest of the three."""


@dataclass(frozen=True)
class TrackerRun:
    """A finished run for a tracker. Params and metrics are named as in `tables.COLUMNS`; null values are omitted."""

    run_id: str
    name: str
    """Display name on one line: `large_final, level 3, seed 0`."""
    params: dict[str, int | float | str | bool]
    metrics: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]
    """`training_loss`, `validation_loss` (nats) and `validation_accuracy` (in [0, 1]) -> (iteration, value)."""
    tags: dict[str, str]
    """Values of the columns `TAGS`, as text."""
    began: float
    ended: float
    """Seconds since 1970. `ended` is the time at which the run was stored."""


def to_tracker_run(row: Row, curve: LearningCurve, ended: float) -> TrackerRun:
    """Convert a run's row and learning curve. NaN and infinite numbers are omitted, as in every table."""
    values = {name: value for name in COLUMNS if (value := row.get(name)) is not None and not _is_not_finite(value)}
    tags = {name: str(values[name]) for name in TAGS if name in values}
    return TrackerRun(
        run_id=str(row["id"]),
        name=_display_name(row),
        params={name: value for name, value in values.items() if name not in METRICS},
        metrics={name: float(value) for name, value in values.items() if name in METRICS},
        curves=_curves(curve),
        tags=tags,
        began=ended - float(row.get("seconds") or 0),
        ended=ended,
    )


def _display_name(row: Row) -> str:
    # A long treatment is cut, level and seed never: they tell runs of one treatment apart.
    suffix = f", level {row['level']}, seed {row['seed']}" if row["level"] else f", seed {row['seed']}"
    treatment = one_line(str(row.get("treatment") or DENSE))
    available = MAX_NAME - len(suffix)
    return (treatment if len(treatment) <= available else treatment[: available - 4] + " ...") + suffix


def one_line(text: str) -> str:
    """Replace unprintable characters, line ends included, by `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _curves(curve: LearningCurve) -> dict[str, list[tuple[int, float]]]:
    columns = {name: values for name, values in vars(curve).items() if name != "iterations"}
    pairs = {name: list(zip(curve.iterations, values, strict=True)) for name, values in columns.items()}
    finite = {name: [(i, value) for i, value in points if math.isfinite(value)] for name, points in pairs.items()}
    return {name: points for name, points in finite.items() if points}


def _is_not_finite(value: Value) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
