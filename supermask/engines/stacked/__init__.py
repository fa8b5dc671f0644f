"""The stacked engine: many runs of one network and recipe as one computation, with a leading axis of replicas.

It computes what `reference` computes, up to the order of sums, on a GPU or a CPU. How it works and what was measured:
docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch

from supermask.engines.selection import Precision
from supermask.engines.stacked.autotune import choose_stack_size
from supermask.engines.stacked.convolutions import fastest_algorithms
from supermask.engines.stacked.optimizer import can_compile
from supermask.engines.stacked.training import ConvAlgorithms, JobSource, train, train_stream

__all__ = [
    "ConvAlgorithms",
    "JobSource",
    "choose_stack_size",
    "environment_facts",
    "fastest_algorithms",
    "train",
    "train_stream",
]


def environment_facts(ways: ConvAlgorithms, precision: Precision, alone: bool, device: str = "cpu") -> dict[str, Any]:
    """What bits depend on beside machine and PyTorch: precision, how convolutions are computed, if the optimiser is
    compiled, if in a stack of one.

    Equal bits are promised of runs that were alone. How many neighbours the others have is not in here: a checkpoint is
    gone on from among whoever there is then.
    """
    place = torch.device(device).type
    return {
        "precision": precision,
        "convolutions": dict(ways),
        "optimizer_compiled": place != "cpu" and can_compile(place),
        "stack": "alone" if alone else "shared",
    }
