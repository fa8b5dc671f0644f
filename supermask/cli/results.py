"""Commands that read finished runs: status, table, figure, export, verify, query.

Heavy modules are imported inside the commands that need them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from supermask.cli.app import (
    OutputFolderOption,
    OverridesArg,
    RowsOption,
    RunIdArg,
    ScaleOption,
    StoreOption,
    StudyArg,
    add_scale,
    app,
    print_warnings,
    split_row_files,
)
from supermask.cli.output import echo
from supermask.core.errors import UserError
from supermask.core.text_output import survive_lost_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supermask.store.verify import VerificationResult


@app.command()
def status(
    study: StudyArg, overrides: OverridesArg = None, scale: ScaleOption = None, store: StoreOption = None
) -> None:
    """Print the progress of a study: runs by status for each treatment, and the accuracy at its last level.

    Example: `supermask status mask-criteria scale=digits`
    """
    from supermask.api import runs
    from supermask.reporting.status import format_status

    plan, rows, damaged = runs.study_rows(study, add_scale(overrides, scale), store)
    echo(f"{plan.study.name}: {', '.join(plan.networks)} on {plan.study.dataset}\n")
    echo(format_status(runs.treatment_labels(plan), rows), nl=False)
    print_warnings([*plan.notices, *damaged])


TEXT_COLUMNS = (
    "treatment",
    "level",
    "seed",
    "status",
    "density",
    "early_stop_iteration",
    "early_stop_test_accuracy",
    "final_test_accuracy",
)
"""Columns of `table --format latex` and `markdown`: all of `COLUMNS` would not fit on a page."""

LAYER_TEXT_COLUMNS = ("treatment", "level", "seed", "layer", "kept", "ties_drawn", "sign_changed", "shrunk")
"""Columns of `table --layers --format latex` and `markdown`."""


@app.command()
def table(
    study: StudyArg,
    overrides: OverridesArg = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    format: Annotated[
        Literal["csv", "json", "parquet", "latex", "markdown"], typer.Option(help="Output format.")
    ] = "csv",
    layers: Annotated[
        bool, typer.Option("--layers", help="One row per run and layer: kept weights, ties, sign changes, shrinkage.")
    ] = False,
) -> None:
    """Write one row per run, with every fact and metric, to standard output.

    Example: `supermask table mask-criteria scale=digits --format parquet > runs.parquet`
    """
    from supermask.api import runs
    from supermask.store import tables
    from supermask.store.row_files import plan_to_parquet

    if format == "parquet" and sys.stdout.isatty():
        raise UserError("a Parquet table is binary: send it to a file, as in `supermask table ... > runs.parquet`.")
    plan, rows, damaged = runs.study_rows(study, add_scale(overrides, scale), store)
    columns, text_columns = tables.COLUMNS, TEXT_COLUMNS
    if layers:
        columns, text_columns = tables.LAYER_COLUMNS, LAYER_TEXT_COLUMNS
        rows = runs.layer_rows(rows, store)
    if format == "parquet":
        sys.stdout.buffer.write(tables.to_parquet(rows, columns) if layers else plan_to_parquet(plan, rows))
    elif format in ("latex", "markdown"):
        from supermask.reporting.tables import format_latex, format_markdown, table_of_rows

        write = format_latex if format == "latex" else format_markdown
        sys.stdout.write(write(*table_of_rows(rows, text_columns)))
    else:
        sys.stdout.write(tables.to_csv(rows, list(columns)) if format == "csv" else tables.to_json(rows, list(columns)))
    print_warnings([*plan.notices, *damaged])


@app.command()
def figure(
    study: StudyArg,
    overrides: OverridesArg = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    rows: RowsOption = None,
    out: OutputFolderOption = Path("figures"),
    only: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Figures to draw, such as accuracy; all if it is not given.")
    ] = None,
    treatments: Annotated[
        str | None,
        typer.Option(metavar="LABEL,...", help="Treatments to draw beside the reference; all if it is not given."),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="FORMAT,...", help="File formats: pdf, svg, png, and tex or md for a table.")
    ] = "pdf,svg,png",
    width: Annotated[
        str, typer.Option(metavar="LENGTH", help="Width of the files, such as 5.5in, 14cm or 397pt.")
    ] = "6.9in",
    no_title: Annotated[bool, typer.Option("--no-title", help="Omit the title.")] = False,
    no_caption: Annotated[
        bool, typer.Option("--no-caption", help="Omit the caption, which is written as a text file in any case.")
    ] = False,
    axis: Annotated[
        Literal["auto", "linear", "log", "log-error"],
        typer.Option(
            help="Scale of accuracies, differences and iterations; log-error: logarithmic in 100% - accuracy."
        ),
    ] = "auto",
    style: Annotated[
        Literal["paper", "slides"], typer.Option(help="slides: larger fonts, lines and markers.")
    ] = "paper",
) -> None:
    """Draw the figures of a study as PDF, SVG and PNG, each with its data as CSV and its caption as text.

    Example: `supermask figure mask-criteria scale=digits --only accuracy --format pdf --width 5.5in --no-title`
    """
    from supermask.api import runs
    from supermask.reporting.figures import FigureOptions
    from supermask.reporting.figures.style import parse_width

    options = FigureOptions(parse_width(width), not no_title, not no_caption, axis, style)
    formats, names = _split(format), _split(only or "")
    settings, tables = split_row_files(overrides, rows)
    saved, notices = runs.figures(
        study, add_scale(settings, scale), out, store, names, treatments or "", formats, options, tables
    )
    for rendered, paths in saved:
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}\n  {rendered.caption}\n")
    print_warnings(notices)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
def export(
    run_id: RunIdArg,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.")],
    store: StoreOption = None,
) -> None:
    """Export a run for other scripts: run.json, and tensors.safetensors with start, final and mask of every layer.

    Example: `supermask export 3f9c01ab ticket`
    """
    from supermask.api import runs

    echo("\n".join(map(str, runs.export(run_id, folder, store))))


@app.command()
@survive_lost_output()
def verify(
    store: StoreOption = None,
    accuracies: Annotated[
        bool,
        typer.Option("--accuracies", help="Also measure every test accuracy again, from the stored tensors."),
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Set every damaged or forged entry aside, in quarantine/ of the store.")
    ] = False,
) -> None:
    """Recompute the checksums and the certificate of every run from its tensors. Exit status 1 if one fails.

    Example: `supermask verify --store supermask-store`
    """
    from supermask.api import runs

    failures = _print_verification("verifying", runs.repair(store) if repair else runs.verify(store), "")
    if accuracies:
        failures += _print_verification("measuring", runs.recheck_accuracies(store), "accuracies measured again: ")
    if failures:
        raise typer.Exit(1)


_VERDICT_LABELS = {"held": "held", "partly": "partly verified", "failed": "FAILED", "damaged": "DAMAGED"}
"""Verdict -> its label in the summary line, in the order of that line."""


def _print_verification(activity: str, results: Iterable[VerificationResult], prefix: str) -> int:
    """Print every failure as it is found, then the counts; return the number of failures."""
    from rich.console import Console

    counts = dict.fromkeys(_VERDICT_LABELS, 0)
    missing: dict[str, None] = {}
    noted: dict[str, tuple[str, ...]] = {}
    with Console(stderr=True).status(activity) as spinner:
        for result in results:
            counts[result.verdict] += 1
            spinner.update(f"{activity}: {sum(counts.values()):,}")
            if result.notes:
                noted[result.key] = result.notes
            if result.verdict in ("failed", "damaged"):
                echo(f"{result.key} {result.verdict}: {result.reason}")
            elif result.verdict == "partly":
                # Without the run's id, equal reasons of many runs are one line.
                missing.setdefault(result.reason.replace(result.key, "it"))
    shown = (f"{count:,} {_VERDICT_LABELS[name]}" for name, count in counts.items() if count or name == "held")
    echo(prefix + ", ".join(shown))
    for reason in list(missing)[:5]:
        echo(f"  partly verified: {reason}")
    for key, notes in list(noted.items())[:5]:
        echo(f"  noted, not counted as a failure: {key} {'; '.join(notes)}")
    if len(noted) > 5:
        echo(f"  and notes on {len(noted) - 5:,} more runs")
    return counts["failed"] + counts["damaged"]


@app.command()
def query(
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="A DuckDB query over the table `runs`, which has one row per run.")
    ],
    store: StoreOption = None,
    format: Annotated[Literal["table", "csv", "json"], typer.Option(help="Output format.")] = "table",
) -> None:
    """Query every run of the store with SQL. The only table is `runs` (columns: `DESCRIBE runs`); it is read-only.

    Example: `supermask query "SELECT criterion, level, avg(early_stop_test_accuracy) FROM runs GROUP BY ALL"`
    """
    from supermask.api import runs
    from supermask.core.text import format_csv, format_json, format_table

    answer, damaged = runs.query(sql, store)
    write = {"table": format_table, "csv": format_csv, "json": format_json}[format]
    sys.stdout.write(write(answer.columns, answer.rows))
    print_warnings(damaged)
