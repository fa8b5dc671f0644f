"""Plotly figures of supermasks as plain data: heuristic masks, learned masks and their learning curves.

The numbers are those of `supermask figure`: data rows of `figures.untrained`, `figures.learned` and
`figures.learning_curves`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from supermask.analysis.stats import MeanInterval
from supermask.core.text import Row, format_number
from supermask.reporting.figures.learned import KINDS, MaskResult
from supermask.reporting.figures.style import assign_styles
from supermask.reporting.figures.untrained import SCHEDULES, WEIGHTS
from supermask.reporting.plotly.traces import (
    SYMBOLS,
    Figure,
    PlotPoint,
    Trace,
    as_errors,
    error,
    error_axis,
    escape_labels,
    format_comparison,
    format_mean,
    horizontal_line,
    hover_name,
    layout,
    line_traces,
    remaining_weights_axis,
)


def untrained_plot(points: Sequence[Row], dense: Sequence[float]) -> Figure:
    """Return accuracy without training against weights remaining: one view per kind of weights and schedule.

    `points`: data rows of `heuristic_points`; `dense`: test accuracies of the trained dense network in percent.
    """
    weights = [*WEIGHTS, *sorted({str(point["mask1"]) for point in points} - set(WEIGHTS))]
    styles = assign_styles(list(dict.fromkeys(str(point["criterion"]) for point in points)))
    remaining = [_float(point, "weights_remaining_percent") for point in points]
    views: list[Figure] = []
    for mask1 in weights:
        for schedule, schedule_name in SCHEDULES.items():
            panel = [p for p in points if (p["mask1"], p["schedule"]) == (mask1, schedule)]
            if not panel:
                continue
            data: list[Trace] = []
            for criterion, style in styles.items():
                line = sorted((p for p in panel if p["criterion"] == criterion), key=lambda p: int(p["level"] or 0))
                if line:
                    data += line_traces(criterion, style, [_heuristic_point(point) for point in line])
            if dense:
                ends = (max([100.0, *remaining]), min(remaining))
                hover = f"trained dense network: {format_number(fmean(dense))}%"
                data.append(horizontal_line("trained dense network", fmean(dense), ends, "dot", hover))
            yaxis = {"title": {"text": "Test accuracy (%)"}, "range": [0, 101]}
            label = f"{WEIGHTS.get(mask1, mask1)}, {schedule_name}"
            views.append({"data": data, "layout": layout(remaining_weights_axis(remaining), yaxis), "label": label})
    return {**views[0], "views": views[1:]}


def _heuristic_point(point: Row) -> PlotPoint:
    interval = _interval(point)
    remaining = _float(point, "weights_remaining_percent")
    level = f"level {point['level']}, {format_number(remaining)}% of weights remaining"
    hover = f"{hover_name(str(point['criterion']))}<br>{level}<br>{format_mean(interval, 2, '%')}"
    return PlotPoint(remaining, interval.mean, interval.low, interval.high, hover)


def learned_masks_plot(results: Sequence[MaskResult], reference: str, dense: Sequence[float], chance: float) -> Figure:
    """Return the networks of every supermask: mean, its interval, and each seed; one row per treatment.

    The first view is logarithmic in the error, because accuracies are often close to that of the trained network.
    `chance` and `dense` are in percent.
    """
    labels = list(dict.fromkeys(result.treatment for result in results))
    views = []
    for label, in_errors in (("Log axis of the error", True), ("Linear axis", False)):
        data: list[Trace] = []
        for kind in KINDS:
            if any(result.kind == kind for result in results):
                data += _kind_traces(kind, results, labels, reference, in_errors)
        ends = (-0.6, len(labels) - 0.4)
        for name, value, dash in (
            *([("trained dense network", fmean(dense), "dot")] if dense else []),
            ("chance", chance, "dash"),
        ):
            x = error(value) if in_errors else value
            line = horizontal_line(name, 0.0, ends, dash, f"{name}: {format_number(value)}%")
            data.append({**line, "x": [x, x], "y": list(ends)})
        names = escape_labels(labels, 34)
        xaxis: dict[str, Any] = {"title": {"text": "Test accuracy (%)"}}
        if in_errors:
            values = [value for result in results for value in (*result.values.values(), result.interval.low)]
            xaxis = error_axis("Test accuracy", [*values, *dense, chance])
        yaxis = {
            "tickvals": list(range(len(labels))),
            "ticktext": names,
            "range": [len(labels) - 0.4, -0.6],
            "fixedrange": True,
        }
        meta = {"height": 120 + 34 * len(labels), "least_width": 420}
        views.append({"data": data, "layout": layout(xaxis, yaxis, meta=meta), "label": label})
    return {**views[0], "views": views[1:]}


def _kind_traces(
    kind: str, results: Sequence[MaskResult], labels: Sequence[str], reference: str, in_errors: bool
) -> list[Trace]:
    """Return the traces of one kind of network: one tick per seed, and the mean with its interval."""
    style, selected = KINDS[kind], [result for result in results if result.kind == kind]
    rows = [_row_position(result, results, labels) for result in selected]

    def positions(values: Sequence[float]) -> list[float | None]:
        return [error(value) if in_errors else value for value in values]

    intervals = [result.interval for result in selected]
    means = [interval.mean for interval in intervals]
    to_high = [0.0 if interval.high is None else interval.high - interval.mean for interval in intervals]
    to_low = [0.0 if interval.low is None else interval.mean - interval.low for interval in intervals]
    seeds = [(value, row) for result, row in zip(selected, rows, strict=True) for value in result.values.values()]
    common = {"type": "scatter", "mode": "markers", "legendgroup": style.description}
    # The upper end of an accuracy is the lower end of its error.
    up, down = (to_low, to_high) if in_errors else (to_high, to_low)
    return [
        {
            **common,
            "x": positions([value for value, _ in seeds]),
            "y": [row for _, row in seeds],
            "marker": {"symbol": "line-ns-open", "size": 7, "color": style.color, "opacity": 0.55},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            **common,
            "name": style.description,
            "x": positions(means),
            "y": rows,
            "error_x": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.4},
            "marker": {"symbol": SYMBOLS[style.marker], "size": 9, "color": style.color, "line": {"width": 0}},
            "hovertext": [_result_hover(result, reference) for result in selected],
            "hoverinfo": "text",
        },
    ]


def _row_position(result: MaskResult, results: Sequence[MaskResult], labels: Sequence[str]) -> float:
    """Return the position on the y axis; the networks of one treatment are spread around its row."""
    kinds = [other.kind for other in results if other.treatment == result.treatment]
    return labels.index(result.treatment) + (0.0 if len(kinds) == 1 else 0.2 * (kinds.index(result.kind) - 1))


def _result_hover(result: MaskResult, reference: str) -> str:
    density = f"{format_number(result.density, 1)}% of the weights"
    text = f"{hover_name(result.treatment)}<br>{KINDS[result.kind].description}, {density}"
    text += "<br>" + format_mean(result.interval, 2, "%")
    if result.comparison:
        text += "<br>" + format_comparison(result.comparison, result.p_holm, reference, 2, " points")
    return text


def learning_plot(points: Sequence[Row]) -> Figure:
    """Return validation accuracy while masks are learned; `points`: data rows of `average_curves`."""
    lines = {str(label): list(line) for label, line in groupby(points, key=lambda point: point["treatment"])}
    styles = assign_styles(list(lines))
    views = []
    ticks = [times * 10**power for power in range(9) for times in (1, 2, 5)]
    iterations = {
        "type": "log",
        "title": {"text": "Iteration, logarithmic"},
        "tickvals": ticks,
        "ticktext": [f"{n:,}" for n in ticks],
    }
    for label, in_errors in (("Log axis of the error", True), ("Linear axis", False)):
        data: list[Trace] = []
        for name, line in lines.items():
            plot_points: list[PlotPoint | None] = [_curve_point(name, point) for point in line]
            traces = line_traces(name, styles[name], as_errors(plot_points) if in_errors else plot_points)
            # Curves have hundreds of points: about eight of them get a marker.
            marker_step = max(1, len(line) // 8)
            traces[-1]["marker"]["size"] = [6 if index % marker_step == 0 else 0 for index in range(len(line))]
            data += traces
        yaxis: dict[str, Any] = {"title": {"text": "Validation accuracy (%)"}}
        if in_errors:
            yaxis = error_axis("Validation accuracy", [_float(point, "mean") for point in points])
        views.append({"data": data, "layout": layout(iterations, yaxis, meta={"few_at_first": True}), "label": label})
    return {**views[0], "views": views[1:]}


def _curve_point(name: str, point: Row) -> PlotPoint:
    interval = _interval(point)
    hover = f"{hover_name(name)}<br>iteration {point['iteration']:,}<br>{format_mean(interval, 2, '%')}"
    return PlotPoint(_float(point, "iteration"), interval.mean, interval.low, interval.high, hover)


def _interval(point: Row) -> MeanInterval:
    low, high = point["mean_low95"], point["mean_high95"]
    ends = (None, None) if low is None or high is None else (float(low), float(high))
    return MeanInterval(int(point["n"] or 0), _float(point, "mean"), *ends)


def _float(point: Row, column: str) -> float:
    value = point[column]
    assert isinstance(value, int | float), f"{column} is {value!r}"
    return float(value)
