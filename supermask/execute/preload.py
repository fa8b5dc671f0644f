"""Imported by the server that worker processes are forked from: what takes seconds is done there, once for all.

Making an optimiser is in it because PyTorch puts off a second's worth of its own imports until the first one is made.
"""

import torch

import supermask.engines.reference  # noqa: F401
import supermask.execute.worker  # noqa: F401

torch.set_num_threads(1)
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
