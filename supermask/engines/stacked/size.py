"""How many replicas a stack has, where nobody says it."""

from __future__ import annotations

import torch

from supermask.networks import Architecture, Conv, Dense, maskables

ON_A_CPU = 16
MOST = 512
COPIES = 10
"""Of every weight: itself, its gradient, two moments, the lowest validation loss's, its mask, and what a step makes."""
SHARE = 0.4
"""Of a GPU's free memory: two stacks, and room for what is measured."""


def replicas_here(layers: Architecture, batch: int, device: str) -> int:
    """As many as fit into two fifths of a GPU's free memory, at most 512; 16 on a CPU."""
    if torch.device(device).type == "cpu":
        return ON_A_CPU
    return fitting(layers, batch, torch.cuda.mem_get_info(torch.device(device))[0])


def fitting(layers: Architecture, batch: int, free: int) -> int:
    """How many fit, of a GPU with so many bytes free."""
    weights = sum(m.size for m in maskables(layers).values())
    dense = sum(x.outputs for x in layers if isinstance(x, Dense))
    # A convolution's inputs may be laid out as columns, nine times.
    pixels = sum((9 * x.inputs + 4 * x.outputs) * x.side[0] * x.side[1] for x in layers if isinstance(x, Conv))
    numbers = COPIES * weights + batch * (4 * dense + pixels)
    return max(1, min(MOST, int(SHARE * free / (4 * numbers))))
