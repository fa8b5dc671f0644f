"""Sizes for which the optimizer step is compiled: fixed for large tensors, for any number of replicas."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from supermask.core.recipe import Recipe
from supermask.engines.stacked import optimizer
from supermask.engines.stacked.optimizer import (
    ALIGNMENT,
    MAX_FIXED_SIZES,
    MIN_FIXED_SIZE,
    OptimizerStep,
    compile_step,
    encode_gradient_mask,
    make_optimizer_step,
)
from supermask.networks.sequential import architecture, prunable_tensors

RECIPE = Recipe("adam", 0.1, 5, 5, 5)
FIXED, OTHER_FIXED, ODD, SMALL = MIN_FIXED_SIZE, 3 * MIN_FIXED_SIZE, MIN_FIXED_SIZE + 8, 300


def move(step: OptimizerStep, replicas: int, numbers: int, pruned: bool = False) -> list[Tensor]:
    """Weights and moments after a step. As in a stack, tensors are views, with shapes of their own."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(replicas, numbers // 4, 4, generator=generator) for _ in range(4)]
    w, g, m, v = (t.view(replicas, -1) for t in tensors)
    v.square_()
    mask = encode_gradient_mask(torch.rand(replicas, numbers, generator=generator) < 0.5, "cuda") if pruned else None
    rate, second = torch.tensor([-0.1, 3.0])[:, None, None].expand(2, replicas, 1)
    with torch.no_grad():
        step(w, g, mask, [m, v], rate, second)
    return [w, m, v]


class Backend:
    """Notes for each compilation whether R * P is known to be a multiple of 16; computes without compiling."""

    def __init__(self) -> None:
        self.aligned: list[bool] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        weights = next(t for t in inputs if isinstance(t, Tensor))
        self.aligned.append(statically_known_true(weights.numel() % ALIGNMENT == 0))
        return graph.forward


@pytest.mark.slow
def test_a_large_tensor_is_compiled_once_for_all_sizes_of_a_stack() -> None:
    """For one replica once more. All small tensors, and those of odd sizes, share their compilations."""
    backend, plain = Backend(), make_optimizer_step(RECIPE, torch.device("meta"))
    compiled, counts = compile_step(plain, backend), Counter[tuple[int, bool]]()
    for numbers in (FIXED, OTHER_FIXED, SMALL, ODD):
        for replicas in (5, 3, 2, 7, 1):
            for pruned in (False, True):
                before = len(backend.aligned)
                found, expected = (move(step, replicas, numbers, pruned) for step in (compiled, plain))
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
                new = backend.aligned[before:]
                counts[numbers, pruned] += len(new)
                assert all(is_aligned == (numbers in (FIXED, OTHER_FIXED)) for is_aligned in new if replicas > 1)
    assert {counts[n, p] for n in (FIXED, OTHER_FIXED, SMALL) for p in (False, True)} == {2}
    assert {counts[ODD, p] for p in (False, True)} == {0}


def test_sizes_that_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One compiled step per size; the others, and those beyond the limit, share one."""
    steps: list[Counter[int]] = []

    def compile_(step: OptimizerStep, backend: object) -> OptimizerStep:
        index = len(steps)
        steps.append(Counter())

        def count(w: Tensor, *_: object) -> None:
            steps[index][w.shape[1]] += 1

        return count

    monkeypatch.setattr(optimizer, "_compile", compile_)
    compiled = compile_step(lambda *_: None)
    sizes = [FIXED * i for i in range(1, MAX_FIXED_SIZES + 3)]
    for numbers in (SMALL, ODD, *sizes, *sizes):
        for replicas in (2, 1):
            move(compiled, replicas, numbers)
    shared, *fixed = steps
    assert shared == {SMALL: 2, ODD: 2, sizes[-2]: 4, sizes[-1]: 4}
    assert fixed == [{numbers: 4} for numbers in sizes[:MAX_FIXED_SIZES]]


@pytest.mark.parametrize(
    ("network", "shape", "fixed", "share"),
    [("fc", (1, 28, 28), 2, 0.996), ("conv2", (3, 32, 32), 3, 0.999), ("conv6", (3, 32, 32), 7, 0.998)],
)
def test_fixed_sizes_of_the_paper_s_networks(
    network: str, shape: tuple[int, int, int], fixed: int, share: float
) -> None:
    """Number of sizes, and their share of the weights."""
    sizes = [torch.Size(t.shape).numel() for t in prunable_tensors(architecture(network, shape, 10)).values()]
    chosen = [n for n in sizes if n >= MIN_FIXED_SIZE and n % ALIGNMENT == 0]
    assert (len(set(chosen)), round(sum(chosen) / sum(sizes), 3)) == (fixed, share)
