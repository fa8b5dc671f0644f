"""Studies on the command line: looked at, exported, verified. Heavy modules are imported by what needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import Settings, StoreFolder, Study, app, warn
from supermask.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supermask.verify import Verdict


@app.command()
def status(study: Study, settings: Settings = None, store: StoreFolder = None) -> None:
    """How far a study is: for each treatment, runs by what became of them, and the accuracy at its last level.

    Example: `supermask status mask-criteria scale=digits`
    """
    from supermask import commands
    from supermask.status import status_text

    made, rows, damaged = commands.rows(study, settings or [], store)
    echo(f"{made.study.name}: {made.study.network} on {made.study.dataset}\n")
    echo(status_text(commands.labels(made), rows), nl=False)
    warn(damaged)


@app.command()
def table(
    study: Study,
    settings: Settings = None,
    store: StoreFolder = None,
    format: Annotated[Literal["csv", "json", "parquet"], typer.Option(help="How to write it.")] = "csv",
) -> None:
    """One row a run, every fact and metric, to standard output.

    Example: `supermask table mask-criteria scale=digits --format parquet > runs.parquet`
    """
    from supermask import commands, tables

    if format == "parquet" and sys.stdout.isatty():
        raise UserError("a Parquet table is binary: send it to a file, as in `supermask table ... > runs.parquet`.")
    _, rows, damaged = commands.rows(study, settings or [], store)
    if format == "parquet":
        sys.stdout.buffer.write(tables.to_parquet(rows))
    else:
        sys.stdout.write(tables.to_csv(rows) if format == "csv" else tables.to_json(rows))
    warn(damaged)


@app.command()
def figure(
    study: Study,
    settings: Settings = None,
    store: StoreFolder = None,
    out: Annotated[Path, typer.Option(help="Folder to write to; it is made where it is missing.")] = Path("figures"),
) -> None:
    """A study's figures as PDF, SVG and PNG, and the CSV behind each.

    Example: `supermask figure mask-criteria scale=digits --out figures`
    """
    from supermask import commands

    saved, damaged = commands.figures(study, settings or [], out, store)
    for drawn, paths in saved:
        suffixes = ",".join(path.suffix[1:] for path in paths)
        echo(f"{paths[0].with_suffix('')}.{{{suffixes}}}\n  {drawn.caption}\n")
    warn(damaged)


@app.command()
def export(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run's id, or the beginning of it.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    store: StoreFolder = None,
) -> None:
    """A run as run.json and tensors.safetensors (start, final and mask of every maskable weight), for other scripts.

    Example: `supermask export 3f9c01ab ticket`
    """
    from supermask import commands

    echo("\n".join(map(str, commands.export(run_id, folder, store))))


@app.command()
def verify(
    store: StoreFolder = None,
    accuracies: Annotated[
        bool,
        typer.Option("--accuracies", help="Test accuracies too, measured again from the stored tensors."),
    ] = False,
) -> None:
    """Every run's hashes and certificate, again, from the tensors. Exit status 1 if one does not hold.

    Example: `supermask verify --store supermask-store`
    """
    from supermask import commands

    bad = _told_verdicts("verifying", commands.verify(store), "")
    if accuracies:
        bad += _told_verdicts("measuring", commands.remeasure(store), "accuracies measured again: ")
    if bad:
        raise typer.Exit(1)


def _told_verdicts(doing: str, verdicts: Iterable[Verdict], about: str) -> int:
    """Says what failed, and how many of each; returns how many failed."""
    from rich.console import Console

    counts = {"held": 0, "partly": 0, "failed": 0, "damaged": 0}
    reasons: dict[str, None] = {}
    with Console(stderr=True).status(doing) as spinner:
        for verdict in verdicts:
            counts[verdict.verdict] += 1
            spinner.update(f"{doing}: {sum(counts.values()):,}")
            if verdict.verdict in ("failed", "damaged"):
                echo(f"{verdict.key} {verdict.verdict}: {verdict.why}")
            elif verdict.verdict == "partly":
                reasons.setdefault(verdict.why.replace(verdict.key, "it"))
    told = (f"{count:,} {_VERDICTS[name]}" for name, count in counts.items() if count or name == "held")
    echo(about + ", ".join(told))
    for reason in list(reasons)[:5]:
        echo(f"  as far as kept: {reason}")
    return counts["failed"] + counts["damaged"]


_VERDICTS = {"held": "held", "partly": "held as far as kept", "failed": "FAILED", "damaged": "DAMAGED"}


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="DuckDB's SQL over the table `runs`, a row a run.")],
    store: StoreFolder = None,
    format: Annotated[Literal["table", "csv", "json"], typer.Option(help="How to print the answer.")] = "table",
) -> None:
    """SQL over every run in the store. It sees the table `runs` (columns: `DESCRIBE runs`) and cannot change anything.

    Example: `supermask query "SELECT criterion, level, avg(early_stop_test_accuracy) FROM runs GROUP BY ALL"`
    """
    from supermask import commands
    from supermask.text_table import csv_table, json_table, text_table

    answer, damaged = commands.query(sql, store)
    write = {"table": text_table, "csv": csv_table, "json": json_table}[format]
    sys.stdout.write(write(answer.columns, answer.rows))
    warn(damaged)
