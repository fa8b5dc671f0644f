"""How every figure looks: sizes for a two-column paper, and one colour, marker and line a treatment.

Colours are Okabe and Ito's and Tol's, told apart by colour-blind readers; marker and line style differ as well, so
that figures can be read in grey. A label's colour depends on nothing but the label.

How wide text is in a figure.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

WIDTH = 6.9
"""Inches: the text width of a two-column paper."""

# Any: matplotlib's type lists every setting by name, and differs between releases.
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
GREY = "#777777"

SEQUENTIAL_COLORS = ("#ffffff", "#d3e3f1", "#8fb8da", "#4a86bd", "#1c5796", "#0a2f5e")
"""From nothing to much: white to dark blue, darker at every step, so that it can be read in grey."""

PRUNED_KEPT_COLORS = ("#f7b84b", "#d9a878", "#9c8f9a", "#5a6c9e", "#0b3c7a")
"""From pruned to kept: light orange to dark blue, darker at every step."""

DIVERGING_COLORS = ("#9c3a00", "#d9772f", "#f4c9a3", "#ffffff", "#b5d3ea", "#4a93c9", "#0b4f8a")
"""From below 0 to above: vermilion, white, blue, which colour-blind readers tell apart. In grey both ends are dark."""


Line = str | tuple[int, tuple[float, ...]]


class LineStyle(NamedTuple):
    """A treatment's colour, marker and line style."""

    colour: str
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
    # criteria: opposites share a colour, the one expected to do well is solid
    "large_final": LineStyle(BLUE, "o", SOLID),
    "small_final": LineStyle(BLUE, "o", DASHED),
    "large_init": LineStyle(ORANGE, "^", SOLID),
    "small_init": LineStyle(ORANGE, "^", DASHED),
    "large_init_large_final": LineStyle(GREEN, "s", SOLID),
    "small_init_small_final": LineStyle(GREEN, "s", DASHED),
    "magnitude_increase": LineStyle(VERMILION, "D", SOLID),
    "movement": LineStyle(PINK, "v", SOLID),
    "random": LineStyle(GREY, "X", MIXED),
    "large_final_same_sign": LineStyle(INDIGO, "P", SOLID),
    "large_final_diff_sign": LineStyle(INDIGO, "P", DASHED),
    "magnitude_increase_same_sign": LineStyle(WINE, "p", SOLID),
    "magnitude_increase_diff_sign": LineStyle(WINE, "p", DASHED),
    "snip": LineStyle(SKY, "<", SOLID),
    "grad": LineStyle(OLIVE, ">", SOLID),
    # mask-1 actions: with the weights' own signs solid, without them dashed
    "rewind": LineStyle(BLUE, "o", SOLID),
    "signed_reinit": LineStyle(ORANGE, "^", SOLID),
    "reinit": LineStyle(ORANGE, "^", DASHED),
    "signed_reshuffle": LineStyle(GREEN, "s", SOLID),
    "reshuffle": LineStyle(GREEN, "s", DASHED),
    "signed_constant": LineStyle(VERMILION, "D", SOLID),
    "constant": LineStyle(VERMILION, "D", DASHED),
    "signed_bimodal_reinit": LineStyle(PINK, "v", SOLID),
    "bimodal_reinit": LineStyle(PINK, "v", DASHED),
    # mask-0 actions: controls dashed
    "zero": LineStyle(BLUE, "o", SOLID),
    "freeze_init": LineStyle(ORANGE, "^", SOLID),
    "freeze_final": LineStyle(PINK, "v", SOLID),
    "freeze_reinit": LineStyle(PINK, "v", DASHED),
    "zero_if_shrunk": LineStyle(GREEN, "s", SOLID),
    "zero_if_shrunk_everywhere": LineStyle(VERMILION, "D", SOLID),
    "zero_random": LineStyle(GREY, "X", MIXED),
    "zero_if_grown": LineStyle(GREEN, "s", DASHED),
    "dense": LineStyle(INK, "o", DOTTED),
    "trained weights": LineStyle(INK, "o", DOTTED),
    # supermasks, by their names in the shipped studies: on w_i solid, on signed constants dashed
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
    # points of the trajectory: the end solid
    "large_final, lowest validation loss": LineStyle(BLUE, "^", DASHED),
    "magnitude_increase, lowest validation loss": LineStyle(VERMILION, "s", DASHED),
}
"""The paper's criteria and actions, and the shipped studies' names: the same look in every figure."""

DEFAULT_ACTIONS = frozenset({"large_final", "rewind", "zero"})
"""The paper's defaults: beside another of its words they tell nothing."""

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
    (GREY, "X"),
)
MARKERS = tuple(marker for _, marker in COLOR_MARKERS)
FALLBACK_STYLES: tuple[LineStyle, ...] = tuple(
    LineStyle(colour, MARKERS[(place + 3 * turn) % len(COLOR_MARKERS)], line)
    for turn, line in enumerate(LINES)
    for place, (colour, _) in enumerate(COLOR_MARKERS)
)
"""For all other labels. Where a colour comes again, line and marker are others."""


def style_for(label: str) -> LineStyle:
    """The look that a label has wherever it is free: of the paper's words in it, else a choice by its letters.

    Of several words (`random + signed_constant + zero`) the first that is not the paper's default gives colour and
    line, the second the marker.
    """
    if label in STYLES:
        return STYLES[label]
    words = [word for word in re.findall(r"[a-z0-9_]+", label) if word in STYLES]
    telling = [STYLES[word] for word in words if word not in DEFAULT_ACTIONS] or [STYLES[word] for word in words[:1]]
    if telling:
        return LineStyle(telling[0].colour, telling[min(1, len(telling) - 1)].marker, telling[0].line)
    return FALLBACK_STYLES[_label_hash(label) % len(FALLBACK_STYLES)]


def assign_styles(labels: Sequence[str]) -> dict[str, LineStyle]:
    """Label -> look: `look_of` the label, whatever others there are, or where that is taken its colour with another
    line and marker. No look twice, unless more than 40 labels want one colour."""
    taken: set[LineStyle] = set()
    chosen: dict[str, LineStyle] = {}
    for label in sorted(labels, key=lambda each: (each not in STYLES, len(each), each)):
        free = (look for look in _variants(label) if look not in taken)
        chosen[label] = next(free, style_for(label))
        taken.add(chosen[label])
    return {label: chosen[label] for label in labels}


def _variants(label: str) -> Iterator[LineStyle]:
    """All looks of the label's colour, its own first; the others in an order that is the label's own."""
    own, first = style_for(label), _label_hash(label)
    yield own
    lines = [line for line in LINES if line != own.line]
    for turn in range(len(lines) * len(MARKERS)):
        yield LineStyle(own.colour, MARKERS[(first + turn) % len(MARKERS)], lines[(first + turn) % len(lines)])
    yield from (LineStyle(own.colour, marker, own.line) for marker in MARKERS)


def _label_hash(label: str) -> int:
    return zlib.crc32(label.encode("utf-8", "replace"))


@contextmanager
def style_context() -> Iterator[None]:
    """The house's style, while a figure is made or saved. What the font has no sign for is drawn as an empty box."""
    import matplotlib

    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def colormap(colours: Sequence[str]) -> LinearSegmentedColormap:
    """The colours in equal steps, mixed between."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("supermask", list(colours))


def thin_ticks(positions: Sequence[float], least: float) -> list[int]:
    """Indices of the sorted positions that stay when neighbours must be `least` apart; the first always stays."""
    kept: list[int] = []
    for index, position in enumerate(positions):
        if not kept or position - positions[kept[-1]] >= least:
            kept.append(index)
    return kept


class TextMeasure(Protocol):
    """(text, size in points) -> width in inches."""

    def __call__(self, text: str, size: float, *, bold: bool = False) -> float:
        """Of one line."""


def make_text_measure(figure: Figure) -> TextMeasure:
    """Measures text as the figure will show it, literally."""
    from matplotlib.font_manager import FontProperties

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]

    def width(text: str, size: float, *, bold: bool = False) -> float:
        font = FontProperties(size=size, weight="bold" if bold else "normal")
        return float(renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / figure.dpi

    return width
