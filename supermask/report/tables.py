"""The report's tables that sort, filter and download: their rows, and how each column is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from supermask.figures import slug
from supermask.report.columns import pack_columns
from supermask.stats import least_sign_flip_p
from supermask.tables import COLUMNS, Row

Kind = Literal["text", "number", "signed", "p", "share", "flag", "id"]
"""How a value is shown; a `share` in percent, a `flag` as yes or no."""


MEAN = ("mean_low95", "mean_high95")
DIFFERENCE = ("difference_low95", "difference_high95")


@dataclass(frozen=True)
class Shown:
    """A column on the page. What is downloaded has all columns, these and others."""

    head: str
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
    shown: tuple[Shown, ...]
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
        Shown("Treatment", "treatment"),
        Shown("Level", "level", "number"),
        Shown("Remaining, %", "weights_remaining_percent", "number", 2, about="weights remaining, mean over seeds"),
        Shown("n", "n", "number", about="seeds"),
        Shown(
            "Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds, at the lowest validation loss", MEAN
        ),
        Shown("Difference [95% interval]", "difference", "signed", 2, apart, DIFFERENCE),
        Shown("p, Holm", "p_holm", "p", about="corrected over the levels of the treatment"),
        Shown("p, flips", "p_sign_flip", "p", 0, "exact sign-flip test of this level alone, not corrected"),
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
    least = f"with {pairs} of them not below {least_sign_flip_p(pairs):g}"
    return f"{told} p, flips: exact sign-flip test of that level alone, of pairs by seed ({least}), not corrected."


def networks_table(study_id: str, stem: str, reference: str, rows: Sequence[Row]) -> Table:
    """Supermasks by treatment and by which network of it: the numbers of `figures.supermasks.supermask_rows`."""
    apart = f"treatment minus {reference}, percentage points"
    shown = (
        Shown("Treatment", "treatment"),
        Shown("Network", "network", about="mean of single samples; p > 0.5; weights times p; or untrained"),
        Shown("In the mask, %", "density_percent", "number", 1, about="share of the weights"),
        Shown("n", "n", "number", about="seeds"),
        Shown("Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        Shown("Difference [95% interval]", "difference", "signed", 2, apart, DIFFERENCE),
        Shown("p, Holm", "p_holm", "p", about="corrected over the treatments"),
    )
    return _table(study_id, "networks", stem, "Supermasks, each as the networks that it stands for", shown, rows)


def table_one(study_id: str, stem: str, rows: Sequence[Row], caption: str) -> Table:
    """The paper's Table 1: the numbers of `figures.table_one.table_one_rows`."""
    shown = (
        Shown("Mask and weights", "column"),
        Shown("n", "n", "number", about="seeds"),
        Shown("Here, % [95% interval]", "mean", "number", 2, "mean over seeds", MEAN),
        Shown("The paper, %", "paper_text", about="bold: confirmed by its text", bold="paper_confirmed"),
        Shown("Confirmed", "paper_confirmed", "flag", about="whether the paper's text has this value"),
        Shown("In the mask, %", "density_percent", "number", 1, about="share of the weights"),
    )
    return _table(study_id, "table-one", stem, "Table 1 of the paper, and what was found here", shown, rows, caption)


def heuristic_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """Heuristic supermasks: the numbers of `figures.panels.heuristic_points`."""
    shown = (
        Shown("Criterion", "criterion"),
        Shown("Weights", "mask1"),
        Shown("Schedule", "schedule"),
        Shown("Level", "level", "number"),
        Shown("Remaining, %", "weights_remaining_percent", "number", 2, about="weights remaining, mean over seeds"),
        Shown("n", "n", "number", about="seeds"),
        Shown("Accuracy, % [95% interval]", "mean", "number", 2, "mean over seeds, untrained", MEAN),
    )
    return _table(study_id, "heuristics", stem, "Heuristic supermasks by criterion, weights and level", shown, rows)


def runs_table(study_id: str, stem: str, rows: Sequence[Row]) -> Table:
    """One row a run, with every column of `supermask table`."""
    shown = (
        Shown("Treatment", "treatment"),
        Shown("Level", "level", "number"),
        Shown("Seed", "seed", "number"),
        Shown("Status", "status"),
        Shown("Remaining, %", "density", "share", 2, about="kept / weights"),
        Shown("Accuracy, %", "early_stop_test_accuracy", "share", 2, about="at the lowest validation loss"),
        Shown("Stopped at", "early_stop_iteration", "number", about="iteration of the lowest validation loss"),
        Shown("Seconds", "seconds", "number", 1),
        Shown("Certificate", "certificate"),
        Shown("Run", "id", "id"),
    )
    title = f"All runs ({len(rows):,})"
    return Table(f"{study_id}-runs", "runs", title, _file(stem, "runs"), tuple(COLUMNS), shown, rows, lazy=True)


# Values by seed are in the table of runs.
def _table(
    study_id: str, name: str, stem: str, title: str, shown: tuple[Shown, ...], rows: Sequence[Row], caption: str = ""
) -> Table:
    columns = tuple(name for name in (rows[0] if rows else ()) if name != "values_by_seed")
    return Table(f"{study_id}-{name}", name, title, _file(stem, name), columns, shown, rows, caption=caption)


def _file(stem: str, name: str) -> str:
    return f"{slug(stem)}-{name}.csv"
