"""The stacked engine: many runs of one network and recipe as one computation, with a leading axis of replicas.

It computes what `reference` computes, up to the order of sums, on a GPU or a CPU. How it works and what was measured:
docs/performance.md.
"""

from __future__ import annotations

from typing import Any

import torch

from supermask.engines.choice import Precision
from supermask.engines.stacked.convolutions import ways_here
from supermask.engines.stacked.moving import compiles_on
from supermask.engines.stacked.size import replicas_here
from supermask.engines.stacked.training import Feed, Ways, train, train_from

__all__ = ["Feed", "Ways", "environment_facts", "replicas_here", "train", "train_from", "ways_here"]


def environment_facts(ways: Ways, precision: Precision, alone: bool, device: str = "cpu") -> dict[str, Any]:
    """What bits depend on beside machine and PyTorch: precision, how convolutions are computed, if the optimiser is
    compiled, if in a stack of one.

    Equal bits are promised of runs that were alone. How many neighbours the others have is not in here: a checkpoint is
    gone on from among whoever there is then.
    """
    place = torch.device(device).type
    return {
        "precision": precision,
        "convolutions": dict(ways),
        "optimizer_compiled": place != "cpu" and compiles_on(place),
        "stack": "alone" if alone else "shared",
    }
