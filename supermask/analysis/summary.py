"""From runs to what a figure shows: one point a treatment and level, its comparison, and every run left out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from supermask.analysis.stats import (
    SIGNIFICANCE,
    Comparison,
    MeanInterval,
    bootstrap_median,
    compare,
    effect_interval,
    holm,
    mean_interval,
    paired_sign_flip_p,
)
from supermask.core.errors import UserError, did_you_mean
from supermask.core.text import Row, Value
from supermask.store.tables import DENSE, treatment_labels

DENSITY_TOLERANCE = 0.02
"""Relative: weights remaining that differ by no more are one density, and results there can be compared."""


@dataclass(frozen=True)
class Metric:
    """What the y axis shows."""

    column: str
    scale: float
    unit: str
    title: str


@dataclass(frozen=True)
class TreatmentPoint:
    """One treatment at one level. `values` are by seed, in the measure's unit."""

    treatment: str
    level: int
    remaining: float
    """Weights remaining, percent (mean over seeds)."""
    values: dict[int, float]
    interval: MeanInterval
    comparison: Comparison | None = None
    """With the reference treatment, at this level; None where there is nothing to compare with."""
    p_holm: float | None = None
    p_sign_flip: float | None = None
    """The exact sign-flip permutation p of this level alone, where the seeds are paired."""

    @property
    def significant(self) -> bool:
        """Whether the difference to the reference gets a mark."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


@dataclass(frozen=True)
class Summary:
    """Everything a figure and its caption say."""

    measure: Metric
    reference: str
    dense: TreatmentPoint | None
    series: dict[str, list[TreatmentPoint]]
    """Treatment -> points by level, in the order asked for; a treatment without a finished run has no points."""
    excluded: list[Row]
    """The runs of these treatments, and dense ones, that are in no mean."""
    runs: int
    """Runs of these treatments, dense ones included; a run that serves several treatments counts once."""
    subject: str
    """Network and dataset, `fc on mnist`."""
    data_notes: list[str]

    @property
    def points(self) -> list[TreatmentPoint]:
        """All points but the dense one."""
        return [point for line in self.series.values() for point in line]


def summarize(rows: Sequence[Row], treatments: Sequence[str], reference: str, measure: Metric) -> Summary:
    """Group, average and compare. Raises UserError for unknown labels, mixed data, doubled or no finished runs."""
    _check_labels(rows, treatments, reference)
    wanted = {DENSE, *treatments}
    shown = [row for row in rows if row["level"] == 0 or wanted.intersection(treatment_labels(row))]
    subject = check_one_experiment(shown)
    finished = [row for row in shown if row["status"] == "finished" and _value(row, measure) is not None]
    ids = {id(row) for row in finished}
    if not finished:
        raise UserError(f"there is nothing to draw: none of the {len(shown)} runs has finished; run the study first")
    groups = _group(finished, wanted)
    dense = _point(DENSE, 0, groups[DENSE, 0], measure) if (DENSE, 0) in groups else None
    references = {level: group for (label, level), group in groups.items() if label == reference}
    lines = {}
    for label in treatments:
        levels = sorted(level for name, level in groups if name == label)
        points = [_point(label, level, groups[label, level], measure) for level in levels]
        if label != reference:
            points = _with_comparisons(
                points, {n: _point(reference, n, group, measure) for n, group in references.items()}
            )
        lines[label] = points
    return Summary(
        measure,
        reference,
        dense,
        lines,
        [row for row in shown if id(row) not in ids],
        len(shown),
        subject,
        sorted({str(row["data_note"]) for row in shown if row.get("data_note")}),
    )


def data_rows(summary: Summary) -> list[Row]:
    """The numbers behind the figure, one row a point."""
    points = [summary.dense] if summary.dense else []
    return [_data_row(summary, point) for point in points + summary.points]


def _data_row(summary: Summary, point: TreatmentPoint) -> Row:
    c = point.comparison
    low, high = (c.interval95 or (None, None)) if c else (None, None)
    g_low, g_high = (effect_interval(c) or (None, None)) if c else (None, None)
    median = bootstrap_median(list(point.values.values()))
    left_out = [row for row in summary.excluded if _is_excluded_from(row, point)]
    return {
        "treatment": point.treatment,
        "level": point.level,
        "weights_remaining_percent": point.remaining,
        "measure": summary.measure.column,
        "unit": summary.measure.unit,
        "n": point.interval.n,
        "mean": point.interval.mean,
        "mean_low95": point.interval.low,
        "mean_high95": point.interval.high,
        "median": median.median,
        "median_low95": median.low,
        "median_high95": median.high,
        "lowest": min(point.values.values()),
        "highest": max(point.values.values()),
        "reference": summary.reference if c else None,
        "difference": c.difference if c else None,
        "difference_low95": low,
        "difference_high95": high,
        "hedges_g": c.hedges_g if c else None,
        "hedges_g_low95": g_low,
        "hedges_g_high95": g_high,
        "test": c.test if c else None,
        "p": c.p if c else None,
        "p_holm": point.p_holm,
        "p_sign_flip": point.p_sign_flip,
        "significant": point.significant if c else None,
        "note": (c.note or None) if c else None,
        "left_out": len(left_out),
        "values_by_seed": " ".join(f"{seed}={value:.6g}" for seed, value in sorted(point.values.items())),
    }


def _is_excluded_from(row: Row, point: TreatmentPoint) -> bool:
    return row["level"] == point.level and (point.level == 0 or point.treatment in treatment_labels(row))


def _group(rows: Sequence[Row], wanted: set[str]) -> dict[tuple[str, int], list[Row]]:
    """(label, level) -> runs, by seed."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        labels = [DENSE] if row["level"] == 0 else wanted.intersection(treatment_labels(row))
        for label in labels:
            groups[label, int(row["level"] or 0)].append(row)
    for (label, level), group in groups.items():
        seeds = [row["seed"] for row in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"treatment {label!r} has several runs of one seed at level {level}; "
                "a figure shows one study: give its runs alone"
            )
    return dict(groups)


def _point(label: str, level: int, rows: Sequence[Row], measure: Metric) -> TreatmentPoint:
    values = _values(rows, measure)
    remaining = math.fsum(_number(row, "density") for row in rows) / len(rows) * 100
    return TreatmentPoint(label, level, remaining, values, mean_interval([values[seed] for seed in sorted(values)]))


def _values(rows: Sequence[Row], measure: Metric) -> dict[int, float]:
    return {int(row["seed"] or 0): _number(row, measure.column) * measure.scale for row in rows}


def _with_comparisons(points: list[TreatmentPoint], references: dict[int, TreatmentPoint]) -> list[TreatmentPoint]:
    """The points with their comparisons; Holm over the levels of this one treatment. Source: paper.md section 7.

    Levels of which one has other densities (a mask that was learned) are not compared.
    """
    comparisons: list[Comparison | None] = []
    exact: list[float | None] = []
    for point in points:
        other = references.get(point.level)
        if other is None or not math.isclose(point.remaining, other.remaining, rel_tol=DENSITY_TOLERANCE):
            comparisons.append(None)
            exact.append(None)
        else:
            comparisons.append(compare(point.values, other.values))
            exact.append(paired_sign_flip_p(point.values, other.values))
    adjusted = holm([c.p if c else None for c in comparisons])
    return [
        replace(point, comparison=comparison, p_holm=p, p_sign_flip=flipped)
        for point, comparison, p, flipped in zip(points, comparisons, adjusted, exact, strict=True)
    ]


def _value(row: Row, measure: Metric) -> float | None:
    value = row.get(measure.column)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(row: Row, column: str) -> float:
    value: Value = row[column]
    assert isinstance(value, int | float), f"{column} of run {row.get('id')} is {value!r}"
    return float(value)


def _check_labels(rows: Sequence[Row], treatments: Sequence[str], reference: str) -> None:
    known = sorted({label for row in rows for label in treatment_labels(row)} - {DENSE})
    for label in (*treatments, reference):
        if label not in known:
            near = did_you_mean(label, known)
            raise UserError(f"no run has the treatment {label!r}{near}; there are: {', '.join(known) or 'none'}")
    if reference not in treatments:
        raise UserError(f"the reference {reference!r} is not among the treatments drawn: {', '.join(treatments)}")


def check_one_experiment(rows: Sequence[Row]) -> str:
    """`fc on mnist`; raises UserError where runs of several networks or datasets would be averaged."""
    found = sorted({(str(row.get("network") or ""), str(row.get("dataset") or "")) for row in rows})
    names = [" on ".join(name for name in pair if name) for pair in found]
    if len(names) > 1:
        raise UserError(f"a figure shows one network on one dataset; these runs have {', '.join(names)}")
    return names[0]
