"""The command line: parse, call the library, print. Heavy modules are imported by the commands that need them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from supermask.errors import MachineError, UserError

if TYPE_CHECKING:
    from supermask.execute.local import Listener
    from supermask.execute.schedule import Schedule
    from supermask.plan import Plan
    from supermask.tables import Row

app = typer.Typer(
    name="supermask",
    help="Lottery tickets and supermasks: run a study, see what it says, and have every run prove itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Study = Annotated[str, typer.Argument(metavar="STUDY", help="A shipped study's name, or a path to a .yaml file.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. scale=digits 'seeds=[0,1]' train.lr=1e-3.", show_default=False),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of the store [default: $SUPERMASK_STORE or ./supermask-store].", show_default=False),
]


@app.command()
def studies() -> None:
    """What ships, one line each.

    Example: `supermask studies`
    """
    from supermask.study_file import shipped_studies

    for study in shipped_studies():
        print(f"{study.name:16} {study.title}  [scale={'|'.join(study.scales)}]")


@app.command()
def plan(study: Study, settings: Settings = None, store: StoreFolder = None, workers: Annotated[int | None, typer.Option(help="Processes to reckon with [default: one a core].", show_default=False)] = None) -> None:
    """What would run: how many trainings, how many of them done, how long the rest will take.

    Example: `supermask plan mask-criteria scale=laptop`
    """
    import os

    from supermask import commands
    from supermask.execute.progress import duration

    report = commands.plan(study, settings or [], store)
    asked, recipe = report.plan.study, next(iter(report.plan.runs.values())).recipe
    at = workers or os.cpu_count() or 1
    per_run = report.estimate.core_seconds / report.to_do if report.to_do else 0.0
    wall = report.estimate.wall_seconds(at, per_run * report.longest_chain)
    lines = {
        "study": f"{asked.name}: {len(asked.treatments)} treatments x {len(asked.seeds)} seeds x {asked.prune.levels} levels",
        "training": f"{asked.network} on {asked.dataset}, {recipe.iterations:,} iterations of {recipe.batch_size} images, {recipe.optimizer}",
        "in total": f"{report.asked:,} trainings",
        "unique": f"{report.unique:,} runs (treatments that share a history share its runs)",
        "done": f"{report.done:,}",
        "to do": f"{report.to_do:,}",
        "estimated": f"{duration(wall)} on {at} workers, {duration(report.estimate.core_seconds)} of one core ({report.estimate.source})",
    }
    for name, text in lines.items():
        print(f"{name:10} {text}")


@app.command()
def run(
    study: Study,
    settings: Settings = None,
    store: StoreFolder = None,
    workers: Annotated[int | None, typer.Option(help="Processes, one thread each [default: one a core].", show_default=False)] = None,
    engine: Annotated[str, typer.Option(help="Which engine trains.")] = "reference",
    device: Annotated[str, typer.Option(help="cpu, or cuda for one GPU.")] = "cpu",
    keep: Annotated[
        Literal["all", "needed", "masks"],
        typer.Option(help="Weights to keep: all; those a study can be extended from; none, only masks."),
    ] = "all",
) -> None:
    """Trains what is missing of a study. Interrupted, the same command goes on; finished runs are never repeated.

    Example: `supermask run mask-criteria scale=digits 'seeds=[0,1]' prune.levels=3`
    """
    from rich.console import Console

    from supermask import commands
    from supermask.execute.local import Stopped

    console = Console(soft_wrap=True)
    try:
        schedule = commands.run(study, settings or [], store, workers, engine, device, keep, _listening(console))
    except Stopped as stopped:
        print(f"Stopped. {stopped.left:,} runs are left; the same command goes on from here. Finished runs are kept.")
        raise typer.Exit(130) from None
    counts: dict[str, int] = {}
    for status in schedule.status.values():
        counts[status] = counts.get(status, 0) + 1
    made_of = ", ".join(f"{count:,} {_WORDS[status]}" for status, count in counts.items())
    print(f"{schedule.plan.study.name}: {len(schedule.status):,} runs: {made_of}. Store: {schedule.store.root}")
    if counts.get("certificate_failed"):
        raise MachineError("runs whose certificate does not hold are no results: `supermask verify` says why.")


_WORDS = {
    "finished": "finished",
    "diverged": "diverged",
    "certificate_failed": "with a certificate that does not hold",
    "ancestor_diverged": "not possible, because a level before them diverged",
    "to_do": "to do",
}


def _listening(console: object) -> Callable[[Plan, Schedule], AbstractContextManager[Listener]]:
    from rich.console import Console

    from supermask.execute.progress import progress

    assert isinstance(console, Console)

    def listen(plan: Plan, schedule: Schedule) -> AbstractContextManager[Listener]:
        for text in schedule.damaged:
            console.print(text, markup=False)
        labels = {member.run_id: member.treatment for member in reversed(plan.members) if member.level}
        dense = {member.run_id: "dense" for member in plan.members if not member.level}
        return progress(plan.study.name, console, labels | dense, schedule.tasks_left)

    return listen


@app.command()
def status(study: Study, settings: Settings = None, store: StoreFolder = None) -> None:
    """How far a study is: for each treatment, runs by what became of them, and the accuracy at its last level.

    Example: `supermask status mask-criteria scale=digits`
    """
    from rich.console import Console
    from rich.table import Table

    from supermask import commands
    from supermask.rows import count_by_status
    from supermask.tables import DENSE, labels_of

    made, rows, damaged = commands.rows(study, settings or [], store)
    table = Table(title=f"{made.study.name}: {made.study.network} on {made.study.dataset}", title_justify="left")
    table.add_column("treatment")
    for heading in ("finished", "diverged", "refused", "cut off", "to do", "last level", "remaining", "test accuracy"):
        table.add_column(heading, justify="right")
    for label in (DENSE, *(treatment.label for treatment in made.study.treatments)):
        own = [row for row in rows if label in labels_of(row)]
        table.add_row(label.replace("[", "\\["), *map(str, count_by_status(own).values()), *_last_level(own))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    _warn(damaged)


def _last_level(rows: Sequence[Row]) -> tuple[str, str, str]:
    """Deepest level with a finished run: its number, its density, its mean accuracy over seeds."""
    finished = [row for row in rows if row["status"] == "finished"]
    deepest = max((int(row["level"] or 0) for row in finished), default=None)
    if deepest is None:
        return "-", "-", "-"
    last = [row for row in finished if row["level"] == deepest]
    mean = sum(float(row["early_stop_test_accuracy"] or 0) for row in last) / len(last)
    return str(deepest), f"{100 * float(last[0]['density'] or 0):.3g}%", f"{100 * mean:.2f}% (n={len(last)})"


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

    _, rows, damaged = commands.rows(study, settings or [], store)
    if format == "parquet":
        if sys.stdout.isatty():
            raise UserError("a Parquet table is binary: send it to a file, as in `supermask table STUDY --format parquet > runs.parquet`.")
        sys.stdout.buffer.write(tables.to_parquet(rows))
    else:
        sys.stdout.write(tables.to_csv(rows) if format == "csv" else tables.to_json(rows))
    _warn(damaged)


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

    for drawn, paths in commands.figures(study, settings or [], out, store):
        print(*paths, sep="\n")
        print(f"  {drawn.caption}\n")


@app.command()
def export(run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="A run's id, or the beginning of it.")], folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")], store: StoreFolder = None) -> None:
    """A run as run.json and tensors.safetensors (start, final and mask of every maskable weight), for other scripts.

    Example: `supermask export 3f9c01ab ticket/`
    """
    from supermask import commands

    print(*commands.export(run_id, folder, store), sep="\n")


@app.command()
def verify(store: StoreFolder = None) -> None:
    """Every run's hashes and certificate, again, from the tensors. Exit status 1 if one does not hold.

    Example: `supermask verify --store supermask-store`
    """
    from supermask import commands

    counts: dict[str, int] = {"held": 0, "partly": 0, "failed": 0, "damaged": 0}
    for verdict in commands.verify(store):
        counts[verdict.verdict] += 1
        if verdict.verdict != "held":
            print(f"{verdict.run_id} {verdict.verdict}: {verdict.why}")
    print(", ".join(f"{count:,} {verdict}" for verdict, count in counts.items() if count or verdict == "held"))
    if counts["failed"] or counts["damaged"]:
        raise typer.Exit(1)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="DuckDB's SQL over the table `runs`: one row a run of the store.")],
    store: StoreFolder = None,
    format: Annotated[Literal["table", "csv"], typer.Option(help="How to print the answer.")] = "table",
) -> None:
    """SQL over every run in the store.

    Example: `supermask query "SELECT criterion, level, avg(early_stop_test_accuracy) FROM runs GROUP BY ALL ORDER BY ALL"`
    """
    import csv

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from supermask import commands

    answer, damaged = commands.query(sql, store)
    if format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(answer.columns)
        writer.writerows(answer.rows)
    else:
        shown = Table(*(Text(name) for name in answer.columns))
        for row in answer.rows:
            shown.add_row(*(Text(f"{cell:.6g}" if isinstance(cell, float) else str(cell)) for cell in row))
        Console(width=None if sys.stdout.isatty() else 4000).print(shown)
    _warn(damaged)


def _warn(damaged: Sequence[str]) -> None:
    for text in damaged:
        print(text, file=sys.stderr)


def main() -> None:
    """Entry point: what a person did wrong, or the machine refused, is one message and an exit status."""
    try:
        app()
    except (UserError, MachineError) as error:
        print(f"supermask: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # The reader of our output has gone (as `head` does): nothing is wrong.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
