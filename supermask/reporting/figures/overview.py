"""Overview figure: a heat map of every treatment at every level, in points against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from supermask.analysis.summary import Summary, TreatmentPoint, summarize
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.accuracy import ACCURACY
from supermask.reporting.figures.caption import (
    data_notes,
    dense_note,
    excluded_note,
    format_seeds,
    join_sentences,
    significance_note,
    takeaway,
)
from supermask.reporting.figures.layout import FRAME, FigurePage, fit_labels, num_columns, text_measure
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    DIVERGING_COLORS,
    INK,
    FigureOptions,
    colormap,
    style_context,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL_HEIGHT, MIN_CELL_WIDTH, HEADING_HEIGHT, GAP, LABEL_WIDTH, MAX_COLUMNS = 0.205, 0.3, 0.24, 0.12, 2.1, 13
"""Inches: height and least width of a cell, column titles, between blocks, a row label at most; levels per block."""

LINEAR_LIMIT, DARKEST = 0.1, 10.0
"""Percentage points: colors are nearly linear up to `LINEAR_LIMIT` and darkest from `DARKEST`."""


@dataclass(frozen=True)
class OverviewColumn:
    """A level, one column of the overview."""

    level: int
    weights_remaining_percent: float
    """Density of the reference in percent, or of the first treatment with this level if the reference lacks it."""


@dataclass(frozen=True)
class OverviewCell:
    """A treatment at a level."""

    n: int
    mean: float
    """Mean over seeds in percent."""
    difference: float | None
    """To the reference, in percentage points; None for the reference, and if it does not have this density."""
    p_holm: float | None
    significant: bool


@dataclass(frozen=True)
class Overview:
    """`cells[i][j]` is treatment i at level j, or None if no run has finished. The reference is the first row."""

    reference: str
    treatments: list[str]
    levels: list[OverviewColumn]
    cells: list[list[OverviewCell | None]]


def compute_overview(summary: Summary) -> Overview:
    """Arrange the points of a summary as treatments x levels.

    Source: Zhou et al. 2019, authors' response, items 2 and 4: each level is tested by itself.
    """
    points = {(point.treatment, point.level): point for point in summary.points}
    treatments = [summary.reference, *(label for label in summary.series if label != summary.reference)]
    levels = [
        next(OverviewColumn(level, points[label, level].remaining) for label in treatments if (label, level) in points)
        for level in sorted({level for _, level in points})
    ]
    cells = [[_cell(points.get((label, column.level))) for column in levels] for label in treatments]
    return Overview(summary.reference, treatments, levels, cells)


def _cell(point: TreatmentPoint | None) -> OverviewCell | None:
    if point is None:
        return None
    difference = point.comparison.difference if point.comparison else None
    return OverviewCell(point.interval.n, point.interval.mean, difference, point.p_holm, point.significant)


def overview_figure(
    rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw a heat map of treatments x levels: test accuracy minus the reference's in percentage points.

    Every cell has its signed number, and a star if the difference is significant at that level after Holm's
    correction. Colors grow with the logarithm of the difference up to `DARKEST` points. Raises UserError as
    `summarize` does. Source: Zhou et al. 2019, authors' response, items 2 and 4.
    """
    return draw_overview(summarize(rows, treatments, reference, ACCURACY), title, options)


def draw_overview(summary: Summary, title: str, options: FigureOptions = DEFAULT_OPTIONS) -> RenderedFigure:
    """Draw the overview of a summary of accuracies; see `overview_figure`."""
    overview = compute_overview(summary)
    caption = _caption(summary, overview)
    with style_context(options):
        page = _draw(overview, title, caption, options)
    return RenderedFigure(page.finish(), page.caption, _data_rows(overview))


def _draw(overview: Overview, title: str, caption: str, options: FigureOptions) -> FigurePage:
    names = fit_labels(overview.treatments, LABEL_WIDTH, suffixes={overview.reference: " (%)"})
    heading = "Weights remaining (%)"
    left = 0.16 + max(text_measure()(heading, 6.4), *(text_measure()(name, 7.0) for name in names))
    max_columns = min(MAX_COLUMNS, max(1, int((options.layout_width - left - 0.08) / MIN_CELL_WIDTH)))
    columns = num_columns(max(len(overview.levels), 1), max_columns)
    blocks = [range(first, len(overview.levels))[:columns] for first in range(0, len(overview.levels), columns)]
    block_height = HEADING_HEIGHT + CELL_HEIGHT * len(names)
    page = FigurePage(title, caption, max(len(blocks), 1) * (block_height + GAP), options, overview.treatments)
    width = (page.width - left - 0.08) / columns
    for number, block in enumerate(blocks):
        top = number * (block_height + GAP) + HEADING_HEIGHT
        page.text(left - 0.06, top - 0.05, heading, 6.4, ha="right", va="bottom")
        for row, name in enumerate(names):
            middle = top + (row + 0.5) * CELL_HEIGHT
            weight = "bold" if row == 0 else "normal"
            page.text(left - 0.06, middle, name, 7.0, ha="right", va="center_baseline", fontweight=weight)
        axes = page.axes(left, top, width * len(block), CELL_HEIGHT * len(names))
        _draw_block(axes, overview, block, width)
    return page


def _draw_block(axes: Axes, overview: Overview, block: range, width: float) -> None:
    from matplotlib.patches import Rectangle

    colors = colormap(DIVERGING_COLORS)
    axes.set(xlim=(0, len(block)), ylim=(len(overview.treatments), 0), yticks=[])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, pad=2)
    titles = [format_percent(overview.levels[level].weights_remaining_percent) for level in block]
    axes.set_xticks([column + 0.5 for column in range(len(block))], titles)
    for row, cells in enumerate(overview.cells):
        for column, cell in enumerate(cells[level] for level in block):
            level = color_level(cell.difference) if cell and cell.difference is not None else 0.0
            face = colors(0.5 + 0.5 * level) if row else "#efefef"
            fill = {"hatch": "////", "facecolor": "#ffffff"} if cell is None else {"facecolor": face}
            edge = {"edgecolor": "#dddddd", "linewidth": 0.5}
            axes.add_patch(Rectangle((column, row), 1, 1, **fill, **edge))  # type: ignore[arg-type]
            ink = "#ffffff" if abs(level) > 0.7 and row else INK
            number = cell_text(cell, reference=row == 0)
            # Numbers of narrow cells are written smaller.
            size = min(6.4, 6.4 * (width - 0.1) / max(text_measure()(number, 6.4), 1e-9))
            style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "color": ink, "parse_math": False}
            axes.text(column + 0.5, row + 0.5, number, fontsize=size, **style)
            if cell and cell.significant:
                star = (column + 1 - 0.055 / width, row + 0.07 / CELL_HEIGHT)
                axes.plot(*star, "*", color=ink, markersize=3.4, markeredgewidth=0)
    axes.axhline(1, **FRAME)


def color_level(difference: float) -> float:
    """Return asinh(difference / LINEAR_LIMIT) / asinh(DARKEST / LINEAR_LIMIT), clipped to [-1, 1]; -1 is worst."""
    level = math.asinh(difference / LINEAR_LIMIT) / math.asinh(DARKEST / LINEAR_LIMIT)
    return max(-1.0, min(1.0, level))


def cell_text(cell: OverviewCell | None, reference: bool = False) -> str:
    """Format a cell: `-0.12`, `+1.3`, `-81`, `0.00`; the reference's mean; `n/a` if not compared; empty if no run."""
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
    first = f"{subject}test accuracy at early stopping, mean over {format_seeds([cell.n for cell in cells])}. "
    first += (
        f"First row: {overview.reference}, in percent; all others: difference to the first row, in percentage points."
    )
    others = [cell for row in overview.cells[1:] for cell in row]
    return join_sentences(
        [
            first if cells else f"{subject}only the dense network has finished.",
            f"Blue: better; vermilion: worse; the darkest colors stand for {DARKEST:g} points and more."
            if any(cell is not None for cell in others)
            else "",
            significance_note(summary),
            f"n/a: {overview.reference} has no level with as many weights remaining."
            if any(cell is not None and cell.difference is None for cell in others)
            else "",
            "Hatched: no finished run." if any(cell is None for row in overview.cells for cell in row) else "",
            dense_note(
                summary,
                f"Dense network: {summary.dense.interval.mean:.2f}%." if summary.dense else "",
                "column of 100% of the weights",
            ),
            excluded_note(summary),
            *data_notes(summary),
            takeaway(summary),
        ]
    )
