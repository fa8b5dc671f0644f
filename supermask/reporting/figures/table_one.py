"""Table 1: the best supermasks' test accuracies, the paper's beside those that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supermask.analysis.stats import MeanInterval, mean_interval
from supermask.analysis.summary import check_one_experiment
from supermask.core.errors import UserError
from supermask.core.text import Row, format_range
from supermask.reporting.figures.accuracy import MARKER
from supermask.reporting.figures.caption import describe_excluded, join_sentences
from supermask.reporting.figures.layout import FigurePage, text_measure
from supermask.reporting.figures.learned import accuracy_axis, compute_mask_results, row_labels
from supermask.reporting.figures.save import RenderedFigure
from supermask.reporting.figures.style import GREY, INK, WIDTH, assign_styles, style_context
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
"""Of the paper's table. The first six are the names of treatments of the study `learned-supermasks`."""

COLUMN_TITLES = {column: DENSE if column == DENSE_ROW else column for column in COLUMNS}
"""Column -> the treatment that it shows."""

ROW_HEIGHT, BELOW, NUMBERS = 0.26, 0.42, 2.05
"""Inches: a row, the x axis, the numbers beside the picture."""


@dataclass(frozen=True)
class PaperValue:
    """A cell of the paper's table, in percent. One that is not confirmed is from memory."""

    percent: float
    confirmed: bool = False
    text: str = ""
    """As paper.md has it, where that is more than the number."""

    @property
    def shown(self) -> str:
        """`95.3`."""
        return self.text or f"{self.percent:.1f}"


def _row(*cells: float | PaperValue) -> dict[str, PaperValue]:
    values = [cell if isinstance(cell, PaperValue) else PaperValue(cell) for cell in cells]
    return dict(zip(COLUMNS, values, strict=True))


def _confirmed(percent: float, text: str = "") -> PaperValue:
    return PaperValue(percent, True, text)


PAPER_VALUES: dict[tuple[str, str], dict[str, PaperValue]] = {
    ("fc-300-100", "mnist"): _row(
        _confirmed(80.0, "about 80 (79.3)"), _confirmed(86.0, "86 (86.3)"), _confirmed(95.3), 96.4, 97.8, 98.0, 97.7
    ),
    ("conv2", "cifar10"): _row(22.3, 37.4, 64.4, 66.3, 65.0, 66.0, 69.2),
    ("conv4", "cifar10"): _row(23.7, 39.7, 65.4, 66.2, 71.7, 72.5, 75.4),
    ("conv6", "cifar10"): _row(
        _confirmed(24.0, "24"), _confirmed(41.0, "41"), _confirmed(65.3, "65.3 or 65.4"), 65.4, 76.3, 76.5, 78.3
    ),
}
"""(network, dataset) -> column -> what the paper found. Source: paper.md section 6, its table, bold cells confirmed."""


def has_table_one(treatments: Sequence[str]) -> bool:
    """Whether a study has all treatments of the table."""
    return {column for column in COLUMNS if column != DENSE_ROW} <= set(treatments)


def table_one_rows(rows: Sequence[Row], treatments: Mapping[str, str] = COLUMN_TITLES) -> list[Row]:
    """A row a column of the paper's table: what was found (n = 0 where nothing has finished), and the paper's value.

    `treatments`: column -> the label of the treatment to take. Heuristic masks at the level of best mean validation
    accuracy; learned ones by the mean of their single samples, as in the paper. Accuracies in percent, differences in
    points. Raises UserError for runs of several networks or datasets.
    Source: paper.md section 6.
    """
    check_one_experiment(rows)
    network, dataset = str(rows[0]["network"]), str(rows[0]["dataset"])
    paper = PAPER_VALUES.get((network, dataset), {})
    first = {
        bar.treatment: bar for bar in reversed(compute_mask_results(rows, list(dict.fromkeys(treatments.values()))))
    }
    found: list[Row] = []
    for column in COLUMNS:
        label, value = treatments.get(column, column), paper.get(column)
        bar = first.get(label)
        values = bar.values if bar else _trained(rows, label)
        interval = mean_interval([values[seed] for seed in sorted(values)]) if values else None
        found.append(
            {
                "column": column,
                "treatment": label,
                "network": network,
                "dataset": dataset,
                "level": bar.level if bar else 0 if values else None,
                "density_percent": bar.density if bar else 100.0 if values else None,
                "n": len(values),
                "mean": interval.mean if interval else None,
                "mean_low95": interval.low if interval else None,
                "mean_high95": interval.high if interval else None,
                "paper_percent": value.percent if value else None,
                "paper_confirmed": value.confirmed if value else None,
                "paper_text": value.shown if value else None,
                "difference_to_paper": interval.mean - value.percent if interval and value else None,
                "values_by_seed": " ".join(f"{seed}={each:.6g}" for seed, each in sorted(values.items())),
            }
        )
    return found


def _trained(rows: Sequence[Row], label: str) -> dict[int, float]:
    """Seed -> test accuracy of the dense network, in percent; nothing for any other label."""
    dense = [row for row in rows if label == DENSE and row["level"] == 0 and row["status"] == "finished"]
    return {int(row["seed"] or 0): 100 * float(row["early_stop_test_accuracy"] or 0) for row in dense}


def table_one_figure(
    rows: Sequence[Row], title: str, chance: float, treatments: Mapping[str, str] = COLUMN_TITLES
) -> RenderedFigure:
    """The table as a picture: for each of its columns what was found, with its 95% t-interval, and the paper's value.

    `chance`: percent. The axis is logarithmic in the error. Raises UserError where nothing has finished, and as
    `table_one_rows`. Source: paper.md section 6.
    """
    found = table_one_rows(rows, treatments)
    if not any(row["n"] for row in found):
        raise UserError("there is nothing to draw: no supermask of this study has finished; run the study first")
    text = _caption(rows, found, set(treatments.values()))
    with style_context():
        return RenderedFigure(_draw(found, chance, title, text), text, found)


def _draw(found: Sequence[Row], chance: float, title: str, text: str) -> Any:
    labels = [str(row["column"]) for row in found]
    height = ROW_HEIGHT * len(found)
    page = FigurePage(title, text, 0.2 + height + BELOW)
    left = 0.2 + max(text_measure()(label, 6.8) for label in labels)
    right = WIDTH - NUMBERS
    axes = page.axes(left, 0.2, right - left, height, grid=True)
    axes.spines[["top", "right"]].set_visible(False)
    chosen = assign_styles(labels)
    known = [row[name] for row in found for name in ("mean", "mean_low95", "mean_high95", "paper_percent")]
    accuracy_axis(axes, [min(float(value), 99.99) for value in known if value is not None], chance)
    for place, row in enumerate(found):
        _draw_row(axes, row, place, chosen[str(row["column"])])
    row_labels(page, axes, labels, left - 0.08, height, 0.2)
    axes.set_xlabel("Test accuracy (%)")
    _print_numbers(page, found, right, height)
    return page.figure


def _draw_row(axes: Axes, row: Row, place: int, look: Any) -> None:
    interval, y = _interval(row), place + 0.16
    if interval:
        values = [float(each.split("=")[1]) for each in str(row["values_by_seed"]).split()]
        tick: dict[str, Any] = {"alpha": 0.5, "markersize": 4.0, "markeredgewidth": 0.7, "zorder": 2}
        axes.plot(values, [y] * len(values), "|", color=look.colour, **tick)
        if interval.low is not None and interval.high is not None:
            ends = [max(interval.low, 0.0), min(interval.high, 99.99)]
            axes.plot(ends, [y, y], color=look.colour, linewidth=1.1, zorder=3)
        axes.plot(interval.mean, y, color=look.colour, marker=look.marker, zorder=4, **(MARKER | {"markersize": 4.8}))
    if row["paper_percent"] is not None:
        sure = bool(row["paper_confirmed"])
        edge: dict[str, Any] = {"color": INK if sure else GREY, "markeredgewidth": 1.1 if sure else 0.7}
        axes.plot(
            float(row["paper_percent"]), place - 0.16, "D", markerfacecolor="none", markersize=4.2, zorder=5, **edge
        )


def _interval(row: Row) -> MeanInterval | None:
    if not row["n"]:
        return None
    low, high = (None if row[name] is None else float(row[name] or 0) for name in ("mean_low95", "mean_high95"))
    return MeanInterval(int(row["n"]), float(row["mean"] or 0), low, high)


def _print_numbers(page: FigurePage, found: Sequence[Row], left: float, height: float) -> None:
    """Two columns beside the picture: what was found, and the paper's."""
    here, there = left + 0.12, WIDTH - 0.08
    page.text(here, 0.16, "here (95% interval)", 6.6, va="bottom", fontweight="bold")
    page.text(there, 0.16, "paper", 6.6, va="bottom", ha="right", fontweight="bold")
    for place, row in enumerate(found):
        interval, middle = _interval(row), 0.2 + (place + 0.6) / (len(found) + 0.2) * height
        numbers = "no finished run"
        if interval:
            numbers = f"{interval.mean:.1f}"
            numbers += "" if interval.low is None else f" ({interval.low:.1f} to {interval.high:.1f})"
        page.text(here, middle, numbers, 6.6, va="center")
        sure = bool(row["paper_confirmed"])
        style: dict[str, Any] = {"fontweight": "bold" if sure else "normal", "color": INK if sure else GREY}
        page.text(there, middle, str(row["paper_text"] or "-"), 6.6, va="center", ha="right", **style)


def table_one_caption(rows: Sequence[Row], found: Sequence[Row], treatments: Mapping[str, str] = COLUMN_TITLES) -> str:
    """What has to be known of `table_one_rows(rows, treatments)`, where they are a table of numbers."""
    bold = "The paper's values in bold are confirmed by its text; the others are from memory, unconfirmed."
    return join_sentences(
        _sentences(rows, found, set(treatments.values()), "; in brackets its 95% t-interval", bold, "")
    )


def _caption(rows: Sequence[Row], found: Sequence[Row], labels: set[str]) -> str:
    drawn = "; bar: its 95% t-interval; ticks: each seed"
    paper = "Open diamonds: the paper's values; black and bold: confirmed by its text; grey: from memory, unconfirmed."
    return join_sentences(_sentences(rows, found, labels, drawn, paper, "Dashed: chance."))


def _sentences(
    rows: Sequence[Row], found: Sequence[Row], labels: set[str], interval: str, paper: str, more: str
) -> list[str]:
    counts = [int(row["n"] or 0) for row in found if row["n"]] or [0]
    several = max(counts) > 1
    left = [row for row in rows if row["status"] != "finished" and labels.intersection(treatment_labels(row))]
    asked = sum(bool(labels.intersection(treatment_labels(row))) for row in rows)
    there = any(row["paper_text"] is not None for row in found)
    seeds = f"n = {format_range(counts)} seed{'s' if max(counts) != 1 else ''}"
    return [
        f"Network {check_one_experiment(rows)}: mean over {seeds}" + (f"{interval}." if several else "."),
        "Heuristic masks: at the level of best validation accuracy; learned ones: mean of their single samples.",
        f"{paper} Nothing is tested against them: their spread is not known."
        if there
        else f"The paper's table does not have {check_one_experiment(rows)}.",
        more,
        describe_excluded(left, labels, asked),
    ]
