"""Table 1: test accuracies of the best supermasks, measured and as the paper reports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from supermask.analysis.comparisons.published import PublishedValue, published_values
from supermask.analysis.stats import PERCENT, MeanInterval, mean_interval
from supermask.analysis.summary import check_one_experiment
from supermask.core.errors import UserError
from supermask.core.text import Row, format_number
from supermask.reporting.figures.accuracy import MARKER
from supermask.reporting.figures.caption import describe_excluded, format_seeds, join_sentences, row_data_notes
from supermask.reporting.figures.layout import FigurePage, text_measure
from supermask.reporting.figures.learned import accuracy_axis, compute_mask_results, row_labels
from supermask.reporting.figures.save import RenderedFigure, format_values
from supermask.reporting.figures.style import (
    DEFAULT_OPTIONS,
    GRAY,
    INK,
    FigureOptions,
    LineStyle,
    assign_styles,
    style_context,
)
from supermask.reporting.tables import TextTable
from supermask.store.tables import DENSE, treatment_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DENSE_ROW = "trained weights"

COLUMNS = (
    "heuristic, w_i",
    "heuristic, signed constant",
    "learned, w_i",
    "learned, signed constant",
    "DWR, w_i",
    "DWR, signed constant",
    DENSE_ROW,
)
"""Columns of the paper's table. The first six are treatments of the study `learned-supermasks`."""

COLUMN_TITLES = {column: DENSE if column == DENSE_ROW else column for column in COLUMNS}
"""Column -> label of the treatment that it shows."""

ROW_HEIGHT, AXIS_HEIGHT, NUMBERS_WIDTH = 0.26, 0.42, 2.05
"""Inches: a row, the x axis, the columns of numbers beside the axes."""


def _paper_values() -> dict[tuple[str, str], dict[str, PublishedValue]]:
    table: dict[tuple[str, str], dict[str, PublishedValue]] = {}
    for value in published_values():
        if value.in_table_one:
            column = DENSE_ROW if value.treatment == DENSE else value.treatment
            table.setdefault((value.network, value.dataset), {})[column] = value
    return table


PAPER_VALUES = _paper_values()
"""(network, dataset) -> column -> value that the paper reports. Source: Zhou et al. 2019, Table 1.

Confirmed values are in the paper's abstract, quoted from its text, or in a later paper's table; the others are from
memory.
"""


def has_table_one(treatments: Sequence[str]) -> bool:
    """Return whether a study has all treatments of the table."""
    return {column for column in COLUMNS if column != DENSE_ROW} <= set(treatments)


def table_one_rows(rows: Sequence[Row], treatments: Mapping[str, str] = COLUMN_TITLES) -> list[Row]:
    """Return one row per column of the paper's table: the measured accuracy (n = 0 if unfinished), the paper's value.

    `treatments`: column -> label of the treatment to use. Heuristic masks are taken at the level of best mean
    validation accuracy, learned masks by the mean of their single samples, as in the paper. Accuracies are in percent,
    differences in points. Raises UserError for runs of several networks or datasets.
    Source: Zhou et al. 2019, Sec. 5, Table 1.
    Differs from the paper: masks are chosen by validation accuracy, not by test accuracy.
    """
    check_one_experiment(rows)
    network, dataset = str(rows[0]["network"]), str(rows[0]["dataset"])
    paper = PAPER_VALUES.get((network, dataset), {})
    results = compute_mask_results(rows, list(dict.fromkeys(treatments.values())))
    first = {result.treatment: result for result in reversed(results)}
    table: list[Row] = []
    for column in COLUMNS:
        label, value = treatments.get(column, column), paper.get(column)
        result = first.get(label)
        values = result.values if result else _dense_accuracies(rows, label)
        interval = mean_interval([values[seed] for seed in sorted(values)], PERCENT) if values else None
        table.append(
            {
                "column": column,
                "treatment": label,
                "network": network,
                "dataset": dataset,
                "level": result.level if result else 0 if values else None,
                "density_percent": result.density if result else 100.0 if values else None,
                "n": len(values),
                "mean": interval.mean if interval else None,
                "mean_low95": interval.low if interval else None,
                "mean_high95": interval.high if interval else None,
                "paper_percent": value.percent if value else None,
                "paper_confirmed": value.confirmed if value else None,
                "paper_text": value.shown if value else None,
                "difference_to_paper": interval.mean - value.percent if interval and value else None,
                "values_by_seed": format_values(values),
            }
        )
    return table


def _dense_accuracies(rows: Sequence[Row], label: str) -> dict[int, float]:
    """Return seed -> test accuracy of the dense network in percent; empty for any other label."""
    dense = [row for row in rows if label == DENSE and row["level"] == 0 and row["status"] == "finished"]
    return {int(row["seed"] or 0): 100 * float(row["early_stop_test_accuracy"] or 0) for row in dense}


def table_one_figure(
    rows: Sequence[Row],
    title: str,
    chance: float,
    treatments: Mapping[str, str] = COLUMN_TITLES,
    options: FigureOptions = DEFAULT_OPTIONS,
) -> RenderedFigure:
    """Draw the table: for each column the measured accuracy with its 95% t-interval, and the paper's value.

    `chance` is in percent. The axis is logarithmic in the error. Raises UserError if no supermask has finished, and as
    `table_one_rows` does. Source: Zhou et al. 2019, Sec. 5, Table 1.
    """
    table = table_one_rows(rows, treatments)
    if not any(row["n"] for row in table):
        raise UserError("there is nothing to draw: no supermask of this study has finished; run the study first")
    drawn = "; bar: its 95% t-interval; ticks: each seed"
    paper = (
        "Open diamonds: the paper's values; black and bold: confirmed by its text or a later paper; gray: from memory, "
        "unconfirmed."
    )
    caption = _caption(rows, table, set(treatments.values()), drawn, paper, "Dashed: chance.")
    with style_context(options):
        page = _draw(table, chance, title, caption, options)
    return RenderedFigure(page.finish(), page.caption, table, text_table(table))


def text_table(table: Sequence[Row]) -> TextTable:
    """Return the table as it is printed: the measured mean with its interval, and the paper's value."""
    titles = ["Mask and weights", "n", "Measured, % (95% interval)", "Paper, %"]
    return titles, [[row["column"], row["n"], _measured_text(row), row["paper_text"]] for row in table]


def _measured_text(row: Row) -> str:
    interval = _interval(row)
    if interval is None:
        return "no finished run"
    ends = "" if interval.low is None else f" ({interval.low:.1f} to {interval.high:.1f})"
    return f"{interval.mean:.1f}{ends}"


def _draw(table: Sequence[Row], chance: float, title: str, caption: str, options: FigureOptions) -> FigurePage:
    labels = [str(row["column"]) for row in table]
    height = ROW_HEIGHT * len(table)
    page = FigurePage(title, caption, 0.2 + height + AXIS_HEIGHT, options, labels)
    left = 0.2 + max(text_measure()(label, 6.8) for label in labels)
    right = page.width - NUMBERS_WIDTH
    axes = page.axes(left, 0.2, right - left, height, grid=True)
    axes.spines[["top", "right"]].set_visible(False)
    styles = assign_styles(labels)
    values = [row[name] for row in table for name in ("mean", "mean_low95", "mean_high95", "paper_percent")]
    accuracy_axis(
        axes, [min(float(value), 99.99) for value in values if value is not None], chance, options.axis, right - left
    )
    for index, row in enumerate(table):
        _draw_row(axes, row, index, styles[str(row["column"])])
    row_labels(page, axes, labels, left - 0.08, height, 0.2)
    axes.set_xlabel("Test accuracy (%)")
    _print_numbers(page, table, right, height)
    return page


def _draw_row(axes: Axes, row: Row, index: int, style: LineStyle) -> None:
    interval, y = _interval(row), index + 0.16
    if interval:
        values = [float(pair.split("=")[1]) for pair in str(row["values_by_seed"]).split()]
        tick: dict[str, Any] = {"alpha": 0.5, "markersize": 4.0, "markeredgewidth": 0.7, "zorder": 2}
        axes.plot(values, [y] * len(values), "|", color=style.color, **tick)
        if interval.low is not None and interval.high is not None:
            ends = [max(interval.low, 0.0), min(interval.high, 99.99)]
            axes.plot(ends, [y, y], color=style.color, linewidth=1.1, zorder=3)
        axes.plot(interval.mean, y, color=style.color, marker=style.marker, zorder=4, **(MARKER | {"markersize": 4.8}))
    if row["paper_percent"] is not None:
        confirmed = bool(row["paper_confirmed"])
        edge: dict[str, Any] = {"color": INK if confirmed else GRAY, "markeredgewidth": 1.1 if confirmed else 0.7}
        percent = float(row["paper_percent"])
        axes.plot(percent, index - 0.16, "D", markerfacecolor="none", markersize=4.2, zorder=5, **edge)


def _interval(row: Row) -> MeanInterval | None:
    if not row["n"]:
        return None
    low, high = (None if row[name] is None else float(row[name] or 0) for name in ("mean_low95", "mean_high95"))
    return MeanInterval(int(row["n"]), float(row["mean"] or 0), low, high)


def _print_numbers(page: FigurePage, table: Sequence[Row], left: float, height: float) -> None:
    """Write two columns of numbers beside the axes: measured, and the paper's."""
    measured_left, paper_right = left + 0.12, page.width - 0.08
    page.text(measured_left, 0.16, "measured (95% interval)", 6.6, va="bottom", fontweight="bold")
    page.text(paper_right, 0.16, "paper", 6.6, va="bottom", ha="right", fontweight="bold")
    for index, row in enumerate(table):
        middle = 0.2 + (index + 0.6) / (len(table) + 0.2) * height
        page.text(measured_left, middle, _measured_text(row), 6.6, va="center")
        confirmed = bool(row["paper_confirmed"])
        style: dict[str, Any] = {"fontweight": "bold" if confirmed else "normal", "color": INK if confirmed else GRAY}
        page.text(paper_right, middle, str(row["paper_text"] or "-"), 6.6, va="center", ha="right", **style)


def table_one_caption(rows: Sequence[Row], table: Sequence[Row], treatments: Mapping[str, str] = COLUMN_TITLES) -> str:
    """Return the caption of `table`, the result of `table_one_rows(rows, treatments)`, shown as a table of numbers."""
    paper = "Bold values of the paper are confirmed by its text or a later paper; others are from memory, unconfirmed."
    return _caption(rows, table, set(treatments.values()), "; in brackets its 95% t-interval", paper, "")


def _caption(
    rows: Sequence[Row], table: Sequence[Row], labels: set[str], interval: str, paper: str, chance: str
) -> str:
    """Join the sentences that figure and table share with those on their interval, the paper's values and chance."""
    counts = [int(row["n"] or 0) for row in table if row["n"]] or [0]
    subject = check_one_experiment(rows)
    shown = [row for row in rows if labels.intersection(treatment_labels(row))]
    unfinished = [row for row in shown if row["status"] != "finished"]
    in_paper = any(row["paper_text"] is not None for row in table)
    return join_sentences(
        [
            f"Network {subject}: mean over {format_seeds(counts)}{interval if max(counts) > 1 else ''}.",
            "Heuristic masks: at the level of best validation accuracy; learned masks: mean of their single samples.",
            f"{paper} No test against the paper's values: their spread is not published."
            if in_paper
            else f"The paper's table does not have {subject}.",
            chance,
            describe_excluded(unfinished, labels, len(shown)),
            *row_data_notes(shown),
            _takeaway(table),
        ]
    )


def _takeaway(table: Sequence[Row]) -> str:
    """State the best mask, and the cell that is farthest from the paper's."""
    measured = [row for row in table if row["n"] and row["column"] != DENSE_ROW]
    if not measured:
        return ""
    best = max(measured, key=lambda row: float(row["mean"] or 0))
    text = f"Takeaway: the best mask is {best['column']} with {float(best['mean'] or 0):.1f}%"
    differing = [row for row in table if row["difference_to_paper"] is not None]
    if differing:
        far = max(differing, key=lambda row: abs(float(row["difference_to_paper"] or 0)))
        text += (
            f"; farthest from the paper is {far['column']}, by "
            f"{format_number(float(far['difference_to_paper'] or 0), 1, signed=True)} points"
        )
    return f"{text}."
