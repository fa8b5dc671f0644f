"""Heuristic supermasks: initial test accuracy against weights remaining, a panel for each kind of weights and schedule.

The paper's Figure 6: criteria are lines; nothing is trained once the masks are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import MeanInterval, mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, Value
from supermask.reporting.figures.accuracy import MARKER, remaining_weights_axis
from supermask.reporting.figures.caption import describe_excluded, join_sentences
from supermask.reporting.figures.layout import FigurePage, fit_text
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import INK, WIDTH, LineStyle, assign_styles, style_context
from supermask.store.tables import treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = {"rewind": "on w_i", "signed_constant": "on signed constants", "constant": "on random-sign constants"}
SCHEDULES = {"one_shot": "one-shot", "iterative": "iterative"}
PANEL_HEIGHT, HEADING, LEFT, BELOW, LEGEND_LINE, LEGEND_COLUMNS = 1.75, 0.2, 0.5, 0.42, 0.14, 5
"""Inches: a panel, its name, the y axis, the x axis, a line of the legend; and names in one."""

NEAR_CHANCE = 5.0
"""Percentage points: means that stay as near as that to chance are thin lines."""


@dataclass(frozen=True)
class _PanelKey:
    """A criterion's masks of one level and schedule, on one kind of weights."""

    schedule: str
    mask1: str
    criterion: str
    level: int


@dataclass(frozen=True)
class _PanelPoint:
    remaining: float
    interval: MeanInterval
    values: dict[int, float]


def is_heuristic(row: Row) -> bool:
    """Whether a row is a heuristic supermask: measured untrained, its mask from a criterion."""
    return bool(row["level"]) and row.get("trained") is False and row.get("criterion") not in (None, "learned")


def untrained_figure(rows: Sequence[Row], title: str, chance: float | None = None) -> RenderedFigure:
    """Test accuracy of untrained masked networks against weights remaining; a line a criterion, a panel for the rest.

    Mean over seeds with its 95% t-interval. A criterion that never gets further than `NEAR` points from `chance`
    (percent) in a panel is a thin line there, without band. Rescaled networks are not drawn: without biases a positive
    factor a layer changes no accuracy; the caption says by how much the measured ones differ. Rows as of one study.
    Raises UserError where nothing has finished.
    Source: paper.md section 6; figure 6 of the paper.
    """
    plain = _drawn_rows(rows)
    found = _measured(plain)
    if not found:
        raise UserError("there is nothing to draw: no heuristic supermask of this study is there; run the study first")
    criteria = list(dict.fromkeys(place.criterion for place in found))
    dense = [_share(row) for row in rows if row["level"] == 0 and row["status"] == "finished"]
    text = _caption(rows, plain, found, dense, chance)
    chosen = assign_styles(criteria)
    with style_context():
        columns = [mask1 for mask1 in (*WEIGHTS, *_others(found)) if any(p.mask1 == mask1 for p in found)]
        lines = [schedule for schedule in SCHEDULES if any(p.schedule == schedule for p in found)]
        grid = len(lines) * (HEADING + PANEL_HEIGHT) + BELOW
        page = FigurePage(title, text, grid + LEGEND_LINE * -(-len(criteria) // LEGEND_COLUMNS) + 0.08)
        width = (WIDTH - LEFT - 0.04) / len(columns) - 0.12
        for i, schedule in enumerate(lines):
            for j, mask1 in enumerate(columns):
                left, top = LEFT + j * (width + 0.12), i * (HEADING + PANEL_HEIGHT) + HEADING
                axes = page.axes(left, top, width, PANEL_HEIGHT, grid=True)
                here = {p: m for p, m in found.items() if (p.schedule, p.mask1) == (schedule, mask1)}
                _draw(axes, here, chosen, _near_chance(here, chance))
                name = fit_text(f"{WEIGHTS.get(mask1, f'on {mask1}')}, {SCHEDULES[schedule]}", width)
                page.text(left + width / 2, top - 0.04, name, ha="center", va="bottom")
                if dense:
                    axes.axhline(fmean(dense), color=INK, linestyle=(0, (1, 1.6)), linewidth=0.8, zorder=2.5)
                axes.tick_params(labelleft=j == 0, labelbottom=i == len(lines) - 1)
            page.text(0.08, top + PANEL_HEIGHT / 2, "Test accuracy (%)", 7.5, rotation=90, va="center")
        page.text(LEFT + (WIDTH - LEFT) / 2, grid - BELOW + 0.19, "Weights remaining (%)", 7.5, ha="center")
        _legend(page, criteria, chosen, grid)
    return RenderedFigure(page.figure, text, [_data_row(place, each) for place, each in found.items()])


def _near_chance(found: dict[_PanelKey, _PanelPoint], chance: float | None) -> set[str]:
    """Of a panel, the criteria whose means are within `NEAR` of chance at every level."""
    criteria = {place.criterion for place in found}
    if chance is None:
        return set()
    return criteria - {
        place.criterion for place, each in found.items() if abs(each.interval.mean - chance) > NEAR_CHANCE
    }


def _measured(rows: Sequence[Row]) -> dict[_PanelKey, _PanelPoint]:
    groups: dict[_PanelKey, list[Row]] = defaultdict(list)
    for row in rows:
        for schedule in str(row["schedule"]).split(" | "):
            groups[_PanelKey(schedule, str(row["mask1"]), _line(row), int(row["level"] or 0))].append(row)
    found = {}
    for place, group in groups.items():
        if len({row["seed"] for row in group}) < len(group):
            raise UserError(
                f"several runs of one seed are {place.criterion} at level {place.level}: a figure shows one study."
            )
        values = {int(row["seed"] or 0): _share(row) for row in group}
        remaining = fmean(100 * float(row["density"] or 0) for row in group)
        found[place] = _PanelPoint(remaining, mean_interval([values[seed] for seed in sorted(values)]), values)
    return found


def _line(row: Row) -> str:
    """The criterion, and whatever else is not usual about how the mask was made and what was pruned became."""
    usual = {"mask0": "zero", "scope": "layer", "w_init": "start", "w_final": "end"}
    other = [f"{key} {row[key]}" for key, value in usual.items() if row.get(key) not in (None, value)]
    return ", ".join([str(row["criterion"]), *other])


def _others(found: dict[_PanelKey, _PanelPoint]) -> list[str]:
    return sorted({place.mask1 for place in found} - set(WEIGHTS))


def _share(row: Row) -> float:
    value = row["early_stop_test_accuracy"]
    assert isinstance(value, int | float)
    return 100.0 * value


def _draw(axes: Axes, found: dict[_PanelKey, _PanelPoint], chosen: dict[str, LineStyle], faint: set[str]) -> None:
    for criterion, look in chosen.items():
        line = sorted(((p.level, m) for p, m in found.items() if p.criterion == criterion), key=lambda each: each[0])
        if not line:
            continue
        x, mean = [each.remaining for _, each in line], [each.interval.mean for _, each in line]
        if criterion in faint:
            axes.plot(x, mean, color=look.colour, linestyle=look.line, linewidth=0.6, alpha=0.75, zorder=2)
            continue
        low = [each.interval.mean if each.interval.low is None else each.interval.low for _, each in line]
        high = [each.interval.mean if each.interval.high is None else each.interval.high for _, each in line]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.1, linewidth=0, zorder=1.5)
        axes.plot(x, mean, color=look.colour, linestyle=look.line, linewidth=1.0, zorder=3)
        axes.plot(x, mean, color=look.colour, marker=look.marker, zorder=3.5, **(MARKER | {"markersize": 3.2}))
    axes.set_ylim(0, 100)
    if found:
        remaining_weights_axis(axes, [each.remaining for each in found.values()], apart=0.17)


def _legend(page: FigurePage, criteria: Sequence[str], chosen: dict[str, LineStyle], top: float) -> None:
    from matplotlib.lines import Line2D

    styles: list[dict[str, Any]] = [MARKER | {"linestyle": chosen[c].line, "linewidth": 1.0} for c in criteria]
    handles = [
        Line2D([], [], color=chosen[c].colour, marker=chosen[c].marker, **style)
        for c, style in zip(criteria, styles, strict=True)
    ]
    legend = page.figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper center",
        bbox_to_anchor=page.at(WIDTH / 2, top),
        ncols=LEGEND_COLUMNS,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=2.6,
        columnspacing=1.0,
        labelspacing=0.3,
        fontsize=6.2,
    )
    for shown, label in zip(legend.get_texts(), criteria, strict=True):
        shown.set_parse_math(False)
        shown.set_text(fit_text(label, 1.6, size=6.2))


def _caption(
    rows: Sequence[Row],
    plain: Sequence[Row],
    found: dict[_PanelKey, _PanelPoint],
    dense: Sequence[float],
    chance: float | None,
) -> str:
    counts = sorted({each.interval.n for each in found.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    subject = f"{plain[0]['network']} on {plain[0]['dataset']}"
    band = "; band: 95% t-interval of the mean" if counts[-1] > 1 else ""
    sentences = [
        f"Network {subject}, never trained with its mask: mean over n = {n} seeds{band}.",
        "One-shot: masks of the trained dense network; iterative: masks of the chain trained level by level.",
        _rescaling(rows, plain),
        ""
        if chance is None
        else f"Thin, no band: never further than {NEAR_CHANCE:g} points from chance ({chance:g}%).",
        "Dotted line: the trained dense network." if dense else "",
    ]
    asked = [row for row in rows if is_heuristic(row) or row["level"] == 0]
    left = [row for row in asked if row["status"] != "finished"]
    return join_sentences(
        [*sentences, describe_excluded(left, {label for row in asked for label in treatment_labels(row)}, len(asked))]
    )


def _rescaling(rows: Sequence[Row], plain: Sequence[Row]) -> str:
    def key(row: Row) -> tuple[Value, ...]:
        return _line(row), *(row.get(name) for name in ("mask1", "schedule", "level", "seed"))

    there = {key(row): _share(row) for row in plain}
    rescaled = [row for row in rows if is_heuristic(row) and row.get("rescaled") and row["status"] == "finished"]
    apart = [abs(_share(row) - there[key(row)]) for row in rescaled if key(row) in there]
    if not apart:
        return ""
    return f"Rescaled networks ({len(apart)} pairs) differ from these by at most {max(apart):.2g} points."


def _data_row(place: _PanelKey, each: _PanelPoint) -> Row:
    return {
        "schedule": place.schedule,
        "mask1": place.mask1,
        "criterion": place.criterion,
        "level": place.level,
        "weights_remaining_percent": each.remaining,
        "n": each.interval.n,
        "mean": each.interval.mean,
        "mean_low95": each.interval.low,
        "mean_high95": each.interval.high,
        "values_by_seed": " ".join(f"{seed}={value:.6g}" for seed, value in sorted(each.values.items())),
    }


def heuristic_points(rows: Sequence[Row]) -> list[Row]:
    """The numbers that the figure shows, a row a criterion, kind of weights, schedule and level; without drawing it."""
    plain = _drawn_rows(rows)
    return [_data_row(place, each) for place, each in _measured(plain).items()]


def heuristic_caption(rows: Sequence[Row], chance: float | None = None) -> str:
    """What the figure says below itself; of rows that it has something to draw of."""
    plain = _drawn_rows(rows)
    dense = [_share(row) for row in rows if row["level"] == 0 and row["status"] == "finished"]
    return _caption(rows, plain, _measured(plain), dense, chance)


def _drawn_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if is_heuristic(row) and row["status"] == "finished" and not row.get("rescaled")]
