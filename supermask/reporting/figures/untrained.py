"""Figure of heuristic supermasks: accuracy without training against weights remaining, one line per criterion.

One panel per kind of weights (w_i, signed constants, random-sign constants) and schedule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import PERCENT, MeanInterval, mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, Value, format_percent
from supermask.reporting.figures.accuracy import (
    MARKER,
    accuracy_ticks,
    draw_band,
    log_error_scale,
    remaining_weights_axis,
    set_log_ticks,
)
from supermask.reporting.figures.caption import (
    describe_excluded,
    format_seeds,
    interval_mark,
    join_sentences,
    row_data_notes,
)
from supermask.reporting.figures.layout import FigurePage, fit_labels, fit_text, set_legend_labels
from supermask.reporting.figures.save import RenderedFigure, format_values, mean_columns
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    INK,
    AxisScale,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)
from supermask.store.tables import DENSE, treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = {"rewind": "w_i", "signed_constant": "signed constants", "constant": "random-sign constants"}
"""Mask-1 action -> weights that the masks are applied to."""

SCHEDULES = {"one_shot": "one-shot", "iterative": "iterative"}

PANEL_HEIGHT, HEADING_HEIGHT, LEFT, AXIS_HEIGHT, LEGEND_LINE, LEGEND_COLUMN_WIDTH = 1.75, 0.2, 0.5, 0.42, 0.14, 1.35
"""Inches: a panel, its name, the y axis, the x axis, a line of the legend, a column of the legend."""

NEAR_CHANCE = 5.0
"""Percentage points: a criterion whose means all stay this near to chance is a thin line."""


@dataclass(frozen=True)
class _PanelKey:
    """Masks of one criterion at one level and schedule, on one kind of weights."""

    schedule: str
    mask1: str
    criterion: str
    level: int


@dataclass(frozen=True)
class _PanelPoint:
    """Mean over seeds, in percent."""

    remaining: float
    """Weights remaining in percent."""
    interval: MeanInterval
    values: dict[int, float]


Points = dict[_PanelKey, _PanelPoint]


def is_heuristic(row: Row) -> bool:
    """Return whether a row is a heuristic supermask: not trained, with a mask from a criterion."""
    return bool(row["level"]) and row.get("trained") is False and row.get("criterion") not in (None, "learned")


def untrained_figure(
    rows: Sequence[Row], title: str, chance: float | None = None, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw test accuracy of untrained masked networks against weights remaining: one panel per weights and schedule.

    Mean over seeds with its 95% t-interval, in percent. A criterion that stays within `NEAR_CHANCE` points of `chance`
    (percent) in a panel is a thin line without a band. Rescaled networks are not drawn: without biases a positive
    factor per layer changes no accuracy; the caption states by how much the measured ones differ. `rows` are those of
    one study. Raises UserError if no heuristic supermask has finished.
    Source: Zhou et al. 2019, Sec. 5, Fig. 7.
    """
    plain = _unscaled_rows(rows)
    points = _average(plain)
    if not points:
        raise UserError("there is nothing to draw: no heuristic supermask of this study has finished; run it first")
    criteria = list(dict.fromkeys(key.criterion for key in points))
    dense = _dense_accuracies(rows)
    caption = heuristic_caption(rows, chance)
    styles = assign_styles(criteria)
    with style_context(options):
        others = sorted({key.mask1 for key in points} - set(WEIGHTS))
        columns = [mask1 for mask1 in (*WEIGHTS, *others) if any(key.mask1 == mask1 for key in points)]
        schedules = [schedule for schedule in SCHEDULES if any(key.schedule == schedule for key in points)]
        grid_height = len(schedules) * (HEADING_HEIGHT + PANEL_HEIGHT) + AXIS_HEIGHT
        legend_columns = max(1, int(options.layout_width / LEGEND_COLUMN_WIDTH))
        legend_height = LEGEND_LINE * -(-len(criteria) // legend_columns) + 0.08
        page = FigurePage(title, caption, grid_height + legend_height, options, criteria)
        width = (page.width - LEFT - 0.04) / len(columns) - 0.12
        for row, schedule in enumerate(schedules):
            top = row * (HEADING_HEIGHT + PANEL_HEIGHT) + HEADING_HEIGHT
            for column, mask1 in enumerate(columns):
                left = LEFT + column * (width + 0.12)
                axes = page.axes(left, top, width, PANEL_HEIGHT, grid=True)
                panel = {key: point for key, point in points.items() if (key.schedule, key.mask1) == (schedule, mask1)}
                _draw(axes, panel, styles, _criteria_near_chance(panel, chance), options.axis)
                name = fit_text(f"on {WEIGHTS.get(mask1, mask1)}, {SCHEDULES[schedule]}", width)
                page.text(left + width / 2, top - 0.04, name, ha="center", va="bottom")
                if dense:
                    axes.axhline(fmean(dense), color=INK, linestyle=(0, (1, 1.6)), linewidth=0.8, zorder=2.5)
                axes.tick_params(labelleft=column == 0, labelbottom=row == len(schedules) - 1)
            page.text(0.08, top + PANEL_HEIGHT / 2, "Test accuracy (%)", 7.5, rotation=90, va="center")
        below = grid_height - AXIS_HEIGHT + 0.19
        page.text(LEFT + (page.width - LEFT) / 2, below, "Weights remaining (%)", 7.5, ha="center")
        _add_legend(page, criteria, styles, grid_height, legend_columns)
    return RenderedFigure(page.finish(), page.caption, _data_rows(points))


def heuristic_points(rows: Sequence[Row]) -> list[Row]:
    """Return the data rows of the figure, one per criterion, kind of weights, schedule and level."""
    return _data_rows(_average(_unscaled_rows(rows)))


def heuristic_caption(rows: Sequence[Row], chance: float | None = None) -> str:
    """Return the caption of the figure; `rows` have a finished heuristic supermask."""
    plain = _unscaled_rows(rows)
    counts = {point.interval.n for point in _average(plain).values()}
    subject = f"{plain[0]['network']} on {plain[0]['dataset']}"
    lines: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for key, point in sorted(_average(plain).items(), key=lambda item: item[0].level):
        lines[key.schedule, key.mask1, key.criterion].append(point.interval.low is not None)
    band = f"; {interval_mark(list(lines.values()))}: 95% t-interval of the mean" if max(counts) > 1 else ""
    near = (
        f"Thin, no band: never more than {NEAR_CHANCE:g} points from chance ({chance:g}%)."
        if chance is not None
        else ""
    )
    requested = [row for row in rows if is_heuristic(row) or row["level"] == 0]
    unfinished = [row for row in requested if row["status"] != "finished"]
    labels = {label for row in requested for label in treatment_labels(row)}
    return join_sentences(
        [
            f"Network {subject}, not trained with its mask: mean over {format_seeds(counts)}{band}.",
            "One-shot: masks of the trained dense network; iterative: masks of the chain trained level by level.",
            _rescaling_note(rows, plain),
            near,
            "Dotted line: the trained dense network." if _dense_accuracies(rows) else "",
            describe_excluded(unfinished, labels, len(requested)),
            *row_data_notes(requested),
            _takeaway(_average(plain)),
        ]
    )


def _takeaway(points: Points) -> str:
    """State the best criterion on each kind of weights."""
    parts = []
    for mask1, weights in WEIGHTS.items():
        group = {key: point for key, point in points.items() if key.mask1 == mask1}
        if group:
            key, best = max(group.items(), key=lambda item: item[1].interval.mean)
            parts.append(f"{key.criterion} on {weights} ({best.interval.mean:.1f}%)")
    return f"Takeaway: the best masks are those of {', '.join(parts)}." if parts else ""


def _unscaled_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if is_heuristic(row) and row["status"] == "finished" and not row.get("rescaled")]


def _dense_accuracies(rows: Sequence[Row]) -> list[float]:
    """Return the test accuracies of the trained dense networks in percent."""
    # Only of the dense network that is common to all treatments.
    return [_percent(row) for row in rows if DENSE in treatment_labels(row) and row["status"] == "finished"]


def _average(rows: Sequence[Row]) -> Points:
    points = {}
    for key, group in _group(rows).items():
        if repeats_a_seed(group):
            raise UserError(
                f"{key.criterion} has several runs of one seed at level {key.level}; "
                "a figure shows one study: give the runs of one study only"
            )
        values = {int(row["seed"] or 0): _percent(row) for row in group}
        remaining = fmean(100 * float(row["density"] or 0) for row in group)
        points[key] = _PanelPoint(remaining, mean_interval([values[seed] for seed in sorted(values)], PERCENT), values)
    return points


def _group(rows: Sequence[Row]) -> dict[_PanelKey, list[Row]]:
    names = line_names(rows)
    groups: dict[_PanelKey, list[Row]] = defaultdict(list)
    for row in rows:
        for schedule in schedules(row):
            for name in names(row, schedule):
                groups[_PanelKey(schedule, str(row["mask1"]), name, int(row["level"] or 0))].append(row)
    return groups


def schedules(row: Row) -> list[str]:
    """Return the schedules of a row: both, if its run belongs to both."""
    return str(row["schedule"]).split(" | ")


def line_names(rows: Sequence[Row]) -> Callable[[Row, str], list[str]]:
    """Return the function (row, schedule) -> names of the lines that the row is in, for heuristic masks of one study.

    A line is named by `line_name`. If treatments that it does not tell apart have runs of one seed, because they differ
    in the network or the training of their dense networks, a line is named by its treatment.
    """
    groups: dict[tuple[Value, ...], list[Row]] = defaultdict(list)
    schedules_of: dict[str, set[str]] = {}
    for row in rows:
        for schedule in schedules(row):
            groups[line_name(row), schedule, row.get("mask1"), row.get("rescaled"), row["level"]].append(row)
        for label in treatment_labels(row):
            # A run of level 1 may belong to both schedules: the other levels of a treatment tell its own.
            schedules_of[label] = schedules_of.get(label, set(schedules(row))).intersection(schedules(row))
    if not any(map(repeats_a_seed, groups.values())):
        return lambda row, schedule: [line_name(row)]
    return lambda row, schedule: [label for label in treatment_labels(row) if schedule in schedules_of[label]]


def repeats_a_seed(rows: Sequence[Row]) -> bool:
    """Return whether two of these rows have one seed."""
    return len({row["seed"] for row in rows}) < len(rows)


def line_name(row: Row) -> str:
    """Return the criterion, followed by every setting of the mask that is not the default."""
    defaults = {"mask0": "zero", "scope": "layer", "w_init": "start", "w_final": "end"}
    details = [f"{key} {row[key]}" for key, value in defaults.items() if row.get(key) not in (None, value)]
    return ", ".join([str(row["criterion"]), *details])


def _percent(row: Row) -> float:
    value = row["early_stop_test_accuracy"]
    assert isinstance(value, int | float)
    return 100.0 * value


def _criteria_near_chance(points: Points, chance: float | None) -> set[str]:
    """Return the criteria whose means are within `NEAR_CHANCE` of chance at every level of a panel."""
    if chance is None:
        return set()
    far = {key.criterion for key, point in points.items() if abs(point.interval.mean - chance) > NEAR_CHANCE}
    return {key.criterion for key in points} - far


def _draw(axes: Axes, points: Points, styles: dict[str, LineStyle], thin: set[str], scale: AxisScale) -> None:
    for index, (criterion, style) in enumerate(styles.items()):
        levels = {key.level: point for key, point in points.items() if key.criterion == criterion}
        line = [levels[level] for level in sorted(levels)]
        if not line:
            continue
        x, mean = [point.remaining for point in line], [point.interval.mean for point in line]
        if criterion in thin:
            axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=0.6, alpha=0.75, zorder=2)
            continue
        intervals = [(point.interval.low, point.interval.high) for point in line]
        draw_band(axes, x, intervals, style.color, 0.1, (index, len(styles)))
        axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=1.0, zorder=3)
        axes.plot(x, mean, color=style.color, marker=style.marker, zorder=3.5, **(MARKER | {"markersize": 3.2}))
    if scale == "log":
        set_log_ticks(axes, "y", 1, 105)
    elif scale == "log-error":
        axes.set_yscale("function", functions=log_error_scale(1e-3))
        axes.set_ylim(0, 99.9)
        ticks = accuracy_ticks(0, 99.9)
        axes.set_yticks(ticks, [format_percent(tick) for tick in ticks])
    else:
        axes.set_ylim(0, 100)
    if points:
        remaining_weights_axis(axes, [point.remaining for point in points.values()], min_distance=0.17)


def _add_legend(
    page: FigurePage, criteria: Sequence[str], styles: dict[str, LineStyle], top: float, columns: int
) -> None:
    from matplotlib.lines import Line2D

    lines: list[dict[str, Any]] = [MARKER | {"linestyle": styles[name].line, "linewidth": 1.0} for name in criteria]
    handles = [
        Line2D([], [], color=styles[name].color, marker=styles[name].marker, **line)
        for name, line in zip(criteria, lines, strict=True)
    ]
    legend = page.figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper center",
        bbox_to_anchor=page.to_figure(page.width / 2, top),
        ncols=columns,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.6,
        columnspacing=1.0,
        labelspacing=0.3,
        fontsize=6.2 * page.scale,
    )
    set_legend_labels(legend, fit_labels(criteria, LEGEND_COLUMN_WIDTH - 0.3, size=6.2))


def _rescaling_note(rows: Sequence[Row], plain: Sequence[Row]) -> str:
    """Describe by how much rescaled networks differ from those that are drawn."""

    def key(row: Row) -> tuple[Value, ...]:
        return line_name(row), *(row.get(name) for name in ("mask1", "schedule", "level", "seed", "parent"))

    drawn = {key(row): _percent(row) for row in plain}
    rescaled = [row for row in rows if is_heuristic(row) and row.get("rescaled") and row["status"] == "finished"]
    differences = [abs(_percent(row) - drawn[key(row)]) for row in rescaled if key(row) in drawn]
    if not differences:
        return ""
    return f"Rescaled networks ({len(differences)} pairs) differ from these by at most {max(differences):.2g} points."


def _data_rows(points: Points) -> list[Row]:
    return [
        {
            "schedule": key.schedule,
            "mask1": key.mask1,
            "criterion": key.criterion,
            "level": key.level,
            "weights_remaining_percent": point.remaining,
            **mean_columns(point.interval),
            "values_by_seed": format_values(point.values),
        }
        for key, point in points.items()
    ]
