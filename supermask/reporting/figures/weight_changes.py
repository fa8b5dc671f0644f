"""Figure of facts of training by level: ties drawn at random, sign changes, shrinkage, iterations to the best loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supermask.analysis.stats import MeanInterval, mean_interval
from supermask.analysis.summary import check_one_experiment
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.accuracy import MARKER, draw_band, remaining_weights_axis
from supermask.reporting.figures.caption import (
    describe_excluded,
    format_seeds,
    interval_mark,
    join_sentences,
    row_data_notes,
)
from supermask.reporting.figures.layout import FigurePage
from supermask.reporting.figures.legends import add_legend_below, legend_height
from supermask.reporting.figures.save import RenderedFigure, format_values, mean_columns
from supermask.reporting.figures.style import DEFAULT_OPTIONS, FigureOptions, LineStyle, assign_styles, style_context
from supermask.store.tables import DENSE, treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, GAP, PANEL_HEIGHT, HEADING_HEIGHT, AXIS_HEIGHT = 0.45, 0.55, 1.45, 0.22, 0.38
"""Inches: the y axis, between panels, a panel, its name, the x axis."""


def _share(column: str) -> Callable[[Row], float | None]:
    def read(row: Row) -> float | None:
        value = row.get(column)
        return None if not isinstance(value, int | float) else 100.0 * value

    return read


def _ties(row: Row) -> float | None:
    ties, kept = row.get("ties_drawn"), row.get("kept")
    return None if not isinstance(ties, int) or not isinstance(kept, int) or not kept else 100.0 * ties / kept


def _iteration(row: Row) -> float | None:
    value = row.get("early_stop_iteration")
    return float(value) if isinstance(value, int | float) else None


@dataclass(frozen=True)
class _Fact:
    title: str
    unit: str
    read: Callable[[Row], float | None]


FACTS = {
    "ties_drawn": _Fact("Kept weights drawn at random from ties (%)", "percent of the kept weights", _ties),
    "sign_changed": _Fact("Kept weights that changed sign (%)", "percent of the kept weights", _share("sign_changed")),
    "shrunk": _Fact("Kept weights that shrank (%)", "percent of the kept weights", _share("shrunk")),
    "early_stop_iteration": _Fact("Iterations to the lowest validation loss", "iterations", _iteration),
}
"""Facts of a run, in the order of the panels."""


@dataclass(frozen=True)
class FactPoint:
    """Mean of one fact over the seeds of a treatment at one level."""

    fact: str
    treatment: str
    level: int
    remaining: float
    """Weights remaining, in percent."""
    values: dict[int, float]
    interval: MeanInterval


def _is_trained_level(row: Row) -> bool:
    is_level = bool(row["status"] == "finished" and row["level"])
    return is_level and bool(row.get("trained")) and not row.get("supermask")


def fact_points(rows: Sequence[Row], treatments: Sequence[str]) -> list[FactPoint]:
    """Return the means of the facts of trained levels; runs that did not record a fact are in no mean of it."""
    groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if _is_trained_level(row):
            for label in treatment_labels(row):
                groups[label, int(row["level"] or 0)].append(row)
    points = []
    for name, fact in FACTS.items():
        for label in treatments:
            for level in sorted(number for other, number in groups if other == label):
                group = groups[label, level]
                read = {int(row["seed"] or 0): fact.read(row) for row in group}
                values = {seed: value for seed, value in read.items() if value is not None}
                if values:
                    remaining = 100 * sum(float(row["density"] or 0) for row in group) / len(group)
                    interval = mean_interval([values[seed] for seed in sorted(values)])
                    points.append(FactPoint(name, label, level, remaining, values, interval))
    return points


def has_weight_changes(rows: Sequence[Row]) -> bool:
    """Return whether a finished run recorded facts of its layers; those of earlier versions did not."""
    return any(row["status"] == "finished" and row["level"] and row.get("sign_changed") is not None for row in rows)


def weight_changes_figure(
    rows: Sequence[Row], treatments: Sequence[str], title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw the facts against weights remaining, one panel per fact and one line per treatment: mean and 95% interval.

    Raises UserError if no run recorded them. Source: Zhou et al. 2019, authors' response, item 3 (ties).
    """
    points = fact_points(rows, treatments)
    if not points:
        raise UserError("there is nothing to draw: no finished run of this study recorded facts of its layers")
    labels = [label for label in treatments if any(point.treatment == label for point in points)]
    with style_context(options):
        page = _draw(points, labels, title, weight_changes_caption(rows, points), options)
    return RenderedFigure(page.finish(), page.caption, fact_rows(points))


def fact_rows(points: Sequence[FactPoint]) -> list[Row]:
    """Return the data rows of the figure: one per fact, treatment and level."""
    return [
        {
            "fact": point.fact,
            "unit": FACTS[point.fact].unit,
            "treatment": point.treatment,
            "level": point.level,
            "weights_remaining_percent": point.remaining,
            **mean_columns(point.interval),
            "values_by_seed": format_values(point.values),
        }
        for point in points
    ]


def weight_changes_caption(rows: Sequence[Row], points: Sequence[FactPoint]) -> str:
    """Return the caption; its last sentence is the finding: the treatment with most ties, and the range of signs."""
    subject = check_one_experiment(rows)
    counts = {point.interval.n for point in points}
    labels = {DENSE, *(point.treatment for point in points)}
    shown = [row for row in rows if not row.get("supermask") and labels.intersection(treatment_labels(row))]
    unfinished = [row for row in shown if row["status"] != "finished"]
    lines: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for point in points:
        lines[point.fact, point.treatment].append(point.interval.low is not None)
    band = f"; {interval_mark(list(lines.values()))}: 95% t-interval" if max(counts) > 1 else ""
    return join_sentences(
        [
            f"Network {subject}: mean over {format_seeds(counts)}{band}. All layers together; supermask table "
            "--layers has each layer.",
            "A tie is drawn where weights of equal score are on both sides of the cut. Sign and magnitude: at the end "
            "of a level's training against its start.",
            describe_excluded(unfinished, labels, len(shown)),
            _describe_unrecorded(shown),
            *row_data_notes(shown),
            weight_changes_takeaway(points),
        ]
    )


def _describe_unrecorded(rows: Sequence[Row]) -> str:
    """Count the finished levels without facts of their weights: of earlier versions, or of a table without them."""
    levels = [row for row in rows if _is_trained_level(row)]
    of_weights = [fact for name, fact in FACTS.items() if name != "early_stop_iteration"]
    missing = [row for row in levels if any(fact.read(row) is None for fact in of_weights)]
    if not missing:
        return ""
    return f"{len(missing):,} of {len(levels):,} finished levels did not record ties, signs and magnitudes."


def weight_changes_takeaway(points: Sequence[FactPoint]) -> str:
    """State the treatments with the most ties and the most changed signs in one sentence; empty without facts."""

    def most(fact: str) -> FactPoint | None:
        # Where chance draws everything, as under the criterion random, that is no finding.
        found = (p for p in points if p.fact == fact and (fact != "ties_drawn" or p.interval.mean < 100))
        return max(found, key=lambda p: p.interval.mean, default=None)

    def describe(point: FactPoint) -> str:
        return f"{point.treatment} at {format_percent(point.remaining)}% of the weights"

    ties, changed = most("ties_drawn"), most("sign_changed")
    parts = []
    if ties:
        is_random = any(point.fact == "ties_drawn" and point.interval.mean == 100 for point in points)
        parts.append(
            ("but for treatments whose masks are random, " if is_random else "")
            + (
                f"chance draws at most {max(ties.interval.mean, 0.1):.1f}% of the kept weights ({describe(ties)})"
                if ties.interval.mean
                else "no kept weight was drawn by chance"
            )
        )
    if changed:
        parts.append(f"at most {changed.interval.mean:.1f}% change sign in training ({describe(changed)})")
    return f"Takeaway: {' and '.join(parts)}." if parts else ""


def _draw(
    points: Sequence[FactPoint], labels: Sequence[str], title: str, caption: str, options: FigureOptions
) -> FigurePage:
    styles = assign_styles(labels)
    facts = [name for name in FACTS if any(point.fact == name for point in points)]
    rows = -(-len(facts) // 2)
    row_height = HEADING_HEIGHT + PANEL_HEIGHT
    page = FigurePage(
        title, caption, rows * row_height + AXIS_HEIGHT + legend_height(labels, options.layout_width), options, labels
    )
    width = (page.width - LEFT - 0.1 - GAP) / 2
    remaining = [point.remaining for point in points]
    for index, name in enumerate(facts):
        row, column = divmod(index, 2)
        left, top = LEFT + column * (width + GAP), row * row_height + HEADING_HEIGHT
        axes = page.axes(left, top, width, PANEL_HEIGHT, grid=True)
        page.text(left, top - 0.04, FACTS[name].title, va="bottom")
        for label in labels:
            line = [point for point in points if (point.fact, point.treatment) == (name, label)]
            _draw_line(axes, line, styles[label], (labels.index(label), len(labels)))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        remaining_weights_axis(axes, remaining, min_distance=0.1)
        axes.tick_params(labelbottom=index + 2 >= len(facts))
    bottom = rows * row_height
    page.text(LEFT + (page.width - LEFT) / 2, bottom + 0.19, "Weights remaining (%)", 7.5, ha="center")
    add_legend_below(page, labels, styles, bottom + AXIS_HEIGHT)
    return page


def _draw_line(axes: Axes, line: Sequence[FactPoint], style: LineStyle, place: tuple[int, int]) -> None:
    x, mean = [point.remaining for point in line], [point.interval.mean for point in line]
    intervals = [(None if p.interval.low is None else max(p.interval.low, 0.0), p.interval.high) for p in line]
    draw_band(axes, x, intervals, style.color, 0.1, place)
    axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=1.0, zorder=3)
    axes.plot(x, mean, color=style.color, marker=style.marker, zorder=3.5, **(MARKER | {"markersize": 3.2}))
