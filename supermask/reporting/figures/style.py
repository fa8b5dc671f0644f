"""Style of all figures: sizes for a two-column paper; a color, marker and line style per treatment; text widths.

The colors are from the color-blind-safe palettes of Okabe and Ito and of Tol. Markers and line styles differ as well,
so figures are readable in grayscale. The color of a label depends on the label alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from supermask.core.errors import UserError, quote

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

WIDTH = 6.9
"""Default width of a figure in inches: the text width of a two-column paper."""

MIN_LAYOUT_WIDTH, MAX_WIDTH = 4.5, 40.0
"""Inches: narrower figures have no space for their labels, wider ones are no figures."""

AxisScale = Literal["auto", "linear", "log", "log-error"]
FigureStyle = Literal["paper", "slides"]

STYLE_SCALES: dict[str, float] = {"paper": 1.0, "slides": 1.6}
"""Style -> factor of fonts, lines and markers."""


@dataclass(frozen=True)
class FigureOptions:
    """Options of a figure. Numbers, captions and data rows do not depend on them."""

    width: float = WIDTH
    """Width of the file in inches."""
    title: bool = True
    """Draw the title."""
    caption: bool = True
    """Draw the caption; `RenderedFigure.caption` has it in any case."""
    axis: AxisScale = "auto"
    """Scale of the axis of accuracies, errors or iterations; each figure chooses if it is `auto`."""
    style: FigureStyle = "paper"
    """`slides`: larger fonts, lines and markers."""

    def __post_init__(self) -> None:
        for name, allowed in (("axis", get_args(AxisScale)), ("style", get_args(FigureStyle))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}: {getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}.")
        minimum = MIN_LAYOUT_WIDTH * self.scale
        if not minimum <= self.width <= MAX_WIDTH:
            raise UserError(
                f"width: {self.width:g} inches is not possible; a figure in the style {self.style} is "
                f"{minimum:g} to {MAX_WIDTH:g} inches wide."
            )

    @property
    def scale(self) -> float:
        """Factor of fonts, lines and markers."""
        return STYLE_SCALES[self.style]

    @property
    def layout_width(self) -> float:
        """Width at scale 1 in inches: figures are laid out at this width and enlarged by `scale`."""
        return self.width / self.scale


DEFAULT_OPTIONS = FigureOptions()

UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
"""Unit -> inches. `pt` is TeX's point, the unit of `\\the\\textwidth`."""


def parse_width(text: str) -> float:
    """Return inches of a length such as `5.5in`, `14cm` or `397pt`; a number alone is in inches. Raises UserError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)\s*", text)
    unit = (found.group(2) or "in") if found else ""
    if not found or unit not in UNITS:
        raise UserError(
            f"width: {quote(text)} is not a length; give a number and one of {', '.join(UNITS)}, as in 5.5in."
        )
    return float(found.group(1)) * UNITS[unit]


# Any: matplotlib types its settings by name, and the names differ between releases.
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 6.8,
    "ytick.labelsize": 6.8,
    "legend.fontsize": 6.8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "pdf.fonttype": 42,
    "svg.hashsalt": "supermask",
    "text.usetex": False,
}

INK = "#222222"
GRAY = "#777777"

SEQUENTIAL_COLORS = ("#ffffff", "#d3e3f1", "#8fb8da", "#4a86bd", "#1c5796", "#0a2f5e")
"""From low to high: white to dark blue. Each step is darker, so the scale is readable in grayscale."""

PRUNED_KEPT_COLORS = ("#f7b84b", "#d9a878", "#9c8f9a", "#5a6c9e", "#0b3c7a")
"""From pruned to kept: light orange to dark blue. Each step is darker."""

DIVERGING_COLORS = ("#9c3a00", "#d9772f", "#f4c9a3", "#ffffff", "#b5d3ea", "#4a93c9", "#0b4f8a")
"""From negative to positive: vermilion, white, blue; color-blind safe. In grayscale both ends are dark."""

Line = str | tuple[int, tuple[float, ...]]


class LineStyle(NamedTuple):
    """Color, marker and line style of a treatment; `line` is a matplotlib line style."""

    color: str
    marker: str
    line: Line


BLACK, BLUE, SKY, GREEN, ORANGE, VERMILION, PINK, OLIVE, WINE, INDIGO = (
    "#000000",
    "#0072B2",
    "#3FA7DB",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#CC79A7",
    "#8C8C21",
    "#882255",
    "#332288",
)
SOLID, DASHED, DOTTED, MIXED = "-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.4, 1.2, 1.4))

STYLES: dict[str, LineStyle] = {
    # Criteria: opposites share a color; the one expected to do well is solid.
    "large_final": LineStyle(BLUE, "o", SOLID),
    "small_final": LineStyle(BLUE, "o", DASHED),
    "large_init": LineStyle(ORANGE, "^", SOLID),
    "small_init": LineStyle(ORANGE, "^", DASHED),
    "large_init_large_final": LineStyle(GREEN, "s", SOLID),
    "small_init_small_final": LineStyle(GREEN, "s", DASHED),
    "magnitude_increase": LineStyle(VERMILION, "D", SOLID),
    "movement": LineStyle(PINK, "v", SOLID),
    "random": LineStyle(GRAY, "X", MIXED),
    "large_final_same_sign": LineStyle(INDIGO, "P", SOLID),
    "large_final_diff_sign": LineStyle(INDIGO, "P", DASHED),
    "magnitude_increase_same_sign": LineStyle(WINE, "p", SOLID),
    "magnitude_increase_diff_sign": LineStyle(WINE, "p", DASHED),
    "magnitude_increase_same_sign_literal": LineStyle(WINE, "p", DOTTED),
    "snip": LineStyle(SKY, "<", SOLID),
    "grad": LineStyle(OLIVE, ">", SOLID),
    # Mask-1 actions: solid where the weights keep their signs, dashed where they do not.
    "rewind": LineStyle(BLUE, "o", SOLID),
    "signed_reinit": LineStyle(ORANGE, "^", SOLID),
    "reinit": LineStyle(ORANGE, "^", DASHED),
    "signed_reshuffle": LineStyle(GREEN, "s", SOLID),
    "reshuffle": LineStyle(GREEN, "s", DASHED),
    "signed_constant": LineStyle(VERMILION, "D", SOLID),
    "constant": LineStyle(VERMILION, "D", DASHED),
    "signed_bimodal_reinit": LineStyle(PINK, "v", SOLID),
    "bimodal_reinit": LineStyle(PINK, "v", DASHED),
    # Mask-0 actions: controls are dashed.
    "zero": LineStyle(BLUE, "o", SOLID),
    "freeze_init": LineStyle(ORANGE, "^", SOLID),
    "freeze_final": LineStyle(PINK, "v", SOLID),
    "freeze_reinit": LineStyle(PINK, "v", DASHED),
    "zero_if_shrunk": LineStyle(GREEN, "s", SOLID),
    "zero_if_shrunk_everywhere": LineStyle(VERMILION, "D", SOLID),
    "zero_random": LineStyle(GRAY, "X", MIXED),
    "zero_if_grown": LineStyle(GREEN, "s", DASHED),
    "dense": LineStyle(INK, "o", DOTTED),
    "trained weights": LineStyle(INK, "o", DOTTED),
    # Supermasks, by their names in the shipped studies: solid on w_i, dashed on signed constants.
    "heuristic, w_i": LineStyle(ORANGE, "^", SOLID),
    "heuristic, signed constant": LineStyle(ORANGE, "^", DASHED),
    "learned, w_i": LineStyle(BLUE, "o", SOLID),
    "learned, signed constant": LineStyle(BLUE, "o", DASHED),
    "DWR, w_i": LineStyle(GREEN, "s", SOLID),
    "DWR, signed constant": LineStyle(GREEN, "s", DASHED),
    "rounded, w_i": LineStyle(PINK, "v", SOLID),
    "learned, start logit -1": LineStyle(SKY, "<", SOLID),
    "learned, start logit 1": LineStyle(SKY, ">", DOTTED),
    "learned, Adam": LineStyle(OLIVE, "P", SOLID),
    "learned, signed constant x 2": LineStyle(WINE, "p", DASHED),
    "edge-popup, signed constant": LineStyle(INDIGO, "X", DASHED),
    "signed supermask, w_i": LineStyle(VERMILION, "D", SOLID),
    "started from large_final": LineStyle(ORANGE, "^", SOLID),
    "started from its ranks": LineStyle(WINE, "p", SOLID),
    "learned, trained on": LineStyle(VERMILION, "D", SOLID),
    "DWR, w_i, trained on": LineStyle(GREEN, "s", SOLID),
    "heuristic on signed constants, trained on": LineStyle(ORANGE, ">", DASHED),
    # Snapshots of the trajectory: the final weights are solid.
    "large_final, lowest validation loss": LineStyle(BLUE, "^", DASHED),
    "magnitude_increase, lowest validation loss": LineStyle(VERMILION, "s", DASHED),
}
"""Styles of the paper's criteria and actions and of the shipped studies' treatments: the same in every figure."""

DEFAULT_ACTIONS = frozenset({"large_final", "rewind", "zero"})
"""The paper's defaults: next to a non-default criterion or action they do not decide the style of a label."""

LINES: tuple[Line, ...] = (SOLID, DASHED, DOTTED, MIXED)
COLOR_MARKERS = (
    (BLUE, "o"),
    (VERMILION, "D"),
    (GREEN, "s"),
    (ORANGE, "^"),
    (PINK, "v"),
    (INDIGO, "P"),
    (SKY, "<"),
    (OLIVE, ">"),
    (WINE, "p"),
    (GRAY, "X"),
)
MARKERS = tuple(marker for _, marker in COLOR_MARKERS)
FALLBACK_STYLES: tuple[LineStyle, ...] = tuple(
    LineStyle(color, MARKERS[(color_index + 3 * line_index) % len(COLOR_MARKERS)], line)
    for line_index, line in enumerate(LINES)
    for color_index, (color, _) in enumerate(COLOR_MARKERS)
)
"""Styles for all other labels. Where a color repeats, its line style and marker differ."""


def style_for(label: str) -> LineStyle:
    """Return the preferred style of a label: by the criteria and actions that it names, else by a hash of it.

    Of several names (`random + signed_constant + zero`) the first that is not the paper's default decides color and
    line, the second one the marker.
    """
    if label in STYLES:
        return STYLES[label]
    names = [name for name in re.findall(r"[a-z0-9_]+", label) if name in STYLES]
    styles = [STYLES[name] for name in names if name not in DEFAULT_ACTIONS] or [STYLES[name] for name in names[:1]]
    if styles:
        return LineStyle(styles[0].color, styles[min(1, len(styles) - 1)].marker, styles[0].line)
    return FALLBACK_STYLES[_label_hash(label) % len(FALLBACK_STYLES)]


def assign_styles(labels: Sequence[str]) -> dict[str, LineStyle]:
    """Return label -> style: `style_for(label)`, or the same color with another line and marker if that is taken.

    Styles are distinct unless more than 40 labels share one color. The order of the labels does not matter.
    """
    taken: set[LineStyle] = set()
    styles: dict[str, LineStyle] = {}
    # Labels with a style of their own choose first; the sort makes the result independent of the order of the labels.
    for label in sorted(labels, key=lambda name: (name not in STYLES, len(name), name)):
        free = (style for style in _variants(label) if style not in taken)
        styles[label] = next(free, style_for(label))
        taken.add(styles[label])
    return {label: styles[label] for label in labels}


def _variants(label: str) -> Iterator[LineStyle]:
    """Yield all styles of the label's color, its preferred one first, the others in an order set by its hash."""
    preferred, offset = style_for(label), _label_hash(label)
    yield preferred
    lines = [line for line in LINES if line != preferred.line]
    # 3 lines and 10 markers have no common factor, so this visits every (marker, line) pair once.
    for index in range(offset, offset + len(lines) * len(MARKERS)):
        yield LineStyle(preferred.color, MARKERS[index % len(MARKERS)], lines[index % len(lines)])
    yield from (LineStyle(preferred.color, marker, preferred.line) for marker in MARKERS)


def _label_hash(label: str) -> int:
    # Not hash(): that differs between processes, and figures must be reproducible.
    return zlib.crc32(label.encode("utf-8", "replace"))


SCALED = ("font.size", "axes.labelsize", "labelsize", "fontsize", "major.size", "grid.linewidth", "major.width")
"""Ends of the parameters in points that grow with the style; `scale_artists` enlarges lines and markers."""


@contextmanager
def style_context(options: FigureOptions = DEFAULT_OPTIONS) -> Iterator[None]:
    """Set matplotlib's parameters to `RC`, enlarged by the style, while a figure is drawn or saved."""
    import matplotlib

    scaled = {name: RC[name] * options.scale for name in RC if name.endswith(SCALED)}
    pads = {f"{axis}tick.major.pad": 3.5 * options.scale for axis in "xy"}
    with matplotlib.rc_context(RC | scaled | pads):
        yield


def scale_artists(figure: Figure, scale: float) -> None:
    """Enlarge lines, markers and edges of a figure, whose sizes are in points; fonts and ticks come from the context.

    Positions are shares of the figure and need no change.
    """
    if scale == 1:
        return
    import numpy as np

    lines = [line for axes in figure.axes for line in axes.lines]
    lines += [handle for legend in figure.legends for handle in legend.get_lines()]
    for line in lines:
        line.set_linewidth(line.get_linewidth() * scale)
        line.set_markersize(line.get_markersize() * scale)
        line.set_markeredgewidth(line.get_markeredgewidth() * scale)
    for axes in figure.axes:
        for collection in axes.collections:
            widths = np.atleast_1d(collection.get_linewidth()) * scale
            collection.set_linewidth([float(width) for width in widths])
        for patch in (*axes.patches, *axes.spines.values()):
            patch.set_linewidth(patch.get_linewidth() * scale)
        for text in axes.texts:
            text.set_fontsize(float(text.get_fontsize()) * scale)


def colormap(colors: Sequence[str]) -> LinearSegmentedColormap:
    """Return a colormap with these colors at equal distances, interpolated linearly."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("supermask", list(colors))


def thin_ticks(positions: Sequence[float], least: float) -> list[int]:
    """Return indices of sorted positions that are at least `least` apart, starting with the first."""
    kept: list[int] = []
    for index, position in enumerate(positions):
        if not kept or position - positions[kept[-1]] >= least:
            kept.append(index)
    return kept


class TextMeasure(Protocol):
    """Function (text, font size in points) -> width in inches."""

    def __call__(self, text: str, size: float, *, bold: bool = False) -> float:
        """Return the width of one line of text in inches."""


def make_text_measure(figure: Figure) -> TextMeasure:
    """Return a function that measures text as the figure draws it: literally, without math."""
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]

    # Measuring takes 1 to 2 ms, and figures repeat their labels.
    @lru_cache(maxsize=4096)
    def width(text: str, size: float, *, bold: bool = False) -> float:
        font = FontProperties(size=size, weight="bold" if bold else "normal")
        return float(renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / figure.dpi

    return width
