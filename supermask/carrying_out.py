"""Plans carried out: first checked as far as can be without training, then trained, and noted meanwhile."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from supermask.datasets import Images, load
from supermask.datasets.source import DATA_VARIABLE
from supermask.engines.choice import ENGINES, check_precision, choose
from supermask.errors import UserError, did_you_mean
from supermask.execute.cluster import check as check_cluster
from supermask.execute.cluster import executor
from supermask.execute.data import check_same_data
from supermask.execute.journal import Journal
from supermask.execute.ongoing import Listener
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.tasks import Result, Site, Task
from supermask.lineage import layers_of
from supermask.plan import Graph, Plan, joined
from supermask.store import Store
from supermask.store.disk import machine_errors
from supermask.study.yaml_tree import shown

DEVICES = ("cpu", "cuda")

Listening = Callable[[Sequence[Plan], Schedule], AbstractContextManager[Listener]]
"""From what is going to be carried out to who hears of it."""


@dataclass(frozen=True)
class How:
    """Where and with what to train."""

    store: Path
    workers: int | None = None
    """None: one a core."""
    engine: str = "auto"
    device: str = "cpu"
    keep: Keep = "all"
    precision: str = "float32"
    """Of the stacked engine's products."""
    stack: int | None = None
    """Runs that the stacked engine trains at once in a worker; None: as many as were measured to be worth it."""
    cluster: str | None = None
    """None: processes of this machine; `local`, `auto` or an address: Ray; `slurm`, with options: Slurm."""

    def check(self) -> None:
        """Raises UserError for what is not allowed."""
        check_choice("an engine", self.engine, ENGINES)
        check_choice("a device", self.device, DEVICES)
        check_choice("a way to keep weights", self.keep, get_args(Keep))
        check_precision(self.precision, self.device)
        stacks = self.engine == "stacked" or (self.engine == "auto" and self.device != "cpu")
        if not stacks and (self.precision != "float32" or self.stack is not None):
            raise UserError("--precision and --stack are the stacked engine's: give --engine stacked too.")
        if self.stack is not None and self.stack < 1:
            raise UserError(f"a stack of {self.stack} runs trains nothing: give 1 or more, or leave it out.")
        if self.cluster is not None:
            check_cluster(self.cluster)
        if self.workers is not None and self.workers < 1:
            raise UserError(
                f"{self.workers} workers cannot train anything: give 1 or more, or leave it out for one a core."
            )


def default_workers() -> int:
    """One a core that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def carry_out(plans: Sequence[Plan], how: How, listening: Listening | None = None) -> Schedule:
    """Trains what is missing of these plans, what they share once; returns how each run ended.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how.check()
    graph = joined(plans)
    precision = check_precision(how.precision, how.device)
    site = Site(how.store.absolute(), data_dir(), how.engine, how.device, precision=precision)
    kinds = {(run.network, run.dataset, run.learning): run for run in graph.runs.values()}
    for run in kinds.values():
        choose(how.engine, layers_of(run), how.device, run.learning)
    schedule = Schedule(graph, Store(site.store))
    if schedule.tasks_left:
        if how.cluster is None:
            check_device(how.device)
        # One message before workers start, not one from each; and one decoding that all of them share.
        for dataset in dict.fromkeys(plan.study.dataset for plan in plans):
            _check_same_data(schedule, load(dataset, site.data_dir))
        site = replace(site, stack=_stack_size(how, graph))
    quiet: AbstractContextManager[Listener] = nullcontext(lambda *_: None)
    studies = [plan.study for plan in plans]
    cluster = how.cluster if schedule.tasks_left else None
    # This machine's GPU is shared by two: one stack trains while the other is scored and committed.
    here = 2 if cluster is None and site.stack != 1 and how.device != "cpu" else default_workers()
    with executor(cluster, how.workers, here) as (run_plan, workers), ExitStack() as heard_by:
        if schedule.tasks_left:
            _check_writable(site.store)
        listener = heard_by.enter_context(listening(plans, schedule) if listening else quiet)
        journal = heard_by.enter_context(Journal(studies, schedule, workers))

        def heard(now: Schedule, task: Task, result: Result) -> None:
            journal.ended(now, task, result)
            listener(now, task, result)

        return run_plan(graph, site, workers, heard, how.keep, schedule=schedule, starting=journal.started)


def _stack_size(how: How, graph: Graph) -> int | None:
    """Runs that are trained at once; None where only the nodes of a cluster can tell."""
    runs = {(r.network, r.dataset, r.learning): r for r in sorted(graph.runs.values(), key=lambda r: r.trains)}
    stacked = [r for r in runs.values() if choose(how.engine, layers_of(r), how.device, r.learning).engine == "stacked"]
    if not stacked:
        return 1
    if how.stack is not None or how.cluster is not None:
        return how.stack
    from supermask.engines.stacked.size import replicas_here

    precision = check_precision(how.precision, how.device)
    # What the largest network has room for.
    return min(replicas_here(layers_of(r), r.recipe, how.device, precision, r.learning) for r in stacked)


def data_dir() -> Path | None:
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
        own = run.level == 0 and run.dataset == images.facts.name
        if own and schedule.status.get(run.id) == "finished":
            check_same_data(schedule.store, run.id, images)


def _check_writable(store: Path) -> None:
    """Before anything is trained: a store that cannot be written to shall cost no training."""
    with machine_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store) as probe:
            probe.write(bytes(4096))
