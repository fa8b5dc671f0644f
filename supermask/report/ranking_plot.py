"""The ranking of treatments -> an interactive figure, as plain data: all levels, and each level by itself.

The numbers are those of `supermask figure`: both show `figures.ranking.ranking_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from supermask.figures.points import Summary
from supermask.figures.ranking import Ranked, RankedLevel, Ranking
from supermask.figures.style import Look, looks, percent
from supermask.report.traces import SYMBOLS, Figure, Mark, Trace, layout, line, literal, number, remaining_axis

LAYOUT = "first view: lines join a treatment's mean ranks; then a level each, best first"
"""What the caption says of how the ranks are laid out."""


def ranking_plot(summary: Summary, ranking: Ranking) -> Figure:
    """Mean ranks, 1 first: a line a treatment over the levels; then dots with intervals, level by level.

    One level alone has no lines.
    """
    chosen = looks(list(summary.lines))
    most = max(len(level.places) for level in ranking.levels)
    height = max(420, 120 + 30 * most)
    views = [_over_levels(summary, ranking, chosen, most, height)] if len(ranking.levels) > 1 else []
    views += [_level(summary, level, chosen, most, height) for level in ranking.levels]
    return {**views[0], "views": views[1:]}


def _over_levels(summary: Summary, ranking: Ranking, chosen: dict[str, Look], most: int, height: int) -> Figure:
    data: list[Trace] = []
    for label, look in chosen.items():
        marks: list[Mark | None] = []
        for level in ranking.levels:
            own = next((each for each in level.places if each.treatment == label), None)
            x = level.weights_remaining_percent
            marks.append(Mark(x, own.mean_rank, None, None, _hover(level, own)) if own else None)
        if any(marks):
            data += line(label, look, marks, label == summary.reference)
    label = "All levels"
    xaxis = remaining_axis([level.weights_remaining_percent for level in ranking.levels])
    yaxis = {
        "title": {"text": "Mean rank (1 is best)"},
        "range": [most + 0.4, 0.6],
        **_whole(most),
        "uirevision": label,
    }
    return {"data": data, "layout": layout(xaxis, yaxis, meta={"height": height}), "label": label}


def _level(summary: Summary, level: RankedLevel, chosen: dict[str, Look], most: int, height: int) -> Figure:
    data: list[Trace] = []
    for row, each in enumerate(level.places):
        data += _dot(each, row, chosen[each.treatment], _hover(level, each))
    label = f"{percent(level.weights_remaining_percent)}%"
    names = [literal(each.treatment, 30) for each in level.places]
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
    return {"data": data, "layout": layout({**xaxis, **_whole(most)}, yaxis, meta={"height": height}), "label": label}


def _dot(each: Ranked, row: int, look: Look, hover: str) -> list[Trace]:
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


def _hover(level: RankedLevel, each: Ranked) -> str:
    seeds = len(level.seeds)
    text = f"<b>{literal(each.treatment)}</b><br>level {level.level}, "
    text += f"{number(level.weights_remaining_percent)}% of weights remaining"
    ends = "" if each.low95 is None or each.high95 is None else f" [{number(each.low95)}, {number(each.high95)}]"
    text += f"<br>mean rank {number(each.mean_rank)}{ends} of {len(level.places)}, n = {seeds}"
    if seeds > 1:
        text += f"<br>rank {each.best_rank:g} to {each.worst_rank:g} in single seeds"
    return text + f"<br>mean accuracy {number(each.mean)}%, there rank {each.rank_of_mean:g}"


def _whole(most: int) -> dict[str, Any]:
    """Ticks at whole ranks, where there is room."""
    step = 1 if most <= 12 else 5
    ranks: Sequence[int] = [1, *range(step, most + 1, step)] if step > 1 else range(1, most + 1)
    return {"tickvals": list(ranks), "ticktext": [str(rank) for rank in ranks]}
