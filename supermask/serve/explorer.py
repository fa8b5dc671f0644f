"""Runs of a store selected by network, dataset and treatment: curves against weights remaining, and a table."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from supermask.analysis.stats import PERCENT, mean_interval
from supermask.core.errors import UserError
from supermask.core.text import Row, Value, format_percent
from supermask.reporting.figures.style import STYLES, LineStyle, assign_styles
from supermask.reporting.plotly.traces import escape_text
from supermask.serve.series import KEY_LENGTH, Series
from supermask.store.tables import COLUMNS, to_csv

KEY = re.compile(rf"[0-9a-f]{{{KEY_LENGTH}}}")

PAGE_ROWS = 100
"""Rows per page of the table."""

DEFAULT_CRITERIA = 6
"""Series that are selected when the page opens."""

MAX_SERIES = 40
"""Series in one plot: the number of distinct line styles."""

LabeledRow = tuple[Row, str]
"""(row of a run, label of its series)."""

PlotMetric = tuple[str, float, str]
"""(column, factor of the plotted value, axis title)."""

METRICS: dict[str, PlotMetric] = {
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
"""Axis ticks in percent: 100, 50, 20, 10, ... 0.0002."""

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
"""Columns of the table on the page; its CSV has all columns."""


class RunSet(NamedTuple):
    """Runs of one network and dataset, and the series that they form."""

    rows: Mapping[str, Row]
    series: Mapping[str, Series]


@dataclass(frozen=True)
class Selection:
    """Selected network, dataset and series keys; no key selects all series."""

    network: str
    dataset: str
    keys: tuple[str, ...]


def parse_selection(network: str, dataset: str, keys: Sequence[str], subjects: Sequence[tuple[str, str]]) -> Selection:
    """Check a query. Raises UserError for a subject that is not in the store, or a malformed key."""
    if (network, dataset) not in subjects:
        raise UserError("no run in this store has that network and dataset.")
    if not all(KEY.fullmatch(key) for key in keys):
        raise UserError(f"a treatment key has {KEY_LENGTH} hexadecimal digits.")
    return Selection(network, dataset, tuple(dict.fromkeys(keys)))


def network_dataset_pairs(rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    """Return the distinct pairs (network, dataset) of runs, sorted."""
    return sorted({(str(row["network"]), str(row["dataset"])) for row in rows.values()})


def filter_rows(rows: Mapping[str, Row], selection: Selection) -> dict[str, Row]:
    """Return the rows of the selected network and dataset."""
    return {
        run_id: row
        for run_id, row in rows.items()
        if (row["network"], row["dataset"]) == (selection.network, selection.dataset)
    }


def select_runs(run_set: RunSet, keys: Sequence[str]) -> list[LabeledRow]:
    """Return the runs of these series (default: all), sorted by series, level and seed."""
    selected: list[LabeledRow] = []
    for key, series in run_set.series.items():
        if not keys or key in keys:
            rows = [run_set.rows[run_id] for run_id in series.run_ids]
            rows.sort(key=lambda row: (row["level"] or 0, row["seed"] or 0))
            selected += [(row, series.label) for row in rows]
    return selected


def default_selection(run_set: RunSet) -> list[str]:
    """Return the series shown first: a dense network, then criteria under the paper's actions (rewind, zero)."""
    rows, all_series = run_set
    first = {key: rows[series.run_ids[0]] for key, series in all_series.items()}
    dense = [key for key, row in first.items() if row["level"] == 0]
    standard = [key for key, row in first.items() if row["trained"] and _actions(row) == ("rewind", "zero")]
    standard.sort(key=lambda key: (-len(all_series[key].run_ids), _criterion_order(first[key])))
    return list(dict.fromkeys([*dense[:1], *standard, *all_series]))[:DEFAULT_CRITERIA]


def _actions(row: Row) -> tuple[Value, Value]:
    return row.get("mask1"), row.get("mask0")


def _criterion_order(row: Row) -> int:
    """Return the position of a criterion in the paper's order; other criteria come last."""
    names = list(STYLES)
    return names.index(str(row["criterion"])) if row["criterion"] in STYLES else len(names)


def runs_page(runs: Sequence[LabeledRow], sort: str, descending: bool, page: int) -> dict[str, Any]:
    """Return one page of the sorted table; missing values come last. Raises UserError for an unknown column."""
    if sort not in COLUMNS:
        raise UserError("unknown column.")

    def key(run: LabeledRow) -> tuple[bool, float, str]:
        return _sort_key(run[1] if sort == "treatment" else run[0].get(sort), descending)

    ordered = sorted(runs, key=key, reverse=descending)
    shown = [row | {"treatment": label} for row, label in ordered[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]]
    cells = [[_cell(row.get(name)) for name in TABLE] for row in shown]
    return {"total": len(runs), "page": page, "pages": -(-len(runs) // PAGE_ROWS), "rows": cells}


def _sort_key(value: Value, descending: bool) -> tuple[bool, float, str]:
    # `sorted(reverse=True)` reverses this key too, so the flag is inverted to keep missing values last.
    missing = value is None
    number = float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
    return missing != descending, number, value if isinstance(value, str) else ""


def _cell(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def runs_csv(runs: Sequence[LabeledRow]) -> str:
    """Return runs as CSV with every column."""
    return to_csv([row | {"treatment": label} for row, label in runs])


def metric_plot(run_set: RunSet, keys: Sequence[str], metric: PlotMetric) -> dict[str, Any]:
    """Return a Plotly figure: mean over seeds with 95% t-interval against weights remaining, one curve per series."""
    # In the order of selection: adding a series does not change the styles of the others.
    selected = [run_set.series[key] for key in dict.fromkeys(keys) if key in run_set.series]
    if len(selected) > MAX_SERIES:
        raise UserError(f"{len(selected)} treatments are too many for one plot: choose up to {MAX_SERIES}.")
    styles = assign_styles([series.label for series in selected])
    curves = [(series, _points([run_set.rows[run_id] for run_id in series.run_ids], metric)) for series in selected]
    least = min((point.remaining for _, points in curves for point in points), default=100.0)
    traces = [
        trace for series, points in curves if points for trace in _traces(series, points, styles[series.label], least)
    ]
    return {"data": traces, "layout": _layout(metric)}


@dataclass(frozen=True)
class _Point:
    """Mean over the seeds of one level."""

    remaining: float
    """Weights remaining, in percent."""
    n: int
    mean: float
    low: float | None
    high: float | None
    level: int


def _points(rows: Sequence[Row], metric: PlotMetric) -> list[_Point]:
    column, factor, _ = metric
    levels: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] == "finished" and isinstance(row.get(column), int | float):
            levels[int(row["level"] or 0)].append(row)
    points = []
    for level, group in sorted(levels.items()):
        bounds = PERCENT if factor == 100 else None
        interval = mean_interval([float(row[column] or 0) * factor for row in group], bounds)
        remaining = math.fsum(float(row["density"] or 0) for row in group) / len(group) * 100
        points.append(_Point(remaining, interval.n, interval.mean, interval.low, interval.high, level))
    return points


def _traces(series: Series, points: Sequence[_Point], style: LineStyle, least: float) -> list[dict[str, Any]]:
    """Return the curve and the interval band of a series; a dense network is a horizontal line down to `least`."""
    across = [replace(points[0], remaining=least)] if [point.level for point in points] == [0] else []
    color, points = style.color, [*points, *across]
    banded = [point for point in points if point.low is not None and point.high is not None]
    trace = {
        "x": [point.remaining for point in points],
        "y": [point.mean for point in points],
        "name": series.label,
        "uid": series.key,
        "legendgroup": series.key,
        "mode": "lines" if across else "lines+markers",
        "line": {"color": color, "dash": "dot" if across else _dash(style.line), "width": 2},
        **({} if across else {"marker": {"color": color, "size": 7, "symbol": "circle"}}),
        "text": [
            f"<b>{escape_text(series.label)}</b><br>{_hover(point if not across else points[0])}" for point in points
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }
    band = {
        "x": [point.remaining for point in [*banded, *reversed(banded)]],
        "y": [point.low for point in banded] + [point.high for point in reversed(banded)],
        "uid": f"{series.key}-band",
        "legendgroup": series.key,
        "showlegend": False,
        "mode": "lines",
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": _transparent(color),
        "hoverinfo": "skip",
    }
    return [band, trace] if len(banded) > 1 else [trace]


def _hover(point: _Point) -> str:
    text = f"{format_percent(point.remaining)}% remaining, level {point.level}<br>mean {point.mean:.5g}, n = {point.n}"
    if point.low is None or point.high is None:
        return text
    return f"{text}<br>95% interval {point.low:.5g} to {point.high:.5g}"


def _transparent(color: str) -> str:
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.14)"


def _dash(line: str | tuple[int, tuple[float, ...]]) -> str:
    if isinstance(line, str):
        return "solid"
    # Matplotlib's on-off patterns, by number of entries and length of the first dash.
    return {2: "dash" if line[1][0] > 2 else "dot"}.get(len(line[1]), "dashdot")


def _layout(metric: PlotMetric) -> dict[str, Any]:
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
