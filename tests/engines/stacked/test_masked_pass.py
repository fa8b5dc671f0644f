"""The compiled masked pass of learned masks against the plain one."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.harness import IS_FULL
from helpers.mask_trainings import METHODS, mask_job
from helpers.pretend_gpu import pretend_gpu
from helpers.trainings import RECIPES, data
from torch._dynamo.testing import CompileCounterWithBackend

from supermask.core.learned_masks import sampling_keys
from supermask.engines import stacked
from supermask.engines.stacked import masked_pass, optimizer
from supermask.engines.stacked.masked_pass import compile_pass, make_masked_pass

CPU = torch.device("cpu")
SHAPES = [(3, 6, 12), (1, 6, 12), (3, 4, 2, 3, 3), *([(2, 5, 8), (4, 4, 4)] if IS_FULL else [])]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(
    "method",
    [n for n in METHODS if "edge_popup" not in n]
    if IS_FULL
    else ["bernoulli", "rounded, rescaled", "signed, rescaled"],
)
def test_the_compiled_pass_is_bit_equal_to_the_plain_one(method: str) -> None:
    """As one graph, without its fusion to kernels: masks, ratio and gradients of fully connected and conv kernels."""
    plain = make_masked_pass(METHODS[method], CPU)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = compile_pass(masked_pass._make_pass.__wrapped__(METHODS[method], "cpu")[0], counter)
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        logits, weights, factor = (torch.randn(shape, generator=generator) for _ in range(3))
        words = [sampling_keys(seed, "training", "fc1.weight", 0, 1)[0] for seed in range(shape[0])]
        keys = torch.from_numpy(np.stack(words).view(np.int32))
        results = []
        for function in (plain, compiled):
            masked = function(logits.requires_grad_(), weights, keys)
            results.append((masked.detach(), *torch.autograd.grad((masked * factor).sum(), logits)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert results[0][1].any()
        with torch.no_grad():
            assert torch.equal(compiled(logits, weights, keys), results[0][0])
    assert counter.frame_count == 2 * len(SHAPES), (
        "twice, for training and evaluation, per kernel shape and for a stack of one"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_the_pass_is_compiled_once_per_kernel_and_not_per_size_of_a_stack() -> None:
    """Kernels of Conv6: more shapes than PyTorch compiles per code object, where it would raise."""
    counter = CompileCounterWithBackend("eager")
    compiled = compile_pass(masked_pass._make_pass.__wrapped__(METHODS["bernoulli"], "cpu")[0], counter)
    shapes = [
        (6, 3, 3, 3),
        (6, 6, 3, 3),
        (7, 6, 3, 3),
        (7, 7, 3, 3),
        (8, 7, 3, 3),
        (8, 8, 3, 3),
        (5, 9),
        (5, 5),
        (4, 5),
    ]
    for replicas in (6, 4, 3, 2, 1):
        for kernel in shapes:
            logits, weights = torch.ones(replicas, *kernel).requires_grad_(), torch.ones(replicas, *kernel)
            # As in a stack: rows of the keys of several steps.
            keys = torch.ones(replicas, replicas, 2, dtype=torch.int32)[0]
            torch.autograd.grad(compiled(logits, weights, keys).sum(), logits)
            with torch.no_grad():
                compiled(logits, weights, keys)
        assert counter.frame_count == len(shapes) * (2 if replicas > 1 else 4)


@pytest.mark.slow
@pytest.mark.parametrize("failure", [None, "Failed to find C compiler"])
def test_what_trains_is_recorded(monkeypatch: pytest.MonkeyPatch, failure: str | None) -> None:
    """Compiled before the training, or with one warning not at all."""
    trials: list[tuple[int, ...]] = []

    def compile_(function: Any, **_: object) -> Any:
        def run(*tensors: Any) -> Any:
            if failure is not None:
                raise RuntimeError(f"{failure}\nand more")
            if len(tensors) == 3:
                trials.append(tuple(tensors[0].shape))
            return function(*tensors)

        return run

    monkeypatch.setattr(optimizer, "find_spec", lambda _: object())
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    monkeypatch.setattr(optimizer, "_make_step", lru_cache(optimizer._make_step.__wrapped__))
    monkeypatch.setattr(masked_pass, "_make_pass", lru_cache(masked_pass._make_pass.__wrapped__))
    monkeypatch.setattr(masked_pass, "warn_of_obstacle", cache(masked_pass.warn_of_obstacle.__wrapped__))
    job, learning = mask_job(METHODS["bernoulli"], RECIPES["adam"]), METHODS["bernoulli"]
    with pretend_gpu():
        if failure is None:
            assert stacked.train([job], [data()], "cuda")[0].status == "finished"
        else:
            with pytest.warns(
                UserWarning, match="the masked pass of the stacked engine is not compiled .Failed to find C"
            ):
                make_masked_pass(learning, torch.device("cuda"))
        facts = stacked.environment_facts({}, "float32", True, job.recipe, "cuda", learning)
    assert facts.get("masked_pass_compiled", False) is (failure is None)
    if failure is None:
        assert trials[:4:2] == trials[1:4:2] == [(2, 35), (1, 35)]
        assert len(trials) > 4
    assert "masked_pass_compiled" not in stacked.environment_facts({}, "float32", True, job.recipe, "cpu", learning)
