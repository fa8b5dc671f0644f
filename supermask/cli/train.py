"""What can be trained, what it would take, and training it: one study, or all that ship."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import echo

from supermask.cli.app import OverridesArg, StoreOption, StudyArg, WorkersOption, app, print_warnings
from supermask.core.errors import SystemFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from rich.console import Console

    from supermask.execution.local import TaskListener
    from supermask.execution.scheduler import Scheduler
    from supermask.study.plan import Plan

EngineOption = Annotated[
    str,
    typer.Option(
        help="Which engine trains: auto, sparse (CPU, its cost falls with the mask), stacked (many runs at once) or "
        "reference."
    ),
]
PrecisionOption = Annotated[
    str, typer.Option(help="Of the stacked engine's products: float32, bfloat16, or tf32 (GPUs); weights are float32.")
]
StackOption = Annotated[
    int | None,
    typer.Option(help="Runs that the stacked engine trains at once in a worker; by default as many as are worth it."),
]
Device = Annotated[str, typer.Option(help="cpu, or cuda for one GPU.")]
KeepOption = Annotated[
    Literal["all", "needed", "masks"],
    typer.Option(help="Weights to keep: all; those a study can be extended from; none, only masks."),
]


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Train elsewhere: ray://HOST:PORT, HOST:PORT, auto (the Ray that runs here), local (a Ray of this "
        "machine), slurm or slurm:partition=NAME,time=H:MM:SS; the store has to be on a path that all nodes share.",
        show_default=False,
    ),
]


@app.command()
def studies() -> None:
    """What ships, one line each.

    Example: `supermask studies`
    """
    from supermask.study import builtin_studies

    shipped = builtin_studies()
    width = max(len(study.name) for study in shipped)
    for study in shipped:
        echo(f"{study.name:{width}}  {study.title}  [scale={'|'.join(study.scales)}]")


@app.command()
def plan(
    study: StudyArg,
    settings: OverridesArg = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Carry it out on paper: time, core-hours, critical path, storage."),
    ] = False,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="The same for so many cores of a cluster.", show_default=False),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1, help="The same for so many GPUs; the pace is a guess without runs of one.", show_default=False
        ),
    ] = None,
) -> None:
    """What would run: how many trainings, how many of them done, how long the rest will take.

    With `--estimate` also what it takes on the workers here, or on the cores and GPUs that are named.

    Example: `supermask plan mask-criteria scale=laptop --estimate --cores 64`
    """
    from supermask.api import runs
    from supermask.core.text import format_duration
    from supermask.execution.run import default_workers

    at = workers or default_workers()
    if estimate and cores is None and gpus is None:
        cores = at
    report = runs.plan(study, settings or [], store, cores, gpus)
    asked, recipe, here = report.plan.study, report.recipe, report.estimate
    size = f"{len(asked.treatments)} treatments x {len(asked.seeds)} seeds x {asked.prune.levels} levels"
    batches = f"{recipe.iterations:,} iterations of {recipe.batch_size} images, {recipe.optimizer}"
    lines = [
        ("study", f"{asked.name}: {size}"),
        ("training", f"{report.network} on {asked.dataset}, {batches}"),
        ("in total", f"{report.requested:,} trainings"),
        ("unique", f"{report.unique:,} runs (treatments that share a history share its runs)"),
        ("done", f"{report.done:,}"),
        ("to do", f"{report.to_do:,}"),
        (
            "estimated",
            f"{format_duration(here.wall_seconds(at))} on {at} worker{'s' if at > 1 else ''} ({here.source})",
        ),
    ]
    for there in report.resource_estimates:
        units, found = f"{there.what}{'' if there.number == 1 else 's'}", there.estimate
        hours = f"{found.core_seconds / 3600:,.1f} {there.what}-hours"
        lines.append((units, f"{format_duration(there.wall_seconds)} on {there.number:,} {units}, {hours}"))
        if not found.chain_levels:
            continue
        if there.what == "GPU":
            lines.append(("pace", f"{found.source}; in stacks of {found.stack}"))
        path = f"the critical path, {found.chain_levels} run{'s' if found.chain_levels > 1 else ''} in a row"
        lines.append(("at least", f"{format_duration(found.chain_seconds)}: {path}"))
    if report.resource_estimates:
        lines.append(("storage", f"{here.stored_bytes / 1e9:,.2f} GB, all weights kept"))
    for name, text in lines:
        echo(f"{name:10} {text}")


@app.command()
def run(
    study: StudyArg,
    settings: OverridesArg = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = "auto",
    device: Device = "cpu",
    keep: KeepOption = "all",
    precision: PrecisionOption = "float32",
    stack: StackOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Trains what is missing of a study. Interrupted, the same command goes on; finished runs are never repeated.

    Example: `supermask run mask-criteria scale=digits 'seeds=[0,1]' prune.levels=3 train.epochs=2`
    """
    from rich.console import Console

    from supermask.api import runs
    from supermask.core.errors import sanitize

    console = Console(soft_wrap=True)
    listening = _progress_listener(console, engine, device)
    with _report_interruption():
        schedule = runs.run(
            study, settings or [], store, workers, engine, device, keep, listening, precision, stack, cluster
        )
    _print_outcome(sanitize(Path(study).stem), schedule)
    _raise_on_failed_certificates(schedule)


@app.command()
def reproduce(
    scale: Annotated[
        str, typer.Option(help="digits (about a minute), laptop (MNIST, hours on two cores), paper, or another.")
    ] = "digits",
    only: Annotated[
        list[str] | None, typer.Option(help="Only this study of those that ship; may be given again.")
    ] = None,
    store: StoreOption = None,
    out: Annotated[Path, typer.Option(help="File to write the report to.")] = Path("report.html"),
    workers: WorkersOption = None,
    engine: EngineOption = "auto",
    device: Device = "cpu",
    keep: KeepOption = "all",
    precision: PrecisionOption = "float32",
    stack: StackOption = None,
    cluster: ClusterOption = None,
) -> None:
    """The whole paper: trains what is missing of the studies that ship, as one plan, and reports what it comes to.

    Interrupted, the same command goes on.

    Example: `supermask reproduce --scale digits`
    """
    from rich.console import Console

    from supermask.analysis.claims.formats import format_text
    from supermask.api import reports, runs
    from supermask.execution.run import RunOptions
    from supermask.reporting.html.filters import headline

    how = RunOptions(store or runs.default_store_path(), workers, engine, device, keep, precision, stack, cluster)
    listening = _progress_listener(Console(soft_wrap=True), engine, device)
    with _report_interruption():
        made = reports.reproduce(scale, only or [], how, out, listening)
    _print_outcome("reproduce", made.schedule)
    written, report = made.out, made.report
    for text in report.notices:
        echo(f"\n{text}")
    if report.claims:
        echo(f"\n{format_text(report.claims)}")
    echo(f"{written}  {written.stat().st_size / 1e6:.1f} MB: {headline(report)}")
    print_warnings(report.provenance.damaged)
    _raise_on_failed_certificates(made.schedule)


@contextmanager
def _report_interruption() -> Iterator[None]:
    """Says what is left after Ctrl-C, and ends with its exit status."""
    from supermask.execution.local import StudyInterrupted

    try:
        yield
    except StudyInterrupted as stopped:
        left = f"{stopped.remaining:,} run{' is' if stopped.remaining == 1 else 's are'} left"
        echo(f"Stopped. {left}; the same command goes on from here. Finished runs are kept.", err=True)
        raise typer.Exit(130) from None


def _print_outcome(title: str, schedule: Scheduler) -> None:
    from supermask.reporting.status import format_counts

    echo(f"{title}: {format_counts(list(schedule.status.values()))}. Store: {schedule.store.root}")


def _raise_on_failed_certificates(schedule: Scheduler) -> None:
    """Raises MachineError if one does not hold."""
    if "certificate_failed" in schedule.status.values():
        raise SystemFailure("runs whose certificate does not hold are no results: `supermask verify` says why.")


def _progress_listener(
    console: Console, engine: str, device: str
) -> Callable[[Sequence[Plan], Scheduler], AbstractContextManager[TaskListener]]:
    from supermask.engines.selection import select_engine
    from supermask.execution.progress import progress_listener, run_labels

    def listen(plans: Sequence[Plan], schedule: Scheduler) -> AbstractContextManager[TaskListener]:
        title = plans[0].study.name if len(plans) == 1 else f"{len(plans)} studies"
        for text in schedule.damaged:
            console.print(text, markup=False, highlight=False)
        if schedule.tasks_left:
            taken = select_engine(engine, plans[0].layers, device)
            console.print(f"{title}  {taken.engine} engine ({taken.reason})", markup=False, highlight=False)
        return progress_listener(title, console, run_labels(plans), schedule.tasks_left)

    return listen
