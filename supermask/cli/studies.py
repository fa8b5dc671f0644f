"""Studies on the command line: plan, run, look at, verify. Heavy modules are imported by what needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import Settings, StoreFolder, Study, Workers, app, warn
from supermask.errors import MachineError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from rich.console import Console

    from supermask.execute.local import Listener
    from supermask.execute.schedule import Schedule
    from supermask.plan import Plan
    from supermask.verify import Verdict


@app.command()
def studies() -> None:
    """What ships, one line each.

    Example: `supermask studies`
    """
    from supermask.study import shipped_studies

    shipped = shipped_studies()
    width = max(len(study.name) for study in shipped)
    for study in shipped:
        echo(f"{study.name:{width}}  {study.title}  [scale={'|'.join(study.scales)}]")


@app.command()
def plan(study: Study, settings: Settings = None, store: StoreFolder = None, workers: Workers = None) -> None:
    """What would run: how many trainings, how many of them done, how long the rest will take.

    Example: `supermask plan mask-criteria scale=laptop`
    """
    from supermask import commands
    from supermask.execute.progress import duration

    report = commands.plan(study, settings or [], store)
    asked, recipe, estimate = report.plan.study, report.recipe, report.estimate
    at = workers or commands.default_workers()
    size = f"{len(asked.treatments)} treatments x {len(asked.seeds)} seeds x {asked.prune.levels} levels"
    batches = f"{recipe.iterations:,} iterations of {recipe.batch_size} images, {recipe.optimizer}"
    lines = {
        "study": f"{asked.name}: {size}",
        "training": f"{report.network} on {asked.dataset}, {batches}",
        "in total": f"{report.asked:,} trainings",
        "unique": f"{report.unique:,} runs (treatments that share a history share its runs)",
        "done": f"{report.done:,}",
        "to do": f"{report.to_do:,}",
        "estimated": f"{duration(estimate.wall_seconds(at))} on {at} worker{'s' if at > 1 else ''} ({estimate.source})",
    }
    for name, text in lines.items():
        echo(f"{name:10} {text}")


@app.command()
def run(
    study: Study,
    settings: Settings = None,
    store: StoreFolder = None,
    workers: Workers = None,
    engine: Annotated[
        str, typer.Option(help="Which engine trains: auto, sparse (CPU, its cost falls with the mask) or reference.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, or cuda for one GPU.")] = "cpu",
    keep: Annotated[
        Literal["all", "needed", "masks"],
        typer.Option(help="Weights to keep: all; those a study can be extended from; none, only masks."),
    ] = "all",
) -> None:
    """Trains what is missing of a study. Interrupted, the same command goes on; finished runs are never repeated.

    Example: `supermask run mask-criteria scale=digits 'seeds=[0,1]' prune.levels=3 train.epochs=2`
    """
    from rich.console import Console

    from supermask import commands
    from supermask.execute.local import Stopped
    from supermask.status import counts_text

    console = Console(soft_wrap=True)
    try:
        schedule = commands.run(
            study, settings or [], store, workers, engine, device, keep, _listening(console, engine, device)
        )
    except Stopped as stopped:
        left = f"{stopped.left:,} run{' is' if stopped.left == 1 else 's are'} left"
        echo(f"Stopped. {left}; the same command goes on from here. Finished runs are kept.", err=True)
        raise typer.Exit(130) from None
    ended = list(schedule.status.values())
    echo(f"{schedule.plan.study.name}: {counts_text(ended)}. Store: {schedule.store.root}")
    if "certificate_failed" in ended:
        raise MachineError("runs whose certificate does not hold are no results: `supermask verify` says why.")


def _listening(
    console: Console, engine: str, device: str
) -> Callable[[Plan, Schedule], AbstractContextManager[Listener]]:
    from supermask.engines.choice import choose
    from supermask.execute.progress import labels_of, progress

    def listen(plan: Plan, schedule: Schedule) -> AbstractContextManager[Listener]:
        for text in schedule.damaged:
            console.print(text, markup=False, highlight=False)
        if schedule.tasks_left:
            taken = choose(engine, plan.layers, device)
            console.print(f"{plan.study.name}  {taken.engine} engine ({taken.why})", markup=False, highlight=False)
        return progress(plan.study.name, console, labels_of(plan), schedule.tasks_left)

    return listen


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
