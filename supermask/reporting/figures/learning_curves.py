"""How fast masks are learned: validation accuracy against iterations, a line a treatment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import MeanInterval, mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.accuracy import BAND, MANY, accuracy_ticks, log_error_scale
from supermask.reporting.figures.layout import FigurePage, fit_text
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import WIDTH, LineStyle, assign_styles, style_context

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT, LEGEND = 2.6, 1.95
"""Inches: the axes at least; the legend's width."""


def learning_curves_figure(points: Sequence[Row], title: str) -> RenderedFigure:
    """Validation accuracy while masks are learned; mean over seeds with its 95% t-interval.

    `points`: `treatment`, `seed`, `iteration`, `validation_accuracy` (a share), as of `rows.curves_of_plan`. Both axes
    are logarithmic, that of the accuracy in the error. Raises UserError where no mask was learned.
    Source: paper.md section 6 (answer 8: does a mask that starts from a heuristic learn faster?).
    """
    found = _means(points)
    if not found:
        raise UserError("there is nothing to draw: no mask of this study has been learned; run the study first")
    chosen, text = assign_styles(list(found)), _caption(points, found)
    with style_context():
        names = {label: fit_text(label, LEGEND - 0.4, lines=3, size=6.4) for label in found}
        height = max(HEIGHT, 0.08 + sum(0.155 + 0.11 * name.count("\n") for name in names.values()))
        page = FigurePage(title, text, height + 0.42)
        axes = page.axes(0.5, 0.0, WIDTH - 0.5 - LEGEND - 0.1, height, grid=True)
        axes.spines[["top", "right"]].set_visible(False)
        _draw(axes, found, chosen)
        _legend(page, names, chosen)
    data = [_data_row(label, iteration, mean) for label, line in found.items() for iteration, mean in line.items()]
    return RenderedFigure(page.figure, text, data)


def _legend(page: FigurePage, names: dict[str, str], chosen: dict[str, LineStyle]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=look.colour, marker=look.marker, **_style(look)) for look in chosen.values()]
    # Labels are set afterwards: matplotlib drops those that begin with "_" and reads "$" as mathematics.
    legend = page.figure.legend(
        handles,
        [str(number) for number in range(len(handles))],
        loc="upper left",
        bbox_to_anchor=page.at(WIDTH - LEGEND, 0.0),
        frameon=False,
        borderaxespad=0,
        handlelength=3.0,
        fontsize=6.4,
    )
    for shown, label in zip(legend.get_texts(), chosen, strict=True):
        shown.set_parse_math(False)
        shown.set_text(names[label])


def _style(look: LineStyle) -> dict[str, Any]:
    edge = {"markersize": 3.2, "markeredgecolor": "white", "markeredgewidth": 0.4}
    return {**edge, "linewidth": 1.0, "linestyle": look.line}


def _means(points: Sequence[Row]) -> dict[str, dict[int, MeanInterval]]:
    """Treatment -> iteration -> mean over seeds, in percent; iterations that all of its seeds have."""
    values: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for point in points:
        accuracy = point["validation_accuracy"]
        assert isinstance(accuracy, int | float)
        values[str(point["treatment"])][int(point["iteration"] or 0)][int(point["seed"] or 0)] = 100 * accuracy
    found: dict[str, dict[int, MeanInterval]] = {}
    for label, line in values.items():
        seeds = max(map(len, line.values()))
        whole = {i: by_seed for i, by_seed in sorted(line.items()) if len(by_seed) == seeds and i > 0}
        if whole:
            found[label] = {i: mean_interval([by_seed[s] for s in sorted(by_seed)]) for i, by_seed in whole.items()}
    return found


def _draw(axes: Axes, found: dict[str, dict[int, MeanInterval]], chosen: dict[str, LineStyle]) -> None:
    for label, line in found.items():
        look, x = chosen[label], list(line)
        low = [each.mean if each.low is None else each.low for each in line.values()]
        high = [each.mean if each.high is None else min(each.high, 99.99) for each in line.values()]
        axes.fill_between(x, low, high, color=look.colour, alpha=BAND if len(found) < MANY else BAND / 2, linewidth=0)
        mean = [each.mean for each in line.values()]
        every = max(1, len(x) // 8)
        axes.plot(x, mean, color=look.colour, marker=look.marker, markevery=every, **_style(look))
    means = [each.mean for line in found.values() for each in line.values()]
    least = max((100 - max(means)) / 1.15, 0.02)
    axes.set_xscale("log")
    axes.set_yscale("function", functions=log_error_scale(least / 1e3))
    axes.set_ylim(max(min(means) - 2, 0), 100 - least)
    ticks = accuracy_ticks(*axes.get_ylim())
    axes.set_yticks(ticks, [format_percent(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    first, last = min(min(line) for line in found.values()), max(max(line) for line in found.values())
    places = [n for k in range(9) for n in (10**k, 2 * 10**k, 5 * 10**k) if first <= n <= last]
    axes.set_xticks(places, [f"{n:,}" for n in places])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("Iteration")
    axes.set_ylabel("Validation accuracy (%)")


def _caption(points: Sequence[Row], found: dict[str, dict[int, MeanInterval]]) -> str:
    counts = sorted({each.n for line in found.values() for each in line.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    band = "; band: 95% t-interval of the mean" if counts[-1] > 1 else ""
    return (
        f"Validation accuracy of the mask's single samples while it is learned: mean over n = {n} seeds{band}. "
        "Untrained masks, at iteration 0, are not shown. The accuracy axis is logarithmic in the error."
    )


def _data_row(label: str, iteration: int, mean: MeanInterval) -> Row:
    return {
        "treatment": label,
        "iteration": iteration,
        "n": mean.n,
        "mean": mean.mean,
        "mean_low95": mean.low,
        "mean_high95": mean.high,
    }


def average_curves(points: Sequence[Row]) -> list[Row]:
    """The numbers that the figure shows, a row a treatment and iteration; without drawing it. None: nothing to draw."""
    return [
        _data_row(label, iteration, mean) for label, line in _means(points).items() for iteration, mean in line.items()
    ]


def curves_caption(points: Sequence[Row]) -> str:
    """What the figure says below itself; of points that it has something to draw of."""
    return _caption(points, _means(points))
