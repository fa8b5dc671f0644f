"""Timing of the sparse engine in separate processes: two at once on two cores, and the first step of a fresh one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
from contestants import Case, engine

from supermask.core.recipe import Recipe
from supermask.engines.job import TrainingJob
from supermask.networks.network import sequential_network


def two_workers(cases: Sequence[Case], turns: int) -> dict[str, list[float]]:
    """Return steps per second of two processes relative to one, per turn: each alone, then both with equal work."""
    context = get_context("spawn")
    pipes = []
    for _ in range(2):
        parent_end, worker_end = context.Pipe()
        context.Process(target=_worker, args=(worker_end, cases, turns), daemon=True).start()
        worker_end.close()
        pipes.append(parent_end)
    for pipe in pipes:
        pipe.recv()  # The worker has compiled and warmed up.
    results: dict[str, list[float]] = {"alone_seconds": [], "together_seconds": [], "ratio": []}
    for _ in range(turns):
        alone, together = statistics.mean(_seconds(pipe) for pipe in pipes), _seconds(*pipes)
        for name, value in zip(results, (alone, together, 2 * alone / together), strict=True):
            results[name].append(value)
    return results


def first_steps(case: Case, processes: int = 3) -> list[float]:
    """Return milliseconds from the import of the engine to the end of a one-step run, each in a fresh process."""
    milliseconds = []
    for _ in range(processes):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            milliseconds.append(fresh.submit(_first_step, case).result())
    return milliseconds


def _seconds(*pipes: Connection) -> float:
    """Start one round on all workers at once; return the seconds of the slowest."""
    for pipe in pipes:
        pipe.send("begin")
    return max(pipe.recv() for pipe in pipes)


def _worker(pipe: Connection, cases: Sequence[Case], turns: int) -> None:
    """Worker process: train a block of each case per message, and send the seconds that it took."""
    from supermask.engines import sparse

    torch.set_num_threads(1)
    with ExitStack() as stack:
        running = [engine(sparse.train, case, 4 * case.block, 1 + 2 * turns) for case in cases]
        for blocks in running:
            stack.enter_context(closing(blocks))
            next(blocks)
        pipe.send("ready")
        for _ in range(2 * turns):
            pipe.recv()
            start_time = time.perf_counter()
            for blocks in running:
                next(blocks)
            pipe.send(time.perf_counter() - start_time)


def _first_step(case: Case) -> float:
    """Return the milliseconds of the first step; torch and the data are loaded before the clock starts."""
    torch.set_num_threads(1)
    job = TrainingJob(
        sequential_network(case.layers), case.start, Recipe("adam", case.lr, case.batch, 1, evaluate_every=1), seed=0
    )
    start_time = time.perf_counter()
    from supermask.engines import sparse

    sparse.train([job], [case.data])
    return (time.perf_counter() - start_time) * 1e3
