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
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType

from supermask.execute.checkpoints import Interrupted
from supermask.execute.ongoing import TRIES as TRIES
from supermask.execute.ongoing import Listener as Listener
from supermask.execute.ongoing import Ongoing
from supermask.execute.ongoing import Stopped as Stopped
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Result, Site, Task, worker_at
from supermask.lineage import layers_of
from supermask.networks import Conv
from supermask.plan import Graph
from supermask.store import Store

STOP_SECONDS = 1.2
"""How long workers have, when they are to stop, to save a checkpoint."""


def run_plan(
    plan: Graph,
    site: Site,
    workers: int,
    listener: Listener,
    keep: Keep = "all",
    start_method: str = "forkserver",
    schedule: Schedule | None = None,
    starting: Callable[[Task], None] = lambda _: None,
) -> Schedule:
    """Carries a plan out; returns the schedule at its end. `listener` hears of every task that ends.

    `starting` hears of every task that is given to a worker.

    `schedule`: the plan's, where it was made already (that reads the facts of every run that is done).
    Raises Stopped on Ctrl-C, and UserError or MachineError from a worker; then the other workers save a checkpoint
    and end.
    """
    store = Store(site.store)
    store.sweep()
    ongoing = Ongoing(schedule or Schedule(plan, store), listener, keep)
    ongoing.schedule.drop_surplus(keep)
    try:
        if ongoing.schedule.tasks_left:
            with _workers(start_method, _preload(site, plan)) as start_worker:
                _Pools(ongoing, site, starting).carry_out(workers, start_worker)
    except KeyboardInterrupt:
        raise Stopped(ongoing.schedule.tasks_left) from None
    return ongoing.schedule


class _Pools:
    """The workers of a plan being carried out, and what is in flight.

    A worker is a pool of one process: so it is known whose process died, and the others are not disturbed.
    """

    def __init__(self, ongoing: Ongoing, site: Site, starting: Callable[[Task], None]) -> None:
        self._ongoing, self._site, self._starting = ongoing, site, starting
        self._idle: list[ProcessPoolExecutor] = []
        self._in_flight: dict[Future[list[Result]], tuple[ProcessPoolExecutor, list[Task]]] = {}

    def carry_out(self, workers: int, start_worker: Callable[[], ProcessPoolExecutor]) -> None:
        """Keeps so many workers busy until nothing is left to do."""
        ongoing = self._ongoing
        while ongoing.schedule.tasks_left:
            while len(self._in_flight) < workers and (tasks := self._next(workers)):
                # The one that was busy last: it has the start of the task's parent in memory.
                self._submit(self._idle.pop() if self._idle else start_worker(), tasks)
            assert self._in_flight or ongoing.outdated, "tasks that never become ready"
            ended, _ = wait(self._in_flight, return_when=FIRST_COMPLETED)
            for future in ended:
                worker, tasks = self._in_flight.pop(future)
                try:
                    results = future.result()
                except BrokenProcessPool:
                    for task in tasks:
                        ongoing.died(task, together=len(tasks))
                else:
                    self._idle.append(worker)
                    for task, result in zip(tasks, results, strict=True):
                        ongoing.ended(task, result)
            if not self._in_flight:
                ongoing.renewed()

    def _next(self, workers: int) -> list[Task]:
        """What one worker is given: a task, or a stack of them that leaves the other idle workers theirs."""
        share = -(-self._ongoing.schedule.ready // (workers - len(self._in_flight)))
        return self._ongoing.next_alike(max(1, min(self._site.stack, share)))

    def _submit(self, worker: ProcessPoolExecutor, tasks: list[Task]) -> None:
        try:
            # This may start a process: whole, or not at all.
            with _ctrl_c_held_back(), _main_left_alone():
                self._in_flight[worker.submit(perform, self._site, tasks)] = (worker, tasks)
            for task in tasks:
                self._starting(task)
        except BrokenProcessPool:
            # It died while it had nothing to do; it is not among the idle ones any more.
            for task in tasks:
                self._ongoing.schedule.again(task)


def perform(site: Site, tasks: list[Task]) -> list[Result]:
    """Tasks in a worker process, together if they are several.

    SIGTERM lets it save a checkpoint first; between tasks it ends the process.
    """
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        if len(tasks) == 1:
            return [worker_at(site).perform(tasks[0], stop.is_set)]
        return worker_at(site).perform_stack(tasks, stop.is_set)
    except Interrupted:
        os._exit(0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if stop.is_set():
            os._exit(0)


@contextmanager
def _workers(start_method: str, preload: list[str]) -> Iterator[Callable[[], ProcessPoolExecutor]]:
    """A function that starts a worker; they are all gone when this is left, by an exception within STOP_SECONDS."""
    context = multiprocessing.get_context(start_method)
    others = multiprocessing.active_children()
    first = _start_server(context, preload) if start_method == "forkserver" else None
    started: list[ProcessPoolExecutor] = []

    def start_worker() -> ProcessPoolExecutor:
        started.append(ProcessPoolExecutor(1, mp_context=context, initializer=_enter))
        return started[-1]

    try:
        yield start_worker
        for worker in started:
            worker.shutdown(wait=True)
        if first is not None:
            first.join()
    except BaseException:
        with _ctrl_c_held_back():
            _stop([process for process in multiprocessing.active_children() if process not in others])
            for worker in started:
                worker.shutdown(wait=False, cancel_futures=True)
        raise


def _preload(site: Site, plan: Graph) -> list[str]:
    """Modules that the server of workers imports."""
    modules = ["supermask.execute.preload"]
    if site.engine in ("auto", "sparse") and site.device == "cpu":
        kind = "sparse"
        networks = {(run.network, run.dataset): run for run in plan.runs.values()}
        if any(isinstance(layer, Conv) for run in networks.values() for layer in layers_of(run)):
            kind = "convolutions"
        elif any(run.learning is not None for run in plan.runs.values()):
            kind = "masks"
        modules.append(f"supermask.execute.preload_{kind}")
    elif site.stack > 1:
        modules.append("supermask.execute.preload_stacked")
    return modules


def _start_server(context: BaseContext, preload: list[str]) -> BaseProcess:
    """Returns when the server that workers are forked from has imported all it has to; Ctrl-C works meanwhile.

    What it returns is a first process, which does nothing: it does not mind if the main one is gone when it is forked
    at last, where a worker would print a traceback. The server and all that it forks inherit that Ctrl-C is held back:
    it goes to every process, but is the main one's business. The resource tracker's own start would undo that.
    """
    context.set_forkserver_preload(preload)
    resource_tracker.ensure_running()
    with _ctrl_c_held_back(), _main_left_alone():
        forkserver.ensure_running()
    first: BaseProcess = context.Process(target=_nothing, daemon=True)  # type: ignore[attr-defined]
    with _main_left_alone():
        first.start()
    return first


def _nothing() -> None:
    """What the first process does."""


def _enter() -> None:
    """A worker's first act: from now on it ends with the main process, and Ctrl-C is not its business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None
    threading.Thread(target=_end_with, args=(main,), daemon=True).start()


def _end_with(main: BaseProcess) -> None:
    wait_for([main.sentinel])
    os._exit(1)


def _stop(processes: list[BaseProcess]) -> None:
    """Asks them to save and end, waits a moment, ends them."""
    for process in processes:
        process.terminate()
    patience = time.monotonic() + STOP_SECONDS
    for process in processes:
        process.join(max(0.0, patience - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _main_left_alone() -> Iterator[None]:
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
def _ctrl_c_held_back() -> Iterator[None]:
    """Ctrl-C takes effect at the end of this, and not at all in processes started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
