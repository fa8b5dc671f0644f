"""Examination of modules: prunable tensors of every kind of layer, and what is refused."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from supermask.core.errors import UserError
from supermask.networks.examination import examine_module
from supermask.networks.network import Network, NetworkFacts
from supermask.study.networks import read_network_facts

SHAPE = (1, 8, 8)


def facts(make: Callable[[], nn.Module], classes: int = 10) -> NetworkFacts:
    return examine_module(make, SHAPE, classes, "mine:net")


class Pixels(nn.Module):
    """Images `(n, 1, 8, 8)` as `(n, 64, 1)`, a sequence of pixels, or as rows `(n, 8, 8)`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, self.size)


class Last(nn.Module):
    def forward(self, x: tuple[Tensor, Any]) -> Tensor:
        return x[0][:, -1]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[tuple[int, ...], str, tuple[int, int]]]]] = {
    "a grouped and strided convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, stride=2, groups=2), Mean(), nn.Linear(6, 10)),
        {
            "0.weight": ((4, 1, 3, 3), "conv", (9, 36)),
            "1.weight": ((6, 2, 3, 3), "conv", (18, 27)),
            "3.weight": ((10, 6), "output", (6, 10)),
        },
    ),
    "a dilated convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, dilation=2), Mean(), nn.Linear(4, 10)),
        {"0.weight": ((4, 1, 3, 3), "conv", (9, 36)), "2.weight": ((10, 4), "output", (4, 10))},
    ),
    "a transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 5, 3, stride=2), Mean(), nn.Linear(5, 10)),
        {"0.weight": ((1, 5, 3, 3), "conv", (9, 45)), "2.weight": ((10, 5), "output", (5, 10))},
    ),
    "a convolution over one dimension": (
        lambda: nn.Sequential(Pixels(8), nn.Conv1d(8, 3, 3), Mean(), nn.Linear(3, 10)),
        {"1.weight": ((3, 8, 3), "conv", (24, 9)), "3.weight": ((10, 3), "output", (3, 10))},
    ),
    "a convolution over three dimensions": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 1)), nn.Conv3d(1, 2, (1, 3, 3)), Mean(), nn.Linear(2, 10)),
        {"1.weight": ((2, 1, 1, 3, 3), "conv", (9, 18)), "3.weight": ((10, 2), "output", (2, 10))},
    ),
    "a recurrent layer": (
        lambda: nn.Sequential(Pixels(8), nn.LSTM(8, 5, batch_first=True), Last(), nn.Linear(5, 10)),
        {
            "1.weight_ih_l0": ((20, 8), "hidden", (8, 20)),
            "1.weight_hh_l0": ((20, 5), "hidden", (5, 20)),
            "3.weight": ((10, 5), "output", (5, 10)),
        },
    ),
    "a transformer": (
        lambda: nn.Sequential(
            Pixels(8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Rows(), nn.Linear(8, 10)
        ),
        {
            "1.self_attn.in_proj_weight": ((24, 8), "hidden", (8, 24)),
            "1.self_attn.out_proj.weight": ((8, 8), "hidden", (8, 8)),
            "1.linear1.weight": ((16, 8), "hidden", (8, 16)),
            "1.linear2.weight": ((8, 16), "hidden", (16, 8)),
            "3.weight": ((10, 8), "output", (8, 10)),
        },
    ),
    "a convolution that gives the logits": (
        lambda: nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        {"0.weight": ((10, 1, 3, 3), "output", (9, 90))},
    ),
    "a lazy layer": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(10)),
        {"1.weight": ((5, 64), "hidden", (64, 5)), "3.weight": ((10, 5), "output", (5, 10))},
    ),
}


@pytest.mark.parametrize("case", LAYERS)
def test_prunable_tensors_of_every_kind_of_layer(case: str) -> None:
    make, expected = LAYERS[case]
    assert {t.name: (t.shape, t.kind, t.fans) for t in facts(make).tensors} == expected


def test_a_shared_weight_counts_once() -> None:
    def make() -> nn.Module:
        layer = nn.Linear(64, 64)
        return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.Linear(64, 10))

    found = facts(make)
    assert [t.name for t in found.tensors] == ["1.weight", "4.weight"]
    assert found.aliases == (("3.bias", "1.bias"), ("3.weight", "1.weight"))
    assert found.multiplications == 2 * 64 * 64 + 64 * 10


def test_tied_weights_of_two_layers_count_once() -> None:
    def make() -> nn.Module:
        a, b = nn.Linear(64, 64), nn.Linear(64, 64)
        b.weight = a.weight
        return nn.Sequential(nn.Flatten(), a, b, nn.Linear(64, 10))

    assert [t.name for t in facts(make).tensors] == ["1.weight", "3.weight"]


class Tied(nn.Module):
    """A weight that is first registered by `first`, which is no prunable layer, and used by two linear layers."""

    def __init__(self, first: Callable[[], Any]) -> None:
        super().__init__()
        self.first = first()
        self.a, self.b, self.head = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 10)
        self.a.weight = self.b.weight = self.first if isinstance(self.first, nn.Parameter) else self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.a(x.flatten(1)).relu() + self.b(x.flatten(1)))
        return logits


@pytest.mark.parametrize(
    ("first", "name"),
    [(lambda: nn.Parameter(torch.randn(32, 64)), "first"), (lambda: nn.Embedding(32, 64), "first.weight")],
    ids=["a parameter", "an embedding"],
)
def test_a_shared_weight_is_prunable_if_any_of_its_layers_is(first: Callable[[], Any], name: str) -> None:
    found = facts(lambda: Tied(first))
    assert [(t.name, t.kind, t.fans) for t in found.tensors] == [
        (name, "hidden", (64, 32)),
        ("head.weight", "output", (32, 10)),
    ]
    assert found.aliases == (("a.weight", name), ("b.weight", name))
    assert name not in {t.name for t in found.unmasked}
    assert found.multiplications == 2 * 64 * 32 + 32 * 10


def test_multiplications() -> None:
    assert facts(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Mean(), nn.Linear(4, 10))).multiplications == (
        9 * 4 * 64 + 4 * 10
    )
    transposed = lambda: nn.Sequential(nn.ConvTranspose2d(1, 5, 2, stride=2), Mean(), nn.Linear(5, 10))  # noqa: E731
    assert facts(transposed).multiplications == 64 * 5 * 4 + 50


def test_unmasked_tensors_and_what_trains() -> None:
    def make() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))
        module[1].bias.requires_grad_(False)  # type: ignore[union-attr]
        return module

    trained = {t.name: t.trained for t in facts(make).unmasked}
    assert trained == {
        "1.bias": False,
        "2.weight": True,
        "2.bias": True,
        "2.running_mean": False,
        "2.running_var": False,
        "2.num_batches_tracked": False,
        "3.bias": True,
    }


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


class TwoHeads(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.head, self.other, self.kind = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(8, 3), kind

    def forward(self, x: Tensor) -> Any:
        y = self.body(x.flatten(1)).relu()
        if self.kind == "dict":
            return {"logits": self.head(y), "other": self.other(y)}
        return self.head(y), self.other(y)


def test_of_several_heads_the_one_called_logits_is_used() -> None:
    found = facts(lambda: TwoHeads("dict"))
    assert {t.name: t.kind for t in found.tensors} == {"body.weight": "hidden", "head.weight": "output"}
    assert {t.name for t in found.unmasked if not t.trained} == {"other.weight", "other.bias"}
    with pytest.raises(UserError, match=r"returns a tuple of 2 \(\(4, 10\), \(4, 3\)\): return the logits alone"):
        facts(lambda: TwoHeads("tuple"))


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


class ChangesParameter(Linear):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.clamp_(-0.01, 0.01)
        return super().forward(x)


class Counts(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Averages(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean + 1
        return super().forward(x)


class FillsBuffer(Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(x)


class Infinite(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


class Detached(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Raises(Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("missing")


class ReadsNoise(Linear):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            generator = torch.Generator()
            generator.seed()
            self.layer.weight.copy_(torch.rand(10, 64, generator=generator))


class Recurrent(nn.Module):
    """A recurrent layer over rows; `normalize` computes one of its weights from other tensors."""

    def __init__(self, kind: type[nn.RNNBase], normalize: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.rows, self.head = normalize(kind(8, 5, batch_first=True), "weight_hh_l0"), nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rows(x.squeeze(1))[0][:, -1])
        return logits


class Attention(nn.Module):
    """Attention over rows, whose input projection is computed from other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.utils.weight_norm(nn.MultiheadAttention(8, 2, batch_first=True), "in_proj_weight")
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.squeeze(1)
        logits: Tensor = self.head(self.rows(rows, rows, rows)[0].mean(1))
        return logits


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_weights_computed_from_other_tensors_are_refused(
    kind: type[nn.RNNBase], normalize: Callable[..., nn.Module]
) -> None:
    with pytest.raises(UserError, match="its module 'rows' computes its weight from other tensors"):
        facts(lambda: Recurrent(kind, normalize))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_attention_weights_computed_from_other_tensors_are_refused() -> None:
    with pytest.raises(UserError, match="its module 'rows' computes its weight from other tensors"):
        facts(Attention)


class Seeds(Linear):
    """Seeds a global generator in its constructor."""

    def __init__(self, seed: Callable[[int], object], value: int) -> None:
        seed(value)
        super().__init__()


@pytest.mark.parametrize("value", [0, 42])
@pytest.mark.parametrize("seed", [torch.manual_seed, np.random.seed, random.seed], ids=["PyTorch", "NumPy", "Python"])
def test_a_constructor_that_seeds_a_global_generator_is_refused(seed: Callable[[int], object], value: int) -> None:
    with pytest.raises(UserError, match=r"its constructor seeds a global generator .*: leave that out"):
        facts(lambda: Seeds(seed, value))


def test_a_constructor_may_seed_inside_of_a_fork() -> None:
    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(42)
            module = Linear()
        nn.init.normal_(module.layer.bias)
        return module

    assert facts(make).tensors


class KeepsTable(Linear):
    """Computes a table at its first forward pass and keeps it."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(0, 1, 64)
        return super().forward(x.flatten(1) * self.table)


def test_a_tensor_that_the_first_evaluation_computes_may_be_trained_with() -> None:
    assert facts(KeepsTable).tensors


class Squeezes(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def test_one_image_must_be_evaluated() -> None:
    expected = r"output of shape \(10,\) for images of shape \(1, 1, 8, 8\); it needs .* \(1, 10\) in evaluation mode"
    with pytest.raises(UserError, match=expected):
        facts(Squeezes)


def test_a_training_pass_has_the_batch_size_of_the_recipe() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))

    for batch_size in (None, 2, 60):
        assert examine_module(make, SHAPE, 10, "mine:net", batch_size) == facts(make)
    with pytest.raises(UserError, match=r"pass of 1 image of shape \(1, 8, 8\) in training mode failed.*: ValueError"):
        examine_module(make, SHAPE, 10, "mine:net", 1)


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("no gradient here")


class NoBackward(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return FailsBackward.apply(super().forward(x))  # type: ignore[no-any-return,no-untyped-call]


class Running(Linear):
    """A mean over the batches seen in training, in an attribute that is None at first."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, None)

    def forward(self, x: Tensor) -> Tensor:
        x, mean = x.flatten(1), getattr(self, self.name)
        if self.training:
            mean = x.mean(0) if mean is None else 0.9 * mean + 0.1 * x.mean(0)
            setattr(self, self.name, mean)
        return super().forward(x if mean is None else x - mean)


class Counting(Linear):
    """A counter in a container or under a private name, on which the logits may depend."""

    def __init__(self, start: Any, is_used: bool) -> None:
        super().__init__()
        self._count, self.is_used = start, is_used

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self._count, int):
            self._count += 1
            number = self._count
        elif isinstance(self._count, tuple):
            self._count = (self._count[0] + 1,)
            number = self._count[0]
        else:
            key: Any = "n" if isinstance(self._count, dict) else 0
            self._count[key] += 1
            number = self._count[key]
        return super().forward(x) / (number if self.is_used else 1)


@pytest.mark.parametrize("is_used", [True, False])
@pytest.mark.parametrize("start", [0, (0,), [0], {"n": 0}, np.zeros(1)], ids=lambda value: type(value).__name__)
def test_counters_outside_the_state_dict_are_refused(start: Any, is_used: bool) -> None:
    with pytest.raises(UserError, match="its forward pass changes its attribute '_count', which is not in its state_"):
        facts(lambda: Counting(deepcopy(start), is_used))


@pytest.mark.parametrize("name", ["mean_of_all", "_mean"])
def test_statistics_outside_the_state_dict_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"its logits depend on its attribute '{name}' that earlier forward passes set"):
        facts(lambda: Running(name))


class OwnGenerator(Linear):
    """Draws from a generator of its own, whose state no run stores."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.rand(x.shape, generator=self.generator))


class KeepsWeight(Linear):
    """Computes a value from its weight once."""

    scale: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = float(self.layer.weight.abs().mean())
        return super().forward(x) / self.scale


def test_logits_may_not_depend_on_earlier_passes() -> None:
    with pytest.raises(UserError, match="its logits depend on something that earlier forward passes set"):
        facts(OwnGenerator)
    with pytest.raises(UserError, match="its logits depend on its attribute 'scale' that earlier forward passes set"):
        facts(KeepsWeight)


class Constrained(Linear):
    """Parameters with a domain: a standard deviation, a gate that starts at 0, and a probability."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.full((64,), 1e-6))
        self.gate, self.probability = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.ones(64))

    def forward(self, x: Tensor) -> Tensor:
        assert (self.gate >= 0).all()
        p = torch.distributions.Bernoulli(self.probability).mean
        noise = torch.distributions.Normal(torch.zeros(64), self.sigma).rsample()
        return super().forward((x.flatten(1) + noise) * (p + self.gate))


class Exact(Linear):
    """Takes the initial value of a parameter only; `counts` makes its logits depend on a counter."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.scale, self.counts = nn.Parameter(torch.ones(1)), counts
        self.passes: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale == 1
        self.passes = (self.passes or 0) + 1
        return super().forward(x) * self.scale / (self.passes if self.counts else 1)


def test_parameters_stay_in_their_domain() -> None:
    assert facts(Constrained).tensors
    assert facts(lambda: Exact(counts=False)).tensors
    with pytest.raises(UserError, match="its logits depend on its attribute 'passes' that earlier forward passes set"):
        facts(lambda: Exact(counts=True))


class Remembers(Linear):
    """Keeps its last features in attributes that nothing reads, and sizes and tables of its first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.tables, self._size = None, {}, (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self._size = tuple(x.shape[2:])
        if self._size not in self.tables:
            self.tables[self._size] = torch.linspace(0, 1, 64)
        return super().forward(x.flatten(1) * self.tables[self._size])


def test_caches_and_records_that_change_no_logits_are_allowed() -> None:
    assert facts(Remembers) == facts(KeepsTable)


class Records(Linear):
    """Sizes, tables and records in attributes that are numbers or tensors at the start; no logits depend on a record.

    A table that the first pass makes is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length, self.height, self._width = 0, 0, 0
        self.auxiliary_loss, self.last_mean, self._last_time, self.first_mean = 0.0, 0.0, 0.0, 0.0
        self.features: list[float] = []
        self.sums = [0.0]
        self.register_buffer("table", torch.zeros(0), persistent=False)
        self.register_buffer("last", torch.zeros(10), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        start = time.perf_counter()
        self.height, self._width = x.shape[2:]
        x = x.flatten(1)
        if self.length < x.shape[1]:
            self.table, self.length = torch.linspace(0, 1, x.shape[1]), x.shape[1]
        logits = super().forward(x * self.table)
        self.auxiliary_loss = logits.square().mean()  # type: ignore[assignment]
        self.last_mean = self.sums[0] = float(logits.mean().detach())
        self.first_mean = self.first_mean or self.last_mean
        self.features.append(self.last_mean)
        self.last.copy_(logits.detach().mean(0))
        self._last_time = time.perf_counter() - start
        return logits


def test_records_may_start_as_numbers_and_tensors() -> None:
    assert facts(Records) == facts(KeepsTable)


class Alternates(Linear):
    """Changes its logits in every `period`-th pass, or in every `period`-th one in training."""

    def __init__(self, period: int, training_only: bool, is_used: bool) -> None:
        super().__init__()
        self.phase, self.period, self.training_only, self.is_used = 0, period, training_only, is_used

    def forward(self, x: Tensor) -> Tensor:
        if self.training or not self.training_only:
            self.phase = (self.phase + 1) % self.period
        return super().forward(x) * (2 if self.is_used and not self.phase else 1)


@pytest.mark.parametrize("training_only", [False, True])
@pytest.mark.parametrize("period", [2, 3, 4])
def test_values_that_alternate_are_refused(period: int, training_only: bool) -> None:
    for is_used in (True, False):
        with pytest.raises(UserError, match=r"changes its attribute 'phase'|logits depend on"):
            facts(lambda is_used=is_used: Alternates(period, training_only, is_used))  # type: ignore[misc]


class Previous(Linear):
    """Reads a value of the pass before and replaces it."""

    def __init__(self) -> None:
        super().__init__()
        self.previous = 0.0

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x.flatten(1) - self.previous)
        self.previous = float(x.mean())
        return logits


def test_a_record_that_the_next_pass_reads_is_refused() -> None:
    with pytest.raises(UserError, match="its logits depend on its attribute 'previous' that earlier forward passes"):
        facts(Previous)


def object_array() -> Any:
    values = np.empty(2, dtype=object)
    values[:] = [np.zeros(2), np.array([1.0, np.nan])]
    return values


CONSTANTS: dict[str, Callable[[], Any]] = {
    "an array with NaN": lambda: np.array([0.5, np.nan]),
    "a tensor with NaN and infinity": lambda: torch.tensor([0.5, torch.nan, torch.inf]),
    "complex numbers": lambda: torch.tensor([1j, complex(torch.nan, 0)]),
    "an array of arrays": object_array,
    "an array of texts": lambda: np.array(["a", "b"]),
    "a structured array": lambda: np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
    "dates": lambda: np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
    "a sparse tensor": lambda: torch.eye(4).to_sparse(),
    "a sparse tensor in rows": lambda: torch.eye(4).to_sparse_csr(),
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "a tensor without values": lambda: torch.empty(3, device="meta"),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "an expanded tensor": lambda: torch.ones(1).expand(16),
}


class Keeps(Linear):
    """A constant of any kind outside the `state_dict`."""

    def __init__(self, constant: Any) -> None:
        super().__init__()
        self.constant = constant
        if isinstance(constant, Tensor):
            self.register_buffer("buffered", constant, persistent=False)


@pytest.mark.filterwarnings("ignore:.*is in (beta|prototype):UserWarning", "ignore:.*deprecated.*:UserWarning")
@pytest.mark.parametrize("kind", CONSTANTS)
def test_constants_of_every_kind_are_allowed(kind: str) -> None:
    assert facts(lambda: Keeps(CONSTANTS[kind]())).tensors


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(4, 4).to_sparse(),
        lambda: np.array([np.random.rand(2), None], dtype=object),
        lambda: torch.cat([torch.tensor([torch.nan]), torch.rand(1)]),
    ],
    ids=["a sparse tensor", "an array of arrays", "a tensor with NaN"],
)
def test_constants_that_are_drawn_are_refused(draw: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match="its constructor draws its attribute 'constant'"):
        facts(lambda: Keeps(draw()))


class ChangesImages(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


def test_a_module_may_change_its_images() -> None:
    assert facts(ChangesImages).tensors


class Projects(Linear):
    """A random matrix that is drawn in the constructor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        matrix = torch.randn(64, 64)
        if kind == "persistent":
            self.register_buffer("matrix", matrix)
        elif kind == "not persistent":
            self.register_buffer("matrix", matrix, persistent=False)
        elif kind == "a module in a list":
            self.matrices = [nn.Linear(64, 64)]
        else:
            self.matrix: Any = {"an attribute": matrix, "an array": matrix.numpy(), "a dict": {"of": [matrix]}}[kind]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", ["not persistent", "an attribute", "an array", "a dict", "a module in a list"])
def test_draws_of_the_constructor_outside_the_state_dict_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=r"draws its attribute 'matri.*: register it with register_buffer \(persistent"):
        facts(lambda: Projects(kind))
    assert facts(lambda: Projects("persistent")).tensors


def test_the_examination_leaves_no_changed_parameter() -> None:
    weight = Linear().layer.weight.detach()
    made: list[Linear] = []

    def make() -> nn.Module:
        made.append(Linear())
        with torch.no_grad():
            made[-1].layer.weight.copy_(weight)
        return made[-1]

    assert facts(make).tensors[0].own_std == float(weight.double().square().mean().sqrt())


def with_buffer(make: Callable[[], Tensor]) -> nn.Module:
    module = Linear()
    module.register_buffer("mask", make())
    return module


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another shape": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
        "gives an output of shape (4, 7) for images of shape (4, 1, 8, 8); it needs (batch, classes) = (4, 10)",
    ),
    "no module": (lambda: 3, "gives int, not a torch.nn.Module"),
    "no weight": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), "an output of shape (4, 64)"),
    "no parameter": (nn.Flatten, "has no parameter that can be trained"),
    "a parameter that forward changes": (ChangesParameter, "changes its parameter 'layer.weight'"),
    "a counter": (Counts, "changes its attribute 'calls'"),
    "an average": (Averages, "changes its attribute 'mean'"),
    "a buffer that is not stored": (FillsBuffer, "changes its attribute 'seen'"),
    "infinite logits": (Infinite, "logits that are not finite"),
    "no gradient": (Detached, "do not depend on its parameters"),
    "an error": (Raises, "failed at line"),
    "an error of the backward pass": (NoBackward, "its backward pass failed at line"),
    "values without a seed": (ReadsNoise, "'layer.weight' has other values each time"),
    "spectral norm": (
        lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(64, 10))),
        "computes its weight from other tensors",
    ),
    "another type": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double(), "is torch.float64"),
    "an expanded buffer": (
        lambda: with_buffer(lambda: torch.ones(1).expand(16)),
        "'mask' has entries that share memory (expand): register a copy, with .clone()",
    ),
    "a sparse buffer": (
        lambda: with_buffer(lambda: torch.eye(4).to_sparse()),
        "'mask' is torch.sparse_coo, which no run can store: register it with persistent=False, or dense",
    ),
    "wrong images": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "its forward pass of 4 images of shape (1, 8, 8)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_modules(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(UserError) as refused:
        facts(make)
    assert message in str(refused.value)
    assert str(refused.value).startswith("network 'mine:net'")
    assert "\n" not in str(refused.value)


def test_the_root_mean_square_is_that_of_the_constructors() -> None:
    found = facts(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 400), nn.Linear(400, 10)))
    # PyTorch draws from U(-b, b) with b = 1 / sqrt(fan_in).
    assert abs(found.tensors[0].own_std / (64**-0.5 / 3**0.5) - 1) < 0.02
