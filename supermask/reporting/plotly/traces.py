"""Building blocks of Plotly figures as plain dicts: lines with bands, axes, and escaped text.

The legend is part of the page, not of Plotly, so Plotly gets treatment names only as escaped hover text and ticks.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from supermask.analysis.stats import Comparison, MeanInterval
from supermask.core.text import format_number, format_p, format_percent
from supermask.reporting.figures.caption import find_single_intervals
from supermask.reporting.figures.labels import escape_invisible, short_labels, shorten_middle
from supermask.reporting.figures.style import LineStyle, thin_ticks

Trace = dict[str, Any]
Figure = dict[str, Any]
"""A Plotly figure: `data`, `layout`, `label` (name of this view) and `views` (other views with the same keys)."""

SYMBOLS = {
    "o": "circle",
    "^": "triangle-up",
    "s": "square",
    "D": "diamond",
    "v": "triangle-down",
    "X": "x",
    "P": "cross",
    "p": "pentagon",
    "<": "triangle-left",
    ">": "triangle-right",
}
"""matplotlib's marker -> Plotly's."""

MAX_NAME_LENGTH = 60
MIN_ERROR = 0.005
"""Percent. Smaller errors are drawn here on a logarithmic axis, because 0 has no logarithm."""


@dataclass(frozen=True)
class PlotPoint:
    """One point of a line with its interval and hover text."""

    x: float
    y: float
    low: float | None
    high: float | None
    hover: str
    starred: bool = False
    no_marker: bool = False
    """Draw no marker: the point is the start of the line and no measurement of its treatment."""


def line_traces(
    label: str, style: LineStyle, points: Sequence[PlotPoint | None], is_reference: bool = False
) -> list[Trace]:
    """Return the band of a treatment, if it has intervals, and its line, both in legend group `label`.

    None in `points` leaves a gap in the line. An interval without another one beside it is an error bar.
    """
    rgb = tuple(int(style.color[i : i + 2], 16) for i in (1, 3, 5))
    band: Trace = {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": label,
        "fill": "toself",
        "fillcolor": f"rgba({rgb[0]},{rgb[1]},{rgb[2]},0.12)",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        **_band_outline(points),
    }
    size = 8 if is_reference else 7
    sizes = [0 if point is None or point.no_marker else size for point in points]
    line: Trace = {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": label,
        "legendgroup": label,
        "x": [point.x if point else None for point in points],
        "y": [point.y if point else None for point in points],
        "text": ["★" if point and point.starred else "" for point in points],
        "textposition": "top center",
        "textfont": {"color": style.color, "size": 12},
        "hovertext": [point.hover if point else "" for point in points],
        "hoverinfo": "text",
        "line": {"color": style.color, "dash": _dash(style), "width": 2.6 if is_reference else 1.7},
        "marker": {
            "color": style.color,
            "symbol": SYMBOLS.get(style.marker, "circle"),
            "size": sizes,
            "line": {"width": 0},
        },
    }
    if bars := _single_intervals(points):
        line["error_y"] = {"type": "data", "symmetric": False, "thickness": 1.4, "width": 0, **bars}
    return [band, line] if band["x"] else [line]


def _dash(style: LineStyle) -> str:
    """Return Plotly's name of a matplotlib dash pattern, by the number of its lengths and the first of them."""
    if isinstance(style.line, str):
        return "solid"
    lengths = style.line[1]
    if len(lengths) > 2:
        return "dashdot"
    return "dash" if lengths[0] > 2 else "dot"


def _band_outline(points: Sequence[PlotPoint | None]) -> dict[str, list[float | None]]:
    """Return the outline of each run of points with intervals: along the upper ends and back along the lower ends.

    Runs are separated by None; a single point has no band but an error bar.
    """
    x: list[float | None] = []
    y: list[float | None] = []
    run: list[tuple[float, float, float]] = []
    for point in [*points, None]:
        if point is not None and point.low is not None and point.high is not None:
            run.append((point.x, point.low, point.high))
            continue
        if len(run) > 1:
            separator: list[float | None] = [None] if x else []
            x += [*separator, *(position for position, _, _ in run), *(position for position, _, _ in reversed(run))]
            y += [*separator, *(high for _, _, high in run), *(low for _, low, _ in reversed(run))]
        run = []
    return {"x": x, "y": y}


def _single_intervals(points: Sequence[PlotPoint | None]) -> dict[str, list[float | None]]:
    """Return the lengths of error bars up and down, None for points in a band; empty if there is no bar."""
    has_interval = [point is not None and point.low is not None and point.high is not None for point in points]
    if not (single := set(find_single_intervals(has_interval))):
        return {}
    up: list[float | None] = [None] * len(points)
    down = list(up)
    for index in single:
        point = points[index]
        assert point is not None and point.low is not None and point.high is not None
        up[index], down[index] = point.high - point.y, point.y - point.low
    return {"array": up, "arrayminus": down}


def error(accuracy: float | None) -> float | None:
    """Return max(100 - accuracy, MIN_ERROR) in percent."""
    return None if accuracy is None else max(100.0 - accuracy, MIN_ERROR)


def as_errors(points: Sequence[PlotPoint | None]) -> list[PlotPoint | None]:
    """Convert points of accuracy to points of error; lower and upper ends of intervals swap."""
    return [
        point and replace(point, y=error(point.y) or 0.0, low=error(point.high), high=error(point.low))
        for point in points
    ]


def horizontal_line(name: str, y: float, ends: tuple[float, float], dash: str, hover: str) -> Trace:
    """Return a horizontal line in the text color of the page, which plots.js sets where `meta.ink` is true."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "x": list(ends),
        "y": [y, y],
        "hovertext": [hover, hover],
        "hoverinfo": "text",
        "line": {"dash": dash, "width": 1.6},
        "meta": {"ink": True},
    }


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the layout that all figures share; plots.js adds fonts and colors of the page."""
    return {
        "xaxis": {"zeroline": False, **xaxis},
        "yaxis": {"zeroline": False, "automargin": True, **yaxis},
        "hovermode": "closest",
        "showlegend": False,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 52},
        "uirevision": "kept",
        **more,
    }


def remaining_weights_axis(remaining: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis of weights remaining that falls to the right, with ticks at the levels."""
    values = sorted(set(remaining), reverse=True) or [100.0]
    span = math.log10(values[0] / values[-1]) or 1.0
    kept = thin_ticks([-math.log10(value) for value in values], 0.085 * span)
    margin = 0.03 * span
    return {
        "type": "log",
        "title": {"text": "Weights remaining (%)"},
        "range": [math.log10(values[0]) + margin, math.log10(values[-1]) - margin],
        "tickvals": [values[i] for i in kept],
        "ticktext": [format_percent(values[i]) for i in kept],
    }


ERROR_TICKS = (100, 50, 20, 10, 5, 3, 2, 1.5, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def error_axis(title: str, accuracies: Sequence[float | None]) -> dict[str, Any]:
    """Return an axis of accuracies in percent that is logarithmic in the error, with a margin of 4%."""
    errors = [math.log10(value) for accuracy in accuracies if (value := error(accuracy)) is not None] or [0.0, 2.0]
    margin = 0.04 * (max(errors) - min(errors)) or 0.1
    return {
        "type": "log",
        "title": {"text": f"{title} (%), log axis of the error"},
        "range": [max(errors) + margin, min(errors) - margin],
        "tickvals": list(ERROR_TICKS),
        "ticktext": [f"{100 - tick:g}" for tick in ERROR_TICKS],
    }


def escape_text(text: str, max_length: int = MAX_NAME_LENGTH) -> str:
    """Escape text for Plotly, which reads HTML tags and math, and shorten it in the middle to `max_length` letters."""
    return _escape_html(shorten_middle(escape_invisible(text), lambda part: len(part) <= max_length))


def escape_labels(labels: Sequence[str], max_length: int) -> list[str]:
    """Escape and shorten labels of an axis; labels that would look alike are numbered."""
    return [_escape_html(label) for label in short_labels(labels, max_length)]


def hover_name(label: str) -> str:
    """Return a whole label in bold for a hover text, with a line break after every `MAX_NAME_LENGTH` letters."""
    text = escape_invisible(label)
    lines = [text[start : start + MAX_NAME_LENGTH] for start in range(0, len(text), MAX_NAME_LENGTH)]
    return f"<b>{'<br>'.join(map(_escape_html, lines))}</b>"


def _escape_html(text: str) -> str:
    # Plotly would pass text between two `$` to MathJax, which the page does not load.
    return html.escape(text, quote=False).replace("$", "&#36;")


def format_mean(interval: MeanInterval, digits: int, unit: str) -> str:
    """Format a mean with its interval: `98.20% [98.01, 98.39], n = 5`."""
    ends = ""
    if interval.low is not None and interval.high is not None:
        ends = f" [{format_number(interval.low, digits)}, {format_number(interval.high, digits)}]"
    return f"{format_number(interval.mean, digits)}{unit}{ends}, n = {interval.n}"


def format_comparison(comparison: Comparison, p_holm: float | None, reference: str, digits: int, unit: str) -> str:
    """Format a comparison: `against large_final: +0.20 points [-0.01, +0.41]`, then test, p and corrected p."""
    text = f"against {escape_text(reference, 40)}: {format_number(comparison.difference, digits, True)}{unit}"
    if comparison.interval95:
        low, high = (format_number(end, digits, True) for end in comparison.interval95)
        text += f" [{low}, {high}]"
    if comparison.p is None:
        return text + (f"<br>not tested: {escape_text(comparison.note)}" if comparison.note else "")
    corrected = f"; after Holm {format_p(p_holm)}" if p_holm is not None else ""
    return f"{text}<br>{comparison.test}: {format_p(comparison.p)}{corrected}"
