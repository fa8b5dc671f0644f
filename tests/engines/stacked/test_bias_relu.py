"""Bias and ReLU in one kernel: the pass that a GPU takes, on a CPU and on the pretended GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pretend_gpu import PretendGpu, pretend_gpu
from helpers.trainings import RECIPES, data, job, pruned_start
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from supermask.core.recipe import Recipe
from supermask.engines import stacked
from supermask.engines.job import TrainingJob
from supermask.engines.stacked import bias_relu, optimizer
from supermask.engines.stacked.bias_relu import _CompiledBiasRelu, bias_and_relu, make_bias_relu
from supermask.engines.stacked.forward import BatchGroup, forward, group_batches
from supermask.engines.stacked.stack import Stack
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

DATA = data()
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FUSED = _CompiledBiasRelu(bias_and_relu)
"""Not compiled."""


@pytest.fixture
def compiled_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """A pretended GPU with a pretended compiler; the shapes (R * O, B) of the ReLU kernel's calls."""
    shapes: list[tuple[int, ...]] = []

    def compile_(function: Any, **_: object) -> Any:
        def run(*tensors: Any) -> Any:
            if function is bias_and_relu:
                shapes.append(tuple(tensors[0].shape))
            return function(*tensors)

        return run

    monkeypatch.setattr(optimizer, "find_spec", lambda _: object())
    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    with pretend_gpu():
        yield shapes


def tensors_of(layers: Any, replicas: int) -> dict[str, Tensor]:
    starts = [initial_state(layers, seed) for seed in range(replicas)]
    names = {**starts[0].weights, **starts[0].unmasked}
    return {n: torch.stack([{**s.weights, **s.unmasked}[n] + 0.01 for s in starts]).requires_grad_() for n in names}


@pytest.mark.parametrize("batch_keys", ["a", "aab", "abc", "aabb"])
@pytest.mark.parametrize("network", ["fc-8-6", "conv2"])
def test_logits_and_gradients_agree_with_those_of_a_cpu(network: str, batch_keys: str) -> None:
    layers, groups = architecture(network, (1, 4, 4), 3), group_batches(batch_keys)
    tensors, batches = tensors_of(layers, len(batch_keys)), len(set(batch_keys))
    pixels = torch.rand(batches, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    index = [g.first_batch + i // g.replicas_per_batch for g in groups for i in range(replicas_of(g))]
    if network == "conv2":
        pixels = pixels[index]
        groups = group_batches(range(len(batch_keys)))
    algorithms = dict.fromkeys(("conv1", "conv2"), "grouped")
    results = []
    for fused in (None, FUSED):
        logits = forward(layers, tensors, pixels, groups, algorithms, fused)
        gradients = torch.autograd.grad(logits.logsumexp(2).sum(), list(tensors.values()))
        results.append((logits.detach(), *gradients))
    for plain, other in zip(*results, strict=True):
        assert plain.any()
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_one_compilation_serves_every_layer_and_batch() -> None:
    """Training and evaluation, with equal bits."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = _CompiledBiasRelu(torch.compile(bias_and_relu, dynamic=True, backend=counter))
    for shape in ((3, 8, 5), (2, 6, 5), (1, 6, 5), (3, 8, 21)):
        y, b, factor = torch.randn(shape), torch.randn(shape[:2]), torch.randn(shape)
        results = []
        for function in (FUSED, compiled):
            inputs = y.clone().requires_grad_(), b.clone().requires_grad_()
            result = function(*inputs)
            results.append((result, *torch.autograd.grad((result * factor).sum(), inputs)))
            with torch.no_grad():
                assert torch.equal(function(y, b), result)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert counter.frame_count == 1


def replicas_of(group: BatchGroup) -> int:
    return group.num_batches * group.replicas_per_batch


BYTES = {"aten.baddbmm": 12, "aten.relu": 8, "aten.bmm": 4}
"""Operation on a GPU -> bytes per float32 output. `baddbmm` writes the bias to its result, then reads and adds it."""


def test_bytes_per_output_of_a_hidden_layer() -> None:
    """20 with `baddbmm` and a ReLU, 12 with a product and one kernel: 4, and one read and one write."""
    layers, replicas, images = architecture("fc-8-6", (1, 3, 4), 4), 3, 5
    tensors, pixels = tensors_of(layers, replicas), torch.rand(1, images, 1, 3, 4)
    hidden = {replicas * outputs * images for outputs in (8, 6)}
    total = [0]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.numel() in hidden:
                total[0] += BYTES.get(str(func.overloadpacket), 0) * result.numel()
            return result

    def kernel(y: Tensor, b: Tensor) -> Tensor:
        result = bias_and_relu(y, b)
        total[0] += y.nbytes + result.nbytes
        return result

    bytes_per_output = []
    for fused in (None, _CompiledBiasRelu(lambda y, b: one_operation(kernel, y, b))):
        total[0] = 0
        with torch.no_grad(), Count():
            forward(layers, tensors, pixels, group_batches("aaa"), {}, fused)
        bytes_per_output.append(total[0] / sum(hidden))
    assert bytes_per_output == [20, 12]


def one_operation(kernel: Any, y: Tensor, b: Tensor) -> Tensor:
    """The kernel without a count of the operations within."""
    with torch.utils._python_dispatch._disable_current_modes():
        result: Tensor = kernel(y, b)
    return result


def test_a_cpu_does_not_use_it() -> None:
    assert make_bias_relu(CPU) is None
    stack = Stack([job(RECIPES["adam"])], [DATA], CPU, "float32", {})
    assert stack._forward._bias_relu is None  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0, 0), (0, 0, 1)])
def test_training_on_the_pretended_gpu(compiled_parts: list[tuple[int, ...]], seeds: tuple[int, ...]) -> None:
    """Recorded and replayed without synchronization; results as on a CPU; the record says that it is used."""
    recipe = replace(RECIPES["adam"], iterations=10, evaluate_every=5)
    jobs = [replace(job(recipe, pruned_start(seed=seed)), seed=seed) for seed in seeds]
    results = stacked.train(jobs, [DATA] * len(jobs), "cuda")
    replicas = len(jobs)
    assert compiled_parts[0] == (6, 5), "the trial"
    assert {(8 * replicas, 5), (6 * replicas, 5), (8 * replicas, 21)} <= set(compiled_parts)
    assert stacked.environment_facts({}, "float32", True, recipe, "cuda")["bias_relu_compiled"] is True
    assert "bias_relu_compiled" not in stacked.environment_facts({}, "float32", True, recipe, "cpu")
    losses = [result.curve.validation_loss for result in results]
    for seed_job, loss in zip(jobs, losses, strict=True):
        np.testing.assert_allclose(loss, stacked.train([seed_job], [DATA])[0].curve.validation_loss, rtol=1e-4)


def test_bfloat16_keeps_the_plain_layer(compiled_parts: list[tuple[int, ...]]) -> None:
    recipe = replace(RECIPES["adam"], iterations=5, evaluate_every=5)
    assert stacked.train([job(recipe)], [DATA], "cuda", "bfloat16")[0].status == "finished"
    assert compiled_parts == [(6, 5)]


def test_one_synchronization_per_interval(compiled_parts: list[tuple[int, ...]]) -> None:
    layers = architecture("fc-24", (1, 3, 4), 4)
    recipe = Recipe("adam", 0.01, 5, 30, 10)
    jobs = [TrainingJob(sequential_network(layers), initial_state(layers, seed), recipe, seed) for seed in (0, 1)]
    with pretend_gpu() as gpu:
        check_waits(gpu, Stack(jobs, [DATA] * 2, CUDA, "float32", {}))


def check_waits(gpu: PretendGpu, stack: Stack) -> None:
    for first in (0, 10, 20):
        gpu.waited.clear()
        stack.train([first] * 2, 10)
        if first:
            assert gpu.waited == ["a tensor is copied to the host"]
    assert len(gpu.graphs) == 1
    gpu.waited.clear()
    stack.evaluate([0, 1], DATA.validation_images, DATA.validation_labels)
    assert gpu.waited == ["a tensor is copied to the host"]


def test_a_kernel_that_fails_is_not_used(
    compiled_parts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    monkeypatch.setattr(bias_relu, "warn_of_obstacle", optimizer.warn_of_obstacle.__wrapped__)
    bias_relu._make.cache_clear()
    with pytest.warns(UserWarning, match="the ReLU kernel .* is not compiled .Failed to find C compiler"):
        assert make_bias_relu(CUDA) is None
