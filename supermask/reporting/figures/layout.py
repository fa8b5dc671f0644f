"""A page for a grid of panels: title above, caption below, and everything between placed in inches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from supermask.reporting.figures.caption import wrap_to_width
from supermask.reporting.figures.save import DPI
from supermask.reporting.figures.style import INK, WIDTH, TextMeasure, make_text_measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN, TITLE_SIZE, CAPTION_SIZE, PANEL_SIZE = 0.08, 8.5, 6.6, 7.0
"""Outer margin in inches; sizes of text in points."""

FRAME: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 0.5}


@lru_cache(maxsize=1)
def text_measure() -> TextMeasure:
    """(text, size in points) -> width in inches, for what has to be known before a page is laid out."""
    return make_text_measure(_empty_figure())


def _empty_figure() -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.0), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def max_text_width(labels: Sequence[str], most: float, size: float = PANEL_SIZE) -> float:
    """Inches that the labels need side by side with a panel, at most `most`."""
    return min(most, max((text_measure()(label, size) for label in labels), default=0.0))


def fit_text(text: str, width: float, lines: int = 1, size: float = PANEL_SIZE) -> str:
    """The text in lines no wider than `width` inches; what does not fit on so many ends in `...`."""
    most = 1 + int(lines * width * 72 / (0.2 * size))
    if len(text) > most:  # of letters this narrow there would be room for no more: nothing longer has to be measured
        text = text[:most] + " ..."
    broken = wrap_to_width(text, width, lambda part: text_measure()(part, size))
    if len(broken) <= lines:
        return "\n".join(broken)
    last = " ".join(broken[lines - 1 :])
    while last and text_measure()(last + " ...", size) > width:
        last = last[:-1]
    return "\n".join([*broken[: lines - 1], last + " ..."])


def panel_titles(labels: Sequence[str], width: float) -> tuple[list[str], float]:
    """(names of panels in up to three lines of `width` inches, inches that the longest is higher than one line)."""
    texts = [fit_text(label, width, lines=3) for label in labels]
    return texts, 0.12 * max(text.count("\n") for text in texts)


class FigurePage:
    """A figure of `WIDTH` inches whose body, between title and caption, is `body` inches high.

    Positions are inches from the body's upper left corner.
    """

    def __init__(self, title: str, caption: str, body: float) -> None:
        self.figure = _empty_figure()
        room = WIDTH - 2 * MARGIN
        heading = wrap_to_width(title, room, lambda part: text_measure()(part, TITLE_SIZE, bold=True))
        lines = wrap_to_width(caption, room, lambda part: text_measure()(part, CAPTION_SIZE))
        self._top = 0.14 + 0.145 * len(heading)
        below = 0.10 + len(lines) * CAPTION_SIZE * 1.3 / 72
        self.height = self._top + body + below
        self.figure.set_size_inches(WIDTH, self.height)
        place: dict[str, Any] = {"parse_math": False, "va": "top", "color": INK}
        left = MARGIN / WIDTH
        bold: dict[str, Any] = {"fontsize": TITLE_SIZE, "fontweight": "bold", **place}
        self.figure.text(left, 1 - 0.09 / self.height, "\n".join(heading), **bold)
        self.caption = caption
        small: dict[str, Any] = {"fontsize": CAPTION_SIZE, "linespacing": 1.3, **place}
        self.figure.text(left, below / self.height, "\n".join(lines), **small)

    def axes(self, left: float, top: float, width: float, height: float, grid: bool = False) -> Axes:
        """Axes of this size, in inches, with their upper left corner there; a thin frame around them."""
        y = self.height - self._top - top - height
        place = (left / WIDTH, y / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(place)
        axes.grid(grid)
        for spine in axes.spines.values():
            spine.set(visible=True, **FRAME)
        return axes

    def at(self, left: float, top: float) -> tuple[float, float]:
        """A position as matplotlib takes it, in shares of the figure."""
        return left / WIDTH, (self.height - self._top - top) / self.height

    def text(self, left: float, top: float, text: str, size: float = PANEL_SIZE, **how: Any) -> None:
        """Shown literally, its upper left corner there unless `how` says else."""
        style: dict[str, Any] = {"fontsize": size, "va": "top", "color": INK, "parse_math": False, **how}
        self.figure.text(*self.at(left, top), text, **style)


def colour_bar(page: FigurePage, left: float, top: float, height: float, colours: Any, low: float, high: float) -> Axes:
    """What the colours between `low` and `high` mean, as an upright bar with its ticks to the right."""
    import numpy as np

    bar = page.axes(left, top, 0.11, height)
    bar.imshow(np.linspace(1, 0, 256)[:, None], cmap=colours, aspect="auto", extent=(0, 1, low, high))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    return bar


def num_columns(panels: int, most: int) -> int:
    """How many panels side by side: all in one row where there are `most` or fewer, else rows as even as can be."""
    return math.ceil(panels / math.ceil(panels / most))
