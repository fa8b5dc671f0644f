"""The summary behind a figure: one point per treatment and level, its comparison, and every excluded run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from supermask.analysis.stats import (
    PERCENT,
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
from supermask.datasets.specs import is_demonstration
from supermask.store.rows import check_same_data
from supermask.store.tables import DENSE, treatment_labels

DENSITY_TOLERANCE = 0.02
"""Largest relative difference of the weights remaining at which the results of two treatments are compared."""


DEMONSTRATION_NOTE = "a demonstration"
"""Note of a comparison that is not tested because its data is a demonstration."""


@dataclass(frozen=True)
class Metric:
    """The quantity on the y axis."""

    column: str
    """Column of the rows."""
    scale: float
    """Factor from the column's values to the unit."""
    unit: str
    title: str


@dataclass(frozen=True)
class TreatmentPoint:
    """One treatment at one level."""

    treatment: str
    level: int
    remaining: float
    """Weights remaining, percent (mean over seeds)."""
    values: dict[int, float]
    """Seed -> value, in the metric's unit."""
    interval: MeanInterval
    comparison: Comparison | None = None
    """With the reference treatment at this level; None if there is nothing to compare with."""
    p_holm: float | None = None
    """The comparison's p, corrected over the levels of this treatment."""
    p_sign_flip: float | None = None
    """p of the exact sign-flip test at this level alone; None unless the seeds are paired."""

    @property
    def significant(self) -> bool:
        """True if the difference from the reference is marked: `p_holm` < 0.05."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


@dataclass(frozen=True)
class PlannedLevel:
    """One treatment at one level that is planned, whether or not a run of it has finished."""

    remaining: float
    """Weights remaining, percent (mean over seeds)."""
    values: dict[int, float]
    """Seed -> value of the metric, for finished runs."""


@dataclass(frozen=True)
class Summary:
    """All numbers of a figure and its caption."""

    metric: Metric
    reference: str
    dense: TreatmentPoint | None
    """The dense network of all treatments; None if it has not finished, or if treatments have dense networks of their
    own, which are then level 0 of their series."""
    series: dict[str, list[TreatmentPoint]]
    """Treatment -> points by level, in the requested order; a treatment without a finished run has no points."""
    excluded: list[Row]
    """Dense runs and runs of these treatments that are in no mean."""
    runs: int
    """Number of runs of these treatments and of dense runs; a run that several treatments share counts once."""
    subject: str
    """Network and data set: `fc on mnist`."""
    data_notes: list[str]
    own_settings: str = "training settings"
    """Settings in which the dense networks of the treatments differ, if they have dense networks of their own."""
    band: tuple[float, float] | None = None
    """Largest and smallest percent of weights left of the study's primary endpoint; None if it has none."""

    @property
    def has_own_dense_networks(self) -> bool:
        """True if treatments have dense networks of their own (networks, initializers or training settings differ)."""
        return any(point.level == 0 for points in self.series.values() for point in points)

    @property
    def points(self) -> list[TreatmentPoint]:
        """All points except the dense one."""
        return [point for points in self.series.values() for point in points]

    def planned_levels(self, treatment: str) -> dict[int, PlannedLevel]:
        """Return the levels of a treatment, finished or not, with the values of the finished runs.

        Levels whose density is not known before a run has finished (learned masks) are there once one has.
        """
        densities: dict[int, list[float]] = defaultdict(list)
        for row in self.excluded:
            density = row.get("density")
            if treatment in treatment_labels(row) and isinstance(density, int | float) and math.isfinite(density):
                densities[int(row["level"] or 0)].append(100.0 * density)
        planned = {level: PlannedLevel(math.fsum(of) / len(of), {}) for level, of in densities.items()}
        finished = {point.level: PlannedLevel(point.remaining, point.values) for point in self.series[treatment]}
        return {level: (planned | finished)[level] for level in sorted(planned | finished)}


def summarize(rows: Sequence[Row], treatments: Sequence[str], reference: str, metric: Metric) -> Summary:
    """Group the rows by treatment and level, average over seeds, and compare with the reference.

    Raises UserError for unknown labels, rows of several networks or data sets, two runs of one treatment, level and
    seed, and if no run has finished. On a demonstration dataset differences have their intervals and are not tested.
    """
    _check_labels(rows, treatments, reference)
    labels = {DENSE, *treatments}
    shown = [row for row in rows if labels.intersection(treatment_labels(row))]
    subject = check_one_experiment(shown)
    finished = [row for row in shown if row["status"] == "finished" and _value(row, metric) is not None]
    finished_ids = {id(row) for row in finished}
    if not finished:
        raise UserError(f"there is nothing to draw: none of the {len(shown)} runs has finished; run the study first")
    groups = _group(finished, labels)
    dense = _point(DENSE, 0, groups[DENSE, 0], metric) if (DENSE, 0) in groups else None
    references = {level: group for (label, level), group in groups.items() if label == reference}
    is_tested = not any(is_demonstration(str(row.get("dataset"))) for row in shown)
    series = {}
    for label in treatments:
        levels = sorted(level for name, level in groups if name == label)
        points = [_point(label, level, groups[label, level], metric) for level in levels]
        if label != reference:
            points = _with_comparisons(
                points, {n: _point(reference, n, group, metric) for n, group in references.items()}, is_tested
            )
        series[label] = points
    return Summary(
        metric,
        reference,
        dense,
        series,
        [row for row in shown if id(row) not in finished_ids],
        len(shown),
        subject,
        sorted({str(row["data_note"]) for row in shown if row.get("data_note")}),
        _differing_settings([row for row in shown if row["level"] == 0]),
    )


_TRAINING_COLUMNS = (
    *("optimizer", "lr", "batch_size", "evaluate_every", "iterations", "momentum", "weight_decay", "lr_drops"),
    *("lr_drop_factor", "warmup", "lr_schedule", "nesterov", "betas", "eps", "label_smoothing", "loss", "augment"),
    *("normalize", "precision"),
)
"""Columns of the training settings."""


def _differing_settings(dense_rows: Sequence[Row]) -> str:
    """Return the kinds of settings in which dense runs differ: `network`, `initializer` and `training settings`."""

    def differ(*columns: str) -> bool:
        return len({tuple(row.get(column) for column in columns) for row in dense_rows}) > 1

    # The default initializer follows from the network.
    kinds = ["network"] if differ("network") else ["initializer"] if differ("initializer") else []
    if not kinds or differ(*_TRAINING_COLUMNS):
        kinds.append("training settings")
    return " and ".join(kinds)


def data_rows(summary: Summary) -> list[Row]:
    """The numbers behind the figure: one row per point."""
    points = [summary.dense] if summary.dense else []
    return [_data_row(summary, point) for point in points + summary.points]


def _data_row(summary: Summary, point: TreatmentPoint) -> Row:
    c = point.comparison
    low, high = (c.interval95 or (None, None)) if c else (None, None)
    g_low, g_high = (effect_interval(c) or (None, None)) if c else (None, None)
    median = bootstrap_median(list(point.values.values()))
    excluded = [row for row in summary.excluded if _is_excluded_from(row, point)]
    return {
        "treatment": point.treatment,
        "level": point.level,
        "weights_remaining_percent": point.remaining,
        "measure": summary.metric.column,
        "unit": summary.metric.unit,
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
        "significant": point.significant if c and c.note != DEMONSTRATION_NOTE else None,
        "note": (c.note or None) if c else None,
        "left_out": len(excluded),
        "values_by_seed": " ".join(f"{seed}={value:.6g}" for seed, value in sorted(point.values.items())),
    }


def _is_excluded_from(row: Row, point: TreatmentPoint) -> bool:
    return row["level"] == point.level and point.treatment in treatment_labels(row)


def _group(rows: Sequence[Row], wanted_labels: set[str]) -> dict[tuple[str, int], list[Row]]:
    """(label, level) -> rows, one per seed."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        for label in wanted_labels.intersection(treatment_labels(row)):
            groups[label, int(row["level"] or 0)].append(row)
    for (label, level), group in groups.items():
        seeds = [row["seed"] for row in group]
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"treatment {label!r} has several runs of one seed at level {level}; "
                "a figure shows one study: select the runs of one study"
            )
    return dict(groups)


def _point(label: str, level: int, rows: Sequence[Row], metric: Metric) -> TreatmentPoint:
    values = _values(rows, metric)
    remaining = math.fsum(_number(row, "density") for row in rows) / len(rows) * 100
    # A t-interval of few seeds may exceed what the metric can be.
    bounds = PERCENT if metric.unit == "percent" else (0.0, math.inf)
    interval = mean_interval([values[seed] for seed in sorted(values)], bounds)
    return TreatmentPoint(label, level, remaining, values, interval)


def _values(rows: Sequence[Row], metric: Metric) -> dict[int, float]:
    return {int(row["seed"] or 0): _number(row, metric.column) * metric.scale for row in rows}


def _with_comparisons(
    points: list[TreatmentPoint], references: dict[int, TreatmentPoint], is_tested: bool
) -> list[TreatmentPoint]:
    """The points with their comparisons; Holm's correction over the levels of this one treatment.

    `is_tested`: false for a demonstration, whose comparisons have no p. Levels whose densities differ (learned masks)
    are not compared.
    Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """
    comparisons: list[Comparison | None] = []
    sign_flip_ps: list[float | None] = []
    for point in points:
        reference = references.get(point.level)
        if reference is None or not math.isclose(point.remaining, reference.remaining, rel_tol=DENSITY_TOLERANCE):
            comparisons.append(None)
            sign_flip_ps.append(None)
        else:
            comparison = compare(point.values, reference.values)
            comparisons.append(comparison if is_tested else without_test(comparison))
            sign_flip_ps.append(paired_sign_flip_p(point.values, reference.values) if is_tested else None)
    adjusted = holm([c.p if c else None for c in comparisons])
    return [
        replace(point, comparison=comparison, p_holm=p_holm, p_sign_flip=p_sign_flip)
        for point, comparison, p_holm, p_sign_flip in zip(points, comparisons, adjusted, sign_flip_ps, strict=True)
    ]


def without_test(comparison: Comparison) -> Comparison:
    """Return a comparison on demonstration data: difference, interval and effect size, without t and p."""
    return replace(comparison, t=None, degrees_of_freedom=None, p=None, note=DEMONSTRATION_NOTE)


def _value(row: Row, metric: Metric) -> float | None:
    value = row.get(metric.column)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _number(row: Row, column: str) -> float:
    value: Value = row[column]
    assert isinstance(value, int | float), f"{column} of run {row.get('id')} is {value!r}"
    return float(value)


def _check_labels(rows: Sequence[Row], treatments: Sequence[str], reference: str) -> None:
    known = sorted({label for row in rows for label in treatment_labels(row)} - {DENSE})
    for label in (*treatments, reference):
        if label not in known:
            suggestion = did_you_mean(label, known)
            raise UserError(
                f"no run has the treatment {label!r}{suggestion}; the treatments are: {', '.join(known) or 'none'}"
            )
    if reference not in treatments:
        raise UserError(f"the reference {reference!r} is not one of the treatments drawn: {', '.join(treatments)}")


def check_one_experiment(rows: Sequence[Row]) -> str:
    """Network and data set of these rows: `fc on mnist`.

    Several networks are named if each treatment has one of its own: `fc-20 and resnet20-2 on digits`.
    Raises UserError for rows of several networks or data sets, or of different data under one name, which must not be
    averaged.
    """
    check_same_data(rows)
    networks: dict[str, set[str]] = {}
    for row in rows:
        for label in treatment_labels(row):
            networks.setdefault(label, set()).add(str(row.get("network") or ""))
    datasets = {str(row.get("dataset") or "") for row in rows}
    if len(datasets) == 1 and networks and all(len(names) == 1 for names in networks.values()):
        *others, last = dict.fromkeys(name for names in networks.values() for name in names if name) or [""]
        listed = f"{', '.join(others)} and {last}" if others else last
        return " on ".join(name for name in (listed, *datasets) if name)
    pairs = sorted({(str(row.get("network") or ""), str(row.get("dataset") or "")) for row in rows})
    names = [" on ".join(name for name in pair if name) for pair in pairs]
    if len(names) > 1:
        raise UserError(f"a figure shows one network on one dataset; these runs have {', '.join(names)}")
    return names[0]
