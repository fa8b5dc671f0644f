"""Runs as tasks of a Ray cluster: this machine's own, one that runs, or one at an address."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from supermask.errors import MachineError, UserError
from supermask.execute.away import Answer, Fault, Order, carry, ordered
from supermask.execute.ongoing import Listener, Ongoing, Stopped
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Site, Task
from supermask.plan import Graph
from supermask.store import Store
from supermask.study.yaml_tree import printable, shown

STOP_SECONDS = 1.2
"""How long tasks have, when they are to stop, to save a checkpoint."""

ANSWER_SECONDS = 3.0
"""How long an address has to answer."""

AHEAD = 2
"""Tasks that wait in the cluster, so that no core waits for this process; they also tell an autoscaler to go on."""

LOOK_SECONDS = 5.0
"""Between two looks at how many cores the cluster has."""

OBJECT_STORE = 100_000_000
"""Bytes that a Ray of our own sets aside for what tasks pass on: they pass on next to nothing."""

QUIET = {
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A task without a GPU does not see one; said here, or Ray warns that it will be so.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def connected(address: str, workers: int) -> Iterator[int]:
    """Ray at `local` (this machine, so many cores), `auto`, `ray://host:port` or `host:port`; gives its cores.

    Raises UserError where Ray is not installed, and where nothing answers.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    try:
        import ray
    except ImportError:
        raise UserError("--cluster with Ray needs ray, which is not installed: pip install 'supermask[ray]'") from None
    # What becomes of nodes is heard of from the tasks that were on them. For the log of a node that dies, which Ray
    # prints to standard output, there is no setting.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with suppress(AttributeError):
        vars(ray._private.worker)["print_to_stdstream"] = lambda *_, **__: None
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False, "configure_logging": False}
    own = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    if address not in ("local", "auto"):
        _check_answers(address)
    try:
        ray.init(address=address, **quiet, **(own if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        raise _unreachable(address, error) from None
    try:
        yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()


def run_plan(
    plan: Graph,
    site: Site,
    workers: int,
    listener: Listener,
    keep: Keep = "all",
    schedule: Schedule | None = None,
    starting: Callable[[Task], None] = lambda _: None,
    growing: bool = False,
) -> Schedule:
    """Like `local.run_plan`, on the Ray that is `connected`.

    `growing`: not `workers` runs at once, but as many as the cluster has cores (or GPUs) for at the moment.
    """
    store = Store(site.store)
    store.sweep()
    ongoing = Ongoing(schedule or Schedule(plan, store), listener, keep)
    ongoing.schedule.drop_surplus(keep)
    if ongoing.schedule.tasks_left:
        with ordered(site) as order:
            tasks = _Tasks(ongoing, order, site, starting)
            try:
                tasks.carry_out(None if growing else workers)
            except BaseException as error:
                tasks.stop()
                if isinstance(error, KeyboardInterrupt):
                    raise Stopped(ongoing.schedule.tasks_left) from None
                if isinstance(error, ConnectionError):
                    raise MachineError(
                        f"the connection to the Ray cluster was lost: {_line(error)}. The same command goes on from "
                        "here. Finished runs are kept."
                    ) from None
                raise
    return ongoing.schedule


class _Tasks:
    """What is in flight in the cluster."""

    def __init__(self, ongoing: Ongoing, order: Order, site: Site, starting: Callable[[Task], None]) -> None:
        import ray

        self._ongoing, self._order, self._starting = ongoing, order, starting
        gpus = 1 if site.device == "cuda" else 0
        # Ray does not try again: it would not know of checkpoints, nor which run kills its worker each time.
        self._carry = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(carry)
        self._resource = "GPU" if gpus else "CPU"
        self._in_flight: dict[Any, Task] = {}

    def carry_out(self, workers: int | None) -> None:
        """Keeps the cluster busy, as large as it happens to be, until nothing is left to do."""
        import ray

        if self._resource not in ray.cluster_resources() and self._resource == "GPU":
            raise UserError("no node of this Ray cluster has a GPU: leave out --device, or add one.")
        ongoing, room, looked = self._ongoing, 0, -LOOK_SECONDS
        while ongoing.schedule.tasks_left:
            if time.monotonic() - looked >= LOOK_SECONDS:
                room, looked = int(ray.cluster_resources().get(self._resource, 0)) + AHEAD, time.monotonic()
            while len(self._in_flight) < (workers or room) and (task := ongoing.next()):
                self._in_flight[self._carry.remote(self._order.errand(task))] = task
                self._starting(task)
            assert self._in_flight or ongoing.outdated, "tasks that never become ready"
            ended, _ = ray.wait([*self._in_flight], num_returns=1, timeout=LOOK_SECONDS)
            for reference in ended:
                self._ended(reference, self._in_flight.pop(reference))
            if not self._in_flight:
                ongoing.renewed()

    def _ended(self, reference: Any, task: Task) -> None:
        import ray

        try:
            answer: Answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _failed(error) from error
        except ray.exceptions.NodeDiedError:
            self._ongoing.died(task, node=True)
        except ray.exceptions.RayError:
            self._ongoing.died(task)
        else:
            if isinstance(answer, Fault):
                raise answer.error()
            assert answer is not None, "stopped, and nobody asked for it"
            self._ongoing.ended(task, answer)

    def stop(self) -> None:
        """Lets what is in flight save a checkpoint, waits a moment, ends it."""
        import ray

        self._order.withdraw()
        with suppress(Exception):
            _, busy = ray.wait([*self._in_flight], num_returns=len(self._in_flight), timeout=STOP_SECONDS)
            for reference in busy:
                ray.cancel(reference, force=True)


def _check_answers(address: str) -> None:
    """Ray itself waits for minutes for one that does not."""
    import grpc

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"{shown(address)} is no address of a Ray cluster: it has the form ray://host:10001 or host:6379."
        )
    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise _unreachable(address, error) from None
    finally:
        channel.close()


def _unreachable(address: str, error: BaseException) -> UserError:
    if address == "auto":
        said = "no Ray runs on this machine: start one with `ray start --head`, or give --cluster local or an address."
    elif address == "local":
        said = f"Ray did not start on this machine: {_line(error)}."
    else:
        why = f" ({_line(error)})" if _line(error) else ""
        said = (
            f"no Ray answers at {shown(address)}{why}: is it running, and is the port right? ray://host:10001 is for "
            "clients, host:6379 for machines of the cluster. One that wants a token needs RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN here too."
        )
    return UserError(said)


def _failed(error: Any) -> Exception:
    """What a task raised that is neither of our two errors."""
    cause = error.cause
    if isinstance(cause, ImportError):
        return UserError(
            f"a node of the cluster cannot import what it needs ({cause}): install supermask on all nodes."
        )
    return cause if isinstance(cause, Exception) else MachineError(_line(error))


def _line(error: BaseException) -> str:
    """What Ray says, without its traceback: the first line; where that only announces another, the last as well."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:1] + (lines[-1:] if len(lines) > 1 and lines[0].endswith(":") else []))
    return printable(said).rstrip(".")
