"""How every figure looks: sizes for a two-column paper, and one colour, marker and line a treatment.

Colours are Okabe and Ito's and Tol's, told apart by colour-blind readers; marker and line style differ as well, so
that figures can be read in grey. A label's colour depends on nothing but the label.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.colors import LinearSegmentedColormap

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

AMOUNT = ("#ffffff", "#d3e3f1", "#8fb8da", "#4a86bd", "#1c5796", "#0a2f5e")
"""From nothing to much: white to dark blue, darker at every step, so that it can be read in grey."""

PRUNED_TO_KEPT = ("#f7b84b", "#d9a878", "#9c8f9a", "#5a6c9e", "#0b3c7a")
"""From pruned to kept: light orange to dark blue, darker at every step."""

WORSE_TO_BETTER = ("#9c3a00", "#d9772f", "#f4c9a3", "#ffffff", "#b5d3ea", "#4a93c9", "#0b4f8a")
"""From below 0 to above: vermilion, white, blue, which colour-blind readers tell apart. In grey both ends are dark."""


Line = str | tuple[int, tuple[float, ...]]


class Look(NamedTuple):
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

LOOKS: dict[str, Look] = {
    # criteria: opposites share a colour, the one expected to do well is solid
    "large_final": Look(BLUE, "o", SOLID),
    "small_final": Look(BLUE, "o", DASHED),
    "large_init": Look(ORANGE, "^", SOLID),
    "small_init": Look(ORANGE, "^", DASHED),
    "large_init_large_final": Look(GREEN, "s", SOLID),
    "small_init_small_final": Look(GREEN, "s", DASHED),
    "magnitude_increase": Look(VERMILION, "D", SOLID),
    "movement": Look(PINK, "v", SOLID),
    "random": Look(GREY, "X", MIXED),
    "large_final_same_sign": Look(INDIGO, "P", SOLID),
    "large_final_diff_sign": Look(INDIGO, "P", DASHED),
    "magnitude_increase_same_sign": Look(WINE, "p", SOLID),
    "magnitude_increase_diff_sign": Look(WINE, "p", DASHED),
    "snip": Look(SKY, "<", SOLID),
    "grad": Look(OLIVE, ">", SOLID),
    # mask-1 actions: with the weights' own signs solid, without them dashed
    "rewind": Look(BLUE, "o", SOLID),
    "signed_reinit": Look(ORANGE, "^", SOLID),
    "reinit": Look(ORANGE, "^", DASHED),
    "signed_reshuffle": Look(GREEN, "s", SOLID),
    "reshuffle": Look(GREEN, "s", DASHED),
    "signed_constant": Look(VERMILION, "D", SOLID),
    "constant": Look(VERMILION, "D", DASHED),
    "signed_bimodal_reinit": Look(PINK, "v", SOLID),
    "bimodal_reinit": Look(PINK, "v", DASHED),
    # mask-0 actions: controls dashed
    "zero": Look(BLUE, "o", SOLID),
    "freeze_init": Look(ORANGE, "^", SOLID),
    "freeze_final": Look(PINK, "v", SOLID),
    "freeze_reinit": Look(PINK, "v", DASHED),
    "zero_if_shrunk": Look(GREEN, "s", SOLID),
    "zero_if_shrunk_everywhere": Look(VERMILION, "D", SOLID),
    "zero_random": Look(GREY, "X", MIXED),
    "zero_if_grown": Look(GREEN, "s", DASHED),
    "dense": Look(INK, "o", DOTTED),
    "trained weights": Look(INK, "o", DOTTED),
    # supermasks, by their names in the shipped studies: on w_i solid, on signed constants dashed
    "heuristic, w_i": Look(ORANGE, "^", SOLID),
    "heuristic, signed constant": Look(ORANGE, "^", DASHED),
    "learned, w_i": Look(BLUE, "o", SOLID),
    "learned, signed constant": Look(BLUE, "o", DASHED),
    "DWR, w_i": Look(GREEN, "s", SOLID),
    "DWR, signed constant": Look(GREEN, "s", DASHED),
    "rounded, w_i": Look(PINK, "v", SOLID),
    "learned, start logit -1": Look(SKY, "<", SOLID),
    "learned, start logit 1": Look(SKY, ">", DOTTED),
    "learned, Adam": Look(OLIVE, "P", SOLID),
    "learned, signed constant x 2": Look(WINE, "p", DASHED),
    "edge-popup, signed constant": Look(INDIGO, "X", DASHED),
    "signed supermask, w_i": Look(VERMILION, "D", SOLID),
    "started from large_final": Look(ORANGE, "^", SOLID),
    "started from its ranks": Look(WINE, "p", SOLID),
    "learned, trained on": Look(VERMILION, "D", SOLID),
    "DWR, w_i, trained on": Look(GREEN, "s", SOLID),
    "heuristic on signed constants, trained on": Look(ORANGE, ">", DASHED),
    # points of the trajectory: the end solid
    "large_final, lowest validation loss": Look(BLUE, "^", DASHED),
    "magnitude_increase, lowest validation loss": Look(VERMILION, "s", DASHED),
}
"""The paper's criteria and actions, and the shipped studies' names: the same look in every figure."""

USUAL = frozenset({"large_final", "rewind", "zero"})
"""The paper's defaults: beside another of its words they tell nothing."""

LINES: tuple[Line, ...] = (SOLID, DASHED, DOTTED, MIXED)
PAIRS = (
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
MARKERS = tuple(marker for _, marker in PAIRS)
OTHERS: tuple[Look, ...] = tuple(
    Look(colour, MARKERS[(place + 3 * turn) % len(PAIRS)], line)
    for turn, line in enumerate(LINES)
    for place, (colour, _) in enumerate(PAIRS)
)
"""For all other labels. Where a colour comes again, line and marker are others."""


def look_of(label: str) -> Look:
    """The look that a label has wherever it is free: of the paper's words in it, else a choice by its letters.

    Of several words (`random + signed_constant + zero`) the first that is not the paper's default gives colour and
    line, the second the marker.
    """
    if label in LOOKS:
        return LOOKS[label]
    words = [word for word in re.findall(r"[a-z0-9_]+", label) if word in LOOKS]
    telling = [LOOKS[word] for word in words if word not in USUAL] or [LOOKS[word] for word in words[:1]]
    if telling:
        return Look(telling[0].colour, telling[min(1, len(telling) - 1)].marker, telling[0].line)
    return OTHERS[_number_of(label) % len(OTHERS)]


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Label -> look: `look_of` the label, whatever others there are, or where that is taken its colour with another
    line and marker. No look twice, unless more than 40 labels want one colour."""
    taken: set[Look] = set()
    chosen: dict[str, Look] = {}
    for label in sorted(labels, key=lambda each: (each not in LOOKS, len(each), each)):
        free = (look for look in _variants(label) if look not in taken)
        chosen[label] = next(free, look_of(label))
        taken.add(chosen[label])
    return {label: chosen[label] for label in labels}


def _variants(label: str) -> Iterator[Look]:
    """All looks of the label's colour, its own first; the others in an order that is the label's own."""
    own, first = look_of(label), _number_of(label)
    yield own
    lines = [line for line in LINES if line != own.line]
    for turn in range(len(lines) * len(MARKERS)):
        yield Look(own.colour, MARKERS[(first + turn) % len(MARKERS)], lines[(first + turn) % len(lines)])
    yield from (Look(own.colour, marker, own.line) for marker in MARKERS)


def _number_of(label: str) -> int:
    return zlib.crc32(label.encode("utf-8", "replace"))


@contextmanager
def styled() -> Iterator[None]:
    """The house's style, while a figure is made or saved. What the font has no sign for is drawn as an empty box."""
    import matplotlib

    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def colour_map(colours: Sequence[str]) -> LinearSegmentedColormap:
    """The colours in equal steps, mixed between."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("supermask", list(colours))


def percent(value: float) -> str:
    """Three digits, two below ten, no trailing zeros: 100, 51.2, 6.9, 0.47."""
    return f"{value:.2g}" if value < 10 else f"{value:.3g}"


def thinned(positions: Sequence[float], least: float) -> list[int]:
    """Indices of the sorted positions that stay when neighbours must be `least` apart; the first always stays."""
    kept: list[int] = []
    for index, position in enumerate(positions):
        if not kept or position - positions[kept[-1]] >= least:
            kept.append(index)
    return kept
