"""Figures of the density of each layer: over the levels of chains, or mask by mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.analysis.masks.layers import Density
from supermask.analysis.masks.overlap import ALL_LAYERS
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.layout import (
    MARGIN,
    FigurePage,
    fit_labels,
    max_text_width,
    num_columns,
    set_legend_labels,
    text_measure,
)
from supermask.reporting.figures.mask_takeaways import density_takeaway
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import BLACK, DOTTED, FALLBACK_STYLES, WIDTH, LineStyle, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Densities = Mapping[str, Density]
"""Layer name or `ALL_LAYERS` -> density."""

LABEL_WIDTH, LEGEND_HEIGHT, LEGEND_LINE, ROW_HEIGHT, PANEL_HEIGHT = 2.4, 0.2, 0.145, 0.2, 1.7
"""Inches: a row label or a name in the legend at most, a legend of one line, a further line, a row of dots,
a panel of lines."""

LEGEND_SIZE = 6.8
"""Points."""

ALL_WEIGHTS_NOTE = "Share of each layer's weights that the mask keeps"


def density_figure(masks: Sequence[Densities], labels: Sequence[str], title: str) -> RenderedFigure:
    """Draw the share of weights kept in each layer: one row per mask, one mark per layer, on a logarithmic axis.

    Source: Zhou et al. 2019, Sec. 2.
    """
    styles = _layer_styles(masks)
    legend_columns, legend_height = _legend_layout(styles)
    with style_context():
        left = MARGIN + 0.08 + max_text_width(labels, LABEL_WIDTH)
        height = ROW_HEIGHT * len(labels) + 0.1
        caption = f"{ALL_WEIGHTS_NOTE}. {density_takeaway(masks, labels)}"
        page = FigurePage(title, caption, legend_height + height + 0.42, labels=labels)
        _add_legend(page, styles, legend_columns)
        axes = page.axes(left, legend_height, WIDTH - left - MARGIN - 0.1, height, grid=True)
        for index, (layer, style) in enumerate(styles.items()):
            # Masks of several networks: a layer has marks in the rows of those that have it.
            rows = np.array([row for row, densities in enumerate(masks) if layer in densities], dtype=np.float64)
            percents = [densities[layer].density * 100 for densities in masks if layer in densities]
            if layer == ALL_LAYERS:
                axes.vlines(percents, rows - 0.36, rows + 0.36, color=style.color, linewidth=1.0)
            else:
                # Layers often have the same density, so their marks are spread over the height of the row.
                rows = rows + 0.6 * ((index + 0.5) / (len(styles) - 1) - 0.5)
                axes.plot(percents, rows, style.marker, color=style.color, markersize=3.4, clip_on=False)
        _set_percent_axis(axes, masks)
        axes.set_xlabel("Weights kept (%)")
        axes.set_ylim(len(labels) - 0.3, -0.7)
        axes.set_yticks([])
        for row, name in enumerate(fit_labels(labels, LABEL_WIDTH)):
            middle = legend_height + height * (row + 0.7) / (len(labels) + 0.4)
            page.text(left - 0.06, middle, name, ha="right", va="center_baseline")
    return RenderedFigure(page.figure, page.caption, _data_rows(masks, labels))


def density_by_level_figure(chains: Mapping[str, Mapping[int, Densities]], title: str) -> RenderedFigure:
    """Draw the share of weights kept in each layer at every level: one panel per chain, one line per layer.

    `chains`: label -> level -> densities. The axis is logarithmic. Chains with equal densities share a panel.
    Source: Zhou et al. 2019, Sec. 2.
    """
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[list[str], Mapping[int, Densities]]] = []
    for label, levels in chains.items():
        equal = next((names for names, panel_levels in panels if panel_levels == levels), None)
        if equal is None:
            panels.append(([label], levels))
        else:
            equal.append(label)
    styles = _layer_styles([densities for _, levels in panels for densities in levels.values()])
    legend_columns, legend_height = _legend_layout(styles)
    caption = f"{ALL_WEIGHTS_NOTE}, level by level." + "".join(
        f" {names[0]} stands for {len(names)} chains with the same densities: {', '.join(names)}."
        for names, _ in panels
        if len(names) > 1
    )
    last_levels = {f"{names[0]}, level {max(levels)}": levels[max(levels)] for names, levels in panels}
    caption += f" {density_takeaway(list(last_levels.values()), list(last_levels))}"
    columns = num_columns(len(panels), 3)
    row_height, column_width = PANEL_HEIGHT + 0.62, (WIDTH - 2 * MARGIN) / columns
    with style_context():
        page = FigurePage(title, caption, legend_height + row_height * -(-len(panels) // columns), labels=chains)
        _add_legend(page, styles, legend_columns)
        suffixes = {names[0]: f" and {len(names) - 1} more" for names, _ in panels if len(names) > 1}
        titles = fit_labels([names[0] for names, _ in panels], column_width - 0.6, suffixes=suffixes)
        for index, ((_, levels), panel_title) in enumerate(zip(panels, titles, strict=True)):
            row, column = divmod(index, columns)
            left, top = MARGIN + 0.42 + column * column_width, legend_height + 0.2 + row * row_height
            axes = page.axes(left, top, min(column_width - 0.52, 4.2), PANEL_HEIGHT, grid=True)
            page.text(left, top - 0.16, panel_title)
            for layer_index, (layer, style) in enumerate(styles.items()):
                if any(layer not in densities for densities in levels.values()):
                    continue  # A layer of another network.
                percents = [densities[layer].density * 100 for densities in levels.values()]
                # Layers often have the same density: each line is narrower than the one that it covers.
                line: dict[str, Any] = {
                    "linewidth": 3.2 * 0.7**layer_index,
                    "markersize": 6.5 * 0.85**layer_index,
                    "linestyle": style.line,
                }
                axes.plot(list(levels), percents, color=style.color, marker=style.marker, **line)
            _set_percent_axis(axes, [*levels.values()], vertical=True)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("Level")
            if column == 0:
                axes.set_ylabel("Weights kept (%)")
    masks = {f"{label}, level {level}": mask for label, levels in chains.items() for level, mask in levels.items()}
    return RenderedFigure(page.figure, page.caption, _data_rows(list(masks.values()), list(masks)))


def _layer_styles(masks: Sequence[Densities]) -> dict[str, LineStyle]:
    """Return layer -> style for the layers of all masks, which may be of several networks."""
    names = list(dict.fromkeys(layer for densities in masks for layer in densities if layer != ALL_LAYERS))
    styles = {layer: FALLBACK_STYLES[index % len(FALLBACK_STYLES)] for index, layer in enumerate(names)}
    return styles | {ALL_LAYERS: LineStyle(BLACK, "|", DOTTED)}


def _legend_layout(styles: Mapping[str, LineStyle]) -> tuple[int, float]:
    """Return the number of columns and the height in inches of the legend: one line if all names fit into it."""
    names = _legend_names(styles)
    widths = [text_measure()(name, LEGEND_SIZE) + 2.6 * LEGEND_SIZE / 72 for name in names]
    width = WIDTH - 2 * MARGIN
    columns = len(names) if sum(widths) <= width else max(1, int(width / max(widths)))
    return columns, LEGEND_HEIGHT + LEGEND_LINE * (-(-len(names) // columns) - 1)


def _legend_names(styles: Mapping[str, LineStyle]) -> list[str]:
    return fit_labels([layer.removesuffix(".weight") for layer in styles], LABEL_WIDTH, size=LEGEND_SIZE)


def _add_legend(page: FigurePage, styles: Mapping[str, LineStyle], columns: int) -> None:
    """Add a legend above the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=style.color, marker=style.marker, linestyle="none") for style in styles.values()]
    legend = page.figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper left",
        bbox_to_anchor=page.to_figure(MARGIN, 0.0),
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    set_legend_labels(legend, _legend_names(styles))


def _set_percent_axis(axes: Axes, masks: Sequence[Densities], vertical: bool = False) -> None:
    """Set a logarithmic axis from the smallest density above 0 to 100%; an empty layer lies at the edge."""
    percents = [density.density * 100 for densities in masks for density in densities.values()]
    low = min((percent for percent in percents if percent), default=1.0) / 1.3
    ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 2, 5, 10, 20, 50, 100) if low <= tick]
    axis, set_scale, set_limits = axes.xaxis, axes.set_xscale, axes.set_xlim
    if vertical:
        axis, set_scale, set_limits = axes.yaxis, axes.set_yscale, axes.set_ylim  # type: ignore[assignment]
    set_scale("log")
    set_limits(low, 115)
    axis.set_ticks(ticks, [format_percent(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def _data_rows(masks: Sequence[Densities], labels: Sequence[str]) -> list[Row]:
    return [
        {
            "mask": label,
            "layer": layer.removesuffix(".weight"),
            "weights": density.weights,
            "kept": density.kept,
            "density": density.density,
        }
        for label, densities in zip(labels, masks, strict=True)
        for layer, density in densities.items()
    ]
