"""Heuristic supermasks: initial test accuracy against weights remaining, a panel for each kind of weights and schedule.

The paper's Figure 6: criteria are lines; nothing is trained once the masks are there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supermask.errors import UserError
from supermask.figures.caption import wrap
from supermask.figures.lines import CAPTION_SIZE, MARKER, TITLE_SIZE
from supermask.figures.save import DPI, Drawn
from supermask.figures.style import INK, RC, WIDTH, Look, looks, percent, thinned
from supermask.figures.text import text_width
from supermask.stats import MeanInterval, mean_interval
from supermask.tables import Row, Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEIGHTS = {"rewind": "on $w_i$", "signed_constant": "on signed constants", "constant": "on random-sign constants"}
SCHEDULES = {"one_shot": "one-shot", "iterative": "iterative"}
PANEL_HEIGHT, LEGEND_HEIGHT, TOP, BOTTOM = 1.75, 0.62, 0.42, 0.36
"""Inches."""


@dataclass(frozen=True)
class _Place:
    """A criterion's masks of one level and schedule, on one kind of weights."""

    schedule: str
    mask1: str
    criterion: str
    level: int


@dataclass(frozen=True)
class _Measured:
    remaining: float
    interval: MeanInterval
    values: dict[int, float]


def is_heuristic(row: Row) -> bool:
    """Whether a row is a heuristic supermask: measured untrained, its mask from a criterion."""
    return bool(row["level"]) and row.get("trained") is False and row.get("criterion") not in (None, "learned")


def heuristic_figure(rows: Sequence[Row], title: str) -> Drawn:
    """Test accuracy of untrained masked networks against weights remaining; a line a criterion, a panel for the rest.

    Mean over seeds with its 95% t-interval. Rescaled networks are not drawn: without biases a positive factor a layer
    changes no accuracy; the caption says by how much the measured ones differ. Rows as of one study.
    Source: paper.md section 6; figure 6 of the paper.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plain = _drawn_rows(rows)
    found = _measured(plain)
    criteria = list(dict.fromkeys(place.criterion for place in found))
    columns = [mask1 for mask1 in (*WEIGHTS, *_others(found)) if any(p.mask1 == mask1 for p in found)]
    lines = [schedule for schedule in SCHEDULES if any(p.schedule == schedule for p in found)]
    dense = [_share(row) for row in rows if row["level"] == 0 and row["status"] == "finished"]
    with matplotlib.rc_context(RC):
        figure = Figure(dpi=DPI)
        FigureCanvasAgg(figure)
        text = _caption(rows, plain, found, dense)
        words = wrap(text, WIDTH - 0.16, lambda part: text_width(figure)(part, CAPTION_SIZE))
        below = len(words) * CAPTION_SIZE * 1.3 / 72 + 0.12
        legend_height = 0.14 * -(-len(criteria) // 5) + 0.1
        height = TOP + len(lines) * (PANEL_HEIGHT + BOTTOM) + legend_height + below
        figure.set_size_inches(WIDTH, height)
        chosen = looks(criteria)
        step = (WIDTH - 0.5) / len(columns)
        for i, schedule in enumerate(lines):
            for j, mask1 in enumerate(columns):
                bottom = height - TOP - (i + 1) * PANEL_HEIGHT - i * BOTTOM
                box = ((0.5 + j * step) / WIDTH, bottom / height, (step - 0.12) / WIDTH, PANEL_HEIGHT / height)
                axes = figure.add_axes(box)
                _draw(axes, {p: m for p, m in found.items() if (p.schedule, p.mask1) == (schedule, mask1)}, chosen)
                axes.set_title(f"{WEIGHTS.get(mask1, mask1)}, {SCHEDULES[schedule]}", fontsize=7.2, pad=2.5)
                if dense:
                    axes.axhline(fmean(dense), color=INK, linestyle=(0, (1, 1.6)), linewidth=0.8, zorder=2.5)
                if j:
                    axes.set_yticklabels([])
                else:
                    axes.set_ylabel("Test accuracy (%)")
                if i == len(lines) - 1:
                    axes.set_xlabel("Weights remaining (%)")
        _legend(figure, criteria, chosen, (below + legend_height) / height)
        place: dict[str, Any] = {"va": "top", "color": INK}
        figure.text(
            0.5 / WIDTH, 1 - 0.06 / height, title, fontsize=TITLE_SIZE, fontweight="bold", parse_math=False, **place
        )
        figure.text(
            0.08 / WIDTH,
            below / height,
            "\n".join(words),
            fontsize=CAPTION_SIZE,
            linespacing=1.3,
            parse_math=False,
            **place,
        )
    return Drawn(figure, text, [_data_row(place, each) for place, each in found.items()])


def _measured(rows: Sequence[Row]) -> dict[_Place, _Measured]:
    groups: dict[_Place, list[Row]] = defaultdict(list)
    for row in rows:
        for schedule in str(row["schedule"]).split(" | "):
            groups[_Place(schedule, str(row["mask1"]), _line(row), int(row["level"] or 0))].append(row)
    found = {}
    for place, group in groups.items():
        if len({row["seed"] for row in group}) < len(group):
            raise UserError(
                f"several runs of one seed are {place.criterion} at level {place.level}: a figure shows one study."
            )
        values = {int(row["seed"] or 0): _share(row) for row in group}
        remaining = fmean(100 * float(row["density"] or 0) for row in group)
        found[place] = _Measured(remaining, mean_interval([values[seed] for seed in sorted(values)]), values)
    return found


def _line(row: Row) -> str:
    """The criterion, and whatever else is not usual about how the mask was made and what was pruned became."""
    usual = {"mask0": "zero", "scope": "layer", "w_init": "start", "w_final": "end"}
    other = [f"{key} {row[key]}" for key, value in usual.items() if row.get(key) not in (None, value)]
    return ", ".join([str(row["criterion"]), *other])


def _others(found: dict[_Place, _Measured]) -> list[str]:
    return sorted({place.mask1 for place in found} - set(WEIGHTS))


def _share(row: Row) -> float:
    value = row["early_stop_test_accuracy"]
    assert isinstance(value, int | float)
    return 100.0 * value


def _draw(axes: Axes, found: dict[_Place, _Measured], chosen: dict[str, Look]) -> None:
    for criterion, look in chosen.items():
        line = sorted(((p.level, m) for p, m in found.items() if p.criterion == criterion), key=lambda each: each[0])
        if not line:
            continue
        x = [each.remaining for _, each in line]
        low = [each.interval.mean if each.interval.low is None else each.interval.low for _, each in line]
        high = [each.interval.mean if each.interval.high is None else each.interval.high for _, each in line]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.1, linewidth=0, zorder=1.5)
        mean = [each.interval.mean for _, each in line]
        axes.plot(x, mean, color=look.colour, linestyle=look.line, linewidth=0.9, zorder=3)
        axes.plot(x, mean, color=look.colour, marker=look.marker, zorder=3.5, **(MARKER | {"markersize": 2.8}))
    remaining = sorted({each.remaining for each in found.values()}, reverse=True)
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    if remaining:
        axes.set_xlim(remaining[0] * 1.1, remaining[-1] / 1.1)
        where = [-_log(value) for value in remaining]
        kept = thinned(where, 0.17 * ((where[-1] - where[0]) or 1.0))
        axes.set_xticks([remaining[i] for i in kept], [percent(remaining[i]) for i in kept])
    axes.set_xticks([], minor=True)


def _log(value: float) -> float:
    from math import log10

    return log10(value)


def _legend(figure: Any, criteria: Sequence[str], chosen: dict[str, Look], top: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            color=chosen[c].colour,
            marker=chosen[c].marker,
            **(MARKER | {"linestyle": chosen[c].line, "linewidth": 1.0}),
        )
        for c in criteria
    ]
    legend = figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=5,
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
        shown.set_text(label)


def _caption(rows: Sequence[Row], plain: Sequence[Row], found: dict[_Place, _Measured], dense: Sequence[float]) -> str:
    counts = sorted({each.interval.n for each in found.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    subject = f"{plain[0]['network']} on {plain[0]['dataset']}"
    band = "; band: 95% t-interval of the mean" if counts[-1] > 1 else ""
    sentences = [
        f"Network {subject}, never trained with its mask: mean over n = {n} seeds{band}.",
        "One-shot: masks of the trained dense network; iterative: masks of the chain trained level by level.",
        _rescaling(rows, plain),
        "Dotted line: the trained dense network." if dense else "",
    ]
    left = sum(is_heuristic(row) and row["status"] != "finished" for row in rows)
    sentences.append(f"{left} runs are still to do or did not finish." if left else "")
    return " ".join(sentence for sentence in sentences if sentence)


def _rescaling(rows: Sequence[Row], plain: Sequence[Row]) -> str:
    def key(row: Row) -> tuple[Value, ...]:
        return _line(row), *(row.get(name) for name in ("mask1", "schedule", "level", "seed"))

    there = {key(row): _share(row) for row in plain}
    rescaled = [row for row in rows if is_heuristic(row) and row.get("rescaled") and row["status"] == "finished"]
    apart = [abs(_share(row) - there[key(row)]) for row in rescaled if key(row) in there]
    if not apart:
        return ""
    return f"Rescaled networks ({len(apart)} pairs) differ from these by at most {max(apart):.2g} points."


def _data_row(place: _Place, each: _Measured) -> Row:
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


def heuristic_caption(rows: Sequence[Row]) -> str:
    """What the figure says below itself; of rows that it has something to draw of."""
    plain = _drawn_rows(rows)
    dense = [_share(row) for row in rows if row["level"] == 0 and row["status"] == "finished"]
    return _caption(rows, plain, _measured(plain), dense)


def _drawn_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if is_heuristic(row) and row["status"] == "finished" and not row.get("rescaled")]
