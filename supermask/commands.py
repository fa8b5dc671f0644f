"""The Python API behind the command line: one function a command; it returns data and prints nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from supermask.errors import UserError
from supermask.execute.estimate import Estimate, estimate
from supermask.execute.local import Listener, run_plan
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Site
from supermask.export import export_run
from supermask.figures import Drawn
from supermask.plan import Plan, make_plan
from supermask.rows import find_run, rows_of_plan, rows_of_store
from supermask.store import Store
from supermask.study_file import load_study
from supermask.tables import Answer, Row
from supermask.verify import Verdict

ENGINES = ("reference",)


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
    longest_chain: int
    """Levels that have to follow each other: no number of workers makes a study faster than that."""


def plan(study: str, overrides: Sequence[str] = (), store: Path | None = None) -> PlanReport:
    """What would run. Reads study and store, trains nothing."""
    made = make_plan(load_study(study, overrides))
    at = Store(store or default_store())
    there = at.run_ids()
    to_do = [run for run in made.runs.values() if run.id not in there]
    depth: dict[str, int] = {}
    for run in to_do:
        depth[run.id] = 1 + depth.get(run.parent or "", 0)
    return PlanReport(
        plan=made,
        asked=len(made.members),
        unique=len(made.runs),
        done=len(made.runs) - len(to_do),
        to_do=len(to_do),
        estimate=estimate(made, at, to_do),
        longest_chain=max(depth.values(), default=0),
    )


def run(
    study: str,
    overrides: Sequence[str] = (),
    store: Path | None = None,
    workers: int | None = None,
    engine: str = "reference",
    device: str = "cpu",
    keep: Keep = "all",
    listening: Callable[[Plan, Schedule], AbstractContextManager[Listener]] | None = None,
) -> Schedule:
    """Trains what is missing of a study, on `workers` processes (default: one a core); returns how each run ended.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    if engine not in ENGINES:
        raise UserError(f"{engine!r} is not an engine. Allowed: {', '.join(ENGINES)}.")
    if device not in ("cpu", "cuda"):
        raise UserError(f"{device!r} is not a device. Allowed: cpu, cuda.")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} workers cannot train anything: give 1 or more, or leave it out for one a core.")
    made = make_plan(load_study(study, overrides))
    site = Site(store=(store or default_store()).absolute(), data_dir=_data_dir(), engine=engine, device=device)
    schedule = Schedule(made, Store(site.store))
    if schedule.tasks_left:
        _check_data(made)
    quiet: AbstractContextManager[Listener] = nullcontext(lambda *_: None)
    with listening(made, schedule) if listening else quiet as listener:
        return run_plan(made, site, workers or os.cpu_count() or 1, listener, keep)


def rows(study: str, overrides: Sequence[str] = (), store: Path | None = None) -> tuple[Plan, list[Row], list[str]]:
    """The study's plan, a row for each of its runs, done or not, and a text for each damaged one."""
    made = make_plan(load_study(study, overrides))
    return made, *rows_of_plan(made, Store(store or default_store()))


def figures(study: str, overrides: Sequence[str], out: Path, store: Path | None = None) -> Iterator[tuple[Drawn, list[Path]]]:
    """Draws and saves a study's figures: accuracy, then early-stopping iteration."""
    from supermask.figures import accuracy_figure, early_stop_figure, save

    made, found, _ = rows(study, overrides, store)
    if not any(row["status"] == "finished" for row in found):
        raise UserError(f"no run of study {made.study.name!r} is in the store yet: `supermask run` it first, with the same settings.")
    labels = [treatment.label for treatment in made.study.treatments]
    title = made.study.title or made.study.name
    for name, draw in (("accuracy", accuracy_figure), ("early-stop", early_stop_figure)):
        drawn = draw(found, labels, made.study.reference, title)
        yield drawn, save(drawn, out, f"{made.study.name}-{name}")


def export(run_id: str, folder: Path, store: Path | None = None) -> list[Path]:
    """Writes `run.json` and `tensors.safetensors` of a run, named by its id or the beginning of it."""
    at = Store(store or default_store())
    return export_run(at, find_run(at, run_id), folder)


def verify(store: Path | None = None) -> Iterator[Verdict]:
    """Every run in the store, its hashes and its certificate, again from the tensors."""
    from supermask.lineage import Lineage
    from supermask.verify import verify_run

    at = _existing(store)
    lineage = Lineage(at, remembered=64)
    for run_id in sorted(at.run_ids()):
        yield verify_run(at, lineage, run_id)


def query(sql: str, store: Path | None = None) -> tuple[Answer, list[str]]:
    """SQL (DuckDB's) over the table `runs`, one row a run of the store; and a text for each damaged run."""
    from supermask import tables

    found, damaged = rows_of_store(_existing(store))
    return tables.query(found, sql), damaged


def _existing(store: Path | None) -> Store:
    folder = store or default_store()
    if not folder.is_dir():
        raise UserError(f"there is no store at {folder}: give one with --store, or make one with `supermask run STUDY`.")
    return Store(folder)


def _data_dir() -> Path | None:
    """Absolute, for workers; None leaves the search to the data set."""
    given = os.environ.get("SUPERMASK_DATA")
    return Path(given).absolute() if given else None


def _check_data(made: Plan) -> None:
    """Before workers start: one message for missing data, and one decoding that all of them share."""
    from supermask.datasets import load

    load(made.study.dataset, _data_dir())
