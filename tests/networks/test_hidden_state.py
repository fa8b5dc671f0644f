"""State of modules outside their `state_dict`: what is refused, and what may stay."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.examined_modules import KeepsTable, Linear, facts
from torch import Tensor, nn

from supermask.core.errors import UserError


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
