"""The sparse engine: on a CPU, what a training costs falls with its mask.

It computes what `reference` computes, up to the order of sums, with kernels compiled by numba that walk over what is
not zero. One thread; equal inputs give equal bits in one environment, whatever else runs. How it works and what was
measured: docs/performance.md.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from supermask.core.types import SplitData, TrainingResult
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.sparse.autotune import CostTable, compile_kernels, compile_mask_kernels, measured_costs
from supermask.engines.sparse.convolutional import ConvNetTrainer
from supermask.engines.sparse.costs import choose_traversals
from supermask.engines.sparse.fully_connected import MLPTrainer
from supermask.engines.sparse.kernels.jit import SOURCE_HASH
from supermask.engines.sparse.masked import MLPMaskTrainer
from supermask.engines.training import Trainer, run_training
from supermask.networks.sequential import Dense

__all__ = ["CostTable", "compile_and_measure", "environment_facts", "measured_costs", "train"]


def train(
    jobs: Sequence[TrainingJob], data: Sequence[SplitData], costs: CostTable | None = None
) -> list[TrainingResult]:
    """Trains each job to its outcome, one after another; `data[i]` is the data of `jobs[i]`.

    `costs` decide which kernels are used (default: what was measured on this machine), and so the last bits.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    known = costs or measured_costs()
    with flush_denormals(threads=1):
        return [_outcome(job, d, known) for job, d in zip(jobs, data, strict=True)]


def _outcome(job: TrainingJob, data: SplitData, costs: CostTable) -> TrainingResult:
    if job.learning is None:
        return run_training(build_trainer(job, data, costs), job, data)
    learner = MLPMaskTrainer(job, data)
    outcome = run_training(learner, job, data)
    # Gone on from a checkpoint at its very end, there was no pass.
    return replace(outcome, last_sampled_weights=learner.last_pass or learner.first_sample())


def build_trainer(job: TrainingJob, data: SplitData, costs: CostTable) -> Trainer:
    """The network of a job, laid out for training."""
    if all(isinstance(layer, Dense) for layer in job.layers):
        return MLPTrainer(job, data, choose_traversals(job, data, costs.walks))
    return ConvNetTrainer(job, data, costs.layers)


def compile_and_measure(convolutions: bool, masks: bool = False) -> None:
    """Compiles the kernels and measures their costs, where that is still to be done, for processes forked later too."""
    measured_costs()
    compile_kernels(convolutions)
    if masks:
        compile_mask_kernels()


def environment_facts(costs: CostTable) -> dict[str, Any]:
    """What the engine's bits depend on beside the machine: compiler, kernels, the C library's exp and log, costs."""
    compiler = {name: metadata.version(name) for name in ("numba", "llvmlite")}
    library = " ".join(platform.libc_ver())
    return {**compiler, "libc": library, "kernels": SOURCE_HASH[:16], "costs": costs.to_data()}
