"""Cached measurements of the stacked engine: the algorithm of convolutions and the size of a stack."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.small_studies import small_plan
from torch import Tensor

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import UNTRAINED, Recipe
from supermask.engines import stacked
from supermask.engines.stacked import autotune, convolutions
from supermask.engines.stacked.autotune import (
    choose_stack_size,
    max_replicas,
    measure_stack_throughput,
    smallest_near_best,
)
from supermask.engines.stacked.convolutions import CONV_ALGORITHMS
from supermask.engines.stacked.device import is_out_of_memory
from supermask.execution.run import RunOptions, _choose_stack_size
from supermask.networks.network import Network, sequential_network
from supermask.networks.registry import named_network
from supermask.networks.sequential import architecture

CPU = torch.device("cpu")
FC, CONV2 = architecture("fc-24", (1, 8, 8), 10), architecture("conv2", (1, 8, 8), 10)
FC_NETWORK, CONV2_NETWORK = sequential_network(FC), sequential_network(CONV2)
RESNET = named_network("resnet20-4", (1, 8, 8), 10)
ADAM = Recipe("adam", 1e-3, 10, 50, 5)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    convolutions._choose_for_shape.cache_clear()
    yield tmp_path / "cache"
    convolutions._choose_for_shape.cache_clear()


def forget_in_process() -> None:
    """Clear the in-process cache, as in a new process."""
    convolutions._choose_for_shape.cache_clear()


# --- algorithm of convolutions ---


def test_the_algorithm_is_measured_once_per_machine(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stacked.choose_conv_algorithms(CONV2, 2, 3, "cpu", "float32")
    assert found.keys() == {"conv1", "conv2"}
    assert set(found.values()) <= CONV_ALGORITHMS.keys() - {"branches"}
    files = {path.name: path.read_bytes() for path in (own_cache / "stacked").iterdir()}
    assert len(files) == 2
    forget_in_process()
    monkeypatch.setattr(convolutions, "measure_fastest_algorithm", lambda *_, **__: pytest.fail("measured again"))
    assert stacked.choose_conv_algorithms(CONV2, 2, 4, "cpu", "float32") == found
    assert stacked.choose_conv_algorithms(FC, 2, 3, "cpu", "float32") == {}
    assert {path.name: path.read_bytes() for path in (own_cache / "stacked").iterdir()} == files


def test_each_precision_batch_and_count_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(convolutions, "measure_fastest_algorithm", lambda *given, **_: seen.append(given) or "columns")
    for batch, replicas, precision in ((2, 3, "float32"), (4, 3, "float32"), (2, 5, "float32"), (2, 3, "bfloat16")):
        stacked.choose_conv_algorithms(CONV2, batch, replicas, "cpu", precision)  # type: ignore[arg-type]
    assert len(seen) == 8
    threads = torch.get_num_threads()
    forget_in_process()
    try:
        torch.set_num_threads(threads + 1)
        stacked.choose_conv_algorithms(CONV2, 2, 3, "cpu", "float32")
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 10


@pytest.mark.parametrize("text", ["", "{", "[]", '{"found": "columns"}', '{"found": "columns", "facts": "other"}'])
def test_a_damaged_cache_file_is_measured_again(own_cache: Path, text: str) -> None:
    stacked.choose_conv_algorithms(CONV2, 2, 1, "cpu", "float32")
    (file, *_) = sorted((own_cache / "stacked").iterdir())
    file.write_text(text)
    forget_in_process()
    stacked.choose_conv_algorithms(CONV2, 2, 1, "cpu", "float32")
    assert json.loads(file.read_text())["found"] in CONV_ALGORITHMS


def test_no_cache_folder(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache.write_text("in the way")
    found = stacked.choose_conv_algorithms(CONV2, 2, 1, "cpu", "float32")
    monkeypatch.setattr(convolutions, "measure_fastest_algorithm", lambda *_, **__: pytest.fail("measured again"))
    assert stacked.choose_conv_algorithms(CONV2, 2, 1, "cpu", "float32") == found


def full(*_: Tensor) -> Tensor:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")


def full_gpu(*_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def broken(*_: Tensor) -> Tensor:
    raise RuntimeError("another fault")


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("INTERNAL ASSERT FAILED at c10/cuda/CUDACachingAllocator.cpp:3941, please report a bug"), False),
        (RuntimeError("CUDA error: operation failed due to a previous error during capture"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("GET was unable to find an engine to execute this computation"), False),
        (RuntimeError("endAllocatePool: not currently recording to mempool_id"), False),
    ],
    ids=lambda value: str(value)[:40],
)
def test_messages_of_exhausted_memory(error: BaseException, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def test_an_algorithm_that_runs_out_of_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for way, raises in (("grouped", full), ("one by one", full_gpu), ("columns", full)):
        monkeypatch.setitem(CONV_ALGORITHMS, way, raises)
    offered = ["grouped", "one by one", "columns", "grouped, channels last"]
    assert (
        convolutions.measure_fastest_algorithm(offered, (1, 2, 4, 4), 2, 4, CPU, "float32") == "grouped, channels last"
    )


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`\nmore lines",
        "another fault",
    ],
)
def test_an_algorithm_that_does_not_work_here_is_dropped(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """With one warning per reason; an error only if no algorithm is left."""

    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError(message)

    shape = (1, 2, 4, 4)
    for name in ("grouped", "columns"):
        monkeypatch.setitem(CONV_ALGORITHMS, name, broken)
    first_line = re.escape(message.partition("\n")[0])
    with pytest.warns(UserWarning, match=f"'(grouped|columns)' does not work .*{first_line}.* not used") as warned:
        assert (
            convolutions.measure_fastest_algorithm(["grouped", "one by one"], shape, 2, 4, CPU, "float32")
            == "one by one"
        )
        assert (
            convolutions.measure_fastest_algorithm(["grouped", "one by one"], shape, 2, 4, CPU, "float32")
            == "one by one"
        )
    assert len(warned) == 1
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=first_line):
        convolutions.measure_fastest_algorithm(["grouped", "columns"], shape, 2, 4, CPU, "float32")


def test_an_algorithm_that_does_not_work_is_not_measured_again_with_fewer_replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It neither stands in for those that have run out of memory."""
    calls: list[int] = []

    def broken(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        calls.append(len(w))
        raise RuntimeError("no engine for this test")

    monkeypatch.setitem(CONV_ALGORITHMS, "one by one", broken)
    monkeypatch.setitem(CONV_ALGORITHMS, "grouped", full)
    with pytest.warns(UserWarning, match="no engine for this test"):
        assert (
            convolutions.measure_fastest_algorithm(["one by one", "grouped"], (1, 2, 4, 4), 2, 4, CPU, "float32")
            == "grouped"
        )
    assert calls == [4]


@pytest.mark.parametrize(("replicas", "batches", "wide"), [(1, 1, 1), (3, 3, 1), (8, 5, 2), (128, 5, 26)])
def test_the_first_convolution_is_measured_as_it_is_computed(
    monkeypatch: pytest.MonkeyPatch, replicas: int, batches: int, wide: int
) -> None:
    """Replicas of a seed share their images, as one wide layer, and images need no gradient."""
    seen: list[tuple[object, ...]] = []

    def recorded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        seen.append((tuple(x.shape), tuple(w.shape), tuple(b.shape), x.requires_grad, w.requires_grad))
        return original(x, w, b)

    original = CONV_ALGORITHMS["columns"]
    monkeypatch.setitem(CONV_ALGORITHMS, "columns", recorded)
    for name in CONV_ALGORITHMS:
        if name != "columns":
            monkeypatch.setitem(CONV_ALGORITHMS, name, full)
    shape = (2, 4, 6, 5)
    for is_first in (True, False):
        convolutions.measure_fastest_algorithm(["columns"], shape, 3, replicas, CPU, "float32", is_first=is_first)
    assert set(seen) == {
        ((batches, 3, 2, 6, 5), (batches, wide * 4, 2, 3, 3), (batches, wide * 4), False, True),
        ((replicas, 3, 2, 6, 5), (replicas, 4, 2, 3, 3), (replicas, 4), True, True),
    }


def test_only_the_first_convolution_is_measured_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        convolutions, "measure_fastest_algorithm", lambda *_, is_first: seen.append(is_first) or "columns"
    )
    stacked.choose_conv_algorithms(architecture("conv4", (1, 8, 8), 10), 2, 3, "cpu", "float32")
    assert seen == [True, False, False, False]


def test_fewer_replicas_are_measured_if_none_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def for_two(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        tried.append(len(w))
        return full() if len(w) > 2 else CONV_ALGORITHMS["one by one"](x, w, b)

    monkeypatch.setitem(CONV_ALGORITHMS, "columns", for_two)
    monkeypatch.setitem(CONV_ALGORITHMS, "grouped", full)
    assert (
        convolutions.measure_fastest_algorithm(["grouped", "columns"], (1, 2, 4, 4), 2, 8, CPU, "float32") == "columns"
    )
    assert list(dict.fromkeys(tried)) == [8, 4, 2]
    assert convolutions.measure_fastest_algorithm(["grouped"], (1, 2, 4, 4), 2, 8, CPU, "float32") == "one by one"


def test_side_streams_wait_for_the_main_stream_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that log their calls, and tensors that claim to be on a GPU."""
    said: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

        def __enter__(self) -> None:
            said.append(f"on {self.name}")

        def __exit__(self, *_: object) -> None: ...

    class GpuTensor(Tensor):
        is_cuda = True

        def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
            said.append(f"held for {stream.name}")

    side = [Stream("a"), Stream("b")]
    monkeypatch.setattr(convolutions, "_side_streams", lambda _: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    x, w, b = (torch.randn(shape).as_subclass(GpuTensor) for shape in ((3, 2, 1, 4, 4), (3, 2, 1, 3, 3), (3, 2)))
    found = CONV_ALGORITHMS["branches"](x, w, b)
    wanted = CONV_ALGORITHMS["one by one"](*(t.as_subclass(Tensor) for t in (x, w, b)))  # type: ignore[call-arg]
    torch.testing.assert_close(found.as_subclass(Tensor), wanted)
    begun = [[f"{name} waits for main", *[f"held for {name}"] * 3] for name in "ab"]
    done = ["main waits for a", "main waits for b", *["held for main"] * 3]
    assert said == [*begun[0], *begun[1], "on a", "on b", "on a", *done]


# --- size of a stack ---


@pytest.mark.parametrize(
    ("rates", "wanted", "asked"),
    [
        ({1: 100, 4: 104, 16: 999}, 1, [1, 4]),
        ({1: 100, 4: 106, 16: 107}, 4, [1, 4, 16]),
        ({1: 100, 4: 300, 16: 290}, 4, [1, 4, 16]),
        ({1: 100, 4: 300, 16: 900}, 16, [1, 4, 16]),
        ({1: 100, 4: 300, 16: None}, 4, [1, 4, 16]),
        ({1: None}, 1, [1]),
        ({1: 9, 4: 20}, 1, [1]),
        ({1: 100, 4: 39, 16: 999}, 1, [1, 4]),
    ],
    ids=["no faster", "hardly", "slower", "ever faster", "no memory", "none at all", "a long step", "worse"],
)
def test_smallest_near_best(rates: dict[int, float | None], wanted: int, asked: list[int]) -> None:
    seen: list[int] = []

    def rate(count: int) -> float | None:
        seen.append(count)
        return rates[count]

    assert smallest_near_best((1, 4, 16), rate) == wanted
    assert seen == asked


def test_the_size_is_measured_once_per_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per setting that changes the time of a step; learning rate and length do not."""
    asked: list[int] = []

    def measured(replicas: int, *_: object) -> float:
        asked.append(replicas)
        return 1000.0 * replicas**0.5

    monkeypatch.setattr(autotune, "measure_stack_throughput", measured)
    assert choose_stack_size(FC_NETWORK, ADAM, "cpu") == 16
    assert asked == [1, 4, 16]
    assert choose_stack_size(FC_NETWORK, Recipe("adam", 1e-4, 10, 99, 9), "cpu") == 16
    assert asked == [1, 4, 16]
    for other in (Recipe("sgd", 1e-3, 10, 50, 5), Recipe("adam", 1e-3, 20, 50, 5)):
        choose_stack_size(FC_NETWORK, other, "cpu")
    choose_stack_size(FC_NETWORK, ADAM, "cpu", "bfloat16")
    choose_stack_size(FC_NETWORK, ADAM, "cpu", learning=MaskLearning())
    choose_stack_size(CONV2_NETWORK, ADAM, "cpu")
    assert len(asked) == 18
    assert choose_stack_size(FC_NETWORK, UNTRAINED, "cpu") == 16
    assert len(asked) == 18, "there is no step to be measured"


@pytest.mark.slow
@pytest.mark.parametrize("learning", [None, MaskLearning()], ids=["trained", "learned"])
@pytest.mark.parametrize("network", [FC_NETWORK, CONV2_NETWORK, RESNET], ids=["fc", "conv2", "resnet"])
def test_throughput_of_synthetic_replicas(learning: MaskLearning | None, network: Network) -> None:
    rates = [measure_stack_throughput(n, network, ADAM, CPU, "float32", learning) for n in (1, 3)]
    assert all(rate is not None and rate > 0 for rate in rates)


def test_a_stack_that_does_not_fit_has_no_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_time_step", full)
    assert measure_stack_throughput(2, FC_NETWORK, ADAM, CPU, "float32", None) is None
    monkeypatch.setattr(autotune, "_time_step", broken)
    with pytest.raises(RuntimeError, match="another fault"):
        measure_stack_throughput(2, FC_NETWORK, ADAM, CPU, "float32", None)


def test_gpu_memory_limits_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached size depends on total memory, the returned size on free memory."""
    asked: list[int] = []
    memory = {"free": 0, "total": 0}

    def measured(replicas: int, *_: object) -> float:
        asked.append(replicas)
        return 1e6 * replicas

    monkeypatch.setattr(autotune, "measure_stack_throughput", measured)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory["free"], memory["total"]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    network = sequential_network(architecture("conv6", (3, 32, 32), 10))
    one = 4 / autotune.MEMORY_FRACTION * 60 * 1e6 * 1.2
    memory |= {"total": int(100 * one), "free": int(100 * one)}
    most = max_replicas(network, 60, memory["total"])
    assert 32 < most < 128
    recipe = Recipe("adam", 3e-4, 60, 1000, 100)
    assert choose_stack_size(network, recipe, "cuda") == most
    assert asked == [1, 8, 32, most]
    memory["free"] = int(10 * one)
    assert choose_stack_size(network, recipe, "cuda") == max_replicas(network, 60, memory["free"]) < 32
    assert asked == [1, 8, 32, most]
    assert max_replicas(network, 60, 10**15) == 512
    assert max_replicas(network, 60, 1) == 1


# --- recorded facts ---


def test_environment_facts_name_alone_or_shared() -> None:
    facts = {"precision": "float32", "convolutions": {"conv1": "columns"}, "optimizer_compiled": False}
    ways = {"conv1": "columns"}
    assert stacked.environment_facts(ways, "float32", True, ADAM) == {**facts, "stack": "alone"}
    assert stacked.environment_facts(ways, "float32", False, ADAM) == {**facts, "stack": "shared"}


# --- measured runs ---


def test_a_study_is_measured_with_a_trained_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def measured(network: object, recipe: Recipe, *how: object) -> int:
        asked.append((recipe.iterations > 0, *how))
        return 8

    monkeypatch.setattr(autotune, "choose_stack_size", measured)
    plan = small_plan(levels=1)
    how = RunOptions(Path("store"), engine="stacked", precision="bfloat16")
    assert _choose_stack_size(how, plan) == 8
    assert asked == [(True, "cpu", "bfloat16", None)]
    assert _choose_stack_size(RunOptions(Path("store"), engine="stacked", stack=3), plan) == 3
    assert _choose_stack_size(RunOptions(Path("store"), engine="sparse"), plan) == 1
    assert len(asked) == 1
