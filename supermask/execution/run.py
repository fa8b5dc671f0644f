"""Plans carried out: first checked as far as can be without training, then trained, and noted meanwhile.

Where a plan is carried out: on this machine, on a Ray cluster, or through Slurm.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

from supermask.core.errors import UserError, check_one_of, did_you_mean, quote
from supermask.datasets import ImageDataset, load
from supermask.datasets.images import DATA_VARIABLE
from supermask.engines.selection import ENGINES, select_engine, validate_precision
from supermask.execution.coordinator import TaskListener
from supermask.execution.live_status import LiveStatusWriter
from supermask.execution.resources import check_data_fingerprint
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.store import Store
from supermask.store.files.disk import translate_os_errors
from supermask.store.replay import run_architecture
from supermask.study.plan import Plan, RunGraph, merge_plans

CLUSTER_KINDS = ("local", "auto", "slurm")


class Executor(Protocol):
    """Carries a plan out on so many workers; returns the schedule at its end."""

    def __call__(
        self,
        plan: RunGraph,
        site: WorkerConfig,
        workers: int,
        listener: TaskListener,
        keep: KeepPolicy,
        *,
        schedule: Scheduler,
        starting: Callable[[Task], None],
    ) -> Scheduler:
        """Raises Stopped on Ctrl-C, UserError and MachineError."""


def validate_cluster(cluster: str) -> None:
    """Raises UserError for what names no cluster."""
    if cluster.partition(":")[0] == "slurm":
        from supermask.execution.slurm import parse_options

        parse_options(cluster.partition(":")[2])
    elif cluster not in CLUSTER_KINDS and ":" not in cluster:
        near = did_you_mean(cluster, CLUSTER_KINDS) or "."
        raise UserError(
            f"{quote(cluster)} is not a cluster{near} Allowed: local (a Ray of this machine), auto (the Ray that runs "
            "here), ray://host:port, host:port, slurm, slurm:partition=NAME,time=HOURS:MINUTES:SECONDS."
        )
    elif ":" in cluster and not _is_address(cluster):
        raise UserError(
            f"{quote(cluster)} is no address of a Ray cluster: it has the form ray://host:10001 or host:6379."
        )


def _is_address(text: str) -> bool:
    host, _, port = text.removeprefix("ray://").rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536


@contextmanager
def open_executor(cluster: str | None, workers: int | None, local_slots: int) -> Iterator[tuple[Executor, int]]:
    """Who carries out, and on how many workers; `here`: how many this machine has room for.

    Raises UserError where the cluster does not answer or its extra is not installed.
    """
    if cluster is None:
        from supermask.execution import local

        yield local.run_plan, workers or local_slots
    elif cluster.partition(":")[0] == "slurm":
        from supermask.execution import slurm

        yield slurm.make_executor(cluster.partition(":")[2]), workers or slurm.WORKERS
    else:
        from supermask.execution import ray

        with ray.ray_session(cluster, workers or local_slots) as cores:
            yield partial(ray.run_plan, growing=workers is None), workers or cores


DEVICES = ("cpu", "cuda")

ListenerFactory = Callable[[Sequence[Plan], Scheduler], AbstractContextManager[TaskListener]]
"""From what is going to be carried out to who hears of it."""


@dataclass(frozen=True)
class RunOptions:
    """Where and with what to train."""

    store: Path
    workers: int | None = None
    """None: one a core."""
    engine: str = "auto"
    device: str = "cpu"
    keep: KeepPolicy = "all"
    precision: str = "float32"
    """Of the stacked engine's products."""
    stack: int | None = None
    """Runs that the stacked engine trains at once in a worker; None: as many as were measured to be worth it."""
    cluster: str | None = None
    """None: processes of this machine; `local`, `auto` or an address: Ray; `slurm`, with options: Slurm."""

    def validate(self) -> None:
        """Raises UserError for what is not allowed."""
        check_one_of("an engine", self.engine, ENGINES)
        check_one_of("a device", self.device, DEVICES)
        check_one_of("a way to keep weights", self.keep, get_args(KeepPolicy))
        validate_precision(self.precision, self.device)
        stacks = self.engine == "stacked" or (self.engine == "auto" and self.device != "cpu")
        if not stacks and (self.precision != "float32" or self.stack is not None):
            raise UserError("--precision and --stack are the stacked engine's: give --engine stacked too.")
        if self.stack is not None and self.stack < 1:
            raise UserError(f"a stack of {self.stack} runs trains nothing: give 1 or more, or leave it out.")
        if self.cluster is not None:
            validate_cluster(self.cluster)
        if self.workers is not None and self.workers < 1:
            raise UserError(
                f"{self.workers} workers cannot train anything: give 1 or more, or leave it out for one a core."
            )


def default_workers() -> int:
    """One a core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_plans(plans: Sequence[Plan], how: RunOptions, listening: ListenerFactory | None = None) -> Scheduler:
    """Trains what is missing of these plans, what they share once; returns how each run ended.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how.validate()
    graph = merge_plans(plans)
    precision = validate_precision(how.precision, how.device)
    site = WorkerConfig(how.store.absolute(), data_dir(), how.engine, how.device, precision=precision)
    kinds = {(run.network, run.dataset, run.learning): run for run in graph.runs.values()}
    for run in kinds.values():
        select_engine(how.engine, run_architecture(run), how.device, run.learning)
    schedule = Scheduler(graph, Store(site.store))
    if schedule.tasks_left:
        if how.cluster is None:
            check_device(how.device)
        # One message before workers start, not one from each; and one decoding that all of them share.
        for dataset in dict.fromkeys(plan.study.dataset for plan in plans):
            _check_dataset_unchanged(schedule, load(dataset, site.data_dir))
        site = replace(site, stack=_choose_stack_size(how, graph))
    quiet: AbstractContextManager[TaskListener] = nullcontext(lambda *_: None)
    studies = [plan.study for plan in plans]
    cluster = how.cluster if schedule.tasks_left else None
    # This machine's GPU is shared by two: one stack trains while the other is scored and committed.
    here = 2 if cluster is None and site.stack != 1 and how.device != "cpu" else default_workers()
    with open_executor(cluster, how.workers, here) as (run_plan, workers), ExitStack() as heard_by:
        if schedule.tasks_left:
            _check_writable(site.store)
        listener = heard_by.enter_context(listening(plans, schedule) if listening else quiet)
        journal = heard_by.enter_context(LiveStatusWriter(studies, schedule, workers))

        def heard(now: Scheduler, task: Task, result: TaskResult) -> None:
            journal.on_end(now, task, result)
            listener(now, task, result)

        return run_plan(graph, site, workers, heard, how.keep, schedule=schedule, starting=journal.on_start)


def _choose_stack_size(how: RunOptions, graph: RunGraph) -> int | None:
    """Runs that are trained at once; None where only the nodes of a cluster can tell."""
    runs = {(r.network, r.dataset, r.learning): r for r in sorted(graph.runs.values(), key=lambda r: r.is_trained)}
    stacked = [
        r
        for r in runs.values()
        if select_engine(how.engine, run_architecture(r), how.device, r.learning).engine == "stacked"
    ]
    if not stacked:
        return 1
    if how.stack is not None or how.cluster is not None:
        return how.stack
    from supermask.engines.stacked.autotune import choose_stack_size

    precision = validate_precision(how.precision, how.device)
    # What the largest network has room for.
    return min(choose_stack_size(run_architecture(r), r.recipe, how.device, precision, r.learning) for r in stacked)


def data_dir() -> Path | None:
    """Absolute, for workers; None leaves the search to the data set."""
    given = os.environ.get(DATA_VARIABLE)
    return Path(given).expanduser().absolute() if given else None


def check_device(device: str) -> None:
    """Raises UserError for a device that is not there."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "there is no GPU that this PyTorch can use: leave out --device, or install one built for it."
            )


def _check_dataset_unchanged(schedule: Scheduler, images: ImageDataset) -> None:
    """A study is of one data set: a new seed is not trained on other data than the seeds before."""
    for run in schedule.plan.runs.values():
        own = run.level == 0 and run.dataset == images.facts.name
        if own and schedule.status.get(run.id) == "finished":
            check_data_fingerprint(schedule.store, run.id, images)


def _check_writable(store: Path) -> None:
    """Before anything is trained: a store that cannot be written to shall cost no training."""
    with translate_os_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store) as probe:
            probe.write(bytes(4096))
