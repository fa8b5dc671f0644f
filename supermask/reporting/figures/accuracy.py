"""Figures of accuracy and of convergence speed against weights remaining, one line per treatment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from supermask.analysis.summary import Metric, Summary, TreatmentPoint, data_rows, summarize
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.caption import find_single_intervals, summary_caption, wrap_to_width
from supermask.reporting.figures.labels import distinct_labels, escape_missing_glyphs
from supermask.reporting.figures.layout import MARGIN, FigurePage, empty_figure, set_legend_labels, text_measure
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    GRAY,
    INK,
    RC,
    AxisScale,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
    thin_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.transforms import Transform

LEGEND_GAP, X_AXIS_HEIGHT, AXES_HEIGHT = 0.14, 0.40, 2.75
"""Inches: between axes and legend, the x axis with its labels, the axes at least."""

LABEL_WIDTH = 1.7
"""Inches at which a legend label wraps."""

MARKER: dict[str, Any] = {"linestyle": "none", "markersize": 3.8, "markeredgecolor": "white", "markeredgewidth": 0.45}
STAR: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 4.6, "markeredgewidth": 0}
STAR_LIFT = 4.3
"""Distance of a star above its marker in points."""
BAND_ALPHA, MANY_LINES = 0.13, 7
"""Opacity of a band; with this many lines or more it is halved for all lines but the reference's."""
BAR_DISTANCE, BARS_WIDTH = 2.4, 12.0
"""Points: between the bars of one level, all of them at most."""
DENSE_LINE: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1.6)), "linewidth": 0.9}

SCALE_NOTES = {
    "linear": "",
    "log": "The y axis is logarithmic.",
    "log-error": "The accuracy axis is logarithmic in the test error (100% - accuracy).",
}
"""Scale of the y axis -> sentence of the caption."""

ACCURACY = Metric("early_stop_test_accuracy", 100.0, "percent", "Test accuracy at early stopping (%)")
EARLY_STOP = Metric("early_stop_iteration", 1.0, "iterations", "Early-stopping iteration")


def accuracy_figure(
    rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw test accuracy at the iteration of lowest validation loss against weights remaining.

    One line per treatment: mean over seeds with its 95% t-interval, in percent. A star marks a significant difference
    to `reference` at that level. The axis is logarithmic in the test error if mean errors span more than a factor of 4.
    Raises UserError for unknown labels, runs of several studies, or no finished run.
    Source: Zhou et al. 2019, Figs. 3 to 5; statistics: authors' response, items 2 and 4.
    """
    return draw_summary(summarize(rows, treatments, reference, ACCURACY), title, options=options)


def convergence_figure(
    rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw the iteration of lowest validation loss against weights remaining, tested as in `accuracy_figure`.

    Source: Zhou et al. 2019, Figs. S1, S4 and S5.
    """
    return draw_summary(summarize(rows, treatments, reference, EARLY_STOP), title, [unconverged_note(rows)], options)


def unconverged_note(rows: Sequence[Row]) -> str:
    """Count the runs that had not converged; their early-stopping iteration is the length of the run, not a speed."""
    unconverged, finished = count_unconverged(rows)
    lengths = {row.get("iterations") for row in rows if row["status"] == "finished"}
    if not unconverged or len(lengths) != 1:
        return ""
    return f"In {unconverged} of {finished} runs the loss was lowest at the last iteration, {lengths.pop():,}."


def count_unconverged(rows: Sequence[Row]) -> tuple[int, int]:
    """Return the number of finished runs whose loss was lowest at their last iteration, and of all finished runs."""
    finished = [row for row in rows if row["status"] == "finished"]
    last = [row for row in finished if row.get("early_stop_iteration") == row.get("iterations") is not None]
    return len(last), len(finished)


def draw_summary(
    summary: Summary, title: str, remarks: Sequence[str] = (), options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw a summary; `remarks` are sentences that are added to the caption."""
    styles = assign_styles(list(summary.series))
    scale = choose_scale(summary, options.axis)
    caption = summary_caption(summary, [*remarks, SCALE_NOTES[scale]])
    with style_context():
        # The legend decides the size of the axes, so it is measured on a figure of its own first.
        legend_width, legend_height = _size(_add_legend(empty_figure(), summary, styles))
    with style_context(options):
        height = max(AXES_HEIGHT, legend_height + 0.05)
        page = FigurePage(title, caption, height + X_AXIS_HEIGHT, options, summary.series)
        right = page.width - MARGIN - LEGEND_GAP - legend_width
        axes = page.axes(MARGIN, 0.0, right - MARGIN, height, grid=True)
        axes.spines[["top", "right"]].set_visible(False)
        set_y_axis(axes, summary, scale)
        remaining_weights_axis(axes, [100.0, *(point.remaining for point in summary.points)])
        axes.set_xlabel("Weights remaining (%)")
        draw_lines(axes, summary, styles)
        left = MARGIN + _y_label_width(axes) / page.scale
        axes.set_position(page.bounds(left, 0.0, right - left, height))
        legend = _add_legend(page.figure, summary, styles)
        legend.set_bbox_to_anchor(page.to_figure(right + LEGEND_GAP, 0.0), transform=page.figure.transFigure)
    return RenderedFigure(page.finish(), page.caption, data_rows(summary))


def draw_lines(axes: Axes, summary: Summary, styles: dict[str, LineStyle]) -> None:
    """Draw the means, bands and stars of a summary; every line starts at the dense network."""
    levels = sorted({point.level for point in summary.points})
    if summary.dense:
        axes.axhline(summary.dense.interval.mean, zorder=2.5, **DENSE_LINE)
    for label, series in summary.series.items():
        style, is_reference = styles[label], label == summary.reference
        order = 4.0 if is_reference else 3.0
        by_level = {point.level: point for point in series}
        # None, drawn as NaN, for a level without a point between two others: the line has a gap there.
        points: list[TreatmentPoint | None] = [summary.dense, *(by_level.get(level) for level in levels)]
        x, mean = [_x(point) for point in points], [_mean(point) for point in points]
        # Every line starts at the dense network, whose interval is drawn once below and not in every band.
        draw_band(
            axes,
            x[1:],
            [(point.interval.low, point.interval.high) if point else (None, None) for point in points[1:]],
            style.color,
            BAND_ALPHA if is_reference or len(summary.series) < MANY_LINES else BAND_ALPHA / 2,
            (list(summary.series).index(label), len(summary.series)),
        )
        line_width = 1.5 if is_reference else 1.1
        axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=line_width, zorder=order)
        marked = [_x(point) for point in series], [_mean(point) for point in series]
        axes.plot(*marked, color=style.color, marker=style.marker, zorder=order + 0.5, **MARKER)
        significant = [point for point in series if point.significant]
        draw_stars(axes, [_x(p) for p in significant], [_mean(p) for p in significant], style.color, order + 0.6)
    if summary.dense:
        ends = [_or_nan(summary.dense.interval.low), _or_nan(summary.dense.interval.high)]
        axes.plot([_x(summary.dense)] * 2, ends, color=INK, linewidth=0.9, zorder=4.9)
        axes.plot(_x(summary.dense), _mean(summary.dense), "o", color=INK, markersize=4, zorder=5)


def draw_band(
    axes: Axes,
    x: Sequence[float],
    intervals: Sequence[tuple[float | None, float | None]],
    color: str,
    alpha: float,
    place: tuple[int, int] = (0, 1),
) -> None:
    """Draw intervals (low, high) as a band; an interval without another one beside it is a bar: it has no width.

    `place`: index of the line and number of lines; the bars of one level are side by side, within `BARS_WIDTH`.
    """
    low, high = ([_or_nan(interval[end]) for interval in intervals] for end in (0, 1))
    axes.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0, zorder=1.5)
    single = find_single_intervals([math.isfinite(end) for end in low])
    if single:
        index, count = place
        shift = (index - (count - 1) / 2) * min(BAR_DISTANCE, BARS_WIDTH / count)
        ends = [low[i] for i in single], [high[i] for i in single]
        style: dict[str, Any] = {"color": color, "linewidth": 0.9, "alpha": 0.8, "zorder": 2.2}
        axes.vlines([x[i] for i in single], *ends, transform=_translate_points(axes, shift, 0.0), **style)


def draw_stars(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, order: float) -> None:
    """Draw a star `STAR_LIFT` points above each of these positions, whatever the scale of the axes."""
    axes.plot(x, y, color=color, transform=_translate_points(axes, 0.0, STAR_LIFT), zorder=order, **STAR)


def _translate_points(axes: Axes, right: float, up: float) -> Transform:
    """Return the transform of the data, moved by this number of points."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(right / 72, up / 72, figure.dpi_scale_trans)


def remaining_weights_axis(axes: Axes, remaining: Sequence[float], min_distance: float = 0.062) -> None:
    """Set a logarithmic x axis of weights remaining in percent that falls to the right, with ticks at the levels.

    `min_distance`: the least distance of two ticks, as a share of the axis.
    """
    values = sorted(set(remaining), reverse=True)
    axes.set_xscale("log")
    span = math.log10(values[0] / values[-1]) or 1.0
    axes.set_xlim(values[0] * 10 ** (0.025 * span), values[-1] / 10 ** (0.025 * span))
    kept = thin_ticks([-math.log10(value) for value in values], min_distance * span)
    axes.set_xticks([values[index] for index in kept], [format_percent(values[index]) for index in kept])
    axes.set_xticks([], minor=True)


def _all_points(summary: Summary) -> list[TreatmentPoint]:
    return summary.points + ([summary.dense] if summary.dense else [])


def choose_scale(summary: Summary, requested: AxisScale) -> str:
    """Return the scale of the y axis: the requested one if it can show the values, `log-error` for a wide range."""
    points = _all_points(summary)
    values = [value for point in points for value in point.values.values()]
    # 100% accuracy has no place on an axis that is logarithmic in the error, nor has 0 on a logarithmic one.
    has_log_error = summary.metric.unit == "percent" and max(values) < 100.0
    if requested == "log":
        return "log" if min(values) > 0 else "linear"
    if requested == "log-error":
        return "log-error" if has_log_error else "linear"
    errors = [100.0 - point.interval.mean for point in points]
    return "log-error" if requested == "auto" and has_log_error and max(errors) > 4 * min(errors) else "linear"


def set_y_axis(axes: Axes, summary: Summary, scale: str) -> None:
    """Set scale, limits and ticks of the y axis."""
    axes.set_ylabel(summary.metric.title)
    points = _all_points(summary)
    values = [value for point in points for value in point.values.values()]
    low, high = min(values), max(values)
    if scale == "log":
        set_log_ticks(axes, "y", low / 1.06, high * 1.06)
    elif summary.metric.unit != "percent":
        axes.set_ylim(0, high * 1.06 or 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    elif scale == "log-error":
        min_error = (100.0 - high) / 1.12
        axes.set_yscale("function", functions=log_error_scale(min_error / 1e3))
        axes.set_ylim(100.0 - min(100.0, (100.0 - low) * 1.12), 100.0 - min_error)
        ticks = accuracy_ticks(*axes.get_ylim())
        axes.set_yticks(ticks, [format_percent(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
    else:
        # Intervals of few seeds can be many times longer than the values spread: they extend the axis by 20% at most.
        span = high - low or 1.0
        edges = [edge for point in points for edge in (point.interval.low, point.interval.high) if edge is not None]
        bottom = max(min([low, *edges]), low - 0.2 * span) - 0.04 * span
        top = min(max([high, *edges]), high + 0.2 * span) + 0.06 * span
        axes.set_ylim(max(0.0, bottom), top if top < 100 else 100.0 + 0.03 * span)


def set_log_ticks(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Set a logarithmic axis from `low` to `high`, both above 0, with ticks at 1, 2, 5, ... and near the upper end."""
    ticks = [times * 10.0**power for power in range(-3, 9) for times in (1, 2, 5) if low <= times * 10.0**power <= high]
    if len(ticks) < 2:
        ticks = [low + share * (high - low) for share in (0.1, 0.5, 0.9)]
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_ticks(ticks, [f"{tick:,.0f}" if tick >= 100 else format_percent(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def log_error_scale(min_error: float) -> tuple[Callable[..., object], Callable[..., object]]:
    """Return the functions accuracy -> -log10(100 - accuracy) and back; smaller errors count as `min_error`."""
    import numpy as np

    def forward(accuracy: object) -> object:
        return -np.log10(np.maximum(100.0 - np.asarray(accuracy, dtype=float), min_error))

    def backward(height: object) -> object:
        return 100.0 - 10.0 ** -np.asarray(height, dtype=float)

    return forward, backward


def accuracy_ticks(low: float, high: float, min_distance: float = 0.06) -> list[float]:
    """Return round accuracies between `low` and `high` percent for a log-error axis.

    `min_distance`: the least distance of two ticks, as a share of the axis.
    """
    # In the order of preference: the roundest first.
    candidates = [90, 99, 50, 80, 95, 98, 97, 70, 99.5, 99.9, 96, 60, 30, 0, 92, 94, 85, 98.5, 99.2, 99.8, 40, 20, 10]
    span = math.log10((100 - low) / (100 - high))
    kept: list[float] = []
    for tick in candidates:
        too_near = [abs(math.log10((100 - tick) / (100 - other))) < min_distance * span for other in kept]
        if low <= tick <= high and not any(too_near):
            kept.append(tick)
    return sorted(kept)


def _y_label_width(axes: Axes) -> float:
    """Return the inches that the labels of the y axis take to the left of the axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.yaxis.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return (axes.get_window_extent().x0 - box.x0) / figure.dpi if box else 0.0


def _size(legend: Legend) -> tuple[float, float]:
    """Return width and height of a legend in inches."""
    figure = legend.get_figure(root=True)
    assert figure is not None
    box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return box.width / figure.dpi, box.height / figure.dpi


def _add_legend(figure: Figure, summary: Summary, styles: dict[str, LineStyle]) -> Legend:
    from matplotlib.lines import Line2D

    handles = []
    suffixes: dict[str, str] = {}
    for label, series in summary.series.items():
        style, is_reference = styles[label], label == summary.reference
        line = {"linestyle": style.line, "linewidth": 1.5 if is_reference else 1.1}
        handles.append(Line2D([], [], color=style.color, marker=style.marker, **(MARKER | line)))
        suffixes[label] = " (reference)" if is_reference else "" if series else " (no finished run)"
    labels = distinct_labels(
        list(summary.series), lambda label, number: _wrap_legend_label(label + number + suffixes[label])
    )
    if summary.dense:
        handles.append(Line2D([], [], marker="o", markersize=4, **DENSE_LINE))
        labels.append("dense network")
    if any(point.significant for point in summary.points):
        handles.append(Line2D([], [], color=GRAY, **STAR))
        labels.append("significant difference")
    legend = figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper left",
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=3.6,
        labelspacing=0.55,
    )
    set_legend_labels(legend, labels)
    return legend


def _wrap_legend_label(label: str) -> str:
    def measure(text: str) -> float:
        return text_measure()(text, RC["legend.fontsize"])

    return "\n".join(wrap_to_width(escape_missing_glyphs(label), LABEL_WIDTH, measure))


def _x(point: TreatmentPoint | None) -> float:
    return point.remaining if point else math.nan


def _mean(point: TreatmentPoint | None) -> float:
    return point.interval.mean if point else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
