"""Histograms of w_i and w_f, of the weights before a mask and of those that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks.weights import Distribution
from supermask.core.text import Row
from supermask.reporting.figures.caption import join_sentences
from supermask.reporting.figures.layout import MARGIN, PANEL_SIZE, FigurePage, fit_labels, max_text_width
from supermask.reporting.figures.mask_takeaways import distribution_takeaway
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import BLUE, INK, WIDTH, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_WIDTH, HEADING_HEIGHT, AXIS_HEIGHT, MAX_ROW_HEIGHT, MIN_ROW_HEIGHT = 1.9, 0.36, 0.24, 0.8, 0.34
"""Inches: a row label at most, headings and legend, tick labels, a row at most and at least."""

MAX_SINGLE_COLUMN = 20
"""Rows at most in one column; more are drawn in two."""

Pairs = Sequence[tuple[Distribution, Distribution]]
"""Distributions of w_i and of w_f, one pair per mask or layer."""


def distribution_figure(pairs: Pairs, labels: Sequence[str], title: str) -> RenderedFigure:
    """Draw one row per mask or layer: w_i on the left, w_f on the right; alive (gray) and kept (outline).

    Each histogram has area 1, so shapes are comparable at any density. Source: Zhou et al. 2019, Figs. S2 and S3.
    """
    blocks = 1 if len(pairs) <= MAX_SINGLE_COLUMN else 2
    rows = -(-len(pairs) // blocks)
    height = min(MAX_ROW_HEIGHT, max(MIN_ROW_HEIGHT, 6.0 / rows))
    shared_axes = all(_have_equal_edges([pair[side] for pair in pairs]) for side in (0, 1))
    row_height = height + (0.1 if shared_axes else 0.3)
    with style_context():
        label_width = max_text_width(labels, LABEL_WIDTH / blocks) + 0.14
        block_width = (WIDTH - 2 * MARGIN) / blocks
        width = (block_width - label_width - 0.16) / 2
        body = HEADING_HEIGHT + (rows - 1) * row_height + height + AXIS_HEIGHT
        caption = join_sentences([_caption(pairs), distribution_takeaway(pairs, labels)])
        page = FigurePage(title, caption, body, labels=labels)
        names = fit_labels(labels, LABEL_WIDTH / blocks, lines=2)
        for index, (pair, name) in enumerate(zip(pairs, names, strict=True)):
            block, row = divmod(index, rows)
            left, top = MARGIN + block * block_width + label_width, HEADING_HEIGHT + row * row_height
            page.text(left - 0.08, top + height / 2, name, ha="right", va="center")
            is_last = row == rows - 1 or index == len(pairs) - 1
            for side, distribution in enumerate(pair):
                axes = page.axes(left + side * (width + 0.12), top, width, height)
                _draw_histogram(axes, distribution)
                axes.locator_params(axis="x", nbins=max(2, int(width / 0.5)))
                axes.tick_params(labelbottom=is_last or not shared_axes, labelsize=6.0)
                if row == 0:
                    heading = ("$w_i$", "$w_f$")[side]
                    axes.set_title(heading, fontsize=PANEL_SIZE, pad=3, loc="left", color=INK)
        _add_legend(page)
    return RenderedFigure(page.figure, page.caption, _data_rows(pairs, labels))


def _have_equal_edges(distributions: Sequence[Distribution]) -> bool:
    return all(np.array_equal(distributions[0].edges, other.edges) for other in distributions)


def _draw_histogram(axes: Axes, distribution: Distribution) -> None:
    edges = distribution.edges
    widths = np.diff(edges)
    before, after = (
        counts / max(1, int(counts.sum())) / widths for counts in (distribution.before, distribution.after)
    )
    axes.stairs(before, edges, fill=True, color="#c9c9c9")
    axes.stairs(after, edges, color=BLUE, linewidth=0.9)
    # A single bin, such as weights of dead pixels that never moved, may be a hundred times higher than the others.
    top = max(np.quantile(before, 0.98), np.quantile(after, 0.98)) * 1.6
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, min(top, max(before.max(), after.max()) * 1.08) or 1)
    axes.set_yticks([])


def _add_legend(page: FigurePage) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color="#c9c9c9"), Line2D([], [], color=BLUE)]
    page.figure.legend(
        handles,
        ["alive before the mask", "kept by it"],
        loc="upper right",
        bbox_to_anchor=page.to_figure(WIDTH - MARGIN, 0.0),
        ncols=2,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
    )


def _caption(pairs: Pairs) -> str:
    distributions = [distribution for pair in pairs for distribution in pair]
    outside = sum(distribution.outside for distribution in distributions)
    values = outside + sum(int(distribution.before.sum()) for distribution in distributions)
    return (
        "Weights before (left) and after (right) the training run whose weights the criterion scored: all weights "
        "alive before the mask, and those that it keeps; each histogram has area 1. "
        f"{outside:,} of {values:,} values lie outside the axes; a peak far above the rest is cut off (the numbers are "
        "in the CSV)."
    )


def _data_rows(pairs: Pairs, labels: Sequence[str]) -> list[Row]:
    return [
        {"panel": label, "weight": name, "from": float(low), "to": float(high), "alive": int(b), "kept": int(a)}
        for label, pair in zip(labels, pairs, strict=True)
        for name, part in zip(("w_i", "w_f"), pair, strict=True)
        for low, high, b, a in zip(part.edges, part.edges[1:], part.before, part.after, strict=False)
    ]
