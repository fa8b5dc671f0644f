"""How long a plan will take: what its runs cost by a simple model, times the pace of this machine, or of a GPU.

The pace comes from the runs in the store (measured seconds over the model's), or, where there are none, from a few
matrix products; a GPU's from runs that were trained on one, or it is assumed, and the estimate says so.

A plan carried out on paper: so many workers, each run as long as it is estimated to take.

What a run costs: a simple model of its seconds, on a core and on a GPU, and of its bytes in the store.

What it gets wrong for a network cancels as soon as runs of it are in the store, whose pace `estimate` takes.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from supermask.core.learned_masks import MaskLearning
from supermask.core.masks import remaining_after
from supermask.datasets.specs import DATASETS
from supermask.engines.selection import select_engine
from supermask.networks.sequential import Conv, count_multiplications, prunable_tensors
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import RunFacts
from supermask.study.plan import Plan
from supermask.study.run import Run


def simulate_makespan(runs: Iterable[Run], seconds: Mapping[str, float], workers: int) -> float:
    """When the last of these runs ends, if each takes `seconds[run.id]` and so many are trained at once.

    Their order is the schedule's: the deepest level that is ready goes first, then as planned. A parent that is not
    among `runs` is there already.
    Source: list scheduling, R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    """
    found = list(runs)
    to_do = {run.id: (-run.level, place) for place, run in enumerate(found)}
    below: dict[str, list[str]] = {}
    ready: list[tuple[tuple[int, int], str]] = []
    for run in found:
        if run.parent in to_do:
            below.setdefault(run.parent, []).append(run.id)
        else:
            ready.append((to_do[run.id], run.id))
    heapq.heapify(ready)
    in_flight: list[tuple[float, str]] = []
    now = 0.0
    while ready or in_flight:
        while ready and len(in_flight) < workers:
            run_id = heapq.heappop(ready)[1]
            heapq.heappush(in_flight, (now + seconds[run_id], run_id))
        now = in_flight[0][0]
        while in_flight and in_flight[0][0] == now:
            for child in below.pop(heapq.heappop(in_flight)[1], ()):
                heapq.heappush(ready, (to_do[child], child))
    return now


STEP_SECONDS = 4e-4
"""A training step beside its arithmetic: eager PyTorch, some 60 operations."""

WEIGHT_SECONDS = 1e-9
"""A training step's optimiser, a weight."""

RUN_SECONDS = 0.02
"""A run beside its training."""

SCORING_SECONDS = 4e-7
"""The same, a weight: scores, start, certificate, hashes."""

SECONDS_PER_MADD = 2e-11
"""A multiply-add on a usual core: where runs tell the pace, only its relation to the other constants matters."""

CONV_FACTOR = 1.5
"""A convolution's multiplications against those of the matrix products that are timed."""

SPARSE_OVERHEAD_FRACTION = 0.48
"""The sparse engine's arithmetic, with nothing pruned, against that of the reference engine."""

SPARSE_SLOWNESS = 2.7
"""What it pays for a surviving weight against a weight of the dense network; never more than for all of them."""

SPARSE_STEP_SECONDS = 3e-5
"""Its training step beside its arithmetic."""

MASK_SECONDS = {"sparse": 2e-9, "reference": 1e-8, "stacked": 1e-8}
"""A training step of a mask beside its arithmetic, a weight: coins, sigmoid, the optimiser."""

STACKED_SLOWNESS = 1.8
"""A run's share of a stack on a core, against the reference engine: 1.7 to 2 for FC, 1 to 1.6 for Conv2."""

GPU_PRODUCTS_A_SECOND = 5e12
"""Multiply-adds that a GPU is taken to sustain, a seventh of what an H200 is sold as doing in float32. Not measured."""

GPU_STEP_SECONDS = 2e-4
"""A step of a whole stack beside its arithmetic: some 60 recorded operations of 3 microseconds. Not measured."""

RUN_BYTES = 8_000
"""What a run takes in the store beside its arrays: facts, certificate, the arrays' names; blocks that are not full."""

CURVE_BYTES = 32
"""The same, an evaluation."""


class CostModel:
    """What runs of one network and data set cost."""

    def __init__(self, plan: Plan) -> None:
        facts = DATASETS[plan.study.dataset]
        self.network = next(iter(plan.runs.values())).network
        self.dataset = plan.study.dataset
        self.layers = plan.layers
        self.products = count_multiplications(plan.layers)
        self.convolves = any(isinstance(layer, Conv) for layer in plan.layers)
        self.weights = sum(m.size for m in prunable_tensors(plan.layers).values())
        self.validation_images, self.test_images = facts.validation_images, facts.test_images
        self.seconds_a_product = SECONDS_PER_MADD

    def core_seconds(self, run: Run, first: int, kept: float, engine: str) -> float:
        """Of one core: training from iteration `first` on with this share of the weights, evaluations, all beside."""
        if run.learning is not None and engine == "sparse":
            engine = select_engine("auto", self.layers, "cpu", run.learning).engine
        iterations = run.recipe.iterations - first
        products = self.products * (CONV_FACTOR if self.convolves else 1.0)
        arithmetic = self._images(run, first) * products * self.seconds_a_product
        beside = iterations * (STEP_SECONDS + WEIGHT_SECONDS * self.weights)
        if run.learning is not None:
            beside += iterations * MASK_SECONDS[engine] * self.weights
            arithmetic *= SPARSE_OVERHEAD_FRACTION if engine == "sparse" else 1.0
        elif engine == "sparse":
            beside = iterations * SPARSE_STEP_SECONDS
            pruned = min(1.0, SPARSE_SLOWNESS * kept)
            if run.step is not None and run.step.mask0 != "zero":
                # What is frozen at other values than 0 is computed with; its gradients, half of it all, are not.
                pruned = (1.0 + pruned) / 2
            arithmetic *= SPARSE_OVERHEAD_FRACTION * pruned
        slowness = STACKED_SLOWNESS if engine == "stacked" else 1.0
        return slowness * (arithmetic + beside) + self._run_seconds

    def gpu_seconds(self, run: Run, first: int, engine: str, stack: int) -> float:
        """Its share of a GPU that trains so many like it at once; pruned weights are computed with there."""
        arithmetic = self._images(run, first) * self.products / GPU_PRODUCTS_A_SECOND
        step = GPU_STEP_SECONDS / stack if engine == "stacked" else STEP_SECONDS
        return arithmetic + (run.recipe.iterations - first) * step + self._run_seconds

    def stored_bytes(self, run: Run, first: int, kept: float, points: int) -> int:
        """Masks of a bit a weight, kept weights (or two logits a weight), biases, the curve, the facts; and the kept
        weights at so many points of the trajectory.
        """
        masks = self.weights / 8 if run.parent or run.learning else 0
        numbers = 2 * self.weights if run.learning else kept * self.weights if run.is_trained else 0
        evaluations = (run.recipe.iterations - first) / run.recipe.evaluate_every + 1
        others = points * 4 * kept * self.weights
        return int(RUN_BYTES + masks + 4 * numbers + CURVE_BYTES * evaluations + others)

    @property
    def _run_seconds(self) -> float:
        return RUN_SECONDS + SCORING_SECONDS * self.weights

    def _images(self, run: Run, first: int) -> float:
        """Passes of one image through the network."""
        recipe = run.recipe
        iterations = recipe.iterations - first
        evaluated = self.validation_images * (iterations / recipe.evaluate_every + 1) + 2 * self.test_images
        if run.learning is not None:
            # Every evaluation on several masks; then the report.
            evaluated = run.learning.num_samples * (evaluated + 2 * self.test_images)
        # A training step needs a forward pass and about twice as much for the gradients.
        return 3 * recipe.batch_size * iterations + evaluated


SAMPLE = 60
"""Runs of the plan, of each kind, that are looked at in the store."""

OTHER_SAMPLE = 240
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

    def simulate(self, runs: Iterable[Run], number: int) -> float:
        """The same on so many cores or GPUs, from carrying the runs to do out on paper."""
        carried_out = simulate_makespan(runs, self.seconds, number * self.stack)
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
    cost, first, kept = CostModel(plan), _first_iterations(plan), _kept_shares(plan)
    price = _gpu_price(cost, store, plan, left, gpus) if gpus else _core_price(cost, store, plan, engine)
    to_come = {run.id for run in left}
    points = plan.required_snapshots(lambda run_id: run_id not in to_come)
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
class _RunCosts:
    """What a run takes of a core or a GPU, seconds, and how many are trained at once with it."""

    of: Callable[[Run, int, float], tuple[float, int]]
    source: str
    stack: int = 1


def _core_price(cost: CostModel, store: Store, plan: Plan, engine: str) -> _RunCosts:
    def modelled(facts: RunFacts, run: Run) -> float:
        kept = sum(facts["kept"].values()) / cost.weights
        return cost.core_seconds(run, facts["first_iteration"], kept, facts["engine"])

    paces, source = _calibrations_from_store(cost, store, plan, modelled, gpu=False), "from runs in the store"
    if not paces:
        source = "roughly, from a short calibration: no such run is in the store yet"
        cost.seconds_a_product = _measure_madd_seconds()

    def of(run: Run, first: int, kept: float) -> tuple[float, int]:
        return _calibration(paces, run) * cost.core_seconds(run, first, kept, engine) + COMMIT_SECONDS, 1

    return _RunCosts(of, source)


def _gpu_price(cost: CostModel, store: Store, plan: Plan, left: list[Run], gpus: int) -> _RunCosts:
    from supermask.engines.stacked.autotune import max_replicas

    room = max_replicas(plan.layers, next(iter(plan.runs.values())).recipe.batch_size, GPU_BYTES)
    stack = _stack(_stackable_runs(left), gpus, room)

    def modelled(facts: RunFacts, run: Run) -> float:
        # Runs say whether they were alone, not with how many.
        together = room if facts["environment"].get("stack") == "shared" else 1
        return cost.gpu_seconds(run, facts["first_iteration"], facts["engine"], together)

    paces, source = _calibrations_from_store(cost, store, plan, modelled, gpu=True), "from runs of a GPU in the store"
    if not paces:
        source = (
            f"assumed, as no such run was ever timed on a GPU: {GPU_PRODUCTS_A_SECOND / 1e12:.0f} million million "
            f"multiply-adds and {1 / GPU_STEP_SECONDS:,.0f} steps of a stack a second, {GPU_BYTES / 1e9:.0f} GB free"
        )

    @cache
    def engine_of(learning: MaskLearning | None) -> str:
        return select_engine("auto", plan.layers, "cuda", learning).engine

    def of(run: Run, first: int, kept: float) -> tuple[float, int]:
        engine = engine_of(run.learning)
        together = stack if engine == "stacked" else 1
        return _calibration(paces, run) * cost.gpu_seconds(run, first, engine, together) + COMMIT_SECONDS, together

    return _RunCosts(of, source, stack)


def _stack(runs: int, gpus: int, room: int) -> int:
    """How many at once on each GPU, of which each has such room: in as few rounds as can be, and those alike."""
    rounds = -(-runs // (gpus * room))
    return -(-runs // (gpus * rounds))


def _stackable_runs(runs: list[Run]) -> int:
    """Among how many of these runs a stack can look for members: the most of one recipe at one level.

    Those that are trained, where any are: who is only measured gains nothing by company.
    """
    trained = [run for run in runs if run.is_trained]
    return max(Counter((run.recipe, run.learning, run.level) for run in trained or runs).values())


def _kept_shares(plan: Plan) -> dict[str, float]:
    """Run id -> the share of all weights that it has left; with global ranking no layer is told from another."""
    # Seeds and criteria do not change how many weights are left.
    after = cache(remaining_after)
    sizes = {name: (m.kind, m.size) for name, m in prunable_tensors(plan.layers).items()}
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
    return "trained" if run.is_trained else "untrained"


def _calibration(paces: Mapping[str, float], run: Run) -> float:
    """Of runs of its kind, else of all that there are; 1 if there are none."""
    return paces.get(_kind(run), paces.get(ALL, 1.0))


def _calibrations_from_store(
    cost: CostModel, store: Store, plan: Plan, modelled: Callable[[RunFacts, Run], float], gpu: bool
) -> dict[str, float]:
    """Kind -> measured over modelled seconds of stored runs of the same network and data; nothing if there are none.

    The plan's own runs are preferred: they were trained with the same recipe.
    """
    there = store.run_ids()
    own: dict[str, list[str]] = {}
    for run_id, run in plan.runs.items():
        if run_id in there:
            own.setdefault(_kind(run), []).append(run_id)
    for samples, most in ((list(own.values()), SAMPLE), ([sorted(there)], OTHER_SAMPLE)):
        found: dict[str, list[tuple[float, float]]] = {}
        for run_ids in samples:
            for facts in _finished(cost, store, _sample_evenly(run_ids, most), gpu):
                run = Run.from_data(facts)
                expected = modelled(facts, run)
                for kind in (_kind(run), ALL):
                    found.setdefault(kind, []).append((facts["seconds"] / expected, expected))
        if found:
            return {kind: _weighted_median(pairs) for kind, pairs in found.items()}
    return {}


def _sample_evenly(run_ids: list[str], most: int) -> list[str]:
    return run_ids[:: max(1, len(run_ids) // most)][:most]


def _finished(cost: CostModel, store: Store, run_ids: list[str], gpu: bool) -> Iterator[RunFacts]:
    """Facts of those that were finished on a GPU, or on a CPU."""
    for run_id in run_ids:
        try:
            facts = store.facts(run_id)
        except CorruptEntry:
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


def _measure_madd_seconds() -> float:
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
