"""Figure of differences: each treatment minus the reference, level by level, with the 95% interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from supermask.analysis.summary import Summary, TreatmentPoint, summarize
from supermask.core.errors import UserError
from supermask.core.text import Row, format_range
from supermask.reporting.figures.accuracy import ACCURACY, MARKER, draw_stars, remaining_weights_axis
from supermask.reporting.figures.caption import (
    data_notes,
    excluded_note,
    join_sentences,
    significance_note,
    takeaway,
)
from supermask.reporting.figures.layout import FigurePage, PanelGrid, PanelSizes
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    INK,
    AxisScale,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = PanelSizes(
    left=0.52,
    gap=0.10,
    panel_height=1.12,
    single_row_height=1.9,
    heading_height=0.20,
    axis_height=0.36,
    max_columns=3,
)

LINEAR_LIMIT = 0.5
"""Percentage points around 0 within which a logarithmic axis is nearly linear."""

SYMLOG_FROM = 3.0
"""Percentage points: if a difference is larger, the axis is logarithmic beyond `LINEAR_LIMIT`."""


@dataclass(frozen=True)
class LevelDifference:
    """Treatment minus reference at one level, in the unit of the metric (percentage points of accuracy)."""

    level: int
    weights_remaining_percent: float
    n: int
    """Seeds of the treatment, or pairs if the test is paired."""
    n_reference: int
    difference: float
    low95: float | None
    """None if there is no interval; `note` states why."""
    high95: float | None
    hedges_g: float | None
    test: str
    p: float | None
    p_holm: float | None
    """After Holm's correction over the levels of the treatment."""
    significant: bool
    note: str


def compute_differences(summary: Summary) -> dict[str, list[LevelDifference]]:
    """Return treatment -> differences by level, without the reference; empty lists if no level can be compared."""
    return {
        label: [_level_difference(point) for point in series if point.comparison]
        for label, series in summary.series.items()
        if label != summary.reference
    }


def _level_difference(point: TreatmentPoint) -> LevelDifference:
    comparison = point.comparison
    assert comparison is not None
    low, high = comparison.interval95 or (None, None)
    return LevelDifference(
        level=point.level,
        weights_remaining_percent=point.remaining,
        n=comparison.n,
        n_reference=comparison.n_reference,
        difference=comparison.difference,
        low95=low,
        high95=high,
        hedges_g=comparison.hedges_g,
        test=comparison.test,
        p=comparison.p,
        p_holm=point.p_holm,
        significant=point.significant,
        note=comparison.note,
    )


def difference_figure(
    rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw test accuracy at early stopping minus the reference's in percentage points: one panel per treatment.

    Mean difference over seeds with its 95% t-interval, against weights remaining; a star where it is significant at
    that level after Holm's correction. All panels have one scale. Raises UserError as `summarize` does, and if no
    level can be compared.
    Source: Zhou et al. 2019, authors' response, items 2 and 4 (tests per level, never over levels).
    """
    return draw_differences(summarize(rows, treatments, reference, ACCURACY), title, options)


def draw_differences(summary: Summary, title: str, options: FigureOptions = DEFAULT_OPTIONS) -> RenderedFigure:
    """Draw the differences of a summary of accuracies; see `difference_figure`."""
    computed = compute_differences(summary)
    panels = {label: differences for label, differences in computed.items() if differences}
    if not panels:
        raise UserError(
            f"there is nothing to draw: no level has finished runs both of the reference {summary.reference!r} and of "
            "another treatment with as many weights remaining"
        )
    caption = _caption(summary, computed, _needs_log_axis(panels, options.axis))
    common = {"reference": summary.reference, "measure": summary.metric.column, "unit": "points"}
    data: list[Row] = [
        {"treatment": label, **common, **asdict(difference)}
        for label, differences in panels.items()
        for difference in differences
    ]
    with style_context(options):
        page = _draw(summary, panels, title, caption, options)
    return RenderedFigure(page.finish(), page.caption, data)


Panels = dict[str, list[LevelDifference]]
"""Treatment -> differences by level, at least one."""


def _draw(summary: Summary, panels: Panels, title: str, caption: str, options: FigureOptions) -> FigurePage:
    styles = assign_styles(list(summary.series))
    grid = PanelGrid(list(panels), SIZES, title, caption, options)
    limits = _limits(panels)
    remaining = [d.weights_remaining_percent for differences in panels.values() for d in differences]
    for axes, (label, differences) in zip(grid.panels(), panels.items(), strict=True):
        _draw_line(axes, differences, styles[label])
        _set_axes(axes, limits, remaining, _needs_log_axis(panels, options.axis))
    grid.label_axes("Weights remaining (%)", "Difference to the reference (points)")
    return grid.page


def _draw_line(axes: Axes, differences: Sequence[LevelDifference], style: LineStyle) -> None:
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1.8)
    x, mean = [d.weights_remaining_percent for d in differences], [d.difference for d in differences]
    with_interval = [d for d in differences if d.low95 is not None]
    interval_x = [d.weights_remaining_percent for d in with_interval]
    low, high = [d.low95 or 0.0 for d in with_interval], [d.high95 or 0.0 for d in with_interval]
    axes.fill_between(interval_x, low, high, color=style.color, alpha=0.16, linewidth=0, zorder=1.5)
    axes.vlines(interval_x, low, high, color=style.color, linewidth=0.9, zorder=2.5)
    axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=1.0, zorder=3)
    axes.plot(x, mean, color=style.color, marker=style.marker, zorder=3.5, **MARKER)
    significant = [d for d in differences if d.significant]
    star_x, star_y = [d.weights_remaining_percent for d in significant], [d.difference for d in significant]
    draw_stars(axes, star_x, star_y, style.color, 4.0)


def _needs_log_axis(panels: Panels, requested: AxisScale) -> bool:
    if requested != "auto":
        return requested != "linear"
    return max(abs(d.difference) for differences in panels.values() for d in differences) > SYMLOG_FROM


def _limits(panels: Panels) -> tuple[float, float]:
    """Return limits for all panels: all means, and intervals up to half the spread of the means beyond them."""
    differences = [d for panel in panels.values() for d in panel]
    means = [0.0, *(d.difference for d in differences)]
    margin = 0.5 * (max(means) - min(means)) or 0.5
    low = max(min(means) - margin, min(d.difference if d.low95 is None else d.low95 for d in differences))
    high = min(max(means) + margin, max(d.difference if d.high95 is None else d.high95 for d in differences))
    return min(low, *means), max(high, *means)


def _set_axes(axes: Axes, limits: tuple[float, float], remaining: Sequence[float], logarithmic: bool) -> None:
    low, high = limits
    if logarithmic:
        # asinh: linear around 0 and logarithmic beyond, for differences of both signs.
        axes.set_yscale("asinh", linear_width=LINEAR_LIMIT)
        axes.set_ylim(low * 1.4 - LINEAR_LIMIT / 3, high * 1.4 + 1.2 * LINEAR_LIMIT)
        ticks = [0.0, *(sign * size for sign in (1, -1) for size in (1.0, 3.0, 10.0, 30.0, 80.0))]
        ticks = [tick for tick in ticks if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
        axes.set_yticks(sorted(ticks), [f"{tick:+.0f}" if tick else "0" for tick in sorted(ticks)])
        axes.set_yticks([], minor=True)
    else:
        margin = 0.08 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + 2 * margin)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    remaining_weights_axis(axes, remaining, min_distance=0.15)


def _caption(summary: Summary, computed: Panels, logarithmic: bool) -> str:
    differences = [d for panel in computed.values() for d in panel]
    paired = {d.test for d in differences} == {"paired t"}
    subject = f"Network {summary.subject}: " if summary.subject else ""
    n = format_range([d.n for d in differences])
    not_compared = [label for label, panel in computed.items() if not panel]
    single_seed = max(min(d.n, d.n_reference) for d in differences) < 2
    return join_sentences(
        [
            f"{subject}test accuracy at early stopping minus that of {summary.reference}, in percentage points; mean "
            f"over n = {n} {'pairs of runs that share a seed' if paired else 'seeds'}; one scale for all panels.",
            "One seed: no interval and no test."
            if single_seed
            else "Band and bar: 95% t-interval of the mean difference.",
            significance_note(summary),
            f"The axis is logarithmic beyond about {LINEAR_LIMIT:g} points from 0." if logarithmic else "",
            f"No level to compare: {'; '.join(not_compared)}." if not_compared else "",
            excluded_note(summary),
            *data_notes(summary),
            takeaway(summary),
        ]
    )
