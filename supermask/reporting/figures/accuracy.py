"""Test accuracy, and convergence speed, against the weights that remain: the paper's central figures.

Drawing a summary: one line a treatment over the weights that remain, its band and stars, legend and caption.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from supermask.analysis.summary import Metric, Summary, TreatmentPoint, data_rows, summarize
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.caption import summary_caption, wrap_to_width
from supermask.reporting.figures.save import DPI, RenderedFigure
from supermask.reporting.figures.style import (
    GREY,
    INK,
    RC,
    WIDTH,
    LineStyle,
    TextMeasure,
    assign_styles,
    make_text_measure,
    style_context,
    thin_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN, GAP, TITLE, AXIS, AXES_HEIGHT = 0.08, 0.14, 0.30, 0.40, 2.75
"""Sizes in inches: outer margin, axes to legend, title, x-axis labels, the axes."""

TITLE_SIZE, LABEL_SIZE, CAPTION_SIZE = 8.5, RC["legend.fontsize"], 6.6
LABEL_WIDTH = 1.7
"""Inches at which a legend label is broken."""

MARKER: dict[str, Any] = {"linestyle": "none", "markersize": 3.8, "markeredgecolor": "white", "markeredgewidth": 0.45}
STAR: dict[str, Any] = {"linestyle": "none", "marker": "*", "markersize": 4.6, "markeredgewidth": 0}
STAR_LIFT = 4.3
"""Points between a point's marker and its star."""
BAND, MANY = 0.13, 7
"""How dense a band is; and how many lines are so many that all but the reference's have half of that."""
DENSE_LINE: dict[str, Any] = {"color": INK, "linestyle": (0, (1, 1.6)), "linewidth": 0.9}

ERROR_LINE = "The accuracy axis is logarithmic in the test error (100% - accuracy)."


def draw_summary(summary: Summary, title: str, remarks: Sequence[str] = ()) -> RenderedFigure:
    """The figure, its caption with `remarks` on what is drawn, and the numbers behind it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style_context():
        figure = Figure(figsize=(WIDTH, 4.0), dpi=DPI)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.1, 0.3, 0.6, 0.6))
        chosen = assign_styles(list(summary.series))
        logarithmic = _set_accuracy_axis(axes, summary)
        remaining_weights_axis(axes, [100.0, *(point.remaining for point in summary.points)])
        axes.set_xlabel("Weights remaining (%)")
        _draw_lines(figure, axes, summary, chosen)
        text = summary_caption(summary, [*remarks, *([ERROR_LINE] if logarithmic else [])])
        _layout(figure, axes, summary, chosen, title, text)
    return RenderedFigure(figure, text, data_rows(summary))


def _draw_lines(figure: Figure, axes: Axes, summary: Summary, chosen: dict[str, LineStyle]) -> None:
    from matplotlib.transforms import ScaledTranslation

    levels = sorted({point.level for point in summary.points})
    if summary.dense:
        axes.axhline(summary.dense.interval.mean, zorder=2.5, **DENSE_LINE)
    for label, line in summary.series.items():
        look, leading = chosen[label], label == summary.reference
        order = 4.0 if leading else 3.0
        at = {point.level: point for point in line}
        # A level that is missing between two others leaves a gap in the line.
        points: list[TreatmentPoint | None] = [summary.dense, *(at.get(level) for level in levels)]
        x, mean = [_x(p) for p in points], [_mean(p) for p in points]
        # The dense network's interval is every line's: it is drawn once, not once a line.
        axes.fill_between(
            x[1:],
            [_interval_end(p, p.interval.low) if p else math.nan for p in points[1:]],
            [_interval_end(p, p.interval.high) if p else math.nan for p in points[1:]],
            color=look.colour,
            alpha=BAND if leading or len(summary.series) < MANY else BAND / 2,
            linewidth=0,
            zorder=1.5,
        )
        axes.plot(x, mean, color=look.colour, linestyle=look.line, linewidth=1.5 if leading else 1.1, zorder=order)
        axes.plot(
            [_x(point) for point in line],
            [_mean(point) for point in line],
            color=look.colour,
            marker=look.marker,
            zorder=order + 0.5,
            **MARKER,
        )
        starred = [point for point in line if point.significant]
        axes.plot(
            [_x(point) for point in starred],
            [_mean(point) for point in starred],
            color=look.colour,
            transform=axes.transData + ScaledTranslation(0, STAR_LIFT / 72, figure.dpi_scale_trans),
            zorder=order + 0.6,
            **STAR,
        )
    if summary.dense:
        ends = [
            _interval_end(summary.dense, summary.dense.interval.low),
            _interval_end(summary.dense, summary.dense.interval.high),
        ]
        axes.plot([_x(summary.dense)] * 2, ends, color=INK, linewidth=0.9, zorder=4.9)
        axes.plot(_x(summary.dense), _mean(summary.dense), "o", color=INK, markersize=4, zorder=5)


def remaining_weights_axis(axes: Axes, remaining: Sequence[float], apart: float = 0.062) -> None:
    """Weights remaining, in percent: logarithmic, falling to the right; ticks at the levels' own where there is room.

    `apart`: the least distance of two ticks, as a share of the axis.
    """
    values = sorted(set(remaining), reverse=True)
    axes.set_xscale("log")
    span = math.log10(values[0] / values[-1]) or 1.0
    axes.set_xlim(values[0] * 10 ** (0.025 * span), values[-1] / 10 ** (0.025 * span))
    kept = thin_ticks([-math.log10(value) for value in values], apart * span)
    axes.set_xticks([values[index] for index in kept], [format_percent(values[index]) for index in kept])
    axes.set_xticks([], minor=True)


def _set_accuracy_axis(axes: Axes, summary: Summary) -> bool:
    """Limits and ticks of the y axis; True where it is logarithmic in the error."""
    axes.set_ylabel(summary.measure.title)
    points = summary.points + ([summary.dense] if summary.dense else [])
    values = [value for point in points for value in point.values.values()]
    low, high = min(values), max(values)
    if summary.measure.unit != "percent":
        axes.set_ylim(0, high * 1.06 or 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return False
    errors = [100.0 - point.interval.mean for point in points]
    if high >= 100.0 or max(errors) <= 4 * min(errors):
        span = high - low or 1.0
        edges = [edge for point in points for edge in (point.interval.low, point.interval.high) if edge is not None]
        bottom = max(min([low, *edges]), low - 0.2 * span) - 0.04 * span
        top = min(max([high, *edges]), high + 0.2 * span) + 0.06 * span
        axes.set_ylim(max(0.0, bottom), top if top < 100 else 100.0 + 0.03 * span)
        return False
    least = (100.0 - high) / 1.12
    axes.set_yscale("function", functions=log_error_scale(least / 1e3))
    axes.set_ylim(100.0 - min(100.0, (100.0 - low) * 1.12), 100.0 - least)
    ticks = accuracy_ticks(*axes.get_ylim())
    axes.set_yticks(ticks, [format_percent(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    return True


def log_error_scale(least: float) -> tuple[Callable[..., object], Callable[..., object]]:
    """accuracy -> -log10(error), and back; errors below `least` are drawn there."""
    import numpy as np

    def forward(accuracy: object) -> object:
        return -np.log10(np.maximum(100.0 - np.asarray(accuracy, dtype=float), least))

    def backward(height: object) -> object:
        return 100.0 - 10.0 ** -np.asarray(height, dtype=float)

    return forward, backward


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Round accuracies, the roundest first, no two nearer than 6% of the axis."""
    wanted = [90, 99, 50, 80, 95, 98, 97, 70, 99.5, 99.9, 96, 60, 30, 0, 92, 94, 85, 98.5, 99.2, 99.8, 40, 20, 10]
    span = math.log10((100 - low) / (100 - high))
    kept: list[float] = []
    for tick in wanted:
        near = [abs(math.log10((100 - tick) / (100 - other))) < 0.06 * span for other in kept]
        if low <= tick <= high and not any(near):
            kept.append(tick)
    return sorted(kept)


def _layout(figure: Figure, axes: Axes, summary: Summary, chosen: dict[str, LineStyle], title: str, text: str) -> None:
    """Place everything in inches, from measured text: nothing is cut off and nothing covers the data."""
    width_of = make_text_measure(figure)
    ticks = axes.yaxis.get_tightbbox(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    left = MARGIN + ((axes.get_window_extent().x0 - ticks.x0) / figure.dpi if ticks else 0.0)
    legend_size = _add_legend(figure, summary, chosen, width_of)
    lines = wrap_to_width(text, WIDTH - 2 * MARGIN, lambda part: width_of(part, CAPTION_SIZE))
    heading = wrap_to_width(title, WIDTH - left - MARGIN, lambda part: width_of(part, TITLE_SIZE, bold=True))
    caption_height = len(lines) * CAPTION_SIZE * 1.3 / 72 + 0.10
    top = TITLE + 0.14 * (len(heading) - 1)
    height = max(AXES_HEIGHT, legend_size[1] + 0.05)
    total = top + height + AXIS + caption_height
    figure.set_size_inches(WIDTH, total)
    right = WIDTH - MARGIN - GAP - legend_size[0]
    axes.set_position((left / WIDTH, (AXIS + caption_height) / total, (right - left) / WIDTH, height / total))
    legend = figure.legends[0]
    legend.set_bbox_to_anchor(((right + GAP) / WIDTH, 1 - top / total), transform=figure.transFigure)
    place: dict[str, Any] = {"parse_math": False, "va": "top", "color": INK}
    figure.text(left / WIDTH, 1 - 0.09 / total, "\n".join(heading), fontsize=TITLE_SIZE, fontweight="bold", **place)
    figure.text(
        MARGIN / WIDTH,
        caption_height / total,
        "\n".join(lines),
        fontsize=CAPTION_SIZE,
        linespacing=1.3,
        **place,
    )


def _add_legend(
    figure: Figure, summary: Summary, chosen: dict[str, LineStyle], width_of: TextMeasure
) -> tuple[float, float]:
    """Outside, right of the axes. Returns its width and height in inches."""
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for label in summary.series:
        look, leading = chosen[label], label == summary.reference
        dashes = {"linestyle": look.line, "linewidth": 1.5 if leading else 1.1}
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, **(MARKER | dashes)))
        name = f"{label} (reference)" if leading else label
        name += "" if summary.series[label] else " (no finished run)"
        labels.append("\n".join(wrap_to_width(name, LABEL_WIDTH, lambda part: width_of(part, LABEL_SIZE))))
    if summary.dense:
        handles.append(Line2D([], [], marker="o", markersize=4, **DENSE_LINE))
        labels.append("dense network")
    if any(point.significant for point in summary.points):
        handles.append(Line2D([], [], color=GREY, **STAR))
        labels.append("significant difference")
    # Labels are set afterwards: matplotlib drops those that begin with "_" and reads "$" as mathematics.
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
    for shown, label in zip(legend.get_texts(), labels, strict=True):
        shown.set_parse_math(False)
        shown.set_text(label)
    box = legend.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return box.width / figure.dpi, box.height / figure.dpi


def _x(point: TreatmentPoint | None) -> float:
    return point.remaining if point else math.nan


def _mean(point: TreatmentPoint | None) -> float:
    return point.interval.mean if point else math.nan


def _interval_end(point: TreatmentPoint, edge: float | None) -> float:
    return edge if edge is not None else math.nan


ACCURACY = Metric("early_stop_test_accuracy", 100.0, "percent", "Test accuracy at early stopping (%)")
EARLY_STOP = Metric("early_stop_iteration", 1.0, "iterations", "Early-stopping iteration")


def accuracy_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> RenderedFigure:
    """Test accuracy at the iteration of lowest validation loss, against weights remaining; one line a treatment.

    Mean over seeds with its 95% t-interval; a star where the difference to `reference` is significant at that level.
    The accuracy axis is logarithmic in the test error where the errors span more than a factor of four.
    Raises UserError for unknown labels, runs of several studies, or no finished run.
    Source: paper.md section 7; figures 3 to 5 of the paper.
    """
    return draw_summary(summarize(rows, treatments, reference, ACCURACY), title)


def convergence_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> RenderedFigure:
    """Convergence speed: the iteration of lowest validation loss, drawn and tested as in `accuracy_figure`."""
    return draw_summary(summarize(rows, treatments, reference, EARLY_STOP), title, [unconverged_note(rows)])


def unconverged_note(rows: Sequence[Row]) -> str:
    """How many trainings had not converged: for them the figure shows the length of the training, not a speed."""
    finished = [row for row in rows if row["status"] == "finished"]
    ends = {row.get("iterations") for row in finished}
    last = sum(row["early_stop_iteration"] == row.get("iterations") for row in finished)
    if not last or len(ends) != 1:
        return ""
    return f"In {last} of {len(finished)} runs the loss was lowest at the last iteration, {ends.pop():,}."
