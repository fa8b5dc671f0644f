"""Any runs of a store: chosen by network, data and treatment, as curves over the weights that remain and as a table."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from supermask.analysis.stats import mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, Value, format_percent
from supermask.reporting.figures.style import STYLES, LineStyle, assign_styles
from supermask.reporting.plotly.traces import escape_text
from supermask.serve.series import KEY_LENGTH, Series
from supermask.store.tables import COLUMNS, to_csv

KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")

PAGE = 100
"""Rows of a table that are sent at once."""

DEFAULT_CRITERIA = 6
"""Lines that are chosen before anybody has."""

MAX_SERIES = 40
"""As many as have a look of their own."""

Labelled = tuple[Row, str]
"""A run and what its line is called."""

Metric = tuple[str, float, str]
"""Column, factor, and what the axis says."""

METRICS: dict[str, Metric] = {
    name: (name, factor, title)
    for name, factor, title in (
        ("early_stop_test_accuracy", 100.0, "Test accuracy at early stopping (%)"),
        ("final_test_accuracy", 100.0, "Test accuracy at the end of training (%)"),
        ("early_stop_iteration", 1.0, "Iteration of early stopping"),
        ("early_stop_test_loss", 1.0, "Test loss at early stopping (nats)"),
        ("final_test_loss", 1.0, "Test loss at the end of training (nats)"),
        ("early_stop_validation_accuracy", 100.0, "Validation accuracy at early stopping (%)"),
        ("early_stop_validation_loss", 1.0, "Lowest validation loss (nats)"),
        ("final_validation_accuracy", 100.0, "Validation accuracy at the end of training (%)"),
        ("final_validation_loss", 1.0, "Validation loss at the end of training (nats)"),
        ("initial_validation_accuracy", 100.0, "Validation accuracy before training (%)"),
        ("initial_validation_loss", 1.0, "Validation loss before training (nats)"),
        ("thresholded_test_accuracy", 100.0, "Test accuracy of a learned mask's weights with p > 0.5 (%)"),
        ("expected_test_accuracy", 100.0, "Test accuracy of a learned mask's expected network (%)"),
        ("seconds", 1.0, "Time of the run (s)"),
    )
}

TICKS = [digit * 10.0**power for power in range(1, -5, -1) for digit in (10, 5, 2)]
"""Percent: 100, 50, 20, 10, ... 0.0002."""

TABLE = (
    "treatment",
    "level",
    "seed",
    "density",
    "status",
    "early_stop_test_accuracy",
    "early_stop_iteration",
    "final_test_accuracy",
    "early_stop_validation_loss",
    "certificate",
    "seconds",
    "id",
)
"""The columns of the page's table; its CSV has all of them."""


class RunSet(NamedTuple):
    """The runs of a network and data set at one moment, and the lines that they make."""

    rows: Mapping[str, Row]
    lines: Mapping[str, Series]


@dataclass(frozen=True)
class Selection:
    """What is looked at. `keys` are of lines; none means all of them."""

    network: str
    dataset: str
    keys: tuple[str, ...]


def parse_selection(network: str, dataset: str, keys: Sequence[str], subjects: Sequence[tuple[str, str]]) -> Selection:
    """Raises UserError for what is not in the store, or cannot be."""
    if (network, dataset) not in subjects:
        raise UserError("no run in this store has that network and that data set.")
    if not all(KEY.fullmatch(key) for key in keys):
        raise UserError(f"a treatment is named by {KEY_LENGTH} hexadecimal digits.")
    return Selection(network, dataset, tuple(dict.fromkeys(keys)))


def network_dataset_pairs(rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """(network, data set) of the runs, each once, sorted."""
    return sorted({(str(row["network"]), str(row["dataset"])) for row in rows.values()})


def filter_rows(rows: Mapping[str, Row], choice: Selection) -> dict[str, Row]:
    """The runs of a network and data set."""
    return {
        run_id: row
        for run_id, row in rows.items()
        if (row["network"], row["dataset"]) == (choice.network, choice.dataset)
    }


def select_runs(view: RunSet, keys: Sequence[str]) -> list[Labelled]:
    """The runs of these lines (of all, where none is given), by their labels, then level and seed."""
    found: list[Labelled] = []
    for key, line in view.lines.items():
        if not keys or key in keys:
            own = [view.rows[run_id] for run_id in line.run_ids]
            own.sort(key=lambda row: (row["level"] or 0, row["seed"] or 0))
            found += [(row, line.label) for row in own]
    return found


def default_selection(view: RunSet) -> list[str]:
    """What is worth a look before anything is chosen: the dense network, and the criteria under the paper's actions."""
    rows, lines = view
    first = {key: rows[line.run_ids[0]] for key, line in lines.items()}
    dense = [key for key, row in first.items() if row["level"] == 0]
    usual = [key for key, row in first.items() if row["trained"] and _actions(row) == ("rewind", "zero")]
    usual.sort(key=lambda key: (-len(lines[key].run_ids), _place(first[key])))
    return list(dict.fromkeys([*dense[:1], *usual, *lines]))[:DEFAULT_CRITERIA]


def _actions(row: Row) -> tuple[Value, Value]:
    return row.get("mask1"), row.get("mask0")


def _place(row: Row) -> int:
    """Of a criterion, in the paper's order; of others, behind them."""
    names = list(STYLES)
    return names.index(str(row["criterion"])) if row["criterion"] in STYLES else len(names)


def runs_page(runs: Sequence[Labelled], sort: str, descending: bool, page: int) -> dict[str, Any]:
    """A page of a table, sorted; what has no value comes last. Raises UserError for a column that there is not."""
    if sort not in COLUMNS:
        raise UserError("there is no such column.")

    def key(run: Labelled) -> tuple[bool, float, str]:
        return _sort_key(run[1] if sort == "treatment" else run[0].get(sort), descending)

    ordered = sorted(runs, key=key, reverse=descending)
    shown = [row | {"treatment": label} for row, label in ordered[page * PAGE : (page + 1) * PAGE]]
    cells = [[_cell(row.get(name)) for name in TABLE] for row in shown]
    return {"total": len(runs), "page": page, "pages": -(-len(runs) // PAGE), "rows": cells}


def _sort_key(value: Value, descending: bool) -> tuple[bool, float, str]:
    missing = value is None
    number = float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
    return missing != descending, number, value if isinstance(value, str) else ""


def _cell(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def runs_csv(runs: Sequence[Labelled]) -> str:
    """Every column of these runs."""
    return to_csv([row | {"treatment": label} for row, label in runs])


def metric_plot(view: RunSet, keys: Sequence[str], metric: Metric) -> dict[str, Any]:
    """A Plotly figure: mean over seeds against weights remaining, and its 95% t-interval, a line a treatment."""
    # In the order in which they were chosen: one more leaves the looks of the others as they are.
    wanted = {key: view.lines[key] for key in keys if key in view.lines}
    if len(wanted) > MAX_SERIES:
        raise UserError(f"{len(wanted)} treatments are too many for one plot: choose up to {MAX_SERIES}.")
    drawn = assign_styles([line.label for line in wanted.values()])
    found = [(line, _points([view.rows[run_id] for run_id in line.run_ids], metric)) for line in wanted.values()]
    least = min((point.remaining for _, points in found for point in points), default=100.0)
    traces = [trace for line, points in found if points for trace in _traces(line, points, drawn[line.label], least)]
    return {"data": traces, "layout": _layout(metric)}


@dataclass(frozen=True)
class _Point:
    remaining: float
    n: int
    mean: float
    low: float | None
    high: float | None
    level: int


def _points(rows: Sequence[Row], metric: Metric) -> list[_Point]:
    column, factor, _ = metric
    levels: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "finished" and isinstance(row.get(column), int | float):
            levels[int(row["level"] or 0)].append(row)
    points = []
    for level, group in sorted(levels.items()):
        interval = mean_interval([float(row[column] or 0) * factor for row in group])
        remaining = math.fsum(float(row["density"] or 0) for row in group) / len(group) * 100
        points.append(_Point(remaining, interval.n, interval.mean, interval.low, interval.high, level))
    return points


def _traces(line: Series, points: Sequence[_Point], look: LineStyle, least: float) -> list[dict[str, Any]]:
    """A treatment's line and band; of a network that nothing is pruned from, its mean across the plot."""
    across = [replace(points[0], remaining=least)] if [point.level for point in points] == [0] else []
    colour, points = look.color, [*points, *across]
    banded = [point for point in points if point.low is not None and point.high is not None]
    trace = {
        "x": [point.remaining for point in points],
        "y": [point.mean for point in points],
        "name": line.label,
        "uid": line.key,
        "legendgroup": line.key,
        "mode": "lines" if across else "lines+markers",
        "line": {"color": colour, "dash": "dot" if across else _dash(look.line), "width": 2},
        **({} if across else {"marker": {"color": colour, "size": 7, "symbol": "circle"}}),
        "text": [
            f"<b>{escape_text(line.label)}</b><br>{_hover(point if not across else points[0])}" for point in points
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    band = {
        "x": [point.remaining for point in [*banded, *reversed(banded)]],
        "y": [point.low for point in banded] + [point.high for point in reversed(banded)],
        "uid": f"{line.key}-band",
        "legendgroup": line.key,
        "showlegend": False,
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": _transparent(colour),
        "hoverinfo": "skip",
    }
    return [band, trace] if len(banded) > 1 else [trace]


def _hover(point: _Point) -> str:
    said = f"{format_percent(point.remaining)}% remaining, level {point.level}<br>mean {point.mean:.5g}, n = {point.n}"
    if point.low is None or point.high is None:
        return said
    return f"{said}<br>95% interval {point.low:.5g} to {point.high:.5g}"


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.14)"


def _dash(line: str | tuple[int, tuple[float, ...]]) -> str:
    if isinstance(line, str):
        return "solid"
    return {2: "dash" if line[1][0] > 2 else "dot"}.get(len(line[1]), "dashdot")


def _layout(metric: Metric) -> dict[str, Any]:
    return {
        "uirevision": metric[0],
        "meta": {"height": 420},
        "xaxis": {
            "type": "log",
            "autorange": "reversed",
            "title": {"text": "Weights remaining (%)"},
            "tickvals": TICKS,
            "ticktext": [f"{tick:g}" for tick in TICKS],
        },
        "yaxis": {"title": {"text": metric[2]}},
        "showlegend": False,
        "margin": {"l": 60, "r": 16, "t": 16, "b": 48},
        "hovermode": "closest",
    }
