"""The report's tables that sort, filter and download: their rows, and how each column is shown.

Rows as columns: 10,000 runs in a few hundred kilobytes of JSON, every number to its last digit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from supermask.analysis.stats import min_sign_flip_p
from supermask.core.text import Row, Value
from supermask.reporting.figures import slugify
from supermask.store.tables import COLUMNS

PackedColumn = dict[str, Any]
"""One column, as one of

- `all`: every row has this value;
- `of`, `at`: row i has of[at[i]];
- `of`, `as`: the same, at the places of the column of this name;
- `values`: a value a row;
- `like`, `rows`, `values`: as the column of this name, but for these rows, which have these values.

`reporting/html/templates/tables.js` reads it.
"""

DICTIONARY_MIN_REPEATS = 3
"""A column is written as places in a list of its values where each is there so many times, on average."""

MIN_OVERLAP = 0.7
"""Share of rows at which a column is written as another one with exceptions. What is not trained, for one, ends as it
starts."""


def pack_columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, PackedColumn]:
    """Name -> column. Numbers that are not finite are null, as in every other format."""
    columns: dict[str, PackedColumn] = {}
    written: dict[str, list[Value]] = {}
    placed: dict[tuple[int, ...], str] = {}
    for name in names:
        values = [_clean(row.get(name)) for row in rows]
        packed = _packed(values)
        if "all" not in packed:
            other = next((other for other, theirs in written.items() if _mostly_equal(values, theirs)), None)
            if other is None:
                written[name] = values
            else:
                packed = _encode_as_difference(other, values, written[other])
        if "at" in packed and (same := placed.setdefault(tuple(packed["at"]), name)) != name:
            packed = {"of": packed["of"], "as": same}
        columns[name] = packed
    return columns


def _packed(values: Sequence[Value]) -> PackedColumn:
    places: dict[tuple[type, Value], int] = {}
    at = [places.setdefault((type(value), value), len(places)) for value in values]
    distinct = [value for _, value in places]
    if len(distinct) == 1:
        return {"all": distinct[0]}
    if len(distinct) * DICTIONARY_MIN_REPEATS <= len(values):
        return {"of": distinct, "at": at}
    return {"values": list(values)}


def _mostly_equal(ours: Sequence[Value], theirs: Sequence[Value]) -> bool:
    """Some rows tell nearly always that two columns are not; only then all are looked at."""
    for step in (max(1, len(ours) // 64), 1):
        pairs = list(zip(ours[::step], theirs[::step], strict=True))
        if sum(_same(a, b) for a, b in pairs) < MIN_OVERLAP * len(pairs):
            return False
    return True


def _encode_as_difference(name: str, ours: Sequence[Value], theirs: Sequence[Value]) -> PackedColumn:
    apart = [row for row, pair in enumerate(zip(ours, theirs, strict=True)) if not _same(*pair)]
    return {"like": name, "rows": apart, "values": [ours[row] for row in apart]}


def _same(one: Value, other: Value) -> bool:
    """1, 1.0 and true are equal to Python, and not to a reader."""
    return type(one) is type(other) and one == other


def _clean(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Kind = Literal["text", "number", "signed", "p", "share", "flag", "id"]
"""How a value is shown; a `share` in percent, a `flag` as yes or no."""


MEAN = ("mean_low95", "mean_high95")
DIFFERENCE = ("difference_low95", "difference_high95")


@dataclass(frozen=True)
class TableColumn:
    """A column on the page. What is downloaded has all columns, these and others."""

    title: str
    column: str
    kind: Kind = "text"
    digits: int = 0
    """Decimals."""
    about: str = ""
    interval: tuple[str, str] | None = None
    """Columns of the two ends of its interval, which stands beside it."""
    bold: str | None = None
    """The column that says, true or false, which of its values are bold."""

    @property
    def numeric(self) -> bool:
        """Set to the right."""
        return self.kind not in ("text", "flag", "id")


@dataclass(frozen=True)
class Table:
    """Rows with a name; `columns` are all that is in them, in order, and `shown` those that the page shows."""

    id: str
    name: str
    title: str
    file: str
    columns: tuple[str, ...]
    shown: tuple[TableColumn, ...]
    rows: Sequence[Row]
    lazy: bool = False
    """Shown only when it is opened."""
    caption: str = ""
    """What has to be known of its numbers."""

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": len(self.rows),
            "file": self.file,
            "columns": pack_columns(self.rows, self.columns),
            "shown": [{name: value for name, value in asdict(s).items() if name != "about"} for s in self.shown],
        }


def summary_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Treatments by levels: the numbers of `figures.points.data_rows`."""
    apart = "treatment minus what its figure compares it with (column reference), percentage points"
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn("Level", "level", "number"),
        TableColumn(
            "Remaining, %", "weights_remaining_percent", "number", 2, about="weights remaining, mean over seeds"
        ),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn(
            "Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds, at the lowest validation loss", MEAN
        ),
        TableColumn("Difference [95% interval]", "difference", "signed", 2, apart, DIFFERENCE),
        TableColumn("p, Holm", "p_holm", "p", about="corrected over the levels of the treatment"),
        TableColumn("p, flips", "p_sign_flip", "p", 0, "exact sign-flip test of this level alone, not corrected"),
    )
    return _table(study_id, "summary", stem, "Test accuracy by treatment and level", shown, rows, _tests(rows))


def _tests(rows: Sequence[Row]) -> str:
    """Which tests a summary's p are of; empty where there is none."""
    used = Counter(str(row["test"]) for row in rows if row["p"] is not None)
    if not used:
        return ""
    tests = " or ".join(f"{test} ({n:,})" for test, n in used.items())
    told = f"p, Holm: {tests}, corrected over the levels of each treatment."
    pairs = max((int(row["n"] or 0) for row in rows if row["p_sign_flip"] is not None), default=0)
    if not pairs:
        return told
    least = f"with {pairs} of them not below {min_sign_flip_p(pairs):g}"
    return f"{told} p, flips: exact sign-flip test of that level alone, of pairs by seed ({least}), not corrected."


def learned_masks_table(study_id: str, stem: str, reference: str, rows: Sequence[Row]) -> Table:
    """Supermasks by treatment and by which network of it: the numbers of `figures.supermasks.supermask_rows`."""
    apart = f"treatment minus {reference}, percentage points"
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn("Network", "network", about="mean of single samples; p > 0.5; weights times p; or untrained"),
        TableColumn("In the mask, %", "density_percent", "number", 1, about="share of the weights"),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        TableColumn("Difference [95% interval]", "difference", "signed", 2, apart, DIFFERENCE),
        TableColumn("p, Holm", "p_holm", "p", about="corrected over the treatments"),
    )
    return _table(study_id, "networks", stem, "Supermasks, each as the networks that it stands for", shown, rows)


def table_one(study_id: str, stem: str, rows: Sequence[Row], caption: str) -> Table:
    """The paper's Table 1: the numbers of `figures.table_one.table_one_rows`."""
    shown = (
        TableColumn("Mask and weights", "column"),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Here, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        TableColumn("The paper, %", "paper_text", about="bold: confirmed by its text", bold="paper_confirmed"),
        TableColumn("Confirmed", "paper_confirmed", "flag", about="whether the paper's text has this value"),
        TableColumn("In the mask, %", "density_percent", "number", 1, about="share of the weights"),
    )
    return _table(study_id, "table-one", stem, "Table 1 of the paper, and what was found here", shown, rows, caption)


def untrained_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Heuristic supermasks: the numbers of `figures.panels.heuristic_points`."""
    shown = (
        TableColumn("Criterion", "criterion"),
        TableColumn("Weights", "mask1"),
        TableColumn("Schedule", "schedule"),
        TableColumn("Level", "level", "number"),
        TableColumn(
            "Remaining, %", "weights_remaining_percent", "number", 2, about="weights remaining, mean over seeds"
        ),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds, untrained", MEAN),
    )
    return _table(study_id, "heuristics", stem, "Heuristic supermasks by criterion, weights and level", shown, rows)


def runs_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """One row a run, with every column of `supermask table`."""
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn("Level", "level", "number"),
        TableColumn("Seed", "seed", "number"),
        TableColumn("Status", "status"),
        TableColumn("Remaining, %", "density", "share", 2, about="kept / weights"),
        TableColumn("Accuracy, %", "early_stop_test_accuracy", "share", 2, about="at the lowest validation loss"),
        TableColumn("Stopped at", "early_stop_iteration", "number", about="iteration of the lowest validation loss"),
        TableColumn("Seconds", "seconds", "number", 1),
        TableColumn("Certificate", "certificate"),
        TableColumn("Run", "id", "id"),
    )
    title = f"All runs ({len(rows):,})"
    return Table(f"{study_id}-runs", "runs", title, _file(stem, "runs"), tuple(COLUMNS), shown, rows, lazy=True)


# Values by seed are in the table of runs.
def _table(
    study_id: str,
    name: str,
    stem: str,
    title: str,
    shown: tuple[TableColumn, ...],
    rows: Sequence[Row],
    caption: str = "",
) -> Table:
    columns = tuple(name for name in (rows[0] if rows else ()) if name != "values_by_seed")
    return Table(f"{study_id}-{name}", name, title, _file(stem, name), columns, shown, rows, caption=caption)


def _file(stem: str, name: str) -> str:
    return f"{slugify(stem)}-{name}.csv"
