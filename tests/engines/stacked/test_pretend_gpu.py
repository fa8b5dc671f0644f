"""The GPU code of the stacked engine on a pretended GPU: devices, recorded steps, synchronization, precision."""

from __future__ import annotations

import gc
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import which
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.mask_trainings import FAST, METHODS, mask_job
from helpers.pretend_gpu import GPU, PretendGpu, pretend_gpu
from helpers.sparse_jobs import images, job_of
from helpers.stacked_stream import Line
from helpers.trainings import RECIPES, data, job, pruned_start
from helpers.trainings import bits as outcome_bits
from torch._dynamo.testing import CompileCounterWithBackend

from supermask.core import environment
from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot, SplitData, TrainingResult
from supermask.engines import reference, reference_masks, stacked
from supermask.engines.job import TrainingJob
from supermask.engines.optimizer_steps import optimizer_state_names
from supermask.engines.precision import matmul_precision
from supermask.engines.stacked import autotune, bias_relu, device, optimizer
from supermask.engines.stacked.convolutions import CONV_ALGORITHMS, fastest_algorithm, fastest_algorithms
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS, CudaGraphStep
from supermask.engines.stacked.optimizer import OptimizerStep, make_optimizer_step, update_mask
from supermask.engines.stacked.optimizer import compile_step as compiled_update
from supermask.engines.stacked.stack import Stack
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Architecture, Conv, architecture, initial_state

DATA, OTHER = data(), data(seed=1)
CUDA = torch.device("cuda")


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with pretend_gpu() as gpu:
        yield gpu


def on_both(
    jobs: list[TrainingJob], of: list[SplitData], **how: object
) -> tuple[list[TrainingResult], list[TrainingResult], PretendGpu]:
    here = stacked.train(jobs, of, **how)  # type: ignore[arg-type]
    with pretend_gpu() as gpu:
        there = stacked.train(jobs, of, "cuda", **how)  # type: ignore[arg-type]
        for outcome in there:
            for state in (outcome.end, *outcome.points.values()):
                tensors = {**state.weights, **state.unmasked, **state.logits, **outcome.last_sampled_weights}
                assert all(t.device.type == "cpu" for t in tensors.values())
    return here, there, gpu


def check_same(jobs: list[TrainingJob], of: list[SplitData], **how: object) -> list[TrainingResult]:
    """Training on the pretended GPU, by recorded steps, agrees with training on the CPU."""
    here, there, gpu = on_both(jobs, of, **how)
    for a, b in zip(here, there, strict=True):
        assert (a.status, a.curve.iterations, a.points.keys()) == (b.status, b.curve.iterations, b.points.keys())
        np.testing.assert_allclose(a.curve.training_loss, b.curve.training_loss, rtol=1e-5)
        np.testing.assert_allclose(a.curve.validation_loss, b.curve.validation_loss, rtol=1e-5)
        assert a.curve.validation_accuracy == b.curve.validation_accuracy
        ends = {**a.end.weights, **a.end.unmasked, **a.end.logits} if a.status == "finished" else {}
        for name, wanted in ends.items():
            found = {**b.end.weights, **b.end.unmasked, **b.end.logits}[name]
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        for name, wanted in a.last_sampled_weights.items():
            assert torch.equal(b.last_sampled_weights[name], wanted)
    assert sum(graph.replayed for graph in gpu.graphs) > 0
    return here


# --- the pretended GPU ---


def test_the_pretended_gpu_refuses_what_a_gpu_refuses(gpu: PretendGpu) -> None:
    there, here = torch.ones(3, device=CUDA), torch.ones(3)
    assert (there.device, here.device, (there * 2).device) == (GPU, torch.device("cpu"), GPU)
    with pytest.raises(AssertionError, match="same device"):
        there.add(here)
    with pytest.raises(TypeError, match="can't convert cuda"):
        there.numpy()
    assert (there + here.to("cuda")).cpu().tolist() == [2, 2, 2]
    for waits in (lambda: there.sum().item(), lambda: there.nonzero(), lambda: there[there > 0], lambda: there.cpu()):
        count = len(gpu.waited)
        waits()
        assert len(gpu.waited) == count + 1
        with (
            pytest.raises(RuntimeError, match="previous error during capture"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            waits()
        # The state that PyTorch 2.11 leaves behind.
        assert len(gpu.streams) == 2
        assert len(gpu.capturing_pools) == 1
        with pytest.raises(RuntimeError, match="Offset increment outside graph capture"):
            torch.randn(3, device=CUDA)
        gpu.streams.pop()
        gpu.capturing_pools.clear()
        gpu.is_generator_captured = False
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = there * 3
        there += 1
    assert made.isnan().all()
    assert there.cpu().tolist() == [1, 1, 1]
    graph.replay()
    graph.replay()
    assert (made.cpu().tolist(), there.cpu().tolist()) == ([6, 6, 6], [3, 3, 3])


# --- agreement with the CPU ---


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe(recipe: Recipe) -> None:
    """Shared and unshared batches, dense and pruned, two data sets, a late start and snapshots."""
    jobs = [
        job(recipe),
        job(recipe, pruned_start(), points=frozenset({"gradient", 33, "lowest_validation_loss"})),
        job(recipe, pruned_start(0.0)),
        replace(job(recipe, pruned_start(seed=1)), seed=1),
        job(recipe, replace(pruned_start(seed=2), first_iteration=17)),
        job(recipe, pruned_start(0.25)),
    ]
    check_same(jobs, [DATA, DATA, OTHER, DATA, DATA, DATA])


@pytest.mark.parametrize("recipe", ["adam", "momentum with weight decay"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_learned_masks(method: str, recipe: str) -> None:
    jobs = [mask_job(replace(METHODS[method], samples=2), replace(RECIPES[recipe], lr=0.05), seed=s) for s in (0, 0, 1)]
    check_same(jobs, [DATA] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("way", CONV_ALGORITHMS)
@pytest.mark.parametrize("seeds", [(0, 0, 1, 1), (0, 1, 1), (0,)])
def test_every_algorithm_of_convolutions(way: str, seeds: tuple[int, ...]) -> None:
    of, layers = data((2, 8, 8), 10, train=40), architecture("conv2", (2, 8, 8), 10)
    recipe = Recipe("sgd", 0.02, 4, 8, 4, momentum=0.9)
    jobs = [
        TrainingJob(sequential_network(layers), initial_state(layers, 2 * i), recipe, seed=seed)
        for i, seed in enumerate(seeds)
    ]
    check_same(jobs, [of] * len(seeds), algorithms=dict.fromkeys(("conv1", "conv2"), way))


@pytest.mark.slow
def test_bfloat16() -> None:
    of, layers = data((1, 8, 8), 10, train=40), architecture("conv2", (1, 8, 8), 10)
    recipe = Recipe("adam", 1e-3, 4, 8, 4)
    jobs = [TrainingJob(sequential_network(layers), initial_state(layers, seed), recipe, seed=seed) for seed in (0, 1)]
    for way in CONV_ALGORITHMS:
        here, there, _ = on_both(
            jobs, [of] * 2, algorithms=dict.fromkeys(("conv1", "conv2"), way), precision="bfloat16"
        )
        for a, b in zip(here, there, strict=True):
            np.testing.assert_allclose(a.curve.validation_loss, b.curve.validation_loss, rtol=1e-2)
            assert all(w.dtype == torch.float32 for w in b.end.weights.values())
    check_same([job(RECIPES["adam"]), job(RECIPES["adam"], pruned_start())], [DATA] * 2, precision="bfloat16")


def test_other_replicas_continue_after_one_diverges() -> None:
    recipe = RECIPES["sgd"]
    start = pruned_start()
    wild = {n: w * 1e20 if n == "fc1.weight" else w for n, w in start.weights.items()}
    jobs = [job(recipe, start), job(recipe, replace(start, weights=wild)), job(recipe, pruned_start(seed=1))]
    here = check_same(jobs, [DATA] * 3)
    assert [outcome.status for outcome in here] == ["finished", "diverged", "finished"]


@pytest.mark.slow
@pytest.mark.parametrize("learned", [False, True])
def test_resumed_from_a_checkpoint(learned: bool) -> None:
    recipe = RECIPES["adam"]
    made = mask_job(FAST["bernoulli, rescaled"], recipe) if learned else job(recipe, pruned_start())
    with pretend_gpu():
        whole = stacked.train([made], [DATA], "cuda")[0]
        killed = replace(made, checkpoints=Memory(2))
        with pytest.raises(Killed):
            stacked.train([killed], [DATA], "cuda")
        again = stacked.train([killed], [DATA], "cuda")[0]
    assert outcome_bits(again) == outcome_bits(whole)
    assert all(torch.equal(again.last_sampled_weights[n], w) for n, w in whole.last_sampled_weights.items())


@pytest.mark.slow
def test_algorithm_and_stack_size_are_measured(
    gpu: PretendGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path))
    monkeypatch.setitem(autotune.CANDIDATES, "cuda", (1, 3))
    layers = architecture("conv2", (1, 8, 8), 10)
    assert set(fastest_algorithms(layers, 3, 2, "cuda:0", "tf32").values()) <= CONV_ALGORITHMS.keys()
    assert autotune.choose_stack_size(sequential_network(layers), Recipe("adam", 1e-3, 10, 50, 5), "cuda") in (1, 3)
    assert "synchronize" in gpu.waited


def test_new_runs_reuse_the_recorded_step(gpu: PretendGpu) -> None:
    """Six runs through a stack of two: recorded once, replayed for all of them."""
    recipe = replace(RECIPES["adam"], iterations=40, evaluate_every=10)
    jobs = [replace(job_of("fc-24", d, recipe), seed=s) for s, d in enumerate((0.3, 0.2, 0.5, 1, 0.1, 0.4))]
    line = Line([(job, images()) for job in jobs], 2)
    stacked.train_stream(line, 2, "cuda:0")
    (graph,) = gpu.graphs
    assert graph.replayed == 3 * 40 - WARMUP_STEPS
    ends = [line.outcomes[id(each)].end for each in jobs]
    assert all(w.isfinite().all() for end in ends for w in end.weights.values())


# --- recorded environment ---


def test_the_environment_of_a_gpu_names_its_software(
    gpu: PretendGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another CUDA, cuDNN, Triton or driver may choose other kernels: other fingerprints, other measurements."""
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path))
    versions = {"cuda": "13.0", "cudnn": "91100", "triton": "3.6.0", "driver": "580.65.06"}
    monkeypatch.setattr(environment, "gpu_software", lambda: dict(versions))
    monkeypatch.setattr(device, "gpu_software", lambda: dict(versions))
    facts = environment.environment_info("stacked", "cuda", 1, {"precision": "float32"})
    assert {key: facts[key] for key in versions} == versions
    assert facts["device"] == "a pretended GPU"
    measured: list[str] = []

    def measure() -> str:
        measured.append(" ".join(versions.values()))
        return "columns"

    fingerprints = {facts["fingerprint"]}
    for name in versions:
        versions[name] += "x"
        fingerprints.add(environment.environment_info("stacked", "cuda", 1, {"precision": "float32"})["fingerprint"])
        assert device.cached_measurement("way", ["software"], CUDA, measure) == "columns"
        assert device.cached_measurement("way", ["software"], CUDA, measure) == "columns"
    assert len(fingerprints) == len(set(measured)) + 1 == len(measured) + 1 == 5
    assert environment.environment_info("stacked", "cpu", 1).keys().isdisjoint(versions)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82  Release Build\nGCC version:  gcc 13.3.0",
            "580.82",
        ),
        ("something else\n12.5", None),
        (None, None),
    ],
)
def test_the_version_of_the_driver(text: str | None, version: str | None, tmp_path: Path) -> None:
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    assert environment._gpu_driver(path) == version
    assert environment.gpu_software().keys() == {"cuda", "cudnn", "triton", "driver"}


# --- synchronization ---


@pytest.mark.parametrize("made", ["fc", "conv2", "learned"])
def test_one_synchronization_per_interval(gpu: PretendGpu, made: str) -> None:
    """`train` waits when it reads the losses, `evaluate` when it reads its results, and nothing waits between."""
    jobs, of, ways = [job(RECIPES["adam"]), job(RECIPES["adam"], pruned_start())], DATA, {}
    if made == "conv2":
        of, layers = data((1, 8, 8), 10, train=40), architecture("conv2", (1, 8, 8), 10)
        jobs = [
            TrainingJob(
                sequential_network(layers), initial_state(layers, seed), Recipe("sgd", 0.02, 4, 50, 10), seed=seed
            )
            for seed in (0, 1)
        ]
        ways = {"conv1": "grouped", "conv2": "columns"}
    if made == "learned":
        jobs = [mask_job(replace(FAST["bernoulli, rescaled"], samples=3), RECIPES["adam"], seed=s) for s in (0, 1)]
    stack = Stack(jobs, [of] * 2, CUDA, "float32", ways)
    stack.train([0, 0], 10)
    sends: list[int] = []
    for first in (10, 20, 30):
        gpu.waited.clear()
        gpu.sent, gpu.done = 0, 0
        stack.train([first] * 2, 10)
        assert gpu.waited == ["a tensor is copied to the host"]
        sends.append(gpu.sent)
    # Copies to the device and operations outside the graph do not grow with the number of steps.
    assert sends == [2 + len(stack.logits)] * 3
    assert gpu.done < 20
    assert [graph.replayed for graph in gpu.graphs] == [40 - WARMUP_STEPS]
    gpu.waited.clear()
    stack.evaluate([0, 1], of.validation_images, of.validation_labels)
    assert gpu.waited == ["a tensor is copied to the host"]
    gpu.waited.clear()
    stack.select([1])
    assert gpu.waited == []


@pytest.mark.slow
def test_a_finished_stack_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run of Python's cycle collector: the next stack needs the memory."""
    made: list[ref[Stack]] = []
    make = Stack.__init__

    def noted(self: Stack, *given: object) -> None:
        made.append(ref(self))
        make(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Stack, "__init__", noted)
    collected = gc.isenabled()
    gc.disable()
    try:
        for device in ("cpu", "cuda"):
            with pretend_gpu():
                stacked.train([job(RECIPES["adam"]), job(RECIPES["sgd"]), job(RECIPES["sgd"])], [DATA] * 3, device)
            assert [stack() for stack in made] == [None, None]
            made.clear()
    finally:
        if collected:
            gc.enable()


# --- recorded steps ---


@pytest.mark.parametrize("calls", [[1], [2], [3], [4], [10], [1, 1, 1, 1, 1], [2, 2, 2], [3, 1], [0, 5, 0, 5], [1, 10]])
def test_exactly_the_requested_number_of_steps(gpu: PretendGpu, calls: list[int]) -> None:
    done = torch.zeros(1, dtype=torch.int64, device=CUDA)

    def step() -> None:
        done.add_(1)

    repeated = CudaGraphStep(step, CUDA)
    for times in calls:
        repeated(times)
    assert done.cpu().item() == sum(calls)
    assert len(gpu.graphs) == (sum(calls) > WARMUP_STEPS)
    assert sum(graph.replayed for graph in gpu.graphs) == max(0, sum(calls) - WARMUP_STEPS)


def test_a_step_that_cannot_be_recorded_runs_eagerly(gpu: PretendGpu) -> None:
    """A step that waits for the device; one warning."""
    losses, done = torch.ones(3, device=CUDA), torch.zeros(1, dtype=torch.int64, device=CUDA)

    def step() -> None:
        losses.fill_(losses.sum().item())
        done.add_(1)

    repeated = CudaGraphStep(step, CUDA)
    with pytest.warns(UserWarning, match="could not be recorded as a CUDA graph .*stream is capturing") as warned:
        repeated(5)
        repeated(4)
    assert len(warned) == 1
    assert done.cpu().item() == 9


def test_a_failed_recording_leaves_no_trace(gpu: PretendGpu) -> None:
    """The current stream is restored and the allocator has left capture mode; the next step is recorded."""
    main, done = torch.cuda.current_stream(), torch.zeros(1, dtype=torch.int64, device=CUDA)

    def wait() -> None:
        torch.zeros(1, device=CUDA).item()

    with pytest.warns(UserWarning, match="could not be recorded"):
        CudaGraphStep(wait, CUDA)(WARMUP_STEPS + 1)
    assert torch.cuda.current_stream() is main
    assert gpu.recording is None
    assert not gpu.capturing_pools

    def step() -> None:
        done.add_(1)

    CudaGraphStep(step, CUDA)(WARMUP_STEPS + 2)
    assert done.cpu().item() == WARMUP_STEPS + 2
    assert len(gpu.graphs) == 1


def test_convolutions_are_measured_after_a_failed_recording(gpu: PretendGpu) -> None:
    """PyTorch's default generator of the GPU cannot be used after a failed capture."""

    def wait() -> None:
        torch.zeros(1, device=CUDA).item()

    with pytest.warns(UserWarning, match="could not be recorded"):
        CudaGraphStep(wait, CUDA)(WARMUP_STEPS + 1)
    assert gpu.is_generator_captured
    assert fastest_algorithm(["grouped", "columns"], (1, 2, 4, 4), 2, 2, CUDA, "float32") in CONV_ALGORITHMS


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory"), KeyError("bug")])
def test_errors_other_than_cuda_s_are_raised_after_the_recording_has_ended(gpu: PretendGpu, error: Exception) -> None:
    calls = iter(range(9))

    def step() -> None:
        if next(calls) == WARMUP_STEPS:
            raise error

    with pytest.raises(type(error)):
        CudaGraphStep(step, CUDA)(WARMUP_STEPS + 1)
    assert (len(gpu.streams), gpu.recording, gpu.capturing_pools) == (1, None, set())


def test_all_recordings_and_warm_up_steps_are_on_one_stream(gpu: PretendGpu) -> None:
    """A new stream per recording would keep a cuBLAS workspace each."""
    streams = []
    for _ in range(2):
        CudaGraphStep(lambda: streams.append(torch.cuda.current_stream()), CUDA)(WARMUP_STEPS + 1)
    assert len(streams) == 2 * (WARMUP_STEPS + 1)
    assert len(set(streams)) == 1
    assert streams[0] is not torch.cuda.current_stream()


def test_out_of_memory_during_a_recording_is_raised(gpu: PretendGpu) -> None:
    calls = iter(range(9))

    def step() -> None:
        if next(calls) == WARMUP_STEPS:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphStep(step, CUDA)(5)


# --- precision ---


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_precision_settings_are_restored(precision: str) -> None:
    def settings() -> tuple[object, ...]:
        products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return (
            products.fp32_precision,
            cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            cudnn.deterministic,
            cudnn.benchmark,
            products.allow_bf16_reduced_precision_reduction,
        )

    before = settings()
    wanted = "tf32" if precision == "tf32" else "ieee"
    with pytest.raises(ZeroDivisionError), matmul_precision(precision, CUDA):  # type: ignore[arg-type]
        assert settings() == (wanted, wanted, True, False, False)
        raise ZeroDivisionError
    assert settings() == before
    with matmul_precision(precision, torch.device("cpu")):  # type: ignore[arg-type]
        assert settings() == before


# --- compiled optimizer ---


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_compiled_optimizer_agrees_with_the_plain_one(backend: str) -> None:
    """Any shape, pruned or not, in place; more recipes than PyTorch compiles per code object."""
    if backend == "inductor" and which("g++") is None:
        pytest.skip("there is no compiler")
    compilations = 0
    recipes = [Recipe("sgd", 0.1, 5, 5, 5, weight_decay=i / 100) for i in range(2 if backend == "inductor" else 10)]
    for recipe in [Recipe("adam", 0.1, 5, 5, 5, weight_decay=0.01), *recipes]:
        counter = CompileCounterWithBackend(backend)
        plain = make_optimizer_step(recipe, torch.device("meta"))
        compiled = compiled_update(plain, counter)
        shapes = [(4, 70), (3, 70), (3, 5), (1, 70), (5, 5)] if recipe.optimizer == "adam" else [(3, 8), (2, 7)]
        for shape in shapes:
            for pruned in (False, True):
                check_moves_the_same(plain, compiled, shape, pruned, len(optimizer_state_names(recipe)))
        assert 1 < counter.frame_count <= 8
        compilations += counter.frame_count
    assert backend == "inductor" or compilations > 16, "too few compilations for one code object to be exceeded"


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
            update(own, g, update_mask(mask, "cuda") if pruned else None, state, rate, second)
        moved.append([own, *state])
        if pruned:
            assert torch.equal(own.view(torch.int32)[~mask], w.view(torch.int32)[~mask])
        assert (own != w)[mask].all()
    for found, wanted in zip(*moved, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


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


# --- reference engine ---


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, *METHODS])
def test_the_reference_engine_on_the_pretended_gpu(method: str | None) -> None:
    recipe, engine = RECIPES["adam"], reference if method is None else reference_masks
    points: frozenset[Snapshot] = frozenset({"gradient", 33, "lowest_validation_loss"})
    made = job(recipe, pruned_start(), points=points) if method is None else mask_job(METHODS[method], recipe)
    killed = replace(made, checkpoints=Memory(2))
    here = engine.train([made], [DATA])[0]
    with pretend_gpu() as gpu:
        there = engine.train([made], [DATA], "cuda")[0]
        with pytest.raises(Killed):
            engine.train([killed], [DATA], "cuda")
        again = engine.train([killed], [DATA], "cuda")[0]
        # bits() goes through NumPy, which accepts CPU tensors only.
        found = outcome_bits(there), outcome_bits(again)
    assert gpu.done > 100
    assert found == (outcome_bits(here),) * 2


# --- benchmark ---


@pytest.mark.slow
@pytest.mark.parametrize(("device", "precision"), [("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")])
def test_the_benchmark_runs_for_every_network(
    device: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On small images: only that it runs; no number is checked."""
    benchmark = import_file(Path(__file__).parents[3] / "benchmarks" / "stacked.py", monkeypatch)
    monkeypatch.setattr(benchmark, "PRODUCTS", {"cpu": (8,), "cuda": (8, 16)})
    monkeypatch.setattr(benchmark, "SHAPES", dict.fromkeys(benchmark.SHAPES, (3, 8, 8)))
    monkeypatch.setattr(benchmark, "BATCH", 2)
    monkeypatch.setattr(stacked, "fastest_algorithms", lambda layers, *_: dict.fromkeys(names(layers), "grouped"))
    every = (device, precision) == ("cuda", "float32")
    networks, replicas = (["fc", "conv2", "conv4", "conv6"], [3]) if every else (["conv2"], [1, 3])
    out = tmp_path / "found.json"
    told = ["--device", device, "--precision", precision, "--networks", *networks, "--replicas", *map(str, replicas)]
    monkeypatch.setattr("sys.argv", ["stacked.py", *told, "--steps", "1", "--turns", "1", "--out", str(out)])
    with pretend_gpu():
        benchmark.main()
    found = json.loads(out.read_text())
    assert [(line["network"], line["replicas"]) for line in found["measured"]] == [
        (n, r) for n in networks for r in replicas
    ]
    for line in found["measured"]:
        assert (line["bytes"] is None) == (device == "cpu")
        assert line["share_of_peak"] == pytest.approx(line["flops"] / found["peak_flops"])
        times = [line[name] for name in line if name.endswith("_ms") and name != "backward_ms"]
        assert len(times) == 5
        assert all(time > 0 for time in times)


def names(layers: Architecture) -> list[str]:
    return [layer.name for layer in layers if isinstance(layer, Conv)]


def import_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
