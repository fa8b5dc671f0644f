"""How much of each pixel a fully connected first layer keeps, as images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from supermask.core.text import Row
from supermask.reporting.figures.layout import MARGIN, FigurePage, colour_bar, num_columns, panel_titles
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import SEQUENTIAL_COLORS, WIDTH, colormap, style_context

MOST_NAMED = 16
"""Masks whose number of empty pixels is in the caption; of more, the least and the most."""

BAR_ROOM, HEAD = 0.62, 0.2
"""Inches: the colour bar, a panel's name."""


def pixel_map_figure(maps: Sequence[NDArray[np.float64]], labels: Sequence[str], title: str) -> RenderedFigure:
    """An image a mask: share of each pixel's weights that are kept, on one colour scale; white keeps nothing.

    `maps` are those of `analysis.pixel_map`, all of one shape or not. Source: paper.md section 8.
    """
    columns = num_columns(len(maps), 5 if len(maps) <= 15 else 8)
    width = min(2.4, (WIDTH - 2 * MARGIN - BAR_ROOM) / columns - 0.1)
    names, more = panel_titles(labels, width)
    heights = [width * pixels.shape[0] / pixels.shape[1] for pixels in maps]
    head = HEAD + more
    step = head + max(heights) + 0.08
    top = _top(maps)
    with style_context():
        page = FigurePage(title, _caption(maps, labels), step * -(-len(maps) // columns))
        for place, (pixels, name) in enumerate(zip(maps, names, strict=True)):
            left, above = MARGIN + place % columns * (width + 0.1), place // columns * step
            page.text(left, above + head - 0.04, name, va="bottom")
            axes = page.axes(left, above + head, width, heights[place])
            axes.imshow(pixels * 100, cmap=colormap(SEQUENTIAL_COLORS), vmin=0, vmax=top * 100, aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
        across = MARGIN + columns * (width + 0.1) + 0.02
        bar = colour_bar(page, across, head, min(1.6, max(heights)), colormap(SEQUENTIAL_COLORS), 0, top * 100)
        bar.set_ylabel("Weights kept (%)")
        bar.set_title("or more" if top < _largest(maps) else "", fontsize=6.0, pad=2, loc="left")
    return RenderedFigure(page.figure, page.caption, _rows(maps, labels))


def _largest(maps: Sequence[NDArray[np.float64]]) -> float:
    return max(float(pixels.max()) for pixels in maps)


def _top(maps: Sequence[NDArray[np.float64]]) -> float:
    """The end of the colour scale: three times the densest map's mean, so that one full corner hides nothing else."""
    return min(_largest(maps), 3 * max(float(pixels.mean()) for pixels in maps)) or 1.0


def _caption(maps: Sequence[NDArray[np.float64]], labels: Sequence[str]) -> str:
    empty = sorted((int((pixels == 0).sum()), label) for pixels, label in zip(maps, labels, strict=True))
    if len(empty) > MOST_NAMED:
        empty = [empty[0], empty[-1]]
    numbers = (" to " if len(maps) > MOST_NAMED else ", ").join(f"{count} ({label})" for count, label in empty)
    return (
        "Share of each pixel's weights in the first layer that the mask keeps; white: none. "
        f"Pixels without a kept weight, of {maps[0].size:,}: {numbers}."
    )


def _rows(maps: Sequence[NDArray[np.float64]], labels: Sequence[str]) -> list[Row]:
    return [
        {"specimen": label, "row": row, "column": column, "kept_share": float(share)}
        for pixels, label in zip(maps, labels, strict=True)
        for (row, column), share in np.ndenumerate(pixels)
    ]
