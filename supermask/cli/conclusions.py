"""Commands that compare finished runs and conclude from them: claims, compare, report, serve.

Heavy modules are imported inside the commands that need them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from supermask.cli.app import (
    OverridesArg,
    RowsOption,
    ScaleOption,
    StoreOption,
    StudyArg,
    add_scale,
    app,
    complete_studies_and_overrides,
    print_warnings,
    split_row_files,
    split_studies_and_overrides,
)
from supermask.cli.output import echo
from supermask.core.errors import UserError

StudiesAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY|KEY=VALUE]...",
        help="Studies (shipped names or .yaml files; default: all shipped studies), and settings for all of them.",
        show_default=False,
        autocompletion=complete_studies_and_overrides,
    ),
]


@app.command()
def claims(
    arguments: StudiesAndOverrides = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    rows: RowsOption = None,
    format: Annotated[Literal["text", "markdown", "csv", "json"], typer.Option(help="Output format.")] = "text",
) -> None:
    """Test the claims of the paper, and those of your own study files, on the runs of the store or of tables of runs.

    The verdict is supported, not supported, contradicted or not enough data, with n, effect, interval and p. Digits
    are a demonstration and have no verdict.

    Example: `supermask claims scale=laptop` or `supermask claims --rows results/mask-criteria-paper.parquet`
    """
    from supermask.analysis.claims.formats import claim_notices, format_csv, format_json, format_markdown, format_text
    from supermask.api import reports, runs

    arguments, files = split_row_files(arguments, rows)
    studies, overrides = split_studies_and_overrides(arguments)
    overrides = add_scale(overrides, scale)
    root = store if files else runs.open_store(store).root
    findings, damaged = reports.claims(studies, overrides, root, files)
    write = {"text": format_text, "markdown": format_markdown, "csv": format_csv, "json": format_json}[format]
    notices = claim_notices(findings)
    if format in ("text", "markdown"):
        for text in notices:
            echo(f"{text}\n")
    echo(write(findings), nl=False)
    # CSV and JSON are read by programs, so notices go to standard error.
    print_warnings([*(notices if format in ("csv", "json") else []), *damaged])


@app.command()
def compare(
    study: StudyArg,
    overrides: OverridesArg = None,
    scale: ScaleOption = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--with",
            help="Results to compare with: a CSV file, one run per line; or Parquet that `supermask table` wrote.",
            show_default=False,
        ),
    ] = None,
    treatment: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the treatments.")] = "treatment",
    level: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the pruning levels.")] = "level",
    value: Annotated[str, typer.Option(metavar="COLUMN", help="Column of the values.")] = "value",
    seed: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the seeds; it finds runs that occur twice.")
    ] = None,
    density: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Match levels by this column of weights remaining instead, to the nearest within 2%.",
        ),
    ] = None,
    percent: Annotated[bool, typer.Option("--percent", help="The values are in percent.")] = False,
    share: Annotated[bool, typer.Option("--share", help="The values are shares of 1.")] = False,
    metric: Annotated[str, typer.Option(help="Our column to compare.")] = "early_stop_test_accuracy",
    map: Annotated[
        list[str] | None,
        typer.Option(metavar="THEIRS=OURS", help="Our name of a treatment; without OURS it is left out. Repeatable."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Margin of equivalence, in points or the metric's unit [default: 0.2 points].", show_default=False
        ),
    ] = None,
    store: Annotated[
        list[Path] | None,
        typer.Option(
            "--store",
            help="Folder of the store [default: $SUPERMASK_STORE or ./supermask-store]. Twice: compare the two.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Our runs from a Parquet file of `supermask table`, not from a store.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also draw the figure, into this folder.", show_default=False)
    ] = None,
    format: Annotated[Literal["text", "json", "csv"], typer.Option(help="Output format.")] = "text",
) -> None:
    """Compare the results of a study with those of others: a table of runs, or a second store.

    For each treatment and level: n, mean and standard deviation of both, Welch's test, equivalence within a margin; and
    how many cells differ at p < 0.01, beside the number that would by chance.

    Example: `supermask compare mask-criteria scale=paper --with theirs.csv --value accuracy --density remaining`
    """
    from supermask.analysis.comparisons import TableColumns, formats
    from supermask.api import comparisons

    if percent and share:
        raise UserError("--percent and --share contradict each other: give one of them.")
    stores = store or []
    if len(stores) > 2:
        raise UserError(f"{len(stores)} stores were given; a comparison has two sides: give --store at most twice.")
    columns = TableColumns(
        treatment,
        None if density else level,
        value,
        seed,
        density,
        "percent" if percent else "share" if share else "auto",
    )
    result = comparisons.compare_study(
        study,
        add_scale(overrides, scale),
        table,
        stores[1] if len(stores) == 2 else None,
        columns,
        metric,
        map,
        margin,
        stores[0] if stores else None,
        rows,
    )
    write = {"text": formats.format_text, "json": formats.format_json, "csv": formats.format_csv}[format]
    sys.stdout.write(write(result))
    if format == "csv":
        print_warnings([*result.summary(), *result.notes])
    if out is not None:
        _, paths = comparisons.save_comparison_figure(result, out)
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}", err=True)


@app.command()
def report(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY... KEY=VALUE",
            help="Shipped names or paths to .yaml files, and settings that override all of these studies.",
            show_default=False,
            autocompletion=complete_studies_and_overrides,
        ),
    ] = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    rows: RowsOption = None,
    out: Annotated[Path, typer.Option(help="Output file.")] = Path("report.html"),
    beside: Annotated[
        Path | None,
        typer.Option(
            "--with",
            help="Also compare with these results: see `supermask compare`. One study; columns treatment, level or "
            "density, value, seed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML file: claims, figures, tables and provenance. It needs no network.

    Example: `supermask report mask-criteria mask-1-actions scale=digits --out report.html`
    """
    from supermask.api import reports
    from supermask.reporting.html.filters import headline

    arguments, files = split_row_files(arguments, rows)
    studies, overrides = split_studies_and_overrides(arguments)
    overrides = add_scale(overrides, scale)
    content = reports.collect_report(studies, overrides, store, out, files, beside)
    path = reports.write_report(content, out)
    echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB: {headline(content)}")
    for text in content.notices:
        echo(text)
    print_warnings(content.provenance.damaged)


@app.command()
def serve(
    store: StoreOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free port.")] = 8080,
    import_criteria: Annotated[
        bool,
        typer.Option(
            "--import-criteria",
            help="Import the user-defined criteria that studies of the store name (this runs their code).",
        ),
    ] = False,
) -> None:
    """Serve a live dashboard of the store on localhost: the report and every run. It only reads. Ctrl-C ends it.

    Example: `supermask serve --store supermask-store`
    """
    from supermask.serve.server import serve

    serve(store, port, import_criteria, on_ready=lambda url: echo(f"{url}  (Ctrl-C ends it)"))
