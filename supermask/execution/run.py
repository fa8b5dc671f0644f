"""Execution of plans: checks without training, then the training itself, with notes for the dashboard."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from supermask.core.environment import expand_path
from supermask.core.errors import UserError, check_one_of, did_you_mean, quote
from supermask.core.text import pluralize
from supermask.datasets import ImageDataset
from supermask.datasets.images import DATA_VARIABLE
from supermask.datasets.specs import DATASETS
from supermask.engines.selection import ENGINES, is_measuring_costs, validate_precision
from supermask.execution.coordinator import ExecutionRequest, TaskListener
from supermask.execution.live_status import LiveStatusWriter
from supermask.execution.resources import check_planned_data, evaluates_beside_gpu, select_run_engine
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.store import Store
from supermask.store.files.disk import translate_os_errors
from supermask.store.replay import load_step
from supermask.study.networks import examine_network, resolve_network, run_network
from supermask.study.plan import Plan, RunGraph, make_plan, merge_plans
from supermask.study.run import Run
from supermask.study.user_data import load_data

DEVICES = ("cpu", "cuda")

CLUSTER_KINDS = ("local", "auto", "slurm")

WORKERS_PER_GPU = 2
"""Workers that share the GPU of this machine: one trains a stack while the other scores and commits another."""

ListenerFactory = Callable[[Sequence[Plan], Scheduler], AbstractContextManager[TaskListener]]
"""Creates a listener for the results of these plans, before the first task starts."""

Executor = Callable[[ExecutionRequest], Scheduler]
"""Executes a plan and returns its scheduler. Raises StudyInterrupted on Ctrl-C, UserError and SystemFailure."""


@dataclass(frozen=True)
class RunOptions:
    """Store, workers, engine and device of a training command."""

    store: Path
    workers: int | None = None
    """None: one per core."""
    engine: str = "auto"
    device: str = "cpu"
    keep: KeepPolicy = "all"
    precision: str = "float32"
    """Precision of the stacked engine's matrix products."""
    stack: int | None = None
    """Runs that the stacked engine trains at once in a worker; None: the number that was measured to be fastest."""
    cluster: str | None = None
    """None: processes of this machine; `local`, `auto` or an address: Ray; `slurm`, with options: Slurm."""

    def validate(self) -> None:
        """Raise UserError for a value that is not allowed."""
        check_one_of("an engine", self.engine, ENGINES)
        check_one_of("a device", self.device, DEVICES)
        check_one_of("a way to keep weights", self.keep, get_args(KeepPolicy))
        validate_precision(self.precision, self.device)
        is_measuring_costs()  # Raises UserError: one message, before workers start.
        may_stack = self.engine == "stacked" or (self.engine == "auto" and self.device != "cpu")
        if not may_stack and (self.precision != "float32" or self.stack is not None):
            raise UserError("--precision and --stack are options of the stacked engine: give --engine stacked too.")
        for key, count in (("workers", self.workers), ("stack", self.stack)):
            if count is not None and (isinstance(count, bool) or not hasattr(count, "__index__")):
                raise UserError(f"{key}={quote(count)}: give a whole number of 1 or more.")
        if self.stack is not None and self.stack < 1:
            raise UserError(f"a stack of {self.stack} runs trains nothing: give 1 or more, or leave it out.")
        if self.cluster is not None:
            validate_cluster(self.cluster)
        if self.workers is not None and self.workers < 1:
            raise UserError(
                f"{self.workers} workers cannot train anything: give 1 or more, or leave it out for one per core."
            )


def run_plans(plans: Sequence[Plan], options: RunOptions, create_listener: ListenerFactory | None = None) -> Scheduler:
    """Train the missing runs of these plans, shared runs once; return the scheduler with each run's status.

    Raises UserError, SystemFailure, and StudyInterrupted on Ctrl-C: the same call resumes the study.
    """
    options.validate()
    plans = [_examine_networks(plan) for plan in plans]
    graph = merge_plans(plans)
    precision = validate_precision(options.precision, options.device)
    config = WorkerConfig(options.store.absolute(), data_dir(), options.engine, options.device, precision=precision)
    for run in _distinct_runs(graph):
        _selected_engine(run, options)  # Raises UserError for an engine that cannot train one of them.
    scheduler = Scheduler(graph, Store(config.store))
    loaded: list[ImageDataset] = []
    if scheduler.tasks_left:
        if options.cluster is None:
            check_device(options.device)
        # Here rather than in the workers: one message instead of one per worker, and one decoding of the data set.
        for dataset, fingerprint in dict.fromkeys((plan.study.dataset, plan.inputs.data_fingerprint) for plan in plans):
            images = load_data(dataset, config.data_dir, fingerprint)
            loaded.append(images)
            for plan in plans:
                if plan.study.dataset == dataset:
                    check_planned_data(next(iter(plan.runs.values())), images)
        for run in graph.runs.values():
            if run.step is not None and scheduler.status.get(run.id) != "finished":
                load_step(run.step)  # Imports a user's criterion: raises UserError here rather than per worker.
        config = replace(config, stack=_choose_stack_size(options, graph))
    _check_data_of_stored_runs(scheduler, loaded)
    cluster = options.cluster if scheduler.tasks_left else None
    uses_gpu = cluster is None and config.stack != 1 and options.device != "cpu"
    local_slots = WORKERS_PER_GPU if uses_gpu else default_workers()
    with open_executor(cluster, options.workers, local_slots) as (execute, workers), ExitStack() as contexts:
        if scheduler.tasks_left:
            _check_writable(config.store)
        no_listener: AbstractContextManager[TaskListener] = nullcontext(lambda *_: None)
        listener = contexts.enter_context(create_listener(plans, scheduler) if create_listener else no_listener)
        studies, inputs = [plan.study for plan in plans], [plan.inputs for plan in plans]
        live_status = contexts.enter_context(LiveStatusWriter(studies, scheduler, workers, inputs))

        def on_end(current: Scheduler, task: Task, result: TaskResult) -> None:
            live_status.on_end(current, task, result)
            listener(current, task, result)

        is_separate = evaluates_beside_gpu(options.engine, options.device, options.cluster)
        evaluators = max(1, default_workers() - workers) if is_separate else 0
        return execute(
            ExecutionRequest(graph, config, workers, on_end, options.keep, scheduler, live_status.on_start, evaluators)
        )


def _examine_networks(plan: Plan) -> Plan:
    """Return the plan with the facts of its networks. Imports a user's modules that no run in the store has facts of.

    Raises UserError for a module that cannot be used, before anything is trained.
    """
    image_shape, classes, sources = plan.spec.image_shape, plan.spec.classes, plan.inputs.network_sources
    unknown = [name for name in plan.study.user_networks if name not in plan.inputs.network_facts]
    if not unknown:
        return plan
    networks = {name: resolve_network(name, image_shape, classes, None, None, sources[name]) for name in unknown}
    examined = {
        name: examine_network(network, image_shape, classes, _smallest_batch(plan, name))
        for name, network in networks.items()
    }
    facts = {**plan.inputs.network_facts, **examined}
    return replace(make_plan(plan.study, replace(plan.inputs, network_facts=facts)), notices=plan.notices)


def _smallest_batch(plan: Plan, network: str) -> int | None:
    """Return the smallest batch size of the network's trainings; None if it is never trained."""
    recipes = [run.recipe for run in plan.runs.values() if run.network == network and run.recipe.iterations]
    return min((recipe.batch_size for recipe in recipes), default=None)


@contextmanager
def open_executor(cluster: str | None, workers: int | None, local_slots: int) -> Iterator[tuple[Executor, int]]:
    """Yield the executor and its number of workers; `local_slots`: the number that this machine can run at once.

    Raises UserError if the cluster does not answer or the package for it is not installed.
    """
    if cluster is None:
        from supermask.execution import local

        yield local.run_plan, workers or local_slots
    elif cluster.partition(":")[0] == "slurm":
        from supermask.execution import slurm

        yield slurm.make_executor(cluster.partition(":")[2]), workers or slurm.DEFAULT_WORKERS
    else:
        from supermask.execution import ray

        with ray.ray_session(cluster, workers or local_slots) as cores:
            # Without a number of workers, the executor follows the size of the cluster as it changes.
            yield partial(ray.run_plan, growing=workers is None), workers or cores


def validate_cluster(cluster: str) -> None:
    """Raise UserError for text that names no cluster."""
    if cluster.partition(":")[0] == "slurm":
        from supermask.execution.slurm import parse_options

        parse_options(cluster.partition(":")[2])
    elif cluster not in CLUSTER_KINDS and ":" not in cluster:
        hint = did_you_mean(cluster, CLUSTER_KINDS) or "."
        raise UserError(
            f"{quote(cluster)} is not a cluster{hint} Allowed: local (starts Ray on this machine), auto (the "
            "Ray cluster that runs on this machine), ray://HOST:10001 or HOST:6379 (a Ray cluster elsewhere), slurm, "
            "slurm:partition=NAME,time=HOURS:MINUTES:SECONDS."
        )
    elif ":" in cluster and not _is_address(cluster):
        raise UserError(
            f"{quote(cluster)} is not an address of a Ray cluster: the form is ray://HOST:10001 or HOST:6379."
        )


def _is_address(text: str) -> bool:
    host, _, port = text.removeprefix("ray://").rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def data_dir() -> Path | None:
    """Return the data folder of SUPERMASK_DATA as an absolute path, or None: then each data set searches for itself."""
    value = os.environ.get(DATA_VARIABLE)
    # Absolute, because a worker may have another current folder.
    return expand_path(value).absolute() if value else None


def check_device(device: str) -> None:
    """Raise UserError for a device that this machine does not have."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "there is no GPU that this PyTorch can use: leave out --device, or install one built for it."
            )


def _distinct_runs(graph: RunGraph) -> list[Run]:
    """Return one run per network, data set and mask learning: what the choice of an engine depends on.

    A trained run where there is one.
    """
    # Trained runs come last and replace untrained ones of the same kind.
    runs = sorted(graph.runs.values(), key=lambda run: run.is_trained)
    return list({(run.network, run.dataset, run.learning): run for run in runs}.values())


def _selected_engine(run: Run, options: RunOptions) -> str:
    return select_run_engine(run, options.engine, options.device).engine


def _choose_stack_size(options: RunOptions, graph: RunGraph) -> int | None:
    """Return the number of runs to train at once; None: each node of a cluster measures it for itself."""
    stacked_runs = [run for run in _distinct_runs(graph) if _selected_engine(run, options) == "stacked"]
    if not stacked_runs:
        return 1
    if options.stack is not None or options.cluster is not None:
        return options.stack
    from supermask.engines.stacked.autotune import choose_stack_size

    precision = validate_precision(options.precision, options.device)
    # The smallest of the sizes: a stack of the largest network must fit into the GPU's memory.
    return min(
        choose_stack_size(run_network(run), run.recipe, options.device, precision, run.learning) for run in stacked_runs
    )


def _check_data_of_stored_runs(scheduler: Scheduler, loaded: Iterable[ImageDataset]) -> None:
    """Raise UserError if finished runs of the plan were trained on other data than the plan is for.

    Run ids of earlier versions did not name the data, so other data may be behind the ids of the published ones.
    """
    expected = {name: spec.published_fingerprint for name, spec in DATASETS.items()}
    expected |= {images.facts.name: images.fingerprint for images in loaded}
    others: dict[tuple[str, str, str], list[str]] = {}
    for run_id, fingerprint in scheduler.trained_on.items():
        run = scheduler.plan.runs[run_id]
        if run.data_fingerprint is None:
            # Of data without a published fingerprint and without files here, the first run decides.
            expected[run.dataset] = expected.get(run.dataset) or fingerprint
        planned = run.data_fingerprint or str(expected[run.dataset])
        if fingerprint != planned:
            others.setdefault((run.dataset, planned, fingerprint), []).append(run_id[:12])
    if others:
        (dataset, planned, fingerprint), ids = next(iter(others.items()))
        listed = f"{', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}"
        raise UserError(
            f"runs of {dataset} in {scheduler.store.root} were trained on other data ({fingerprint[:12]}) than this "
            f"plan is for ({planned[:12]}): {pluralize(len(ids), 'run')} ({listed}). Use another --store, or move the "
            "folders runs/ID of these runs to another store."
        )


def _check_writable(store: Path) -> None:
    """Raise SystemFailure for a store that cannot be written to, before any training is spent on it."""
    with translate_os_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store) as probe:
            # One disk block, so that a full disk fails too.
            probe.write(bytes(4096))
