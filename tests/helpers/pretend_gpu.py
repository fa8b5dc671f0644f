"""A pretended GPU for tests: code for CUDA runs on the CPU, and operations that a GPU refuses raise errors.

All tensors are CPU tensors; a table by storage says which of them count as on the GPU. Operations that mix
devices fail, and so does everything that a CUDA graph cannot record: waiting for the device, copies from the host.
Recorded operations are not executed during the recording (new tensors are filled with NaN, written ones keep their
values) but at every replay, in the recorded memory: a step that does not read and write in place gives wrong results.

Not covered: numerics and kernels of a real GPU, memory that is reused too early, streams that do not synchronize.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from supermask.engines.stacked.bias_relu import _make as make_compiled
from supermask.engines.stacked.convolutions import _side_streams
from supermask.engines.stacked.cuda_graph import _side_stream

HOST, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten: Any = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: "a value is read",
    aten.equal.default: "tensors are compared",
    aten.nonzero.default: "the size of the result depends on values",
    aten.masked_select.default: "the size of the result depends on values",
    aten._unique2.default: "the size of the result depends on values",
    aten.repeat_interleave.Tensor: "the size of the result depends on values",
}
"""Operations that wait for the GPU -> reason."""


class PretendGpu:
    """Devices of tensors, and a log of synchronizations, copies and recordings."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[StorageWeakRef, torch.device | None]] = {}
        self.waited: list[str] = []
        """Reason of each synchronization with the device."""
        self.sent = 0
        """Copies from the host to the device."""
        self.recording: Graph | None = None
        self.graphs: list[Graph] = []
        self.streams: list[_Stream] = [_Stream()]
        """The default stream, then those entered with `torch.cuda.stream`."""
        self.capturing_pools: set[object] = set()
        """Memory pools to which the allocator directs allocations; a failed capture leaves its pool here."""
        self.is_generator_captured = False
        """True while the default generator belongs to a capture; a failed one leaves it so."""
        self.done = 0
        """Operations executed on the device outside graphs."""

    def place(self, tensor: Tensor) -> torch.device | None:
        """Device of a tensor; None for one made outside of dispatched operations, which counts as on any device."""
        found = self._places.get(tensor.untyped_storage()._cdata)
        return HOST if found is None else found[1]

    def put(self, tensor: Tensor, place: torch.device | None) -> Tensor:
        storage = tensor.untyped_storage()
        # The weak reference keeps the address from being reused.
        self._places[storage._cdata] = (StorageWeakRef(storage), place)
        if len(self._places) > 10_000:
            self._places = {key: kept for key, kept in self._places.items() if not kept[0].expired()}
        return tensor

    def wait(self, why: str) -> None:
        self.refuse_in_recordings(why)
        self.waited.append(why)

    def send(self) -> None:
        self.sent += 1
        self.refuse_in_recordings("a copy from pageable memory")

    def refuse_in_recordings(self, why: str) -> None:
        if self.recording is not None:
            self.recording.is_invalid = True
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")

    def end_allocate_to_pool(self, _: int, pool: object) -> None:
        if pool not in self.capturing_pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.capturing_pools.remove(pool)


class Graph:
    """Recorded operations. A failed capture behaves as in PyTorch 2.11: it leaves the allocator in capture mode."""

    def __init__(self, gpu: PretendGpu) -> None:
        self.gpu = gpu
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.replayed = 0
        self.is_invalid = False

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        gpu = self.gpu
        if len(gpu.streams) < 2:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        assert gpu.recording is None
        assert not self.operations
        self.pool, self.stream = pool or object(), gpu.streams[-1]
        gpu.capturing_pools.add(self.pool)
        gpu.is_generator_captured = True
        gpu.recording = self

    def capture_end(self) -> None:
        gpu = self.gpu
        if gpu.recording is not self:
            raise RuntimeError("CUDA error: invalid argument")
        if gpu.streams[-1] is not self.stream:
            raise RuntimeError("Capture must end on the same stream it began on.")
        gpu.recording = None
        if self.is_invalid:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        gpu.end_allocate_to_pool(0, self.pool)
        gpu.is_generator_captured = False
        gpu.graphs.append(self)

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Result of the operation with its values undone."""
        written = [t for t in _written(func, args, kwargs) if isinstance(t, Tensor)]
        before = [t.clone() for t in written]
        found = func(*args, **kwargs)
        for tensor, old in zip(written, before, strict=True):
            tensor.copy_(old)
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        outs = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
        new = [t for t in outs if t.untyped_storage()._cdata not in given]
        for tensor in new:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        assert not new or len(new) == len(outs)
        self.operations.append((func, args, kwargs, new))
        return found

    def replay(self) -> None:
        self.replayed += 1
        with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction(), torch.no_grad():
            for func, args, kwargs, outs in self.operations:
                found = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for out, new in zip(outs, found, strict=False):
                    out.copy_(new)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    given = func._schema.arguments
    values = [*args, *(kwargs.get(a.name) for a in given[len(args) :])]
    written = [v for a, v in zip(given, values, strict=True) if a.alias_info is not None and a.alias_info.is_write]
    # Batch normalization changes its running statistics, which not all of its schemas say.
    return written + [v for a, v in zip(given, values, strict=True) if a.name in ("running_mean", "running_var")]


class _Operations(TorchDispatchMode):
    """Intercepts every operation, including those of backward passes."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = {gpu.place(t) for t in tensors} - {None}
        if func is aten.copy_.default and len(places) == 2:
            if gpu.place(args[0]) == HOST:
                gpu.wait("a tensor is copied to the host")
            else:
                gpu.send()
            return func(*args, **kwargs)
        assert len(places) < 2, f"{func}: Expected all tensors to be on the same device"
        there = GPU in places
        if there:
            gpu.done += 1
            if func in WAITS:
                gpu.wait(f"{func}: {WAITS[func]}")
            if func in (aten.index.Tensor, aten.index_put_.default) and any(
                i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
            ):
                gpu.wait(f"{func}: the size of the result depends on values")
        recorded = gpu.recording is not None and HOST not in places and tensors
        found = gpu.recording.record(func, args, kwargs) if recorded else func(*args, **kwargs)
        given = {t.untyped_storage()._cdata for t in tensors}
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                gpu.put(tensor, next(iter(places), None))
        return found


class _Calls(TorchFunctionMode):
    """Intercepts every call that names a device or reads one."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return gpu.place(args[0]) or GPU
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return gpu.place(args[0]) == GPU
        if func is Tensor.cpu:
            return self._moved(args[0], HOST, False)
        if func is Tensor.numpy and gpu.place(args[0]) == GPU:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.to:
            named = [a for a in args[1:] if isinstance(a, str | torch.device)] or [kwargs.pop("device", None)]
            dtypes = [a for a in (*args[1:], kwargs.pop("dtype", None)) if isinstance(a, torch.dtype)]
            place, copied = gpu.place(args[0]) or GPU, kwargs.pop("copy", False)
            moved = self._moved(args[0], place if named[0] is None else torch.device(named[0]), copied)
            return func(moved, *dtypes) if dtypes else moved
        if "device" in kwargs:
            place = torch.device(kwargs["device"] or HOST)
            draws = place.type == "cuda" and func in (torch.randn, torch.rand) and "generator" not in kwargs
            if draws and gpu.is_generator_captured and gpu.recording is None:
                raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
            found = func(*args, **{**kwargs, "device": HOST})
            return gpu.put(found, GPU if place.type == "cuda" else HOST)
        if func in (torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.tensor, torch.randn):
            return gpu.put(func(*args, **kwargs), HOST)
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, place: torch.device, copied: bool) -> Tensor:
        to, at = (GPU if place.type == "cuda" else HOST), self.gpu.place(tensor) or GPU
        if to == at and not copied:
            return tensor
        if at == GPU and to == HOST:
            self.gpu.wait("a tensor is copied to the host")
        if at == HOST and to == GPU:
            self.gpu.send()
        with _unseen():
            return self.gpu.put(tensor.clone(), to)


@contextmanager
def _unseen() -> Iterator[None]:
    with torch._C._DisableTorchDispatch():
        yield


class _Stream:
    def __init__(self, device: Any = None) -> None:
        assert device is None or torch.device(device).type == "cuda"

    def wait_stream(self, other: _Stream) -> None:
        assert other is not self


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """Pretend a GPU while the block runs."""
    gpu, patch = PretendGpu(), pytest.MonkeyPatch()
    autocast = torch.autocast

    @contextmanager
    def stream(entered: _Stream) -> Iterator[None]:
        gpu.streams.append(entered)
        try:
            yield
        finally:
            gpu.streams.pop()

    def init() -> None:
        patch.setattr(torch.cuda, "default_generators", (torch.default_generator,))

    def current_device() -> int:
        init()
        return 0

    @contextmanager
    def device(_: Any) -> Iterator[None]:
        yield

    @contextmanager
    def graph(into: Graph, **_: Any) -> Iterator[None]:
        # As torch.cuda.graph does it: if capture_end raises, the capture stream stays the current one.
        gpu.streams.append(_Stream())
        into.capture_begin()
        try:
            yield
        finally:
            into.capture_end()
        gpu.streams.pop()

    try:
        patch.setattr(torch, "autocast", lambda kind, *given, **named: autocast("cpu", *given, **named))
        for name, stand_in in {
            "Stream": _Stream,
            "current_stream": lambda *_: gpu.streams[-1],
            "init": init,
            "stream": stream,
            "device": device,
            "CUDAGraph": lambda: Graph(gpu),
            "graph_pool_handle": object,
            "graph": graph,
            "current_device": current_device,
            # Empty until CUDA is initialized, as in PyTorch.
            "default_generators": (),
            "synchronize": lambda *_: gpu.wait("synchronize"),
            "mem_get_info": lambda *_: (2**34, 2**35),
            "is_available": lambda: True,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda *_: None,
            "max_memory_allocated": lambda *_: 2**20,
            "get_device_name": lambda *_: "a pretended GPU",
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", gpu.end_allocate_to_pool, raising=False)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        with warnings.catch_warnings(), _Operations(gpu), _Calls(gpu):
            # It has no compiler either.
            warnings.filterwarnings(
                "ignore", message="the (optimizer|masked pass|ReLU kernel) of the stacked engine is not compiled"
            )
            yield gpu
    finally:
        # The cached streams are pretended ones, and so may be a compiler that a test pretends.
        _side_streams.cache_clear()
        _side_stream.cache_clear()
        make_compiled.cache_clear()
        patch.undo()
