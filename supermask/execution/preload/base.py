"""Preloads what every worker needs: PyTorch, the reference engine and the worker."""

import torch

from supermask.engines import reference
from supermask.execution import worker

__all__ = ["reference", "worker"]

torch.set_num_threads(1)
# PyTorch delays about a second of its own imports until the first optimizer is created.
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
