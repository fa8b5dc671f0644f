"""Figure of a comparison with results of others: difference by level, one panel per treatment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from supermask.analysis.comparisons import CellComparison, ResultComparison
from supermask.analysis.comparisons.cells import CELL_SIGNIFICANCE
from supermask.core.errors import sanitize
from supermask.core.text import format_range
from supermask.reporting.figures.accuracy import MARKER, draw_stars, remaining_weights_axis
from supermask.reporting.figures.caption import join_sentences
from supermask.reporting.figures.layout import FigurePage, PanelGrid, PanelSizes
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    INK,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = PanelSizes(
    left=0.52,
    gap=0.2,
    panel_height=1.1,
    single_row_height=2.0,
    heading_height=0.2,
    axis_height=0.42,
    max_columns=4,
)


def comparison_figure(
    comparison: ResultComparison, title: str = "", options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw ours minus theirs against weights remaining, with the 95% interval of Welch's test: a panel per treatment.

    The shaded band is the margin of equivalence, a star a cell with p < 0.01 by itself. One scale for all panels. The
    dense network is a panel of its own.
    """
    cells = comparison.cells
    labels = list(dict.fromkeys(cell.treatment for cell in cells))
    panels = {label: [cell for cell in cells if cell.treatment == label] for label in labels}
    source = sanitize(comparison.source)
    title = title or f"{sanitize(comparison.study)} beside {source}"
    with style_context(options):
        page = _draw(comparison, panels, title, comparison_caption(comparison), options)
    return RenderedFigure(page.finish(), page.caption, comparison.data_rows())


def _draw(
    comparison: ResultComparison,
    panels: dict[str, list[CellComparison]],
    title: str,
    caption: str,
    options: FigureOptions,
) -> FigurePage:
    styles = assign_styles(list(panels))
    grid = PanelGrid(list(panels), SIZES, title, caption, options)
    limits = _limits(comparison)
    remaining = [cell.remaining for cells in panels.values() for cell in cells]
    for axes, (label, cells) in zip(grid.panels(), panels.items(), strict=True):
        _draw_cells(axes, cells, styles[label], comparison.margin)
        axes.set_ylim(*limits)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
        remaining_weights_axis(axes, remaining, min_distance=0.15)
    unit = "points" if comparison.metric.unit == "percent" else comparison.metric.unit
    grid.label_axes("Weights remaining (%)", f"Here minus there ({unit})")
    return grid.page


def _draw_cells(axes: Axes, cells: Sequence[CellComparison], style: LineStyle, margin: float | None) -> None:
    if margin is not None:
        axes.axhspan(-margin, margin, color=INK, alpha=0.08, linewidth=0, zorder=1.2)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1.8)
    x, mean = [cell.remaining for cell in cells], [cell.comparison.difference for cell in cells]
    with_interval = [(cell.remaining, cell.comparison.interval95) for cell in cells if cell.comparison.interval95]
    interval_x = [place for place, _ in with_interval]
    low, high = [ends[0] for _, ends in with_interval], [ends[1] for _, ends in with_interval]
    axes.vlines(interval_x, low, high, color=style.color, linewidth=0.9, zorder=2.5)
    axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=0.8, zorder=3)
    axes.plot(x, mean, color=style.color, marker=style.marker, zorder=3.5, **MARKER)
    differing = [cell for cell in cells if cell.differs]
    draw_stars(
        axes, [c.remaining for c in differing], [c.comparison.difference for c in differing], style.color, order=4.0
    )


def _limits(comparison: ResultComparison) -> tuple[float, float]:
    """Return limits for all panels: all means, the margin, and intervals up to the spread of the means beyond them."""
    means = [0.0, *(cell.comparison.difference for cell in comparison.cells)]
    margin = comparison.margin or 0.0
    least, most = min(*means, -margin), max(*means, margin)
    room = (most - least) or 1.0
    ends = [end for cell in comparison.cells for end in cell.comparison.interval95 or ()]
    low, high = max(least - room, min([least, *ends])), min(most + room, max([most, *ends]))
    return low - 0.08 * (high - low), high + 0.16 * (high - low)


def comparison_caption(comparison: ResultComparison) -> str:
    """Return the caption of the figure; it ends with the conclusions."""
    source = sanitize(comparison.source)
    cells = comparison.cells
    here, there = format_range([cell.n for cell in cells]), format_range([cell.other_n for cell in cells])
    margin = comparison.margin
    unit = "points" if comparison.metric.unit == "percent" else comparison.metric.unit
    runs = "run" if here == "1" else "runs"
    return join_sentences(
        [
            f"Network {comparison.subject}: {comparison.metric.title} here minus {source}; n = {here} {runs} here and "
            f"{there} there. Bar: 95% interval of the difference (Welch's test, not paired); one scale for all panels.",
            f"Star: p < {CELL_SIGNIFICANCE:g} for this cell alone.",
            f"Shaded: the margin of equivalence, ±{margin:g} {unit}." if margin is not None else "",
            *comparison.summary(),
        ]
    )
