"""`hold`: no optimizer moves pruned weights; and names of wrapped modules."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import _global_optimizer_post_hooks

from supermask import Ticket, UserError, hold
from supermask.core.types import Masks, Weights

Make = Callable[[Any], torch.optim.Optimizer]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def masks_of(module: nn.Module) -> Masks:
    rng = torch.Generator().manual_seed(1)
    return {n: torch.rand(t.shape, generator=rng) < 0.4 for n, t in module.state_dict().items() if t.ndim == 2}


def bits(module: nn.Module, masks: Masks, kept: bool) -> dict[str, bytes]:
    """Return the bytes of the kept or the pruned weights."""
    state = module.state_dict()
    return {n: state[n].detach()[m if kept else ~m].numpy().tobytes() for n, m in masks.items()}


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    rng = torch.Generator().manual_seed(2)
    return [(torch.randn(8, 6, generator=rng), torch.randint(3, (8,), generator=rng)) for _ in range(6)]


def train(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for images, labels in batches():

        def closure(images: torch.Tensor = images, labels: torch.Tensor = labels) -> torch.Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(module(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]


class Signs(torch.optim.Optimizer):
    """An optimizer of someone else: it moves every weight, whatever its gradient."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(torch.where(parameter.grad >= 0, -0.01, 0.01))
        return loss


OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, momentum, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd, foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, weight_decay=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, weight_decay=0.1),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4),
    "own": Signs,
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("used_before", [False, True], ids=["fresh", "used"])
def test_no_optimizer_moves_pruned_weights(make: Make, used_before: bool) -> None:
    """`used`: the optimizer has momentum and second moments of the dense training."""
    module = network()
    masks, optimizer = masks_of(module), make(module.parameters())
    if used_before:
        train(module, optimizer)
    pruned, kept = bits(module, masks, kept=False), bits(module, masks, kept=True)
    with hold(module, masks) as held:
        assert held is module
        train(module, optimizer)
        assert bits(module, masks, kept=False) == pruned
    assert bits(module, masks, kept=False) == pruned
    assert all(
        after != before for after, before in zip(bits(module, masks, kept=True).values(), kept.values(), strict=True)
    )
    # Without the context it moves them: the test would see it.
    if make is not OPTIMIZERS["lbfgs"]:
        train(module, optimizer)
        assert bits(module, masks, kept=False) != pruned


@pytest.mark.parametrize("name", ["sgd, momentum, decay", "adamw, foreach"])
def test_kept_weights_train_as_in_a_masked_loop(name: str) -> None:
    """The independent version multiplies weights by the mask in every pass, and decays the same weights."""
    module = network()
    masks = masks_of(module)
    with torch.no_grad():
        for n, mask in masks.items():
            module.get_parameter(n).mul_(mask)
    slow = copy.deepcopy(module)
    optimizer = OPTIMIZERS[name](slow.parameters())
    for images, labels in batches():
        values = {n: p * masks[n] if n in masks else p for n, p in slow.named_parameters()}
        optimizer.zero_grad()
        loss = cross_entropy(torch.func.functional_call(slow, values, (images,)), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with hold(module, masks):
        train(module, OPTIMIZERS[name](module.parameters()))
    for n, parameter in slow.named_parameters():
        assert torch.equal(module.get_parameter(n), parameter * masks[n] if n in masks else parameter), n


def test_pruned_weights_keep_any_value() -> None:
    """Frozen values, negative zeros and NaN are kept bit for bit."""
    module = network()
    masks = masks_of(module)
    weight = module.get_parameter("0.weight")
    with torch.no_grad():
        weight[~masks["0.weight"]] = -0.0
        weight[~masks["0.weight"]] = torch.linspace(-1, 1, int((~masks["0.weight"]).sum()))
        weight[0][~masks["0.weight"][0]] = -0.0
    before = bits(module, masks, kept=False)
    with hold(module, masks):
        train(module, OPTIMIZERS["sgd, momentum, decay"](module.parameters()))
    assert bits(module, masks, kept=False) == before


def test_gradients_of_pruned_weights_are_zero_even_if_infinite() -> None:
    module = network()
    masks = masks_of(module)
    with hold(module, masks):
        (module(torch.full((1, 6), 1e38)).sum() * 1e10).backward()
        gradient = module.get_parameter("0.weight").grad
        assert gradient is not None
        assert not gradient[~masks["0.weight"]].any()
        assert not gradient.isfinite().all()


def test_weights_moved_by_hand_are_back_before_the_next_pass() -> None:
    """A loop without an optimizer: `parameter -= lr * gradient`."""
    module = network()
    masks = masks_of(module)
    before = bits(module, masks, kept=False)
    with hold(module, masks):
        with torch.no_grad():
            module.get_parameter("0.weight").sub_(1.0)
        assert bits(module, masks, kept=False) != before
        module(batches()[0][0])
        assert bits(module, masks, kept=False) == before
        with torch.no_grad():
            module.get_parameter("0.weight").sub_(1.0)
    assert bits(module, masks, kept=False) == before


def test_two_passes_before_one_backward() -> None:
    """Setting weights back before the second pass must not invalidate the graph of the first."""
    module = network()
    with hold(module, masks_of(module)):
        loss = module(batches()[0][0]).sum() + module(batches()[1][0]).sum()
        loss.backward()


def test_nothing_is_left_behind() -> None:
    module, hooks = network(), len(_global_optimizer_post_hooks)
    with pytest.raises(KeyError), hold(module, masks_of(module)):
        raise KeyError
    assert (len(_global_optimizer_post_hooks), len(module._forward_pre_hooks)) == (hooks, 0)
    assert not any(parameter._backward_hooks for parameter in module.parameters())
    copy.deepcopy(module)


def test_holds_of_two_networks_do_not_mix() -> None:
    first, second = network(), network()
    masks = masks_of(first)
    with hold(first, masks):
        before = bits(first, masks, kept=False)
        train(second, OPTIMIZERS["adam"](second.parameters()))
        assert bits(second, masks, kept=False) != before


def test_parameter_that_is_replaced_or_converted_is_held() -> None:
    module = network()
    masks = masks_of(module)
    with hold(module, masks):
        held = module.get_parameter("0.weight")[~masks["0.weight"]].detach().clone()
        module[0].weight = nn.Parameter(torch.zeros(16, 6))
        module(batches()[0][0])
        assert torch.equal(module.get_parameter("0.weight")[~masks["0.weight"]], held)
        module.double()
        module(batches()[0][0].double())
        assert torch.equal(module.get_parameter("0.weight")[~masks["0.weight"]], held.double())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"0.weight": torch.ones(16, 6)}, "the mask of '0.weight' is not a bool tensor"),
        ({"0.weight": torch.ones(6, 16, dtype=torch.bool)}, r"has shape \(6, 16\), and '0.weight' of the module"),
        ({"1.weight": torch.ones(16, 6, dtype=torch.bool)}, "the module has no tensor '1.weight'"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Masks, message: str) -> None:
    module = network()
    with pytest.raises(UserError, match=message), hold(module, masks):
        raise AssertionError("not reached")
    assert not module._forward_pre_hooks


# --- wrapped modules ---


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


def compiled_inside(module: nn.Module) -> nn.Module:
    assert isinstance(module, nn.Sequential)
    module[0] = compiled(module[0])
    return module


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda module: nn.DataParallel(compiled(module)),
    "parallel and compiled": lambda module: compiled(nn.DataParallel(module)),
    "compiled inside": compiled_inside,
    "compiled in place": compiled_in_place,
}


def ticket_of(module: nn.Module) -> Ticket:
    masks = masks_of(module)
    state = {n: torch.randn(t.shape) for n, t in module.state_dict().items()}
    weights: Weights = {n: state[n] * mask for n, mask in masks.items()}
    return Ticket(masks, weights, {n: t for n, t in state.items() if n not in masks})


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("match", ["name", "order", "names"])
def test_prefixes_of_wrapped_modules_are_left_out(wrap: Callable[[nn.Module], nn.Module], match: Any) -> None:
    plain = network()
    ticket, wrapped = ticket_of(plain), wrap(copy.deepcopy(plain))
    names = {name: name for name in ticket.masks} if match == "names" else None
    applied = ticket.apply_to(wrapped, names=names, match="order" if match == "order" else "name")
    assert applied is wrapped
    ticket.apply_to(plain)
    values = [*wrapped.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(values, plain.state_dict().values(), strict=True))
    images = batches()[0][0]
    assert torch.equal(applied(images), plain(images))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_modules_are_held(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain = network()
    ticket, wrapped = ticket_of(plain), wrap(copy.deepcopy(plain))
    ticket.apply_to(wrapped)
    ticket.apply_to(plain)
    with hold(wrapped, ticket.masks), hold(plain, ticket):
        for module in (wrapped, plain):
            train(module, OPTIMIZERS["sgd, momentum, decay"](module.parameters()))
    values = [*wrapped.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(values, plain.state_dict().values(), strict=True))
    assert not any(values[i][~mask].any() for i, mask in zip((0, 2), ticket.masks.values(), strict=True))


def test_ticket_of_a_wrapped_module_has_plain_names() -> None:
    plain = network()
    ticket = ticket_of(plain)
    wrapped = ticket.to_torch_prune(compiled(plain))
    again = Ticket.from_torch_prune(wrapped)
    assert (list(again.masks), list(again.others or {})) == (["0.weight", "2.weight"], ["0.bias", "2.bias"])
    assert all(torch.equal(again.masks[name], mask) for name, mask in ticket.masks.items())


def test_names_that_look_like_prefixes_are_names() -> None:
    module = nn.ModuleDict({"module": nn.Linear(2, 2), "_orig_mod": nn.Linear(2, 2)})
    masks = {"module.weight": torch.eye(2).bool(), "_orig_mod.weight": torch.eye(2).bool()}
    ticket = Ticket(masks, {n: m.float() for n, m in masks.items()}, {})
    ticket.apply_to(module)
    with pytest.raises(UserError, match=r"the module has no tensor 'module\.weight'"):
        ticket.apply_to(nn.Linear(2, 2))


def test_other_objects_than_masks_and_modules_are_refused() -> None:
    masks = {"weight": torch.ones(2, 3, dtype=torch.bool)}
    with pytest.raises(UserError, match="masks are a ticket or a dict of names to bool tensors, not list"):
        hold(nn.Linear(3, 2), [masks]).__enter__()  # type: ignore[arg-type]
    for module in (None, "network"):
        with pytest.raises(UserError, match=r"is not a module: give a torch\.nn\.Module"):
            hold(module, masks).__enter__()  # type: ignore[type-var]
        with pytest.raises(UserError, match=r"is not a module: give a torch\.nn\.Module"):
            Ticket(masks, {"weight": torch.ones(2, 3)}, {}).apply_to(module)  # type: ignore[type-var]


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "training_loops" / "hold_pruned_weights.py"
    ended = subprocess.run([sys.executable, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    dense, sparse, moved = ended.stdout.splitlines()
    assert float(dense.rpartition(" ")[2]) > 0.95
    assert float(sparse.rpartition(" ")[2]) > 0.9
    assert moved == "pruned weights that moved: 0"
