"""Plotly figure of a comparison with results of others: ours minus theirs by weights remaining."""

from __future__ import annotations

from supermask.analysis.comparisons import CellComparison, ResultComparison
from supermask.core.text import format_number, format_p
from supermask.reporting.figures.style import assign_styles
from supermask.reporting.plotly.traces import (
    Figure,
    PlotPoint,
    Trace,
    escape_text,
    horizontal_line,
    hover_name,
    layout,
    line_traces,
    remaining_weights_axis,
)


def comparison_plot(comparison: ResultComparison) -> Figure:
    """Return the difference of each treatment with its 95% interval; stars where p < 0.01 for the cell alone."""
    unit = "points" if comparison.metric.unit == "percent" else comparison.metric.unit
    styles = assign_styles(list(dict.fromkeys(cell.treatment for cell in comparison.cells)))
    data: list[Trace] = []
    for label, style in styles.items():
        cells = [cell for cell in comparison.cells if cell.treatment == label]
        data += line_traces(label, style, [_point(cell, unit) for cell in cells])
    remaining = [cell.remaining for cell in comparison.cells]
    ends = (max(remaining), min(remaining))
    data.append(horizontal_line("no difference", 0.0, ends, "solid", "no difference"))
    for sign in (1, -1) if comparison.margin is not None else ():
        value = sign * (comparison.margin or 0.0)
        data.append(horizontal_line("margin", value, ends, "dot", f"margin: {format_number(value, 2, True)} {unit}"))
    yaxis = {"title": {"text": escape_text(f"Here minus {comparison.source} ({unit})")}}
    return {
        "data": data,
        "layout": layout(remaining_weights_axis(remaining), yaxis),
        "label": "difference",
        "views": [],
    }


def _point(cell: CellComparison, unit: str) -> PlotPoint:
    low, high = cell.comparison.interval95 or (None, None)
    difference = format_number(cell.comparison.difference, 2, True)
    tested = "not tested" if cell.comparison.p is None else format_p(cell.comparison.p)
    hover = (
        f"{hover_name(cell.treatment)}<br>level {cell.level}, {format_number(cell.remaining)}% of weights remaining<br>"
        f"here {format_number(cell.mean)} (n = {cell.n}), there {format_number(cell.other_mean)} (n = {cell.other_n})"
        f"<br>{difference} {unit}, Welch's test: {tested}"
    )
    return PlotPoint(cell.remaining, cell.comparison.difference, low, high, hover, starred=cell.differs)
