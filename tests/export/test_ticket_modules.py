"""Tickets in PyTorch modules: matching by name, by map and by order, and torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from supermask import Ticket, UserError, load_ticket, save_ticket
from supermask.analysis.masks.sample import with_labels
from supermask.api.mask_loading import mask_from_ticket
from supermask.core.rng import random_stream
from supermask.core.types import Weights
from supermask.networks.sequential import architecture, build_module, prunable_tensors

FC = architecture("fc-8", (1, 8, 8), 10)
CONV = architecture("conv2", (1, 8, 8), 10)


def masks(shapes: dict[str, tuple[int, ...]]) -> Weights:
    """Return masks that keep a third of each tensor."""
    rng = random_stream(0, "masks")
    return {name: torch.from_numpy(rng.random(shape) < 1 / 3) for name, shape in shapes.items()}


SHAPES: dict[str, tuple[int, ...]] = {"fc1.weight": (8, 64), "fc2.weight": (10, 8)}


def from_seed() -> Ticket:
    return Ticket(masks(SHAPES), network="fc-8", dataset="digits", seed=1)


def trained(frozen: bool = False) -> Ticket:
    """Return a ticket with weights, biases and optionally frozen values that differ from the initial ones."""
    found = masks(SHAPES)
    torch.manual_seed(0)
    weights = {name: torch.randn(mask.shape) * (mask | frozen) for name, mask in found.items()}
    others = {"fc1.bias": torch.randn(8), "fc2.bias": torch.randn(10)}
    return Ticket(found, weights, others, "fc-8", "digits", 1, frozen=weights if frozen else {})


class UserNetwork(nn.Module):
    """A user's network: FC-8 on digits with other names and a batch normalization."""

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


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


TICKETS: dict[str, Callable[[], Ticket]] = {
    "from seed": from_seed,
    "trained": trained,
    "frozen": lambda: trained(frozen=True),
}


# --- apply_to ---


@pytest.mark.parametrize("ticket", TICKETS.values(), ids=TICKETS)
def test_supermask_network_by_name(ticket: Callable[[], Ticket]) -> None:
    module = build_module(FC)
    assert ticket().apply_to(module) is module
    assert same(state(module), ticket().network_weights())
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("matching", [{"names": NAMES}, {"match": "order"}])
@pytest.mark.parametrize("ticket", TICKETS.values(), ids=TICKETS)
def test_foreign_module_keeps_its_other_tensors(ticket: Callable[[], Ticket], matching: dict[str, Any]) -> None:
    module = UserNetwork()
    before, network = state(module), ticket().network_weights()
    ticket().apply_to(module, **matching)
    expected = before | {NAMES[name]: tensor for name, tensor in network.items()}
    assert same(state(module), expected)


def test_module_computes_the_masked_network() -> None:
    """Compare with the masked network in NumPy."""
    ticket, images = trained(), torch.rand(5, 64)
    network = {n: t.numpy() * (ticket.masks[n].numpy() if n in SHAPES else 1) for n, t in trained().weights.items()}
    others = {n: t.numpy() for n, t in (ticket.others or {}).items()}
    hidden = (images.numpy() @ network["fc1.weight"].T + others["fc1.bias"]).clip(min=0)
    expected = hidden @ network["fc2.weight"].T + others["fc2.bias"]
    found = ticket.apply_to(build_module(FC))(images.reshape(5, 1, 8, 8)).detach().numpy()
    assert abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_module_keeps_its_dtype(dtype: torch.dtype) -> None:
    module = trained().apply_to(build_module(FC).to(dtype))
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert torch.equal(state(module)["fc1.weight"], trained().weights["fc1.weight"].to(dtype))


def test_convolutional_network(tmp_path: Path) -> None:
    found = masks({name: tensor.shape for name, tensor in prunable_tensors(CONV).items()})
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
    ("module", "matching", "message"),
    [
        (
            UserNetwork,
            {},
            r"no tensor 'fc1.weight'.* of shape \(8, 64\).* 'body.1.weight', 'head.weight'.*match='order'",
        ),
        (UserNetwork, {"names": {"fc1.weight": "body.1.weight"}}, "no tensor 'fc2.weight'"),
        (
            UserNetwork,
            {"names": NAMES | {"fc1.bias": "body.1.bia"}},
            "no tensor 'body.1.bia' for .*; did you mean 'body.1.bias'",
        ),
        (UserNetwork, {"names": NAMES | {"fc3.weight": "x"}}, "the ticket has no tensor 'fc3.weight'; did you mean"),
        (UserNetwork, {"names": NAMES | {"fc1.bias": "body.2.weight", "fc2.bias": "head.weight"}}, r"shape \(10,\)"),
        (UserNetwork, {"names": NAMES | {"fc1.bias": "body.2.num_batches_tracked"}}, r"has shape \(8,\)"),
        (
            not_in_order,
            {"match": "order"},
            r"'fc1.weight' of the ticket has shape \(8, 64\), and '0.weight' .* \(10, 8\)",
        ),
        (lambda: nn.Linear(64, 8), {"match": "order"}, "has 2 masks, and the module 1 Linear or Conv layer "),
        (UserNetwork, {"match": "luck"}, "match='luck': allowed are 'name' and 'order'"),
        (
            pruned_already,
            {},
            r"'fc1.weight' of the module is pruned already: .*prune.remove\(module.get_submodule\('fc1'\), 'weight'\)",
        ),
        (
            lambda: nn.Sequential(nn.Linear(64, 8, False), nn.Linear(8, 10, False)),
            {"match": "order"},
            "tensor '0.bias'",
        ),
        (lambda: build_module(FC).to("meta"), {}, "on the meta device"),
    ],
)
def test_mismatch_is_refused_and_nothing_is_changed(
    module: Callable[[], nn.Module], matching: dict[str, Any], message: str
) -> None:
    target = module()
    before = state(target)
    for method in (trained().apply_to, trained().to_torch_prune):
        with pytest.raises(UserError, match=message):
            method(target, **matching)
        assert before.keys() == state(target).keys()
        assert all(t.is_meta or torch.equal(before[name], t) for name, t in state(target).items())


def test_two_tensors_cannot_go_to_one_target() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    mask = torch.ones(4, 4, dtype=torch.bool)
    ticket = Ticket({"a": mask, "b": mask}, {"a": torch.rand(4, 4), "b": torch.rand(4, 4)}, {})
    with pytest.raises(UserError, match=r"'a' and 'b' of the ticket would both go to '1\.weight'"):
        ticket.apply_to(module, {"a": "1.weight", "b": "1.weight"})


# --- torch.nn.utils.prune ---


@pytest.mark.parametrize("matching", [{"names": NAMES}, {"match": "order"}])
def test_round_trip_through_torch_prune(matching: dict[str, Any], tmp_path: Path) -> None:
    ticket = trained()
    module = ticket.to_torch_prune(UserNetwork(), **matching)
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
def test_round_trip_of_a_supermask_network_through_torch_prune(ticket: Callable[[], Ticket]) -> None:
    module = ticket().to_torch_prune(build_module(FC))
    again = Ticket.from_torch_prune(module, network="fc-8", dataset="digits", seed=1, facts={"mine": True})
    assert same(again.network_weights(), ticket().network_weights())
    assert same(again.initial_weights(), ticket().initial_weights())
    assert list(again.masks) == list(SHAPES)
    assert again.facts == {"mine": True}


def test_mask_stays_during_training_and_remove_makes_it_permanent() -> None:
    module = trained().to_torch_prune(UserNetwork(), NAMES)
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


def test_unpruned_kernels_get_masks_of_ones(tmp_path: Path) -> None:
    module = UserNetwork()
    prune.l1_unstructured(module.head, "weight", amount=0.5)
    before = state(module)
    ticket = load_ticket(save_ticket(Ticket.from_torch_prune(module), tmp_path / "ticket"))
    assert same(state(module), before)
    assert {name: int(mask.sum()) for name, mask in ticket.masks.items()} == {"body.1.weight": 512, "head.weight": 40}
    images = torch.rand(7, 64)
    assert torch.equal(ticket.apply_to(UserNetwork()).eval()(images), module.eval()(images))


def test_half_precision_is_exact_and_double_is_refused() -> None:
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


def test_frozen_values_cannot_be_converted_to_torch_prune() -> None:
    with pytest.raises(UserError, match=r"pruned weights of 'fc1\.weight' are not 0"):
        trained(frozen=True).to_torch_prune(build_module(FC))


def test_modules_that_are_not_tickets_are_refused() -> None:
    with pytest.raises(UserError, match="nothing in this module is pruned"):
        Ticket.from_torch_prune(UserNetwork())
    module = UserNetwork()
    prune.random_unstructured(module.head, "bias", amount=0.5)
    with pytest.raises(UserError, match=r"'head.bias' is pruned, but it is not a kernel"):
        Ticket.from_torch_prune(module)
    module = UserNetwork()
    prune.custom_from_mask(module.head, "weight", torch.full((10, 8), 0.5))  # type: ignore[no-untyped-call]
    with pytest.raises(UserError, match="has values other than 0 and 1"):
        Ticket.from_torch_prune(module)
    prune.remove(module.head, "weight")
    prune.identity(module.head, "weight")
    with pytest.raises(UserError, match=r"no tensor 'nowhere' for 'fc1\.weight'"):
        Ticket.from_torch_prune(module, {"fc1.weight": "nowhere"})
    with pytest.raises(UserError, match="in fc-8 on digits"):
        Ticket.from_torch_prune(module, network="fc-8", dataset="digits", seed=0)


def test_two_tensors_cannot_go_to_tied_weights() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    module[2].weight = module[0].weight
    masks = {"a": torch.ones(4, 4, dtype=torch.bool), "b": torch.ones(4, 4, dtype=torch.bool)}
    weights = {"a": torch.ones(4, 4), "b": torch.zeros(4, 4)}
    before = module[0].weight.clone()
    with pytest.raises(UserError, match="would both go to"):
        Ticket(masks, weights, {}).apply_to(module, match="order")
    assert torch.equal(module[0].weight, before)


# --- modules with computed, shared and missing tensors ---


def half_pruned(index: int = 0) -> nn.Sequential:
    """Return two linear layers, one of them pruned by half."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    prune.l1_unstructured(module[index], "weight", amount=0.5)
    return module


def plain_ticket() -> Ticket:
    """Return the ticket of `half_pruned`."""
    return Ticket.from_torch_prune(half_pruned())


NORMS: dict[str, Callable[[nn.Module], object]] = {
    "WeightNorm": nn.utils.parametrizations.weight_norm,
    "SpectralNorm": nn.utils.parametrizations.spectral_norm,
    "Orthogonal": nn.utils.parametrizations.orthogonal,
    "weight_norm": nn.utils.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_computed_weights_are_refused_with_a_hint_that_works(norm: str) -> None:
    """Weight norm and spectral norm, old and new, are named in both directions."""
    module = half_pruned()
    NORMS[norm](module[1])
    with pytest.raises(
        UserError, match=f"'1.weight' of the module is computed by .*{norm}.*: call .* first"
    ) as reading:
        Ticket.from_torch_prune(module)
    prune.remove(module[0], "weight")
    before = state(module)
    for method in (plain_ticket().apply_to, plain_ticket().to_torch_prune):
        with pytest.raises(UserError, match=f"'1.weight' of the module is computed by .*{norm}"):
            method(module)
        assert same(state(module), before)
    follow_hint(reading.value, module)
    plain_ticket().to_torch_prune(module)
    assert same(Ticket.from_torch_prune(module).network_weights(), plain_ticket().network_weights())


def follow_hint(error: BaseException, module: nn.Module) -> None:
    """Execute the call that a message names."""
    call = str(error).partition(": call ")[2].rpartition(" first")[0]
    eval(call, {"torch": torch, "module": module})  # noqa: S307


def test_pruned_target_is_refused_with_a_hint_that_works() -> None:
    module = half_pruned()
    with pytest.raises(UserError, match="is pruned already") as refused:
        plain_ticket().apply_to(module)
    follow_hint(refused.value, module)
    plain_ticket().apply_to(module)
    assert same(state(module), plain_ticket().network_weights())


def test_double_precision_hint_works() -> None:
    module = half_pruned().double()
    with pytest.raises(UserError, match=r"convert the module first, with module.float\(\)"):
        Ticket.from_torch_prune(module)
    assert same(Ticket.from_torch_prune(module.float()).network_weights(), plain_ticket().network_weights())


def test_masks_of_a_sparsifier_are_read_and_its_modules_are_not_written() -> None:
    from torch.ao.pruning import WeightNormSparsifier

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 1), zeros_per_block=1)
    sparsifier.prepare(module, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    ticket = Ticket.from_torch_prune(module)
    assert {name: int(mask.sum()) for name, mask in ticket.masks.items()} == {"0.weight": 32, "2.weight": 16}
    assert torch.equal(ticket.network_weights()["0.weight"], module[0].weight)
    with pytest.raises(
        UserError, match=r"'0.weight' of the module is computed by a parametrization \(FakeSparsity\)"
    ) as error:
        ticket.apply_to(module)
    follow_hint(error.value, module)
    images = torch.rand(3, 8)
    expected = module(images)
    assert torch.equal(ticket.apply_to(module)(images), expected)


class WithExtraState(nn.Linear):
    """A linear layer that stores an object in its state_dict."""

    def get_extra_state(self) -> object:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def test_extra_state_is_ignored() -> None:
    module = nn.Sequential(WithExtraState(6, 5), WithExtraState(5, 3))
    plain_ticket().to_torch_prune(module)
    assert same(Ticket.from_torch_prune(module).network_weights(), plain_ticket().network_weights())


def test_lazy_and_meta_modules_are_refused_by_name() -> None:
    lazy = half_pruned()
    lazy[1] = nn.LazyLinear(3)
    with pytest.raises(UserError, match=r"'1.weight' of the module has no shape yet \(lazy module\): pass one batch"):
        Ticket.from_torch_prune(lazy)
    prune.remove(lazy[0], "weight")
    with pytest.raises(UserError, match=r"'1\.weight' of the module has no shape yet"):
        plain_ticket().apply_to(lazy)
    lazy(torch.rand(2, 6))
    plain_ticket().apply_to(lazy)
    assert same(state(lazy), plain_ticket().network_weights())
    meta = half_pruned().to("meta")
    with pytest.raises(UserError, match=r"on the meta device .* call module.to_empty\(device='cpu'\)"):
        Ticket.from_torch_prune(meta)
    bare = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)).to("meta")
    with pytest.raises(UserError, match="on the meta device"):
        plain_ticket().apply_to(bare)
    plain_ticket().apply_to(bare.to_empty(device="cpu"))
    assert same(state(bare), plain_ticket().network_weights())


def shared_layer() -> nn.Sequential:
    torch.manual_seed(1)
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize("matching", [{}, {"match": "order"}, {"names": {"0.weight": "2.weight", "0.bias": "2.bias"}}])
def test_shared_layers_count_once_and_come_back(matching: dict[str, Any]) -> None:
    module = shared_layer()
    prune.l1_unstructured(module[0], "weight", amount=0.5)
    ticket = Ticket.from_torch_prune(module)
    assert list(ticket.masks) == ["0.weight"] and (ticket.others or {}).keys() == {"0.bias"}
    assert int(ticket.masks["0.weight"].sum()) == 8
    images = torch.rand(3, 4)
    assert torch.equal(ticket.apply_to(shared_layer(), **matching)(images), module(images))
    assert torch.equal(ticket.to_torch_prune(shared_layer(), **matching)(images), module(images))
    named = Ticket.from_torch_prune(module, {"layer.weight": "2.weight"})
    assert list(named.masks) == ["layer.weight"]


def test_tied_weights_count_once_and_come_back() -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
        module[2].weight = module[0].weight
        return module

    module = tied()
    prune.l1_unstructured(module[3], "weight", amount=0.5)
    ticket = Ticket.from_torch_prune(module)
    assert list(ticket.masks) == ["0.weight", "3.weight"]
    images = torch.rand(3, 4)
    for matching in ({}, {"match": "order"}):
        assert torch.equal(ticket.apply_to(tied(), **matching)(images), module(images))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 1e-8), (torch.float16, 1e5), (torch.bfloat16, 3.4e38), (torch.float16, -1e-9)]
)
def test_kept_weights_that_a_cast_would_destroy_are_refused(dtype: torch.dtype, value: float) -> None:
    mask = torch.tensor([[True, True], [False, True]])
    ticket = Ticket({"weight": mask}, {"weight": torch.tensor([[0.5, value], [0.0, value]])}, {})
    module = nn.Linear(2, 2, bias=False).to(dtype)
    before = state(module)
    for method in (ticket.apply_to, ticket.to_torch_prune):
        with pytest.raises(UserError, match=rf"2 kept weights of 'weight' would become 0 or infinite in {dtype}"):
            method(module)
        assert same(state(module), before)
    assert torch.equal(ticket.apply_to(module.float()).weight, ticket.network_weights()["weight"])
    pruned_only = Ticket(
        {"weight": mask}, {"weight": torch.full((2, 2), 0.5)}, {}, frozen={"weight": torch.full((2, 2), 1e-9)}
    )
    pruned_only.apply_to(nn.Linear(2, 2, bias=False).half())


def test_integer_buffers_are_kept() -> None:
    module = half_pruned()
    for dtype in (torch.bool, torch.int32, torch.uint8):
        module.register_buffer(str(dtype).partition(".")[2], torch.tensor([1, 0]).to(dtype))
    ticket = Ticket.from_torch_prune(module)
    target = half_pruned()
    prune.remove(target[0], "weight")
    for dtype in (torch.bool, torch.int32, torch.uint8):
        target.register_buffer(str(dtype).partition(".")[2], torch.tensor([0, 1]).to(dtype))
    prune.remove(module[0], "weight")
    assert same(state(ticket.apply_to(target)), state(module))


def test_repr_is_one_line() -> None:
    assert repr(from_seed()) == "Ticket(fc-8 on digits, seed 1, 187 of 592 weights kept)"
    assert repr(plain_ticket()) == "Ticket(2 tensors, 30 of 45 weights kept)"


def test_ticket_of_a_foreign_network_is_not_called_dense(tmp_path: Path) -> None:
    path = save_ticket(plain_ticket(), tmp_path / "ticket")
    assert with_labels([mask_from_ticket(path)])[0].label == "ticket"
    ones = {"w": torch.ones(2, 2, dtype=torch.bool)}
    dense = save_ticket(Ticket(ones, {"w": torch.rand(2, 2)}, {}), tmp_path / "dense")
    assert with_labels([mask_from_ticket(dense)])[0].label == "dense"
