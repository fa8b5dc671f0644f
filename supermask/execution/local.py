"""The local executor: worker processes of one thread each, from the standard library's pool.

A worker that dies is replaced and its run tried again; Ctrl-C lets workers save a checkpoint and ends them; a worker
whose main process is gone ends by itself.
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
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType

from supermask.execution.checkpoints import TaskInterrupted
from supermask.execution.coordinator import MAX_WORKER_CRASHES as MAX_WORKER_CRASHES
from supermask.execution.coordinator import STORE_POLL_SECONDS, Assignment, WorkerDied, open_coordinator
from supermask.execution.coordinator import StudyInterrupted as StudyInterrupted
from supermask.execution.coordinator import TaskListener as TaskListener
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Chain, Task, TaskResult, WorkerConfig
from supermask.execution.worker import get_worker
from supermask.networks.sequential import Conv
from supermask.store.replay import run_architecture
from supermask.study.plan import RunGraph

SHUTDOWN_GRACE_SECONDS = 1.2
"""How long workers have, when they are to stop, to save a checkpoint."""


def run_plan(
    plan: RunGraph,
    site: WorkerConfig,
    workers: int,
    listener: TaskListener,
    keep: KeepPolicy = "all",
    start_method: str = "forkserver",
    schedule: Scheduler | None = None,
    starting: Callable[[Task], None] = lambda _: None,
) -> Scheduler:
    """Carries a plan out; returns the schedule at its end. `listener` hears of every task that ends.

    `starting` hears of every task that a worker begins, as far as that is known here: once, before its end is told of;
    again where the worker died.

    `schedule`: the plan's, where it was made already (that reads the facts of every run that is done).
    Raises Stopped on Ctrl-C, and UserError or MachineError from a worker; then the other workers save a checkpoint
    and end.
    """
    with open_coordinator(plan, site, listener, keep, schedule, starting) as ongoing:
        if ongoing.schedule.tasks_left:
            with _worker_factory(start_method, _preload(site, plan)) as start_worker:
                ongoing.run(ProcessPool(site, workers, start_worker))
    return ongoing.schedule


class ProcessPool:
    """A crew of worker processes of this machine.

    Each is a pool of one process: so it is known whose process died, and the others are not disturbed.
    """

    prefers_whole_chains = False

    def __init__(self, site: WorkerConfig, workers: int, start_worker: Callable[[], ProcessPoolExecutor]) -> None:
        self._site, self._workers, self._start_worker = site, workers, start_worker
        self._idle: list[ProcessPoolExecutor] = []
        self._in_flight: dict[Future[list[TaskResult]], tuple[ProcessPoolExecutor, Assignment]] = {}

    def capacity(self) -> int:
        """One portion a worker."""
        return self._workers

    def submit(self, portions: Sequence[Assignment]) -> None:
        """Starts workers where none is idle."""
        for portion in portions:
            while not self._try_submit(portion):
                pass

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        """Of those that are through first."""
        stacked = any(len(portion.tasks) > 1 for _, portion in self._in_flight.values())
        ended, _ = wait(self._in_flight, STORE_POLL_SECONDS if stacked else None, return_when=FIRST_COMPLETED)
        found: list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]] = []
        for future in ended:
            worker, portion = self._in_flight.pop(future)
            try:
                found.append((portion, future.result()))
            except BrokenProcessPool:
                found.append((portion, WorkerDied()))
            else:
                self._idle.append(worker)
        return found

    def _try_submit(self, portion: Assignment) -> bool:
        # The one that was busy last: it has the start of the task's parent in memory.
        worker = self._idle.pop() if self._idle else self._start_worker()
        try:
            # This may start a process: whole, or not at all.
            with _block_sigint(), _hide_main_module():
                self._in_flight[worker.submit(run_chains, self._site, portion.chains)] = (worker, portion)
        except BrokenProcessPool:
            return False  # it died while it had nothing to do, and is not among the idle ones any more
        return True


def run_chains(site: WorkerConfig, lines: Sequence[Chain]) -> list[TaskResult]:
    """Lines of tasks in a worker process. SIGTERM lets it save checkpoints first; between tasks it ends the process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        return get_worker(site).run_chains(lines, stop.is_set)
    except TaskInterrupted:
        os._exit(0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if stop.is_set():
            os._exit(0)


@contextmanager
def _worker_factory(start_method: str, preload: list[str]) -> Iterator[Callable[[], ProcessPoolExecutor]]:
    """A function that starts a worker; they are all gone when this is left, by an exception within STOP_SECONDS."""
    context = multiprocessing.get_context(start_method)
    others = multiprocessing.active_children()
    first = _start_server(context, preload) if start_method == "forkserver" else None
    started: list[ProcessPoolExecutor] = []

    def start_worker() -> ProcessPoolExecutor:
        started.append(ProcessPoolExecutor(1, mp_context=context, initializer=_init_worker))
        return started[-1]

    try:
        yield start_worker
        for worker in started:
            worker.shutdown(wait=True)
        if first is not None:
            first.join()
    except BaseException:
        with _block_sigint():
            _stop([process for process in multiprocessing.active_children() if process not in others])
            for worker in started:
                worker.shutdown(wait=False, cancel_futures=True)
        raise


def _preload(site: WorkerConfig, plan: RunGraph) -> list[str]:
    """Modules that the server of workers imports."""
    modules = ["supermask.execution.preload"]
    if site.engine in ("auto", "sparse") and site.device == "cpu":
        kind = "sparse"
        networks = {(run.network, run.dataset): run for run in plan.runs.values()}
        if any(isinstance(layer, Conv) for run in networks.values() for layer in run_architecture(run)):
            kind = "sparse_convolutions"
        elif any(run.learning is not None for run in plan.runs.values()):
            kind = "sparse_masks"
        modules.append(f"supermask.execution.preload.{kind}")
    elif site.stack != 1:
        modules.append("supermask.execution.preload.stacked")
    return modules


def _start_server(context: BaseContext, preload: list[str]) -> BaseProcess:
    """Returns when the server that workers are forked from has imported all it has to; Ctrl-C works meanwhile.

    What it returns is a first process, which does nothing: it does not mind if the main one is gone when it is forked
    at last, where a worker would print a traceback. The server and all that it forks inherit that Ctrl-C is held back:
    it goes to every process, but is the main one's business. The resource tracker's own start would undo that.
    """
    context.set_forkserver_preload(preload)
    resource_tracker.ensure_running()
    with _block_sigint(), _hide_main_module():
        forkserver.ensure_running()
    first: BaseProcess = context.Process(target=_noop, daemon=True)  # type: ignore[attr-defined]
    with _hide_main_module():
        first.start()
    return first


def _noop() -> None:
    """What the first process does."""


def _init_worker() -> None:
    """A worker's first act: from now on it ends with the main process, and Ctrl-C is not its business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None
    threading.Thread(target=_exit_with_parent, args=(main,), daemon=True).start()


def _exit_with_parent(main: BaseProcess) -> None:
    wait_for([main.sentinel])
    os._exit(1)


def _stop(processes: list[BaseProcess]) -> None:
    """Asks them to save and end, waits a moment, ends them."""
    for process in processes:
        process.terminate()
    patience = time.monotonic() + SHUTDOWN_GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, patience - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _hide_main_module() -> Iterator[None]:
    """Processes started meanwhile do not run the user's program again, as multiprocessing does to have its functions.

    Nothing of it is sent to a worker. So a script, or a cell of a notebook, needs no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _block_sigint() -> Iterator[None]:
    """Ctrl-C takes effect at the end of this, and not at all in processes started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
