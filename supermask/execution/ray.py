"""The Ray executor: runs as tasks of a Ray on this machine, of one that runs already, or of one at an address."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from supermask.core.errors import SystemFailure, UserError, quote, sanitize
from supermask.execution.coordinator import (
    Assignment,
    ExecutionRequest,
    WorkerAnswer,
    WorkerDied,
    open_coordinator,
    shutdown_grace_seconds,
)
from supermask.execution.remote import RemoteResult, RemoteSession, remote_session, run_remote_job
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig, WorkerError

CONNECT_SECONDS = 3.0
"""Seconds that an address has to answer."""

QUEUED_AHEAD = 2
"""Tasks that wait in the cluster: no core waits for this process, and an autoscaler sees that there is work."""

GPU_FRACTION_PER_STACK = 0.5
"""Share of a GPU per stack: one stack trains while another is scored and committed."""

POLL_SECONDS = 5.0
"""Seconds between two checks of the cluster's size, and of the store for new results."""

MAX_RAY_FOLDER = 30
"""Longest name of the temporary folder, in bytes, under which the paths of Ray's sockets stay within 107."""

OBJECT_STORE_BYTES = 100_000_000
"""Memory that a Ray of our own reserves for data between tasks. Ours exchange next to nothing."""

CLIENT_ATTEMPTS = 3
"""Attempts to connect to a client port whose server dies."""

CLIENT_SERVER_DIED = "Starting Ray client server failed"

RAY_QUIET_ENV = {
    # No usage statistics are sent.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tasks without a GPU see none. That is Ray's default as well, but without the variable it prints a warning.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(address: str, workers: int) -> Iterator[int]:
    """Connect to a Ray and yield its number of cores.

    `address`: `local` (a new Ray of this machine with `workers` cores), `auto`, `ray://host:port` or `host:port`.
    Raises UserError if Ray is not installed or does not answer.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in RAY_QUIET_ENV.items()})
    try:
        import ray
    except ImportError:
        raise UserError("--cluster with Ray needs ray, which is not installed: pip install 'supermask[ray]'") from None
    # The loss of a node is reported by its tasks, so Ray's own logs are not needed. No setting stops Ray from printing
    # the log of a dying node to standard output; hence the replaced function.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    with suppress(AttributeError):
        vars(ray._private.worker)["print_to_stdstream"] = lambda *_, **__: None
    quiet: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False, "configure_logging": False}
    new_ray = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if address not in ("local", "auto"):
        _check_reachable(address)
    elif address == "local" and len(os.fsencode(tempfile.gettempdir())) > MAX_RAY_FOLDER:
        os.environ.setdefault("RAY_TMPDIR", "/tmp")  # noqa: S108 (Ray makes a folder of its own in it)
    with _exit_on_sigint():
        _connect(address, **quiet, **(new_ray if address == "local" else {}))
    try:
        yield int(ray.cluster_resources().get("CPU", 0))
    finally:
        ray.shutdown()


def _connect(address: str, **options: Any) -> None:
    """Call `ray.init`. Raises UserError if no Ray answers."""
    import ray

    for attempt in range(CLIENT_ATTEMPTS):
        try:
            ray.init(address=address, **options)
            return
        except (OSError, RuntimeError, ValueError, SystemExit) as error:
            # The process behind a client port may die when Ray forks it: ray-project/ray, issue 63202.
            if CLIENT_SERVER_DIED not in str(error) or attempt == CLIENT_ATTEMPTS - 1:
                raise _unreachable(address, error) from None


@contextmanager
def _exit_on_sigint() -> Iterator[None]:
    """Let Ctrl-C end the process at once.

    `ray.init` may wait forever in C code, which Python's own signal handler does not interrupt. No task has started
    yet, so nothing is lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def run_plan(request: ExecutionRequest, growing: bool = False) -> Scheduler:
    """Execute a plan on the Ray of the current `ray_session`; like `local.run_plan`.

    `growing`: use all cores (or GPUs) that the cluster has at the moment, instead of `request.workers`.
    """
    with open_coordinator(request) as coordinator:
        if coordinator.scheduler.tasks_left:
            with remote_session(request.config) as session:
                pool = RayPool(session, request.config, None if growing else request.workers)
                try:
                    coordinator.run(pool)
                except ConnectionError as error:
                    raise SystemFailure(
                        f"the connection to the Ray cluster was lost: {_summary_line(error)}. The same command resumes "
                        "the study. Finished runs are kept."
                    ) from None
                finally:
                    pool.stop()
    return coordinator.scheduler


class RayPool:
    """A worker pool of tasks in a Ray cluster."""

    prefers_whole_chains = False

    def __init__(self, session: RemoteSession, config: WorkerConfig, workers: int | None) -> None:
        """`workers`: assignments at once; None: as many as the cluster has room for, however its size changes."""
        import ray

        may_stack = config.stack != 1
        self._session, self._workers, self._grace_seconds = session, workers, shutdown_grace_seconds(config)
        self._resource, self._share_per_task = (
            ("CPU", 1.0) if config.device == "cpu" else ("GPU", GPU_FRACTION_PER_STACK if may_stack else 1.0)
        )
        gpus = 0.0 if self._resource == "CPU" else self._share_per_task
        # No retries by Ray: it knows neither of checkpoints nor of runs that kill their worker each time.
        self._remote_function = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_remote_job)
        self._ahead = 0 if may_stack else QUEUED_AHEAD
        self._in_flight: dict[Any, Assignment] = {}
        self._capacity, self._last_check = 0, -POLL_SECONDS
        if self._resource not in ray.cluster_resources() and self._resource == "GPU":
            raise UserError("no node of this Ray cluster has a GPU: leave out --device, or add one.")

    def capacity(self) -> int:
        """Return the tasks that the cluster can run at once, plus a few that wait."""
        import ray

        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._last_check >= POLL_SECONDS:
            available = ray.cluster_resources().get(self._resource, 0)
            # At least one, even without any node: it waits for the next, and makes an autoscaler start one.
            self._capacity = max(1, int(available / self._share_per_task) + self._ahead)
            self._last_check = time.monotonic()
        return self._capacity

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Start one Ray task per assignment."""
        for assignment in assignments:
            self._in_flight[self._remote_function.remote(self._session.job(assignment.chains))] = assignment

    def poll(self) -> list[tuple[Assignment, WorkerAnswer]]:
        """Wait at most POLL_SECONDS for the first answer."""
        import ray

        done, _ = ray.wait([*self._in_flight], num_returns=1, timeout=POLL_SECONDS)
        return [(self._in_flight.pop(reference), self._answer(reference)) for reference in done]

    def _answer(self, reference: Any) -> WorkerAnswer:
        import ray

        try:
            answer: RemoteResult = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _task_exception(error) from error
        except ray.exceptions.NodeDiedError:
            return WorkerDied(node_lost=True)
        except ray.exceptions.RayError:
            return WorkerDied()
        if isinstance(answer, WorkerError):
            raise answer.error()
        # None: a fault of the shared file system looked like a cancelled session. No results; the tasks are sent again.
        return answer or ()

    def stop(self) -> None:
        """Let the tasks in flight save checkpoints; kill those that do not within `shutdown_grace_seconds`.

        At the end of a plan there may be some too: tasks whose runs another process has finished meanwhile.
        """
        import ray

        self._session.cancel()
        if not self._in_flight:
            return
        # The connection may be lost; then there is nothing more to stop.
        with suppress(Exception):
            references = [*self._in_flight]
            _, busy = ray.wait(references, num_returns=len(references), timeout=self._grace_seconds)
            for reference in busy:
                ray.cancel(reference, force=True)


def _check_reachable(address: str) -> None:
    """Raise UserError if nothing answers at the address. Ray itself would wait for minutes."""
    import grpc

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(
            f"{quote(address)} is not an address of a Ray cluster: the form is ray://host:10001 or host:6379."
        )
    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
    except grpc.FutureTimeoutError as error:
        raise _unreachable(address, error) from None
    finally:
        channel.close()


def _unreachable(address: str, error: BaseException) -> UserError:
    if address == "auto":
        message = (
            "no Ray runs on this machine: start one with `ray start --head`, or give --cluster local or an address."
        )
    elif address == "local":
        message = f"Ray did not start on this machine: {_summary_line(error)}."
    else:
        reason = f" ({_summary_line(error)})" if _summary_line(error) else ""
        message = (
            f"no Ray answers at {quote(address)}{reason}: is it running, and is the port right? ray://host:10001 is "
            "for clients, host:6379 for machines of the cluster. One that wants a token needs RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or the file ~/.ray/auth_token) here too."
        )
    return UserError(message)


def _task_exception(error: Any) -> Exception:
    """Return the exception that a task raised, other than UserError and SystemFailure, which tasks return as data."""
    cause = error.cause
    if isinstance(cause, ImportError):
        return UserError(
            f"a node of the cluster cannot import what it needs ({cause}): install supermask on all nodes."
        )
    return cause if isinstance(cause, Exception) else SystemFailure(_summary_line(error))


def _summary_line(error: BaseException) -> str:
    """Return the message of an error of Ray without its traceback.

    That is the first line, and the last line too if the first ends with a colon.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = " ".join(lines[:1] + (lines[-1:] if len(lines) > 1 and lines[0].endswith(":") else []))
    return sanitize(summary).rstrip(".")
