"""Supermasks -> interactive figures, as plain data: heuristic ones, learned ones side by side, and how they learn.

The numbers are those of `supermask figure`: rows of `figures.panels`, `figures.supermasks` and `figures.curves`.
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

WEIGHTS = {"rewind": "w_i", "signed_constant": "signed constants", "constant": "random-sign constants"}
SCHEDULES = {"one_shot": "one-shot", "iterative": "iterative"}


def untrained_plot(points: Sequence[Row], dense: Sequence[float]) -> Figure:
    """Untrained accuracy against weights remaining, a line a criterion; a view for each kind of weights and schedule.

    `points`: rows of `figures.panels.heuristic_points`; `dense`: accuracies of the trained dense network, percent.
    """
    weights = [*WEIGHTS, *sorted({str(point["mask1"]) for point in points} - set(WEIGHTS))]
    chosen = assign_styles(list(dict.fromkeys(str(point["criterion"]) for point in points)))
    remaining = [_float(point, "weights_remaining_percent") for point in points]
    views: list[Figure] = []
    for mask1 in weights:
        for schedule, word in SCHEDULES.items():
            panel = [p for p in points if (p["mask1"], p["schedule"]) == (mask1, schedule)]
            if not panel:
                continue
            data: list[Trace] = []
            for criterion, look in chosen.items():
                own = sorted((p for p in panel if p["criterion"] == criterion), key=lambda p: int(p["level"] or 0))
                if own:
                    data += line_traces(criterion, look, [_heuristic_mark(point) for point in own])
            if dense:
                ends = (max([100.0, *remaining]), min(remaining))
                told = f"trained dense network: {format_number(fmean(dense))}%"
                data.append(horizontal_line("trained dense network", fmean(dense), ends, "dot", told))
            yaxis = {"title": {"text": "Test accuracy (%)"}, "range": [0, 101]}
            label = f"{WEIGHTS.get(mask1, mask1)}, {word}"
            views.append({"data": data, "layout": layout(remaining_weights_axis(remaining), yaxis), "label": label})
    return {**views[0], "views": views[1:]}


def _heuristic_mark(point: Row) -> PlotPoint:
    ends = _interval(point)
    where = f"level {point['level']}, {format_number(_float(point, 'weights_remaining_percent'))}% of weights remaining"
    hover = f"<b>{escape_text(str(point['criterion']))}</b><br>{where}<br>{format_mean(ends, 2, '%')}"
    return PlotPoint(_float(point, "weights_remaining_percent"), ends.mean, ends.low, ends.high, hover)


def learned_masks_plot(bars: Sequence[MaskResult], reference: str, dense: Sequence[float], chance: float) -> Figure:
    """Every supermask as the networks that it stands for: mean, its interval, and each seed; a row a treatment.

    Logarithmic in the error first: what is told apart lies near the trained network. `chance`, `dense`: percent.
    """
    labels = list(dict.fromkeys(bar.treatment for bar in bars))
    views = []
    for label, in_errors in (("Log axis of the error", True), ("Linear axis", False)):
        data: list[Trace] = []
        for kind in KINDS:
            own = [bar for bar in bars if bar.kind == kind]
            if own:
                data += _result_traces(kind, own, bars, labels, reference, in_errors)
        across = (-0.6, len(labels) - 0.4)
        for name, value, dash in (
            *([("trained dense network", fmean(dense), "dot")] if dense else []),
            ("chance", chance, "dash"),
        ):
            at = error(value) if in_errors else value
            told = f"{name}: {format_number(value)}%"
            upright = horizontal_line(name, 0.0, across, dash, told)
            data.append({**upright, "x": [at, at], "y": list(across)})
        names = [escape_text(each, 34) for each in labels]
        xaxis: dict[str, Any] = {"title": {"text": "Test accuracy (%)"}}
        if in_errors:
            seen = [value for bar in bars for value in (*bar.values.values(), bar.interval.low)]
            xaxis = error_axis("Test accuracy", [*seen, *dense, chance])
        yaxis = {
            "tickvals": list(range(len(labels))),
            "ticktext": names,
            "range": [len(labels) - 0.4, -0.6],
            "fixedrange": True,
        }
        meta = {"height": 120 + 34 * len(labels), "least_width": 420}
        views.append({"data": data, "layout": layout(xaxis, yaxis, meta=meta), "label": label})
    return {**views[0], "views": views[1:]}


def _result_traces(
    kind: str,
    own: Sequence[MaskResult],
    bars: Sequence[MaskResult],
    labels: Sequence[str],
    reference: str,
    in_errors: bool,
) -> list[Trace]:
    """One kind of network: a tick a seed, and the mean with its interval."""
    look, rows = KINDS[kind], [_row_of(bar, bars, labels) for bar in own]

    def shown(values: Sequence[float]) -> list[float | None]:
        return [error(value) if in_errors else value for value in values]

    means = [bar.interval.mean for bar in own]
    to_high = [0.0 if bar.interval.high is None else bar.interval.high - bar.interval.mean for bar in own]
    to_low = [0.0 if bar.interval.low is None else bar.interval.mean - bar.interval.low for bar in own]
    seeds = [(value, row) for bar, row in zip(own, rows, strict=True) for value in bar.values.values()]
    common = {"type": "scatter", "mode": "markers", "legendgroup": look.words}
    # On a reversed axis of errors the upper end of an accuracy is the lower one of its error.
    up, down = (to_low, to_high) if in_errors else (to_high, to_low)
    return [
        {
            **common,
            "x": shown([value for value, _ in seeds]),
            "y": [row for _, row in seeds],
            "marker": {"symbol": "line-ns-open", "size": 7, "color": look.colour, "opacity": 0.55},
            "hoverinfo": "skip",
            "showlegend": False,
        },
        {
            **common,
            "name": look.words,
            "x": shown(means),
            "y": rows,
            "error_x": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.4},
            "marker": {"symbol": SYMBOLS[look.marker], "size": 9, "color": look.colour, "line": {"width": 0}},
            "hovertext": [_bar_hover(bar, reference) for bar in own],
            "hoverinfo": "text",
        },
    ]


def _row_of(bar: MaskResult, bars: Sequence[MaskResult], labels: Sequence[str]) -> float:
    """Where on the y axis: networks of one treatment lie a little apart."""
    kinds = [each.kind for each in bars if each.treatment == bar.treatment]
    return labels.index(bar.treatment) + (0.0 if len(kinds) == 1 else 0.2 * (kinds.index(bar.kind) - 1))


def _bar_hover(bar: MaskResult, reference: str) -> str:
    density = f"{format_number(bar.density, 1)}% of the weights"
    text = f"<b>{escape_text(bar.treatment)}</b><br>{KINDS[bar.kind].words}, {density}"
    text += "<br>" + format_mean(bar.interval, 2, "%")
    if bar.comparison:
        text += "<br>" + format_comparison(bar.comparison, bar.p_holm, reference, 2, " points")
    return text


def learning_plot(points: Sequence[Row]) -> Figure:
    """Validation accuracy while masks are learned; `points`: rows of `figures.curves.curve_rows`."""
    lines = {str(label): list(own) for label, own in groupby(points, key=lambda point: point["treatment"])}
    chosen = assign_styles(list(lines))
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
        for name, own in lines.items():
            marks: list[PlotPoint | None] = [_curve_mark(name, point) for point in own]
            traces = line_traces(name, chosen[name], as_errors(marks) if in_errors else marks)
            every = max(1, len(own) // 8)
            traces[-1]["marker"]["size"] = [6 if place % every == 0 else 0 for place in range(len(own))]
            data += traces
        yaxis: dict[str, Any] = {"title": {"text": "Validation accuracy (%)"}}
        if in_errors:
            yaxis = error_axis("Validation accuracy", [_float(point, "mean") for point in points])
        views.append({"data": data, "layout": layout(iterations, yaxis), "label": label})
    return {**views[0], "views": views[1:]}


def _curve_mark(name: str, point: Row) -> PlotPoint:
    ends = _interval(point)
    hover = f"<b>{escape_text(name)}</b><br>iteration {point['iteration']:,}<br>{format_mean(ends, 2, '%')}"
    return PlotPoint(_float(point, "iteration"), ends.mean, ends.low, ends.high, hover)


def _interval(point: Row) -> MeanInterval:
    low, high = point["mean_low95"], point["mean_high95"]
    ends = (None, None) if low is None or high is None else (float(low), float(high))
    return MeanInterval(int(point["n"] or 0), _float(point, "mean"), *ends)


def _float(point: Row, column: str) -> float:
    value = point[column]
    assert isinstance(value, int | float), f"{column} is {value!r}"
    return float(value)
