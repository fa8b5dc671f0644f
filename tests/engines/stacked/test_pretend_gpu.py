"""The GPU code of the stacked engine on a pretended GPU: devices, recorded steps, synchronization, precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.harness import IS_FULL
from helpers.killed_training import Killed, Memory
from helpers.mask_trainings import FAST, METHODS, mask_job
from helpers.pretend_gpu import GPU, PretendGpu, pretend_gpu
from helpers.sparse_jobs import images, job_of
from helpers.stacked_stream import Line
from helpers.trainings import RECIPES, data, job, pruned_start
from helpers.trainings import bits as outcome_bits

from supermask.core import environment
from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot, SplitData, TrainingResult
from supermask.engines import reference, reference_masks, stacked
from supermask.engines.job import TrainingJob
from supermask.engines.stacked import autotune, device
from supermask.engines.stacked.convolutions import CONV_ALGORITHMS, choose_conv_algorithms
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

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
            for state in (outcome.end, *outcome.snapshots.values()):
                tensors = {**state.weights, **state.unmasked, **state.logits, **outcome.last_sampled_weights}
                assert all(t.device.type == "cpu" for t in tensors.values())
    return here, there, gpu


def check_same(jobs: list[TrainingJob], of: list[SplitData], **how: object) -> list[TrainingResult]:
    """Training on the pretended GPU, by recorded steps, agrees with training on the CPU."""
    here, there, gpu = on_both(jobs, of, **how)
    for a, b in zip(here, there, strict=True):
        assert (a.status, a.curve.iterations, a.snapshots.keys()) == (b.status, b.curve.iterations, b.snapshots.keys())
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
        job(recipe, pruned_start(), snapshots=frozenset({"gradient", 33, "lowest_validation_loss"})),
        job(recipe, pruned_start(0.0)),
        replace(job(recipe, pruned_start(seed=1)), seed=1),
        job(recipe, replace(pruned_start(seed=2), first_iteration=17)),
        job(recipe, pruned_start(0.25)),
    ]
    check_same(jobs, [DATA, DATA, OTHER, DATA, DATA, DATA])


@pytest.mark.slow
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
        killed = replace(made, checkpointer=Memory(2))
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
    assert set(choose_conv_algorithms(layers, 3, 2, "cuda:0", "tf32").values()) <= CONV_ALGORITHMS.keys()
    assert autotune.choose_stack_size(sequential_network(layers), Recipe("adam", 1e-3, 10, 50, 5), "cuda") in (1, 3)
    assert "synchronize" in gpu.waited


@pytest.mark.slow
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


# --- reference engine ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [None, *(METHODS if IS_FULL else ["bernoulli", "rounded, rescaled", "edge_popup, rescaled", "signed"])]
)
def test_the_reference_engine_on_the_pretended_gpu(method: str | None) -> None:
    recipe, engine = RECIPES["adam"], reference if method is None else reference_masks
    snapshots: frozenset[Snapshot] = frozenset({"gradient", 33, "lowest_validation_loss"})
    made = job(recipe, pruned_start(), snapshots=snapshots)
    if method is not None:
        made = mask_job(replace(METHODS[method], samples=2), recipe)
    killed = replace(made, checkpointer=Memory(2))
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
