"""Where a plan is carried out: on this machine, on a Ray cluster, or through Slurm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from supermask.errors import UserError, did_you_mean
from supermask.execute.ongoing import Listener
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.tasks import Site, Task
from supermask.plan import Graph
from supermask.study.yaml_tree import shown

WORDS = ("local", "auto", "slurm")


class Executor(Protocol):
    """Carries a plan out on so many workers; returns the schedule at its end."""

    def __call__(
        self,
        plan: Graph,
        site: Site,
        workers: int,
        listener: Listener,
        keep: Keep,
        *,
        schedule: Schedule,
        starting: Callable[[Task], None],
    ) -> Schedule:
        """Raises Stopped on Ctrl-C, UserError and MachineError."""


def check(cluster: str) -> None:
    """Raises UserError for what names no cluster."""
    if cluster.partition(":")[0] == "slurm":
        from supermask.execute.slurm import options

        options(cluster.partition(":")[2])
    elif cluster not in WORDS and ":" not in cluster:
        near = did_you_mean(cluster, WORDS) or "."
        raise UserError(
            f"{shown(cluster)} is not a cluster{near} Allowed: local (a Ray of this machine), auto (the Ray that runs "
            "here), ray://host:port, host:port, slurm, slurm:partition=NAME,time=HOURS:MINUTES:SECONDS."
        )
    elif ":" in cluster and not _is_address(cluster):
        raise UserError(
            f"{shown(cluster)} is no address of a Ray cluster: it has the form ray://host:10001 or host:6379."
        )


def _is_address(text: str) -> bool:
    host, _, port = text.removeprefix("ray://").rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536


@contextmanager
def executor(cluster: str | None, workers: int | None, here: int) -> Iterator[tuple[Executor, int]]:
    """Who carries out, and on how many workers; `here`: how many this machine has room for.

    Raises UserError where the cluster does not answer or its extra is not installed.
    """
    if cluster is None:
        from supermask.execute import local

        yield local.run_plan, workers or here
    elif cluster.partition(":")[0] == "slurm":
        from supermask.execute import slurm

        yield slurm.executor(cluster.partition(":")[2]), workers or slurm.WORKERS
    else:
        from supermask.execute import ray

        with ray.connected(cluster, workers or here) as cores:
            yield partial(ray.run_plan, growing=workers is None), workers or cores
