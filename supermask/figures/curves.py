"""How fast masks are learned: validation accuracy against iterations, a line a treatment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from supermask.errors import UserError
from supermask.figures.caption import wrap
from supermask.figures.lines import CAPTION_SIZE, TITLE_SIZE, accuracy_ticks, error_scale
from supermask.figures.save import DPI, Drawn
from supermask.figures.style import INK, RC, WIDTH, looks, percent
from supermask.figures.text import text_width
from supermask.stats import MeanInterval, mean_interval
from supermask.tables import Row

HEIGHT, LEGEND = 2.6, 1.95
"""Inches: the axes; the legend's width."""


def curves_figure(points: Sequence[Row], title: str) -> Drawn:
    """Validation accuracy while masks are learned; mean over seeds with its 95% t-interval.

    `points`: `treatment`, `seed`, `iteration`, `validation_accuracy` (a share), as of `rows.curves_of_plan`. Both axes
    are logarithmic, that of the accuracy in the error. Raises UserError where no mask was learned.
    Source: paper.md section 6 (answer 8: does a mask that starts from a heuristic learn faster?).
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = _means(points)
    if not found:
        raise UserError("there is nothing to draw: no mask of this study has been learned; run the study first")
    with matplotlib.rc_context(RC):
        figure = Figure(dpi=DPI)
        FigureCanvasAgg(figure)
        width_of = text_width(figure)
        text = _caption(points, found)
        lines = wrap(text, WIDTH - 0.16, lambda part: width_of(part, CAPTION_SIZE))
        below = len(lines) * CAPTION_SIZE * 1.3 / 72 + 0.1
        height = 0.32 + HEIGHT + 0.42 + below
        figure.set_size_inches(WIDTH, height)
        box = (0.5 / WIDTH, (below + 0.42) / height, (WIDTH - 0.5 - LEGEND - 0.1) / WIDTH, HEIGHT / height)
        axes = figure.add_axes(box)
        _draw(axes, found)
        names = {label: "\n".join(wrap(label, LEGEND - 0.4, lambda part: width_of(part, 6.4))) for label in found}
        handles, labels = axes.get_legend_handles_labels()
        legend = figure.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=((WIDTH - LEGEND) / WIDTH, 1 - 0.32 / height),
            frameon=False,
            borderaxespad=0,
            handlelength=2.2,
            fontsize=6.4,
        )
        for shown, label in zip(legend.get_texts(), found, strict=True):
            shown.set_parse_math(False)
            shown.set_text(names[label])
        place: dict[str, Any] = {"va": "top", "color": INK, "parse_math": False}
        figure.text(0.08 / WIDTH, 1 - 0.08 / height, title, fontsize=TITLE_SIZE, fontweight="bold", **place)
        words = "\n".join(lines)
        figure.text(0.08 / WIDTH, below / height, words, fontsize=CAPTION_SIZE, linespacing=1.3, **place)
    data = [_data_row(label, iteration, mean) for label, line in found.items() for iteration, mean in line.items()]
    return Drawn(figure, text, data)


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


def _draw(axes: Any, found: dict[str, dict[int, MeanInterval]]) -> None:
    chosen = looks(list(found))
    for label, line in found.items():
        look, x = chosen[label], list(line)
        low = [each.mean if each.low is None else each.low for each in line.values()]
        high = [each.mean if each.high is None else min(each.high, 99.99) for each in line.values()]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0)
        mean = [each.mean for each in line.values()]
        every = max(1, len(x) // 8)
        style: dict[str, Any] = {
            "marker": look.marker,
            "markevery": every,
            "markersize": 3.2,
            "markeredgecolor": "white",
        }
        style |= {"markeredgewidth": 0.4, "linewidth": 1.0, "linestyle": look.line}
        axes.plot(x, mean, color=look.colour, label="x", **style)
    means = [each.mean for line in found.values() for each in line.values()]
    least = max((100 - max(means)) / 1.15, 0.02)
    axes.set_xscale("log")
    axes.set_yscale("function", functions=error_scale(least / 1e3))
    axes.set_ylim(max(min(means) - 2, 0), 100 - least)
    ticks = accuracy_ticks(*axes.get_ylim())
    axes.set_yticks(ticks, [percent(tick) for tick in ticks])
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


def curve_rows(points: Sequence[Row]) -> list[Row]:
    """The numbers that the figure shows, a row a treatment and iteration; without drawing it. None: nothing to draw."""
    return [
        _data_row(label, iteration, mean) for label, line in _means(points).items() for iteration, mean in line.items()
    ]


def curves_caption(points: Sequence[Row]) -> str:
    """What the figure says below itself; of points that it has something to draw of."""
    return _caption(points, _means(points))
