"""Model of the cost of runs: seconds of a core or of a GPU, and bytes of storage. `estimate` calibrates it."""

from __future__ import annotations

from functools import cache

from supermask.engines.selection import select_engine
from supermask.study.networks import run_network
from supermask.study.plan import Plan
from supermask.study.run import Run

# Seconds of one core, unless a name says GPU. Measured with the reference engine where nothing else is said.

STEP_SECONDS = 4e-4
"""Overhead of a training step besides its arithmetic: eager PyTorch, some 60 operations."""

WEIGHT_SECONDS = 1e-9
"""Optimizer update per weight and training step."""

RUN_SECONDS = 0.02
"""Overhead per run besides its training."""

SCORING_SECONDS = 4e-7
"""Scores, initial state, certificate and hashes, per weight and run."""

SECONDS_PER_MADD = 2e-11
"""One multiply-add. Calibration replaces it; with stored runs only its ratio to the other constants matters."""

CONV_FACTOR = 1.5
"""Cost of a multiply-add in a convolution, relative to one in a matrix product."""

SPARSE_ARITHMETIC_FACTOR = 0.48
"""Arithmetic of the sparse engine with nothing pruned, relative to the reference engine."""

SPARSE_SLOWNESS = 2.7
"""Cost of a kept weight in the sparse engine, relative to a weight of the dense network; capped at the dense cost."""

SPARSE_STEP_SECONDS = 3e-5
"""Overhead of a training step of the sparse engine."""

MASK_SECONDS = {"sparse": 2e-9, "reference": 1e-8, "stacked": 1e-8}
"""Mask learning per weight and training step besides arithmetic: random numbers, sigmoid, optimizer; by engine."""

STACKED_SLOWNESS = 1.8
"""A run's share of a stack on a core, relative to the reference engine: 1.7 to 2 for FC, 1 to 1.6 for Conv2."""

GPU_MADDS_PER_SECOND = 5e12
"""Multiply-adds that a GPU is assumed to sustain, a seventh of an H200's nominal float32 rate. Not measured."""

GPU_STEP_SECONDS = 2e-4
"""Overhead of a step of a whole stack on a GPU: some 60 recorded operations of 3 microseconds. Not measured."""

GPU_BYTES = 80_000_000_000
"""Free memory that a GPU is assumed to have."""

RUN_BYTES = 8_000
"""Storage per run besides its arrays: facts, certificate, array names, partly filled disk blocks."""

CURVE_BYTES = 32
"""Storage per evaluation."""


class CostModel:
    """Model of the seconds and bytes of runs of a plan's networks and data set."""

    def __init__(self, plan: Plan) -> None:
        spec = plan.spec
        self.networks = {name: run_network(run) for name, run in {r.network: r for r in plan.runs.values()}.items()}
        """Canonical name -> network, of the study and of treatments with a network of their own."""
        self.dataset = plan.study.dataset
        self.validation_images, self.test_images = spec.validation_images, spec.test_images
        self.seconds_per_madd = SECONDS_PER_MADD
        self._auto_engine = cache(
            lambda name, learning, recipe: select_engine("auto", self.networks[name], "cpu", learning, recipe).engine
        )

    def core_seconds(self, run: Run, first: int, density: float, engine: str) -> float:
        """Return the seconds of one core for a run from iteration `first` on, with a share `density` of the weights."""
        if engine in ("auto", "sparse"):
            # The sparse engine has some networks, settings and methods of learning masks only.
            engine = self._auto_engine(run.network, run.learning, run.recipe)
        network, weights = self.networks[run.network], self.weights(run)
        iterations = run.recipe.iterations - first
        madds = network.multiplications * (CONV_FACTOR if network.has_convolutions else 1.0)
        arithmetic = self._forward_passes(run, first) * madds * self.seconds_per_madd
        overhead = iterations * (STEP_SECONDS + WEIGHT_SECONDS * weights)
        if run.learning is not None:
            overhead += iterations * MASK_SECONDS[engine] * weights
            arithmetic *= SPARSE_ARITHMETIC_FACTOR if engine == "sparse" else 1.0
        elif engine == "sparse":
            overhead = iterations * SPARSE_STEP_SECONDS
            share = min(1.0, SPARSE_SLOWNESS * density)
            if run.step is not None and run.step.mask0 != "zero":
                # Weights frozen at values other than 0 take part in the products, which are half of the arithmetic;
                # their gradients, the other half, are not computed.
                share = (1.0 + share) / 2
            arithmetic *= SPARSE_ARITHMETIC_FACTOR * share
        slowness = STACKED_SLOWNESS if engine == "stacked" else 1.0
        return slowness * (arithmetic + overhead) + self._run_seconds(run)

    def gpu_seconds(self, run: Run, first: int, engine: str, stack: int) -> float:
        """Return a run's share of a GPU, in seconds, that trains `stack` such runs at once.

        Pruned weights cost as much as kept ones there.
        """
        multiplications = self.networks[run.network].multiplications
        arithmetic = self._forward_passes(run, first) * multiplications / GPU_MADDS_PER_SECOND
        step = GPU_STEP_SECONDS / stack if engine == "stacked" else STEP_SECONDS
        return arithmetic + (run.recipe.iterations - first) * step + self._run_seconds(run)

    def stored_bytes(self, run: Run, first: int, density: float, snapshots: int) -> int:
        """Return the storage of a run with `snapshots` snapshots besides its end.

        Masks of one bit per weight, kept weights (or two logits per weight), the learning curve, the facts.
        """
        weights = self.weights(run)
        mask_bytes = weights / 8 if run.parent or run.learning else 0
        values = 2 * weights if run.learning else density * weights if run.is_trained else 0
        evaluations = (run.recipe.iterations - first) / run.recipe.evaluate_every + 1
        snapshot_bytes = snapshots * 4 * density * weights
        return int(RUN_BYTES + mask_bytes + 4 * values + CURVE_BYTES * evaluations + snapshot_bytes)

    def weights(self, run: Run) -> int:
        """Return the number of prunable weights of a run's network; 0 while they are unknown."""
        return self.networks[run.network].size

    def _run_seconds(self, run: Run) -> float:
        return RUN_SECONDS + SCORING_SECONDS * self.weights(run)

    def _forward_passes(self, run: Run, first: int) -> float:
        """Return a run's arithmetic in forward passes of one image."""
        recipe = run.recipe
        iterations = recipe.iterations - first
        evaluated = self.validation_images * (iterations / recipe.evaluate_every + 1) + 2 * self.test_images
        if run.learning is not None:
            # Every evaluation uses several sampled masks, and the final report as many again.
            evaluated = run.learning.num_samples * (evaluated + 2 * self.test_images)
        # A training step is one forward pass and gradients of about twice its cost.
        return 3 * recipe.batch_size * iterations + evaluated
