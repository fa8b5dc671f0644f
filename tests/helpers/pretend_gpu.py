"""A GPU that is not there, for tests: programs that name one run on the CPU, and what a GPU would refuse is refused.

Tensors are the CPU's; beside it is noted, by their memory, which of them are said to lie on the GPU. An operation of
tensors here and there fails, as does what a graph may not record: waiting for the device, copies from the host. What is
recorded is not done then (what it would have made is NaN, what it would have changed stays), but whenever it is
replayed, in the memory in which it was recorded: a step that does not read and write in place comes out wrong.

What it cannot show: other numbers than a CPU's, other kernels, memory used again too early, streams that do not wait.
"""

from __future__ import annotations

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

from supermask.engines.stacked.convolutions import _side_streams

HERE, THERE = torch.device("cpu"), torch.device("cuda", 0)
aten: Any = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: "a number is looked at",
    aten.equal.default: "tensors are compared",
    aten.nonzero.default: "how much is found, is not known before",
    aten.masked_select.default: "how much is found, is not known before",
    aten._unique2.default: "how much is found, is not known before",
    aten.repeat_interleave.Tensor: "how much is made, is not known before",
}
"""Operations that wait for a GPU to be done, and why."""


class PretendGpu:
    """Where tensors are; what was waited for, sent and recorded."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[StorageWeakRef, torch.device | None]] = {}
        self.waited: list[str] = []
        """Each time that the program waited for the device."""
        self.sent = 0
        """Copies from the host to the device."""
        self.recording: Graph | None = None
        self.graphs: list[Graph] = []
        self.done = 0
        """Operations done on the device, not counting those of graphs."""

    def place(self, tensor: Tensor) -> torch.device | None:
        """Where it lies; None of what came up between operations, which is where its user is."""
        found = self._places.get(tensor.untyped_storage()._cdata)
        return HERE if found is None else found[1]

    def put(self, tensor: Tensor, place: torch.device | None) -> Tensor:
        storage = tensor.untyped_storage()
        # The reference keeps the address from being another's.
        self._places[storage._cdata] = (StorageWeakRef(storage), place)
        if len(self._places) > 10_000:
            self._places = {key: kept for key, kept in self._places.items() if not kept[0].expired()}
        return tensor

    def wait(self, why: str) -> None:
        if self.recording is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.waited.append(why)


class Graph:
    """Recorded operations."""

    def __init__(self) -> None:
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.replayed = 0

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operation would give, but not done."""
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
    return [v for a, v in zip(given, values, strict=True) if a.alias_info is not None and a.alias_info.is_write]


class _Operations(TorchDispatchMode):
    """Every operation, those of backward passes too."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        places = {gpu.place(t) for t in tensors} - {None}
        if func is aten.copy_.default and len(places) == 2:
            if gpu.place(args[0]) == HERE:
                gpu.wait("a tensor is copied to the host")
            else:
                gpu.sent += 1
                if gpu.recording is not None:
                    raise RuntimeError("operation not permitted when stream is capturing: a copy from pageable memory")
            return func(*args, **kwargs)
        assert len(places) < 2, f"{func}: Expected all tensors to be on the same device"
        there = THERE in places
        if there:
            gpu.done += 1
            if func in WAITS:
                gpu.wait(f"{func}: {WAITS[func]}")
            if func in (aten.index.Tensor, aten.index_put_.default) and any(
                i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
            ):
                gpu.wait(f"{func}: how much a mask finds, is not known before")
        recorded = gpu.recording is not None and HERE not in places and tensors
        found = gpu.recording.record(func, args, kwargs) if recorded else func(*args, **kwargs)
        given = {t.untyped_storage()._cdata for t in tensors}
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                gpu.put(tensor, next(iter(places), None))
        return found


class _Calls(TorchFunctionMode):
    """Every call that names a device, or asks for one."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs = self.gpu, dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return gpu.place(args[0]) or THERE
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return gpu.place(args[0]) == THERE
        if func is Tensor.cpu:
            return self._moved(args[0], HERE, False)
        if func is Tensor.numpy and gpu.place(args[0]) == THERE:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is Tensor.to:
            named = [a for a in args[1:] if isinstance(a, str | torch.device)] or [kwargs.pop("device", None)]
            dtypes = [a for a in (*args[1:], kwargs.pop("dtype", None)) if isinstance(a, torch.dtype)]
            place, copied = gpu.place(args[0]) or THERE, kwargs.pop("copy", False)
            moved = self._moved(args[0], place if named[0] is None else torch.device(named[0]), copied)
            return func(moved, *dtypes) if dtypes else moved
        if "device" in kwargs:
            place = torch.device(kwargs["device"] or HERE)
            found = func(*args, **{**kwargs, "device": HERE})
            return gpu.put(found, THERE if place.type == "cuda" else HERE)
        if func in (torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.tensor, torch.randn):
            return gpu.put(func(*args, **kwargs), HERE)
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, place: torch.device, copied: bool) -> Tensor:
        to, at = (THERE if place.type == "cuda" else HERE), self.gpu.place(tensor) or THERE
        if to == at and not copied:
            return tensor
        if at == THERE and to == HERE:
            self.gpu.wait("a tensor is copied to the host")
        if at == HERE and to == THERE:
            self.gpu.sent += 1
            if self.gpu.recording is not None:
                raise RuntimeError("operation not permitted when stream is capturing: a copy from pageable memory")
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
    """A GPU while the block runs."""
    gpu, patch = PretendGpu(), pytest.MonkeyPatch()
    autocast, main = torch.autocast, _Stream()

    @contextmanager
    def stream(_: _Stream) -> Iterator[None]:
        yield

    @contextmanager
    def device(_: Any) -> Iterator[None]:
        yield

    @contextmanager
    def graph(into: Graph, **_: Any) -> Iterator[None]:
        assert gpu.recording is None
        assert not into.operations
        gpu.recording = into
        try:
            yield
        finally:
            gpu.recording = None
        gpu.graphs.append(into)

    try:
        patch.setattr(torch, "autocast", lambda kind, *given, **named: autocast("cpu", *given, **named))
        for name, stand_in in {
            "Stream": _Stream,
            "current_stream": lambda *_: main,
            "stream": stream,
            "device": device,
            "CUDAGraph": Graph,
            "graph": graph,
            "current_device": lambda: 0,
            "default_generators": (torch.default_generator,),
            "synchronize": lambda *_: gpu.wait("synchronize"),
            "mem_get_info": lambda *_: (2**34, 2**35),
            "is_available": lambda: True,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda *_: None,
            "max_memory_allocated": lambda *_: 2**20,
            "get_device_name": lambda *_: "a GPU that is not there",
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        with _Operations(gpu), _Calls(gpu):
            yield gpu
    finally:
        # These would be given to a GPU that is there.
        _side_streams.cache_clear()
        patch.undo()
