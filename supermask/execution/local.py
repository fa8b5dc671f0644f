"""The local executor: worker processes of one thread each on this machine.

A worker that dies is replaced and its run tried again. On Ctrl-C, SIGTERM or SIGHUP the workers save checkpoints and
end. If the main process is killed, the kernel kills its workers.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connections
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

from supermask.core.environment import needs_current_folder
from supermask.core.errors import SystemFailure, UserError
from supermask.execution.checkpoints import TaskInterrupted
from supermask.execution.compilation import kernel_kind
from supermask.execution.coordinator import MAX_WORKER_CRASHES as MAX_WORKER_CRASHES
from supermask.execution.coordinator import (
    STORE_POLL_SECONDS,
    Assignment,
    ExecutionRequest,
    WorkerAnswer,
    WorkerDied,
    open_coordinator,
    shutdown_grace_seconds,
)
from supermask.execution.coordinator import StudyInterrupted as StudyInterrupted
from supermask.execution.coordinator import TaskListener as TaskListener
from supermask.execution.orphans import kill_with_parent
from supermask.execution.scheduler import Scheduler
from supermask.execution.signals import block_stop_signals, reset_stop_signals
from supermask.execution.tasks import Chain, TaskResult, WorkerConfig, WorkerError
from supermask.execution.worker import get_worker
from supermask.study.plan import RunGraph

MAX_SOCKET_FOLDER = 60
"""Longest name of a folder for multiprocessing's sockets, in bytes: the kernel allows 107 for a socket's path."""

START_DELAY_SECONDS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds before each attempt to start a process. A killed fork server refuses connections until it is gone entirely,
which takes a moment, and only then is it replaced."""

SHORT_TEMP_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (only folders of their own are made in them)
"""Folders to try for sockets if TMPDIR is too long."""


def run_plan(request: ExecutionRequest, start_method: str = "forkserver") -> Scheduler:
    """Execute a plan with worker processes; return its scheduler.

    Raises StudyInterrupted on Ctrl-C, SIGTERM and SIGHUP, and UserError or SystemFailure of a worker; before that the
    other workers save checkpoints and end.
    """
    with open_coordinator(request) as coordinator:
        if coordinator.scheduler.tasks_left:
            preload = _modules_to_preload(request.config, request.plan)
            grace = shutdown_grace_seconds(request.config)
            with _worker_factory(start_method, preload, grace) as start_worker:
                coordinator.run(ProcessPool(request.config, request.workers, start_worker))
    return coordinator.scheduler


class WorkerProcess:
    """A worker process and the connection to it: assignments go in, answers come out.

    A pipe and nothing else. `ProcessPoolExecutor` would add threads, semaphores and their resource tracker, each of
    which prints tracebacks of its own when one of its processes is killed.
    """

    def __init__(self, context: BaseContext) -> None:
        """Raises OSError and EOFError if the fork server was killed meanwhile."""
        self.connection, other_end = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve_assignments, args=(other_end,))  # type: ignore[attr-defined]
        try:
            # A start that is interrupted halfway would leave a process that nobody knows of.
            with block_stop_signals(), _hide_main_module(), _hide_tracker_warning():
                self.process.start()
        finally:
            # The worker has the only other copy: the connection then ends with the worker.
            other_end.close()

    def close(self) -> None:
        """Let an idle worker end, and wait for it; or wait for a dead one."""
        # Said, and not only closed: workers that were forked later hold copies of our end.
        with suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        self.process.join()


class ProcessPool:
    """A pool of worker processes on this machine."""

    prefers_whole_chains = False

    def __init__(self, config: WorkerConfig, workers: int, start_worker: Callable[[], WorkerProcess]) -> None:
        self._config, self._workers, self._start_worker = config, workers, start_worker
        self._idle: dict[bool, list[WorkerProcess]] = {False: [], True: []}
        """`Assignment.evaluates_only` -> workers without an assignment."""
        self._in_flight: dict[Connection, tuple[WorkerProcess, Assignment]] = {}

    def capacity(self) -> int:
        """Return the number of workers, without those that only evaluate: one assignment each."""
        return self._workers

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send each assignment to an idle worker; start one if there is none. Raises SystemFailure."""
        for assignment in assignments:
            while not self._try_submit(assignment):
                pass

    def poll(self) -> list[tuple[Assignment, WorkerAnswer]]:
        """Wait at most STORE_POLL_SECONDS for the first answers and return them. Raises exceptions of workers."""
        answers: list[tuple[Assignment, WorkerAnswer]] = []
        # A connection is ready if it has an answer, or if the worker is gone.
        for connection in wait_for_connections(list(self._in_flight), STORE_POLL_SECONDS):
            assert isinstance(connection, Connection)
            worker, assignment = self._in_flight.pop(connection)
            try:
                answer = connection.recv()
            except (EOFError, OSError):
                worker.close()
                answers.append((assignment, WorkerDied()))
                continue
            if isinstance(answer, WorkerError):
                raise answer.error()
            answers.append((assignment, answer))
            self._idle[assignment.evaluates_only].append(worker)
        return answers

    def _try_submit(self, assignment: Assignment) -> bool:
        # The worker that was busy last: it has the initial state of the task's parent in memory.
        idle = self._idle[assignment.evaluates_only]
        worker = idle.pop() if idle else self._start_worker()
        config = self._config.for_evaluation() if assignment.evaluates_only else self._config
        try:
            worker.connection.send((config, assignment.chains))
        except OSError:
            worker.close()
            return False  # It died while idle. It was removed from the idle ones above, so the next try takes another.
        self._in_flight[worker.connection] = (worker, assignment)
        return True


def serve_assignments(connection: Connection) -> None:
    """Train the assignments that arrive, until the connection is closed: the main function of a worker process.

    An answer is the results, or what went wrong.
    """
    _init_worker()
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        if request is None:
            return
        config, chains = request
        answer: list[TaskResult] | WorkerError
        try:
            answer = run_chains(config, chains)
        except Exception as error:
            answer = _describe_error(error)
        # An OSError means that the main process is gone; what was finished is in the store.
        with suppress(OSError):
            connection.send(answer)


def _describe_error(error: Exception) -> WorkerError:
    if isinstance(error, UserError | SystemFailure):
        return WorkerError(str(error), isinstance(error, UserError))
    if isinstance(error, OSError):
        file = f" ({error.filename})" if error.filename else ""
        return WorkerError(f"system error: {error.strerror or error}{file}.", is_user_error=False)
    text = "".join(traceback.format_exception_only(error)).strip()
    return WorkerError(text, is_user_error=False, traceback="".join(traceback.format_exception(error)))


def run_chains(config: WorkerConfig, chains: Sequence[Chain]) -> list[TaskResult]:
    """Train chains in a worker process. On SIGTERM, save checkpoints and end the process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        return get_worker(config).run_chains(chains, stop.is_set)
    except TaskInterrupted:
        # The executor must not report results any more: the main process has stopped listening.
        os._exit(0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # SIGTERM after the last evaluation: everything is committed, and the process still has to end.
        if stop.is_set():
            os._exit(0)


@contextmanager
def _worker_factory(
    start_method: str, preload: list[str], grace_seconds: float
) -> Iterator[Callable[[], WorkerProcess]]:
    """Yield a function that starts a worker. At the end all workers are gone: after an exception within
    `grace_seconds`.
    """
    context = multiprocessing.get_context(start_method)
    first = _start_fork_server(context, preload) if start_method == "forkserver" else None
    workers: list[WorkerProcess] = []

    def start_worker() -> WorkerProcess:
        # The first attempt may find that the fork server was killed; a later one starts another.
        for delay in START_DELAY_SECONDS:
            time.sleep(delay)
            try:
                workers.append(WorkerProcess(context))
            except (EOFError, OSError) as error:
                reason = error
            else:
                return workers[-1]
        raise _start_failure(reason)

    try:
        yield start_worker
        for worker in workers:
            worker.close()
        if first is not None:
            first.join()
    except BaseException:
        with block_stop_signals():
            processes = [worker.process for worker in workers] + ([first] if first is not None else [])
            _stop_processes(processes, grace_seconds)
        raise


def _modules_to_preload(config: WorkerConfig, plan: RunGraph) -> list[str]:
    """Return the modules that the fork server imports, so that forked workers start with them loaded."""
    names = ["first", "base"]
    if kind := kernel_kind(plan.runs.values(), config.engine, config.device):
        names.append(kind)
    elif config.stack != 1:
        names.append("stacked")
    return [f"supermask.execution.preload.{name}" for name in [*names, "last"]]


def _start_fork_server(context: BaseContext, preload: list[str]) -> BaseProcess:
    """Start the server that workers are forked from, and a first process that does nothing. Ctrl-C works meanwhile.

    The server imports for seconds before it forks the first process. That one does nothing, so it is silent if the
    main process is gone by then, where a worker would print a traceback. Raises SystemFailure.
    """
    context.set_forkserver_preload(preload)
    first: BaseProcess = context.Process(target=_noop, daemon=True)  # type: ignore[attr-defined]
    for delay in START_DELAY_SECONDS:
        time.sleep(delay)
        try:
            with _short_socket_folder(), _safe_import_path(), _hide_main_module(), _hide_tracker_warning():
                # The resource tracker is started first, because its own start unblocks signals.
                resource_tracker.ensure_running()
                # Signals to the process group are the main process's business. The server and its forks inherit that
                # they are blocked.
                with block_stop_signals():
                    forkserver.ensure_running()
                first.start()
        except (EOFError, OSError) as error:
            reason = error
            first = context.Process(target=_noop, daemon=True)  # type: ignore[attr-defined]
        else:
            return first
    raise _start_failure(reason)


def _start_failure(reason: Exception) -> SystemFailure:
    if "AF_UNIX path too long" in str(reason):
        return SystemFailure(
            f"worker processes cannot be started: the temporary folder {tempfile.gettempdir()} has too long a name for "
            "sockets. Set TMPDIR to a folder with a shorter name, for example TMPDIR=/tmp."
        )
    if isinstance(reason, OSError) and reason.errno in (errno.EMFILE, errno.ENFILE):
        return SystemFailure(
            "worker processes cannot be started: too many files are open. Use fewer (--workers), or raise the limit "
            "(ulimit -n). Finished runs are kept; the same command resumes."
        )
    return SystemFailure(
        f"worker processes cannot be started ({type(reason).__name__}: {reason}): the server that they are forked from "
        "is killed again and again. Is the memory full? Finished runs are kept; the same command resumes."
    )


@contextmanager
def _short_socket_folder() -> Iterator[None]:
    """Let multiprocessing make its folder for sockets in a folder with a short name, if TMPDIR is too long for them.

    It makes one folder per process, at the first need. Python's own temporary files stay in TMPDIR.
    """
    previous = tempfile.tempdir
    short = [folder for folder in SHORT_TEMP_FOLDERS if os.access(folder, os.W_OK | os.X_OK) and Path(folder).is_dir()]
    try:
        if len(os.fsencode(tempfile.gettempdir())) > MAX_SOCKET_FOLDER and short:
            tempfile.tempdir = short[0]
        util.get_temp_dir()
        yield
    finally:
        tempfile.tempdir = previous


@contextmanager
def _safe_import_path() -> Iterator[None]:
    """Keep processes that are started within from importing files of the current folder in place of any module.

    Workers get this process's import path later, after the fork.
    """
    name = "PYTHONSAFEPATH"
    previous = os.environ.get(name)
    if not needs_current_folder():
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if previous is not None:
            os.environ[name] = previous


def _noop() -> None:
    """Do nothing: the target of the first process."""


def _init_worker() -> None:
    """Initialize a worker process: handle SIGTERM only, and end when the main process ends."""
    kill_with_parent()
    # SIGTERM is how the main process, or a signal to the whole group, stops a worker.
    reset_stop_signals()
    main = multiprocessing.parent_process()
    assert main is not None
    # For systems on which the kernel does not do it.
    threading.Thread(target=_exit_with_parent, args=(main,), daemon=True).start()


def _exit_with_parent(main: BaseProcess) -> None:
    wait_for_connections([main.sentinel])
    os._exit(1)


def _stop_processes(processes: list[BaseProcess], grace_seconds: float) -> None:
    """Ask processes to save checkpoints and end; kill those that do not within `grace_seconds`."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace_seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _hide_main_module() -> Iterator[None]:
    """Keep processes that are started within from running the user's main module again, as multiprocessing does.

    Workers need nothing of it. So a script, or a notebook cell, needs no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _hide_tracker_warning() -> Iterator[None]:
    """Hide that multiprocessing replaces a killed resource tracker: nothing of ours is tracked by it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resource_tracker: process died unexpectedly")
        yield
