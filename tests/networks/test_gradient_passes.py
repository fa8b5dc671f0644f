"""Parameters that training changes: layers skipped at random or routed to, frozen ones, those of evaluation alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.examined_modules import facts
from torch import Tensor, nn

from supermask.networks.network import Network
from supermask.study.networks import read_network_facts


class Unfreezes(nn.Module):
    """A layer that the constructor holds fixed and the first training pass releases, and one that stays fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fixed, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.body.requires_grad_(False)
        self.fixed.requires_grad_(False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.body.requires_grad_(self.training)
        logits: Tensor = self.head(self.fixed(self.body(x.flatten(1))).relu())
        return logits


def test_only_parameters_without_requires_grad_are_recorded_as_frozen() -> None:
    found = facts(Unfreezes)
    assert {t.name for t in found.unmasked if t.is_frozen} == {"fixed.weight", "fixed.bias"}
    assert {t.name for t in found.unmasked if t.trained} == {"body.bias", "head.bias"}
    data = found.to_data()
    assert [t["name"] for t in data["unmasked"] if "is_frozen" in t] == ["fixed.weight", "fixed.bias"]
    assert read_network_facts(data) == found
    # Facts of earlier versions do not say which parameters are frozen: nothing is checked.
    for tensor in data["unmasked"]:
        tensor.pop("is_frozen", None)
    earlier = read_network_facts(data)
    assert earlier is not None
    assert Network("mine:net", found).fixed_names == {"fixed.weight", "fixed.bias"}
    assert Network("mine:net", earlier).fixed_names == frozenset()


class SkipsLayers(nn.Module):
    """Three blocks, each left out of a training pass with probability 3/4, by PyTorch's or Python's generator."""

    def __init__(self, draw: Callable[[], float], skips_in_evaluation: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 8), nn.Linear(8, 10)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(3)])
        self.draw, self.skips_in_evaluation = draw, skips_in_evaluation

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            if self.draw() < 0.25 if self.training else not self.skips_in_evaluation:
                x = x + block(x)
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("skips_in_evaluation", [False, True])
@pytest.mark.parametrize(
    "draw", [random.random, np.random.random, lambda: float(torch.rand(()))], ids=["Python", "NumPy", "PyTorch"]
)
def test_layers_that_a_pass_skips_at_random_are_prunable(draw: Callable[[], float], skips_in_evaluation: bool) -> None:
    found = facts(lambda: SkipsLayers(draw, skips_in_evaluation))
    assert [t.name for t in found.tensors] == [
        "stem.weight",
        "head.weight",
        *(f"blocks.{i}.0.weight" for i in range(3)),
    ]
    assert all(t.trained for t in found.unmasked)
    if not skips_in_evaluation:
        assert found.multiplications == 64 * 8 + 3 * 8 * 8 + 8 * 10


class Routed(nn.Module):
    """A mixture of eight experts: each image goes to the one that the router prefers, the others are not called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.router, self.head = nn.Linear(64, 16), nn.Linear(16, 8), nn.Linear(16, 10)
        self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x.flatten(1)).relu()
        share, choice = self.router(h).softmax(1).max(1)
        mixed = h
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero()[:, 0]
            if len(rows):
                mixed = mixed.index_add(0, rows, expert(h[rows]) * share[rows, None])
        logits: Tensor = self.head(mixed)
        return logits


def test_layers_that_images_are_routed_to_are_prunable() -> None:
    found = facts(Routed)
    assert all(t.trained for t in found.unmasked)
    assert [t.name for t in found.tensors] == [
        "embedding.weight",
        "router.weight",
        "head.weight",
        *(f"experts.{i}.weight" for i in range(8)),
    ]


class Scaled(nn.Module):
    """Parts whose gradient only evaluation has, with or without dropout: a scale, and a second head."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body, self.head, self.second = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(8, 10)
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Any:
        h = self.dropout(self.body(x.flatten(1)).relu())
        if self.training:
            return {"logits": self.head(h), "second": self.second(h)}
        return (self.head(h) + self.second(h)) / self.scale


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_only_evaluation_uses_is_not_trained(dropout: float) -> None:
    found = facts(lambda: Scaled(dropout))
    assert [t.name for t in found.tensors] == ["body.weight", "head.weight"]
    assert {t.name for t in found.unmasked if t.trained} == {"body.bias", "head.bias"}
    assert not any(t.is_frozen for t in found.unmasked)


class CountsGradients(nn.Module):
    """Counts the backward passes of its body; `kind` is a part without a gradient, or dropout."""

    def __init__(self, kind: str, backward_passes: list[int]) -> None:
        super().__init__()
        self.body, self.head, self.dropout = nn.Linear(64, 8), nn.Linear(8, 10), nn.Dropout(0.1 * (kind == "dropout"))
        self.unused = nn.Linear(3, 3) if kind == "unused" else None
        self.body.weight.register_hook(lambda gradient: backward_passes.append(len(gradient)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.dropout(self.body(x.flatten(1)).relu()))
        return logits


def test_one_gradient_pass_is_enough_if_every_parameter_has_a_gradient() -> None:
    passes: dict[str, list[int]] = {"plain": [], "dropout": [], "unused": []}
    for kind, made in passes.items():
        facts(lambda kind=kind, made=made: CountsGradients(kind, made))  # type: ignore[misc]
    assert len(passes["plain"]) == len(passes["dropout"]) < len(passes["unused"])


class Bounded(SkipsLayers):
    """Takes pixels in [0, 1] only."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0 and x.max() <= 1
        return super().forward(x)


def test_varied_images_that_the_module_refuses_are_left_out() -> None:
    assert len(facts(lambda: Bounded(random.random, skips_in_evaluation=True)).tensors) == 5
