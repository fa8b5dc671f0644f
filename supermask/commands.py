"""The Python API behind the command line: one function a command; it returns data and prints nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from supermask.datasets import DATASETS, Images, load
from supermask.datasets.source import DATA_VARIABLE
from supermask.engines.choice import ENGINES, choose
from supermask.errors import UserError, did_you_mean
from supermask.execute.estimate import Estimate, estimate
from supermask.execute.local import Listener, run_plan
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Site, check_same_data
from supermask.export import export_run
from supermask.figures import Drawn
from supermask.plan import Plan, make_plan
from supermask.recipe import Recipe
from supermask.rows import curves_of_plan, find_run, rows_of_plan, rows_of_store
from supermask.runs import Run
from supermask.store import Store
from supermask.store.disk import machine_errors
from supermask.study import StudyLike, load_study
from supermask.study.yaml_tree import shown
from supermask.tables import DENSE, Answer, Row, labels_of
from supermask.verify import Verdict

DEVICES = ("cpu", "cuda")


def default_workers() -> int:
    """One a core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_store() -> Path:
    """SUPERMASK_STORE, else `supermask-store` in the current folder."""
    return Path(os.environ.get("SUPERMASK_STORE") or "supermask-store")


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


def plan(study: StudyLike, overrides: Sequence[str] = (), store: Path | None = None) -> PlanReport:
    """What would run. Reads study and store, trains nothing."""
    made = make_plan(load_study(study, overrides))
    at = Store(store or default_store())
    there = at.run_ids()
    to_do = [run for run in made.runs.values() if run.id not in there]
    return PlanReport(
        plan=made,
        asked=len(made.members),
        unique=len(made.runs),
        done=len(made.runs) - len(to_do),
        to_do=len(to_do),
        estimate=estimate(made, at, to_do, choose("auto", made.layers, "cpu").engine),
    )


def run(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    keep: Keep = "all",
    listening: Callable[[Plan, Schedule], AbstractContextManager[Listener]] | None = None,
) -> Schedule:
    """Trains what is missing of a study, on `workers` processes (default: one a core); returns how each run ended.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    check_choice("an engine", engine, ENGINES)
    check_choice("a device", device, DEVICES)
    check_choice("a way to keep weights", keep, get_args(Keep))
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers cannot train anything: give 1 or more, or leave it out for one a core.")
    made = make_plan(load_study(study, overrides))
    site = Site(store=(store or default_store()).absolute(), data_dir=_data_dir(), engine=engine, device=device)
    for learning in {run.learning for run in made.runs.values()}:
        choose(engine, made.layers, device, learning)
    schedule = Schedule(made, Store(site.store))
    if schedule.tasks_left:
        # One message before workers start, not one from each; and one decoding that all of them share.
        _check_same_data(schedule, load(made.study.dataset, site.data_dir))
        _check_writable(site.store)
        check_device(device)
    quiet: AbstractContextManager[Listener] = nullcontext(lambda *_: None)
    with listening(made, schedule) if listening else quiet as listener:
        return run_plan(made, site, workers or default_workers(), listener, keep, schedule=schedule)


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
    """Draws the figures that a study has something for, and saves them; and a text for each damaged run.

    Trained levels: accuracy and early-stopping iteration. Untrained ones: heuristic supermasks. Learned masks: the
    networks that they stand for, side by side, and how fast they were learned.
    """
    from supermask.figures import save

    made, found, damaged = rows(study, overrides, store)
    if not any(row["status"] == "finished" for row in found):
        raise UserError(
            f"no run of study {shown(made.study.name)} with these settings is in {store or default_store()} yet: "
            "`supermask run` it first, with the same settings and the same --store."
        )
    at = Store(store or default_store())
    drawn = _drawn(made, found, at)
    return [(each, save(each, out, f"{made.study.name}-{name}")) for name, each in drawn.items()], damaged


def _drawn(made: Plan, found: list[Row], store: Store) -> dict[str, Drawn]:
    from supermask import figures

    study, title = made.study, made.study.title or made.study.name
    drawn: dict[str, Drawn] = {}
    heuristic = [row for row in found if figures.is_heuristic(row)]
    if figures.has_supermasks(found):
        chance = 100.0 / DATASETS[study.dataset].classes
        drawn["supermasks"] = figures.supermask_figure(found, labels(made)[1:], study.reference, title, chance)
        points = curves_of_plan(made, store)
        if any(point["iteration"] for point in points):
            drawn["learning"] = figures.curves_figure(points, title)
    elif any(row["status"] == "finished" for row in heuristic):
        drawn["heuristic"] = figures.heuristic_figure(found, title)
    weights = [row for row in found if not row.get("supermask")]
    trained = [t.label for t in study.treatments if t.trained and t.levels_of(study.prune)]
    done = {label for row in weights if row["status"] == "finished" for label in labels_of(row)}
    if trained and (not drawn or done.intersection(trained)):
        reference = study.reference if study.reference in trained else trained[0]
        drawn["accuracy"] = figures.accuracy_figure(weights, trained, reference, title)
        drawn["early-stop"] = figures.early_stop_figure(weights, trained, reference, title)
    return drawn


def export(run_id: str, folder: Path, store: Path | None = None) -> list[Path]:
    """Writes `run.json` and `tensors.safetensors` of a run, named by its id or the beginning of it."""
    at = existing_store(store)
    return export_run(at, find_run(at, run_id), folder)


def remeasure(store: Path | None = None) -> Iterator[Verdict]:
    """Every finished run's test accuracy, measured again from its stored tensors; needs the data."""
    from supermask.remeasure import remeasure_store

    return remeasure_store(existing_store(store), _data_dir())


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


def _data_dir() -> Path | None:
    """Absolute, for workers; None leaves the search to the data set."""
    given = os.environ.get(DATA_VARIABLE)
    return Path(given).expanduser().absolute() if given else None


def check_choice(what: str, given: str, allowed: Sequence[str]) -> None:
    """Raises UserError for a word that is not allowed."""
    if given not in allowed:
        near = did_you_mean(given, allowed) or "."
        raise UserError(f"{shown(given)} is not {what}{near} Allowed: {', '.join(allowed)}.")


def check_device(device: str) -> None:
    """Raises UserError for a device that is not there."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "there is no GPU that this PyTorch can use: leave out --device, or install one built for it."
            )


def _check_same_data(schedule: Schedule, images: Images) -> None:
    """A study is of one data set: a new seed is not trained on other data than the seeds before."""
    for run in schedule.plan.runs.values():
        if run.level == 0 and schedule.status.get(run.id) == "finished":
            check_same_data(schedule.store, run.id, images)


def _check_writable(store: Path) -> None:
    """Before anything is trained: a store that cannot be written to shall cost no training."""
    with machine_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store) as probe:
            probe.write(bytes(4096))
