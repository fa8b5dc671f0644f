"""Table of the mask criteria with their formulas."""

from __future__ import annotations

from collections.abc import Sequence

from supermask.core.criteria import CRITERIA
from supermask.core.text import Row
from supermask.reporting.figures.layout import FigurePage, fit_text
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import DEFAULT_OPTIONS, GRAY, INK, FigureOptions, style_context
from supermask.reporting.tables import TextTable

FORMULAS = {
    "large_final": ("|w_f|", "the original lottery ticket criterion"),
    "small_final": ("−|w_f|", "its opposite"),
    "large_init": ("|w_i|", "needs no training"),
    "small_init": ("−|w_i|", "needs no training"),
    "large_init_large_final": ("min(α|w_f|, |w_i|)", "both large; α: same share each"),
    "small_init_small_final": ("−max(α|w_f|, |w_i|)", "both small; α likewise"),
    "magnitude_increase": ("|w_f| − |w_i|", "grew most"),
    "movement": ("|w_f − w_i|", "moved most"),
    "random": ("0", "control: all weights tie"),
    "large_final_same_sign": ("max(0, |w_f| · sgn(w_i w_f))", "the best heuristic supermask"),
    "large_final_diff_sign": ("max(0, −|w_f| · sgn(w_i w_f))", "control: changed sign"),
    "magnitude_increase_same_sign": ("|w_f| − |w_i| if the sign stayed, else −∞", "excluded weights rank last"),
    "magnitude_increase_diff_sign": ("|w_f| − |w_i| if the sign changed, else −∞", "control"),
    "magnitude_increase_same_sign_literal": ("|w_f| − |w_i| if the sign stayed, else 0", "the authors' code"),
    "snip": ("|∂L/∂w · w_i|", "on the first batch; needs no training"),
    "grad": ("|∂L/∂w|", "on the first batch; needs no training"),
}
"""Criterion -> (score of a weight, remark). The highest scores are kept. Source: Zhou et al. 2019, Sec. 2 and 5."""

ROW_HEIGHT, HEAD_HEIGHT, SIZE = 0.19, 0.24, 7.0
"""Inches of a row and of the head; points."""


def criteria_rows(used: Sequence[str] = ()) -> list[Row]:
    """Return one row per criterion; `used`: criteria of a study, to be marked."""
    assert FORMULAS.keys() == CRITERIA.keys()
    return [
        {"criterion": name, "score": formula, "note": note, "in_study": name in used}
        for name, (formula, note) in FORMULAS.items()
    ]


def criteria_table_figure(used: Sequence[str], title: str, options: FigureOptions = DEFAULT_OPTIONS) -> RenderedFigure:
    """Draw the table of criteria; those that the study uses are black, the others gray.

    Source: Zhou et al. 2019, Sec. 2, Fig. 2; Sec. 5.
    """
    rows = criteria_rows(used)
    with_training = sum("needs no training" not in str(row["note"]) for row in rows) - 1
    caption = (
        "Score of a weight with initial value w_i and final value w_f, of a level or of the dense network; in each "
        "layer the highest scores are kept, and ties are broken at random. L: loss. Black: used in this study. "
        f"Takeaway: {with_training} of {len(rows)} criteria read the trained weights; the others need no training."
    )
    with style_context(options):
        page = FigurePage(title, caption, HEAD_HEIGHT + ROW_HEIGHT * len(rows), options)
        width = page.width
        columns = ((0.012, 0.34), (0.35, 0.37), (0.72, 0.28))
        for (left, _), head in zip(columns, ("Criterion", "Score", ""), strict=True):
            page.text(left * width, 0.04, head, SIZE, fontweight="bold")
        for index, row in enumerate(rows):
            top = HEAD_HEIGHT + index * ROW_HEIGHT
            color = INK if row["in_study"] else GRAY
            for (left, share), key in zip(columns, ("criterion", "score", "note"), strict=True):
                size = SIZE if page.width > 6 else SIZE - 2
                page.text(
                    left * width, top, fit_text(str(row[key]), share * width - 0.05, size=size), size, color=color
                )
    table: TextTable = (
        ["Criterion", "Score", "Note"],
        [[row["criterion"], row["score"], row["note"]] for row in rows],
    )
    return RenderedFigure(page.finish(), page.caption, rows, table)
