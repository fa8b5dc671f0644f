"""The compiled optimizer of the stacked engine: agreement with the plain one, and what is used without a compiler."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from shutil import which
from typing import Any

import pytest
import torch
import torch._dynamo
from helpers.pretend_gpu import PretendGpu, pretend_gpu
from helpers.trainings import data, job, pruned_start
from torch._dynamo.testing import CompileCounterWithBackend

from supermask.core.recipe import Recipe
from supermask.engines import stacked
from supermask.engines.optimizer_steps import optimizer_state_names
from supermask.engines.stacked import bias_relu, optimizer
from supermask.engines.stacked.optimizer import OptimizerStep, compile_step, encode_gradient_mask, make_optimizer_step

DATA = data()


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with pretend_gpu() as gpu:
        yield gpu


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiled_optimizer_agrees_with_the_plain_one(backend: str) -> None:
    """Any shape, pruned or not, in place; more recipes than PyTorch compiles per code object."""
    if backend == "inductor" and which("g++") is None:
        pytest.skip("there is no compiler")
    compilations, limit = 0, torch._dynamo.config.recompile_limit
    recipes = [Recipe("sgd", 0.1, 5, 5, 5, weight_decay=i / 100) for i in range(2 if backend == "inductor" else 3)]
    for recipe in [Recipe("adam", 0.1, 5, 5, 5, weight_decay=0.01), *recipes]:
        counter = CompileCounterWithBackend(backend)
        plain = make_optimizer_step(recipe, torch.device("meta"))
        compiled = compile_step(plain, counter)
        shapes = [(4, 70), (3, 70), (3, 5), (1, 70), (5, 5)] if recipe.optimizer == "adam" else [(3, 8), (2, 7)]
        for shape in shapes:
            for pruned in (False, True):
                check_moves_the_same(plain, compiled, shape, pruned, len(optimizer_state_names(recipe)))
        assert 1 < counter.frame_count <= limit
        compilations += counter.frame_count
    assert backend == "inductor" or compilations > limit, "too few compilations for one code object to be exceeded"


def check_moves_the_same(
    plain: OptimizerStep, compiled: OptimizerStep, shape: tuple[int, int], pruned: bool, moments: int
) -> None:
    torch.manual_seed(0)
    w, gradient, mask = torch.randn(shape), torch.randn(shape), torch.rand(shape) < 0.5
    kept = [torch.rand(shape) * (mask if pruned else 1) for _ in range(moments)]
    if pruned:
        gradient[~mask] = float("nan")
        w[0][~mask[0]] = -0.0
    rate, second = torch.tensor([-0.1, 3.0])[:, None, None].expand(2, shape[0], 1)
    moved = []
    for update in (plain, compiled):
        own, g, state = w.clone(), gradient.clone(), [k.clone() for k in kept]
        with torch.no_grad():
            update(own, g, encode_gradient_mask(mask, "cuda") if pruned else None, state, rate, second)
        moved.append([own, *state])
        if pruned:
            assert torch.equal(own.view(torch.int32)[~mask], w.view(torch.int32)[~mask])
        assert (own != w)[mask].all()
    for found, wanted in zip(*moved, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [Recipe("adam", 0.5, 5, 5, 5), Recipe("sgd", 0.5, 5, 5, 5)], ids=["adam", "sgd"])
@pytest.mark.parametrize(
    ("triton", "release", "failure", "obstacle"),
    [
        (True, "2.11.0+cu130", None, ""),
        (True, "2.13.1", None, ""),
        (False, "2.11.0", None, "Triton is not installed"),
        (True, "2.10.1+cu128", None, "PyTorch 2.10.1+cu128 is older than 2.11"),
        (True, "2.11.0", "Failed to find C compiler", "Failed to find C compiler"),
    ],
)
def test_the_plain_optimizer_is_used_and_recorded_without_a_working_compiler(
    gpu: PretendGpu,
    monkeypatch: pytest.MonkeyPatch,
    triton: bool,
    release: str,
    failure: str | None,
    obstacle: str,
    recipe: Recipe,
) -> None:
    """One warning with the reason; the record names the step that trains, whatever the precision settings."""
    precisions: list[str] = []

    def compile_(function: Any, **_: object) -> Any:
        def run(*tensors: Any) -> Any:
            if failure is not None:
                raise RuntimeError(f"{failure}\nand more")
            precisions.append(torch.backends.cuda.matmul.fp32_precision)
            return function(*tensors)

        return run

    monkeypatch.setattr(optimizer, "find_spec", lambda _: object() if triton else None)
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch, "__version__", release)
    monkeypatch.setattr(optimizer, "_make_step", lru_cache(optimizer._make_step.__wrapped__))
    monkeypatch.setattr(optimizer, "warn_of_obstacle", cache(optimizer.warn_of_obstacle.__wrapped__))
    monkeypatch.setattr(bias_relu, "_make", lambda _: None)
    before = torch.backends.cuda.matmul.fp32_precision
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        jobs = [
            job(replace(recipe, iterations=5, evaluate_every=5)),
            job(replace(recipe, iterations=5), pruned_start()),
        ]
        assert [r.status for r in stacked.train(jobs, [DATA] * 2, "cuda", "tf32")] == ["finished"] * 2
    reasons = [str(w.message) for w in warned if "not compiled" in str(w.message)]
    assert len(reasons) == bool(obstacle)
    assert all(f"({obstacle})" in reason for reason in reasons)
    assert stacked.environment_facts({}, "tf32", True, recipe, "cuda")["optimizer_compiled"] is (obstacle == "")
    if not obstacle:
        # The trial with and without a mask is before the training, outside of its precision settings.
        assert precisions[:2] == [before] * 2
        assert set(precisions[2:]) == {"tf32"}
    assert not stacked.environment_facts({}, "float32", True, recipe, "cpu")["optimizer_compiled"]
