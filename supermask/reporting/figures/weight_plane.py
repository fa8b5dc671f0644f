"""Hexbin plots of the (w_i, w_f) plane: which weights a criterion keeps and which it prunes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from supermask.analysis.masks.weights import HexbinCounts, WeightPlane, hexbin, symmetric_limit
from supermask.core.text import Row
from supermask.reporting.figures.caption import join_sentences
from supermask.reporting.figures.layout import MARGIN, FigurePage, color_bar, num_columns, panel_titles
from supermask.reporting.figures.mask_takeaways import plane_takeaway
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import PRUNED_KEPT_COLORS, WIDTH, colormap, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_WIDTH, HEADING_HEIGHT, LEFT, AXIS_HEIGHT = 0.62, 0.2, 0.5, 0.36
"""Inches: the color bar, a panel's name, tick labels on the left of and below the panels."""

HEXAGON_DISTANCE = 0.04
"""Inches between the centers of neighboring hexagons."""

MIN_SIZE = 0.3
"""Width of the hexagon of one weight, as a share of the width of the fullest hexagon."""


def weight_plane_figure(
    planes: Sequence[WeightPlane], labels: Sequence[str], title: str, shared_axes: bool = True
) -> RenderedFigure:
    """Draw one panel per mask or layer: kept (dark) and pruned (light) weights by value before and after training.

    The size of a hexagon grows with the logarithm of its number of weights, its color is the share kept.
    `shared_axes`: all panels have the limits of the widest (masks of one layer); otherwise each has its own (layers).
    Source: Zhou et al. 2019, Figs. 1 and 2.
    """
    columns = num_columns(len(planes), 3 if len(planes) <= 9 else 4 if len(planes) <= 16 else 6)
    width = (WIDTH - 2 * MARGIN - BAR_WIDTH) / columns - (0.12 if shared_axes else 0.12 + LEFT - 0.1)
    width = min(width - LEFT / columns, 2.6)
    height, rows = width, -(-len(planes) // columns)
    names, extra_height = panel_titles(labels, width)
    heading = HEADING_HEIGHT + extra_height
    row_height = heading + height + (0.1 if shared_axes else AXIS_HEIGHT)
    column_width = width + (0.12 if shared_axes else LEFT + 0.02)
    limits = [_limits(plane) for plane in planes]
    if shared_axes:
        limits = [(max(x for x, _ in limits), max(y for _, y in limits))] * len(planes)
    hexbins = [
        hexbin(plane, limit, round(width / HEXAGON_DISTANCE), round(height / HEXAGON_DISTANCE / np.sqrt(3)))
        for plane, limit in zip(planes, limits, strict=True)
    ]
    with style_context():
        bottom = AXIS_HEIGHT if shared_axes else 0.05
        caption = join_sentences([_caption(planes, hexbins), plane_takeaway(planes, labels)])
        page = FigurePage(title, caption, rows * row_height + bottom, labels=labels)
        for index, (counts, name) in enumerate(zip(hexbins, names, strict=True)):
            row, column = divmod(index, columns)
            left, top = MARGIN + LEFT + column * column_width, row * row_height + heading
            axes = page.axes(left, top, width, height)
            page.text(left, top - 0.04, name, va="bottom")
            axes.locator_params(axis="x", nbins=max(2, int(width / 0.5)))
            axes.locator_params(axis="y", nbins=5)
            axes.tick_params(labelsize=6.8 if width > 1.1 else 5.0)
            _draw_hexbin(axes, counts, limits[index])
            is_last = index + columns >= len(hexbins)
            if shared_axes:
                axes.tick_params(labelleft=column == 0, labelbottom=is_last)
            if column == 0:
                axes.set_ylabel("$w_f$", labelpad=1)
            if is_last:
                axes.set_xlabel("$w_i$", labelpad=1)
        bar_left = MARGIN + LEFT + columns * column_width + 0.02 - (0 if shared_axes else LEFT - 0.12)
        bar = color_bar(page, bar_left, heading, min(1.4, height), colormap(PRUNED_KEPT_COLORS), 0, 1)
        bar.set_yticks([0, 0.5, 1], ["pruned", "half", "kept"])
    return RenderedFigure(page.figure, page.caption, _data_rows(hexbins, labels))


def _limits(plane: WeightPlane) -> tuple[float, float]:
    """Return limits that show all of w_i, which the initializer bounds, and 99.5% of w_f, which nothing bounds."""
    return symmetric_limit([plane.w_i], 1.0) * 1.02, symmetric_limit([plane.w_f], 0.995)


def _draw_hexbin(axes: Axes, counts: HexbinCounts, limits: tuple[float, float]) -> None:
    from matplotlib.collections import PolyCollection

    total = counts.kept + counts.pruned
    size = MIN_SIZE + (1 - MIN_SIZE) * np.log(np.maximum(total, 1)) / np.log(max(2, int(total.max(initial=1))))
    # A hexagon with a corner at the top; `width` and `rise` are the distances of columns and rows of the grid.
    corners = np.array([(0, 2), (1, 1), (1, -1), (0, -2), (-1, -1), (-1, 1)]) * (counts.width / 2, counts.rise / 6)
    centers = np.stack([counts.x, counts.y], axis=1)
    axes.add_collection(
        PolyCollection(
            centers[:, None] + corners * size[:, None, None],
            facecolors=colormap(PRUNED_KEPT_COLORS)(counts.kept / np.maximum(total, 1)),
            linewidths=0,
        )
    )
    axes.set_xlim(-limits[0], limits[0])
    axes.set_ylim(-limits[1], limits[1])
    axes.axhline(0, color="#bbbbbb", linewidth=0.4, zorder=0.5)
    axes.axvline(0, color="#bbbbbb", linewidth=0.4, zorder=0.5)


def _caption(planes: Sequence[WeightPlane], hexbins: Sequence[HexbinCounts]) -> str:
    weights, outside = sum(plane.kept.size for plane in planes), sum(counts.outside for counts in hexbins)
    fullest = max(int((counts.kept + counts.pruned).max(initial=0)) for counts in hexbins)
    return (
        "Weights alive before the mask, by their value before (x axis) and after (y axis) the training run whose "
        "weights the criterion scored. Color: share of a hexagon's weights that the mask keeps. Its size grows with "
        f"the logarithm of their number, from 1 to the panel's largest (at most {fullest:,}). "
        f"{outside:,} of {weights:,} points ({outside / max(weights, 1):.2%}) lie outside the axes."
    )


def _data_rows(hexbins: Sequence[HexbinCounts], labels: Sequence[str]) -> list[Row]:
    return [
        {"panel": label, "w_i": float(x), "w_f": float(y), "kept": int(kept), "pruned": int(pruned)}
        for label, counts in zip(labels, hexbins, strict=True)
        for x, y, kept, pruned in zip(counts.x, counts.y, counts.kept, counts.pruned, strict=True)
    ]
