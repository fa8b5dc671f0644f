"""The whole of a study in one picture: every treatment at every level, in points against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from supermask.analysis.summary import Summary, TreatmentPoint, summarize
from supermask.core.text import Row, format_percent, format_range
from supermask.reporting.figures.accuracy import ACCURACY
from supermask.reporting.figures.caption import (
    data_notes,
    excluded_note,
    join_sentences,
    significance_note,
)
from supermask.reporting.figures.layout import FRAME, FigurePage, fit_text, num_columns, text_measure
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import DIVERGING_COLORS, INK, WIDTH, colormap, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL_HEIGHT, HEAD, GAP, MOST_NAME, MOST_COLUMNS = 0.205, 0.24, 0.12, 2.1, 13
"""Inches: a cell's height, the heads of columns, between blocks, a row's name; levels side by side in a block."""

FAINTEST, DARKEST = 0.1, 10.0
"""Percentage points: colours are nearly linear below the one, and the darkest at the other and beyond."""


@dataclass(frozen=True)
class OverviewColumn:
    """A column."""

    level: int
    weights_remaining_percent: float
    """Of the reference; of the first treatment that is there, where the reference is not."""


@dataclass(frozen=True)
class OverviewCell:
    """A treatment at a level."""

    n: int
    mean: float
    """In the measure's unit: percent."""
    difference: float | None
    """To the reference, in percentage points; None for the reference, and where it has no such level."""
    p_holm: float | None
    significant: bool


@dataclass(frozen=True)
class Overview:
    """`cells[i][j]` is treatment i at level j; None where no run of it has finished. The reference is the first row."""

    reference: str
    treatments: list[str]
    levels: list[OverviewColumn]
    cells: list[list[OverviewCell | None]]


def compute_overview(summary: Summary) -> Overview:
    """Treatments x levels, from the points of a figure. Source: paper.md section 7: each level by itself."""
    at = {(point.treatment, point.level): point for point in summary.points}
    treatments = [summary.reference, *(label for label in summary.series if label != summary.reference)]
    levels = [
        next(OverviewColumn(level, at[label, level].remaining) for label in treatments if (label, level) in at)
        for level in sorted({level for _, level in at})
    ]
    cells = [[_cell(at.get((label, each.level))) for each in levels] for label in treatments]
    return Overview(summary.reference, treatments, levels, cells)


def _cell(point: TreatmentPoint | None) -> OverviewCell | None:
    if point is None:
        return None
    difference = point.comparison.difference if point.comparison else None
    return OverviewCell(point.interval.n, point.interval.mean, difference, point.p_holm, point.significant)


def overview_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> RenderedFigure:
    """A heat map of treatments x levels: test accuracy minus the reference's, in percentage points.

    Every cell has its number, with a sign, and a star where the difference is significant at that level after Holm's
    correction. Colours grow with the logarithm of the difference and end at `DARKEST` points. Raises UserError as
    `summarise`. Source: paper.md section 7.
    """
    summary = summarize(rows, treatments, reference, ACCURACY)
    overview = compute_overview(summary)
    text = _caption(summary, overview)
    with style_context():
        return RenderedFigure(_draw(overview, title, text), text, _data_rows(overview))


def _draw(overview: Overview, title: str, text: str) -> Any:
    names = [fit_text(label, MOST_NAME) for label in overview.treatments]
    names[0] = fit_text(f"{overview.reference} (%)", MOST_NAME)
    left = 0.16 + max(text_measure()(name, 7.0) for name in names)
    columns = num_columns(max(len(overview.levels), 1), MOST_COLUMNS)
    blocks = [range(first, len(overview.levels))[:columns] for first in range(0, len(overview.levels), columns)]
    block_height = HEAD + CELL_HEIGHT * len(names)
    page = FigurePage(title, text, max(len(blocks), 1) * (block_height + GAP))
    width = (WIDTH - left - 0.08) / columns
    for number, block in enumerate(blocks):
        top = number * (block_height + GAP)
        page.text(left - 0.06, top + HEAD - 0.05, "Weights remaining (%)", 6.4, ha="right", va="bottom")
        for place, name in enumerate(names):
            middle = top + HEAD + (place + 0.5) * CELL_HEIGHT
            weight = "bold" if place == 0 else "normal"
            page.text(left - 0.06, middle, name, 7.0, ha="right", va="center_baseline", fontweight=weight)
        axes = page.axes(left, top + HEAD, width * len(block), CELL_HEIGHT * len(names))
        _draw_block(axes, overview, block, width)
    return page.figure


def _draw_block(axes: Axes, overview: Overview, block: range, width: float) -> None:
    from matplotlib.patches import Rectangle

    colours = colormap(DIVERGING_COLORS)
    axes.set(xlim=(0, len(block)), ylim=(len(overview.treatments), 0), yticks=[])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=2)
    heads = [format_percent(overview.levels[j].weights_remaining_percent) for j in block]
    axes.set_xticks([place + 0.5 for place in range(len(block))], heads)
    for i, row in enumerate(overview.cells):
        for place, cell in enumerate(row[j] for j in block):
            share = color_level(cell.difference) if cell and cell.difference is not None else 0.0
            face = colours(0.5 + 0.5 * share) if i else "#efefef"
            missing = {"hatch": "////", "facecolor": "#ffffff"} if cell is None else {"facecolor": face}
            edge = {"edgecolor": "#dddddd", "linewidth": 0.5}
            axes.add_patch(Rectangle((place, i), 1, 1, **missing, **edge))  # type: ignore[arg-type]
            ink = "#ffffff" if abs(share) > 0.7 and i else INK
            number = cell_text(cell, reference=i == 0)
            size = min(6.4, 6.4 * (width - 0.1) / max(text_measure()(number, 6.4), 1e-9))
            how: dict[str, Any] = {"ha": "center", "va": "center_baseline", "color": ink, "parse_math": False}
            axes.text(place + 0.5, i + 0.5, number, fontsize=size, **how)
            if cell and cell.significant:
                at = (place + 1 - 0.055 / width, i + 0.07 / CELL_HEIGHT)
                axes.plot(*at, "*", color=ink, markersize=3.4, markeredgewidth=0)
    axes.axhline(1, **FRAME)


def color_level(difference: float) -> float:
    """-1 (darkest, worse) to 1: asinh(difference / FAINTEST) as a share of that of `DARKEST`."""
    share = math.asinh(difference / FAINTEST) / math.asinh(DARKEST / FAINTEST)
    return max(-1.0, min(1.0, share))


def cell_text(cell: OverviewCell | None, reference: bool = False) -> str:
    """`-0.12`, `+1.3`, `-81`, `0.00`; of the reference its mean; `n/a`: nothing to compare with; empty: no run."""
    if cell is None:
        return ""
    if reference:
        return f"{cell.mean:.1f}"
    if cell.difference is None:
        return "n/a"
    digits = 2 if abs(cell.difference) < 0.995 else 1 if abs(cell.difference) < 9.95 else 0
    text = f"{cell.difference:+.{digits}f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def _data_rows(overview: Overview) -> list[Row]:
    return [
        {"treatment": label, "reference": overview.reference, "measure": ACCURACY.column, "unit": "percent"}
        | asdict(level)
        | asdict(cell)
        for label, row in zip(overview.treatments, overview.cells, strict=True)
        for level, cell in zip(overview.levels, row, strict=True)
        if cell is not None
    ]


def _caption(summary: Summary, overview: Overview) -> str:
    cells = [cell for row in overview.cells for cell in row if cell is not None]
    subject = f"Network {summary.subject}: " if summary.subject else ""
    first = (
        f"{subject}test accuracy at early stopping, mean over n = {format_range([cell.n for cell in cells])} seeds. "
    )
    first += f"First row: that of {overview.reference}, in percent; all others: minus that, in percentage points."
    others = [cell for row in overview.cells[1:] for cell in row]
    return join_sentences(
        [
            first if cells else f"{subject}only the dense network has finished.",
            f"Blue: better, vermilion: worse, the signs say it too; the darkest colours stand for {DARKEST:g} points "
            "and more."
            if any(cell is not None for cell in others)
            else "",
            significance_note(summary),
            f"n/a: {overview.reference} has no level with as many weights remaining."
            if any(cell is not None and cell.difference is None for cell in others)
            else "",
            "Hatched: no finished run." if any(cell is None for row in overview.cells for cell in row) else "",
            f"Dense network: {summary.dense.interval.mean:.2f}%."
            if summary.dense
            else "No dense network has finished.",
            excluded_note(summary),
            *data_notes(summary),
        ]
    )
