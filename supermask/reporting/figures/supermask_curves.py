"""The paper's Figures 6 and 7: masks on untrained weights, heuristic and learned, against weights remaining."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import PERCENT, MeanInterval, mean_interval
from supermask.analysis.summary import check_one_experiment
from supermask.core.errors import UserError
from supermask.core.text import Row, format_number, format_percent
from supermask.reporting.figures.accuracy import MARKER, remaining_weights_axis
from supermask.reporting.figures.caption import describe_excluded, format_seeds, join_sentences, row_data_notes
from supermask.reporting.figures.layout import FigurePage, max_text_width
from supermask.reporting.figures.learned import accuracy_axis, row_labels
from supermask.reporting.figures.legends import add_legend_below, legend_height
from supermask.reporting.figures.save import RenderedFigure, format_values, mean_columns
from supermask.reporting.figures.style import (
    BLUE,
    DEFAULT_OPTIONS,
    GRAY,
    INK,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)
from supermask.reporting.figures.untrained import is_heuristic, line_name, line_names, repeats_a_seed, schedules
from supermask.store.tables import DENSE, treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = {"w_i": ("rewind", "init"), "signed constants": ("signed_constant", "signed_constant")}
"""Panel of Figure 7 -> mask-1 action of heuristic masks, fixed weights of learned masks."""

LEARNED, LEARNED_DWR = "learned", "learned, DWR"

LEFT, GAP, PANEL_HEIGHT, HEADING_HEIGHT, AXIS_HEIGHT, ROW_HEIGHT = 0.5, 0.15, 2.1, 0.2, 0.38, 0.34
"""Inches: the y axis, between panels, a panel, its name, the x axis, a row of Figure 6."""


@dataclass(frozen=True)
class CurvePoint:
    """Mean over seeds of one mask on one kind of weights."""

    side: str
    """Key of `SIDES`."""
    series: str
    """Criterion of a heuristic mask, else `LEARNED` or `LEARNED_DWR`."""
    treatment: str
    level: int
    remaining: float
    """Weights remaining in percent; the expected share of a learned mask."""
    values: dict[int, float]
    interval: MeanInterval


def curve_points(rows: Sequence[Row]) -> list[CurvePoint]:
    """Return the points of Figure 7: one-shot heuristic masks by level, learned masks by treatment.

    Heuristic masks of one criterion whose dense networks differ are separate series, named by their treatments.
    """
    heuristic: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    learned: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    rows = [row for row in rows if row["status"] == "finished"]
    names = line_names([row for row in rows if is_heuristic(row)])
    for row in rows:
        for side, (mask1, base) in SIDES.items():
            if _is_plain_heuristic(row) and row.get("mask1") == mask1:
                for name in names(row, "one_shot"):
                    heuristic[side, name, int(row["level"] or 0)].append(row)
            elif _is_plain_learned(row) and row.get("base") == base:
                for label in treatment_labels(row):
                    learned[side, LEARNED_DWR if row.get("rescaled") else LEARNED, label].append(row)
    points = [_point(side, name, name, group) for (side, name, _), group in sorted(heuristic.items())]
    seen: set[tuple[str, str]] = set()
    for (side, series, label), group in learned.items():
        # A mask may be shared by several treatments, such as those that train it further.
        key = (side, str(group[0]["id"]))
        if key not in seen:
            seen.add(key)
            points.append(_point(side, series, label, group, "expected_density"))
    return points


def _is_plain_heuristic(row: Row) -> bool:
    is_zero = row.get("mask0") in (None, "zero")
    return is_heuristic(row) and "one_shot" in schedules(row) and not row.get("rescaled") and is_zero


def _is_plain_learned(row: Row) -> bool:
    return (
        row.get("supermask") == "bernoulli"
        and row.get("confidence") is None
        and row.get("multiplier") in (None, 1, 1.0)
        and row.get("optimizer") in (None, "sgd")
    )


def _point(side: str, series: str, label: str, rows: Sequence[Row], density: str = "density") -> CurvePoint:
    values = {int(row["seed"] or 0): 100 * float(row["early_stop_test_accuracy"] or 0) for row in rows}
    remaining = fmean(100 * float(row[density] or 0) for row in rows)
    interval = mean_interval([values[seed] for seed in sorted(values)], PERCENT)
    return CurvePoint(side, series, label, int(rows[0]["level"] or 0), remaining, values, interval)


def supermask_curves_figure(
    rows: Sequence[Row], title: str, chance: float, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw accuracy of masks on weights that are not trained, against weights remaining: on w_i and signed constants.

    Heuristic masks are one-shot masks of the trained dense network, one line per criterion. A learned mask is one point
    at its expected share of ones; masks of several start logits form the learned curve. Mean over seeds with its 95%
    t-interval. `chance` is in percent. Raises UserError if no mask has finished.
    Source: Zhou et al. 2019, Sec. 5, Fig. 7.
    """
    points = curve_points(rows)
    if not points:
        raise UserError("there is nothing to draw: no supermask of this study has finished; run the study first")
    caption = curves_caption(rows, points, chance)
    sides = [side for side in SIDES if any(point.side == side for point in points)]
    series = list(dict.fromkeys(point.series for point in points))
    styles = _styles(series)
    with style_context(options):
        body = HEADING_HEIGHT + PANEL_HEIGHT + AXIS_HEIGHT
        page = FigurePage(title, caption, body + legend_height(series, options.layout_width), options, series)
        width = (page.width - LEFT - 0.08 - GAP * (len(sides) - 1)) / len(sides)
        remaining = [point.remaining for point in points]
        for column, side in enumerate(sides):
            left = LEFT + column * (width + GAP)
            axes = page.axes(left, HEADING_HEIGHT, width, PANEL_HEIGHT, grid=True)
            page.text(left + width / 2, HEADING_HEIGHT - 0.04, f"on {side}", ha="center", va="bottom")
            for name in series:
                _draw_line(axes, [p for p in points if (p.side, p.series) == (side, name)], styles[name])
            axes.axhline(chance, color=INK, linestyle=(0, (4, 2)), linewidth=0.7, zorder=1.5)
            axes.set_ylim(0, 102)
            remaining_weights_axis(axes, remaining, min_distance=0.09)
            axes.tick_params(labelleft=column == 0)
        page.text(0.08, HEADING_HEIGHT + PANEL_HEIGHT / 2, "Test accuracy (%)", 7.5, rotation=90, va="center")
        below = HEADING_HEIGHT + PANEL_HEIGHT + 0.19
        page.text(LEFT + (page.width - LEFT) / 2, below, "Weights remaining (%)", 7.5, ha="center")
        add_legend_below(page, series, styles, body)
    return RenderedFigure(page.finish(), page.caption, [_data_row(point) for point in points])


def _styles(series: Sequence[str]) -> dict[str, LineStyle]:
    # The learned curves in black: they belong to no criterion.
    learned = {LEARNED: LineStyle(INK, "o", "-"), LEARNED_DWR: LineStyle(INK, "s", (0, (4, 1.6)))}
    return {**assign_styles([name for name in series if name not in learned]), **learned}


def _draw_line(axes: Axes, line: Sequence[CurvePoint], style: LineStyle) -> None:
    line = sorted(line, key=lambda point: -point.remaining)
    x, mean = [point.remaining for point in line], [point.interval.mean for point in line]
    low = [point.interval.mean if point.interval.low is None else point.interval.low for point in line]
    high = [point.interval.mean if point.interval.high is None else point.interval.high for point in line]
    axes.vlines(x, low, high, color=style.color, linewidth=0.8, alpha=0.6, zorder=2.5)
    axes.plot(x, mean, color=style.color, linestyle=style.line, linewidth=1.0, zorder=3)
    axes.plot(x, mean, color=style.color, marker=style.marker, zorder=3.5, **(MARKER | {"markersize": 3.4}))


def curves_caption(rows: Sequence[Row], points: Sequence[CurvePoint], chance: float) -> str:
    """Return the caption of Figure 7; its last sentence is the finding."""
    counts = {point.interval.n for point in points}
    interval = "; bar: 95% t-interval" if max(counts) > 1 else ""
    has_learned = any(point.series in (LEARNED, LEARNED_DWR) for point in points)
    if has_learned:
        learned = "A learned mask is at its expected share of ones; several start logits give several shares."
    else:
        learned = "No learned mask has finished." if any(row.get("supermask") for row in rows) else ""
    unfinished, labels, shown = _unfinished(rows)
    return join_sentences(
        [
            f"Network {check_one_experiment(rows)}, weights not trained: mean over {format_seeds(counts)}{interval}.",
            "Heuristic: one-shot masks of the trained dense network.",
            learned,
            f"Dashed: chance ({format_number(chance, 0)}%).",
            describe_excluded(unfinished, labels, shown),
            *row_data_notes(rows),
            _curves_takeaway(points),
        ]
    )


def _unfinished(rows: Sequence[Row]) -> tuple[list[Row], set[str], int]:
    shown = [row for row in rows if row["level"]]
    return (
        [row for row in shown if row["status"] != "finished"],
        {label for row in shown for label in treatment_labels(row)},
        len(shown),
    )


def _curves_takeaway(points: Sequence[CurvePoint]) -> str:
    parts = []
    for side in SIDES:
        texts = []
        for kind in ("heuristic", "learned"):
            group = [
                p for p in points if p.side == side and (p.series in (LEARNED, LEARNED_DWR)) == (kind == "learned")
            ]
            if group:
                best = max(group, key=lambda point: point.interval.mean)
                name = kind if kind == "learned" else f"{kind} mask ({best.series})"
                share = format_percent(best.remaining)
                texts.append(f"the best {name} reaches {best.interval.mean:.1f}% with {share}% of the weights")
        if texts:
            parts.append(f"on {side} {' and '.join(texts)}".replace("best learned", "best learned mask"))
    return f"Takeaway: {'; '.join(parts)}."


def _data_row(point: CurvePoint) -> Row:
    return {
        "weights": point.side,
        "series": point.series,
        "treatment": point.treatment,
        "level": point.level,
        "weights_remaining_percent": point.remaining,
        **mean_columns(point.interval),
        "values_by_seed": format_values(point.values),
    }


# --- Figure 6 ---

CRITERIA = ("random", "large_final")
"""Criteria of the masks, in the order of the rows."""

COLORS = {"untrained": INK, "random": GRAY, "large_final": BLUE}
"""First word of a row's name -> color."""


def has_untrained_masks(rows: Sequence[Row]) -> bool:
    """Return whether Figure 6 can be drawn: random and large_final masks on w_i have finished."""
    return all(any(_is_mask_on_initial_weights(row, criterion) for row in rows) for criterion in CRITERIA)


def _is_mask_on_initial_weights(row: Row, criterion: str) -> bool:
    """Return whether a row is a finished one-shot mask of the criterion, with no other setting, on w_i."""
    is_plain = row["status"] == "finished" and _is_plain_heuristic(row)
    return is_plain and row.get("mask1") == "rewind" and line_name(row) == criterion


def untrained_masks_figure(
    rows: Sequence[Row], title: str, chance: float, options: FigureOptions = DEFAULT_OPTIONS
) -> RenderedFigure:
    """Draw the accuracy of an untrained network: without a mask, with a random mask, with a large_final mask.

    Each mask at its level of best mean validation accuracy. The network without a mask is measured on the validation
    set, where training starts. Raises UserError unless both masks have finished.
    Source: Zhou et al. 2019, Sec. 5, Fig. 6.
    """
    if not has_untrained_masks(rows):
        raise UserError("there is nothing to draw: no random and large_final masks on w_i have finished")
    values = untrained_values(rows)
    labels = list(values)
    table: list[Row] = []
    for label, (by_seed, remaining) in values.items():
        interval = mean_interval([by_seed[seed] for seed in sorted(by_seed)], PERCENT)
        row: Row = {"network": label, "weights_remaining_percent": remaining, **mean_columns(interval)}
        table.append(row | {"values_by_seed": format_values(by_seed)})
    caption = _untrained_caption(rows, table)
    with style_context(options):
        height = ROW_HEIGHT * len(labels)
        page = FigurePage(title, caption, height + AXIS_HEIGHT + 0.05, options, labels)
        left = 0.2 + max_text_width(labels, 2.2, 6.8)
        width = page.width - left - 0.12
        axes = page.axes(left, 0.0, width, height, grid=True)
        axes.spines[["top", "right"]].set_visible(False)
        for place, (label, row) in enumerate(zip(labels, table, strict=True)):
            _draw_bar(axes, place, row, list(values[label][0].values()), COLORS[label.partition(" ")[0]])
        accuracies = [value for by_seed, _ in values.values() for value in by_seed.values()]
        accuracy_axis(axes, accuracies, chance, "linear", width)
        axes.set_xlim(left=0)
        row_labels(page, axes, labels, left - 0.08, height)
        axes.set_xlabel("Accuracy without training (%)")
    return RenderedFigure(page.finish(), page.caption, table)


def untrained_values(rows: Sequence[Row]) -> dict[str, tuple[dict[int, float], float]]:
    """Return the row of Figure 6 -> (accuracy in percent by seed, weights remaining in percent)."""
    masks: dict[str, tuple[dict[int, float], float]] = {}
    labels: set[str] = set()
    for criterion, (label, group) in _best_masks(rows).items():
        point = _point("w_i", criterion, criterion, group)
        masks[f"{criterion} mask ({format_percent(point.remaining)}% of the weights)"] = (point.values, point.remaining)
        labels.add(label)
    initial = {
        int(row["seed"] or 0): 100 * float(row["initial_validation_accuracy"] or 0)
        for row in rows
        if row["level"] == 0
        and row["status"] == "finished"
        and row.get("initial_validation_accuracy") is not None
        and labels.union([DENSE]).intersection(treatment_labels(row))
    }
    return ({"untrained network": (initial, 100.0)} if initial else {}) | masks


def _best_masks(rows: Sequence[Row]) -> dict[str, tuple[str, list[Row]]]:
    """Return criterion -> (treatment, rows of its level) of best mean validation accuracy, on w_i."""
    best = {}
    for criterion in CRITERIA:
        groups: dict[tuple[str, int], list[Row]] = defaultdict(list)
        for row in rows:
            if _is_mask_on_initial_weights(row, criterion):
                for label in treatment_labels(row):
                    groups[label, int(row["level"] or 0)].append(row)
        key = max(groups, key=lambda key: _validation_accuracy(groups[key]))
        best[criterion] = (key[0], groups[key])
    return best


def _chosen_treatments(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each criterion of which several treatments have a mask on w_i."""
    masks = {criterion: [row for row in rows if _is_mask_on_initial_weights(row, criterion)] for criterion in CRITERIA}
    several = [
        criterion
        for criterion, group in masks.items()
        if any(repeats_a_seed([row for row in group if row["level"] == level]) for level in {r["level"] for r in group})
    ]
    best = _best_masks(rows)
    return [
        f"Of the treatments with {name} masks the one of best validation accuracy: {best[name][0]}." for name in several
    ]


def _validation_accuracy(rows: Sequence[Row]) -> float:
    return fmean(float(row["early_stop_validation_accuracy"] or 0) for row in rows)


def _draw_bar(axes: Axes, place: int, row: Row, seeds: Sequence[float], color: str) -> None:
    mean, low, high = (row[name] for name in ("mean", "mean_low95", "mean_high95"))
    axes.barh(place, float(mean or 0), height=0.5, color=color, alpha=0.25, linewidth=0, zorder=2)
    tick: dict[str, Any] = {"alpha": 0.6, "markersize": 5.0, "markeredgewidth": 0.7, "zorder": 3}
    axes.plot(seeds, [place] * len(seeds), "|", color=color, **tick)
    if low is not None and high is not None:
        axes.plot([max(float(low), 0.0), float(high)], [place, place], color=color, linewidth=1.2, zorder=4)
    axes.plot(float(mean or 0), place, "o", color=color, zorder=5, markersize=4.4)


def _untrained_caption(rows: Sequence[Row], table: Sequence[Row]) -> str:
    counts = {int(row["n"] or 0) for row in table}
    means = {str(row["network"]).partition(" mask")[0]: float(row["mean"] or 0) for row in table}
    takeaway = (
        f"Takeaway: a large_final mask turns an untrained network into one of {means['large_final']:.1f}% accuracy; a "
        f"random mask gives {means['random']:.1f}%"
    )
    if "untrained network" in means:
        takeaway += f" and no mask {means['untrained network']:.1f}%"
    unfinished, labels, shown = _unfinished(rows)
    return join_sentences(
        [
            f"Network {check_one_experiment(rows)}, not trained: mean over {format_seeds(counts)}"
            f"{'; line: 95% t-interval; ticks: each seed' if max(counts) > 1 else ''}.",
            "Masks of the trained dense network at the level of best validation accuracy, on w_i; test accuracy. "
            "Without a mask: validation accuracy before training. Dashed: chance.",
            *_chosen_treatments(rows),
            describe_excluded(unfinished, labels | {DENSE}, shown),
            *row_data_notes(rows),
            f"{takeaway}.",
        ]
    )
