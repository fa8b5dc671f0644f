"""Tables of the report that can be sorted, filtered and downloaded: rows, visible columns and their format.

Rows are stored by column, packed: 10,000 runs are a few hundred kilobytes of JSON with every digit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from supermask.analysis.comparisons import ResultComparison
from supermask.analysis.stats import min_sign_flip_p
from supermask.core.errors import sanitize
from supermask.core.text import Row, Value, pluralize
from supermask.reporting.figures import slugify
from supermask.store.tables import COLUMNS

PackedColumn = dict[str, Any]
"""One column in one of these forms, read by `reporting/html/templates/tables.js`:

- `all`: every row has this value.
- `of`, `at`: row i has the value of[at[i]].
- `of`, `as`: the same with the `at` of the column of this name.
- `values`: one value per row.
- `like`, `rows`, `values`: equal to the column of this name except in these rows, which have these values.
"""

DICTIONARY_MIN_REPEATS = 3
"""Average number of repeats from which a column is stored as indices into a list of its values."""

MIN_OVERLAP = 0.7
"""Share of equal rows from which a column is stored as another one with exceptions.

For example, the initial and the final accuracy of untrained networks are equal.
"""


def pack_columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, PackedColumn]:
    """Return name -> packed column. Numbers that are not finite become null, as in all other formats."""
    columns: dict[str, PackedColumn] = {}
    # Columns that later ones can be stored as a difference to.
    templates: dict[str, list[Value]] = {}
    first_with_indices: dict[tuple[int, ...], str] = {}
    for name in names:
        values = [_finite_or_none(row.get(name)) for row in rows]
        packed = _pack(values)
        if "all" not in packed:
            similar = next((other for other, column in templates.items() if _mostly_equal(values, column)), None)
            if similar is None:
                templates[name] = values
            else:
                packed = _encode_as_difference(similar, values, templates[similar])
        if "at" in packed and (first := first_with_indices.setdefault(tuple(packed["at"]), name)) != name:
            packed = {"of": packed["of"], "as": first}
        columns[name] = packed
    return columns


def _pack(values: Sequence[Value]) -> PackedColumn:
    # The type belongs to the key because 1, 1.0 and True are equal in Python.
    indices: dict[tuple[type, Value], int] = {}
    index_by_row = [indices.setdefault((type(value), value), len(indices)) for value in values]
    distinct = [value for _, value in indices]
    if len(distinct) == 1:
        return {"all": distinct[0]}
    if len(distinct) * DICTIONARY_MIN_REPEATS <= len(values):
        return {"of": distinct, "at": index_by_row}
    return {"values": list(values)}


def _mostly_equal(values: Sequence[Value], other: Sequence[Value]) -> bool:
    # About 64 rows are compared first: they rule out nearly all pairs of columns.
    for step in (max(1, len(values) // 64), 1):
        pairs = list(zip(values[::step], other[::step], strict=True))
        if sum(_is_same(a, b) for a, b in pairs) < MIN_OVERLAP * len(pairs):
            return False
    return True


def _encode_as_difference(name: str, values: Sequence[Value], other: Sequence[Value]) -> PackedColumn:
    differing = [row for row, pair in enumerate(zip(values, other, strict=True)) if not _is_same(*pair)]
    return {"like": name, "rows": differing, "values": [values[row] for row in differing]}


def _is_same(a: Value, b: Value) -> bool:
    return type(a) is type(b) and a == b


def _finite_or_none(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Kind = Literal["text", "number", "signed", "p", "share", "flag", "id"]
"""Format of a column: a `share` is shown in percent, a `flag` as yes or no."""

MEAN = ("mean_low95", "mean_high95")
DIFFERENCE = ("difference_low95", "difference_high95")


@dataclass(frozen=True)
class TableColumn:
    """A visible column of a table; the download has further columns."""

    title: str
    column: str
    kind: Kind = "text"
    digits: int = 0
    """Number of decimals."""
    about: str = ""
    """Explanation, shown as a tooltip."""
    interval: tuple[str, str] | None = None
    """Columns with the ends of the interval that is shown after the value."""
    bold: str | None = None
    """Column with a flag for values in bold."""
    rare: bool = False
    """True if the column is folded until all columns are asked for."""

    @property
    def numeric(self) -> bool:
        """True if the column is right-aligned."""
        return self.kind not in ("text", "flag", "id")


@dataclass(frozen=True)
class Table:
    """A table: all `columns` of its rows in order, and the `shown` ones that the page displays."""

    id: str
    name: str
    title: str
    file: str
    columns: tuple[str, ...]
    shown: tuple[TableColumn, ...]
    rows: Sequence[Row]
    lazy: bool = False
    """True if the table is folded and filled only when opened."""
    caption: str = ""
    """Note on the numbers of the table."""

    def data(self) -> dict[str, Any]:
        """Return the data of the table as JSON-serializable dict, as tables.js reads it."""
        return {
            "rows": len(self.rows),
            "file": self.file,
            "columns": pack_columns(self.rows, self.columns),
            "shown": [
                {name: value for name, value in asdict(column).items() if name != "about"} for column in self.shown
            ],
        }


def summary_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Return the table of treatments and levels; `rows` are those of `analysis.summary.data_rows`."""
    difference = "treatment minus the reference of its figure (column reference), percentage points"
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
        TableColumn("Difference [95% interval]", "difference", "signed", 2, difference, DIFFERENCE),
        TableColumn("p, Holm", "p_holm", "p", about="corrected over the levels of the treatment"),
        TableColumn(
            "p, flips", "p_sign_flip", "p", 0, "exact sign-flip test of this level alone, not corrected", rare=True
        ),
    )
    title = "Test accuracy by treatment and level"
    return _make_table(study_id, "summary", stem, title, shown, rows, _describe_p_values(rows))


def _describe_p_values(rows: Sequence[Row]) -> str:
    """Describe the tests behind the p-values of a summary; empty if there are none."""
    counts = Counter(str(row["test"]) for row in rows if row["p"] is not None)
    if not counts:
        return ""
    tests = " or ".join(f"{test} ({n:,})" for test, n in counts.items())
    holm = f"p, Holm: {tests}, corrected over the levels of each treatment."
    pairs = max((int(row["n"] or 0) for row in rows if row["p_sign_flip"] is not None), default=0)
    if not pairs:
        return holm
    minimum = f"with {pluralize(pairs, 'pair')} never below {min_sign_flip_p(pairs):g}"
    return f"{holm} p, flips: exact sign-flip test of that level alone over pairs by seed ({minimum}), not corrected."


def learned_masks_table(study_id: str, stem: str, reference: str, rows: Sequence[Row]) -> Table:
    """Return the table of supermasks and their networks; `rows` are those of `figures.learned.supermask_rows`."""
    difference = f"treatment minus {reference}, percentage points"
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn(
            "Network",
            "network",
            about="mean of single samples; p > 0.5; weights times p; fixed: not sampled; or untrained",
        ),
        TableColumn("In the mask, %", "density_percent", "number", 1, about="share of the weights"),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        TableColumn("Difference [95% interval]", "difference", "signed", 2, difference, DIFFERENCE),
        TableColumn("p, Holm", "p_holm", "p", about="corrected over the treatments"),
    )
    return _make_table(study_id, "networks", stem, "Supermasks and the networks that they define", shown, rows)


def table_one(study_id: str, stem: str, rows: Sequence[Row], caption: str) -> Table:
    """Return the paper's Table 1; `rows` are those of `figures.table_one.table_one_rows`."""
    shown = (
        TableColumn("Mask and weights", "column"),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Measured, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        TableColumn(
            "Paper, %", "paper_text", about="bold: confirmed by its text or a later paper", bold="paper_confirmed"
        ),
        TableColumn("Confirmed", "paper_confirmed", "flag", about="its text or a later paper has this value"),
        TableColumn("In the mask, %", "density_percent", "number", 1, about="share of the weights"),
    )
    return _make_table(study_id, "table-one", stem, "Table 1 of the paper, and as measured here", shown, rows, caption)


def published_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Return published values and what was measured; `rows` are those of `analysis.comparisons.published_rows`."""
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn("Level", "level", "number", about="of several levels the one of best validation accuracy"),
        TableColumn("Remaining, %", "density_percent", "number", 1, about="share of the weights"),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Measured, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        TableColumn("Published, %", "published_text", about="bold: the source's text has it", bold="confirmed"),
        TableColumn("Difference", "difference", "signed", 2, "measured minus published, percentage points"),
        TableColumn("Confirmed", "confirmed", "flag", about="the source's text has this value; else it is from memory"),
        TableColumn("Note", "note"),
        TableColumn("Source", "source"),
    )
    caption = (
        "Values of publications for this network and dataset, as they were published. They are shown and not tested "
        "against: their spread over seeds is not published, and the settings may differ. `supermask compare` tests "
        "against a table of runs."
    )
    return _make_table(study_id, "published", stem, "Beside published numbers", shown, rows, caption)


def comparison_table(study_id: str, stem: str, comparison: ResultComparison) -> Table:
    """Return the cells of a comparison with a table of runs that somebody else made."""
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn("Level", "level", "number"),
        TableColumn("Remaining, %", "weights_remaining_percent", "number", 2),
        TableColumn("n", "n", "number", about="runs here"),
        TableColumn("Mean here", "mean", "number", 2),
        TableColumn("SD here", "std", "number", 2),
        TableColumn("n there", "other_n", "number", about="runs there"),
        TableColumn("Mean there", "other_mean", "number", 2),
        TableColumn("SD there", "other_std", "number", 2),
        TableColumn("Difference [95% interval]", "difference", "signed", 2, "here minus there", DIFFERENCE),
        TableColumn("p", "p", "p", about="Welch's test of this cell alone"),
        TableColumn("p, Holm", "p_holm", "p", about="corrected over all cells"),
        TableColumn("Equivalent", "equivalent", "flag", about="two one-sided tests within the margin, 5%"),
    )
    caption = " ".join([f"{comparison.metric.title}.", *comparison.summary(), *comparison.notes])
    title = f"Beside the numbers of {sanitize(comparison.source)}"
    return _make_table(study_id, "compared", stem, title, shown, comparison.data_rows(), caption)


def weight_changes_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Return the facts of training; `rows` are those of `figures.weight_changes.fact_rows`."""
    shown = (
        TableColumn("Fact", "fact"),
        TableColumn("Treatment", "treatment"),
        TableColumn("Level", "level", "number"),
        TableColumn("Remaining, %", "weights_remaining_percent", "number", 2, about="weights remaining"),
        TableColumn("n", "n", "number", about="seeds"),
        TableColumn("Mean [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        TableColumn("Unit", "unit"),
    )
    return _make_table(study_id, "changes", stem, "Ties, sign changes and shrinkage by level", shown, rows)


def untrained_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Return the table of heuristic supermasks; `rows` are those of `figures.untrained.heuristic_points`."""
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
    title = "Heuristic supermasks by criterion, weights and level"
    return _make_table(study_id, "heuristics", stem, title, shown, rows)


def runs_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Return the table of runs, with all columns of `supermask table`."""
    shown = (
        TableColumn("Treatment", "treatment"),
        TableColumn("Level", "level", "number"),
        TableColumn("Seed", "seed", "number"),
        TableColumn("Status", "status"),
        TableColumn("Remaining, %", "density", "share", 2, about="kept / weights"),
        TableColumn("Accuracy, %", "early_stop_test_accuracy", "share", 2, about="at the lowest validation loss"),
        TableColumn(
            "Stopped at", "early_stop_iteration", "number", about="iteration of the lowest validation loss", rare=True
        ),
        TableColumn("Seconds", "seconds", "number", 1, rare=True),
        TableColumn("Certificate", "certificate"),
        TableColumn("Run", "id", "id"),
    )
    title = f"All runs ({len(rows):,})"
    return Table(f"{study_id}-runs", "runs", title, _file(stem, "runs"), tuple(COLUMNS), shown, rows, lazy=True)


def _make_table(
    study_id: str,
    name: str,
    stem: str,
    title: str,
    shown: tuple[TableColumn, ...],
    rows: Sequence[Row],
    caption: str = "",
) -> Table:
    # A demonstration is not tested: it has no p-values to show.
    shown = tuple(c for c in shown if c.kind != "p" or any(row[c.column] is not None for row in rows))
    # The values by seed are in the table of runs.
    columns = tuple(name for name in (rows[0] if rows else ()) if name != "values_by_seed")
    return Table(f"{study_id}-{name}", name, title, _file(stem, name), columns, shown, rows, caption=caption)


def _file(stem: str, name: str) -> str:
    return f"{slugify(stem)}-{name}.csv"
