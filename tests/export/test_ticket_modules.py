"""Tickets in PyTorch modules: supermask's and anybody's, by name, by map, by order, and pruned in PyTorch's own way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from supermask import Ticket, UserError, load_ticket, save_ticket
from supermask.core.rng import random_stream
from supermask.core.types import Weights
from supermask.networks.sequential import architecture, build_module, prunable_tensors

FC = architecture("fc-8", (1, 8, 8), 10)
CONV = architecture("conv2", (1, 8, 8), 10)


def masks(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """A third of each."""
    rng = random_stream(0, "masks")
    return {name: torch.from_numpy(rng.random(shape) < 1 / 3) for name, shape in shapes.items()}


SHAPES: dict[str, tuple[int, ...]] = {"fc1.weight": (8, 64), "fc2.weight": (10, 8)}


def from_seed() -> Ticket:
    return Ticket(masks(SHAPES), network="fc-8", dataset="digits", seed=1)


def trained(frozen: bool = False) -> Ticket:
    """As after a training: other weights, biases, and perhaps frozen values."""
    found = masks(SHAPES)
    torch.manual_seed(0)
    weights = {name: torch.randn(mask.shape) * (mask | frozen) for name, mask in found.items()}
    others = {"fc1.bias": torch.randn(8), "fc2.bias": torch.randn(10)}
    return Ticket(found, weights, others, "fc-8", "digits", 1, frozen=weights if frozen else {})


class Mine(nn.Module):
    """A user's network, with names and a structure of its own; FC-8 on digits, and a normalisation in between."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))  # type: ignore[no-any-return]


NAMES = {
    "fc1.weight": "body.1.weight",
    "fc1.bias": "body.1.bias",
    "fc2.weight": "head.weight",
    "fc2.bias": "head.bias",
}


def state(module: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TICKETS: dict[str, Callable[[], Ticket]] = {
    "from seed": from_seed,
    "trained": trained,
    "frozen": lambda: trained(frozen=True),
}


# --- apply_to ---


@pytest.mark.parametrize("ticket", TICKETS.values(), ids=TICKETS)
def test_a_network_of_supermasks_takes_it_by_name(ticket: Callable[[], Ticket]) -> None:
    module = build_module(FC)
    assert ticket().apply_to(module) is module
    assert same(state(module), ticket().network_weights())
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("how", [{"names": NAMES}, {"match": "order"}])
@pytest.mark.parametrize("ticket", TICKETS.values(), ids=TICKETS)
def test_a_module_of_ones_own_takes_it_and_keeps_the_rest(ticket: Callable[[], Ticket], how: dict[str, Any]) -> None:
    module = Mine()
    before, network = state(module), ticket().network_weights()
    ticket().apply_to(module, **how)
    expected = before | {NAMES[name]: tensor for name, tensor in network.items()}
    assert same(state(module), expected)


def test_what_it_computes_is_the_masked_network() -> None:
    """Against NumPy: the masks are multiplied here."""
    ticket, images = trained(), torch.rand(5, 64)
    network = {n: t.numpy() * (ticket.masks[n].numpy() if n in SHAPES else 1) for n, t in trained().weights.items()}
    others = {n: t.numpy() for n, t in (ticket.others or {}).items()}
    hidden = (images.numpy() @ network["fc1.weight"].T + others["fc1.bias"]).clip(min=0)
    expected = hidden @ network["fc2.weight"].T + others["fc2.bias"]
    found = ticket.apply_to(build_module(FC))(images.reshape(5, 1, 8, 8)).detach().numpy()
    assert abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_keeps_its_dtype(dtype: torch.dtype) -> None:
    module = trained().apply_to(build_module(FC).to(dtype))
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert torch.equal(state(module)["fc1.weight"], trained().weights["fc1.weight"].to(dtype))


def test_a_convolutional_network_takes_it(tmp_path: Path) -> None:
    found = masks({name: maskable.shape for name, maskable in prunable_tensors(CONV).items()})
    ticket = Ticket(found, {n: torch.rand(m.shape) * m for n, m in found.items()}, {})
    module = load_ticket(save_ticket(ticket, tmp_path / "ticket")).apply_to(build_module(CONV))
    assert all(torch.equal(state(module)[name], weights) for name, weights in ticket.weights.items())


def not_in_order() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 10), nn.Linear(64, 8))


def pruned_already() -> nn.Module:
    module = build_module(FC)
    prune.identity(module.get_submodule("fc1"), "weight")
    return module


@pytest.mark.parametrize(
    ("module", "how", "said"),
    [
        (Mine, {}, r"no tensor 'fc1.weight'.* of shape \(8, 64\).* 'body.1.weight', 'head.weight'.*match='order'"),
        (Mine, {"names": {"fc1.weight": "body.1.weight"}}, "no tensor 'fc2.weight'"),
        (
            Mine,
            {"names": NAMES | {"fc1.bias": "body.1.bia"}},
            "no tensor 'body.1.bia' for .*; did you mean 'body.1.bias'",
        ),
        (Mine, {"names": NAMES | {"fc3.weight": "x"}}, "the ticket has no tensor 'fc3.weight'; did you mean"),
        (Mine, {"names": NAMES | {"fc1.bias": "body.2.weight", "fc2.bias": "head.weight"}}, r"shape \(10,\)"),
        (Mine, {"names": NAMES | {"fc1.bias": "body.2.num_batches_tracked"}}, r"has shape \(8,\)"),
        (
            not_in_order,
            {"match": "order"},
            r"'fc1.weight' of the ticket has shape \(8, 64\), and '0.weight' .* \(10, 8\)",
        ),
        (lambda: nn.Linear(64, 8), {"match": "order"}, "has 2 masks, and the module 1 Linear and Conv layers"),
        (Mine, {"match": "luck"}, "match='luck': allowed are 'name' and 'order'"),
        (pruned_already, {}, "'fc1.weight' of the module is pruned already: torch.nn.utils.prune.remove it first"),
        (
            lambda: nn.Sequential(nn.Linear(64, 8, False), nn.Linear(8, 10, False)),
            {"match": "order"},
            "tensor '0.bias'",
        ),
        (lambda: build_module(FC).to("meta"), {}, "on the meta device"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_changed(
    module: Callable[[], nn.Module], how: dict[str, Any], said: str
) -> None:
    given = module()
    before = state(given)
    for method in (trained().apply_to, trained().to_torch_prune):
        with pytest.raises(UserError, match=said):
            method(given, **how)
        assert before.keys() == state(given).keys()
        assert all(t.is_meta or torch.equal(before[name], t) for name, t in state(given).items())


def test_two_tensors_do_not_go_to_one_place() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    mask = torch.ones(4, 4, dtype=torch.bool)
    ticket = Ticket({"a": mask, "b": mask}, {"a": torch.rand(4, 4), "b": torch.rand(4, 4)}, {})
    with pytest.raises(UserError, match=r"'a' and 'b' of the ticket would both go to '1\.weight'"):
        ticket.apply_to(module, {"a": "1.weight", "b": "1.weight"})


# --- torch.nn.utils.prune ---


@pytest.mark.parametrize("how", [{"names": NAMES}, {"match": "order"}])
def test_pruned_in_pytorchs_way_and_back(how: dict[str, Any], tmp_path: Path) -> None:
    ticket = trained()
    module = ticket.to_torch_prune(Mine(), **how)
    assert prune.is_pruned(module)
    assert torch.equal(module.head.weight_mask, ticket.masks["fc2.weight"].float())
    assert isinstance(module.head.weight_orig, nn.Parameter)
    again = Ticket.from_torch_prune(module, NAMES)
    assert same(again.masks, ticket.masks)
    assert same(again.weights, ticket.weights)
    assert again.others is not None
    assert again.others.keys() - (ticket.others or {}).keys() == {n for n in state(module) if n.startswith("body.2.")}
    assert same(load_ticket(save_ticket(again, tmp_path / "ticket")).network_weights(), again.network_weights())


@pytest.mark.parametrize("ticket", [from_seed, trained])
def test_a_network_of_supermasks_there_and_back(ticket: Callable[[], Ticket]) -> None:
    module = ticket().to_torch_prune(build_module(FC))
    again = Ticket.from_torch_prune(module, network="fc-8", dataset="digits", seed=1, facts={"mine": True})
    assert same(again.network_weights(), ticket().network_weights())
    assert same(again.initial_weights(), ticket().initial_weights())
    assert list(again.masks) == list(SHAPES)
    assert again.facts == {"mine": True}


def test_a_mask_holds_while_a_module_trains_and_remove_makes_it_permanent() -> None:
    module = trained().to_torch_prune(Mine(), NAMES)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.rand(20, 64)).square().sum().backward()
        optimizer.step()
    pruned = ~trained().masks["fc2.weight"]
    assert not module.head.weight[pruned].any()
    assert not torch.equal(module.head.weight, trained().weights["fc2.weight"])
    prune.remove(module.head, "weight")
    prune.remove(module.body[1], "weight")
    assert not prune.is_pruned(module)
    assert not module.head.weight[pruned].any()


def test_pytorchs_own_pruning_becomes_a_ticket_with_ones_where_nothing_was_pruned(tmp_path: Path) -> None:
    module = Mine()
    prune.l1_unstructured(module.head, "weight", amount=0.5)
    before = state(module)
    ticket = load_ticket(save_ticket(Ticket.from_torch_prune(module), tmp_path / "ticket"))
    assert same(state(module), before)
    assert {name: int(mask.sum()) for name, mask in ticket.masks.items()} == {"body.1.weight": 512, "head.weight": 40}
    images = torch.rand(7, 64)
    assert torch.equal(ticket.apply_to(Mine()).eval()(images), module.eval()(images))


def test_half_precision_is_taken_exactly_and_double_is_refused() -> None:
    half = build_module(FC).half()
    prune.random_unstructured(half.get_submodule("fc1"), "weight", amount=0.5)
    ticket = Ticket.from_torch_prune(half)
    assert torch.equal(ticket.weights["fc1.weight"], half.get_submodule("fc1").weight.float())
    again = state(ticket.apply_to(build_module(FC).half()))
    assert same(again, {name: tensor.half() for name, tensor in ticket.network_weights().items()})
    double = build_module(FC).double()
    prune.random_unstructured(double.get_submodule("fc1"), "weight", amount=0.5)
    with pytest.raises(UserError, match=r"is torch.float64, and a ticket holds float32"):
        Ticket.from_torch_prune(double)


def test_what_pytorchs_convention_cannot_say_is_refused() -> None:
    with pytest.raises(UserError, match=r"pruned weights of 'fc1\.weight' are not 0"):
        trained(frozen=True).to_torch_prune(build_module(FC))


def test_what_is_no_ticket_is_refused() -> None:
    with pytest.raises(UserError, match="nothing in this module is pruned"):
        Ticket.from_torch_prune(Mine())
    module = Mine()
    prune.random_unstructured(module.head, "bias", amount=0.5)
    with pytest.raises(UserError, match=r"'head.bias' is pruned, but it is no kernel"):
        Ticket.from_torch_prune(module)
    module = Mine()
    prune.custom_from_mask(module.head, "weight", torch.full((10, 8), 0.5))  # type: ignore[no-untyped-call]
    with pytest.raises(UserError, match="holds other numbers than 0 and 1"):
        Ticket.from_torch_prune(module)
    prune.remove(module.head, "weight")
    prune.identity(module.head, "weight")
    with pytest.raises(UserError, match=r"no tensor 'nowhere' for 'fc1\.weight'"):
        Ticket.from_torch_prune(module, {"fc1.weight": "nowhere"})
    with pytest.raises(UserError, match="in fc-8 on digits"):
        Ticket.from_torch_prune(module, network="fc-8", dataset="digits", seed=0)


def test_two_tensors_do_not_go_to_one_that_is_tied() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    module[2].weight = module[0].weight
    masks = {"a": torch.ones(4, 4, dtype=torch.bool), "b": torch.ones(4, 4, dtype=torch.bool)}
    weights = {"a": torch.ones(4, 4), "b": torch.zeros(4, 4)}
    before = module[0].weight.clone()
    with pytest.raises(UserError, match="would both go to"):
        Ticket(masks, weights, {}).apply_to(module, match="order")
    assert torch.equal(module[0].weight, before)
