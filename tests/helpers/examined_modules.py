"""Facts of modules, and a small module to vary."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from supermask.networks.examination import examine_module
from supermask.networks.network import NetworkFacts

SHAPE = (1, 8, 8)


def facts(make: Callable[[], nn.Module], classes: int = 10) -> NetworkFacts:
    return examine_module(make, SHAPE, classes, "mine:net")


class Linear(nn.Module):
    """One layer, with a forward pass that the tests below change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.calls = 0
        self.mean = torch.zeros(10)
        self.register_buffer("seen", torch.zeros(10), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


class KeepsTable(Linear):
    """Computes a table at its first forward pass and keeps it."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, 64)
        return super().forward(x.flatten(1) * self.table)
