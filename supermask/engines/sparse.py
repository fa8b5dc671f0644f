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

from supermask.engines.convolutional import Convolutional
from supermask.engines.fully_connected import FullyConnected
from supermask.engines.job import Data, Job
from supermask.engines.kernels.compiling import SOURCES
from supermask.engines.loop import Stepper, run
from supermask.engines.masked_network import MaskedNetwork
from supermask.engines.measuring import Costs, costs_here, warm_up, warm_up_masks
from supermask.engines.reference import tiny_is_zero
from supermask.engines.walks import walks
from supermask.networks import Dense
from supermask.types import Outcome

__all__ = ["Costs", "costs_here", "environment_facts", "prepare", "train"]


def train(jobs: Sequence[Job], data: Sequence[Data], costs: Costs | None = None) -> list[Outcome]:
    """Trains each job to its outcome, one after another; `data[i]` is the data of `jobs[i]`.

    `costs` decide which kernels are used (default: what was measured on this machine), and so the last bits.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    known = costs or costs_here()
    with tiny_is_zero(threads=1):
        return [_outcome(job, d, known) for job, d in zip(jobs, data, strict=True)]


def _outcome(job: Job, data: Data, costs: Costs) -> Outcome:
    if job.learning is None:
        return run(stepper(job, data, costs), job, data)
    learner = MaskedNetwork(job, data)
    outcome = run(learner, job, data)
    # Gone on from a checkpoint at its very end, there was no pass.
    return replace(outcome, last_pass=learner.last_pass or learner.first_sample())


def stepper(job: Job, data: Data, costs: Costs) -> Stepper:
    """The network of a job, laid out for training."""
    if all(isinstance(layer, Dense) for layer in job.layers):
        return FullyConnected(job, data, walks(job, data, costs.walks))
    return Convolutional(job, data, costs.layers)


def prepare(convolutions: bool, masks: bool = False) -> None:
    """Compiles the kernels and measures their costs, where that is still to be done, for processes forked later too."""
    costs_here()
    warm_up(convolutions)
    if masks:
        warm_up_masks()


def environment_facts(costs: Costs) -> dict[str, Any]:
    """What the engine's bits depend on beside the machine: compiler, kernels, the C library's exp and log, costs."""
    compiler = {name: metadata.version(name) for name in ("numba", "llvmlite")}
    library = " ".join(platform.libc_ver())
    return {**compiler, "libc": library, "kernels": SOURCES[:16], "costs": costs.to_data()}
