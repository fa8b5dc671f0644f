"""Examination of modules: prunable tensors of every kind of layer, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.examined_modules import SHAPE, KeepsTable, Linear, facts
from torch import Tensor, nn

from supermask.core.errors import UserError
from supermask.networks.examination import examine_module


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


class OwnLayer(nn.Module):
    """A layer with a parameter of its own, which no rule of pruning covers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(10, 64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.kernel.T


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another shape": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 7)),
        "gives an output of shape (4, 7) for images of shape (4, 1, 8, 8); it needs (batch, classes) = (4, 10)",
    ),
    "no module": (lambda: 3, "gives int, not a torch.nn.Module"),
    "no weight": (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), "an output of shape (4, 64)"),
    "layers of the user alone": (
        OwnLayer,
        "has no prunable weight: it has no Linear, Conv, attention or recurrent layer. Parameters of layers that you "
        "wrote yourself are trained but never pruned: make their matrices nn.Linear layers.",
    ),
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
