"""Summaries -> interactive figures of trained networks, as plain data: lines over the weights that remain, and the map.

The numbers are those of `supermask figure`: both draw `figures.points.Summary`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from supermask.figures.points import Point, Summary
from supermask.figures.style import BLUE, VERMILION, looks
from supermask.report.traces import (
    Figure,
    Mark,
    Trace,
    as_errors,
    comparison_text,
    error,
    error_axis,
    layout,
    level_line,
    line,
    literal,
    mean_text,
    number,
    remaining_axis,
)

MOST_IN_MAP = 40
"""Treatments: a map of more rows is not read."""


def lines_figure(summary: Summary) -> Figure:
    """A measure against weights remaining, a line a treatment: as it is, and as differences to the reference.

    Accuracies are shown on an axis logarithmic in the error too; first where errors span more than a factor of four.
    """
    accuracy = summary.measure.unit == "percent"
    views = [_view(summary, "Accuracy" if accuracy else "Iteration")]
    if accuracy:
        views.append(_error_view(summary))
        errors = [error(point.interval.mean) or 0.0 for point in _points(summary)]
        if max(errors) > 4 * min(errors):
            views.reverse()
    if any(point.comparison for point in summary.points):
        views.append(_difference_view(summary))
    return {**views[0], "views": views[1:]}


def map_figure(summary: Summary, treatments: Sequence[str]) -> tuple[Figure, float]:
    """(treatments by levels, in points against the reference; the points at which the colours end)."""
    levels = sorted({point.level for point in summary.points})
    at = {(point.treatment, point.level): point for point in summary.points}
    found = [abs(point.comparison.difference) for point in summary.points if point.comparison]
    limit = _round_limit(sorted(found)[int(0.75 * (len(found) - 1))] if found else 1.0)
    cells = [[at.get((label, level)) for level in levels] for label in treatments]
    remaining = [next(p.remaining for p in summary.points if p.level == level) for level in levels]
    heat: Trace = {
        "type": "heatmap",
        "z": [[_height(summary, point) for point in row] for row in cells],
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
    names = [literal(label, 26) for label in treatments]
    figure = {
        "data": [heat],
        "layout": layout(
            {
                "title": {"text": "Weights remaining (%)"},
                "tickvals": list(range(len(levels))),
                "ticktext": [number(value, 2 if value < 10 else 1) for value in remaining],
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


def _height(summary: Summary, point: Point | None) -> float | None:
    """What the colour says: the reference differs from itself by nothing."""
    if point is None:
        return None
    if point.treatment == summary.reference:
        return 0.0
    return point.comparison.difference if point.comparison else None


def _cell(summary: Summary, point: Point | None) -> str:
    if point is None:
        return ""
    if point.treatment == summary.reference:
        return "ref."
    if point.comparison is None:
        return "–"
    difference = point.comparison.difference
    digits = 2 if abs(difference) < 10 else 1
    return number(difference, digits, True) + ("★" if point.significant else "")


def _points(summary: Summary) -> list[Point]:
    return summary.points + ([summary.dense] if summary.dense else [])


def _digits(summary: Summary) -> int:
    return 2 if summary.measure.unit == "percent" else 0


def _hover(summary: Summary, point: Point) -> str:
    percent = summary.measure.unit == "percent"
    digits = _digits(summary)
    text = f"<b>{literal(point.treatment)}</b><br>level {point.level}, {number(point.remaining)}% of weights remaining"
    text += "<br>" + mean_text(point.interval, digits, "%" if percent else " iterations")
    if point.comparison:
        unit = " points" if percent else " iterations"
        text += "<br>" + comparison_text(point.comparison, point.p_holm, summary.reference, digits, unit)
    return text


def _marks(summary: Summary, points: Sequence[Point]) -> list[Mark | None]:
    """By level, after the dense network; None where a level between two others is missing."""
    at = {point.level: point for point in points}
    levels = sorted({point.level for point in summary.points})
    found: list[Mark | None] = []
    for level in levels:
        point = at.get(level)
        if point is None:
            found.append(None)
            continue
        ends = point.interval
        hover = _hover(summary, point)
        found.append(Mark(point.remaining, ends.mean, ends.low, ends.high, hover, point.significant))
    if summary.dense:
        # Every line begins at the dense network; its interval is drawn once, not once a line.
        start = summary.dense
        return [Mark(start.remaining, start.interval.mean, None, None, _hover(summary, start), bare=True), *found]
    return found


def _view(summary: Summary, label: str) -> Figure:
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
    chosen = looks(list(summary.lines))
    data: list[Trace] = []
    levels = sorted({point.level for point in summary.points})
    for name, points in summary.lines.items():
        if name == summary.reference:
            continue
        at = {point.level: point for point in points if point.comparison}
        data += line(name, chosen[name], [_difference(summary, at.get(level)) for level in levels])
    ends = _x_ends(summary)
    data.append(level_line(f"{summary.reference} (reference)", 0.0, ends, "solid", literal(summary.reference)))
    unit = "percentage points" if percent else "iterations"
    title = f"Difference to {literal(summary.reference, 32)} ({unit})"
    return {
        "data": data,
        "layout": layout(_x_axis(summary), {"title": {"text": title}, "uirevision": label}),
        "label": label,
    }


def _difference(summary: Summary, point: Point | None) -> Mark | None:
    if point is None or point.comparison is None:
        return None
    low, high = point.comparison.interval95 or (None, None)
    hover = _hover(summary, point)
    return Mark(point.remaining, point.comparison.difference, low, high, hover, point.significant)


def _traces(summary: Summary, shown: Callable[[Sequence[Mark | None]], list[Mark | None]]) -> list[Trace]:
    chosen = looks(list(summary.lines))
    data: list[Trace] = []
    for label, points in summary.lines.items():
        if points:
            data += line(label, chosen[label], shown(_marks(summary, points)), label == summary.reference)
    dense = summary.dense
    if dense:
        ends = dense.interval
        mark = Mark(dense.remaining, ends.mean, ends.low, ends.high, _hover(summary, dense))
        mark = shown([mark])[0] or mark
        data.append(level_line("dense network", mark.y, _x_ends(summary), "dot", mark.hover))
        if mark.low is not None and mark.high is not None:
            data.append(_bar(mark))
    return data


def _bar(mark: Mark) -> Trace:
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
    return remaining_axis([100.0, *(point.remaining for point in summary.points)])
