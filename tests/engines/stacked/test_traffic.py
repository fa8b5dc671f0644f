"""Bytes that a step of a stack moves, counted from its operations: the masked update, the first layer's gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.trainings import RECIPES, data, job, pruned_start
from torch import Tensor
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supermask.engines.job import TrainingJob
from supermask.engines.optimizer_steps import optimizer_state_names
from supermask.engines.stacked import forward as forward_pass
from supermask.engines.stacked.optimizer import encode_gradient_mask, make_optimizer_step
from supermask.engines.stacked.stack import Stack

DATA = data()


def train_steps(jobs: list[TrainingJob], steps: int = 3) -> tuple[Stack, list[tuple[str, int]]]:
    """Return a stack after some steps, and (operation, elements of its result) of the last step."""
    stack, seen = Stack(jobs, [DATA] * len(jobs), torch.device("cpu"), "float32", {}), []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            seen.extend(
                (str(func), t.numel()) for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()
            )
            return result

    stack.train([0] * len(jobs), steps - 1)
    with Count():
        stack.train([steps - 1] * len(jobs), 1)
    return stack, seen


def test_unequal_shares_do_not_copy_the_gradient_of_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit-equal to a product per group whose results autograd splits and concatenates, which copies it."""
    jobs = [replace(job(RECIPES["adam"], pruned_start()), seed=seed) for seed in (0, 0, 1)]
    stack, seen = train_steps(jobs)
    monkeypatch.setattr(forward_pass, "_is_autocast_enabled", lambda: True)
    expected, seen_before = train_steps(jobs)
    for name, tensor in {**expected.weights, **expected.unmasked}.items():
        assert torch.equal({**stack.weights, **stack.unmasked}[name], tensor), name
    size = stack.weights["fc1.weight"].numel()
    assert sum(op.startswith("aten.cat") and numbers == size for op, numbers in seen_before) == 1
    assert not [op for op, _ in seen if op.startswith(("aten.cat", "aten.slice_backward"))]


RECIPE_BYTES = {
    ("adam", False): 28,
    ("adam", True): 29,
    ("adam with weight decay", True): 29,
    ("momentum with weight decay", True): 21,
    ("sgd", True): 13,
}
"""(recipe, pruned) -> bytes per weight: w, gradient and moments are read, w and moments written, 1 byte is the mask."""


@pytest.mark.parametrize(("recipe", "is_pruned"), RECIPE_BYTES)
def test_bytes_of_an_update(recipe: str, is_pruned: bool) -> None:
    """The step for GPUs as one fused pass: tensors that it needs are read once, those that it changes written once."""
    made, count = RECIPES[recipe], 1000
    step = make_optimizer_step(made, torch.device("meta"))
    moments = [torch.rand(1, count) for _ in optimizer_state_names(made)]
    scalars = [torch.full((1, 1), -0.1), torch.ones(1, 1)]
    mask = encode_gradient_mask(torch.rand(1, count) < 0.5, "cuda") if is_pruned else None

    def flat(w: Tensor, g: Tensor, mask: Tensor | None, *rest: Tensor) -> None:
        step(w, g, mask, rest[:-2], *rest[-2:])

    graph = make_fx(functionalize(flat))(torch.rand(1, count), torch.rand(1, count), mask, *moments, *scalars).graph
    total = 0
    for node in graph.nodes:
        value = node.meta.get("val", node.meta.get("tensor_meta"))
        is_write = node.op == "call_function" and node.target is torch.ops.aten.copy_.default
        if (
            value is not None
            and value.shape.numel() == count
            and (is_write or (node.op == "placeholder" and node.users))
        ):
            total += value.shape.numel() * value.dtype.itemsize
    assert total == RECIPE_BYTES[recipe, is_pruned] * count


def test_both_forms_of_a_mask_give_equal_bits() -> None:
    """AND with words on a CPU, and filled places elsewhere; NaN and -0 at pruned places too."""
    kept = torch.rand(2, 60) < 0.5
    gradient = torch.where(kept, torch.randn(2, 60), torch.tensor([float("nan"), -0.0]).repeat(2, 30))
    rate, second = torch.full((2, 1), -0.1), torch.full((2, 1), 3.0)
    for recipe in RECIPES.values():
        moved = []
        for device in ("cpu", "cuda"):
            torch.manual_seed(0)
            w, moments = torch.randn(2, 60), [torch.rand(2, 60) * kept for _ in optimizer_state_names(recipe)]
            step = make_optimizer_step(recipe, torch.device("meta"))
            step(w, gradient.clone(), encode_gradient_mask(kept, device), moments, rate, second)
            moved.append([t.view(torch.int32) for t in (w, *moments)])
        assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))
