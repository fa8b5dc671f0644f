"""Runs as tasks of a Ray cluster: this machine's own, one that runs, or one at an address."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from supermask.core.errors import SystemFailure, UserError, quote, sanitize
from supermask.execution.coordinator import Assignment, TaskListener, WorkerDied, open_coordinator
from supermask.execution.remote import RemoteError, RemoteResult, RemoteSession, remote_session, run_remote_job
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.study.plan import RunGraph

STOP_SECONDS = 1.2
"""How long tasks have, when they are to stop, to save a checkpoint."""

CONNECT_TIMEOUT = 3.0
"""How long an address has to answer."""

QUEUED_AHEAD = 2
"""Tasks that wait in the cluster, so that no core waits for this process; they also tell an autoscaler to go on."""

GPU_FRACTION_PER_STACK = 0.5
"""Of a GPU, for a stack: one is trained while another is scored and committed."""

LOOK_SECONDS = 5.0
"""Between two looks at how many cores the cluster has, and at what is new in the store."""

OBJECT_STORE = 100_000_000
"""Bytes that a Ray of our own sets aside for what tasks pass on: they pass on next to nothing."""

RAY_QUIET_ENV = {
    # Nothing is reported to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A task without a GPU does not see one; said here, or Ray warns that it will be so.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(address: str, workers: int) -> Iterator[int]:
    """Ray at `local` (this machine, so many cores), `auto`, `ray://host:port` or `host:port`; gives its cores.

    Raises UserError where Ray is not installed, and where nothing answers.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_QUIET_ENV.items()})
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
        _check_reachable(address)
    try:
        with _exit_on_sigint():
            ray.init(address=address, **quiet, **(own if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        raise _unreachable(address, error) from None
    try:
        yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()


@contextmanager
def _exit_on_sigint() -> Iterator[None]:
    """Where a Ray that is broken never answers, Python would not get to hear of Ctrl-C. Nothing has begun that could be
    lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_plan(
    plan: RunGraph,
    site: WorkerConfig,
    workers: int,
    listener: TaskListener,
    keep: KeepPolicy = "all",
    schedule: Scheduler | None = None,
    starting: Callable[[Task], None] = lambda _: None,
    growing: bool = False,
) -> Scheduler:
    """Like `local.run_plan`, on the Ray that is `connected`.

    `growing`: not `workers` runs at once, but as many as the cluster has cores (or GPUs) for at the moment.
    """
    with open_coordinator(plan, site, listener, keep, schedule, starting) as ongoing:
        if ongoing.schedule.tasks_left:
            with remote_session(site) as order:
                tasks = RayPool(order, site, None if growing else workers)
                try:
                    ongoing.run(tasks)
                except ConnectionError as error:
                    raise SystemFailure(
                        f"the connection to the Ray cluster was lost: {_line(error)}. The same command goes on "
                        "from here. Finished runs are kept."
                    ) from None
                finally:
                    tasks.stop()
    return ongoing.schedule


class RayPool:
    """A crew of tasks in a Ray cluster."""

    prefers_whole_chains = False

    def __init__(self, order: RemoteSession, site: WorkerConfig, workers: int | None) -> None:
        """`workers`: None for as many as the cluster has room for, however large it happens to be."""
        import ray

        stacks = site.stack != 1
        self._order, self._workers = order, workers
        self._resource, self._each = (
            ("CPU", 1.0) if site.device == "cpu" else ("GPU", GPU_FRACTION_PER_STACK if stacks else 1.0)
        )
        gpus = 0.0 if self._resource == "CPU" else self._each
        # Ray does not try again: it would not know of checkpoints, nor which run kills its worker each time.
        self._carry = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_remote_job)
        self._ahead = 0 if stacks else QUEUED_AHEAD
        self._in_flight: dict[Any, Assignment] = {}
        self._room, self._looked = 0, -LOOK_SECONDS
        if self._resource not in ray.cluster_resources() and self._resource == "GPU":
            raise UserError("no node of this Ray cluster has a GPU: leave out --device, or add one.")

    def capacity(self) -> int:
        """What the cluster has, and a few that wait."""
        import ray

        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            there = ray.cluster_resources().get(self._resource, 0)
            # One, where all nodes are gone: it waits for the next, and an autoscaler brings one for it.
            self._room, self._looked = max(1, int(there / self._each) + self._ahead), time.monotonic()
        return self._room

    def submit(self, portions: Sequence[Assignment]) -> None:
        """A task each."""
        for portion in portions:
            self._in_flight[self._carry.remote(self._order.job(portion.chains))] = portion

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        """Of those that are through first, within LOOK_SECONDS."""
        import ray

        ended, _ = ray.wait([*self._in_flight], num_returns=1, timeout=LOOK_SECONDS)
        return [(self._in_flight.pop(reference), self._answer(reference)) for reference in ended]

    def _answer(self, reference: Any) -> Sequence[TaskResult] | WorkerDied:
        import ray

        try:
            answer: RemoteResult = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _failed(error) from error
        except ray.exceptions.NodeDiedError:
            return WorkerDied(node_lost=True)
        except ray.exceptions.RayError:
            return WorkerDied()
        if isinstance(answer, RemoteError):
            raise answer.error()
        return answer or ()

    def stop(self) -> None:
        """Lets what is in flight save a checkpoint, waits a moment, ends it.

        At the end of a plan too something may be: what another process has finished meanwhile.
        """
        import ray

        self._order.cancel()
        if not self._in_flight:
            return
        with suppress(Exception):
            _, busy = ray.wait([*self._in_flight], num_returns=len(self._in_flight), timeout=STOP_SECONDS)
            for reference in busy:
                ray.cancel(reference, force=True)


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes for one that does not."""
    import grpc

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"{quote(address)} is no address of a Ray cluster: it has the form ray://host:10001 or host:6379."
        )
    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_TIMEOUT)
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
            f"no Ray answers at {quote(address)}{why}: is it running, and is the port right? ray://host:10001 is for "
            "clients, host:6379 for machines of the cluster. One that wants a token needs RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or the file ~/.ray/auth_token) here too."
        )
    return UserError(said)


def _failed(error: Any) -> Exception:
    """What a task raised that is neither of our two errors."""
    cause = error.cause
    if isinstance(cause, ImportError):
        return UserError(
            f"a node of the cluster cannot import what it needs ({cause}): install supermask on all nodes."
        )
    return cause if isinstance(cause, Exception) else SystemFailure(_line(error))


def _line(error: BaseException) -> str:
    """What Ray says, without its traceback: the first line; where that only announces another, the last as well."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:1] + (lines[-1:] if len(lines) > 1 and lines[0].endswith(":") else []))
    return sanitize(said).rstrip(".")
