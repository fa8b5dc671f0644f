"""Figure of supermasks: one row per treatment, with the test accuracy of each network that its mask defines.

Learned masks next to the best heuristic mask and the trained dense network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import PERCENT, SIGNIFICANCE, Comparison, MeanInterval, compare, holm, mean_interval
from supermask.analysis.summary import without_test
from supermask.core.errors import UserError
from supermask.core.text import Row, format_percent
from supermask.datasets.specs import is_demonstration
from supermask.reporting.figures.accuracy import accuracy_ticks, log_error_scale, set_log_ticks
from supermask.reporting.figures.caption import describe_excluded, format_seeds, join_sentences, row_data_notes
from supermask.reporting.figures.layout import FigurePage, fit_labels, max_text_width
from supermask.reporting.figures.save import RenderedFigure, format_values, mean_columns
from supermask.reporting.figures.style import (
    BLUE,
    DEFAULT_OPTIONS,
    GREEN,
    INDIGO,
    INK,
    ORANGE,
    VERMILION,
    WIDTH,
    AxisScale,
    FigureOptions,
    style_context,
)
from supermask.reporting.figures.untrained import is_heuristic
from supermask.store.tables import DENSE, treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _NetworkKind:
    column: str
    """Column of the row that holds its test accuracy."""
    description: str
    marker: str
    color: str


KINDS = {
    "samples": _NetworkKind("early_stop_test_accuracy", "mean of the mask's single samples", "o", BLUE),
    "thresholded": _NetworkKind("thresholded_test_accuracy", "thresholded (p > 0.5)", "s", VERMILION),
    "expected": _NetworkKind("expected_test_accuracy", "expected network (weights times p)", "^", GREEN),
    "fixed": _NetworkKind("early_stop_test_accuracy", "learned mask that is not sampled", "P", INDIGO),
    "untrained": _NetworkKind("early_stop_test_accuracy", "one mask on untrained weights", "D", ORANGE),
}
"""Kinds of network that a mask defines. `p` is the probability that a weight is in the mask."""

ROW_HEIGHT, LABEL_WIDTH, AXIS_HEIGHT, LEGEND_LINE = 0.23, 1.9, 0.62, 0.14
"""Inches: a treatment, its name at most, x axis and legend, a further line of the legend."""


@dataclass(frozen=True)
class MaskResult:
    """One network of one treatment, over seeds."""

    treatment: str
    kind: str
    """Key of `KINDS`."""
    level: int
    density: float
    """Share of weights in the mask, in percent; the expected share for samples and the expected network."""
    values: dict[int, float]
    """Seed -> test accuracy in percent."""
    interval: MeanInterval
    comparison: Comparison | None = None
    """With the first network of the reference treatment."""
    p_holm: float | None = None
    """After Holm's correction over the treatments."""


def has_learned_masks(rows: Sequence[Row]) -> bool:
    """Return whether a finished run of these learned a mask."""
    return any(row.get("supermask") and row["status"] == "finished" for row in rows)


def supermask_figure(
    rows: Sequence[Row],
    treatments: Sequence[str],
    reference: str,
    title: str,
    chance: float,
    options: FigureOptions = DEFAULT_OPTIONS,
) -> RenderedFigure:
    """Draw the test accuracy of every supermask that is not trained further: mean over seeds, 95% t-interval, seeds.

    A learned mask has three networks: its single samples (the paper's number), thresholded, and the expected network;
    one whose method does not sample (rounded, edge-popup, signed) has one.
    A heuristic mask is drawn at the level of best mean validation accuracy. Each treatment is compared with
    `reference`, paired by seed, if that has a mask. `chance` is in percent. The axis is logarithmic in the error.
    Raises UserError if no supermask has finished.
    Source: Zhou et al. 2019, Sec. 5, Fig. 7 and Table 1; statistics: authors' response, items 2 and 4.
    Differs from the paper: masks are chosen by validation accuracy, not by test accuracy.
    """
    results = supermask_results(rows, treatments, reference)
    if not results:
        raise UserError("there is nothing to draw: no supermask of this study has finished; run the study first")
    dense = {int(row["seed"] or 0): _percent(row, "early_stop_test_accuracy") for row in _finished(rows, DENSE)}
    caption = supermask_caption(rows, results, reference)
    with style_context(options):
        page = _draw(results, treatments, dense, chance, title, caption, options)
    return RenderedFigure(page.finish(), page.caption, supermask_rows(results))


def supermask_results(rows: Sequence[Row], treatments: Sequence[str], reference: str) -> list[MaskResult]:
    """Return the networks of the figure, compared with the reference; on a demonstration without tests."""
    is_tested = not any(is_demonstration(str(row.get("dataset"))) for row in rows)
    return _with_comparisons(compute_mask_results(rows, treatments), reference, is_tested)


def supermask_rows(results: Sequence[MaskResult]) -> list[Row]:
    """Return the data rows of the figure, one per network."""
    return [_data_row(result) for result in results]


def supermask_caption(rows: Sequence[Row], results: Sequence[MaskResult], reference: str) -> str:
    """Return the caption of the figure; `results` are those of `supermask_results`, at least one."""
    return _caption(rows, results, reference, bool(_finished(rows, DENSE)))


def compute_mask_results(rows: Sequence[Row], treatments: Sequence[str]) -> list[MaskResult]:
    """Return the networks of every mask, in the order of the treatments.

    A mask that several treatments share is listed once, preferably for a treatment that does not train it further.
    """
    results: dict[str, list[MaskResult]] = {}
    listed: set[object] = set()
    for trained_further in (False, True):
        for label in treatments:
            finished = _finished(rows, label)
            untrained = [row for row in finished if row.get("trained") is False]
            learned = [row for row in finished if row.get("supermask")]
            trained = any(
                row["level"] and row.get("trained") and not row.get("supermask") for row in _with_label(rows, label)
            )
            if untrained and not trained_further:
                results[label] = [_mask_result(label, "untrained", _best_level(untrained))]
            elif learned and not untrained and trained == trained_further and not listed & {r["id"] for r in learned}:
                sampled = learned[0]["supermask"] == "bernoulli"
                kinds = ("samples", "thresholded", "expected") if sampled else ("fixed",)
                results[label] = [_mask_result(label, kind, learned) for kind in kinds]
                listed |= {row["id"] for row in learned}
    return [result for label in treatments for result in results.get(label, [])]


def _finished(rows: Sequence[Row], label: str) -> list[Row]:
    return [row for row in _with_label(rows, label) if row["status"] == "finished"]


def _with_label(rows: Sequence[Row], label: str) -> list[Row]:
    """Return the rows of a treatment without a dense network of its own, or those of the common one."""
    return [row for row in rows if label in treatment_labels(row) and (row["level"] or label == DENSE)]


def _best_level(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the level with the best mean accuracy on the validation set."""
    levels: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        levels[int(row["level"] or 0)].append(row)
    return max(levels.values(), key=_validation_accuracy)


def _validation_accuracy(rows: Sequence[Row]) -> float:
    return fmean(_percent(row, "early_stop_validation_accuracy") for row in rows)


def _mask_result(label: str, kind: str, rows: Sequence[Row]) -> MaskResult:
    values = {int(row["seed"] or 0): _percent(row, KINDS[kind].column) for row in rows}
    column = "expected_density" if kind in ("samples", "expected") else "density"
    density = fmean(_percent(row, column) for row in rows)
    interval = mean_interval([values[seed] for seed in sorted(values)], PERCENT)
    return MaskResult(label, kind, int(rows[0]["level"] or 0), density, values, interval)


def _with_comparisons(results: Sequence[MaskResult], reference: str, is_tested: bool) -> list[MaskResult]:
    """Compare the first network of every treatment with the reference's; Holm's correction over the treatments."""
    first = {result.treatment: result for result in reversed(results)}
    if reference not in first:
        return list(results)
    compared = [result for label, result in first.items() if label != reference]
    comparisons = [compare(result.values, first[reference].values) for result in compared]
    if not is_tested:
        comparisons = [without_test(comparison) for comparison in comparisons]
    adjusted = holm([comparison.p for comparison in comparisons])
    tests = {result.treatment: (c, p) for result, c, p in zip(compared, comparisons, adjusted, strict=True)}
    return [
        replace(result, comparison=tests[result.treatment][0], p_holm=tests[result.treatment][1])
        if result is first[result.treatment] and result.treatment in tests
        else result
        for result in results
    ]


def _percent(row: Row, column: str) -> float:
    value = row[column]
    assert isinstance(value, int | float), f"{column} of run {row.get('id')} is {value!r}"
    return 100.0 * value


def _draw(
    results: Sequence[MaskResult],
    treatments: Sequence[str],
    dense: dict[int, float],
    chance: float,
    title: str,
    caption: str,
    options: FigureOptions,
) -> FigurePage:
    labels = [label for label in treatments if any(result.treatment == label for result in results)]
    height = ROW_HEIGHT * len(labels) + 0.15
    kinds = {result.kind for result in results}
    # Four names of the legend are 6.7 inches wide side by side; with five kinds the widest of them would be.
    legend_columns = 2 if options.layout_width < WIDTH else 4 if len(kinds) < 5 else 3
    axis_height = AXIS_HEIGHT + LEGEND_LINE * (-(-len(kinds) // legend_columns) - 1)
    page = FigurePage(title, caption, height + axis_height, options, labels)
    left = 0.2 + max_text_width(labels, LABEL_WIDTH, 6.8)
    width = page.width - left - 0.12
    axes = page.axes(left, 0.0, width, height, grid=True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_results(axes, results, labels)
    values = [value for result in results for value in result.values.values()]
    accuracy_axis(axes, [*values, *dense.values()], chance, options.axis, width)
    if dense:
        axes.axvline(fmean(dense.values()), color=INK, linestyle=(0, (1, 1.6)), linewidth=0.9, zorder=1.5)
    row_labels(page, axes, labels, left - 0.08, height)
    axes.set_xlabel("Test accuracy (%)")
    _add_legend(page, results, height + AXIS_HEIGHT - 0.2, legend_columns)
    return page


def row_labels(
    page: FigurePage, axes: Axes, labels: Sequence[str], right: float, height: float, top: float = 0.0
) -> None:
    """Write one label per row, right-aligned at `right`; `top` and `height` of the axes are in inches."""
    axes.set(ylim=(len(labels) - 0.4, -0.6), yticks=[])
    for index, name in enumerate(fit_labels(labels, LABEL_WIDTH, lines=2, size=6.8)):
        middle = top + (index + 0.6) / (len(labels) + 0.2) * height
        page.text(right, middle, name, 6.8, ha="right", va="center")


def _draw_results(axes: Axes, results: Sequence[MaskResult], labels: Sequence[str]) -> None:
    for result in results:
        kinds = [other.kind for other in results if other.treatment == result.treatment]
        offset = 0.0 if len(kinds) == 1 else 0.22 * (kinds.index(result.kind) - 1)
        y, kind = labels.index(result.treatment) + offset, KINDS[result.kind]
        seeds = list(result.values.values())
        tick: dict[str, Any] = {"alpha": 0.45, "markersize": 3.5, "markeredgewidth": 0.7, "zorder": 2}
        axes.plot(seeds, [y] * len(seeds), "|", color=kind.color, **tick)
        if result.interval.low is not None and result.interval.high is not None:
            ends = [max(result.interval.low, 0.0), min(result.interval.high, 99.99)]
            axes.plot(ends, [y, y], color=kind.color, linewidth=1.0, zorder=3)
        style: dict[str, Any] = {"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4, "zorder": 4}
        axes.plot([result.interval.mean], [y], kind.marker, color=kind.color, **style)


def accuracy_axis(axes: Axes, values: Sequence[float], chance: float, scale: AxisScale, width: float) -> None:
    """Set an x axis of test accuracy in percent, by default logarithmic in the error, with a dashed line at chance.

    `width` of the axes in inches at scale 1 decides how many ticks there are.
    """
    low, high = max(min(*values, chance) - 4, 0.0), max(*values, chance)
    axes.axvline(chance, color=INK, linestyle=(0, (4, 2)), linewidth=0.7, zorder=1.5)
    if scale == "linear":
        axes.set_xlim(low, min(high + 2, 100.0))
        return
    if scale == "log":
        set_log_ticks(axes, "x", max(low, 1.0), min(high * 1.02, 100.0))
        return
    min_error = max((100 - high) / 1.25, 0.02)
    axes.set_xscale("function", functions=log_error_scale(min_error / 1e3))
    axes.set_xlim(low, 100 - min_error)
    ticks = accuracy_ticks(low, 100 - min_error, max(0.06, 0.25 / width))
    ticks = sorted({chance, *(tick for tick in ticks if tick > chance + 15)})
    axes.set_xticks(ticks, [format_percent(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _add_legend(page: FigurePage, results: Sequence[MaskResult], top: float, columns: int) -> None:
    from matplotlib.lines import Line2D

    kinds = [KINDS[name] for name in KINDS if any(result.kind == name for result in results)]
    style = {"linestyle": "none", "markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.4}
    handles = [Line2D([], [], marker=kind.marker, color=kind.color, **style) for kind in kinds]  # type: ignore[arg-type]
    page.figure.legend(
        handles,
        [kind.description for kind in kinds],
        loc="upper center",
        bbox_to_anchor=page.to_figure(page.width / 2, top),
        ncols=columns,
        frameon=False,
        columnspacing=1.0,
        handletextpad=0.2,
        fontsize=6.2 * page.scale,
        borderaxespad=0.0,
        borderpad=0.0,
    )


def _caption(rows: Sequence[Row], results: Sequence[MaskResult], reference: str, has_dense: bool) -> str:
    counts = {result.interval.n for result in results}
    first = next(row for row in rows if row["status"] == "finished")
    sentences = [f"Network {first['network']} on {first['dataset']}: mean over {format_seeds(counts)}"]
    sentences[0] += ", bar: its 95% t-interval; ticks: each seed." if max(counts) > 1 else "."
    if any(result.kind == "samples" for result in results):
        sentences.append("A learned supermask's accuracy is the mean over single samples of its mask, as in the paper.")
    untrained = {result.treatment for result in results if result.kind == "untrained"}
    if any(is_heuristic(row) and untrained.intersection(treatment_labels(row)) for row in rows):
        sentences.append("Heuristic masks: at the level of best validation accuracy.")
    sentences.append("Dashed: chance." + (" Dotted: the trained dense network." if has_dense else ""))
    if not is_demonstration(str(first["dataset"])):
        sentences += _test_notes(results, reference)
    sentences += row_data_notes(rows)
    unfinished = [row for row in rows if row["status"] != "finished"]
    labels = {label for row in rows for label in treatment_labels(row)}
    best = max((result for result in results), key=lambda result: result.interval.mean)
    takeaway = (
        f"Takeaway: the best network without trained weights is {best.treatment} with {best.interval.mean:.1f}% "
        f"({KINDS[best.kind].description})."
    )
    return join_sentences([*sentences, describe_excluded(unfinished, labels, len(rows)), takeaway])


def _test_notes(results: Sequence[MaskResult], reference: str) -> list[str]:
    sentences = []
    tested = [result for result in results if result.p_holm is not None]
    if tested:
        equal = [result.treatment for result in tested if result.p_holm is not None and result.p_holm >= SIGNIFICANCE]
        paired = {result.comparison.test for result in tested if result.comparison} == {"paired t"}
        test = "paired t-test over seeds" if paired else "paired t-test where both have the same seeds, else Welch's"
        test = f"({test}; Holm over {len(tested)} treatments, p < {SIGNIFICANCE})"
        if not equal or len(equal) == len(tested):
            sentences.append(f"{'None differs' if equal else 'All differ'} from {reference} {test}.")
        else:
            differing = f"{len(tested) - len(equal)} of {len(tested)} differ from {reference}"
            sentences.append(f"{differing} {test}; not: {'; '.join(equal)}.")
    untested = [result.treatment for result in results if result.comparison is not None and result.p_holm is None]
    if untested:
        sentences.append(f"Not tested (too few seeds, or no spread): {'; '.join(untested)}.")
    return sentences


def _data_row(result: MaskResult) -> Row:
    comparison = result.comparison
    low, high = (comparison.interval95 or (None, None)) if comparison else (None, None)
    return {
        "treatment": result.treatment,
        "network": result.kind,
        "level": result.level,
        "density_percent": result.density,
        **mean_columns(result.interval),
        "difference": comparison.difference if comparison else None,
        "difference_low95": low,
        "difference_high95": high,
        "hedges_g": comparison.hedges_g if comparison else None,
        "test": comparison.test if comparison else None,
        "p": comparison.p if comparison else None,
        "p_holm": result.p_holm,
        "values_by_seed": format_values(result.values),
    }
