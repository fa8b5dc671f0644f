"""A disk that fails at a chosen operation and enumerates the states that a power loss could leave.

`FaultyDisk` does every operation for real, under a folder `top`, and keeps a model beside it: a graph of files and
folders, and a list of effects (a name appeared, a name moved, bytes were appended), each *pending* until an fsync of
the file or of the folder made it durable. After a power loss any subset of the pending effects may have happened.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from supermask.store.files.disk import Disk

Fault = Literal["crash", "torn", "EIO", "ENOSPC", "EROFS", "EACCES", "EDQUOT", "short", "lying"]
"""crash: before the operation. torn: half a write, or the whole of another operation, then a crash. short: half a
write, honestly said so. lying: half a write that claims to be whole. E...: the operation is refused (a write that
meets ENOSPC leaves its first half)."""

State = dict[str, bytes | None]
"""Path under `top` -> a file's bytes, or None for a folder."""

EXHAUSTIVE_UP_TO = 4
"""Pending effects of which every subset is tried; of more: none, all, each alone, all but each."""


class Crash(BaseException):
    """End of the simulated process: no handler of ordinary errors sees it; the disk does nothing afterwards."""


class QuickDisk(Disk):
    """A real disk without fsync, for tests in which nothing fails."""

    def fsync(self, descriptor: int) -> None:
        pass

    def fsync_dir(self, path: Path) -> None:
        pass


@dataclass(eq=False)
class Node:
    """File or folder of the model. `names` and `data`: state at the beginning; `live`: state now."""

    names: dict[str, Node] | None = None
    data: bytes = b""
    live: dict[str, Node] = field(default_factory=dict)


@dataclass
class Renamed:
    """Names that change together: (folder, name, node it now denotes)."""

    changes: list[tuple[Node, str, Node | None]]
    durable: bool = False


@dataclass
class Appended:
    """Bytes appended to a file."""

    file: Node
    data: bytes
    durable: bool = False


class FaultyDisk(Disk):
    """Disk that fails at its `fail_at`-th operation with `fault`; without them it only records."""

    def __init__(self, top: Path, fault: Fault | None = None, fail_at: int | None = None) -> None:
        self.top = top
        self.fault = fault
        self.fail_at = fail_at
        self.operations: list[str] = []
        self.hit = False
        self.dead = False
        self._effects: list[Renamed | Appended] = []
        self._open: dict[int, Node] = {}
        self._stamps = itertools.count()
        self._root = _model(snapshot(top))

    # ------------------------------------------------------------------------------------ the operations

    def make_dir(self, path: Path) -> None:
        with self._operation("make_dir", path):
            super().make_dir(path)
            self._renamed((path, Node(names={})))

    def create(self, path: Path) -> int:
        with self._operation("create", path):
            descriptor = super().create(path)
            self._open[descriptor] = Node()
            self._renamed((path, self._open[descriptor]))
            return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        failing = len(self.operations) == self.fail_at
        with self._operation("write", errors=False):
            half = failing and self.fault is not None
            part = data[: max(1, len(data) // 2)] if half else data
            written = super().write(descriptor, part)
            self._effects.append(Appended(self._open[descriptor], bytes(part[:written])))
            if failing and self.fault not in ("torn", "short", "lying"):
                raise self._refusal()
            return len(data) if failing and self.fault == "lying" else written

    def fsync(self, descriptor: int) -> None:
        with self._operation("fsync"):
            for effect in self._effects:
                if isinstance(effect, Appended) and effect.file is self._open[descriptor]:
                    effect.durable = True

    def close(self, descriptor: int) -> None:
        if not self.dead:
            super().close(descriptor)
            del self._open[descriptor]
        with self._operation("close"):
            pass

    def fsync_dir(self, path: Path) -> None:
        with self._operation("fsync_dir", path):
            folder = self._node(path)
            for effect in self._effects:
                if isinstance(effect, Renamed) and any(changed is folder for changed, _, _ in effect.changes):
                    effect.durable = True

    def rename(self, source: Path, target: Path) -> None:
        with self._operation("rename", target):
            super().rename(source, target)
            self._renamed((source, None), (target, self._node(source)))

    def remove_file(self, path: Path) -> None:
        with self._operation("remove_file", path):
            super().remove_file(path)
            self._renamed((path, None))

    def remove_dir(self, path: Path) -> None:
        with self._operation("remove_dir", path):
            super().remove_dir(path)
            self._renamed((path, None))

    def size(self, path: Path) -> int:
        with self._operation("size", path):
            return super().size(path)

    def process_tag(self) -> str:
        """Return the tag of an ended process: no pid is that high."""
        _, started, machine, _ = super().process_tag().split(".")
        return f"{2**22 + 1}.{started}.{machine}.{next(self._stamps):08x}"

    def end(self) -> None:
        """Close open descriptors, as the kernel does when a process ends."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    @contextmanager
    def _operation(self, name: str, path: Path | None = None, errors: bool = True) -> Iterator[None]:
        if self.dead:
            raise Crash
        failing = len(self.operations) == self.fail_at
        self.operations.append(f"{name} {path.relative_to(self.top)}" if path else name)
        if failing and self.fault == "crash":
            self.dead = self.hit = True
            raise Crash
        if failing and errors and self.fault not in ("torn", "short", "lying", None):
            raise self._refusal()
        try:
            yield
        finally:
            self.hit = self.hit or (failing and self.fault in ("torn", "short", "lying"))
            if failing and self.fault == "torn":
                self.dead = True
                raise Crash

    def _refusal(self) -> OSError:
        self.hit = True
        number = getattr(errno, str(self.fault))
        return OSError(number, os.strerror(number))

    # ----------------------------------------------------------------------------------------- the model

    def _node(self, path: Path) -> Node:
        node = self._root
        for name in path.relative_to(self.top).parts:
            node = node.live[name]
        return node

    def _renamed(self, *changes: tuple[Path, Node | None]) -> None:
        effect = Renamed([(self._node(path.parent), path.name, node) for path, node in changes])
        self._effects.append(effect)
        for folder, name, node in effect.changes:
            folder.live.pop(name, None)
            if node is not None:
                folder.live[name] = node

    def after_power_loss(self) -> Iterator[State]:
        """Yield every state of the disk (see EXHAUSTIVE_UP_TO) that a power loss now could leave."""
        pending = [i for i, effect in enumerate(self._effects) if not effect.durable]
        if len(pending) <= EXHAUSTIVE_UP_TO:
            sizes = range(len(pending) + 1)
            kept = [set(some) for size in sizes for some in itertools.combinations(pending, size)]
        else:
            kept = [set(), set(pending), *({i} for i in pending), *(set(pending) - {i} for i in pending)]
        seen: set[frozenset[tuple[str, bytes | None]]] = set()
        for some in kept:
            for lost in (lambda data: b"", lambda data: bytes(len(data)), lambda data: data[: len(data) // 2]):
                state = self._replay(some, [lost(e.data) if isinstance(e, Appended) else b"" for e in self._effects])
                if (key := frozenset(state.items())) not in seen:
                    seen.add(key)
                    yield state

    def _replay(self, kept: set[int], remains: list[bytes]) -> State:
        names: dict[Node, dict[str, Node]] = {}
        data: dict[Node, bytes] = {}
        for i, effect in enumerate(self._effects):
            happened = effect.durable or i in kept
            if isinstance(effect, Appended):
                data[effect.file] = data.get(effect.file, b"") + (effect.data if happened else remains[i])
            elif happened:
                for folder, name, node in effect.changes:
                    here = names.setdefault(folder, dict(folder.names or {}))
                    here.pop(name, None)
                    if node is not None:
                        here[name] = node

        def walk(node: Node, path: str) -> Iterator[tuple[str, bytes | None]]:
            if node.names is None:
                yield path, data.get(node, node.data)
                return
            if path:
                yield path, None
            for name, child in names.get(node, node.names).items():
                yield from walk(child, f"{path}/{name}" if path else name)

        return dict(walk(self._root, ""))


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Yield an empty folder, in memory if possible: a busy disk makes thousands of states ten times slower."""
    memory = Path("/dev/shm")  # noqa: S108 (a fresh private folder is made in it)
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _model(state: State) -> Node:
    root = Node(names={})
    for path, data in sorted(state.items()):
        folder = root
        *parents, name = path.split("/")
        for parent in parents:
            folder = folder.live[parent]
        node = Node(names={}) if data is None else Node(data=data)
        assert folder.names is not None
        folder.names[name] = folder.live[name] = node
    return root


def snapshot(top: Path) -> State:
    """Return all files and folders under `top`."""
    paths = (path for path in top.rglob("*"))
    return {str(path.relative_to(top)): None if path.is_dir() else path.read_bytes() for path in paths}


def materialise(top: Path, state: State) -> None:
    """Replace the content of `top` by this state."""
    for path in top.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, data in sorted(state.items()):
        if data is None:
            (top / name).mkdir()
        else:
            (top / name).write_bytes(data)
