"""Overlap of masks as heat maps: what was found below the diagonal, what chance would give above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks.overlap import ALL_LAYERS, Overlap, OverlapMatrix, overlap_matrix
from supermask.core.text import Row
from supermask.reporting.figures.layout import (
    MARGIN,
    PANEL_SIZE,
    FigurePage,
    colour_bar,
    fit_text,
    max_text_width,
    num_columns,
)
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import GREY, INK, SEQUENTIAL_COLORS, WIDTH, colormap, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pairs = Mapping[tuple[int, int], Mapping[str, Overlap]]
"""(row, column) of the labels, row < column -> layer -> overlap."""

LARGEST, SMALLEST_WITH_NUMBER = 0.46, 0.23
"""Inches: a cell's side at the most; at the least, if its number is to be written in it."""

MOST_NAMED = 16
"""Masks whose names are in the caption of a figure that has no room for them beside its panels."""

LABEL_WIDTH, BAR_ROOM, HEAD = 2.1, 0.72, 0.2
"""Inches: row labels at the most, colour bar with its ticks, column numbers."""


def overlap_figure(pairs: Pairs, labels: Sequence[str], title: str) -> RenderedFigure:
    """Jaccard overlap of every pair over all layers together, with its value, against chance.

    Hatched: within the central 95% range of chance. The rows behind it have every layer.
    Source: paper.md section 8.
    """
    matrix = overlap_matrix(pairs, len(labels))[ALL_LAYERS]
    top = _color_max([matrix])
    with style_context():
        left = MARGIN + 0.3 + max_text_width(labels, LABEL_WIDTH)
        side = min(LARGEST, (WIDTH - left - BAR_ROOM) / len(labels))
        page = FigurePage(title, _caption(pairs, "all layers together"), HEAD + side * len(labels) + 0.06)
        axes = page.axes(left, HEAD, side * len(labels), side * len(labels))
        _heat_map(axes, matrix, top, side)
        for place, label in enumerate(labels):
            middle, row = HEAD + (place + 0.5) * side, min(PANEL_SIZE, side * 72 * 0.8)
            right: dict[str, Any] = {"ha": "right", "va": "center_baseline"}
            page.text(left - 0.27, middle, fit_text(label, LABEL_WIDTH), row, **right)
            page.text(left - 0.05, middle, str(place + 1), row, **(right | {"color": GREY}))
            if place % _tick_step(side) == 0:
                across = left + (place + 0.5) * side
                size = min(PANEL_SIZE, side * 72 * 0.6 * _tick_step(side))
                page.text(across, HEAD - 0.04, str(place + 1), size, ha="center", va="bottom", color=GREY)
        bar = colour_bar(
            page,
            left + side * len(labels) + 0.12,
            HEAD,
            min(1.6, side * len(labels)),
            colormap(SEQUENTIAL_COLORS),
            0,
            top,
        )
        bar.set_ylabel("Jaccard overlap")
    return RenderedFigure(page.figure, page.caption, overlap_rows(pairs, labels))


def overlap_by_layer_figure(pairs: Pairs, labels: Sequence[str], title: str) -> RenderedFigure:
    """The same by layer, a small heat map each, with values where there is room; the caption says which is which."""
    matrices = overlap_matrix(pairs, len(labels))
    columns = num_columns(len(matrices), 4)
    room = (WIDTH - 2 * MARGIN - BAR_ROOM) / columns
    side = min(LARGEST, (room - 0.3) / len(labels))
    width, step = side * len(labels), side * len(labels) + 0.48
    names = "; ".join(f"{place + 1} {label}" for place, label in enumerate(labels))
    names = names if len(labels) <= MOST_NAMED else "The numbers are those of the figure of all layers together"
    top = _color_max(list(matrices.values()))
    with style_context():
        rows = -(-len(matrices) // columns)
        page = FigurePage(title, f"{_caption(pairs, 'each layer by itself')} {names}.", rows * step)
        for place, (layer, matrix) in enumerate(matrices.items()):
            left, above = MARGIN + 0.2 + place % columns * room, place // columns * step
            axes = page.axes(left, above + 0.32, width, width)
            _heat_map(axes, matrix, top, side)
            page.text(left, above + 0.02, layer.removesuffix(".weight"))
            for number in range(0, len(labels), _tick_step(side)):
                size, middle = min(6.0, side * 72 * 0.6 * _tick_step(side)), (number + 0.5) * side
                page.text(left + middle, above + 0.29, str(number + 1), size, ha="center", va="bottom")
                page.text(left - 0.04, above + 0.32 + middle, str(number + 1), size, ha="right", va="center")
        bar = colour_bar(page, WIDTH - BAR_ROOM, 0.32, min(1.6, width), colormap(SEQUENTIAL_COLORS), 0, top)
        bar.set_ylabel("Jaccard overlap")
    return RenderedFigure(page.figure, page.caption, overlap_rows(pairs, labels))


def overlap_rows(pairs: Pairs, labels: Sequence[str]) -> list[Row]:
    """A row for every pair and layer."""
    return [
        {
            "one": labels[row],
            "other": labels[column],
            "layer": layer.removesuffix(".weight"),
            "weights": found.weights,
            "kept_by_one": found.kept_a,
            "kept_by_other": found.kept_b,
            "kept_by_both": found.kept_both,
            "jaccard": found.jaccard,
            "chance_expected": found.chance.expected,
            "chance_low95": found.chance.low,
            "chance_high95": found.chance.high,
            "against_chance": found.verdict,
            "nested": found.nested,
        }
        for (row, column), layers in pairs.items()
        for layer, found in layers.items()
    ]


def _heat_map(axes: Axes, matrix: OverlapMatrix, top: float, side: float) -> None:
    """Found below the diagonal, expected by chance above it; hatched where the two cannot be told apart."""
    from matplotlib.patches import Rectangle

    n = len(matrix.jaccard)
    lower = np.tri(n, k=-1, dtype=bool)
    shown = np.where(lower, matrix.jaccard, matrix.expected)
    axes.imshow(shown, cmap=colormap(SEQUENTIAL_COLORS), vmin=0, vmax=top, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    hatched: dict[str, Any] = {"fill": False, "hatch": "/////", "edgecolor": "#a0a0a0", "linewidth": 0}
    for row in range(n):
        axes.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, facecolor="#e8e8e8", edgecolor="none"))
        for column in range(n):
            if column < row and matrix.verdict(row, column) == "within":
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **hatched)).set_hatch_linewidth(0.5)
            if column != row and side >= SMALLEST_WITH_NUMBER:
                _number(axes, row, column, float(shown[row, column]), top, side)


def _number(axes: Axes, row: int, column: int, value: float, top: float, side: float) -> None:
    colours = colormap(SEQUENTIAL_COLORS)
    red, green, blue, _ = colours(value / top)
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.55
    axes.text(
        column,
        row,
        f"{value:.2f}",
        ha="center",
        va="center_baseline",
        fontsize=min(6.6, side * 72 * 0.33),
        color="white" if dark else INK,
        bbox={"boxstyle": "square,pad=0.12", "facecolor": (red, green, blue), "edgecolor": "none"},
    )


def _color_max(matrices: Sequence[OverlapMatrix]) -> float:
    """The end of the colour scale: the largest number that is shown, rounded up to a tenth."""
    found = [np.where(np.eye(len(m.jaccard), dtype=bool), 0, np.fmax(m.jaccard, m.expected)).max() for m in matrices]
    return max(0.1, float(np.ceil(max(found) * 10) / 10))


def _tick_step(side: float) -> int:
    """Which column numbers are written: all of them, or every fifth where cells are small."""
    return 1 if side * 72 >= 9 else 5


def _caption(pairs: Pairs, where: str) -> str:
    layers = list(pairs.values())
    verdicts = [found[ALL_LAYERS].verdict for found in layers]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("above", "within", "below") if v in verdicts)
    nested = sum(found[ALL_LAYERS].nested for found in layers)
    return (
        f"Jaccard overlap |A and B| / |A or B| of the weights kept, {where}. Below the diagonal: found. Above it: "
        "expected of random masks that keep as many in each layer. Hatched: within the central 95% range of chance "
        f"(of random pairs, one in twenty is not). Over all layers, of {_count(len(layers), 'pair')}: {counts}"
        + (f"; {nested} nested (one mask holds the other)." if nested else ".")
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
