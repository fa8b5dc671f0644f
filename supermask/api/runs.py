"""The Python API behind the command line: one function a command; it returns data and prints nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.core.errors import UserError, quote
from supermask.core.recipe import Recipe
from supermask.core.text import Row
from supermask.engines.selection import select_engine
from supermask.execution.estimate import Estimate, estimate
from supermask.execution.run import ListenerFactory, RunOptions, data_dir, run_plans
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.export.run_folder import export_run
from supermask.reporting.figures import RenderedFigure
from supermask.reporting.figures.catalog import study_figures
from supermask.reporting.status import format_counts
from supermask.store import Store
from supermask.store.rows import plan_rows, resolve_run_id, store_rows
from supermask.store.tables import DENSE, QueryResult
from supermask.store.verify import VerificationResult
from supermask.study import StudyLike, load_study
from supermask.study.plan import Plan, make_plan
from supermask.study.run import Run


def default_store_path() -> Path:
    """SUPERMASK_STORE, else `supermask-store` in the current folder."""
    return Path(os.environ.get("SUPERMASK_STORE") or "supermask-store")


@dataclass(frozen=True)
class ResourceEstimate:
    """What the runs to do would take on so many cores, or so many GPUs with a stack of runs on each."""

    number: int
    what: str
    """`core` or `GPU`."""
    estimate: Estimate
    wall_seconds: float


@dataclass(frozen=True)
class PlanSummary:
    """What `supermask plan` says: counts of runs, and the time that those to do will take."""

    plan: Plan
    requested: int
    """Trainings that the study's treatments, seeds and levels come to, each counted by itself."""
    unique: int
    done: int
    to_do: int
    estimate: Estimate
    resource_estimates: tuple[ResourceEstimate, ...] = ()
    """What it would take on as many cores or GPUs as were asked about."""

    @property
    def network(self) -> str:
        """Its canonical name."""
        return self._dense.network

    @property
    def recipe(self) -> Recipe:
        """How the dense networks are trained."""
        return self._dense.recipe

    @property
    def _dense(self) -> Run:
        return next(iter(self.plan.runs.values()))


def plan(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: Path | None = None,
    cores: int | None = None,
    gpus: int | None = None,
) -> PlanSummary:
    """What would run. Reads study and store, trains nothing.

    `cores`, `gpus`: what it would take on so many, carried out on paper. Raises UserError for none of them.
    """
    for what, number in (("cores", cores), ("GPUs", gpus)):
        if number is not None and number < 1:
            raise UserError(f"on {number} {what} nothing is ever trained: ask for 1 or more.")
    made = make_plan(load_study(study, overrides))
    at = Store(store or default_store_path())
    there = at.run_ids()
    to_do = [run for run in made.runs.values() if run.id not in there]
    engine = select_engine("auto", made.layers, "cpu").engine
    here = estimate(made, at, to_do, engine)
    elsewhere = []
    for what, number in (("core", cores), ("GPU", gpus)):
        if number is not None:
            found = here if what == "core" else estimate(made, at, to_do, engine, gpus=number)
            elsewhere.append(ResourceEstimate(number, what, found, found.simulate(to_do, number)))
    return PlanSummary(
        plan=made,
        requested=len(made.treatment_runs),
        unique=len(made.runs),
        done=len(made.runs) - len(to_do),
        to_do=len(to_do),
        estimate=here,
        resource_estimates=tuple(elsewhere),
    )


def run(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    keep: KeepPolicy = "all",
    listening: ListenerFactory | None = None,
    precision: str = "float32",
    stack: int | None = None,
    cluster: str | None = None,
) -> Scheduler:
    """Trains what is missing of a study, on `workers` processes (default: one a core); returns how each run ended.

    `cluster`: not on this machine, but on Ray (`local`, `auto`, an address) or Slurm (`slurm`, `slurm:key=value,...`).
    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how = RunOptions(store or default_store_path(), workers, engine, device, keep, precision, stack, cluster)
    how.validate()
    return run_plans([make_plan(load_study(study, overrides))], how, listening)


def study_rows(
    study: StudyLike, overrides: Sequence[str] = (), store: Path | None = None
) -> tuple[Plan, list[Row], list[str]]:
    """The study's plan, a row for each of its runs, done or not, and a text for each damaged one."""
    made = make_plan(load_study(study, overrides))
    return made, *plan_rows(made, Store(store or default_store_path()))


def treatment_labels(made: Plan) -> list[str]:
    """The lines of a study's tables: `dense`, then its treatments, in the order of the file."""
    return [DENSE, *(treatment.label for treatment in made.study.treatments)]


def figures(
    study: StudyLike, overrides: Sequence[str], out: Path, store: Path | None = None
) -> tuple[list[tuple[RenderedFigure, list[Path]]], list[str]]:
    """Draws the figures that a study has something for (`drawing.drawn_figures`), and saves them; and a text for each
    damaged run.
    """
    from supermask.reporting.figures import save_figure

    made, found, damaged = study_rows(study, overrides, store)
    statuses = [str(row["status"]) for row in found]
    if "finished" not in statuses:
        if set(statuses) != {"to_do"}:
            raise UserError(
                f"no run of study {quote(made.study.name)} with these settings has finished: {format_counts(statuses)}."
            )
        raise UserError(
            f"no run of study {quote(made.study.name)} with these settings is in {store or default_store_path()} yet: "
            "`supermask run` it first, with the same settings and the same --store."
        )
    drawn = study_figures(made, found, Store(store or default_store_path()))
    return [(each, save_figure(each, out, f"{made.study.name}-{name}")) for name, each in drawn.items()], damaged


def export(run_id: str, folder: Path, store: Path | None = None) -> list[Path]:
    """Writes `run.json` and `tensors.safetensors` of a run, named by its id or the beginning of it."""
    at = open_store(store)
    return export_run(at, resolve_run_id(at, run_id), folder)


def recheck_accuracies(store: Path | None = None) -> Iterator[VerificationResult]:
    """Every finished run's test accuracy, measured again from its stored tensors; needs the data."""
    from supermask.export.tickets.remeasure import recheck_store_accuracies

    return recheck_store_accuracies(open_store(store), data_dir())


def verify(store: Path | None = None) -> Iterator[VerificationResult]:
    """Every run in the store, its hashes and its certificate, again from the tensors."""
    from supermask.store.verify import verify_store

    return verify_store(open_store(store))


def query(sql: str, store: Path | None = None) -> tuple[QueryResult, list[str]]:
    """SQL (DuckDB's) over the table `runs`, one row a run of the store; and a text for each damaged run."""
    from supermask.store import tables

    found, damaged = store_rows(open_store(store))
    return tables.query(found, sql), damaged


def open_store(store: Path | None) -> Store:
    """The store in this folder, or in the default one. Raises UserError where there is no such folder."""
    folder = store or default_store_path()
    if not folder.is_dir():
        raise UserError(
            f"there is no store at {folder}: give one with --store, or make one with `supermask run STUDY`."
        )
    return Store(folder)
