"""How long a plan will take: what its runs cost by a simple model, times the pace of this machine, or of a GPU.

The pace comes from the runs in the store (measured seconds over the model's), or, where there are none, from a few
matrix products; a GPU's from runs that were trained on one, or it is assumed, and the estimate says so.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from supermask.engines.choice import choose
from supermask.execute.run_cost import GPU_PRODUCTS_A_SECOND, GPU_STEP_SECONDS, RunCost
from supermask.execute.simulation import wall_seconds
from supermask.learned import Learning
from supermask.masks import kept_after
from supermask.networks import maskables
from supermask.plan import Plan
from supermask.runs import Run
from supermask.store import Damaged, Store
from supermask.store.entry import Facts

SAMPLE = 60
"""Runs of the plan, of each kind, that are looked at in the store."""

SAMPLE_OF_OTHERS = 240
"""Runs of the store that are, where it has none of the plan: most may be of another network, or untrained."""

COMMIT_SECONDS = 0.02
"""A run's commit, which is not in the seconds that it records."""

STARTING_SECONDS = 3.0
"""Until the first worker trains: PyTorch is imported, the data set read."""

GPU_BYTES = 80_000_000_000
"""Free memory that a GPU is taken to have."""

ALL = "all"
"""Kinds of runs together."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of the runs to do."""

    core_seconds: float
    """All of them one after another; on GPUs, where those of a stack share the time, all their shares."""
    chain_seconds: float
    """The longest chain of levels, which have to follow each other: no number of workers is faster than that."""
    source: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Run id -> how long it is in training: its own time, on GPUs that of its stack."""
    chain_levels: int = 0
    """Runs in that chain."""
    stored_bytes: int = 0
    """What they add to the store, with all weights kept."""
    stack: int = 1
    """Runs that are trained at once by one worker."""

    def wall_seconds(self, workers: int) -> float:
        """Roughly, on `workers` cores; 0 if there is nothing to do."""
        return max(self.core_seconds / workers, self.chain_seconds) + self._starting

    def on_paper(self, runs: Iterable[Run], number: int) -> float:
        """The same on so many cores or GPUs, from carrying the runs to do out on paper."""
        carried_out = wall_seconds(runs, self.seconds, number * self.stack)
        return max(self.core_seconds / number, carried_out) + self._starting

    @property
    def _starting(self) -> float:
        return STARTING_SECONDS if self.core_seconds else 0.0


def estimate(plan: Plan, store: Store, to_do: Iterable[Run], engine: str, gpus: int = 0) -> Estimate:
    """The time that the runs to do (parents before children) will take, trained by `engine` on cores of this machine.

    `gpus`: on so many of them instead, by the engine that a GPU has, in stacks as large as fit into its memory and as
    the plan has runs for.
    """
    left = list(to_do)
    if not left:
        return Estimate(0.0, 0.0, "nothing is left to do")
    cost, first, kept = RunCost(plan), _first_iterations(plan), _kept_shares(plan)
    price = _gpu_price(cost, store, plan, left, gpus) if gpus else _core_price(cost, store, plan, engine)
    to_come = {run.id for run in left}
    points = plan.points_needed(lambda run_id: run_id not in to_come)
    each: dict[str, float] = {}
    ends: dict[str, tuple[float, int]] = {}
    total, stored = 0.0, 0
    for run in left:
        share, together = price.of(run, first[run.id], kept[run.id])
        total += share
        each[run.id] = together * share
        before, levels = ends.get(run.parent or "", (0.0, 0))
        ends[run.id] = (before + each[run.id], levels + 1)
        stored += cost.stored_bytes(run, first[run.id], kept[run.id], len(points[run.id] - {"end"}))
    chain_seconds, chain_levels = max(ends.values())
    return Estimate(total, chain_seconds, price.source, each, chain_levels, stored, price.stack)


@dataclass(frozen=True)
class _Price:
    """What a run takes of a core or a GPU, seconds, and how many are trained at once with it."""

    of: Callable[[Run, int, float], tuple[float, int]]
    source: str
    stack: int = 1


def _core_price(cost: RunCost, store: Store, plan: Plan, engine: str) -> _Price:
    def modelled(facts: Facts, run: Run) -> float:
        kept = sum(facts["kept"].values()) / cost.weights
        return cost.core_seconds(run, facts["first_iteration"], kept, facts["engine"])

    paces, source = _paces_in_store(cost, store, plan, modelled, gpu=False), "from runs in the store"
    if not paces:
        source = "roughly, from a short calibration: no such run is in the store yet"
        cost.seconds_a_product = _seconds_a_product()

    def of(run: Run, first: int, kept: float) -> tuple[float, int]:
        return _pace(paces, run) * cost.core_seconds(run, first, kept, engine) + COMMIT_SECONDS, 1

    return _Price(of, source)


def _gpu_price(cost: RunCost, store: Store, plan: Plan, left: list[Run], gpus: int) -> _Price:
    from supermask.engines.stacked.size import fitting

    room = fitting(plan.layers, next(iter(plan.runs.values())).recipe.batch_size, GPU_BYTES)
    stack = _stack(_alike(left), gpus, room)

    def modelled(facts: Facts, run: Run) -> float:
        # Runs say whether they were alone, not with how many.
        together = room if facts["environment"].get("stack") == "shared" else 1
        return cost.gpu_seconds(run, facts["first_iteration"], facts["engine"], together)

    paces, source = _paces_in_store(cost, store, plan, modelled, gpu=True), "from runs of a GPU in the store"
    if not paces:
        source = (
            f"assumed, as no such run was ever timed on a GPU: {GPU_PRODUCTS_A_SECOND / 1e12:.0f} million million "
            f"multiply-adds and {1 / GPU_STEP_SECONDS:,.0f} steps of a stack a second, {GPU_BYTES / 1e9:.0f} GB free"
        )

    @cache
    def engine_of(learning: Learning | None) -> str:
        return choose("auto", plan.layers, "cuda", learning).engine

    def of(run: Run, first: int, kept: float) -> tuple[float, int]:
        engine = engine_of(run.learning)
        together = stack if engine == "stacked" else 1
        return _pace(paces, run) * cost.gpu_seconds(run, first, engine, together) + COMMIT_SECONDS, together

    return _Price(of, source, stack)


def _stack(runs: int, gpus: int, room: int) -> int:
    """How many at once on each GPU, of which each has such room: in as few rounds as can be, and those alike."""
    rounds = -(-runs // (gpus * room))
    return -(-runs // (gpus * rounds))


def _alike(runs: list[Run]) -> int:
    """Among how many of these runs a stack can look for members: the most of one recipe at one level.

    Those that are trained, where any are: who is only measured gains nothing by company.
    """
    trained = [run for run in runs if run.trains]
    return max(Counter((run.recipe, run.learning, run.level) for run in trained or runs).values())


def _kept_shares(plan: Plan) -> dict[str, float]:
    """Run id -> the share of all weights that it has left; with global ranking no layer is told from another."""
    # Seeds and criteria do not change how many weights are left.
    after = cache(kept_after)
    sizes = {name: (m.kind, m.size) for name, m in maskables(plan.layers).items()}
    weights = sum(size for _, size in sizes.values())
    left: dict[str, dict[str, int]] = {}
    for run in plan.runs.values():
        before = {name: size for name, (_, size) in sizes.items()} if run.parent is None else left[run.parent]
        step = run.step
        rates = {
            name: 0.0 if step is None else step.rates.get("global", step.rates.get(kind, 0.0))
            for name, (kind, _) in sizes.items()
        }
        left[run.id] = {name: after(before[name], rates[name], step.levels if step else 0) for name in sizes}
    return {run_id: sum(alive.values()) / weights for run_id, alive in left.items()}


def _first_iterations(plan: Plan) -> dict[str, int]:
    """Run id -> the iteration that it is trained from: later than 0 after late rewinding, and below such a run."""
    first: dict[str, int] = {}
    for run in plan.runs.values():
        to = run.step.rewind_to if run.step else "start"
        above = first[run.parent] if run.parent is not None and to == "start" else 0
        first[run.id] = to if isinstance(to, int) else above
    return first


def _kind(run: Run) -> str:
    """Runs of one kind are wrong in the model by one factor, roughly."""
    if run.learning is not None:
        return run.learning.method
    return "trained" if run.trains else "untrained"


def _pace(paces: Mapping[str, float], run: Run) -> float:
    """Of runs of its kind, else of all that there are; 1 if there are none."""
    return paces.get(_kind(run), paces.get(ALL, 1.0))


def _paces_in_store(
    cost: RunCost, store: Store, plan: Plan, modelled: Callable[[Facts, Run], float], gpu: bool
) -> dict[str, float]:
    """Kind -> measured over modelled seconds of stored runs of the same network and data; nothing if there are none.

    The plan's own runs are preferred: they were trained with the same recipe.
    """
    there = store.run_ids()
    own: dict[str, list[str]] = {}
    for run_id, run in plan.runs.items():
        if run_id in there:
            own.setdefault(_kind(run), []).append(run_id)
    for samples, most in ((list(own.values()), SAMPLE), ([sorted(there)], SAMPLE_OF_OTHERS)):
        found: dict[str, list[tuple[float, float]]] = {}
        for run_ids in samples:
            for facts in _finished(cost, store, _spread(run_ids, most), gpu):
                run = Run.from_data(facts)
                expected = modelled(facts, run)
                for kind in (_kind(run), ALL):
                    found.setdefault(kind, []).append((facts["seconds"] / expected, expected))
        if found:
            return {kind: _weighted_median(pairs) for kind, pairs in found.items()}
    return {}


def _spread(run_ids: list[str], most: int) -> list[str]:
    return run_ids[:: max(1, len(run_ids) // most)][:most]


def _finished(cost: RunCost, store: Store, run_ids: list[str], gpu: bool) -> Iterator[Facts]:
    """Facts of those that were finished on a GPU, or on a CPU."""
    for run_id in run_ids:
        try:
            facts = store.facts(run_id)
        except Damaged:
            continue
        same = facts["network"] == cost.network and facts["dataset"] == cost.dataset
        on_gpu = facts.get("environment", {}).get("device", "cpu") != "cpu"
        if same and facts["status"] == "finished" and on_gpu == gpu:
            yield facts


def _weighted_median(pairs: list[tuple[float, float]]) -> float:
    """Of (value, weight): half of the weight is at most there. A run during which the machine slept moves it little,
    and neither do thousands of runs that take no time.
    """
    pairs = sorted(pairs)
    passed = list(accumulate(weight for _, weight in pairs))
    return pairs[bisect_left(passed, passed[-1] / 2)][0]


def _seconds_a_product() -> float:
    """One multiply-add on one thread, from products so small that no BLAS library spreads them over threads."""
    import numpy as np

    images, weights = np.ones((60, 64), dtype=np.float32), np.ones((64, 64), dtype=np.float32)
    repeats, best = 40, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(repeats):
            images @ weights
        best = min(best, (time.perf_counter() - began) / repeats)
    return best / (60 * 64 * 64)
