"""The local executor: worker processes of one thread each on this machine.

A worker that dies is replaced and its run tried again. On Ctrl-C the workers save checkpoints and end. A worker whose
main process is gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait as wait_for_connections
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType

from supermask.execution.checkpoints import TaskInterrupted
from supermask.execution.coordinator import MAX_WORKER_CRASHES as MAX_WORKER_CRASHES
from supermask.execution.coordinator import (
    SHUTDOWN_GRACE_SECONDS,
    STORE_POLL_SECONDS,
    Assignment,
    ExecutionRequest,
    WorkerAnswer,
    WorkerDied,
    open_coordinator,
)
from supermask.execution.coordinator import StudyInterrupted as StudyInterrupted
from supermask.execution.coordinator import TaskListener as TaskListener
from supermask.execution.resources import select_run_engine
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Chain, TaskResult, WorkerConfig
from supermask.execution.worker import get_worker
from supermask.networks.sequential import Conv
from supermask.store.replay import run_architecture
from supermask.study.plan import RunGraph


def run_plan(request: ExecutionRequest, start_method: str = "forkserver") -> Scheduler:
    """Execute a plan with worker processes; return its scheduler.

    Raises StudyInterrupted on Ctrl-C, and UserError or SystemFailure of a worker; before that the other workers save
    checkpoints and end.
    """
    with open_coordinator(request) as coordinator:
        if coordinator.scheduler.tasks_left:
            preload = _modules_to_preload(request.config, request.plan)
            with _worker_factory(start_method, preload) as start_worker:
                coordinator.run(ProcessPool(request.config, request.workers, start_worker))
    return coordinator.scheduler


class ProcessPool:
    """A pool of worker processes on this machine.

    Each worker is a `ProcessPoolExecutor` of one process. So a death names its assignment, and does not break the other
    workers, as it would in one executor of several processes.
    """

    prefers_whole_chains = False

    def __init__(self, config: WorkerConfig, workers: int, start_worker: Callable[[], ProcessPoolExecutor]) -> None:
        self._config, self._workers, self._start_worker = config, workers, start_worker
        self._idle: list[ProcessPoolExecutor] = []
        self._in_flight: dict[Future[list[TaskResult]], tuple[ProcessPoolExecutor, Assignment]] = {}

    def capacity(self) -> int:
        """Return the number of workers: one assignment each."""
        return self._workers

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send each assignment to an idle worker; start one if there is none."""
        for assignment in assignments:
            while not self._try_submit(assignment):
                pass

    def poll(self) -> list[tuple[Assignment, WorkerAnswer]]:
        """Wait for the first answers and return them."""
        # Single tasks report nothing before they end, so waiting for them needs no timeout to look at the store.
        has_chains = any(len(assignment.tasks) > 1 for _, assignment in self._in_flight.values())
        timeout = STORE_POLL_SECONDS if has_chains else None
        done, _ = wait(self._in_flight, timeout, return_when=FIRST_COMPLETED)
        answers: list[tuple[Assignment, WorkerAnswer]] = []
        for future in done:
            worker, assignment = self._in_flight.pop(future)
            try:
                answers.append((assignment, future.result()))
            except BrokenProcessPool:
                answers.append((assignment, WorkerDied()))
            else:
                self._idle.append(worker)
        return answers

    def _try_submit(self, assignment: Assignment) -> bool:
        # The worker that was busy last: it has the initial state of the task's parent in memory.
        worker = self._idle.pop() if self._idle else self._start_worker()
        try:
            # This may start a process, which Ctrl-C must not interrupt halfway.
            with _block_sigint(), _hide_main_module():
                self._in_flight[worker.submit(run_chains, self._config, assignment.chains)] = (worker, assignment)
        except BrokenProcessPool:
            return False  # It died while idle. It was removed from the idle ones above, so the next try takes another.
        return True


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
def _worker_factory(start_method: str, preload: list[str]) -> Iterator[Callable[[], ProcessPoolExecutor]]:
    """Yield a function that starts a worker. At the end all workers are gone: after an exception within
    SHUTDOWN_GRACE_SECONDS.
    """
    context = multiprocessing.get_context(start_method)
    unrelated = multiprocessing.active_children()
    first = _start_fork_server(context, preload) if start_method == "forkserver" else None
    workers: list[ProcessPoolExecutor] = []

    def start_worker() -> ProcessPoolExecutor:
        workers.append(ProcessPoolExecutor(1, mp_context=context, initializer=_init_worker))
        return workers[-1]

    try:
        yield start_worker
        for worker in workers:
            worker.shutdown(wait=True)
        if first is not None:
            first.join()
    except BaseException:
        with _block_sigint():
            # The user's program may have processes of its own, which are not ours to end.
            _stop_processes([process for process in multiprocessing.active_children() if process not in unrelated])
            for worker in workers:
                worker.shutdown(wait=False, cancel_futures=True)
        raise


def _modules_to_preload(config: WorkerConfig, plan: RunGraph) -> list[str]:
    """Return the modules that the fork server imports, so that forked workers start with them loaded."""
    modules = ["supermask.execution.preload"]
    kinds = {(run.network, run.dataset, run.learning): run for run in plan.runs.values()}
    sparse_runs = [r for r in kinds.values() if select_run_engine(r, config.engine, config.device).engine == "sparse"]
    if sparse_runs:
        kind = "sparse"
        if any(isinstance(layer, Conv) for run in sparse_runs for layer in run_architecture(run)):
            kind = "sparse_convolutions"
        elif any(run.learning is not None for run in sparse_runs):
            kind = "sparse_masks"
        modules.append(f"supermask.execution.preload.{kind}")
    elif config.stack != 1:
        modules.append("supermask.execution.preload.stacked")
    return modules


def _start_fork_server(context: BaseContext, preload: list[str]) -> BaseProcess:
    """Start the server that workers are forked from, and a first process that does nothing. Ctrl-C works meanwhile.

    The server imports for seconds before it forks the first process. That one does nothing, so it is silent if the
    main process is gone by then, where a worker would print a traceback.
    """
    context.set_forkserver_preload(preload)
    # Ctrl-C goes to every process of the terminal's group, but only the main process handles it. The server and its
    # forks inherit the blocked signal. The resource tracker is started first, because its own start unblocks it.
    resource_tracker.ensure_running()
    with _block_sigint(), _hide_main_module():
        forkserver.ensure_running()
    first: BaseProcess = context.Process(target=_noop, daemon=True)  # type: ignore[attr-defined]
    with _hide_main_module():
        first.start()
    return first


def _noop() -> None:
    """Do nothing: the target of the first process."""


def _init_worker() -> None:
    """Initialize a worker process: ignore Ctrl-C, and end when the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None
    threading.Thread(target=_exit_with_parent, args=(main,), daemon=True).start()


def _exit_with_parent(main: BaseProcess) -> None:
    wait_for_connections([main.sentinel])
    os._exit(1)


def _stop_processes(processes: list[BaseProcess]) -> None:
    """Ask processes to save checkpoints and end; kill those that do not within SHUTDOWN_GRACE_SECONDS."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SHUTDOWN_GRACE_SECONDS
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
def _block_sigint() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. Processes that are started within never receive it."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
