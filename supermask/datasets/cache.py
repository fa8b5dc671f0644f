"""Cache of decoded arrays on disk, so that all processes of a machine map the same pages.

Format of a cache file: a header of 4,096 bytes (JSON, padded with spaces), then training labels, test labels (int64,
little-endian), training images, test images (uint8). Every cache file can be deleted at any time.

Large datasets are decoded straight into a staged cache file, which is mapped: the memory that decoding needs does not
grow with the dataset, as the system writes the pages out. The file gets its name only when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from supermask.core.files import PARTIAL_SUFFIX, write_atomic
from supermask.datasets.images import ArrayShapes, LabeledImages, RawDataset, allocate_in_memory, fingerprint
from supermask.datasets.specs import MAX_CHANNELS, MAX_IMAGES, MAX_SIDE, DatasetSpec

_HEADER_SIZE = 4096
"""Bytes: one page, so that the arrays after it are aligned."""
_STALE_SECONDS = 3600


def _file_size(shapes: ArrayShapes) -> int:
    return _HEADER_SIZE + sum(shapes.sizes)


def _views(shapes: ArrayShapes, mapped: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[LabeledImages, LabeledImages]:
    """Return the arrays (train, test) in the bytes of a cache file."""
    return shapes.views(mapped[_HEADER_SIZE:])


class StagedCache:
    """A cache file that is being decoded into. A context manager: leaving it without `commit` removes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._staged = path.with_name(f".{os.getpid()}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
        self._mapped: np.memmap[Any, np.dtype[np.uint8]] | None = None
        self._arrays: tuple[LabeledImages, LabeledImages] | None = None
        self._shapes: ArrayShapes | None = None

    def __enter__(self) -> StagedCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._staged.unlink(missing_ok=True)

    def allocate(self, shapes: ArrayShapes) -> tuple[LabeledImages, LabeledImages]:
        """Return arrays that are mapped from the staged file; in memory if the disk refuses it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self._path.parent)
            _reserve(self._staged, _file_size(shapes))
            self._mapped = np.memmap(self._staged, dtype=np.uint8, mode="r+")
        except OSError:
            return allocate_in_memory(shapes)
        self._shapes, self._arrays = shapes, _views(shapes, self._mapped)
        return self._arrays

    def commit(self, data: RawDataset, data_fingerprint: str) -> bool:
        """Give the file its name, if `data` was decoded into it. Return False if it was not, or if the disk refuses."""
        if self._mapped is None or self._arrays is None or data.train is not self._arrays[0]:
            return False
        assert self._shapes is not None
        header = _header(self._shapes, data_fingerprint, data.note)
        self._mapped[:_HEADER_SIZE] = np.frombuffer(header, np.uint8)
        try:
            self._mapped.flush()
            with self._staged.open("rb") as file:
                os.fsync(file.fileno())
            self._staged.replace(self._path)
        except OSError:
            return False
        return True


def read_cache(path: Path, spec: DatasetSpec | None = None) -> tuple[RawDataset, str] | None:
    """Return the memory-mapped arrays and their fingerprint; None unless size and fingerprint of the file are right.

    `spec`: the shapes that the arrays must have; None: those that the file's header says.
    The file is mapped copy-on-write: processes share the pages, writes to the arrays do not reach the file, and torch
    accepts the arrays without its warning about read-only memory.
    """
    try:
        size = path.stat().st_size
        if size < _HEADER_SIZE or (spec is not None and size != _file_size(ArrayShapes.from_spec(spec))):
            return None
        mapped = np.memmap(path, dtype=np.uint8, mode="c")
        header: Any = json.loads(bytes(mapped[:_HEADER_SIZE]))
        shapes = _shapes_from_data(header["arrays"])
        stored_fingerprint, note = str(header["fingerprint"]), str(header["note"])
        if size != _file_size(shapes) or header["seal"] != _header_checksum(shapes, stored_fingerprint, note):
            return None
        if spec is not None and shapes != ArrayShapes.from_spec(spec):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    train, test = _views(shapes, mapped)
    if fingerprint(train, test) != stored_fingerprint:
        return None
    return RawDataset(train, test, note), stored_fingerprint


def write_cache(path: Path, data: RawDataset, data_fingerprint: str) -> bool:
    """Write the cache file atomically (staged beside it, synced, read back, renamed). Return False if that fails."""
    shape = data.train.images.shape[1:]
    shapes = ArrayShapes((shape[0], shape[1], shape[2]), len(data.train.labels), len(data.test.labels))
    content: list[bytes | memoryview] = [
        _header(shapes, data_fingerprint, data.note),
        *(labels.astype("<i8", copy=False).tobytes() for labels in (data.train.labels, data.test.labels)),
        *(np.ascontiguousarray(images).data for images in (data.train.images, data.test.images)),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        return write_atomic(path, content, durable=True, check=lambda staged: read_cache(staged) is not None)
    except OSError:
        return False


def _header(shapes: ArrayShapes, data_fingerprint: str, note: str) -> bytes:
    checksum = _header_checksum(shapes, data_fingerprint, note)
    facts = {"arrays": _shapes_to_data(shapes), "fingerprint": data_fingerprint, "note": note, "seal": checksum}
    header = json.dumps(facts).encode()
    assert len(header) <= _HEADER_SIZE, "a note fits into the header"
    return header.ljust(_HEADER_SIZE)


def _shapes_to_data(shapes: ArrayShapes) -> list[int]:
    return [*shapes.image_shape, shapes.training_images, shapes.test_images]


def _shapes_from_data(data: Any) -> ArrayShapes:
    """Return the shapes in a header. Raises ValueError for numbers that no dataset has."""
    limits = (MAX_CHANNELS, MAX_SIDE, MAX_SIDE, MAX_IMAGES, MAX_IMAGES)
    numbers = [int(number) for number in data]
    if len(numbers) != len(limits) or not all(0 < n <= limit for n, limit in zip(numbers, limits, strict=True)):
        raise ValueError("no shapes of a dataset")
    return ArrayShapes((numbers[0], numbers[1], numbers[2]), numbers[3], numbers[4])


def _header_checksum(shapes: ArrayShapes, data_fingerprint: str, note: str) -> str:
    return hashlib.sha256(f"{_shapes_to_data(shapes)}\n{data_fingerprint}\n{note}".encode()).hexdigest()


def _reserve(path: Path, size: int) -> None:
    """Create a file of `size` bytes whose blocks are allocated: writing to a mapped hole of a full disk is a SIGBUS."""
    with path.open("xb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            file.write(zeros[: size - start])


def _remove_stale(folder: Path) -> None:
    """Remove the staged files of killed processes; younger ones may still be being written."""
    for staged in folder.glob(f"*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - staged.stat().st_mtime > _STALE_SECONDS:
                staged.unlink()
