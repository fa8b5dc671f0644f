"""Studies on the command line: looked at, exported, verified. Heavy modules are imported by what needs them.

What the runs say, on the command line.

The report on the command line.

The live page on the command line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import OverridesArg, StoreOption, StudyArg, app, print_warnings, split_studies_and_overrides
from supermask.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supermask.store.verify import VerificationResult


@app.command()
def status(study: StudyArg, settings: OverridesArg = None, store: StoreOption = None) -> None:
    """How far a study is: for each treatment, runs by what became of them, and the accuracy at its last level.

    Example: `supermask status mask-criteria scale=digits`
    """
    from supermask.api import runs
    from supermask.reporting.status import format_status

    made, rows, damaged = runs.study_rows(study, settings or [], store)
    echo(f"{made.study.name}: {made.study.network} on {made.study.dataset}\n")
    echo(format_status(runs.treatment_labels(made), rows), nl=False)
    print_warnings(damaged)


@app.command()
def table(
    study: StudyArg,
    settings: OverridesArg = None,
    store: StoreOption = None,
    format: Annotated[Literal["csv", "json", "parquet"], typer.Option(help="How to write it.")] = "csv",
) -> None:
    """One row a run, every fact and metric, to standard output.

    Example: `supermask table mask-criteria scale=digits --format parquet > runs.parquet`
    """
    from supermask.api import runs
    from supermask.store import tables

    if format == "parquet" and sys.stdout.isatty():
        raise UserError("a Parquet table is binary: send it to a file, as in `supermask table ... > runs.parquet`.")
    _, rows, damaged = runs.study_rows(study, settings or [], store)
    if format == "parquet":
        sys.stdout.buffer.write(tables.to_parquet(rows))
    else:
        sys.stdout.write(tables.to_csv(rows) if format == "csv" else tables.to_json(rows))
    print_warnings(damaged)


@app.command()
def figure(
    study: StudyArg,
    settings: OverridesArg = None,
    store: StoreOption = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; it is made where it is missing.")] = Path("figures"),
) -> None:
    """A study's figures as PDF, SVG and PNG, and the CSV behind each.

    Example: `supermask figure mask-criteria scale=digits --out figures`
    """
    from supermask.api import runs

    saved, damaged = runs.figures(study, settings or [], out, store)
    for drawn, paths in saved:
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}\n  {drawn.caption}\n")
    print_warnings(damaged)


@app.command()
def export(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run's id, or the beginning of it.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    store: StoreOption = None,
) -> None:
    """A run as run.json and tensors.safetensors (start, final and mask of every maskable weight), for other scripts.

    Example: `supermask export 3f9c01ab ticket`
    """
    from supermask.api import runs

    echo("\n".join(map(str, runs.export(run_id, folder, store))))


@app.command()
def verify(
    store: StoreOption = None,
    accuracies: Annotated[
        bool,
        typer.Option("--accuracies", help="Test accuracies too, measured again from the stored tensors."),
    ] = False,
) -> None:
    """Every run's hashes and certificate, again, from the tensors. Exit status 1 if one does not hold.

    Example: `supermask verify --store supermask-store`
    """
    from supermask.api import runs

    bad = _print_verification("verifying", runs.verify(store), "")
    if accuracies:
        bad += _print_verification("measuring", runs.recheck_accuracies(store), "accuracies measured again: ")
    if bad:
        raise typer.Exit(1)


def _print_verification(doing: str, verdicts: Iterable[VerificationResult], about: str) -> int:
    """Says what failed, and how many of each; returns how many failed."""
    from rich.console import Console

    counts = {"held": 0, "partly": 0, "failed": 0, "damaged": 0}
    reasons: dict[str, None] = {}
    with Console(stderr=True).status(doing) as spinner:
        for verdict in verdicts:
            counts[verdict.verdict] += 1
            spinner.update(f"{doing}: {sum(counts.values()):,}")
            if verdict.verdict in ("failed", "damaged"):
                echo(f"{verdict.key} {verdict.verdict}: {verdict.reason}")
            elif verdict.verdict == "partly":
                reasons.setdefault(verdict.reason.replace(verdict.key, "it"))
    told = (f"{count:,} {_STATUS_ORDER[name]}" for name, count in counts.items() if count or name == "held")
    echo(about + ", ".join(told))
    for reason in list(reasons)[:5]:
        echo(f"  as far as kept: {reason}")
    return counts["failed"] + counts["damaged"]


_STATUS_ORDER = {"held": "held", "partly": "held as far as kept", "failed": "FAILED", "damaged": "DAMAGED"}


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="DuckDB's SQL over the table `runs`, a row a run.")],
    store: StoreOption = None,
    format: Annotated[Literal["table", "csv", "json"], typer.Option(help="How to print the answer.")] = "table",
) -> None:
    """SQL over every run in the store. It sees the table `runs` (columns: `DESCRIBE runs`) and cannot change anything.

    Example: `supermask query "SELECT criterion, level, avg(early_stop_test_accuracy) FROM runs GROUP BY ALL"`
    """
    from supermask.api import runs
    from supermask.core.text import format_csv, format_json, format_table

    answer, damaged = runs.query(sql, store)
    write = {"table": format_table, "csv": format_csv, "json": format_json}[format]
    sys.stdout.write(write(answer.columns, answer.rows))
    print_warnings(damaged)


StudiesAndSettings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDY|KEY=VALUE]...",
        help="Studies (shipped names or .yaml files; all that ship if none is given), and settings for all of them.",
        show_default=False,
    ),
]


@app.command()
def claims(
    words: StudiesAndSettings = None,
    store: StoreOption = None,
    format: Annotated[Literal["text", "markdown", "csv", "json"], typer.Option(help="How to print them.")] = "text",
) -> None:
    """Whether the paper's claims hold in these runs, and those of a study file of your own.

    Supported, not supported, contradicted or not enough data; with n, effect, interval and corrected p.

    Example: `supermask claims scale=digits`
    """
    from supermask.analysis.claims.formats import claim_notices, format_csv, format_json, format_markdown, format_text
    from supermask.api import reports, runs

    studies, settings = split_studies_and_overrides(words)
    findings, damaged = reports.claims(studies, settings, runs.open_store(store).root)
    write = {"text": format_text, "markdown": format_markdown, "csv": format_csv, "json": format_json}[format]
    said = claim_notices(findings)
    if format in ("text", "markdown"):
        for text in said:
            echo(f"{text}\n")
    echo(write(findings), nl=False)
    # What a program reads holds nothing else.
    print_warnings([*(said if format in ("csv", "json") else []), *damaged])


@app.command()
def report(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY... KEY=VALUE",
            help="Shipped studies' names or paths to .yaml files; and settings that replace those of all of them.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    out: Annotated[Path, typer.Option(help="File to write to.")] = Path("report.html"),
) -> None:
    """One HTML file that says what runs mean: claims, figures, tables, and how it was made. It needs no network.

    Example: `supermask report mask-criteria mask-1-actions scale=digits --out report.html`
    """
    from supermask.api import reports
    from supermask.reporting.html.filters import headline

    studies, settings = split_studies_and_overrides(words)
    made = reports.collect_report(studies, settings, store, out)
    written = reports.write_report(made, out)
    echo(f"{written}  {written.stat().st_size / 1e6:.1f} MB: {headline(made)}")
    for text in made.notices:
        echo(text)
    print_warnings(made.provenance.damaged)


@app.command()
def serve(
    store: StoreOption = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of this machine, 127.0.0.1; 0 takes any that is free.")
    ] = 8080,
    import_criteria: Annotated[
        bool,
        typer.Option(
            "--import-criteria", help="Import criteria of your own that the store's studies name (runs their code)."
        ),
    ] = False,
) -> None:
    """The report and every run of a store as a page that follows it, for a browser on this machine. Ctrl-C ends it.

    Example: `supermask serve --store supermask-store`
    """
    from supermask.serve.server import serve

    serve(store, port, import_criteria, on_ready=lambda url: echo(f"{url}  (Ctrl-C ends it)"))
