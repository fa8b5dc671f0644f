"""Parts of Plotly figures as plain dicts: lines with their bands, axes, and text that Plotly shows literally.

Names are shown by the page's own legend; Plotly is given them in hover texts alone, escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from supermask.analysis.stats import Comparison, MeanInterval
from supermask.core.text import format_number, format_p, format_percent
from supermask.reporting.figures.style import LineStyle, thin_ticks

Trace = dict[str, Any]
Figure = dict[str, Any]
"""`data`, `layout`; `label`, the name of this view; `views`: other views of the same numbers, as `label`, `data`,
`layout`."""

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

DASHES = ("solid", "dash", "dot", "dashdot")
LONGEST_NAME = 60
LEAST_ERROR = 0.005
"""Percent. An axis that is logarithmic in the error shows smaller ones there: 0 has no logarithm."""


@dataclass(frozen=True)
class PlotPoint:
    """One point of a line: where, how far its interval goes, and what is said of it."""

    x: float
    y: float
    low: float | None
    high: float | None
    hover: str
    starred: bool = False
    no_marker: bool = False
    """Without a marker: where the line begins, and not a measurement of its treatment."""


def line_traces(label: str, look: LineStyle, marks: Sequence[PlotPoint | None], leading: bool = False) -> list[Trace]:
    """A treatment's band, if it has one, and its line; None leaves a gap. Both belong to the legend group `label`."""
    rgb = tuple(int(look.colour[i : i + 2], 16) for i in (1, 3, 5))
    band: Trace = {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": label,
        "fill": "toself",
        "fillcolor": f"rgba({rgb[0]},{rgb[1]},{rgb[2]},0.12)",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        **_outline(marks),
    }
    style, size = DASHES[_dash(look)], 8 if leading else 7
    sizes = [0 if mark is None or mark.no_marker else size for mark in marks]
    traced: Trace = {
        "type": "scatter",
        "mode": "lines+markers+text",
        "name": label,
        "legendgroup": label,
        "x": [mark.x if mark else None for mark in marks],
        "y": [mark.y if mark else None for mark in marks],
        "text": ["★" if mark and mark.starred else "" for mark in marks],
        "textposition": "top center",
        "textfont": {"color": look.colour, "size": 12},
        "hovertext": [mark.hover if mark else "" for mark in marks],
        "hoverinfo": "text",
        "line": {"color": look.colour, "dash": style, "width": 2.6 if leading else 1.7},
        "marker": {
            "color": look.colour,
            "symbol": SYMBOLS.get(look.marker, "circle"),
            "size": sizes,
            "line": {"width": 0},
        },
    }
    return [band, traced] if band["x"] else [traced]


def _dash(look: LineStyle) -> int:
    """Its place in `DASHES`, told by how many lengths matplotlib's pattern has and how long the first is."""
    if isinstance(look.line, str):
        return 0
    lengths = look.line[1]
    return 3 if len(lengths) > 2 else 1 if lengths[0] > 2 else 2


def _outline(marks: Sequence[PlotPoint | None]) -> dict[str, list[float | None]]:
    """Around every stretch of points that have intervals: along the upper ends and back along the lower ones."""
    x: list[float | None] = []
    y: list[float | None] = []
    stretch: list[tuple[float, float, float]] = []
    for mark in [*marks, None]:
        if mark is not None and mark.low is not None and mark.high is not None:
            stretch.append((mark.x, mark.low, mark.high))
            continue
        if len(stretch) > 1:
            x += [*([None] if x else []), *(at for at, _, _ in stretch), *(at for at, _, _ in reversed(stretch))]
            y += [*([None] if y else []), *(up for _, _, up in stretch), *(low for _, low, _ in reversed(stretch))]
        stretch = []
    return {"x": x, "y": y}


def error(accuracy: float | None) -> float | None:
    """Percent; see `LEAST_ERROR`."""
    return None if accuracy is None else max(100.0 - accuracy, LEAST_ERROR)


def as_errors(marks: Sequence[PlotPoint | None]) -> list[PlotPoint | None]:
    """The same points on an axis of the test error."""
    return [
        mark and replace(mark, y=error(mark.y) or 0.0, low=error(mark.high), high=error(mark.low)) for mark in marks
    ]


def horizontal_line(name: str, y: float, ends: tuple[float, float], dash: str, hover: str) -> Trace:
    """A line across, in the page's ink; `meta.ink` tells the page to colour it."""
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
    """What all figures share; fonts and colours are the page's."""
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
    """Logarithmic, the most weights at the left, with ticks at the levels' own densities where there is room."""
    values = sorted(set(remaining), reverse=True) or [100.0]
    span = math.log10(values[0] / values[-1]) or 1.0
    kept = thin_ticks([-math.log10(value) for value in values], 0.085 * span)
    edge = 0.03 * span
    return {
        "type": "log",
        "title": {"text": "Weights remaining (%)"},
        "range": [math.log10(values[0]) + edge, math.log10(values[-1]) - edge],
        "tickvals": [values[i] for i in kept],
        "ticktext": [format_percent(values[i]) for i in kept],
    }


ERROR_TICKS = (100, 50, 20, 10, 5, 3, 2, 1.5, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def error_axis(title: str, accuracies: Sequence[float | None]) -> dict[str, Any]:
    """Of accuracies in percent, logarithmic in the error, the best last; a little wider than they are."""
    errors = [math.log10(found) for each in accuracies if (found := error(each)) is not None] or [0.0, 2.0]
    edge = 0.04 * (max(errors) - min(errors)) or 0.1
    return {
        "type": "log",
        "title": {"text": f"{title} (%), log axis of the error"},
        "range": [max(errors) + edge, min(errors) - edge],
        "tickvals": list(ERROR_TICKS),
        "ticktext": [f"{100 - tick:g}" for tick in ERROR_TICKS],
    }


def escape_text(text: str, longest: int = LONGEST_NAME) -> str:
    """Text as Plotly shows it literally, shortened where it is longer."""
    short = text if len(text) <= longest else text[: longest - 1] + "…"
    # Between two `$` Plotly would look for mathematics, and for a library that is not there.
    return html.escape(short, quote=False).replace("$", "&#36;")


def format_mean(interval: MeanInterval, digits: int, unit: str) -> str:
    """`98.20% [98.01, 98.39], n = 5`."""
    ends = ""
    if interval.low is not None and interval.high is not None:
        ends = f" [{format_number(interval.low, digits)}, {format_number(interval.high, digits)}]"
    return f"{format_number(interval.mean, digits)}{unit}{ends}, n = {interval.n}"


def format_comparison(comparison: Comparison, p_holm: float | None, reference: str, digits: int, unit: str) -> str:
    """`against large_final: +0.20 points [-0.01, +0.41], p = 0.062, after Holm 0.25`."""
    text = f"against {escape_text(reference, 40)}: {format_number(comparison.difference, digits, True)}{unit}"
    if comparison.interval95:
        low, high = (format_number(end, digits, True) for end in comparison.interval95)
        text += f" [{low}, {high}]"
    if comparison.p is None:
        return text + (f"<br>not tested: {escape_text(comparison.note)}" if comparison.note else "")
    corrected = f"; after Holm {format_p(p_holm)}" if p_holm is not None else ""
    return f"{text}<br>{comparison.test}: {format_p(comparison.p)}{corrected}"
