"""How every figure looks: sizes for a two-column paper, and one colour, marker and line a treatment.

Colours are Okabe and Ito's and Tol's, told apart by colour-blind readers; marker and line style differ as well, so
that figures can be read in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Look(NamedTuple):
    """A treatment's colour, marker and line style."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


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
}
"""The paper's criteria and actions: the same look in every figure."""

OTHERS: tuple[Look, ...] = tuple(
    Look(colour, marker, line)
    for line in (SOLID, DASHED, DOTTED, MIXED)
    for colour, marker in (
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
)
"""For all other labels, in order."""


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Label -> look, no look twice in one figure (up to 40 labels of which none is the paper's)."""
    chosen: dict[str, Look] = {}
    for label in labels:
        if label in LOOKS and LOOKS[label] not in chosen.values():
            chosen[label] = LOOKS[label]
    free = [look for look in OTHERS if look not in chosen.values()] or list(OTHERS)
    for number, label in enumerate(label for label in labels if label not in chosen):
        chosen[label] = free[number % len(free)]
    return chosen


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
