"""Summaries -> interactive figures of trained networks, as plain data: lines over the weights that remain, and the map.

The numbers are those of `supermask figure`: both draw `figures.points.Summary`.

The ranking of treatments -> an interactive figure, as plain data: all levels, and each level by itself.

The numbers are those of `supermask figure`: both show `figures.ranking.ranking_of`.
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
    escape_text,
    format_comparison,
    format_mean,
    horizontal_line,
    layout,
    line_traces,
    remaining_weights_axis,
)

MOST_IN_MAP = 40
"""Treatments: a map of more rows is not read."""


def accuracy_plot(summary: Summary) -> Figure:
    """A measure against weights remaining, a line a treatment: as it is, and as differences to the reference.

    Accuracies are shown on an axis logarithmic in the error too; first where errors span more than a factor of four.
    """
    accuracy = summary.measure.unit == "percent"
    views = [_default_view(summary, "Accuracy" if accuracy else "Iteration")]
    if accuracy:
        views.append(_error_view(summary))
        errors = [error(point.interval.mean) or 0.0 for point in _points(summary)]
        if max(errors) > 4 * min(errors):
            views.reverse()
    if any(point.comparison for point in summary.points):
        views.append(_difference_view(summary))
    return {**views[0], "views": views[1:]}


def overview_plot(summary: Summary, treatments: Sequence[str]) -> tuple[Figure, float]:
    """(treatments by levels, in points against the reference; the points at which the colours end)."""
    levels = sorted({point.level for point in summary.points})
    at = {(point.treatment, point.level): point for point in summary.points}
    found = [abs(point.comparison.difference) for point in summary.points if point.comparison]
    limit = _round_limit(sorted(found)[int(0.75 * (len(found) - 1))] if found else 1.0)
    cells = [[at.get((label, level)) for level in levels] for label in treatments]
    remaining = [next(p.remaining for p in summary.points if p.level == level) for level in levels]
    heat: Trace = {
        "type": "heatmap",
        "z": [[_color_value(summary, point) for point in row] for row in cells],
        "text": [[_cell(summary, point) for point in row] for row in cells],
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
    names = [escape_text(label, 26) for label in treatments]
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
            meta={"height": 110 + 30 * len(names), "least_width": 150 + 60 * len(levels)},
        ),
        "label": "Map",
        "views": [],
    }
    return figure, limit


def _round_limit(value: float) -> float:
    """The next of 0.5, 1, 2, 5, 10, 20, 50 points."""
    return next((limit for limit in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if value <= limit), 50.0)


def _color_value(summary: Summary, point: TreatmentPoint | None) -> float | None:
    """What the colour says: the reference differs from itself by nothing."""
    if point is None:
        return None
    if point.treatment == summary.reference:
        return 0.0
    return point.comparison.difference if point.comparison else None


def _cell(summary: Summary, point: TreatmentPoint | None) -> str:
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
    return 2 if summary.measure.unit == "percent" else 0


def _hover(summary: Summary, point: TreatmentPoint) -> str:
    percent = summary.measure.unit == "percent"
    digits = _digits(summary)
    remaining = f"{format_number(point.remaining)}% of weights remaining"
    text = f"<b>{escape_text(point.treatment)}</b><br>level {point.level}, {remaining}"
    text += "<br>" + format_mean(point.interval, digits, "%" if percent else " iterations")
    if point.comparison:
        unit = " points" if percent else " iterations"
        text += "<br>" + format_comparison(point.comparison, point.p_holm, summary.reference, digits, unit)
    return text


def _plot_points(summary: Summary, points: Sequence[TreatmentPoint]) -> list[PlotPoint | None]:
    """By level, after the dense network; None where a level between two others is missing."""
    at = {point.level: point for point in points}
    levels = sorted({point.level for point in summary.points})
    found: list[PlotPoint | None] = []
    for level in levels:
        point = at.get(level)
        if point is None:
            found.append(None)
            continue
        ends = point.interval
        hover = _hover(summary, point)
        found.append(PlotPoint(point.remaining, ends.mean, ends.low, ends.high, hover, point.significant))
    if summary.dense:
        # Every line begins at the dense network; its interval is drawn once, not once a line.
        start = summary.dense
        return [
            PlotPoint(start.remaining, start.interval.mean, None, None, _hover(summary, start), no_marker=True),
            *found,
        ]
    return found


def _default_view(summary: Summary, label: str) -> Figure:
    yaxis: dict[str, Any] = {"title": {"text": summary.measure.title}}
    if summary.measure.unit != "percent":
        yaxis |= {"rangemode": "tozero", "tickformat": ",d"}
    return {
        "data": _traces(summary, lambda marks: list(marks)),
        "layout": layout(_x_axis(summary), {**yaxis, "uirevision": label}),
        "label": label,
    }


def _error_view(summary: Summary) -> Figure:
    label = "Accuracy, log axis of the error"
    means = [point.interval.mean for point in _points(summary)]
    # Bands may go on to 100%, where the axis has no end: it leaves room for a part of the best one.
    room = 100 - 0.7 * (100 - max(means))
    yaxis = error_axis("Test accuracy", [room, *means])
    return {
        "data": _traces(summary, as_errors),
        "layout": layout(_x_axis(summary), {**yaxis, "uirevision": label}),
        "label": label,
    }


def _difference_view(summary: Summary) -> Figure:
    percent = summary.measure.unit == "percent"
    label = "Difference to the reference"
    chosen = assign_styles(list(summary.series))
    data: list[Trace] = []
    levels = sorted({point.level for point in summary.points})
    for name, points in summary.series.items():
        if name == summary.reference:
            continue
        at = {point.level: point for point in points if point.comparison}
        data += line_traces(name, chosen[name], [_difference(summary, at.get(level)) for level in levels])
    ends = _x_ends(summary)
    data.append(horizontal_line(f"{summary.reference} (reference)", 0.0, ends, "solid", escape_text(summary.reference)))
    unit = "percentage points" if percent else "iterations"
    title = f"Difference to {escape_text(summary.reference, 32)} ({unit})"
    return {
        "data": data,
        "layout": layout(_x_axis(summary), {"title": {"text": title}, "uirevision": label}),
        "label": label,
    }


def _difference(summary: Summary, point: TreatmentPoint | None) -> PlotPoint | None:
    if point is None or point.comparison is None:
        return None
    low, high = point.comparison.interval95 or (None, None)
    hover = _hover(summary, point)
    return PlotPoint(point.remaining, point.comparison.difference, low, high, hover, point.significant)


def _traces(summary: Summary, shown: Callable[[Sequence[PlotPoint | None]], list[PlotPoint | None]]) -> list[Trace]:
    chosen = assign_styles(list(summary.series))
    data: list[Trace] = []
    for label, points in summary.series.items():
        if points:
            data += line_traces(label, chosen[label], shown(_plot_points(summary, points)), label == summary.reference)
    dense = summary.dense
    if dense:
        ends = dense.interval
        mark = PlotPoint(dense.remaining, ends.mean, ends.low, ends.high, _hover(summary, dense))
        mark = shown([mark])[0] or mark
        data.append(horizontal_line("dense network", mark.y, _x_ends(summary), "dot", mark.hover))
        if mark.low is not None and mark.high is not None:
            data.append(_bar(mark))
    return data


def _bar(mark: PlotPoint) -> Trace:
    """The dense network's interval."""
    assert mark.low is not None and mark.high is not None
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": "dense network",
        "showlegend": False,
        "x": [mark.x, mark.x],
        "y": [mark.low, mark.high],
        "hoverinfo": "skip",
        "line": {"width": 1.6},
        "meta": {"ink": True},
    }


def _x_ends(summary: Summary) -> tuple[float, float]:
    remaining = [point.remaining for point in _points(summary)] + [100.0]
    return max(remaining), min(remaining)


def _x_axis(summary: Summary) -> dict[str, Any]:
    return remaining_weights_axis([100.0, *(point.remaining for point in summary.points)])


LAYOUT = "first view: lines join a treatment's mean ranks; then a level each, best first"
"""What the caption says of how the ranks are laid out."""


def ranking_plot(summary: Summary, ranking: Ranking) -> Figure:
    """Mean ranks, 1 first: a line a treatment over the levels; then dots with intervals, level by level.

    One level alone has no lines.
    """
    chosen = assign_styles(list(summary.series))
    most = max(len(level.places) for level in ranking.levels)
    height = max(420, 120 + 30 * most)
    views = [_over_levels(summary, ranking, chosen, most, height)] if len(ranking.levels) > 1 else []
    views += [_level(summary, level, chosen, most, height) for level in ranking.levels]
    return {**views[0], "views": views[1:]}


def _over_levels(summary: Summary, ranking: Ranking, chosen: dict[str, LineStyle], most: int, height: int) -> Figure:
    data: list[Trace] = []
    for label, look in chosen.items():
        marks: list[PlotPoint | None] = []
        for level in ranking.levels:
            own = next((each for each in level.places if each.treatment == label), None)
            x = level.weights_remaining_percent
            marks.append(PlotPoint(x, own.mean_rank, None, None, _ranking_hover(level, own)) if own else None)
        if any(marks):
            data += line_traces(label, look, marks, label == summary.reference)
    label = "All levels"
    xaxis = remaining_weights_axis([level.weights_remaining_percent for level in ranking.levels])
    yaxis = {
        "title": {"text": "Mean rank (1 is best)"},
        "range": [most + 0.4, 0.6],
        **_integer_ticks(most),
        "uirevision": label,
    }
    return {"data": data, "layout": layout(xaxis, yaxis, meta={"height": height}), "label": label}


def _level(summary: Summary, level: RankedLevel, chosen: dict[str, LineStyle], most: int, height: int) -> Figure:
    data: list[Trace] = []
    for row, each in enumerate(level.places):
        data += _dot(each, row, chosen[each.treatment], _ranking_hover(level, each))
    label = f"{format_percent(level.weights_remaining_percent)}%"
    names = [escape_text(each.treatment, 30) for each in level.places]
    names = [
        f"{name} (ref.)" if each.treatment == summary.reference else name
        for name, each in zip(names, level.places, strict=True)
    ]
    xaxis = {"title": {"text": f"Mean rank at {label} (1 is best)"}, "range": [0.6, most + 0.4]}
    yaxis = {
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [len(names) - 0.4, -0.6],
        "fixedrange": True,
        "showgrid": False,
    }
    return {
        "data": data,
        "layout": layout({**xaxis, **_integer_ticks(most)}, yaxis, meta={"height": height}),
        "label": label,
    }


def _dot(each: RankedTreatment, row: int, look: LineStyle, hover: str) -> list[Trace]:
    """A pale bar from the best to the worst rank of a seed, and the mean rank with its interval."""
    common = {"type": "scatter", "legendgroup": each.treatment}
    spread = {
        **common,
        "mode": "lines",
        "x": [each.best_rank, each.worst_rank],
        "y": [row, row],
        "line": {"color": look.colour, "width": 9},
        "opacity": 0.2,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    mean: Trace = {
        **common,
        "mode": "markers",
        "name": each.treatment,
        "x": [each.mean_rank],
        "y": [row],
        "marker": {"symbol": SYMBOLS.get(look.marker, "circle"), "size": 9, "color": look.colour},
        "hovertext": [hover],
        "hoverinfo": "text",
    }
    if each.low95 is not None and each.high95 is not None:
        up, down = each.high95 - each.mean_rank, each.mean_rank - each.low95
        mean["error_x"] = {"type": "data", "symmetric": False, "array": [up], "arrayminus": [down], "thickness": 1.6}
    return [spread, mean]


def _ranking_hover(level: RankedLevel, each: RankedTreatment) -> str:
    seeds = len(level.seeds)
    text = f"<b>{escape_text(each.treatment)}</b><br>level {level.level}, "
    text += f"{format_number(level.weights_remaining_percent)}% of weights remaining"
    ends = (
        ""
        if each.low95 is None or each.high95 is None
        else f" [{format_number(each.low95)}, {format_number(each.high95)}]"
    )
    text += f"<br>mean rank {format_number(each.mean_rank)}{ends} of {len(level.places)}, n = {seeds}"
    if seeds > 1:
        text += f"<br>rank {each.best_rank:g} to {each.worst_rank:g} in single seeds"
    return text + f"<br>mean accuracy {format_number(each.mean)}%, there rank {each.rank_of_mean:g}"


def _integer_ticks(most: int) -> dict[str, Any]:
    """Ticks at whole ranks, where there is room."""
    step = 1 if most <= 12 else 5
    ranks: Sequence[int] = [1, *range(step, most + 1, step)] if step > 1 else range(1, most + 1)
    return {"tickvals": list(ranks), "ticktext": [str(rank) for rank in ranks]}
