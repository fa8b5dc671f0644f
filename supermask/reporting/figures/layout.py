"""Page layout of figures: title above, caption below, and panels placed in inches between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from supermask.reporting.figures.caption import wrap_to_width
from supermask.reporting.figures.labels import distinct_labels, escape_missing_glyphs, glyph_note, shorten_middle
from supermask.reporting.figures.save import DPI
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    INK,
    WIDTH,
    FigureOptions,
    TextMeasure,
    make_text_measure,
    scale_artists,
    style_context,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

MARGIN, TITLE_SIZE, CAPTION_SIZE, PANEL_SIZE = 0.08, 8.5, 6.6, 7.0
"""Outer margin in inches; font sizes in points."""

FRAME: dict[str, Any] = {"color": "#9a9a9a", "linewidth": 0.5}
"""Thin frame around a panel."""


@lru_cache(maxsize=1)
def text_measure() -> TextMeasure:
    """Return a text measure for use before a page exists."""
    return make_text_measure(empty_figure())


def empty_figure() -> Figure:
    """Return a figure without content."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 4.0), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def max_text_width(labels: Sequence[str], most: float, size: float = PANEL_SIZE) -> float:
    """Return the width of the widest label in inches, at most `most`."""
    return min(most, max((text_measure()(escape_missing_glyphs(label), size) for label in labels), default=0.0))


def fit_text(text: str, width: float, lines: int = 1, size: float = PANEL_SIZE, suffix: str = "") -> str:
    """Wrap text and suffix into at most `lines` lines of `width` inches; text that does not fit loses its middle."""

    def wrap(part: str) -> list[str]:
        return wrap_to_width(part + suffix, width, lambda line: text_measure()(line, size))

    # No letter is narrower than a fifth of the font size, so longer text cannot fit and need not be measured.
    max_letters = 1 + int(lines * width * 72 / (0.2 * size))

    def fits(part: str) -> bool:
        return len(part) <= max_letters and len(wrap(part)) <= lines

    return "\n".join(wrap(shorten_middle(escape_missing_glyphs(text), fits)))


def fit_labels(
    labels: Sequence[str], width: float, lines: int = 1, size: float = PANEL_SIZE, suffixes: Mapping[str, str] = {}
) -> list[str]:
    """Fit labels as `fit_text` does; labels that would look alike are numbered. `suffixes`: label -> text after it."""
    return distinct_labels(
        labels, lambda label, number: fit_text(label, width, lines, size, number + suffixes.get(label, ""))
    )


def panel_titles(labels: Sequence[str], width: float) -> tuple[list[str], float]:
    """Return panel names in up to three lines of `width` inches, and the extra height of the tallest in inches."""
    texts = fit_labels(labels, width, lines=3)
    return texts, 0.12 * max(text.count("\n") for text in texts)


class FigurePage:
    """A figure with a title, a body `body` inches high and a caption.

    Positions are in inches at scale 1, from the upper left corner of the body; the page is `options.layout_width` wide.
    `labels` are the names that the body shows: the caption gets a note if the font lacks one of their characters.
    """

    def __init__(
        self,
        title: str,
        caption: str,
        body: float,
        options: FigureOptions = DEFAULT_OPTIONS,
        labels: Iterable[str] = (),
    ) -> None:
        self.figure = empty_figure()
        self._options = options
        self.scale, self.width = options.scale, options.layout_width
        self.caption = f"{caption} {glyph_note([title, caption, *labels])}".strip()
        text_width = self.width - 2 * MARGIN
        title_lines, caption_lines = [], []
        if options.title:
            text = escape_missing_glyphs(title)
            title_lines = wrap_to_width(text, text_width, lambda part: text_measure()(part, TITLE_SIZE, bold=True))
        if options.caption:
            text = escape_missing_glyphs(self.caption)
            caption_lines = wrap_to_width(text, text_width, lambda part: text_measure()(part, CAPTION_SIZE))
        self._top = 0.14 + 0.145 * len(title_lines)
        caption_height = 0.10 + len(caption_lines) * CAPTION_SIZE * 1.3 / 72
        self.height = self._top + body + caption_height
        self.figure.set_size_inches(self.width * self.scale, self.height * self.scale)
        common: dict[str, Any] = {"parse_math": False, "va": "top", "color": INK}
        left = MARGIN / self.width
        bold: dict[str, Any] = {"fontsize": TITLE_SIZE * self.scale, "fontweight": "bold", **common}
        small: dict[str, Any] = {"fontsize": CAPTION_SIZE * self.scale, "linespacing": 1.3, **common}
        if title_lines:
            self.figure.text(left, 1 - 0.09 / self.height, "\n".join(title_lines), **bold)
        if caption_lines:
            self.figure.text(left, caption_height / self.height, "\n".join(caption_lines), **small)

    def axes(self, left: float, top: float, width: float, height: float, grid: bool = False) -> Axes:
        """Add framed axes of this size, in inches, with their upper left corner at (left, top)."""
        axes = self.figure.add_axes(self.bounds(left, top, width, height))
        axes.grid(grid)
        for spine in axes.spines.values():
            spine.set(visible=True, **FRAME)
        return axes

    def bounds(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Convert a rectangle in inches to matplotlib's (left, bottom, width, height) in figure coordinates."""
        x, y = self.to_figure(left, top + height)
        return x, y, width / self.width, height / self.height

    def to_figure(self, left: float, top: float) -> tuple[float, float]:
        """Convert a position in inches to matplotlib's figure coordinates."""
        return left / self.width, (self.height - self._top - top) / self.height

    def text(self, left: float, top: float, text: str, size: float = PANEL_SIZE, **style: Any) -> None:
        """Add literal text with its upper left corner at (left, top), unless `style` sets another alignment."""
        defaults: dict[str, Any] = {"fontsize": size * self.scale, "va": "top", "color": INK, "parse_math": False}
        self.figure.text(*self.to_figure(left, top), _escape_lines(text), **(defaults | style))

    def finish(self) -> Figure:
        """Enlarge lines and markers by the style and return the figure; call this after everything is drawn."""
        if self.scale != 1:
            scale_artists(self.figure, self.scale)
            with style_context(self._options):
                # Ticks get their sizes from the context when they are created, which is when they are first drawn.
                self.figure.draw_without_rendering()
        return self.figure


def color_bar(page: FigurePage, left: float, top: float, height: float, colors: Any, low: float, high: float) -> Axes:
    """Add a vertical color bar from `low` to `high` with its ticks on the right."""
    import numpy as np

    bar = page.axes(left, top, 0.11, height)
    bar.imshow(np.linspace(1, 0, 256)[:, None], cmap=colors, aspect="auto", extent=(0, 1, low, high))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    return bar


def num_columns(panels: int, most: int) -> int:
    """Return the number of columns, at most `most`, that makes the rows of a grid as even as possible."""
    return math.ceil(panels / math.ceil(panels / most))


@dataclass(frozen=True)
class PanelSizes:
    """Sizes of a `PanelGrid` in inches."""

    left: float
    """The y axis with its label."""
    gap: float
    """Between panels side by side."""
    panel_height: float
    single_row_height: float
    """A panel if there is one row."""
    heading_height: float
    """A panel's name of one line."""
    axis_height: float
    """The x axis with its label."""
    max_columns: int
    """Panels side by side at most."""


class PanelGrid:
    """A page of equal panels in rows, each with its name above it; the panels share the labels of both axes."""

    def __init__(
        self, names: Sequence[str], sizes: PanelSizes, title: str, caption: str, options: FigureOptions
    ) -> None:
        columns = num_columns(len(names), sizes.max_columns)
        self._sizes, self._columns = sizes, columns
        self._width = (options.layout_width - sizes.left - 0.08 - sizes.gap * (columns - 1)) / columns
        self._names, extra_height = panel_titles(names, self._width)
        self._rows = -(-len(names) // columns)
        self._height = sizes.panel_height if self._rows > 1 else sizes.single_row_height
        self._heading = sizes.heading_height + extra_height
        body = self._rows * (self._heading + self._height)
        self.page = FigurePage(title, caption, body + sizes.axis_height, options, names)

    def panels(self) -> Iterator[Axes]:
        """Yield the axes of each panel to draw in; tick labels remain at the left and lower edges of the grid only."""
        for index, name in enumerate(self._names):
            row, column = divmod(index, self._columns)
            left = self._sizes.left + column * (self._width + self._sizes.gap)
            top = row * (self._heading + self._height) + self._heading
            axes = self.page.axes(left, top, self._width, self._height, grid=True)
            self.page.text(left, top - 0.04, name, va="bottom")
            yield axes
            axes.tick_params(labelleft=column == 0, labelbottom=index + self._columns >= len(self._names))

    def label_axes(self, x: str, y: str) -> None:
        """Write the labels that all panels share."""
        left, bottom = self._sizes.left, self._rows * (self._heading + self._height)
        self.page.text(left + (self.page.width - left) / 2, bottom + 0.2, x, 7.5, ha="center")
        self.page.text(0.08, (self._heading + bottom) / 2, y, 7.5, rotation=90, va="center")


def set_legend_labels(legend: Legend, labels: Iterable[str]) -> None:
    """Set the labels of a legend literally.

    Labels are set after the legend is built because matplotlib drops labels that begin with `_` and reads `$` as math.
    """
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_escape_lines(label))


def _escape_lines(text: str) -> str:
    return "\n".join(map(escape_missing_glyphs, text.split("\n")))
