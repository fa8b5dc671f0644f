"""How far each treatment is from the reference, level by level, with the 95% interval of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from supermask.analysis.summary import Summary, TreatmentPoint, summarize
from supermask.core.errors import UserError
from supermask.core.text import Row, format_range
from supermask.reporting.figures.accuracy import ACCURACY, MARKER, STAR, STAR_LIFT, remaining_weights_axis
from supermask.reporting.figures.caption import (
    data_notes,
    excluded_note,
    join_sentences,
    significance_note,
)
from supermask.reporting.figures.layout import FigurePage, num_columns, panel_titles
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import INK, WIDTH, LineStyle, assign_styles, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, HEIGHT, ALONE, HEADING, GAP, LEFT, BELOW = 3, 1.12, 1.9, 0.20, 0.10, 0.52, 0.36
"""Panels side by side; inches: a panel, one in the only row, its name, between panels, for the y axis, the x axis."""

LINEAR_LIMIT = 0.5
"""Percentage points around 0 within which the axis is nearly linear, where it is logarithmic beyond."""

SYMLOG_FROM = 3.0
"""Percentage points: where some difference is larger, the axis is logarithmic beyond `LINEAR`."""


@dataclass(frozen=True)
class LevelDifference:
    """Treatment minus reference at one level, in the measure's unit (percentage points of accuracy)."""

    level: int
    weights_remaining_percent: float
    n: int
    """Seeds of the treatment; pairs, where the test is paired."""
    n_reference: int
    difference: float
    low95: float | None
    """None where there is no interval: `note` says why."""
    high95: float | None
    hedges_g: float | None
    test: str
    p: float | None
    p_holm: float | None
    """After Holm's correction over the treatment's levels."""
    significant: bool
    note: str


def compute_differences(summary: Summary) -> dict[str, list[LevelDifference]]:
    """Treatment -> its differences by level, the reference left out. Empty where no level can be compared."""
    return {
        label: [_difference(point) for point in line if point.comparison]
        for label, line in summary.series.items()
        if label != summary.reference
    }


def _difference(point: TreatmentPoint) -> LevelDifference:
    c = point.comparison
    assert c is not None
    low, high = c.interval95 or (None, None)
    about = (point.level, point.remaining, c.n, c.n_reference, c.difference, low, high, c.hedges_g, c.test, c.p)
    return LevelDifference(*about, point.p_holm, point.significant, c.note)


def difference_figure(rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str) -> RenderedFigure:
    """Test accuracy at early stopping minus the reference's, in percentage points; a panel a treatment, one scale.

    Mean difference over seeds with its 95% t-interval, against weights remaining; a star where it is significant at
    that level after Holm's correction. Raises UserError as `summarise`, and where nothing can be compared.
    Source: paper.md section 7.
    """
    summary = summarize(rows, treatments, reference, ACCURACY)
    found = compute_differences(summary)
    drawn = {label: line for label, line in found.items() if line}
    if not drawn:
        raise UserError(
            f"there is nothing to draw: no level has finished runs both of the reference {reference!r} and of another "
            "treatment with as many weights remaining"
        )
    text = _caption(summary, found, _is_wide(drawn))
    about = {"reference": reference, "measure": ACCURACY.column, "unit": "points"}
    data: list[Row] = [{"treatment": label, **about, **asdict(each)} for label, line in drawn.items() for each in line]
    with style_context():
        return RenderedFigure(_draw(summary, drawn, title, text), text, data)


def _draw(summary: Summary, drawn: dict[str, list[LevelDifference]], title: str, text: str) -> Any:
    chosen = assign_styles(list(summary.series))
    columns = num_columns(len(drawn), COLUMNS)
    width = (WIDTH - LEFT - 0.08 - GAP * (columns - 1)) / columns
    names, higher = panel_titles(list(drawn), width)
    lines = -(-len(drawn) // columns)
    height = HEIGHT if lines > 1 else ALONE
    step = HEADING + higher + height
    page = FigurePage(title, text, lines * step + BELOW)
    limits = _limits(drawn)
    remaining = [each.weights_remaining_percent for line in drawn.values() for each in line]
    for place, ((label, line), name) in enumerate(zip(drawn.items(), names, strict=True)):
        row, column = divmod(place, columns)
        left, top = LEFT + column * (width + GAP), row * step + HEADING + higher
        axes = page.axes(left, top, width, height, grid=True)
        page.text(left, top - 0.04, name, va="bottom")
        _draw_line(axes, line, chosen[label])
        _set_axes(axes, limits, remaining, _is_wide(drawn))
        if column:
            axes.tick_params(labelleft=False)
        if place + columns < len(drawn):
            axes.tick_params(labelbottom=False)
    bottom = lines * step
    page.text(LEFT + (WIDTH - LEFT) / 2, bottom + 0.2, "Weights remaining (%)", 7.5, ha="center")
    middle = (HEADING + higher + bottom) / 2
    page.text(0.08, middle, "Difference to the reference (points)", 7.5, rotation=90, va="center")
    return page.figure


def _draw_line(axes: Axes, line: Sequence[LevelDifference], look: LineStyle) -> None:
    from matplotlib.transforms import ScaledTranslation

    axes.axhline(0, color=INK, linewidth=0.8, zorder=1.8)
    x, mean = [each.weights_remaining_percent for each in line], [each.difference for each in line]
    known = [each for each in line if each.low95 is not None]
    at = [each.weights_remaining_percent for each in known]
    low, high = [each.low95 or 0.0 for each in known], [each.high95 or 0.0 for each in known]
    axes.fill_between(at, low, high, color=look.colour, alpha=0.16, linewidth=0, zorder=1.5)
    axes.vlines(at, low, high, color=look.colour, linewidth=0.9, zorder=2.5)
    axes.plot(x, mean, color=look.colour, linestyle=look.line, linewidth=1.0, zorder=3)
    axes.plot(x, mean, color=look.colour, marker=look.marker, zorder=3.5, **MARKER)
    starred = [each for each in line if each.significant]
    figure = axes.get_figure(root=True)
    assert figure is not None
    axes.plot(
        [each.weights_remaining_percent for each in starred],
        [each.difference for each in starred],
        color=look.colour,
        transform=axes.transData + ScaledTranslation(0, STAR_LIFT / 72, figure.dpi_scale_trans),
        zorder=4,
        **STAR,
    )


def _is_wide(drawn: dict[str, list[LevelDifference]]) -> bool:
    return max(abs(each.difference) for line in drawn.values() for each in line) > SYMLOG_FROM


def _limits(drawn: dict[str, list[LevelDifference]]) -> tuple[float, float]:
    """Of all panels: every mean and, as far as they are not much longer than the means go, the intervals."""
    every = [each for line in drawn.values() for each in line]
    means = [0.0, *(each.difference for each in every)]
    reach = 0.5 * (max(means) - min(means)) or 0.5
    low = max(min(means) - reach, min(each.difference if each.low95 is None else each.low95 for each in every))
    high = min(max(means) + reach, max(each.difference if each.high95 is None else each.high95 for each in every))
    return min(low, *means), max(high, *means)


def _set_axes(axes: Axes, limits: tuple[float, float], remaining: Sequence[float], wide: bool) -> None:
    low, high = limits
    if wide:
        axes.set_yscale("asinh", linear_width=LINEAR_LIMIT)
        axes.set_ylim(low * 1.4 - LINEAR_LIMIT / 3, high * 1.4 + 1.2 * LINEAR_LIMIT)
        ticks = [0.0, *(sign * size for sign in (1, -1) for size in (1.0, 3.0, 10.0, 30.0, 80.0))]
        ticks = [tick for tick in ticks if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        axes.set_yticks(sorted(ticks), [f"{tick:+.0f}" if tick else "0" for tick in sorted(ticks)])
        axes.set_yticks([], minor=True)
    else:
        room = 0.08 * (high - low or 1.0)
        axes.set_ylim(low - room, high + 2 * room)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    remaining_weights_axis(axes, remaining, apart=0.15)


def _caption(summary: Summary, found: dict[str, list[LevelDifference]], wide: bool) -> str:
    every = [each for line in found.values() for each in line]
    paired = {each.test for each in every} == {"paired t"}
    subject = f"Network {summary.subject}: " if summary.subject else ""
    n = format_range([each.n for each in every])
    apart = [label for label, line in found.items() if not line]
    single = max(min(each.n, each.n_reference) for each in every) < 2
    return join_sentences(
        [
            f"{subject}test accuracy at early stopping minus that of {summary.reference}, in percentage points; mean "
            f"over n = {n} {'pairs of runs that share a seed' if paired else 'seeds'}; one scale for all panels.",
            "One seed: no interval and no test." if single else "Band and bar: 95% t-interval of that difference.",
            significance_note(summary),
            f"The axis is logarithmic beyond about {LINEAR_LIMIT:g} points from 0." if wide else "",
            f"No level to compare: {'; '.join(apart)}." if apart else "",
            excluded_note(summary),
            *data_notes(summary),
        ]
    )
