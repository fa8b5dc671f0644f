"""Plotly figure of the facts of training by level: one view per fact."""

from __future__ import annotations

from collections.abc import Sequence

from supermask.core.text import format_number
from supermask.reporting.figures.style import assign_styles
from supermask.reporting.figures.weight_changes import FACTS, FactPoint
from supermask.reporting.plotly.traces import (
    Figure,
    PlotPoint,
    Trace,
    format_mean,
    hover_name,
    layout,
    line_traces,
    remaining_weights_axis,
)


def weight_changes_plot(points: Sequence[FactPoint]) -> Figure:
    """Return each fact against weights remaining: mean with its 95% interval, one line per treatment.

    `points` are those of `figures.weight_changes.fact_points`, at least one.
    """
    styles = assign_styles(list(dict.fromkeys(point.treatment for point in points)))
    views: list[Figure] = []
    for name, fact in FACTS.items():
        shown = [point for point in points if point.fact == name]
        if not shown:
            continue
        data: list[Trace] = []
        for label, style in styles.items():
            if line := [_plot_point(point) for point in shown if point.treatment == label]:
                data += line_traces(label, style, line)
        yaxis = {"title": {"text": fact.title}, "rangemode": "tozero"}
        remaining = [point.remaining for point in shown]
        views.append({"data": data, "layout": layout(remaining_weights_axis(remaining), yaxis), "label": _LABELS[name]})
    return {**views[0], "views": views[1:]}


_LABELS = {
    "ties_drawn": "Ties drawn",
    "sign_changed": "Signs changed",
    "shrunk": "Shrunk",
    "early_stop_iteration": "Iterations",
}


def _plot_point(point: FactPoint) -> PlotPoint:
    digits, unit = (0, "") if point.fact == "early_stop_iteration" else (2, "%")
    place = f"level {point.level}, {format_number(point.remaining)}% of weights remaining"
    hover = f"{hover_name(point.treatment)}<br>{place}<br>{format_mean(point.interval, digits, unit)}"
    return PlotPoint(point.remaining, point.interval.mean, point.interval.low, point.interval.high, hover)
