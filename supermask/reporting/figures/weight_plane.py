"""The (w_i, w_f) plane in hexagons: where a criterion draws its line between kept and pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from supermask.analysis.masks.weights import HexbinCounts, WeightPlane, hexbin, symmetric_limit
from supermask.core.text import Row
from supermask.reporting.figures.layout import MARGIN, FigurePage, colour_bar, num_columns, panel_titles
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import PRUNED_KEPT_COLORS, WIDTH, colormap, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_ROOM, HEAD, LEFT, BELOW = 0.62, 0.2, 0.5, 0.36
"""Inches: the colour bar, a panel's name, room for tick labels left of and below the panels."""

HEXAGON = 0.04
"""Inches from one hexagon to the next."""

SMALLEST = 0.3
"""Width of the hexagon of one weight, as a share of that of the fullest."""


def weight_plane_figure(
    planes: Sequence[WeightPlane], labels: Sequence[str], title: str, shared_axes: bool = True
) -> RenderedFigure:
    """A panel a mask: kept (dark) and pruned (light) weights by their value before and after training.

    Hexagons grow with the logarithm of how many weights are in them, and are mixed in colour where both kinds are.
    `shared_axes`: all panels have the limits of the widest (masks of one layer); otherwise each its own (layers).
    Source: paper.md section 8; Figure 2 of the paper.
    """
    columns = num_columns(len(planes), 3 if len(planes) <= 9 else 4 if len(planes) <= 16 else 6)
    width = (WIDTH - 2 * MARGIN - BAR_ROOM) / columns - (0.12 if shared_axes else 0.12 + LEFT - 0.1)
    width = min(width - LEFT / columns, 2.6)
    height, rows = width, -(-len(planes) // columns)
    names, more = panel_titles(labels, width)
    head = HEAD + more
    step = head + height + (0.1 if shared_axes else BELOW)
    limits = [_limits([plane]) for plane in planes]
    if shared_axes:
        limits = [(max(x for x, _ in limits), max(y for _, y in limits))] * len(planes)
    found = [
        hexbin(plane, limit, round(width / HEXAGON), round(height / HEXAGON / np.sqrt(3)))
        for plane, limit in zip(planes, limits, strict=True)
    ]
    with style_context():
        page = FigurePage(title, _caption(planes, found), rows * step + (BELOW if shared_axes else 0.05))
        for place, (counts, name) in enumerate(zip(found, names, strict=True)):
            row, column = divmod(place, columns)
            left = MARGIN + LEFT + column * (width + (0.12 if shared_axes else LEFT + 0.02))
            axes = page.axes(left, row * step + head, width, height)
            page.text(left, row * step + head - 0.04, name, va="bottom")
            axes.locator_params(axis="x", nbins=max(2, int(width / 0.5)))
            axes.locator_params(axis="y", nbins=5)
            axes.tick_params(labelsize=6.8 if width > 1.1 else 5.0)
            _draw_hexbin(axes, counts, limits[place])
            last = place + columns >= len(found)
            if shared_axes:
                axes.tick_params(labelleft=column == 0, labelbottom=last)
            if column == 0:
                axes.set_ylabel("$w_f$", labelpad=1)
            if last:
                axes.set_xlabel("$w_i$", labelpad=1)
        across = MARGIN + LEFT + columns * (width + (0.12 if shared_axes else LEFT + 0.02))
        left = across + 0.02 - (0 if shared_axes else LEFT - 0.12)
        bar = colour_bar(page, left, head, min(1.4, height), colormap(PRUNED_KEPT_COLORS), 0, 1)
        bar.set_yticks([0, 0.5, 1], ["pruned", "half", "kept"])
    return RenderedFigure(page.figure, page.caption, _rows(found, labels))


def _limits(planes: Sequence[WeightPlane]) -> tuple[float, float]:
    """All of w_i, which is bounded as it was drawn, and 99.5% of w_f, which is not."""
    return symmetric_limit([p.w_i for p in planes], 1.0) * 1.02, symmetric_limit([p.w_f for p in planes], 0.995)


def _draw_hexbin(axes: Axes, found: HexbinCounts, limits: tuple[float, float]) -> None:
    from matplotlib.collections import PolyCollection

    total = found.kept + found.pruned
    size = SMALLEST + (1 - SMALLEST) * np.log(np.maximum(total, 1)) / np.log(max(2, int(total.max(initial=1))))
    # A hexagon with a corner on top, as wide as the steps between its neighbours.
    corners = np.array([(0, 2), (1, 1), (1, -1), (0, -2), (-1, -1), (-1, 1)]) * (found.width / 2, found.rise / 6)
    centres = np.stack([found.x, found.y], axis=1)
    axes.add_collection(
        PolyCollection(
            centres[:, None] + corners * size[:, None, None],
            facecolors=colormap(PRUNED_KEPT_COLORS)(found.kept / np.maximum(total, 1)),
            linewidths=0,
        )
    )
    axes.set_xlim(-limits[0], limits[0])
    axes.set_ylim(-limits[1], limits[1])
    axes.axhline(0, color="#bbbbbb", linewidth=0.4, zorder=0.5)
    axes.axvline(0, color="#bbbbbb", linewidth=0.4, zorder=0.5)


def _caption(planes: Sequence[WeightPlane], found: Sequence[HexbinCounts]) -> str:
    weights, outside = sum(plane.kept.size for plane in planes), sum(counts.outside for counts in found)
    fullest = max(int((counts.kept + counts.pruned).max(initial=0)) for counts in found)
    return (
        "Weights that were alive, by their value before (across) and after (up) the training that they were scored "
        "on. Colour: share of a hexagon's weights that the mask keeps. Its size grows with the logarithm of their "
        f"number, from 1 to the panel's largest (at most {fullest:,}). "
        f"{outside:,} of {weights:,} points ({outside / max(weights, 1):.2%}) lie outside."
    )


def _rows(found: Sequence[HexbinCounts], labels: Sequence[str]) -> list[Row]:
    return [
        {"panel": label, "w_i": float(x), "w_f": float(y), "kept": int(kept), "pruned": int(pruned)}
        for label, counts in zip(labels, found, strict=True)
        for x, y, kept, pruned in zip(counts.x, counts.y, counts.kept, counts.pruned, strict=True)
    ]
