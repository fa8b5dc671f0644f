"""Legend below the panels of a figure: one entry per label, in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supermask.reporting.figures.accuracy import MARKER
from supermask.reporting.figures.layout import FigurePage, fit_labels, set_legend_labels
from supermask.reporting.figures.style import LineStyle

LINE_HEIGHT, COLUMN_WIDTH, FONT_SIZE = 0.14, 1.6, 6.2
"""Inches of a line and a column; points."""


def legend_columns(width: float) -> int:
    """Return the number of columns that fit into `width` inches."""
    return max(1, int(width / COLUMN_WIDTH))


def legend_height(labels: Sequence[str], width: float) -> float:
    """Return the height of the legend in inches."""
    return LINE_HEIGHT * -(-len(labels) // legend_columns(width)) + 0.08


def add_legend_below(page: FigurePage, labels: Sequence[str], styles: Mapping[str, LineStyle], top: float) -> None:
    """Add the legend with its upper edge at `top` inches; labels that are too long lose their middle."""
    from matplotlib.lines import Line2D

    handles = []
    for label in labels:
        line: dict[str, Any] = MARKER | {"linestyle": styles[label].line, "linewidth": 1.0}
        handles.append(Line2D([], [], color=styles[label].color, marker=styles[label].marker, **line))
    legend = page.figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper center",
        bbox_to_anchor=page.to_figure(page.width / 2, top),
        ncols=legend_columns(page.width),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.6,
        columnspacing=1.0,
        labelspacing=0.3,
        fontsize=FONT_SIZE * page.scale,
    )
    set_legend_labels(legend, fit_labels(labels, COLUMN_WIDTH - 0.35, size=FONT_SIZE))
