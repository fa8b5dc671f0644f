"""The Python API behind the command line: one function a command; it returns data and prints nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.carrying_out import How, Listening, carry_out, data_dir
from supermask.drawing import drawn_figures
from supermask.engines.choice import choose
from supermask.errors import UserError
from supermask.execute.estimate import Estimate, estimate
from supermask.execute.schedule import Keep, Schedule
from supermask.export import export_run
from supermask.figures import Drawn
from supermask.plan import Plan, make_plan
from supermask.recipe import Recipe
from supermask.rows import find_run, rows_of_plan, rows_of_store
from supermask.runs import Run
from supermask.status import counts_text
from supermask.store import Store
from supermask.study import StudyLike, load_study
from supermask.study.yaml_tree import shown
from supermask.tables import DENSE, Answer, Row
from supermask.verify import Verdict


def default_store() -> Path:
    """SUPERMASK_STORE, else `supermask-store` in the current folder."""
    return Path(os.environ.get("SUPERMASK_STORE") or "supermask-store")


@dataclass(frozen=True)
class Elsewhere:
    """What the runs to do would take on so many cores, or so many GPUs with a stack of runs on each."""

    number: int
    what: str
    """`core` or `GPU`."""
    estimate: Estimate
    wall_seconds: float


@dataclass(frozen=True)
class PlanReport:
    """What `supermask plan` says: counts of runs, and the time that those to do will take."""

    plan: Plan
    asked: int
    """Trainings that the study's treatments, seeds and levels come to, each counted by itself."""
    unique: int
    done: int
    to_do: int
    estimate: Estimate
    elsewhere: tuple[Elsewhere, ...] = ()
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
) -> PlanReport:
    """What would run. Reads study and store, trains nothing.

    `cores`, `gpus`: what it would take on so many, carried out on paper. Raises UserError for none of them.
    """
    for what, number in (("cores", cores), ("GPUs", gpus)):
        if number is not None and number < 1:
            raise UserError(f"on {number} {what} nothing is ever trained: ask for 1 or more.")
    made = make_plan(load_study(study, overrides))
    at = Store(store or default_store())
    there = at.run_ids()
    to_do = [run for run in made.runs.values() if run.id not in there]
    engine = choose("auto", made.layers, "cpu").engine
    here = estimate(made, at, to_do, engine)
    elsewhere = []
    for what, number in (("core", cores), ("GPU", gpus)):
        if number is not None:
            found = here if what == "core" else estimate(made, at, to_do, engine, gpus=number)
            elsewhere.append(Elsewhere(number, what, found, found.on_paper(to_do, number)))
    return PlanReport(
        plan=made,
        asked=len(made.members),
        unique=len(made.runs),
        done=len(made.runs) - len(to_do),
        to_do=len(to_do),
        estimate=here,
        elsewhere=tuple(elsewhere),
    )


def run(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    keep: Keep = "all",
    listening: Listening | None = None,
    precision: str = "float32",
    stack: int | None = None,
    cluster: str | None = None,
) -> Schedule:
    """Trains what is missing of a study, on `workers` processes (default: one a core); returns how each run ended.

    `cluster`: not on this machine, but on Ray (`local`, `auto`, an address) or Slurm (`slurm`, `slurm:key=value,...`).
    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how = How(store or default_store(), workers, engine, device, keep, precision, stack, cluster)
    how.check()
    return carry_out([make_plan(load_study(study, overrides))], how, listening)


def rows(
    study: StudyLike, overrides: Sequence[str] = (), store: Path | None = None
) -> tuple[Plan, list[Row], list[str]]:
    """The study's plan, a row for each of its runs, done or not, and a text for each damaged one."""
    made = make_plan(load_study(study, overrides))
    return made, *rows_of_plan(made, Store(store or default_store()))


def labels(made: Plan) -> list[str]:
    """The lines of a study's tables: `dense`, then its treatments, in the order of the file."""
    return [DENSE, *(treatment.label for treatment in made.study.treatments)]


def figures(
    study: StudyLike, overrides: Sequence[str], out: Path, store: Path | None = None
) -> tuple[list[tuple[Drawn, list[Path]]], list[str]]:
    """Draws the figures that a study has something for (`drawing.drawn_figures`), and saves them; and a text for each
    damaged run.
    """
    from supermask.figures import save

    made, found, damaged = rows(study, overrides, store)
    statuses = [str(row["status"]) for row in found]
    if "finished" not in statuses:
        if set(statuses) != {"to_do"}:
            raise UserError(
                f"no run of study {shown(made.study.name)} with these settings has finished: {counts_text(statuses)}."
            )
        raise UserError(
            f"no run of study {shown(made.study.name)} with these settings is in {store or default_store()} yet: "
            "`supermask run` it first, with the same settings and the same --store."
        )
    drawn = drawn_figures(made, found, Store(store or default_store()))
    return [(each, save(each, out, f"{made.study.name}-{name}")) for name, each in drawn.items()], damaged


def export(run_id: str, folder: Path, store: Path | None = None) -> list[Path]:
    """Writes `run.json` and `tensors.safetensors` of a run, named by its id or the beginning of it."""
    at = existing_store(store)
    return export_run(at, find_run(at, run_id), folder)


def remeasure(store: Path | None = None) -> Iterator[Verdict]:
    """Every finished run's test accuracy, measured again from its stored tensors; needs the data."""
    from supermask.remeasure import remeasure_store

    return remeasure_store(existing_store(store), data_dir())


def verify(store: Path | None = None) -> Iterator[Verdict]:
    """Every run in the store, its hashes and its certificate, again from the tensors."""
    from supermask.verify import verify_store

    return verify_store(existing_store(store))


def query(sql: str, store: Path | None = None) -> tuple[Answer, list[str]]:
    """SQL (DuckDB's) over the table `runs`, one row a run of the store; and a text for each damaged run."""
    from supermask import tables

    found, damaged = rows_of_store(existing_store(store))
    return tables.query(found, sql), damaged


def existing_store(store: Path | None) -> Store:
    """The store in this folder, or in the default one. Raises UserError where there is no such folder."""
    folder = store or default_store()
    if not folder.is_dir():
        raise UserError(
            f"there is no store at {folder}: give one with --store, or make one with `supermask run STUDY`."
        )
    return Store(folder)
