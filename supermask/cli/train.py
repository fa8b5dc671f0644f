"""Commands that plan and train: studies, plan, run, reproduce."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from supermask.cli.app import (
    OverridesArg,
    ScaleOption,
    StoreOption,
    StudyArg,
    WorkersOption,
    add_scale,
    app,
    complete_scales,
    print_warnings,
)
from supermask.cli.output import echo
from supermask.cli.progress import show_progress
from supermask.core.errors import RunsRefused, SystemFailure, UserError, quote
from supermask.core.text import pluralize
from supermask.core.text_output import survive_lost_output

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
        help="Training engine: auto, sparse (CPU, its cost falls with the mask), stacked (many runs at once) or "
        "reference.",
        autocompletion=lambda: ["auto", "sparse", "stacked", "reference"],
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(help="Matrix products of the stacked engine: float32, bfloat16, or tf32 (GPUs); weights are float32."),
]
StackOption = Annotated[
    int | None,
    typer.Option(
        help="Runs that the stacked engine trains at once in a worker [default: chosen by network and device].",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda for one GPU.", autocompletion=lambda: ["cpu", "cuda"])]
KeepOption = Annotated[
    Literal["all", "needed", "masks"],
    typer.Option(help="Weights to keep: all; only those needed to extend the study; none, only masks."),
]


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Train on a cluster: ray://HOST:PORT, HOST:PORT, auto (the running Ray), local (start Ray here), "
        "slurm or slurm:partition=NAME,time=H:MM:SS. All nodes need the store at the same path.",
        show_default=False,
    ),
]


@app.command()
def studies() -> None:
    """List the shipped studies, one per line.

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
    overrides: OverridesArg = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Simulate the schedule: time, core-hours, critical path, storage."),
    ] = False,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="Simulate the schedule on N cores of a cluster.", show_default=False),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Simulate the schedule on N GPUs; the speed is a guess if the store has no run from a GPU.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print what would run: the number of runs, finished runs, and the time for the rest. Nothing is trained.

    A study file may name a criterion of your own by import path. Its code is run by `run`, never by `plan`.

    With `--estimate` also print the cost on the local workers, or on the given cores and GPUs.

    Example: `supermask plan mask-criteria scale=laptop --estimate --cores 64`
    """
    from supermask.api import runs
    from supermask.core.text import format_duration
    from supermask.execution.run import default_workers

    local_workers = workers or default_workers()
    if estimate and cores is None and gpus is None:
        cores = local_workers
    with show_progress():
        summary = runs.plan(study, add_scale(overrides, scale), store, cores, gpus)
    planned, recipe, local = summary.plan.study, summary.recipe, summary.estimate
    treatments, seeds = pluralize(len(planned.treatments), "treatment"), pluralize(len(planned.seeds), "seed")
    size = f"{treatments} x {seeds} x {pluralize(planned.prune.levels, 'level')}"
    batches = f"{recipe.iterations:,} iterations of {recipe.batch_size} images, {recipe.optimizer}"
    reason = "cannot be trained: a run before them diverged, or its certificate failed"
    blocked = [("blocked", f"{summary.blocked:,} {reason}")] if summary.blocked else []
    lines = [
        ("study", f"{planned.name}: {size}"),
        ("training", f"{', '.join(summary.networks)} on {planned.dataset}, {batches}"),
        ("in total", f"{summary.requested:,} trainings"),
        ("unique", f"{summary.unique:,} runs (treatments that share a history share its runs)"),
        ("done", f"{summary.done:,}"),
        ("to do", f"{summary.to_do:,}"),
        *blocked,
        (
            "estimated",
            f"{format_duration(local.wall_seconds(local_workers) + summary.compile_seconds)} on {local_workers} "
            f"worker{'s' if local_workers > 1 else ''} ({local.source}"
            + (
                f"; {summary.compile_seconds:.0f} s of it to compile kernels, once on this machine)"
                if summary.compile_seconds
                else ")"
            ),
        ),
    ]
    for resource in summary.resource_estimates:
        units, simulated = f"{resource.unit}{'' if resource.count == 1 else 's'}", resource.estimate
        hours = f"{simulated.core_seconds / 3600:,.1f} {resource.unit}-hours"
        lines.append((units, f"{format_duration(resource.wall_seconds)} on {resource.count:,} {units}, {hours}"))
        if not simulated.chain_levels:
            continue
        if resource.unit == "GPU":
            lines.append(("pace", f"{simulated.source}; in stacks of {simulated.stack}"))
        path = f"the critical path, {simulated.chain_levels} run{'s' if simulated.chain_levels > 1 else ''} in a row"
        lines.append(("at least", f"{format_duration(simulated.chain_seconds)}: {path}"))
    if summary.resource_estimates:
        lines.append(("storage", f"{local.stored_bytes / 1e9:,.2f} GB, all weights kept"))
    for name, text in lines:
        echo(f"{name:10} {text}")
    print_warnings(summary.warnings)


@app.command()
@survive_lost_output()
def run(
    study: StudyArg,
    overrides: OverridesArg = None,
    scale: ScaleOption = None,
    store: StoreOption = None,
    workers: WorkersOption = None,
    engine: EngineOption = "auto",
    device: DeviceOption = "cpu",
    keep: KeepOption = "all",
    precision: PrecisionOption = "float32",
    stack: StackOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Train the missing runs of a study. After an interruption the same command resumes; finished runs are kept.

    Example: `supermask run mask-criteria scale=digits 'seeds=[0,1]' prune.levels=3 train.epochs=2`
    """
    from rich.console import Console

    from supermask.api import runs
    from supermask.core.errors import sanitize

    console = Console(soft_wrap=True)
    listener = _progress_listener(console, engine, device, cluster)
    with _report_interruption(), show_progress():
        scheduler = runs.run(
            study,
            add_scale(overrides, scale),
            store,
            workers,
            engine,
            device,
            keep,
            listener,
            precision,
            stack,
            cluster,
            print_warnings,
        )
    _print_outcome(sanitize(Path(study).stem), scheduler)
    _raise_on_failed_certificates(scheduler)
    if message := runs.missing_result(list(scheduler.status.values()), "this study"):
        raise SystemFailure(message)


@app.command()
@survive_lost_output()
def reproduce(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="scale=NAME", help="The same as --scale NAME.", show_default=False),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="Scale of the studies: digits (about a minute), laptop (MNIST, hours on two cores) or paper "
            "[default: digits].",
            show_default=False,
            autocompletion=complete_scales,
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this shipped study; repeat for more.", show_default=False)
    ] = None,
    store: StoreOption = None,
    out: Annotated[Path, typer.Option(help="Output file of the report.")] = Path("report.html"),
    workers: WorkersOption = None,
    engine: EngineOption = "auto",
    device: DeviceOption = "cpu",
    keep: KeepOption = "all",
    precision: PrecisionOption = "float32",
    stack: StackOption = None,
    cluster: ClusterOption = None,
) -> None:
    """Reproduce the paper: train the missing runs of all shipped studies as one plan, then write the report.

    After an interruption the same command resumes.

    Example: `supermask reproduce --scale digits`
    """
    from rich.console import Console

    from supermask.analysis.claims.formats import format_text
    from supermask.api import reports, runs
    from supermask.execution.run import RunOptions
    from supermask.reporting.html.filters import headline

    *others, setting = dict.fromkeys(add_scale(overrides, scale) or ["scale=digits"])
    if unknown := [text for text in (*others, setting) if not text.startswith("scale=")]:
        raise UserError(f"{quote(unknown[0])}: reproduce has the setting scale only.")
    if others:
        raise UserError(f"{quote(others[0])} and {quote(setting)} differ: give one of them.")
    options = RunOptions(runs.store_path(store), workers, engine, device, keep, precision, stack, cluster)
    listener = _progress_listener(Console(soft_wrap=True), engine, device, cluster)
    with _report_interruption():
        result = reports.reproduce(setting.partition("=")[2], only or [], options, out, listener)
    _print_outcome("reproduce", result.scheduler)
    report = result.report
    for text in report.notices:
        echo(f"\n{text}")
    if report.claims:
        echo(f"\n{format_text(report.claims)}")
    echo(f"{result.out}  {result.out.stat().st_size / 1e6:.1f} MB: {headline(report)}")
    print_warnings(report.provenance.damaged)
    _raise_on_failed_certificates(result.scheduler)
    if result.without_result:
        raise SystemFailure("\n".join(result.without_result))


@contextmanager
def _report_interruption() -> Iterator[None]:
    """After a stop signal, print the number of runs left and exit with status 128 + its number, as shells report it."""
    from supermask.execution.local import StudyInterrupted

    try:
        yield
    except StudyInterrupted as interruption:
        left = f"{interruption.remaining:,} run{' is' if interruption.remaining == 1 else 's are'} left"
        echo(f"Stopped. {left}; the same command resumes. Finished runs are kept.", err=True)
        raise typer.Exit(128 + interruption.signal_number) from None


def _print_outcome(title: str, scheduler: Scheduler) -> None:
    from supermask.reporting.status import format_counts

    echo(f"{title}: {format_counts(list(scheduler.status.values()))}. Store: {scheduler.store.root}")


def _raise_on_failed_certificates(scheduler: Scheduler) -> None:
    """Raise RunsRefused, which has an exit status of its own, if the certificate of a run failed."""
    from supermask.execution.tasks import emptied_layers, emptied_message

    refused = [run_id for run_id, status in scheduler.status.items() if status == "certificate_failed"]
    failed = [run_id for run_id in refused if not emptied_layers(scheduler.store.facts(run_id))]
    blocked = sum(status == "ancestor_certificate_failed" for status in scheduler.status.values())
    messages = []
    if failed:
        names = ", ".join(failed[:3]) + (", ..." if len(failed) > 3 else "")
        below = f", and {blocked:,} below {'it' if len(failed) == 1 else 'them'} cannot be trained" if blocked else ""
        messages.append(
            f"the certificate of {pluralize(len(failed), 'run')} failed, in two trainings, so "
            f"{'it is not a result' if len(failed) == 1 else 'they are not results'} ({names}){below}. "
            "`supermask verify` prints the reasons."
        )
    if message := emptied_message(scheduler.store, refused):
        messages.append(message)
    if messages:
        raise RunsRefused(" ".join(messages))


def _progress_listener(
    console: Console, engine: str, device: str, cluster: str | None
) -> Callable[[Sequence[Plan], Scheduler], AbstractContextManager[TaskListener]]:
    """Return a factory of progress displays, which first prints damaged runs and the engine with its reason."""
    from supermask.execution.compilation import compilation_note
    from supermask.execution.progress import progress_listener, run_labels
    from supermask.execution.resources import EVALUATED_BESIDE_GPU, evaluates_beside_gpu, select_run_engine

    def listen(plans: Sequence[Plan], scheduler: Scheduler) -> AbstractContextManager[TaskListener]:
        title = plans[0].study.name if len(plans) == 1 else f"{len(plans)} studies"
        for text in scheduler.damaged:
            console.print(text, markup=False, highlight=False)
        if scheduler.tasks_left:
            kinds = {(r.network, r.recipe): r for r in plans[0].runs.values() if r.learning is None}
            is_separate = evaluates_beside_gpu(engine, device, cluster)
            choices = [
                EVALUATED_BESIDE_GPU if is_separate and not run.is_trained else select_run_engine(run, engine, device)
                for run in kinds.values()
            ]
            for choice in dict.fromkeys(choices):
                console.print(f"{title}  {choice.engine} engine ({choice.reason})", markup=False, highlight=False)
        runs = [run for plan in plans for run in plan.runs.values()]
        # The nodes of a cluster compile for themselves.
        note = "" if cluster or not scheduler.tasks_left else compilation_note(runs, engine, device)
        return progress_listener(title, console, run_labels(plans), scheduler.tasks_left, note)

    return listen
