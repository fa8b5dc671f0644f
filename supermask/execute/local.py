"""The local executor: worker processes of one thread each, from the standard library's pool.

A worker that dies is replaced and its run tried again; Ctrl-C lets workers save a checkpoint and ends them; a worker
whose main process is gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from supermask.errors import MachineError
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Interrupted, Result, Site, Task, worker_at
from supermask.plan import Plan
from supermask.store import Store

TRIES = 3
"""How often a run may be in flight when a worker dies, and an entry be found damaged, before the study is given up."""

STOP_SECONDS = 1.2
"""How long workers have, when they are to stop, to save a checkpoint."""

Listener = Callable[[Schedule, Task, Result], None]


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The study was interrupted: `left` tasks are still to be done. Nothing that was finished is lost."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


def run_plan(
    plan: Plan,
    site: Site,
    workers: int,
    listener: Listener,
    keep: Keep = "all",
    start_method: str = "forkserver",
) -> Schedule:
    """Carries a plan out; returns the schedule at its end. `listener` hears of every task that ends.

    Raises Stopped on Ctrl-C, and UserError or MachineError from a worker; then the other workers save a checkpoint
    and end.
    """
    store = Store(site.store)
    store.sweep()
    study = _Progress(Schedule(plan, store), site, listener, keep)
    study.schedule.drop_surplus(keep)
    try:
        while study.schedule.tasks_left:
            try:
                at_once = min(workers, study.schedule.tasks_left)
                with _pool(at_once, start_method) as pool:
                    study.feed(pool, at_once)
            except BrokenProcessPool:
                study.worker_died()
            if study.outdated:
                study.schedule = Schedule(plan, store, study.schedule.damaged)
                study.outdated = False
    except KeyboardInterrupt:
        raise Stopped(study.schedule.tasks_left) from None
    return study.schedule


class _Progress:
    """A plan being carried out: its schedule, what is in flight, and what went wrong how often."""

    def __init__(self, schedule: Schedule, site: Site, listener: Listener, keep: Keep) -> None:
        self.schedule, self.outdated = schedule, False
        self._site, self._listener, self._keep = site, listener, keep
        self._in_flight: dict[Future[Result], Task] = {}
        self._deaths: Counter[str] = Counter()
        self._lacking: Counter[str] = Counter()

    def feed(self, pool: ProcessPoolExecutor, workers: int) -> None:
        """Keeps the pool busy until nothing is left, or the schedule is outdated. Raises BrokenProcessPool.

        One task a worker is submitted, never more, so that the worker that has just ended a run, and so has its start
        in memory, takes the next level of its chain.
        """
        while True:
            while (task := self._take(workers)) is not None:
                self._submit(pool, task)
            if not self._in_flight:
                assert self.outdated or not self.schedule.tasks_left, "tasks that never become ready"
                return
            ended, _ = wait(self._in_flight, return_when=FIRST_COMPLETED)
            for future in sorted(ended, key=lambda f: f.exception() is not None):
                result = future.result()
                self._ended(self._in_flight.pop(future), result)

    def worker_died(self) -> None:
        """Whatever was in flight is tried again. Raises MachineError for a run at which it happens too often."""
        for task in self._in_flight.values():
            self._deaths[task.run.id] += 1
            if self._deaths[task.run.id] == TRIES:
                raise MachineError(
                    f"a worker process died {TRIES} times while run {task.run.id} (seed {task.run.seed}, level "
                    f"{task.run.level}) was trained, the last time with nothing else in training; is the memory full? "
                    "Finished runs are kept."
                )
            self.schedule.again(task)
        self._in_flight.clear()

    def _take(self, workers: int) -> Task | None:
        """The next task to submit, if there is one for now."""
        if self.outdated or len(self._in_flight) >= workers or any(map(self._alone, self._in_flight.values())):
            return None
        task = self.schedule.next()
        if task is not None and self._alone(task) and self._in_flight:
            self.schedule.again(task)
            return None
        return task

    def _alone(self, task: Task) -> bool:
        """Its last try is made with nothing beside it: so it is known who kills, and there is all the memory."""
        return self._deaths[task.run.id] == TRIES - 1

    def _submit(self, pool: ProcessPoolExecutor, task: Task) -> None:
        try:
            # This may start a worker: whole, or not at all.
            with _ctrl_c_held_back():
                self._in_flight[pool.submit(perform, self._site, task)] = task
        except BrokenProcessPool:
            self.schedule.again(task)
            raise

    def _ended(self, task: Task, result: Result) -> None:
        if result.status == "not_started":
            self.outdated = True
            self.schedule.damaged.append(result.message)
            self._lacking[result.lacking] += 1
            if self._lacking[result.lacking] == TRIES:
                raise MachineError(f"{result.message} This happened {TRIES} times: is the disk of the store failing?")
        else:
            self.schedule.ended(task, result)
            self.schedule.drop_surplus(self._keep, task.run)
        self._listener(self.schedule, task, result)


def perform(site: Site, task: Task) -> Result:
    """A task in a worker process. SIGTERM lets it save a checkpoint first; between tasks it ends the process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        return worker_at(site).perform(task, stop.is_set)
    except Interrupted:
        os._exit(0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if stop.is_set():
            os._exit(0)


@contextmanager
def _pool(workers: int, start_method: str) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, which are gone when it is left; by an exception, within STOP_SECONDS."""
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        _start_server(context)
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_enter)
    try:
        yield pool
        pool.shutdown(wait=True)
    except BaseException:
        with _ctrl_c_held_back():
            _stop(pool, [process for process in multiprocessing.active_children() if process not in others])
        raise


def _start_server(context: BaseContext) -> None:
    """Returns when the server that workers are forked from has imported all it has to; Ctrl-C works meanwhile.

    The server and what it forks inherit that Ctrl-C is held back: it goes to every process, but is the main one's
    business. The resource tracker comes first because its own start would undo that.
    """
    context.set_forkserver_preload(["supermask.execute.preload"])
    resource_tracker.ensure_running()
    with _ctrl_c_held_back():
        forkserver.ensure_running()
    context.Process(target=_nothing, daemon=True).start()  # type: ignore[attr-defined]


def _nothing() -> None:
    """A first process, that does not mind if the main one is gone when it is forked; a worker would say so."""


def _enter() -> None:
    """A worker's first act: from now on it ends with the main process, and Ctrl-C is not its business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None
    threading.Thread(target=_end_with, args=(main,), daemon=True).start()


def _end_with(main: BaseProcess) -> None:
    wait_for([main.sentinel])
    os._exit(1)


def _stop(pool: ProcessPoolExecutor, workers: list[BaseProcess]) -> None:
    """Asks the workers to save and end, waits a moment, ends them."""
    for process in workers:
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)
    patience = time.monotonic() + STOP_SECONDS
    for process in workers:
        process.join(max(0.0, patience - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Ctrl-C takes effect at the end of this, and not at all in processes started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
