"""How long a plan will take: a simple model of a run's cost, and the pace of this machine.

The pace comes from the runs in the store (measured seconds over the model's), or, where there are none, from a few
matrix products. What the model gets wrong for a network thus cancels as soon as one of its runs is there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from supermask.datasets.facts import DATASETS
from supermask.engines.choice import choose
from supermask.errors import UserError
from supermask.masks import kept_after
from supermask.networks import Conv, maskables, products
from supermask.plan import Plan
from supermask.runs import Run
from supermask.store import Damaged, Store

SAMPLE = 60
"""Runs of the store that are looked at."""

STEP_SECONDS = 4e-4
"""A training step beside its arithmetic: eager PyTorch, some 60 operations."""

WEIGHT_SECONDS = 1e-9
"""A training step's optimiser, a weight."""

RUN_SECONDS = 0.02
"""A run beside its training."""

SCORED_SECONDS = 4e-7
"""The same, a weight: scores, start, certificate, hashes."""

SECONDS_A_PRODUCT = 2e-11
"""A multiply-add on a usual core: where runs tell the pace, only its relation to the other constants matters."""

CONV_SLOWNESS = 1.5
"""A convolution's multiplications against those of the matrix products that are timed."""

SPARSE_SHARE = 0.35
"""The sparse engine's arithmetic, with nothing pruned, against that of the reference engine."""

SPARSE_SLOWNESS = 2.7
"""What it pays for a surviving weight against a weight of the dense network; never more than for all of them."""

SPARSE_STEP_SECONDS = 3e-5
"""Its training step beside its arithmetic."""

MASK_SECONDS = {"sparse": 2e-9, "reference": 1e-8}
"""A training step of a mask beside its arithmetic, a weight: coins, sigmoid, the optimiser."""

COMMIT_SECONDS = 0.02
"""Its commit, which is not in the seconds that a run records."""

RUN_BYTES = 8_000
"""What a run takes in the store beside its arrays: facts, certificate, the arrays' names; blocks that are not full."""

CURVE_BYTES = 32
"""The same, an evaluation."""

STARTING_SECONDS = 3.0
"""Until the first worker trains: PyTorch is imported, the data set read."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of the runs to do."""

    core_seconds: float
    """All of them one after another."""
    chain_seconds: float
    """The longest chain of levels, which have to follow each other: no number of workers is faster than that."""
    source: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Run id -> its own."""
    chain_levels: int = 0
    """Runs in that chain."""
    stored_bytes: int = 0
    """What they add to the store, with all weights kept."""

    def wall_seconds(self, workers: int) -> float:
        """Seconds on `workers` cores; 0 if there is nothing to do."""
        return max(self.core_seconds / workers, self.chain_seconds) + (STARTING_SECONDS if self.core_seconds else 0.0)


def estimate(plan: Plan, store: Store, to_do: Iterable[Run], engine: str, gpu: bool = False) -> Estimate:
    """The time that the runs to do (parents before children) will take, trained by `engine`.

    `gpu`: each by itself on a GPU; raises UserError where no such run was ever trained on one.
    """
    left = list(to_do)
    if not left:
        return Estimate(0.0, 0.0, "nothing is left to do")
    model = _Model(plan)
    pace = _pace_in_store(model, store, plan, gpu)
    source = "from runs in the store"
    if pace is None and gpu:
        raise UserError(
            f"how long a GPU takes is not known: no run of {model.network} on {model.dataset} in {store.root} was "
            "trained on one. Train a few with --device cuda, or ask for --cores."
        )
    if pace is None:
        pace, source = 1.0, "roughly, from a short calibration: no such run is in the store yet"
        model.seconds_a_product = _seconds_a_product()
    first, kept = _first_iterations(plan), _kept_shares(plan)
    each: dict[str, float] = {}
    ends: dict[str, tuple[float, int]] = {}
    stored = 0
    for run in left:
        each[run.id] = pace * model.seconds(run, first[run.id], kept[run.id], engine) + COMMIT_SECONDS
        before, levels = ends.get(run.parent or "", (0.0, 0))
        ends[run.id] = (before + each[run.id], levels + 1)
        stored += model.stored_bytes(run, first[run.id], kept[run.id])
    chain_seconds, chain_levels = max(ends.values())
    return Estimate(sum(each.values()), chain_seconds, source, each, chain_levels, stored)


class _Model:
    """What a run of one network and data set costs, in seconds of a thread."""

    def __init__(self, plan: Plan) -> None:
        facts = DATASETS[plan.study.dataset]
        self.network = next(iter(plan.runs.values())).network
        self.dataset = plan.study.dataset
        convolves = any(isinstance(layer, Conv) for layer in plan.layers)
        self.layers = plan.layers
        self.products = products(plan.layers) * (CONV_SLOWNESS if convolves else 1.0)
        self.weights = sum(m.size for m in maskables(plan.layers).values())
        self.validation_images, self.test_images = facts.validation_images, facts.test_images
        self.seconds_a_product = SECONDS_A_PRODUCT

    def seconds(self, run: Run, first: int, kept: float, engine: str) -> float:
        """Training from iteration `first` on with this share of the weights, evaluations, what a run is beside."""
        recipe = run.recipe
        iterations = recipe.iterations - first
        evaluated = self.validation_images * (iterations / recipe.evaluate_every + 1) + 2 * self.test_images
        if run.learning is not None:
            # Every evaluation on several masks; then the report.
            evaluated = run.learning.passes * (evaluated + 2 * self.test_images)
            engine = "reference" if engine == "reference" else choose("auto", self.layers, "cpu", run.learning).engine
        # A training step needs a forward pass and about twice as much for the gradients.
        images = 3 * recipe.batch_size * iterations + evaluated
        arithmetic = images * self.products * self.seconds_a_product
        beside = iterations * (STEP_SECONDS + WEIGHT_SECONDS * self.weights)
        if run.learning is not None:
            beside += iterations * MASK_SECONDS[engine] * self.weights
        elif engine == "sparse":
            beside = iterations * SPARSE_STEP_SECONDS
            # What is frozen at other values than 0 is computed with, whatever trains.
            computed = kept if run.step is None or run.step.mask0 == "zero" else 1.0
            arithmetic *= SPARSE_SHARE * min(1.0, SPARSE_SLOWNESS * computed)
        if run.learning is not None and engine == "sparse":
            arithmetic *= SPARSE_SHARE
        return arithmetic + beside + RUN_SECONDS + SCORED_SECONDS * self.weights

    def stored_bytes(self, run: Run, first: int, kept: float) -> int:
        """Masks of a bit a weight, kept weights (or two logits a weight), biases, the curve, the facts."""
        masks = self.weights / 8 if run.parent or run.learning else 0
        numbers = 2 * self.weights if run.learning else kept * self.weights if run.trains else 0
        evaluations = (run.recipe.iterations - first) / run.recipe.evaluate_every + 1
        return int(RUN_BYTES + masks + 4 * numbers + CURVE_BYTES * evaluations)


def _kept_shares(plan: Plan) -> dict[str, float]:
    """Run id -> the share of all weights that it has left; with global ranking no layer is told from another."""
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
        left[run.id] = {name: kept_after(before[name], rates[name], step.levels if step else 0) for name in sizes}
    return {run_id: sum(alive.values()) / weights for run_id, alive in left.items()}


def _first_iterations(plan: Plan) -> dict[str, int]:
    """Run id -> the iteration that it is trained from: later than 0 after late rewinding, and below such a run."""
    first: dict[str, int] = {}
    for run in plan.runs.values():
        to = run.step.rewind_to if run.step else "start"
        above = first[run.parent] if run.parent is not None and to == "start" else 0
        first[run.id] = to if isinstance(to, int) else above
    return first


def _pace_in_store(model: _Model, store: Store, plan: Plan, gpu: bool) -> float | None:
    """Measured over modelled seconds: the median of some runs of the same network and data, if there are any.

    The plan's own runs are preferred: they were trained with the same recipe.
    """
    there = store.run_ids()
    own = [run_id for run_id in plan.runs if run_id in there]
    found = _paces(model, store, own, gpu) or _paces(model, store, sorted(there), gpu)
    return median(found) if found else None


def _paces(model: _Model, store: Store, run_ids: list[str], gpu: bool) -> list[float]:
    """Of a sample spread over `run_ids`, of those that were trained on a GPU or of the others."""
    found = []
    for run_id in run_ids[:: max(1, len(run_ids) // SAMPLE)][:SAMPLE]:
        try:
            facts = store.facts(run_id)
        except Damaged:
            continue
        same = facts["network"] == model.network and facts["dataset"] == model.dataset
        on_gpu = facts.get("environment", {}).get("device", "cpu") != "cpu"
        if same and facts["status"] == "finished" and on_gpu == gpu:
            kept, run = sum(facts["kept"].values()) / model.weights, Run.from_data(facts)
            found.append(facts["seconds"] / model.seconds(run, facts["first_iteration"], kept, facts["engine"]))
    return found


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
