"""Distributions of w_i and w_f, before a mask and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks.weights import Distribution
from supermask.core.text import Row
from supermask.reporting.figures.layout import MARGIN, PANEL_SIZE, FigurePage, fit_text, max_text_width
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import BLUE, INK, WIDTH, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_WIDTH, HEAD, BELOW, TALLEST, SHORTEST = 1.9, 0.36, 0.24, 0.8, 0.34
"""Inches: row labels at the most, heading with its legend, tick labels, a row at the most and at the least."""

PAIRS_SIDE_BY_SIDE = 20
"""More rows than this stand in two columns."""


def distribution_figure(
    found: Sequence[tuple[Distribution, Distribution]], labels: Sequence[str], title: str
) -> RenderedFigure:
    """A row a mask, or a layer: w_i on the left, w_f on the right; alive before (grey) and kept (outline).

    Each has an area of 1, so that shapes can be compared whatever is kept. Source: paper.md section 8.
    """
    blocks = 1 if len(found) <= PAIRS_SIDE_BY_SIDE else 2
    rows = -(-len(found) // blocks)
    height = min(TALLEST, max(SHORTEST, 6.0 / rows))
    shared = [_same_edges([pair[side] for pair in found]) for side in (0, 1)]
    gap = 0.1 if all(shared) else 0.3
    with style_context():
        label_room = max_text_width(labels, LABEL_WIDTH / blocks) + 0.14
        block = (WIDTH - 2 * MARGIN) / blocks
        width = (block - label_room - 0.16) / 2
        page = FigurePage(title, _caption(found), HEAD + rows * (height + gap) + BELOW - gap)
        for place, (pair, label) in enumerate(zip(found, labels, strict=True)):
            column, row = divmod(place, rows)
            left, top = MARGIN + column * block, HEAD + row * (height + gap)
            name = fit_text(label, LABEL_WIDTH / blocks, lines=2)
            page.text(left + label_room - 0.08, top + height / 2, name, ha="right", va="center")
            for side, distribution in enumerate(pair):
                axes = page.axes(left + label_room + side * (width + 0.12), top, width, height)
                _histogram(axes, distribution)
                last = row == rows - 1 or place == len(found) - 1
                axes.locator_params(axis="x", nbins=max(2, int(width / 0.5)))
                axes.tick_params(labelbottom=last or not all(shared), labelsize=6.0)
                if row == 0:
                    heading = ("$w_i$", "$w_f$")[side]
                    axes.set_title(heading, fontsize=PANEL_SIZE, pad=3, loc="left", color=INK)
        _legend(page)
    return RenderedFigure(page.figure, page.caption, _rows(found, labels))


def _same_edges(found: Sequence[Distribution]) -> bool:
    return all(np.array_equal(found[0].edges, other.edges) for other in found)


def _histogram(axes: Axes, found: Distribution) -> None:
    widths = np.diff(found.edges)
    before, after = (counts / max(1, int(counts.sum())) / widths for counts in (found.before, found.after))
    axes.stairs(before, found.edges, fill=True, color="#c9c9c9")
    axes.stairs(after, found.edges, color=BLUE, linewidth=0.9)
    top = max(np.quantile(before, 0.98), np.quantile(after, 0.98)) * 1.6
    axes.set_xlim(found.edges[0], found.edges[-1])
    axes.set_ylim(0, min(top, max(before.max(), after.max()) * 1.08) or 1)
    axes.set_yticks([])


def _legend(page: FigurePage) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color="#c9c9c9"), Line2D([], [], color=BLUE)]
    page.figure.legend(
        handles,
        ["alive before the mask", "kept by it"],
        loc="upper right",
        bbox_to_anchor=page.at(WIDTH - MARGIN, 0.0),
        ncols=2,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
    )


def _caption(found: Sequence[tuple[Distribution, Distribution]]) -> str:
    outside = sum(part.outside for pair in found for part in pair)
    points = sum(int(part.before.sum()) + part.outside for pair in found for part in pair)
    return (
        "Weights before (left) and after (right) the training that they were scored on: all that were alive before the "
        "mask, and those that it keeps, each distribution of area 1. "
        f"{outside:,} of {points:,} values lie outside; a peak far above the rest is cut (the numbers are in the CSV)."
    )


def _rows(found: Sequence[tuple[Distribution, Distribution]], labels: Sequence[str]) -> list[Row]:
    return [
        {"panel": label, "weight": name, "from": float(low), "to": float(high), "alive": int(b), "kept": int(a)}
        for label, pair in zip(labels, found, strict=True)
        for name, part in zip(("w_i", "w_f"), pair, strict=True)
        for low, high, b, a in zip(part.edges, part.edges[1:], part.before, part.after, strict=False)
    ]
