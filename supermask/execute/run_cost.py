"""What a run costs: a simple model of its seconds, on a core and on a GPU, and of its bytes in the store.

What it gets wrong for a network cancels as soon as runs of it are in the store, whose pace `estimate` takes.
"""

from __future__ import annotations

from supermask.datasets.facts import DATASETS
from supermask.engines.choice import choose
from supermask.networks import Conv, maskables, products
from supermask.plan import Plan
from supermask.runs import Run

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

SPARSE_SHARE = 0.48
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


class RunCost:
    """What runs of one network and data set cost."""

    def __init__(self, plan: Plan) -> None:
        facts = DATASETS[plan.study.dataset]
        self.network = next(iter(plan.runs.values())).network
        self.dataset = plan.study.dataset
        self.layers = plan.layers
        self.products = products(plan.layers)
        self.convolves = any(isinstance(layer, Conv) for layer in plan.layers)
        self.weights = sum(m.size for m in maskables(plan.layers).values())
        self.validation_images, self.test_images = facts.validation_images, facts.test_images
        self.seconds_a_product = SECONDS_A_PRODUCT

    def core_seconds(self, run: Run, first: int, kept: float, engine: str) -> float:
        """Of one core: training from iteration `first` on with this share of the weights, evaluations, all beside."""
        if run.learning is not None and engine == "sparse":
            engine = choose("auto", self.layers, "cpu", run.learning).engine
        iterations = run.recipe.iterations - first
        products = self.products * (CONV_SLOWNESS if self.convolves else 1.0)
        arithmetic = self._images(run, first) * products * self.seconds_a_product
        beside = iterations * (STEP_SECONDS + WEIGHT_SECONDS * self.weights)
        if run.learning is not None:
            beside += iterations * MASK_SECONDS[engine] * self.weights
            arithmetic *= SPARSE_SHARE if engine == "sparse" else 1.0
        elif engine == "sparse":
            beside = iterations * SPARSE_STEP_SECONDS
            pruned = min(1.0, SPARSE_SLOWNESS * kept)
            if run.step is not None and run.step.mask0 != "zero":
                # What is frozen at other values than 0 is computed with; its gradients, half of it all, are not.
                pruned = (1.0 + pruned) / 2
            arithmetic *= SPARSE_SHARE * pruned
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
        numbers = 2 * self.weights if run.learning else kept * self.weights if run.trains else 0
        evaluations = (run.recipe.iterations - first) / run.recipe.evaluate_every + 1
        others = points * 4 * kept * self.weights
        return int(RUN_BYTES + masks + 4 * numbers + CURVE_BYTES * evaluations + others)

    @property
    def _run_seconds(self) -> float:
        return RUN_SECONDS + SCORED_SECONDS * self.weights

    def _images(self, run: Run, first: int) -> float:
        """Passes of one image through the network."""
        recipe = run.recipe
        iterations = recipe.iterations - first
        evaluated = self.validation_images * (iterations / recipe.evaluate_every + 1) + 2 * self.test_images
        if run.learning is not None:
            # Every evaluation on several masks; then the report.
            evaluated = run.learning.passes * (evaluated + 2 * self.test_images)
        # A training step needs a forward pass and about twice as much for the gradients.
        return 3 * recipe.batch_size * iterations + evaluated
