"""Comparison of a study's results with those of others: a CSV table, another store, or a table of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from supermask.analysis.comparisons import (
    DEFAULT_MARGIN,
    OtherResults,
    ResultComparison,
    TableColumns,
    ValueUnit,
    column_names,
    compare_results,
    describe_other_settings,
    find_metric,
    parse_name_pairs,
    read_csv_results,
    row_results,
)
from supermask.analysis.summary import Metric
from supermask.api.notebook import settings_to_overrides
from supermask.api.row_files import read_other_rows, read_study_from_tables
from supermask.api.runs import open_store, study_rows
from supermask.core.environment import expand_path
from supermask.core.errors import UserError
from supermask.core.text import Row, escape_controls
from supermask.reporting.figures import FigureOptions, RenderedFigure, comparison_figure, save_figure
from supermask.reporting.figures.save import figure_stem
from supermask.reporting.figures.style import DEFAULT_OPTIONS
from supermask.store.location import output_path
from supermask.store.row_files import is_parquet
from supermask.store.tables import DENSE
from supermask.study import Study, StudyLike

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
    ours = _our_runs(study, overrides, store, rows)
    others, notes = _others(study, overrides, table, other_store, columns or TableColumns(), compared_metric, ours)
    labels = [treatment.label for treatment in ours.study.treatments]
    if names is not None and not isinstance(names, Mapping):
        their_names = list(dict.fromkeys(result.treatment for result in others.results))
        names = parse_name_pairs(names, their_names, [DENSE, *labels])
    by_density = bool(columns and columns.density)
    compared = compare_results(ours.rows, others, compared_metric, labels, ours.study.name, margin, names, by_density)
    return replace(compared, notes=(*compared.notes, *ours.notes, *notes))


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
    stem = figure_stem(comparison.study, f"beside-{Path(comparison.source).stem}")
    return drawn, save_figure(drawn, output_path(folder), stem)


@dataclass(frozen=True)
class _OurRuns:
    """Our side of a comparison."""

    study: Study
    rows: list[Row]
    scale: str
    """Name of the scale; empty for none."""
    notes: list[str]


def _our_runs(
    study: StudyLike, overrides: Sequence[str], store: str | Path | None, rows: str | Path | None
) -> _OurRuns:
    scales = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "scale"]
    if rows is not None:
        part = read_study_from_tables([Path(rows)], study, overrides)
        notes = [] if scales or not part.scale else [f"The runs here are of scale={part.scale}."]
        return _OurRuns(part.plan.study, part.rows, part.scale, [*notes, *part.notices])
    plan, plan_rows, damaged = study_rows(study, overrides, open_store(store).root)
    return _OurRuns(plan.study, plan_rows, scales[-1] if scales else "", [*plan.notices, *damaged])


def _others(
    study: StudyLike,
    overrides: Sequence[str],
    table: str | Path | None,
    other_store: str | Path | None,
    columns: TableColumns,
    metric: Metric,
    ours: _OurRuns,
) -> tuple[OtherResults, list[str]]:
    """Return the results of others, and notes on their settings."""
    if other_store is not None:
        _, rows, _ = study_rows(study, overrides, open_store(other_store).root)
        return row_results(rows, metric, f"the store {escape_controls(str(expand_path(other_store)))}"), []
    assert table is not None
    if not is_parquet(table):
        return read_csv_results(table, columns, metric), []
    name = Path(table).name
    rows, notes = read_other_rows(Path(table), study, overrides, ours.scale)
    return row_results(rows, metric, name), [*notes, *describe_other_settings(ours.rows, rows, name)]
