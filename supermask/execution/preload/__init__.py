"""Imported by the server that worker processes are forked from: what takes seconds is done there, once for all.

Making an optimiser is in it because PyTorch puts off a second's worth of its own imports until the first one is made.
"""

import torch

from supermask.engines import reference
from supermask.execution import worker

__all__ = ["reference", "worker"]

torch.set_num_threads(1)
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
