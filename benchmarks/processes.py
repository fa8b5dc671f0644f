"""The sparse engine in processes of its own: two at once on two cores, and the first step of a fresh one."""

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


def two_workers(cases: Sequence[Case], turns: int) -> dict[str, list[float]]:
    """Steps a second of two processes over those of one, by turns: each alone, then both on as much work each."""
    context = get_context("spawn")
    pipes = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=_worker, args=(theirs, cases, turns), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()  # it is ready
    found: dict[str, list[float]] = {"alone_seconds": [], "together_seconds": [], "ratio": []}
    for _ in range(turns):
        alone, together = statistics.mean(_seconds(pipe) for pipe in pipes), _seconds(*pipes)
        for name, value in zip(found, (alone, together, 2 * alone / together), strict=True):
            found[name].append(value)
    return found


def first_steps(case: Case, processes: int = 3) -> list[float]:
    """Milliseconds from importing the engine to the end of a training of one step, each in a fresh process."""
    taken = []
    for _ in range(processes):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            taken.append(fresh.submit(_first_step, case).result())
    return taken


def _seconds(*pipes: Connection) -> float:
    """What the slowest of the workers at these pipes takes for a round, begun at once."""
    for pipe in pipes:
        pipe.send("begin")
    return max(pipe.recv() for pipe in pipes)


def _worker(pipe: Connection, cases: Sequence[Case], turns: int) -> None:
    """Trains a block of each case whenever it is told to, and says how many seconds that took."""
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
            began = time.perf_counter()
            for blocks in running:
                next(blocks)
            pipe.send(time.perf_counter() - began)


def _first_step(case: Case) -> float:
    """Torch and the data are there before the clock starts."""
    torch.set_num_threads(1)
    job = TrainingJob(case.layers, case.start, Recipe("adam", case.lr, case.batch, 1, evaluate_every=1), seed=0)
    began = time.perf_counter()
    from supermask.engines import sparse

    sparse.train([job], [case.data])
    return (time.perf_counter() - began) * 1e3
