"""The sparse engine: on a CPU, the cost of training falls with the density of the mask.

It computes what the `reference` engine computes, up to the order of sums, with kernels compiled by numba that traverse
nonzero elements. It uses one thread. In one environment equal inputs give bit-identical results, whatever else runs on
the machine. Method and measurements: docs/performance.md.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import numba

from supermask.core.types import SplitData, TrainingResult
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.sparse.autotune import compile_kernels, compile_mask_kernels, current_costs
from supermask.engines.sparse.convolutional import ConvNetTrainer
from supermask.engines.sparse.cost_tables import CostTable
from supermask.engines.sparse.costs import choose_traversals
from supermask.engines.sparse.fully_connected import MLPTrainer
from supermask.engines.sparse.kernels.jit import SOURCE_HASH
from supermask.engines.sparse.masked import MLPMaskTrainer
from supermask.engines.training import Trainer, run_training
from supermask.networks.sequential import Dense

__all__ = ["CostTable", "compile_and_measure", "current_costs", "environment_facts", "train"]


def train(
    jobs: Sequence[TrainingJob], data: Sequence[SplitData], costs: CostTable | None = None
) -> list[TrainingResult]:
    """Train each job to its result, one after another; `data[i]` is the data of `jobs[i]`.

    `costs` decide which kernels are used, and so the last bits (default: those of `current_costs`).
    Source: Zhou et al. 2019, Sec. 1 and 2.
    """
    table = costs or current_costs()
    # The kernels run in the calling thread, whatever torch uses.
    with flush_denormals(threads=1):
        return [_train_job(job, d, table) for job, d in zip(jobs, data, strict=True)]


def _train_job(job: TrainingJob, data: SplitData, costs: CostTable) -> TrainingResult:
    if job.learning is None:
        return run_training(build_trainer(job, data, costs), job, data)
    # No weight of a mask in training is pruned, so costs do not matter.
    trainer = MLPMaskTrainer(job, data)
    result = run_training(trainer, job, data)
    # A run resumed from a checkpoint at its last iteration performs no forward pass: take the first sample instead.
    return replace(result, last_sampled_weights=trainer.last_pass or trainer.first_sample())


def build_trainer(job: TrainingJob, data: SplitData, costs: CostTable) -> Trainer:
    """Return a trainer with the job's network laid out for its kernels."""
    if all(isinstance(layer, Dense) for layer in job.layers):
        return MLPTrainer(job, data, choose_traversals(job, data, costs.traversals))
    return ConvNetTrainer(job, data, costs.layers)


def compile_and_measure(convolutions: bool, masks: bool = False) -> None:
    """Compile the kernels, and measure their costs if requested, unless done before. Forked processes inherit both."""
    current_costs()
    compile_kernels(convolutions)
    if masks:
        compile_mask_kernels()


def environment_facts(costs: CostTable) -> dict[str, Any]:
    """Return the facts on which the engine's bits depend besides the machine.

    They are the compiler, the kernels' source, the library of exp and log, and the costs.
    """
    compiler = {name: metadata.version(name) for name in ("numba", "llvmlite")}
    library = " ".join(platform.libc_ver())
    # With Intel's icc_rt installed, numba may call its SVML for exp and log instead of the C library.
    svml = {"svml": True} if numba.config.USING_SVML else {}
    return {**compiler, "libc": library, **svml, "kernels": SOURCE_HASH[:16], "costs": costs.to_data()}
