"""Preloads what every worker needs: PyTorch, the reference engine, which evaluates every run, and the worker."""

import torch

from supermask.engines import reference
from supermask.execution import worker

__all__ = ["reference", "worker"]

torch.set_num_threads(1)
