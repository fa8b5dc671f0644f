"""Preloads what the reference engine needs to train."""

import torch

# PyTorch delays about a second of its own imports until the first optimizer is created; the sparse engine has its own.
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], fused=True)
