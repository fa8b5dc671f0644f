"""Heat maps of mask overlap: measured below the diagonal, expected by chance above it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks.overlap import ALL_LAYERS, OverlapMatrix, overlap_matrix
from supermask.core.text import Row, pluralize
from supermask.reporting.figures.caption import join_sentences
from supermask.reporting.figures.layout import (
    MARGIN,
    PANEL_SIZE,
    FigurePage,
    color_bar,
    fit_labels,
    max_text_width,
    num_columns,
)
from supermask.reporting.figures.mask_takeaways import Pairs, overlap_by_layer_takeaway, overlap_takeaway
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import GRAY, INK, SEQUENTIAL_COLORS, WIDTH, colormap, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CELL, MIN_CELL_WITH_NUMBER = 0.46, 0.23
"""Inches: side of a cell at most; at least, if its number is written in it."""

MAX_NAMED = 16
"""Masks at most whose names are listed in the caption of a figure without row labels."""

LABEL_WIDTH, BAR_WIDTH, HEADING_HEIGHT = 2.1, 0.72, 0.2
"""Inches: a row label at most, color bar with its ticks, column numbers."""


def overlap_figure(pairs: Pairs, labels: Sequence[str], title: str) -> RenderedFigure:
    """Draw the Jaccard overlap |A and B| / |A or B| of every pair, over all layers together, against chance.

    Hatched cells are within the central 95% range of chance. The data rows have every layer.
    Source: Zhou et al. 2019, authors' response, item 6.
    """
    matrix = overlap_matrix(pairs, len(labels))[ALL_LAYERS]
    color_max = _color_max([matrix])
    with style_context():
        left = MARGIN + 0.3 + max_text_width(labels, LABEL_WIDTH)
        side = min(MAX_CELL, (WIDTH - left - BAR_WIDTH) / len(labels))
        width = side * len(labels)
        caption = join_sentences([_caption(pairs, "all layers together"), overlap_takeaway(pairs, labels)])
        page = FigurePage(title, caption, HEADING_HEIGHT + width + 0.06, labels=labels)
        axes = page.axes(left, HEADING_HEIGHT, width, width)
        _draw_heat_map(axes, matrix, color_max, side)
        for index, name in enumerate(fit_labels(labels, LABEL_WIDTH)):
            middle, size = HEADING_HEIGHT + (index + 0.5) * side, min(PANEL_SIZE, side * 72 * 0.8)
            right: dict[str, Any] = {"ha": "right", "va": "center_baseline"}
            page.text(left - 0.27, middle, name, size, **right)
            page.text(left - 0.05, middle, str(index + 1), size, **(right | {"color": GRAY}))
            if index % _tick_step(side) == 0:
                size = min(PANEL_SIZE, side * 72 * 0.6 * _tick_step(side))
                number: dict[str, Any] = {"ha": "center", "va": "bottom", "color": GRAY}
                page.text(left + (index + 0.5) * side, HEADING_HEIGHT - 0.04, str(index + 1), size, **number)
        colors = colormap(SEQUENTIAL_COLORS)
        bar = color_bar(page, left + width + 0.12, HEADING_HEIGHT, min(1.6, width), colors, 0, color_max)
        bar.set_ylabel("Jaccard overlap")
    return RenderedFigure(page.figure, page.caption, overlap_rows(pairs, labels))


def overlap_by_layer_figure(pairs: Pairs, labels: Sequence[str], title: str) -> RenderedFigure:
    """Draw the overlap of every pair in each layer, one small heat map per layer; the caption names the masks.

    Source: Zhou et al. 2019, authors' response, item 6.
    """
    matrices = overlap_matrix(pairs, len(labels))
    columns = num_columns(len(matrices), 4)
    column_width = (WIDTH - 2 * MARGIN - BAR_WIDTH) / columns
    side = min(MAX_CELL, (column_width - 0.3) / len(labels))
    width = side * len(labels)
    row_height = width + 0.48
    names = "; ".join(f"{number} {label}" for number, label in enumerate(labels, start=1))
    names = names if len(labels) <= MAX_NAMED else "The numbers are those of the figure of all layers together"
    color_max = _color_max(list(matrices.values()))
    with style_context():
        rows = -(-len(matrices) // columns)
        caption = [_caption(pairs, "each layer by itself"), f"{names}.", overlap_by_layer_takeaway(pairs)]
        page = FigurePage(title, join_sentences(caption), rows * row_height)
        for index, (layer, matrix) in enumerate(matrices.items()):
            row, column = divmod(index, columns)
            left, top = MARGIN + 0.2 + column * column_width, row * row_height
            axes = page.axes(left, top + 0.32, width, width)
            _draw_heat_map(axes, matrix, color_max, side)
            page.text(left, top + 0.02, layer.removesuffix(".weight"))
            for mask in range(0, len(labels), _tick_step(side)):
                size, middle = min(6.0, side * 72 * 0.6 * _tick_step(side)), (mask + 0.5) * side
                page.text(left + middle, top + 0.29, str(mask + 1), size, ha="center", va="bottom")
                page.text(left - 0.04, top + 0.32 + middle, str(mask + 1), size, ha="right", va="center")
        bar = color_bar(page, WIDTH - BAR_WIDTH, 0.32, min(1.6, width), colormap(SEQUENTIAL_COLORS), 0, color_max)
        bar.set_ylabel("Jaccard overlap")
    return RenderedFigure(page.figure, page.caption, overlap_rows(pairs, labels))


def overlap_rows(pairs: Pairs, labels: Sequence[str]) -> list[Row]:
    """Return one data row per pair and layer."""
    return [
        {
            "mask_a": labels[row],
            "mask_b": labels[column],
            "layer": layer.removesuffix(".weight"),
            "weights": overlap.weights,
            "kept_by_a": overlap.kept_a,
            "kept_by_b": overlap.kept_b,
            "kept_by_both": overlap.kept_both,
            "jaccard": overlap.jaccard,
            "chance_expected": overlap.chance.expected,
            "chance_low95": overlap.chance.low,
            "chance_high95": overlap.chance.high,
            "against_chance": overlap.chance_position,
            "nested": overlap.nested,
        }
        for (row, column), layers in pairs.items()
        for layer, overlap in layers.items()
    ]


def _draw_heat_map(axes: Axes, matrix: OverlapMatrix, color_max: float, side: float) -> None:
    """Draw measured overlap below the diagonal and expected above it, hatched if not different from chance.

    `side` is the side of a cell in inches.
    """
    from matplotlib.patches import Rectangle

    n = len(matrix.jaccard)
    lower = np.tri(n, k=-1, dtype=bool)
    values = np.where(lower, matrix.jaccard, matrix.expected)
    axes.imshow(values, cmap=colormap(SEQUENTIAL_COLORS), vmin=0, vmax=color_max, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    hatched: dict[str, Any] = {"fill": False, "hatch": "/////", "edgecolor": "#a0a0a0", "linewidth": 0}
    for row in range(n):
        axes.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, facecolor="#e8e8e8", edgecolor="none"))
        for column in range(n):
            if column < row and matrix.chance_position(row, column) == "within":
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **hatched)).set_hatch_linewidth(0.5)
            if column != row and side >= MIN_CELL_WITH_NUMBER:
                _write_number(axes, row, column, float(values[row, column]), color_max, side)


def _write_number(axes: Axes, row: int, column: int, value: float, color_max: float, side: float) -> None:
    red, green, blue, _ = colormap(SEQUENTIAL_COLORS)(value / color_max)
    is_dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55  # luminance of the cell
    axes.text(
        column,
        row,
        f"{value:.2f}",
        ha="center",
        va="center_baseline",
        fontsize=min(6.6, side * 72 * 0.33),
        color="white" if is_dark else INK,
        bbox={"boxstyle": "square,pad=0.12", "facecolor": (red, green, blue), "edgecolor": "none"},
    )


def _color_max(matrices: Sequence[OverlapMatrix]) -> float:
    """Return the end of the color scale: the largest value off the diagonal, rounded up to a tenth."""
    largest = [np.where(np.eye(len(m.jaccard), dtype=bool), 0, np.fmax(m.jaccard, m.expected)).max() for m in matrices]
    return max(0.1, float(np.ceil(max(largest) * 10) / 10))


def _tick_step(side: float) -> int:
    """Return the step of the column numbers: 1, or 5 if cells are small."""
    return 1 if side * 72 >= 9 else 5


def _caption(pairs: Pairs, layers: str) -> str:
    overlaps = [pair[ALL_LAYERS] for pair in pairs.values()]
    positions = [overlap.chance_position for overlap in overlaps]
    counts = ", ".join(f"{positions.count(v)} {v}" for v in ("above", "within", "below") if v in positions)
    nested = sum(overlap.nested for overlap in overlaps)
    return (
        f"Jaccard overlap |A and B| / |A or B| of the weights kept, {layers}. Below the diagonal: measured. Above it: "
        "expected of random masks that keep as many in each layer. Hatched: within the central 95% range of chance "
        f"(1 of 20 random pairs is outside). Over all layers, of {pluralize(len(overlaps), 'pair')}: {counts}"
        + (f"; {nested} nested (one mask contains the other)." if nested else ".")
    )
