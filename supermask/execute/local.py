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
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for

from supermask.errors import MachineError
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Result, Site, Task, worker_at
from supermask.plan import Plan
from supermask.store import Store

TRIES = 3
"""How often a run may be in flight when a worker dies before it is given up."""

STOP_SECONDS = 1.2
"""How long workers have, after Ctrl-C, to save a checkpoint."""

Listener = Callable[[Schedule, Task, Result], None]


@dataclass(frozen=True)
class Stopped(Exception):
    """The study was interrupted: `left` tasks are still to be done. Nothing that was finished is lost."""

    left: int


def run_plan(
    plan: Plan,
    site: Site,
    workers: int,
    listener: Listener,
    keep: Keep = "all",
    start_method: str = "forkserver",
) -> Schedule:
    """Carries a plan out; returns the schedule at its end. `listener` hears of every task that ends.

    Raises Stopped on Ctrl-C; UserError or MachineError from a worker, after the others have ended their runs in flight.
    """
    store = Store(site.store)
    store.sweep()
    schedule = Schedule(plan, store)
    tries: dict[str, int] = {}
    while schedule.tasks_left:
        pool = _pool(min(workers, schedule.tasks_left), start_method)
        try:
            schedule, lost = _drain(schedule, pool, workers, site, store, keep, listener)
        except KeyboardInterrupt:
            _stop(pool)
            raise Stopped(schedule.tasks_left) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown(wait=True, cancel_futures=True)
        for task in lost:
            tries[task.run.id] = tries.get(task.run.id, 0) + 1
            _give_up_after(TRIES, tries[task.run.id], task)
            schedule.again(task)
    return schedule


def _drain(
    schedule: Schedule, pool: ProcessPoolExecutor, workers: int, site: Site, store: Store, keep: Keep, listener: Listener
) -> tuple[Schedule, list[Task]]:
    """Feeds the pool until nothing is left, or a worker dies: then the tasks that were in flight are given back.

    One task a worker is submitted, never more, so that the worker that has just ended a run, and so has its start in
    memory, takes the next level of its chain.
    """
    in_flight: dict[Future[Result], Task] = {}
    while True:
        try:
            while len(in_flight) < workers and (task := schedule.next()) is not None:
                in_flight[pool.submit(perform, site, task)] = task
            if not in_flight:
                return schedule, []
            ended, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in ended:
                result, task = future.result(), in_flight[future]
                del in_flight[future]
                if result.status == "parent_damaged":
                    listener(schedule, task, result)
                    _finish(in_flight, schedule, listener)
                    return Schedule(schedule.plan, store), []
                schedule.ended(task, result)
                listener(schedule, task, result)
                for run in schedule.droppable(task.run, keep):
                    _drop(store, run.id)
        except BrokenProcessPool:
            return schedule, list(in_flight.values())


def _give_up_after(tries: int, tried: int, task: Task) -> None:
    if tried >= tries:
        raise MachineError(
            f"a worker process died {tries} times while run {task.run.id} (seed {task.run.seed}, level "
            f"{task.run.level}) was trained; is the memory full? Try --workers 1. Finished runs are kept."
        )


def _finish(in_flight: dict[Future[Result], Task], schedule: Schedule, listener: Listener) -> None:
    for future, task in in_flight.items():
        result = future.result()
        schedule.ended(task, result)
        listener(schedule, task, result)


def _drop(store: Store, run_id: str) -> None:
    store.drop_weights(run_id)
    for key in [k for k in store.point_keys() if k.startswith(run_id)]:
        store.drop_point(run_id, key.partition("-")[2])


def _pool(workers: int, start_method: str) -> ProcessPoolExecutor:
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload(["supermask.execute.preload"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_enter)


def _enter() -> None:
    """A worker's first act: Ctrl-C is the main process's business, SIGTERM a wish to stop, an orphan ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _STOPPING.set())
    main = multiprocessing.parent_process()
    if main is not None:
        threading.Thread(target=_end_with, args=(main.sentinel,), daemon=True).start()


_STOPPING = threading.Event()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def perform(site: Site, task: Task) -> Result:
    """A task in a worker process."""
    worker = worker_at(site)
    worker.stopping = _STOPPING.is_set
    return worker.perform(task)


def _stop(pool: ProcessPoolExecutor) -> None:
    """Asks the workers to save and end, waits a moment, ends them."""
    workers = multiprocessing.active_children()
    for process in workers:
        process.terminate()
    pool.shutdown(wait=False, cancel_futures=True)
    patience = time.monotonic() + STOP_SECONDS
    for process in workers:
        process.join(max(0.0, patience - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
