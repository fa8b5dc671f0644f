"""The reference engine's optimizer against PyTorch's classes, bit for bit."""

from __future__ import annotations

import pytest
import torch
from helpers.trainings import RECIPES, REFERENCE_RECIPES
from torch import Tensor, nn

from supermask.core.recipe import Recipe
from supermask.engines.reference_optimizer import FusedOptimizer

USED = {**RECIPES, **REFERENCE_RECIPES}


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.stride() == b.stride() and torch.equal(a.detach().view(torch.int32), b.detach().view(torch.int32))


def parameters() -> list[nn.Parameter]:
    """Return a matrix, a kernel in channels-last layout, a bias, and a tensor that never has a gradient."""
    torch.manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    return [nn.Parameter(t) for t in (torch.randn(7, 5), kernel, torch.randn(5), torch.randn(3))]


def pytorch_optimizer(tensors: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(tensors, lr=1.0, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    return torch.optim.Adam(tensors, lr=1.0, betas=recipe.betas, eps=recipe.eps, fused=True)


def set_gradients(tensors: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.grad = torch.empty_like(tensor).copy_(torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("name", USED)
def test_steps_equal_those_of_pytorch(name: str) -> None:
    recipe = USED[name]
    ours, theirs = parameters(), parameters()
    own, pytorch = FusedOptimizer(recipe), pytorch_optimizer(theirs, recipe)
    for step in range(20):
        rate = 0.1 / (1 + step)
        pytorch.param_groups[0]["lr"] = rate
        set_gradients(list(ours[:3]), step)
        set_gradients(list(theirs[:3]), step)
        own.step(ours, rate)
        pytorch.step()
    for a, b in zip(ours, theirs, strict=True):
        assert equal_bits(a, b)
        expected = {key: value for key, value in pytorch.state.get(b, {}).items() if value is not None}
        assert own.state.get(a, {}).keys() == expected.keys()
        assert all(equal_bits(own.state[a][key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["adam", "momentum", "nesterov"])
def test_a_tensor_whose_first_gradient_comes_later_starts_then(name: str) -> None:
    """A branch that a network skips at first. PyTorch's fused SGD with momentum raises TypeError."""
    recipe = USED[name]
    ours, theirs = parameters()[:2], parameters()[:2]
    own = FusedOptimizer(recipe)
    # In PyTorch: an optimizer per tensor, each of which takes steps when there is a gradient.
    optimizers = [pytorch_optimizer([tensor], recipe) for tensor in theirs]
    for step in range(6):
        for number, optimizer in enumerate(optimizers):
            if step >= 3 * number:
                set_gradients([ours[number]], step)
                set_gradients([theirs[number]], step)
                optimizer.param_groups[0]["lr"] = 0.1
                optimizer.step()
        own.step(ours, 0.1)
    assert all(map(equal_bits, ours, theirs))
