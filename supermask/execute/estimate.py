"""How long a plan will take: from the runs in the store, or from a short calibration of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from supermask.networks import products
from supermask.plan import Plan
from supermask.run import Run
from supermask.store import Damaged, Store

SAMPLE = 60
"""Runs of the store that are looked at."""

STEP_OVERHEAD = 4e-4
"""Seconds a training step costs beside its products: eager PyTorch, some 60 operations."""

RUN_OVERHEAD = 0.03
"""Seconds a run costs beside its training: making its start, certificate, commit."""

EVALUATED_IMAGES = {"digits": 200, "mnist": 5_000, "cifar10": 5_000}


@dataclass(frozen=True)
class Estimate:
    """Core-seconds of the runs to do, and where the figure comes from."""

    core_seconds: float
    source: str

    def wall_seconds(self, workers: int, longest_chain: float = 0.0) -> float:
        """Seconds on `workers` cores; a chain's levels follow each other, so never less than the longest chain."""
        return max(self.core_seconds / max(workers, 1), longest_chain)


def estimate(plan: Plan, store: Store, to_do: Iterable[Run]) -> Estimate:
    """The time that the runs to do will take, for all of them one after another on one core."""
    left = list(to_do)
    seconds = _seconds_an_iteration(plan, store)
    source = "from the runs in the store"
    if seconds is None:
        seconds, source = _calibrated(plan), "from a short calibration, rough: no such run is in the store yet"
    return Estimate(sum(_iterations(run) * seconds + RUN_OVERHEAD for run in left), source)


def _iterations(run: Run) -> int:
    first = run.step.rewind_to if run.step is not None and isinstance(run.step.rewind_to, int) else 0
    return run.recipe.iterations - first


def _seconds_an_iteration(plan: Plan, store: Store) -> float | None:
    """Median over runs in the store of the same network, data, batch size and evaluation interval; None if none is."""
    like = next(iter(plan.runs.values()))
    there = store.run_ids()
    own = [run_id for run_id in plan.runs if run_id in there]
    others = sorted(there.difference(own))
    found: list[float] = []
    for run_id in (own[:: max(1, len(own) // SAMPLE)] + others[:SAMPLE])[:SAMPLE]:
        try:
            facts = store.facts(run_id)
        except Damaged:
            continue
        run = Run.from_data(facts)
        if facts["status"] == "finished" and _costs(run) == _costs(like):
            found.append(facts["seconds"] / max(1, run.recipe.iterations - facts["first_iteration"]))
    return median(found) if found else None


def _costs(run: Run) -> tuple[object, ...]:
    return (run.network, run.dataset, run.recipe.batch_size, run.recipe.evaluate_every, run.recipe.optimizer)


def _calibrated(plan: Plan) -> float:
    """Seconds of one thread for an iteration: products over this machine's product rate, plus a constant."""
    like = next(iter(plan.runs.values()))
    images = 3 * like.recipe.batch_size + EVALUATED_IMAGES[like.dataset] / like.recipe.evaluate_every
    return images * products(plan.layers) / _product_rate() + STEP_OVERHEAD


def _product_rate() -> float:
    """Multiply-adds a second of one thread, from a few products of the size that FC has (CPU time, not wall time)."""
    a = np.ones((60, 784), dtype=np.float32)
    b = np.ones((784, 300), dtype=np.float32)
    a @ b
    repeats = 40
    began = time.process_time()
    for _ in range(repeats):
        a @ b
    return repeats * 60 * 784 * 300 / max(time.process_time() - began, 1e-6)
