"""Comparison of a study's results with those of others: a CSV table, another store, or a table of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from supermask.analysis.comparisons import (
    DEFAULT_MARGIN,
    OtherResults,
    ResultComparison,
    TableColumns,
    ValueUnit,
    column_names,
    compare_results,
    find_metric,
    parse_name_pairs,
    read_csv_results,
    row_results,
)
from supermask.analysis.summary import Metric
from supermask.api.notebook import settings_to_overrides
from supermask.api.runs import open_store, study_rows
from supermask.core.environment import expand_path
from supermask.core.errors import UserError, quote
from supermask.core.text import Row, escape_controls
from supermask.reporting.figures import FigureOptions, RenderedFigure, comparison_figure, save_figure
from supermask.reporting.figures.style import DEFAULT_OPTIONS
from supermask.store.location import output_path
from supermask.store.row_files import is_parquet
from supermask.store.tables import DENSE, TREATMENT_SEPARATOR, from_parquet
from supermask.study import Study, StudyLike, load_study
from supermask.study.plan import make_plan

DEFAULT_METRIC = "early_stop_test_accuracy"


def compare(
    study: StudyLike,
    table: str | Path | None = None,
    *,
    other_store: str | Path | None = None,
    treatment: str = "treatment",
    level: str = "level",
    value: str = "value",
    seed: str | None = None,
    density: str | None = None,
    unit: ValueUnit = "auto",
    metric: str = DEFAULT_METRIC,
    names: Mapping[str, str] | None = None,
    margin: float | None = None,
    store: str | Path | None = None,
    rows: str | Path | None = None,
    **settings: object,
) -> ResultComparison:
    """Compare the finished runs of a study with a table of runs that somebody else made, or with another store.

    `table`: a CSV file with one run per line; `treatment`, `level` (or `density`), `value` and `seed` name its
    columns, `unit` is `percent`, `share` or `auto`. Or a Parquet file of `supermask table`, or `other_store`.
    `names`: their name of a treatment -> ours; an empty name leaves it out. `margin` of the equivalence test in the
    metric's unit; by default 0.2 points for accuracies, and no test otherwise. `rows`: our runs from a Parquet file,
    not from a store.

        sm.compare("mask-criteria", "theirs.csv", value="accuracy", seed="run", scale="paper").total

    Raises UserError.
    """
    columns = TableColumns(treatment, None if density else level, value, seed, density, unit)
    overrides = settings_to_overrides(settings)
    return compare_study(study, overrides, table, other_store, columns, metric, names, margin, store, rows)


def compare_study(
    study: StudyLike,
    overrides: Sequence[str] = (),
    table: str | Path | None = None,
    other_store: str | Path | None = None,
    columns: TableColumns | None = None,
    metric: str = DEFAULT_METRIC,
    names: Mapping[str, str] | Sequence[str] | None = None,
    margin: float | None = None,
    store: str | Path | None = None,
    rows: str | Path | None = None,
) -> ResultComparison:
    """Compare as `compare` does, with overrides as on the command line; so are names that are a list: `THEIRS=OURS`."""
    compared_metric = find_metric(metric)
    if margin is None and compared_metric.unit == "percent":
        margin = DEFAULT_MARGIN
    if margin is not None and not 0 < margin < float("inf"):
        raise UserError(f"a margin of {margin:g} is not possible: give a number above 0, in {compared_metric.unit}.")
    if (table is None) == (other_store is None):
        raise UserError("give one thing to compare with: a table of runs (--with FILE.csv) or a second --store.")
    if rows is not None and store is not None:
        raise UserError("our runs come from --rows or from --store: give one of them.")
    loaded = load_study(study, overrides)
    ours, notices = _our_rows(study, overrides, store, rows, loaded)
    others = _others(study, overrides, table, other_store, columns or TableColumns(), compared_metric, loaded)
    labels = [treatment.label for treatment in loaded.treatments]
    if names is not None and not isinstance(names, Mapping):
        names = parse_name_pairs(
            names, list(dict.fromkeys(result.treatment for result in others.results)), [DENSE, *labels]
        )
    compared = compare_results(
        ours, others, compared_metric, labels, loaded.name, margin, names, by_density=bool(columns and columns.density)
    )
    return replace(compared, notes=(*compared.notes, *notices))


def default_columns(table: str | Path) -> TableColumns:
    """Return the columns of a CSV file by their usual names: `level` or else `density`, and `seed` if it has one."""
    names = column_names(table)
    by_density = "level" not in names and "density" in names
    return TableColumns(
        level=None if by_density else "level",
        density="density" if by_density else None,
        seed="seed" if "seed" in names else None,
    )


def save_comparison_figure(
    comparison: ResultComparison, folder: str | Path, options: FigureOptions = DEFAULT_OPTIONS
) -> tuple[RenderedFigure, list[Path]]:
    """Draw a comparison and save it as PDF, SVG, PNG, CSV and text; return it with its files."""
    drawn = comparison_figure(comparison, options=options)
    return drawn, save_figure(drawn, output_path(folder), f"{comparison.study}-beside-{Path(comparison.source).stem}")


def _our_rows(
    study: StudyLike, overrides: Sequence[str], store: str | Path | None, rows: str | Path | None, loaded: Study
) -> tuple[list[Row], list[str]]:
    if rows is not None:
        return _rows_of_study(rows, loaded), []
    plan, plan_rows, damaged = study_rows(study, overrides, open_store(store).root)
    return plan_rows, [*plan.notices, *damaged]


def _others(
    study: StudyLike,
    overrides: Sequence[str],
    table: str | Path | None,
    other_store: str | Path | None,
    columns: TableColumns,
    metric: Metric,
    loaded: Study,
) -> OtherResults:
    if other_store is not None:
        _, rows, _ = study_rows(study, overrides, open_store(other_store).root)
        return row_results(rows, metric, f"the store {escape_controls(str(expand_path(other_store)))}")
    assert table is not None
    if is_parquet(table):
        return row_results(_rows_of_study(table, loaded), metric, Path(table).name)
    return read_csv_results(table, columns, metric)


def _rows_of_study(path: str | Path, loaded: Study) -> list[Row]:
    """Return the rows of a study in a Parquet file: those of its plan, or all of its name if the plan has none of them.

    The second are rows on other data than the published, or of other settings.
    """
    rows, name = from_parquet(path), loaded.name
    named = [row for row in rows if name in str(row.get("study") or name).split(TREATMENT_SEPARATOR)]
    if not named:
        known = sorted({label for row in rows for label in str(row.get("study")).split(TREATMENT_SEPARATOR)})
        raise UserError(f"{path} has no run of study {quote(name)}; it has runs of {', '.join(known) or 'none'}.")
    planned = make_plan(loaded).runs
    return [row for row in named if row.get("id") in planned] or named
