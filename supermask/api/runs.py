"""Functions of the commands on studies and runs: plan, run, status, table, figure, export, verify, query.

They return data and print nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from supermask.api.row_files import make_table_finder, read_study_from_tables, refuse_store_with_tables
from supermask.core.environment import check_path, expand_path
from supermask.core.errors import UserError, quote
from supermask.core.recipe import Recipe
from supermask.core.text import Row
from supermask.execution.compilation import compile_seconds
from supermask.execution.estimate import Estimate, estimate
from supermask.execution.run import ListenerFactory, RunOptions, data_dir, run_plans
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import is_final
from supermask.export.run_folder import export_run
from supermask.reporting.figures import FigureOptions, RenderedFigure
from supermask.reporting.figures.catalog import split_labels, study_figures
from supermask.reporting.figures.network_panels import FindRows
from supermask.reporting.status import format_counts
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.location import check_store, output_path
from supermask.store.merge import MergeResult
from supermask.store.planning import plan_study
from supermask.store.rows import BLOCKED_STATUS, plan_rows, resolve_run_id, store_rows
from supermask.store.tables import DENSE, QueryResult
from supermask.store.verify import VerificationResult
from supermask.study import StudyLike, load_study
from supermask.study.cell_code import is_cell
from supermask.study.plan import Plan
from supermask.study.plan_checks import ineffective_settings, mostly_unpruned_networks
from supermask.study.run import Run


def default_store_path() -> Path:
    """Return the folder `SUPERMASK_STORE`, else `supermask-store` in the current folder."""
    return expand_path(os.environ.get("SUPERMASK_STORE") or "supermask-store")


def store_path(store: str | Path | None = None) -> Path:
    """Return the folder of a store: the given one, else the default. A leading `~` is the home folder."""
    return check_path(store) if store else default_store_path()


@dataclass(frozen=True)
class ResourceEstimate:
    """Simulated cost of the missing runs on `count` cores, or on `count` GPUs with one stack of runs each."""

    count: int
    unit: str
    """`core` or `GPU`."""
    estimate: Estimate
    wall_seconds: float


@dataclass(frozen=True)
class PlanSummary:
    """Result of `plan`: counts of runs, and the estimated time of the missing ones."""

    plan: Plan
    requested: int
    """Runs of the study's treatments, seeds and levels, and of chains that provide masks, before runs are shared."""
    unique: int
    """Runs of the plan, each counted once."""
    done: int
    to_do: int
    """Missing runs that `run` would train."""
    estimate: Estimate
    resource_estimates: tuple[ResourceEstimate, ...] = ()
    """One per resource that was given: cores, GPUs."""
    warnings: tuple[str, ...] = ()
    """Assumptions about inputs that were not found, and settings without effect."""
    compile_seconds: float = 0.0
    """Seconds that the first run on this machine takes to compile kernels; not in `estimate`."""
    blocked: int = 0
    """Missing runs that cannot be trained: a run before them diverged, or its certificate failed."""

    def __repr__(self) -> str:
        counts = f"{self.unique:,} runs, {self.done:,} done, {self.to_do:,} to do"
        return f"{self.plan.study.name}: {self.requested:,} trainings, {counts}"

    @property
    def network(self) -> str:
        """Canonical name of the network."""
        return self._dense.network

    @property
    def networks(self) -> tuple[str, ...]:
        """Canonical names of all networks that are trained."""
        return self.plan.networks

    @property
    def recipe(self) -> Recipe:
        """Training recipe of the dense networks."""
        return self._dense.recipe

    @property
    def _dense(self) -> Run:
        # Plans are in order of dependence, and every chain begins with a dense run.
        return next(iter(self.plan.runs.values()))


def plan(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: str | Path | None = None,
    cores: int | None = None,
    gpus: int | None = None,
) -> PlanSummary:
    """Plan a study and estimate its cost. Reads study and store, trains nothing.

    `cores`, `gpus`: also simulate the schedule on that many. Raises UserError if one of them is below 1.
    """
    for units, count in (("cores", cores), ("GPUs", gpus)):
        if count is not None and (isinstance(count, bool) or not hasattr(count, "__index__")):
            raise UserError(f"{units.lower()}={quote(count)}: give a whole number of 1 or more.")
        if count is not None and count < 1:
            raise UserError(f"{count} {units} cannot train anything: give 1 or more.")
    source = Store(store_path(store))
    study_plan = plan_study(load_study(study, overrides), source)
    missing = study_plan.runs.keys() - source.run_ids()
    blocked = _blocked_runs(study_plan, missing, source)
    to_do = [run for run in study_plan.runs.values() if run.id in missing and run.id not in blocked]
    local = estimate(study_plan, source, to_do, "auto")
    resources = []
    for unit, count in (("core", cores), ("GPU", gpus)):
        if count is not None:
            simulated = local if unit == "core" else estimate(study_plan, source, to_do, "auto", gpus=count)
            resources.append(ResourceEstimate(count, unit, simulated, simulated.simulate(to_do, count)))
    return PlanSummary(
        plan=study_plan,
        requested=len(study_plan.treatment_runs) + study_plan.mask_runs,
        unique=len(study_plan.runs),
        done=len(study_plan.runs) - len(missing),
        to_do=len(to_do),
        estimate=local,
        resource_estimates=tuple(resources),
        warnings=(*study_plan.notices, *_ineffective_settings(study_plan)),
        compile_seconds=compile_seconds(study_plan.runs.values(), "auto") if to_do else 0.0,
        blocked=len(blocked),
    )


def _blocked_runs(study_plan: Plan, missing: Set[str], store: Store) -> set[str]:
    """Return the ids of missing runs that cannot be trained. Reads the facts of stored runs with missing children."""

    @cache
    def has_failed(run_id: str) -> bool:
        try:
            facts = store.facts(run_id)
        except (CorruptEntry, NewerFormat):
            return False
        return facts["status"] in BLOCKED_STATUS and is_final(facts)

    blocked: set[str] = set()
    # Parents come before children in a plan, so one pass reaches all descendants.
    for run in study_plan.runs.values():
        if run.id not in missing or run.parent is None:
            continue
        if run.parent in blocked or (run.parent not in missing and has_failed(run.parent)):
            blocked.add(run.id)
    return blocked


def _ineffective_settings(study_plan: Plan) -> list[str]:
    dense = next(iter(study_plan.runs.values()))
    images = dense.data_options.num_training(dense.spec)
    return [
        *ineffective_settings(study_plan.study, study_plan.network, images),
        *mostly_unpruned_networks(study_plan.inputs.network_facts),
    ]


def run(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: str | Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    keep: KeepPolicy = "all",
    listener: ListenerFactory | None = None,
    precision: str = "float32",
    stack: int | None = None,
    cluster: str | None = None,
    warn: Callable[[list[str]], None] | None = None,
) -> Scheduler:
    """Train the missing runs of a study on `workers` processes (default: one per core); return its final scheduler.

    `cluster`: train on Ray (`local`, `auto`, an address) or Slurm (`slurm`, `slurm:key=value,...`) instead. `warn` gets
    one sentence per setting without the expected effect, before anything is trained.
    Raises UserError, SystemFailure, and `execution.local.StudyInterrupted` on Ctrl-C; the same call resumes.
    """
    options = RunOptions(store_path(store), workers, engine, device, keep, precision, stack, cluster)
    options.validate()
    study_plan = plan_study(load_study(study, overrides), Store(options.store), call_user_code=True)
    if cluster is not None and (cells := [name for name in study_plan.study.user_criteria if is_cell(name)]):
        raise UserError(
            f"the criterion {cells[0].partition(':')[2]!r} was given as a function of this session, which other "
            "machines cannot import: write it in a .py file and name it as module:function."
        )
    if warn is not None:
        warn(_ineffective_settings(study_plan))
    return run_plans([study_plan], options, listener)


def study_rows(
    study: StudyLike, overrides: Sequence[str] = (), store: str | Path | None = None
) -> tuple[Plan, list[Row], list[str]]:
    """Return the plan of a study, one row per run (finished or not), and one message per damaged run.

    Neither data nor user code is needed; `Plan.notices` says what was assumed.
    """
    source = Store(store_path(store))
    study_plan = plan_study(load_study(study, overrides), source)
    return study_plan, *plan_rows(study_plan, source)


def layer_rows(rows: list[Row], store: str | Path | None = None) -> list[Row]:
    """Return one row per layer of each stored run among the rows of `study_rows`; columns: `tables.LAYER_COLUMNS`."""
    from supermask.store import layer_facts

    return list(layer_facts.layer_rows(Store(store_path(store)), rows))


def missing_result(statuses: Sequence[str], subject: str) -> str | None:
    """Return a message if runs were trained and none of them finished, else None.

    `statuses`: status of every run; `subject`: the study in the message.
    """
    if not statuses or "finished" in statuses or "to_do" in statuses:
        return None
    hint = "Lower train.lr, or look for values that are not finite." if "diverged" in statuses else ""
    return f"no run of {subject} has finished: {format_counts(statuses)}. {hint}".rstrip()


def treatment_labels(plan: Plan) -> list[str]:
    """Return the row labels of a study's tables: `dense`, then its treatments, in the order of the study file.

    A dense network of a treatment's own belongs to the treatment.
    """
    dense = [DENSE] if plan.has_one_dense_network else []
    return [*dense, *(treatment.label for treatment in plan.study.treatments)]


@dataclass(frozen=True)
class FinishedRuns:
    """The rows of a study with at least one finished run, from a store or from tables of runs."""

    plan: Plan
    rows: list[Row]
    notices: list[str]
    """One message per damaged run of the store, or on rows of the tables that are not used."""
    store: Store | None
    """None for tables."""
    find_rows: FindRows | None
    """Finds the rows of other studies in the tables; None for a store."""


def read_finished_runs(
    study: StudyLike,
    overrides: Sequence[str] = (),
    store: str | Path | None = None,
    tables: Sequence[Path] = (),
    advice: str = "`supermask run` it first, with the same settings and the same --store.",
) -> FinishedRuns:
    """Return the rows of a study from a store, or from tables of runs if any are given.

    Raises UserError if no run has finished, with `advice` if the store has none of it; and if both a store and tables
    are given.
    """
    if tables:
        refuse_store_with_tables(store)
        part = read_study_from_tables(tables, study, overrides)
        source = FinishedRuns(part.plan, part.rows, list(part.notices), None, make_table_finder(tables))
    else:
        study_plan, rows, damaged = study_rows(study, overrides, store)
        source = FinishedRuns(study_plan, rows, damaged, Store(store_path(store)), None)
    statuses = [str(row["status"]) for row in source.rows]
    if "finished" in statuses:
        return source
    name = quote(source.plan.study.name)
    if source.store is None or set(statuses) != {"to_do"}:
        raise UserError(f"no run of study {name} with these settings has finished: {format_counts(statuses)}.")
    raise UserError(f"no run of study {name} with these settings is in {source.store.root} yet: {advice}")


def figures(
    study: StudyLike,
    overrides: Sequence[str],
    out: str | Path,
    store: str | Path | None = None,
    only: Sequence[str] = (),
    treatments: str = "",
    formats: Sequence[str] = (),
    options: FigureOptions | None = None,
    tables: Sequence[Path] = (),
) -> tuple[list[tuple[RenderedFigure, list[Path]]], list[str]]:
    """Draw and save the figures of a study; return them with their files, and one message per damaged run.

    `only`, `treatments` (labels separated by commas) and `formats` select figures, treatments and file formats, by
    default all figures and treatments as PDF, SVG and PNG. Figures without data are left out. `tables`: Parquet
    files of runs to read in place of a store. Raises UserError if no run of the study has finished, and for unknown
    names.
    """
    from supermask.reporting.figures import save_figure
    from supermask.reporting.figures.save import DEFAULT_FORMATS, check_formats, figure_stem

    check_formats(formats)

    source = read_finished_runs(study, overrides, store, tables)
    study_plan = source.plan
    labels = split_labels(treatments, [treatment.label for treatment in study_plan.study.treatments])
    drawn = study_figures(
        study_plan, source.rows, source.store, options or FigureOptions(), only, labels, source.find_rows
    )
    stems = {name: figure_stem(study_plan.study.name, name) for name in drawn}
    folder, formats = output_path(out), formats or DEFAULT_FORMATS
    saved = [(figure, save_figure(figure, folder, stems[name], formats)) for name, figure in drawn.items()]
    return saved, [*study_plan.notices, *source.notices]


def export(run_id: str, folder: str | Path, store: str | Path | None = None) -> list[Path]:
    """Write `run.json` and `tensors.safetensors` of a run, given its id or a unique prefix; return their paths."""
    source = open_store(store)
    return export_run(source, resolve_run_id(source, run_id), output_path(folder))


def recheck_accuracies(store: str | Path | None = None) -> Iterator[VerificationResult]:
    """Measure the test accuracy of every finished run again, from its stored tensors. Needs the dataset."""
    from supermask.export.tickets.remeasure import recheck_store_accuracies

    return recheck_store_accuracies(open_store(store), data_dir())


def verify(store: str | Path | None = None) -> Iterator[VerificationResult]:
    """Recompute checksums and certificate of every run in the store from its tensors."""
    from supermask.store.verify import verify_store

    return verify_store(open_store(store))


def repair(store: str | Path | None = None) -> Iterator[VerificationResult]:
    """Verify a store and set every entry at fault aside; the reason of its result says where it is now."""
    from supermask.store.verify import repair_store

    for result, folders in repair_store(open_store(store)):
        moved = ", ".join(str(folder) for folder in folders)
        how = f"{result.reason}. Set aside: {moved}; run its study again to recompute it"
        yield replace(result, reason=how) if folders else result


def merge(source: str | Path, store: str | Path | None = None) -> Iterator[MergeResult]:
    """Copy every run of the store at `source` into `store`, which is created if it does not exist.

    Raises UserError if there is no store at `source`, or if both are the same folder.
    """
    from supermask.store.merge import merge_stores

    target = Store(store_path(store))
    other = open_store(source)
    if other.root.resolve() == target.root.resolve():
        raise UserError(f"{source} is the store to merge into: give another one.")
    return merge_stores(other, target)


def query(sql: str, store: str | Path | None = None) -> tuple[QueryResult, list[str]]:
    """Run a DuckDB query on the table `runs`, one row per run; also return one message per damaged run."""
    from supermask.store import tables

    rows, damaged = store_rows(open_store(store))
    return tables.query(rows, sql), damaged


def open_store(store: str | Path | None) -> Store:
    """Open the store in this folder, or in the default one. Raises UserError if there is none."""
    folder = store_path(store)
    if not folder.is_dir():
        raise UserError(
            f"there is no store at {folder}: give one with --store, or create one with `supermask run STUDY`."
        )
    check_store(folder)
    return Store(folder)
