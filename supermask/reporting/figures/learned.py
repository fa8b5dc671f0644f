"""Supermasks side by side: a row a treatment, test accuracies of the several networks that its mask stands for.

The paper's Figure 7 and Table 1: learned masks beside the best heuristic one, what becomes of them when they are
hardened or robbed of their signs, and the trained dense network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import SIGNIFICANCE, Comparison, MeanInterval, compare, holm, mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent
from supermask.reporting.figures.accuracy import accuracy_ticks, log_error_scale
from supermask.reporting.figures.caption import describe_excluded, join_sentences
from supermask.reporting.figures.layout import FigurePage, fit_text, max_text_width
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import BLUE, GREEN, INK, ORANGE, VERMILION, WIDTH, style_context
from supermask.reporting.figures.untrained import is_heuristic
from supermask.store.tables import DENSE, treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _NetworkKind:
    column: str
    words: str
    marker: str
    colour: str


KINDS = {
    "samples": _NetworkKind("early_stop_test_accuracy", "mean of the mask's single samples", "o", BLUE),
    "thresholded": _NetworkKind("thresholded_test_accuracy", "thresholded (p > 0.5)", "s", VERMILION),
    "expected": _NetworkKind("expected_test_accuracy", "expected network (weights times p)", "^", GREEN),
    "untrained": _NetworkKind("early_stop_test_accuracy", "one mask on untrained weights", "D", ORANGE),
}
ROW_HEIGHT, LABEL_WIDTH, BELOW = 0.23, 1.9, 0.62
"""Inches: a treatment, its name at most, x axis and legend."""


@dataclass(frozen=True)
class MaskResult:
    """One network of one treatment, over seeds."""

    treatment: str
    kind: str
    level: int
    density: float
    """Share of the weights in the mask, in percent; expected for samples and the expected network."""
    values: dict[int, float]
    interval: MeanInterval
    comparison: Comparison | None = None
    p_holm: float | None = None


def has_learned_masks(rows: Sequence[Row]) -> bool:
    """Whether any finished run of these learned a mask."""
    return any(row.get("supermask") and row["status"] == "finished" for row in rows)


def supermask_figure(
    rows: Sequence[Row], treatments: Sequence[str], reference: str, title: str, chance: float
) -> RenderedFigure:
    """Test accuracy of every supermask that is not trained on; mean over seeds, its 95% t-interval, and each seed.

    A learned mask is there by its single samples (the paper's number), thresholded, and as the expected network; a
    heuristic one at the level of best mean validation accuracy. Compared with `reference`, paired by seed, where that
    learned a mask. `chance`: percent. The axis is logarithmic in the error. Raises UserError if nothing has finished.
    Source: paper.md sections 6 and 7; figure 7 and Table 1 of the paper.
    """
    bars = _compared(compute_mask_results(rows, treatments), reference)
    if not bars:
        raise UserError("there is nothing to draw: no supermask of this study has finished; run the study first")
    dense = {int(row["seed"] or 0): _percent(row, "early_stop_test_accuracy") for row in _finished(rows, DENSE)}
    text = _caption(rows, bars, reference, bool(dense))
    return RenderedFigure(_draw(bars, treatments, dense, chance, title, text), text, [_data_row(bar) for bar in bars])


def compute_mask_results(rows: Sequence[Row], treatments: Sequence[str]) -> list[MaskResult]:
    """In the order of the treatments. A mask that several go on from is there once, under one that stops at it."""
    bars: dict[str, list[MaskResult]] = {}
    shown: set[object] = set()
    for followed in (False, True):
        for label in treatments:
            own = _finished(rows, label)
            untrained = [row for row in own if row.get("trained") is False]
            learned = [row for row in own if row.get("supermask")]
            trained = any(row["level"] and row.get("trained") and not row.get("supermask") for row in _all(rows, label))
            if untrained and not followed:
                bars[label] = [_bar(label, "untrained", _best_level(untrained))]
            elif learned and not untrained and trained == followed and not shown & {row["id"] for row in learned}:
                sampled = learned[0]["supermask"] == "bernoulli"
                kinds = ("samples", "thresholded", "expected") if sampled else ("samples",)
                bars[label] = [_bar(label, kind, learned) for kind in kinds]
                shown |= {row["id"] for row in learned}
    return [bar for label in treatments for bar in bars.get(label, [])]


def _finished(rows: Sequence[Row], label: str) -> list[Row]:
    return [row for row in _all(rows, label) if row["status"] == "finished"]


def _all(rows: Sequence[Row], label: str) -> list[Row]:
    return [row for row in rows if label in treatment_labels(row)]


def _best_level(rows: Sequence[Row]) -> list[Row]:
    """Of one treatment's levels the one of best mean accuracy on the validation set."""
    levels: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        levels[int(row["level"] or 0)].append(row)
    return max(levels.values(), key=_validated)


def _validated(rows: Sequence[Row]) -> float:
    return fmean(_percent(row, "early_stop_validation_accuracy") for row in rows)


def _bar(label: str, kind: str, rows: Sequence[Row]) -> MaskResult:
    values = {int(row["seed"] or 0): _percent(row, KINDS[kind].column) for row in rows}
    share = "expected_density" if kind in ("samples", "expected") else "density"
    density = fmean(_percent(row, share) for row in rows)
    interval = mean_interval([values[seed] for seed in sorted(values)])
    return MaskResult(label, kind, int(rows[0]["level"] or 0), density, values, interval)


def _compared(bars: Sequence[MaskResult], reference: str) -> list[MaskResult]:
    """Every treatment's first network with that of the reference; Holm over the treatments."""
    first = {bar.treatment: bar for bar in reversed(bars)}
    if reference not in first:
        return list(bars)
    others = [bar for label, bar in first.items() if label != reference]
    comparisons = [compare(bar.values, first[reference].values) for bar in others]
    adjusted = holm([comparison.p for comparison in comparisons])
    found = {bar.treatment: (c, p) for bar, c, p in zip(others, comparisons, adjusted, strict=True)}
    return [
        MaskResult(b.treatment, b.kind, b.level, b.density, b.values, b.interval, *found[b.treatment])
        if b is first[b.treatment] and b.treatment in found
        else b
        for b in bars
    ]


def _percent(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, int | float), f"{column} of run {row.get('id')} is {value!r}"
    return 100.0 * value


def _draw(
    bars: Sequence[MaskResult], treatments: Sequence[str], dense: dict[int, float], chance: float, title: str, text: str
) -> Any:
    with style_context():
        labels = [label for label in treatments if any(bar.treatment == label for bar in bars)]
        height = ROW_HEIGHT * len(labels) + 0.15
        page = FigurePage(title, text, height + BELOW)
        left = 0.2 + max_text_width(labels, LABEL_WIDTH, 6.8)
        axes = page.axes(left, 0.0, WIDTH - left - 0.12, height, grid=True)
        axes.spines[["top", "right"]].set_visible(False)
        _draw_bars(axes, bars, labels)
        seen = [value for bar in bars for value in bar.values.values()]
        accuracy_axis(axes, [*seen, *dense.values()], chance)
        if dense:
            axes.axvline(fmean(dense.values()), color=INK, linestyle=(0, (1, 1.6)), linewidth=0.9, zorder=1.5)
        row_labels(page, axes, labels, left - 0.08, height)
        axes.set_xlabel("Test accuracy (%)")
        _legend(page, bars, height + BELOW - 0.2)
    return page.figure


def row_labels(
    page: FigurePage, axes: Axes, labels: Sequence[str], right: float, height: float, top: float = 0.0
) -> None:
    """A row a label, from the top down, its name before the axes; where they begin and how high they are in inches."""
    axes.set(ylim=(len(labels) - 0.4, -0.6), yticks=[])
    for place, label in enumerate(labels):
        middle = top + (place + 0.6) / (len(labels) + 0.2) * height
        page.text(right, middle, fit_text(label, LABEL_WIDTH, lines=2), 6.8, ha="right", va="center")


def _draw_bars(axes: Axes, bars: Sequence[MaskResult], labels: Sequence[str]) -> None:
    for bar in bars:
        kinds = [each.kind for each in bars if each.treatment == bar.treatment]
        offset = 0.0 if len(kinds) == 1 else 0.22 * (kinds.index(bar.kind) - 1)
        y, kind = labels.index(bar.treatment) + offset, KINDS[bar.kind]
        seeds = list(bar.values.values())
        tick: dict[str, Any] = {"alpha": 0.45, "markersize": 3.5, "markeredgewidth": 0.7, "zorder": 2}
        axes.plot(seeds, [y] * len(seeds), "|", color=kind.colour, **tick)
        if bar.interval.low is not None and bar.interval.high is not None:
            ends = [max(bar.interval.low, 0.0), min(bar.interval.high, 99.99)]
            axes.plot(ends, [y, y], color=kind.colour, linewidth=1.0, zorder=3)
        style: dict[str, Any] = {"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4, "zorder": 4}
        axes.plot([bar.interval.mean], [y], kind.marker, color=kind.colour, **style)


def accuracy_axis(axes: Axes, values: Sequence[float], chance: float) -> None:
    """Test accuracy along x, logarithmic in the error, from below the lowest value; a dashed line at chance."""
    low, high = max(min(*values, chance) - 4, 0.0), max(*values, chance)
    least = max((100 - high) / 1.25, 0.02)
    axes.set_xscale("function", functions=log_error_scale(least / 1e3))
    axes.set_xlim(low, 100 - least)
    ticks = sorted({chance, *(tick for tick in accuracy_ticks(low, 100 - least) if tick > chance + 15)})
    axes.set_xticks(ticks, [format_percent(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(chance, color=INK, linestyle=(0, (4, 2)), linewidth=0.7, zorder=1.5)


def _legend(page: FigurePage, bars: Sequence[MaskResult], top: float) -> None:
    from matplotlib.lines import Line2D

    shown = [KINDS[name] for name in KINDS if any(bar.kind == name for bar in bars)]
    style = {"linestyle": "none", "markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4}
    handles = [Line2D([], [], marker=kind.marker, color=kind.colour, **style) for kind in shown]  # type: ignore[arg-type]
    at = page.at(WIDTH / 2, top)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": at, "ncols": 4, "frameon": False}
    place |= {"columnspacing": 1.0, "handletextpad": 0.2, "fontsize": 6.2, "borderaxespad": 0.0, "borderpad": 0.0}
    page.figure.legend(handles, [kind.words for kind in shown], **place)


def _caption(rows: Sequence[Row], bars: Sequence[MaskResult], reference: str, dense: bool) -> str:
    counts = sorted({bar.interval.n for bar in bars})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    first = next(row for row in rows if row["status"] == "finished")
    sentences = [f"Network {first['network']} on {first['dataset']}: mean over n = {n} seed{'' if n == '1' else 's'}"]
    sentences[0] += ", bar: its 95% t-interval; ticks: each seed." if counts[-1] > 1 else "."
    if any(bar.kind == "samples" for bar in bars):
        sentences.append("A learned supermask's accuracy is the mean over single samples of its mask, as in the paper.")
    labels = {bar.treatment for bar in bars if bar.kind == "untrained"}
    if any(is_heuristic(row) and labels.intersection(treatment_labels(row)) for row in rows):
        sentences.append("Heuristic masks: at the level of best validation accuracy.")
    sentences.append("Dashed: chance." + (" Dotted: the trained dense network." if dense else ""))
    told = [bar for bar in bars if bar.p_holm is not None]
    if told:
        same = [bar.treatment for bar in told if bar.p_holm is not None and bar.p_holm >= SIGNIFICANCE]
        paired = {bar.comparison.test for bar in told if bar.comparison} == {"paired t"}
        test = "paired t-test over seeds" if paired else "paired t-test where both have the same seeds, else Welch's"
        test = f"({test}; Holm over {len(told)} treatments, p < {SIGNIFICANCE})"
        counted = f"{len(told) - len(same)} of {len(told)} differ from {reference}"
        sentences.append(f"{counted} {test}; not: {'; '.join(same)}.")
        if not same or len(same) == len(told):
            sentences[-1] = f"{'None differs' if same else 'All differ'} from {reference} {test}."
    untested = [bar.treatment for bar in bars if bar.comparison is not None and bar.p_holm is None]
    sentences.append(f"Not tested (too few seeds, or no spread): {'; '.join(untested)}." if untested else "")
    left = [row for row in rows if row["status"] != "finished"]
    return join_sentences(
        [*sentences, describe_excluded(left, {label for row in rows for label in treatment_labels(row)}, len(rows))]
    )


def _data_row(bar: MaskResult) -> Row:
    c = bar.comparison
    low, high = (c.interval95 or (None, None)) if c else (None, None)
    return {
        "treatment": bar.treatment,
        "network": bar.kind,
        "level": bar.level,
        "density_percent": bar.density,
        "n": bar.interval.n,
        "mean": bar.interval.mean,
        "mean_low95": bar.interval.low,
        "mean_high95": bar.interval.high,
        "difference": c.difference if c else None,
        "difference_low95": low,
        "difference_high95": high,
        "hedges_g": c.hedges_g if c else None,
        "test": c.test if c else None,
        "p": c.p if c else None,
        "p_holm": bar.p_holm,
        "values_by_seed": " ".join(f"{seed}={value:.6g}" for seed, value in sorted(bar.values.items())),
    }


def supermask_results(rows: Sequence[Row], treatments: Sequence[str], reference: str) -> list[MaskResult]:
    """The networks that the figure shows, compared with the reference; without drawing it."""
    return _compared(compute_mask_results(rows, treatments), reference)


def supermask_rows(bars: Sequence[MaskResult]) -> list[Row]:
    """The numbers behind the figure, one row a network."""
    return [_data_row(bar) for bar in bars]


def supermask_caption(rows: Sequence[Row], bars: Sequence[MaskResult], reference: str) -> str:
    """What the figure says below itself; `bars` are those of `supermask_bars`, of which there is at least one."""
    return _caption(rows, bars, reference, bool(_finished(rows, DENSE)))
