"""Recorded steps of the stacked engine on a pretended GPU: synchronization, failed recordings, precision, memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from weakref import ref

import pytest
import torch
from helpers.mask_trainings import FAST, mask_job
from helpers.pretend_gpu import PretendGpu, pretend_gpu
from helpers.trainings import RECIPES, data, job, pruned_start

from supermask.core.recipe import Recipe
from supermask.engines import stacked
from supermask.engines.job import TrainingJob
from supermask.engines.precision import matmul_precision
from supermask.engines.stacked.convolutions import CONV_ALGORITHMS, measure_fastest_algorithm
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS, CudaGraphStep
from supermask.engines.stacked.stack import Stack
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

DATA = data()
CUDA = torch.device("cuda")


@pytest.fixture
def gpu() -> Iterator[PretendGpu]:
    with pretend_gpu() as gpu:
        yield gpu


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
    assert measure_fastest_algorithm(["grouped", "columns"], (1, 2, 4, 4), 2, 2, CUDA, "float32") in CONV_ALGORITHMS


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


# --- synchronization ---


@pytest.mark.slow
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
