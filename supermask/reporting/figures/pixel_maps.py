"""Pixel maps: share of weights that a fully connected first layer keeps per input pixel, as images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from supermask.core.text import Row
from supermask.reporting.figures.layout import MARGIN, FigurePage, color_bar, num_columns, panel_titles
from supermask.reporting.figures.mask_takeaways import pixel_map_takeaway
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import SEQUENTIAL_COLORS, WIDTH, colormap, style_context

MAX_NAMED = 16
"""Masks at most whose number of empty pixels is in the caption; of more, the smallest and the largest number."""

BAR_WIDTH, HEADING_HEIGHT = 0.62, 0.2
"""Inches: the color bar, a panel's name."""


def pixel_map_figure(maps: Sequence[NDArray[np.float64]], labels: Sequence[str], title: str) -> RenderedFigure:
    """Draw one image per mask: share of weights kept per pixel, on one color scale; white is 0.

    `maps` are the results of `pixel_map`, each `(height, width)`. Source: Zhou et al. 2019, Figs. S2 and S3.
    """
    columns = num_columns(len(maps), 5 if len(maps) <= 15 else 8)
    width = min(2.4, (WIDTH - 2 * MARGIN - BAR_WIDTH) / columns - 0.1)
    names, extra_height = panel_titles(labels, width)
    heights = [width * pixels.shape[0] / pixels.shape[1] for pixels in maps]
    heading = HEADING_HEIGHT + extra_height
    row_height = heading + max(heights) + 0.08
    color_max, colors = _color_max(maps), colormap(SEQUENTIAL_COLORS)
    with style_context():
        page = FigurePage(title, _caption(maps, labels), row_height * -(-len(maps) // columns), labels=labels)
        for index, (pixels, name) in enumerate(zip(maps, names, strict=True)):
            row, column = divmod(index, columns)
            left, top = MARGIN + column * (width + 0.1), row * row_height + heading
            page.text(left, top - 0.04, name, va="bottom")
            axes = page.axes(left, top, width, heights[index])
            axes.imshow(pixels * 100, cmap=colors, vmin=0, vmax=color_max * 100, aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
        bar_left = MARGIN + columns * (width + 0.1) + 0.02
        bar = color_bar(page, bar_left, heading, min(1.6, max(heights)), colors, 0, color_max * 100)
        bar.set_ylabel("Weights kept (%)")
        bar.set_title("or more" if color_max < _largest_share(maps) else "", fontsize=6.0, pad=2, loc="left")
    return RenderedFigure(page.figure, page.caption, _data_rows(maps, labels))


def _largest_share(maps: Sequence[NDArray[np.float64]]) -> float:
    return max(float(pixels.max()) for pixels in maps)


def _color_max(maps: Sequence[NDArray[np.float64]]) -> float:
    """Return the end of the color scale: at most three times the mean of the densest map.

    Otherwise a few full pixels would make all others look empty.
    """
    return min(_largest_share(maps), 3 * max(float(pixels.mean()) for pixels in maps)) or 1.0


def _caption(maps: Sequence[NDArray[np.float64]], labels: Sequence[str]) -> str:
    empty = sorted((int((pixels == 0).sum()), label) for pixels, label in zip(maps, labels, strict=True))
    if len(empty) > MAX_NAMED:
        empty = [empty[0], empty[-1]]
    numbers = (" to " if len(maps) > MAX_NAMED else ", ").join(f"{count} ({label})" for count, label in empty)
    return (
        "Share of each pixel's weights in the first layer that the mask keeps; white: none. "
        f"Pixels without a kept weight, of {maps[0].size:,}: {numbers}. {pixel_map_takeaway(maps, labels)}"
    ).rstrip()


def _data_rows(maps: Sequence[NDArray[np.float64]], labels: Sequence[str]) -> list[Row]:
    return [
        {"mask": label, "row": row, "column": column, "kept_share": float(share)}
        for pixels, label in zip(maps, labels, strict=True)
        for (row, column), share in np.ndenumerate(pixels)
    ]
