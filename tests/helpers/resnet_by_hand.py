"""ResNet-20 and its lottery tickets in plain PyTorch: written from the papers, sharing no code with supermask.

Sources: He et al. 2015, Sec. 4.2 (network, SGD); Frankle & Carbin 2019 and Zhou et al. 2019, Sec. 1 (pruning); the
rewinding of all tensors to an early iteration: Zhou et al. 2019, authors' response, item 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


class Residual(nn.Module):
    """y = relu(x + f(x)); where the image is halved, every second pixel of x, with channels of zeros around."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.halves = before != after
        self.f = nn.Sequential(
            nn.Conv2d(before, after, 3, 2 if self.halves else 1, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.halves:
            return (x + self.f(x)).clamp(min=0)
        small = x[:, :, ::2, ::2]
        zeros = torch.zeros_like(small[:, : small.shape[1] // 2])
        return (torch.cat([zeros, small, zeros], 1) + self.f(x)).clamp(min=0)


def resnet20(width: int, channels: int, classes: int) -> nn.Sequential:
    """Nine blocks in three stages; the order of its tensors is that of any ResNet-20 written top to bottom."""
    widths = [width] * 4 + [2 * width] * 3 + [4 * width] * 3
    blocks = [Residual(before, after) for before, after in pairwise(widths)]
    stem = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def is_kernel(tensor: Tensor) -> bool:
    """Convolution and Linear kernels are the only tensors of more than one dimension."""
    return tensor.ndim > 1


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[np.ndarray],
    masks: Tensors,
    rates: Sequence[float],
    momentum: float,
    decay: float,
) -> list[float]:
    """Train with SGD (v = momentum v + g + decay w; w -= rate v), kept weights only; return the loss of every step."""
    net.train()
    velocity = {name: torch.zeros_like(w) for name, w in net.named_parameters()}
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        log_p = net(images[batch]).log_softmax(1)
        loss = -log_p[torch.arange(len(batch)), labels[batch]].mean()
        net.zero_grad()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for name, w in net.named_parameters():
                assert w.grad is not None
                velocity[name] = momentum * velocity[name] + w.grad + decay * w
                w -= rate * velocity[name] * masks.get(name, torch.ones_like(w))
    return losses


def prune(weights: Tensors, masks: Tensors, rates: dict[str, float]) -> Tensors:
    """Remove the smallest `rates[name]` of the kept weights of each layer; with the one rate `all`, of all layers."""
    if "all" in rates:
        kept = torch.cat([weights[n][masks[n]].abs() for n in masks]).sort().values
        cut = kept[round(len(kept) * rates["all"]) - 1]  # round() rounds half to even
        return {n: masks[n] & (weights[n].abs() > cut) for n in masks}
    pruned = {}
    for name, mask in masks.items():
        kept = weights[name][mask].abs().sort().values
        count = round(len(kept) * rates[name])
        pruned[name] = mask & (weights[name].abs() > kept[count - 1]) if count else mask
    return pruned
