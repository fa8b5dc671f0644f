"""Plotly figures of trained networks as plain data: accuracy, overview and ranking.

The numbers are those of `supermask figure`: both draw `analysis.summary.Summary` and `figures.ranking.Ranking`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from supermask.analysis.summary import Summary, TreatmentPoint
from supermask.core.text import format_number, format_percent
from supermask.reporting.figures.ranking import RankedLevel, RankedTreatment, Ranking
from supermask.reporting.figures.style import BLUE, VERMILION, LineStyle, assign_styles
from supermask.reporting.plotly.traces import (
    SYMBOLS,
    Figure,
    PlotPoint,
    Trace,
    as_errors,
    error,
    error_axis,
    escape_labels,
    escape_text,
    format_comparison,
    format_mean,
    horizontal_line,
    hover_name,
    layout,
    line_traces,
    remaining_weights_axis,
)

MAX_TREATMENTS = 40
"""Treatments at most in an overview or a ranking; more rows are not readable."""

RANKING_LAYOUT = "first view: lines join the mean ranks of a treatment; then one view per level, best first"
"""Clause of the caption on the views of `ranking_plot`."""


def accuracy_plot(summary: Summary) -> Figure:
    """Return a metric against weights remaining, one line per treatment, and as differences to the reference.

    Accuracies have a view that is logarithmic in the error; it comes first if errors span more than a factor of 4.
    """
    accuracy = summary.metric.unit == "percent"
    views = [_default_view(summary, "Accuracy" if accuracy else "Iteration")]
    if accuracy:
        views.append(_error_view(summary))
        errors = [error(point.interval.mean) or 0.0 for point in _points(summary)]
        if max(errors) > 4 * min(errors):
            views.reverse()
    if any(point.comparison for point in summary.points):
        views.append(_difference_view(summary))
    for view in views:
        view["layout"]["meta"] = {"few_at_first": True, "reference": summary.reference}
    return {**views[0], "views": views[1:]}


def overview_plot(summary: Summary, treatments: Sequence[str]) -> tuple[Figure, float]:
    """Return a heat map of treatments x levels in points against the reference, and the limit of its colors."""
    levels = sorted({point.level for point in summary.points})
    points = {(point.treatment, point.level): point for point in summary.points}
    # The third quartile: with the largest difference as limit, all others would be pale.
    differences = sorted(abs(point.comparison.difference) for point in summary.points if point.comparison)
    limit = _round_limit(differences[int(0.75 * (len(differences) - 1))] if differences else 1.0)
    cells = [[points.get((label, level)) for level in levels] for label in treatments]
    # As in the figure: the densities are those of the reference, where it has the level.
    order = [summary.reference, *treatments]
    remaining = [next(points[name, level].remaining for name in order if (name, level) in points) for level in levels]
    heat: Trace = {
        "type": "heatmap",
        "z": [[_color_value(summary, point) for point in row] for row in cells],
        "text": [[_cell_text(summary, point) for point in row] for row in cells],
        "texttemplate": "%{text}",
        "textfont": {"size": 12},
        "hovertext": [[_hover(summary, point) if point else "" for point in row] for row in cells],
        "hoverinfo": "text",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "zmid": 0,
        "zmin": -limit,
        "zmax": limit,
        "colorscale": [[0, VERMILION], [0.5, "#ffffff"], [1, BLUE]],
        "showscale": False,
    }
    names = escape_labels(treatments, 26)
    figure = {
        "data": [heat],
        "layout": layout(
            {
                "title": {"text": "Weights remaining (%)"},
                "tickvals": list(range(len(levels))),
                "ticktext": [format_number(value, 2 if value < 10 else 1) for value in remaining],
                "showgrid": False,
            },
            {"tickvals": list(range(len(names))), "ticktext": names, "autorange": "reversed", "showgrid": False},
            meta={"height": 110 + 30 * len(names), "least_width": 150 + 48 * len(levels)},
        ),
        "label": "Map",
        "views": [],
    }
    return figure, limit


def _round_limit(value: float) -> float:
    """Round up to 0.5, 1, 2, 5, 10, 20 or 50 points."""
    return next((limit for limit in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if value <= limit), 50.0)


def _color_value(summary: Summary, point: TreatmentPoint | None) -> float | None:
    """Return the difference to the reference in points; 0 for the reference itself."""
    if point is None:
        return None
    if point.treatment == summary.reference:
        return 0.0
    return point.comparison.difference if point.comparison else None


def _cell_text(summary: Summary, point: TreatmentPoint | None) -> str:
    if point is None:
        return ""
    if point.treatment == summary.reference:
        return "ref."
    if point.comparison is None:
        return "–"
    difference = point.comparison.difference
    digits = 2 if abs(difference) < 10 else 1
    return format_number(difference, digits, True) + ("★" if point.significant else "")


def _points(summary: Summary) -> list[TreatmentPoint]:
    return summary.points + ([summary.dense] if summary.dense else [])


def _digits(summary: Summary) -> int:
    return 2 if summary.metric.unit == "percent" else 0


def _hover(summary: Summary, point: TreatmentPoint) -> str:
    percent = summary.metric.unit == "percent"
    digits = _digits(summary)
    remaining = f"{format_number(point.remaining)}% of weights remaining"
    text = f"{hover_name(point.treatment)}<br>level {point.level}, {remaining}"
    text += "<br>" + format_mean(point.interval, digits, "%" if percent else " iterations")
    if point.comparison:
        unit = " points" if percent else " iterations"
        text += "<br>" + format_comparison(point.comparison, point.p_holm, summary.reference, digits, unit)
    return text


def _plot_points(summary: Summary, points: Sequence[TreatmentPoint]) -> list[PlotPoint | None]:
    """Return the points by level after the dense network; None for a level without a point."""
    by_level = {point.level: point for point in points}
    plot_points: list[PlotPoint | None] = []
    if summary.dense:
        # Every line starts at the dense network, whose interval is drawn once and not in every band.
        start = summary.dense
        hover = _hover(summary, start)
        plot_points.append(PlotPoint(start.remaining, start.interval.mean, None, None, hover, no_marker=True))
    for level in sorted({point.level for point in summary.points}):
        point = by_level.get(level)
        plot_points.append(None if point is None else _plot_point(summary, point))
    return plot_points


def _plot_point(summary: Summary, point: TreatmentPoint) -> PlotPoint:
    interval, hover = point.interval, _hover(summary, point)
    return PlotPoint(point.remaining, interval.mean, interval.low, interval.high, hover, point.significant)


def _default_view(summary: Summary, label: str) -> Figure:
    yaxis: dict[str, Any] = {"title": {"text": summary.metric.title}}
    if summary.metric.unit != "percent":
        yaxis |= {"rangemode": "tozero", "tickformat": ",d"}
    return {
        "data": _traces(summary, list),
        "layout": layout(_x_axis(summary), {**yaxis, "uirevision": label}),
        "label": label,
    }


def _error_view(summary: Summary) -> Figure:
    label = "Accuracy, log axis of the error"
    means = [point.interval.mean for point in _points(summary)]
    # Bands may reach 100%, which has no place on the axis: it ends at 0.7 times the smallest error.
    end = 100 - 0.7 * (100 - max(means))
    yaxis = error_axis("Test accuracy", [end, *means])
    return {
        "data": _traces(summary, as_errors),
        "layout": layout(_x_axis(summary), {**yaxis, "uirevision": label}),
        "label": label,
    }


def _difference_view(summary: Summary) -> Figure:
    percent = summary.metric.unit == "percent"
    label = "Difference to the reference"
    styles = assign_styles(list(summary.series))
    data: list[Trace] = []
    levels = sorted({point.level for point in summary.points})
    for name, points in summary.series.items():
        if name == summary.reference:
            continue
        compared = {point.level: point for point in points if point.comparison}
        differences = [_difference_point(summary, compared.get(level)) for level in levels]
        data += line_traces(name, styles[name], differences)
    ends = _x_ends(summary)
    data.append(horizontal_line(f"{summary.reference} (reference)", 0.0, ends, "solid", escape_text(summary.reference)))
    unit = "percentage points" if percent else "iterations"
    title = f"Difference to {escape_text(summary.reference, 32)} ({unit})"
    return {
        "data": data,
        "layout": layout(_x_axis(summary), {"title": {"text": title}, "uirevision": label}),
        "label": label,
    }


def _difference_point(summary: Summary, point: TreatmentPoint | None) -> PlotPoint | None:
    if point is None or point.comparison is None:
        return None
    low, high = point.comparison.interval95 or (None, None)
    hover = _hover(summary, point)
    return PlotPoint(point.remaining, point.comparison.difference, low, high, hover, point.significant)


PlotPoints = Sequence[PlotPoint | None]


def _traces(summary: Summary, transform: Callable[[PlotPoints], list[PlotPoint | None]]) -> list[Trace]:
    """Return the lines of all treatments and the dense network, with their points transformed."""
    styles = assign_styles(list(summary.series))
    data: list[Trace] = []
    for label, points in summary.series.items():
        if points:
            plot_points = transform(_plot_points(summary, points))
            data += line_traces(label, styles[label], plot_points, label == summary.reference)
    if summary.dense:
        point = _plot_point(summary, summary.dense)
        point = transform([point])[0] or point
        data.append(horizontal_line("dense network", point.y, _x_ends(summary), "dot", point.hover))
        if point.low is not None and point.high is not None:
            data.append(_dense_interval(point.x, point.low, point.high))
    return data


def _dense_interval(x: float, low: float, high: float) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": "dense network",
        "showlegend": False,
        "x": [x, x],
        "y": [low, high],
        "hoverinfo": "skip",
        "line": {"width": 1.6},
        "meta": {"ink": True},
    }


def _x_ends(summary: Summary) -> tuple[float, float]:
    remaining = [point.remaining for point in _points(summary)] + [100.0]
    return max(remaining), min(remaining)


def _x_axis(summary: Summary) -> dict[str, Any]:
    return remaining_weights_axis([100.0, *(point.remaining for point in summary.points)])


def ranking_plot(summary: Summary, ranking: Ranking) -> Figure:
    """Return mean ranks: one line per treatment over the levels, then dots with intervals in one view per level.

    A ranking of one level has no lines.
    """
    styles = assign_styles(list(summary.series))
    last_rank = max(len(level.places) for level in ranking.levels)
    height = max(420, 120 + 30 * last_rank)
    views = [_all_levels_view(summary, ranking, styles, last_rank, height)] if len(ranking.levels) > 1 else []
    views += [_level_view(summary, level, styles, last_rank, height) for level in ranking.levels]
    return {**views[0], "views": views[1:]}


def _all_levels_view(
    summary: Summary, ranking: Ranking, styles: dict[str, LineStyle], last_rank: int, height: int
) -> Figure:
    data: list[Trace] = []
    for treatment, style in styles.items():
        points: list[PlotPoint | None] = []
        for level in ranking.levels:
            ranked = next((ranked for ranked in level.places if ranked.treatment == treatment), None)
            x = level.weights_remaining_percent
            points.append(PlotPoint(x, ranked.mean_rank, None, None, _rank_hover(level, ranked)) if ranked else None)
        if any(points):
            data += line_traces(treatment, style, points, treatment == summary.reference)
    label = "All levels"
    xaxis = remaining_weights_axis([level.weights_remaining_percent for level in ranking.levels])
    yaxis = {
        "title": {"text": "Mean rank (1 is best)"},
        "range": [last_rank + 0.4, 0.6],
        **_integer_ticks(last_rank),
        "uirevision": label,
    }
    return {"data": data, "layout": layout(xaxis, yaxis, meta={"height": height}), "label": label}


def _level_view(
    summary: Summary, level: RankedLevel, styles: dict[str, LineStyle], last_rank: int, height: int
) -> Figure:
    data: list[Trace] = []
    for row, ranked in enumerate(level.places):
        data += _rank_traces(ranked, row, styles[ranked.treatment], _rank_hover(level, ranked))
    label = f"{format_percent(level.weights_remaining_percent)}%"
    labels = [ranked.treatment for ranked in level.places]
    names = [
        name + (" (ref.)" if label == summary.reference else "")
        for name, label in zip(escape_labels(labels, 30), labels, strict=True)
    ]
    xaxis = {"title": {"text": f"Mean rank at {label} (1 is best)"}, "range": [0.6, last_rank + 0.4]}
    yaxis = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [len(names) - 0.4, -0.6],
        "fixedrange": True,
        "showgrid": False,
    }
    return {
        "data": data,
        "layout": layout({**xaxis, **_integer_ticks(last_rank)}, yaxis, meta={"height": height}),
        "label": label,
    }


def _rank_traces(ranked: RankedTreatment, row: int, style: LineStyle, hover: str) -> list[Trace]:
    """Return a pale bar from the best to the worst rank in a seed, and the mean rank with its interval."""
    common = {"type": "scatter", "legendgroup": ranked.treatment}
    spread = {
        **common,
        "mode": "lines",
        "x": [ranked.best_rank, ranked.worst_rank],
        "y": [row, row],
        "line": {"color": style.color, "width": 9},
        "opacity": 0.2,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    mean: Trace = {
        **common,
        "mode": "markers",
        "name": ranked.treatment,
        "x": [ranked.mean_rank],
        "y": [row],
        "marker": {"symbol": SYMBOLS.get(style.marker, "circle"), "size": 9, "color": style.color},
        "hovertext": [hover],
        "hoverinfo": "text",
    }
    if ranked.low95 is not None and ranked.high95 is not None:
        up, down = ranked.high95 - ranked.mean_rank, ranked.mean_rank - ranked.low95
        mean["error_x"] = {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 1.6}
    return [spread, mean]


def _rank_hover(level: RankedLevel, ranked: RankedTreatment) -> str:
    seeds = len(level.seeds)
    text = f"{hover_name(ranked.treatment)}<br>level {level.level}, "
    text += f"{format_number(level.weights_remaining_percent)}% of weights remaining"
    interval = ""
    if ranked.low95 is not None and ranked.high95 is not None:
        interval = f" [{format_number(ranked.low95)}, {format_number(ranked.high95)}]"
    text += f"<br>mean rank {format_number(ranked.mean_rank)}{interval} of {len(level.places)}, n = {seeds}"
    if seeds > 1:
        text += f"<br>rank {ranked.best_rank:g} to {ranked.worst_rank:g} in single seeds"
    return text + f"<br>mean accuracy {format_number(ranked.mean)}%, rank {ranked.rank_of_mean:g}"


def _integer_ticks(last_rank: int) -> dict[str, Any]:
    """Return ticks at every rank, or at every fifth if there are more than 12."""
    step = 1 if last_rank <= 12 else 5
    ranks: Sequence[int] = [1, *range(step, last_rank + 1, step)] if step > 1 else range(1, last_rank + 1)
    return {"tickvals": list(ranks), "ticktext": [str(rank) for rank in ranks]}
