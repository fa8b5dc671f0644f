"""Figure of learning curves: validation accuracy of learned masks against iterations, one line per treatment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import PERCENT, MeanInterval, mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.accuracy import (
    BAND_ALPHA,
    MANY_LINES,
    accuracy_ticks,
    draw_band,
    log_error_scale,
    set_log_ticks,
)
from supermask.reporting.figures.caption import (
    describe_excluded,
    format_seeds,
    interval_mark,
    join_sentences,
    row_data_notes,
)
from supermask.reporting.figures.layout import FigurePage, fit_labels, set_legend_labels
from supermask.reporting.figures.save import RenderedFigure, mean_columns
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    AxisScale,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)
from supermask.store.tables import treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_HEIGHT, LEGEND_WIDTH = 2.6, 1.95
"""Inches: the axes at least, the legend."""

Curves = dict[str, dict[int, MeanInterval]]
"""Treatment -> iteration -> mean over seeds with its interval, in percent."""


def learning_curves_figure(
    points: Sequence[Row], title: str, options: FigureOptions = DEFAULT_OPTIONS, notes: Sequence[str] = ()
) -> RenderedFigure:
    """Draw the validation accuracy of masks while they are learned: mean over seeds with its 95% t-interval.

    `points`: rows with `treatment`, `seed`, `iteration` and `validation_accuracy` (share in [0, 1]), as
    `learning_curve_rows` returns them. Both axes are logarithmic, the accuracy in its error. `notes`: sentences of the
    caption, as `curve_notes` returns them. Raises UserError if no mask was learned.
    Source: Zhou et al. 2019, Sec. 5; authors' response, item 8 (masks that start from a heuristic).
    """
    curves = _mean_curves(points)
    if not curves:
        raise UserError("there is nothing to draw: no mask of this study has been learned; run the study first")
    styles, caption = assign_styles(list(curves)), _caption(curves, options.axis, notes)
    with style_context(options):
        names = dict(zip(curves, fit_labels(list(curves), LEGEND_WIDTH - 0.4, lines=3, size=6.4), strict=True))
        height = max(MIN_HEIGHT, 0.08 + sum(0.155 + 0.11 * name.count("\n") for name in names.values()))
        page = FigurePage(title, caption, height + 0.42, options, curves)
        axes = page.axes(0.5, 0.0, page.width - 0.5 - LEGEND_WIDTH - 0.1, height, grid=True)
        axes.spines[["top", "right"]].set_visible(False)
        _draw(axes, curves, styles, options.axis)
        _add_legend(page, names, styles)
    return RenderedFigure(page.finish(), page.caption, _data_rows(curves))


def average_curves(points: Sequence[Row]) -> list[Row]:
    """Return the data rows of the figure, one per treatment and iteration; empty if no mask was learned."""
    return _data_rows(_mean_curves(points))


def curves_caption(points: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return the caption of the figure of these points, for which `average_curves` is not empty."""
    return _caption(_mean_curves(points), "auto", notes)


def curve_notes(rows: Sequence[Row], labels: Collection[str]) -> list[str]:
    """Return the sentences on runs without a curve and on the data, from the rows of a study and labels to draw."""
    learned = [row for row in rows if row.get("supermask") and set(labels).intersection(treatment_labels(row))]
    unfinished = [row for row in learned if row["status"] != "finished"]
    return [describe_excluded(unfinished, labels, len(learned)), *row_data_notes(learned)]


def _mean_curves(points: Sequence[Row]) -> Curves:
    """Average over seeds at the iterations that all seeds of a treatment have, without iteration 0."""
    values: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for point in points:
        accuracy = point["validation_accuracy"]
        assert isinstance(accuracy, int | float)
        values[str(point["treatment"])][int(point["iteration"] or 0)][int(point["seed"] or 0)] = 100 * accuracy
    curves: Curves = {}
    for label, by_iteration in values.items():
        seeds = max(map(len, by_iteration.values()))
        complete = {i: by_seed for i, by_seed in sorted(by_iteration.items()) if len(by_seed) == seeds and i > 0}
        if complete:
            curves[label] = {
                i: mean_interval([by_seed[s] for s in sorted(by_seed)], PERCENT) for i, by_seed in complete.items()
            }
    return curves


def _draw(axes: Axes, curves: Curves, styles: dict[str, LineStyle], scale: AxisScale) -> None:
    for index, (label, curve) in enumerate(curves.items()):
        style, iterations = styles[label], list(curve)
        # 100% has no place on an axis that is logarithmic in the error.
        intervals = [(mean.low, None if mean.high is None else min(mean.high, 99.99)) for mean in curve.values()]
        alpha = BAND_ALPHA if len(curves) < MANY_LINES else BAND_ALPHA / 2
        draw_band(axes, iterations, intervals, style.color, alpha, (index, len(curves)))
        means = [mean.mean for mean in curve.values()]
        marker_step = max(1, len(iterations) // 8)
        line = _line_style(style)
        axes.plot(iterations, means, color=style.color, marker=style.marker, markevery=marker_step, **line)
    means = [mean.mean for curve in curves.values() for mean in curve.values()]
    min_error = max((100 - max(means)) / 1.15, 0.02)
    axes.set_xscale("log")
    if scale == "linear":
        axes.set_ylim(max(min(means) - 2, 0), min(max(means) + 2, 100))
    elif scale == "log":
        set_log_ticks(axes, "y", max(min(means) - 2, 1), min(max(means) * 1.02, 100))
    else:
        axes.set_yscale("function", functions=log_error_scale(min_error / 1e3))
        axes.set_ylim(max(min(means) - 2, 0), 100 - min_error)
        ticks = accuracy_ticks(*axes.get_ylim())
        axes.set_yticks(ticks, [format_percent(tick) for tick in ticks])
        axes.set_yticks([], minor=True)
    first, last = min(min(curve) for curve in curves.values()), max(max(curve) for curve in curves.values())
    decades = [n for k in range(9) for n in (10**k, 2 * 10**k, 5 * 10**k) if first <= n <= last]
    axes.set_xticks(decades, [f"{n:,}" for n in decades])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("Iteration")
    axes.set_ylabel("Validation accuracy (%)")


def _add_legend(page: FigurePage, names: dict[str, str], styles: dict[str, LineStyle]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.color, marker=style.marker, **_line_style(style)) for style in styles.values()
    ]
    legend = page.figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper left",
        bbox_to_anchor=page.to_figure(page.width - LEGEND_WIDTH, 0.0),
        frameon=False,
        borderaxespad=0,
        handlelength=3.0,
        fontsize=6.4 * page.scale,
    )
    set_legend_labels(legend, [names[label] for label in styles])


def _line_style(style: LineStyle) -> dict[str, Any]:
    edge = {"markersize": 3.2, "markeredgecolor": "white", "markeredgewidth": 0.4}
    return {**edge, "linewidth": 1.0, "linestyle": style.line}


def _caption(curves: Curves, scale: AxisScale, notes: Sequence[str]) -> str:
    counts = {mean.n for curve in curves.values() for mean in curve.values()}
    scale_notes = {"linear": "", "log": "The accuracy axis is logarithmic."}
    scale_notes |= dict.fromkeys(("auto", "log-error"), "The accuracy axis is logarithmic in the error.")
    mark = interval_mark([[mean.low is not None for mean in curve.values()] for curve in curves.values()])
    band = f"; {mark}: 95% t-interval of the mean" if max(counts) > 1 else ""
    return join_sentences(
        [
            f"Validation accuracy of single samples of the mask while it is learned: mean over {format_seeds(counts)}"
            f"{band}. Iteration 0, before learning, is not shown.",
            scale_notes[scale],
            *notes,
            _takeaway(curves),
        ]
    )


def _takeaway(curves: Curves) -> str:
    """State the best mask at its last evaluation, and how much it gained in the last doubling of iterations."""
    label, curve = max(curves.items(), key=lambda item: list(item[1].values())[-1].mean)
    last = max(curve)
    half = max((iteration for iteration in curve if 2 * iteration <= last), default=None)
    gain = f", {curve[last].mean - curve[half].mean:+.2f} points over the last doubling" if half else ""
    return f"Takeaway: {label} ends highest, at {curve[last].mean:.1f}% after {last:,} iterations{gain}."


def _data_rows(curves: Curves) -> list[Row]:
    return [
        {"treatment": label, "iteration": iteration, **mean_columns(mean)}
        for label, curve in curves.items()
        for iteration, mean in curve.items()
    ]
