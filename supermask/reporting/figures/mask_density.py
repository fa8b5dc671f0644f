"""Density of each layer: over the levels of chains, or mask by mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks.layers import Density
from supermask.analysis.masks.overlap import ALL_LAYERS
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.layout import (
    MARGIN,
    PANEL_SIZE,
    FigurePage,
    fit_text,
    max_text_width,
    num_columns,
    text_measure,
)
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import BLACK, DOTTED, FALLBACK_STYLES, WIDTH, LineStyle, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Densities = Mapping[str, Density]
"""Layer, or `ALL_LAYERS` -> density."""

LABEL_WIDTH, LEGEND, ROW, PANEL_HEIGHT = 2.4, 0.2, 0.2, 1.7
"""Inches: row labels at the most, the line of the legend, a row of dots, a panel of lines."""


def density_figure(found: Sequence[Densities], labels: Sequence[str], title: str) -> RenderedFigure:
    """Share of each layer that is kept, a row of dots a mask, one mark a layer; logarithmic.

    Source: paper.md section 8.
    """
    looks = _looks(found[0])
    with style_context():
        left = MARGIN + 0.08 + max_text_width(labels, LABEL_WIDTH)
        height = ROW * len(labels) + 0.1
        page = FigurePage(title, "Share of each layer's weights that the mask keeps.", LEGEND + height + 0.42)
        _legend(page, looks)
        axes = page.axes(left, LEGEND, WIDTH - left - MARGIN - 0.1, height, grid=True)
        for place, (layer, look) in enumerate(looks.items()):
            shares = [densities[layer].density * 100 for densities in found]
            rows = np.arange(len(shares), dtype=np.float64)
            if layer == ALL_LAYERS:
                axes.vlines(shares, rows - 0.36, rows + 0.36, color=look.colour, linewidth=1.0)
            else:
                # One below the other within a row: layers often have the same density.
                rows = rows + 0.6 * ((place + 0.5) / (len(looks) - 1) - 0.5)
                axes.plot(shares, rows, look.marker, color=look.colour, markersize=3.4, clip_on=False)
        _percent_axis(axes, found)
        axes.set_xlabel("Weights kept (%)")
        axes.set_ylim(len(labels) - 0.3, -0.7)
        axes.set_yticks([])
        for place, label in enumerate(labels):
            middle = LEGEND + height * (place + 0.7) / (len(labels) + 0.4)
            page.text(left - 0.06, middle, fit_text(label, LABEL_WIDTH), ha="right", va="center_baseline")
    return RenderedFigure(page.figure, page.caption, _rows(found, labels))


def density_by_level_figure(chains: Mapping[str, Mapping[int, Densities]], title: str) -> RenderedFigure:
    """Share of each layer that is kept at the levels of each chain, one line a layer, one panel a chain; logarithmic.

    Chains with the same densities throughout share a panel. Source: paper.md section 8.
    """
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[list[str], Mapping[int, Densities]]] = []
    for label, levels in chains.items():
        same = next((names for names, shown in panels if shown == levels), None)
        if same is None:
            panels.append(([label], levels))
        else:
            same.append(label)
    looks = _looks(next(iter(panels[0][1].values())))
    caption = "Share of each layer's weights that the mask keeps, level by level." + "".join(
        f" {names[0]} stands for {len(names)} chains with the same densities: {', '.join(names)}."
        for names, _ in panels
        if len(names) > 1
    )
    columns = num_columns(len(panels), 3)
    step, room = PANEL_HEIGHT + 0.62, (WIDTH - 2 * MARGIN) / columns
    with style_context():
        page = FigurePage(title, caption, LEGEND + step * -(-len(panels) // columns))
        _legend(page, looks)
        for place, (names, levels) in enumerate(panels):
            left, top = MARGIN + 0.42 + place % columns * room, LEGEND + 0.2 + place // columns * step
            axes = page.axes(left, top, min(room - 0.52, 4.2), PANEL_HEIGHT, grid=True)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            page.text(left, top - 0.16, fit_text(names[0], room - 0.6 - text_measure()(more, PANEL_SIZE)) + more)
            for number, (layer, look) in enumerate(looks.items()):
                shares = [densities[layer].density * 100 for densities in levels.values()]
                # Layers often have the same density: each line is narrower than the one below it.
                line: dict[str, Any] = {
                    "linewidth": 3.2 * 0.7**number,
                    "markersize": 6.5 * 0.85**number,
                    "linestyle": look.line,
                }
                axes.plot(list(levels), shares, color=look.colour, marker=look.marker, **line)
            _percent_axis(axes, [*levels.values()], upright=True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("Level")
            if place % columns == 0:
                axes.set_ylabel("Weights kept (%)")
    every = [(f"{label}, level {level}", found) for label, levels in chains.items() for level, found in levels.items()]
    return RenderedFigure(
        page.figure, page.caption, _rows([found for _, found in every], [label for label, _ in every])
    )


def _looks(layers: Densities) -> dict[str, LineStyle]:
    names = [layer for layer in layers if layer != ALL_LAYERS]
    looks = {layer: FALLBACK_STYLES[place % len(FALLBACK_STYLES)] for place, layer in enumerate(names)}
    return looks | {ALL_LAYERS: LineStyle(BLACK, "|", DOTTED)}


def _legend(page: FigurePage, looks: Mapping[str, LineStyle]) -> None:
    """One line above the panels; in several columns where there are many layers the names are smaller."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=look.colour, marker=look.marker, linestyle="none") for look in looks.values()]
    legend = page.figure.legend(
        handles,
        [layer.removesuffix(".weight") for layer in looks],
        loc="upper left",
        bbox_to_anchor=page.at(MARGIN, 0.0),
        ncols=len(looks),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _percent_axis(axes: Axes, found: Sequence[Densities], upright: bool = False) -> None:
    """Logarithmic, from the smallest share that is there to 100%; an empty layer is at the edge."""
    shares = [density.density * 100 for densities in found for density in densities.values()]
    least = min((share for share in shares if share), default=1.0) / 1.3
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 2, 5, 10, 20, 50, 100) if least <= tick]
    axis, set_scale, set_limits = axes.xaxis, axes.set_xscale, axes.set_xlim
    if upright:
        axis, set_scale, set_limits = axes.yaxis, axes.set_yscale, axes.set_ylim  # type: ignore[assignment]
    set_scale("log")
    set_limits(least, 115)
    axis.set_ticks(ticks, [format_percent(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def _rows(found: Sequence[Densities], labels: Sequence[str]) -> list[Row]:
    return [
        {
            "specimen": label,
            "layer": layer.removesuffix(".weight"),
            "weights": density.weights,
            "kept": density.kept,
            "density": density.density,
        }
        for label, densities in zip(labels, found, strict=True)
        for layer, density in densities.items()
    ]
