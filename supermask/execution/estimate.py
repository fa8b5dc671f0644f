"""Estimates of a plan's duration and storage, from a cost model that stored runs calibrate.

The model gives the seconds of a run on a core or on a GPU. They are multiplied by a calibration factor: measured over
modelled seconds of runs in the store. Without such runs, a core is calibrated by a few matrix products, and a GPU by
assumption, which the estimate says. So the model's errors for a network cancel as soon as runs of it are stored.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from supermask.core.learned_masks import MaskLearning
from supermask.core.masks import RATE_KINDS, ranked_groups
from supermask.core.pruning import PruneStep
from supermask.core.recipe import Recipe
from supermask.engines.job import stack_settings
from supermask.engines.selection import select_engine
from supermask.execution.cost_model import GPU_BYTES, GPU_MADDS_PER_SECOND, GPU_STEP_SECONDS, CostModel
from supermask.networks.network import Network
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.files.entry import RunFacts
from supermask.study.plan import Plan
from supermask.study.run import Run

COMMIT_SECONDS = 0.02
"""Commit of a run, which is not part of the seconds that it records."""

STARTUP_SECONDS = 3.0
"""Time until the first worker trains: PyTorch is imported, the data set read."""

MAX_SAMPLED_RUNS = 60
"""Stored runs of the plan that are read for calibration, per kind."""

MAX_OTHER_SAMPLED_RUNS = 240
"""Stored runs that are read if none is of the plan. More, because most may be of another network, or untrained."""

ALL = "all"
"""Calibration key of all kinds of runs together."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of the runs to do."""

    core_seconds: float
    """Sum over all runs, in seconds of one core or GPU; runs in a stack on a GPU count their shares of its time."""
    chain_seconds: float
    """Duration of the longest chain of levels: a lower bound with any number of workers."""
    source: str
    """Origin of the calibration, for the user."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Run id -> seconds in training; for a run in a stack on a GPU those of the whole stack."""
    chain_levels: int = 0
    """Runs in the longest chain."""
    stored_bytes: int = 0
    """Storage that the runs add, with all weights kept."""
    stack: int = 1
    """Runs that one worker trains at once."""

    def wall_seconds(self, workers: int) -> float:
        """Return a rough duration in seconds on `workers` cores; 0 if there is nothing to do."""
        return max(self.core_seconds / workers, self.chain_seconds) + self._startup_seconds

    def simulate(self, runs: Iterable[Run], workers: int) -> float:
        """Return the duration in seconds on `workers` cores or GPUs, from a simulated schedule of the runs to do."""
        makespan = simulate_makespan(runs, self.seconds, workers * self.stack)
        # The simulation lets a run in a half-empty stack take the time of a full one, so it can be too short.
        return max(self.core_seconds / workers, makespan) + self._startup_seconds

    @property
    def _startup_seconds(self) -> float:
        return STARTUP_SECONDS if self.core_seconds else 0.0


def estimate(plan: Plan, store: Store, to_do: Iterable[Run], engine: str, gpus: int = 0) -> Estimate:
    """Estimate the cost of the runs to do (parents before children) with `engine` on cores of this machine.

    `auto`: each run with the engine that trains it there.
    `gpus`: on that many GPUs instead, with the engine that `auto` selects there, in stacks as large as the GPU's memory
    and the plan's runs allow.
    """
    runs = list(to_do)
    if not runs:
        return Estimate(0.0, 0.0, "nothing is left to do")
    model, first_iterations = CostModel(plan), _first_iterations(plan)
    densities = _densities(plan, model.networks)
    costs = _gpu_costs(model, store, plan, runs, gpus) if gpus else _core_costs(model, store, plan, engine)
    pending_ids = {run.id for run in runs}
    snapshots = plan.required_snapshots(lambda run_id: run_id not in pending_ids)
    seconds: dict[str, float] = {}
    chain_ends: dict[str, tuple[float, int]] = {}
    """Run id -> seconds and number of the runs to do on its chain, up to and including it."""
    core_seconds, stored_bytes = 0.0, 0
    for run in runs:
        first, density = first_iterations[run.id], densities[run.id]
        share, runs_at_once = costs.run_seconds(run, first, density)
        core_seconds += share
        seconds[run.id] = runs_at_once * share
        parent_end, levels = chain_ends.get(run.parent or "", (0.0, 0))
        chain_ends[run.id] = (parent_end + seconds[run.id], levels + 1)
        stored_bytes += model.stored_bytes(run, first, density, len(snapshots[run.id] - {"end"}))
    chain_seconds, chain_levels = max(chain_ends.values())
    return Estimate(core_seconds, chain_seconds, costs.source, seconds, chain_levels, stored_bytes, costs.stack)


def simulate_makespan(runs: Iterable[Run], seconds: Mapping[str, float], workers: int) -> float:
    """Return the time at which the last run ends, if each takes `seconds[run.id]` and `workers` are trained at once.

    The order is the scheduler's: the deepest ready level first, then the order of the plan. A parent that is not among
    `runs` counts as finished.
    Source: list scheduling, R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    """
    to_do = list(runs)
    priority = {run.id: (-run.level, place) for place, run in enumerate(to_do)}
    children: dict[str, list[str]] = {}
    ready: list[tuple[tuple[int, int], str]] = []
    for run in to_do:
        if run.parent in priority:
            children.setdefault(run.parent, []).append(run.id)
        else:
            ready.append((priority[run.id], run.id))
    heapq.heapify(ready)
    in_flight: list[tuple[float, str]] = []
    """Heap of (end time, run id)."""
    now = 0.0
    while ready or in_flight:
        while ready and len(in_flight) < workers:
            run_id = heapq.heappop(ready)[1]
            heapq.heappush(in_flight, (now + seconds[run_id], run_id))
        now = in_flight[0][0]
        # All runs that end now make their children ready before the next one is started, as the coordinator does.
        while in_flight and in_flight[0][0] == now:
            for child in children.pop(heapq.heappop(in_flight)[1], ()):
                heapq.heappush(ready, (priority[child], child))
    return now


@dataclass(frozen=True)
class _RunCosts:
    """Calibrated costs of runs on a core or a GPU."""

    run_seconds: Callable[[Run, int, float], tuple[float, int]]
    """(run, first iteration, density) -> (seconds of a core or GPU, runs that are trained at once)."""
    source: str
    stack: int = 1


def _core_costs(model: CostModel, store: Store, plan: Plan, engine: str) -> _RunCosts:
    def modelled_seconds(facts: RunFacts, run: Run) -> float:
        density = sum(facts["kept"].values()) / max(model.weights(run), 1)
        return model.core_seconds(run, facts["first_iteration"], density, facts["engine"])

    factors, source = _calibrations(model, store, plan, modelled_seconds, gpu=False), "from runs in the store"
    if not factors:
        source = "roughly, from a short calibration: no such run is in the store yet"
        model.seconds_per_madd = _measure_madd_seconds()

    def run_seconds(run: Run, first: int, density: float) -> tuple[float, int]:
        seconds = _calibration(factors, run) * model.core_seconds(run, first, density, engine)
        return seconds + COMMIT_SECONDS, 1

    return _RunCosts(run_seconds, source)


def _gpu_costs(model: CostModel, store: Store, plan: Plan, runs: list[Run], gpus: int) -> _RunCosts:
    from supermask.engines.stacked.autotune import max_replicas

    batch = next(iter(plan.runs.values())).recipe.batch_size
    # A network that was not examined yet has no known size.
    known = [network for network in model.networks.values() if network.size]
    limit = min((max_replicas(network, batch, GPU_BYTES) for network in known), default=1)
    stack = _stack_size(_stackable_runs(runs), gpus, limit)

    def modelled_seconds(facts: RunFacts, run: Run) -> float:
        # A stored run says whether it was trained in a stack, but not in how large a one: the largest is assumed.
        runs_at_once = limit if facts["environment"].get("stack") == "shared" else 1
        return model.gpu_seconds(run, facts["first_iteration"], facts["engine"], runs_at_once)

    factors, source = _calibrations(model, store, plan, modelled_seconds, gpu=True), "from runs of a GPU in the store"
    if not factors:
        source = (
            f"assumed, as no such run was ever timed on a GPU: {GPU_MADDS_PER_SECOND / 1e12:.0f}e12 "
            f"multiply-adds and {1 / GPU_STEP_SECONDS:,.0f} steps of a stack per second, {GPU_BYTES / 1e9:.0f} GB free"
        )

    @cache
    def engine_for(name: str, learning: MaskLearning | None, recipe: Recipe) -> str:
        return select_engine("auto", model.networks[name], "cuda", learning, recipe).engine

    def run_seconds(run: Run, first: int, density: float) -> tuple[float, int]:
        engine = engine_for(run.network, run.learning, run.recipe)
        runs_at_once = stack if engine == "stacked" else 1
        seconds = _calibration(factors, run) * model.gpu_seconds(run, first, engine, runs_at_once)
        return seconds + COMMIT_SECONDS, runs_at_once

    return _RunCosts(run_seconds, source, stack)


def _stack_size(runs: int, gpus: int, limit: int) -> int:
    """Return the size of equal stacks, at most `limit`, that train `runs` runs on `gpus` GPUs in the fewest rounds."""
    rounds = -(-runs // (gpus * limit))
    return -(-runs // (gpus * rounds))


def _stackable_runs(runs: list[Run]) -> int:
    """Return the largest number of runs of one level that can share a stack.

    Untrained runs count only if there are no others: they take no time, so a stack of them saves none.
    """
    trained = [run for run in runs if run.is_trained]
    settings = ((run.network, *stack_settings(run.recipe, run.learning), run.level) for run in trained or runs)
    return max(Counter(settings).values())


def _densities(plan: Plan, networks: Mapping[str, Network]) -> dict[str, float]:
    """Return run id -> share of all weights that are kept. With global ranking every layer is taken to lose equally."""
    sizes = {
        name: {tensor: shape.size for tensor, shape in network.tensors.items()} for name, network in networks.items()
    }
    # The same counts for all seeds and criteria, so they are computed once, and runs of equal counts share one dict.
    computed: dict[Hashable, dict[str, int]] = {}
    kept: dict[str, dict[str, int]] = {}
    for run in plan.runs.values():
        parent_kept = sizes[run.network] if run.parent is None else kept[run.parent]
        step = run.step
        key = (run.network, id(parent_kept), step and (*step.rates.items(), step.levels, *step.only, "", *step.exclude))
        if key not in computed:
            computed[key] = _kept_weights(networks[run.network], parent_kept, step)
        kept[run.id] = computed[key]
    return {
        run_id: sum(counts.values()) / max(networks[plan.runs[run_id].network].size, 1)
        for run_id, counts in kept.items()
    }


def _kept_weights(network: Network, alive: Mapping[str, int], step: PruneStep | None) -> dict[str, int]:
    """Return tensor -> number of weights that a run keeps of those that its parent kept."""
    kinds: dict[str, str] = {name: tensor.kind for name, tensor in network.tensors.items()}
    step_rates, levels = (step.rates, step.levels) if step else ({}, 0)
    rates = {kind: step_rates.get("global", step_rates.get(kind, 0.0)) for kind in kinds.values()}
    by_name = {name: rate for name, rate in step_rates.items() if name not in RATE_KINDS}
    only, exclude = (step.only, step.exclude) if step else ((), ())
    groups = ranked_groups(alive, kinds, "layer", rates | by_name, only, exclude)
    return {name: group.remaining(levels) for name, group in groups.items()}


def _first_iterations(plan: Plan) -> dict[str, int]:
    """Return run id -> first iteration of its training: above 0 after late rewinding, and for descendants."""
    first: dict[str, int] = {}
    for run in plan.runs.values():
        rewind_to = run.step.rewind_to if run.step else "start"
        inherited = first[run.parent] if run.parent is not None and rewind_to == "start" else 0
        first[run.id] = rewind_to if isinstance(rewind_to, int) else inherited
    return first


def _kind(run: Run) -> str:
    """Return the calibration key of a run. The model is wrong by about one factor for all runs of a kind."""
    if run.learning is not None:
        return run.learning.method
    return "trained" if run.is_trained else "untrained"


def _calibration(factors: Mapping[str, float], run: Run) -> float:
    """Return the factor of the run's kind, else the one of all kinds, else 1."""
    return factors.get(_kind(run), factors.get(ALL, 1.0))


def _calibrations(
    model: CostModel, store: Store, plan: Plan, modelled_seconds: Callable[[RunFacts, Run], float], gpu: bool
) -> dict[str, float]:
    """Return kind -> measured over modelled seconds of stored runs of the same networks and data; empty without any.

    Runs of the plan are preferred to others, as they have its recipe.
    """
    stored_ids = store.run_ids()
    plan_samples: dict[str, list[str]] = {}
    for run_id, run in plan.runs.items():
        if run_id in stored_ids:
            plan_samples.setdefault(_kind(run), []).append(run_id)
    for samples, limit in (
        (list(plan_samples.values()), MAX_SAMPLED_RUNS),
        ([sorted(stored_ids)], MAX_OTHER_SAMPLED_RUNS),
    ):
        ratios: dict[str, list[tuple[float, float]]] = {}
        for run_ids in samples:
            for facts in _finished_facts(model, store, _sample_evenly(run_ids, limit), gpu):
                run = Run.from_data(facts)
                expected = modelled_seconds(facts, run)
                for kind in (_kind(run), ALL):
                    ratios.setdefault(kind, []).append((facts["seconds"] / expected, expected))
        if ratios:
            return {kind: _weighted_median(pairs) for kind, pairs in ratios.items()}
    return {}


def _sample_evenly(run_ids: list[str], limit: int) -> list[str]:
    return run_ids[:: max(1, len(run_ids) // limit)][:limit]


def _finished_facts(model: CostModel, store: Store, run_ids: list[str], gpu: bool) -> Iterator[RunFacts]:
    """Yield the facts of runs of the model's networks that finished on a GPU, or on a CPU."""
    for run_id in run_ids:
        try:
            facts = store.facts(run_id)
        except (CorruptEntry, NewerFormat):
            continue
        is_same = facts["network"] in model.networks and facts["dataset"] == model.dataset
        on_gpu = facts.get("environment", {}).get("device", "cpu") != "cpu"
        if is_same and facts["status"] == "finished" and on_gpu == gpu:
            yield facts


def _weighted_median(pairs: list[tuple[float, float]]) -> float:
    """Return the median of (value, weight) pairs.

    A median, because a run during which the machine slept is an outlier; weighted by the modelled seconds, because
    thousands of runs may take no time at all.
    """
    pairs = sorted(pairs)
    cumulative = list(accumulate(weight for _, weight in pairs))
    return pairs[bisect_left(cumulative, cumulative[-1] / 2)][0]


def _measure_madd_seconds() -> float:
    """Measure one multiply-add on one thread, in seconds: the best of 20 timings of small matrix products."""
    import numpy as np

    # Products so small that no BLAS library spreads them over threads.
    images, weights = np.ones((60, 64), dtype=np.float32), np.ones((64, 64), dtype=np.float32)
    repeats, best = 40, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(repeats):
            images @ weights
        best = min(best, (time.perf_counter() - began) / repeats)
    return best / (60 * 64 * 64)
