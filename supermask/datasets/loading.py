"""Dataset loading by name, with a cache of decoded arrays on disk, so that all processes map the same pages.

Format of a cache file: a header of 4,096 bytes (JSON, padded with spaces), then training labels, test labels (int64,
little-endian), training images, test images (uint8). Every cache file can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from supermask.core.environment import cache_folder
from supermask.core.errors import UserError, did_you_mean
from supermask.core.files import PARTIAL_SUFFIX, write_atomic
from supermask.datasets import cifar10, digits, mnist
from supermask.datasets.images import (
    DataFolder,
    DatasetFiles,
    ImageDataset,
    LabeledImages,
    RawDataset,
    data_folder,
    fingerprint,
    translate_os_errors,
)
from supermask.datasets.specs import DATASETS, DatasetSpec

LOADERS: dict[str, Callable[[DatasetSpec, DataFolder], DatasetFiles]] = {"mnist": mnist.find, "cifar10": cifar10.find}
"""Functions that locate the files of a dataset, for the datasets that come from files."""

_HEADER_SIZE = 4096
"""Bytes: one page, so that the arrays after it are aligned."""
_STALE_SECONDS = 3600


def load(name: str, data_dir: Path | None = None) -> ImageDataset:
    """Return the dataset of this name from `data_dir` (default: the folder in SUPERMASK_DATA, else ./data).

    Raises UserError for an unknown name and for missing or damaged files, SystemFailure if the disk fails.
    """
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is not known (allowed: {', '.join(DATASETS)}){did_you_mean(name, DATASETS)}")
    return load_with_spec(DATASETS[name], data_dir)


def load_with_spec(spec: DatasetSpec, data_dir: Path | None = None) -> ImageDataset:
    """Return the dataset `spec.name` from files that must match `spec`. Raises as `load` does."""
    if spec.name in LOADERS:
        files = LOADERS[spec.name](spec, data_folder(data_dir))
        data, data_fingerprint = load_cached(spec, files)
        is_published = files.is_original
    else:
        data = digits.decode(spec)
        data_fingerprint = fingerprint(data.train, data.test)
        is_published = True
    if spec.published_fingerprint is not None:
        is_published = data_fingerprint == spec.published_fingerprint
    note = data.note
    if not note and spec.published_fingerprint not in (None, data_fingerprint):
        note = f"not the usual {spec.name}: the images or labels differ from it"
    train, test = data.train, data.test
    return ImageDataset(
        spec, train.images, train.labels, test.images, test.labels, data_fingerprint, note, is_published
    )


def run_fingerprint(name: str, data_dir: Path | None = None) -> str | None:
    """Return the `ImageDataset.run_fingerprint` of the dataset that `load` would return: None for the published one.

    The files are decoded only if their paths, sizes and times have changed since the last call. Training does not rely
    on that: it compares with the decoded arrays. Raises as `load` does.
    """
    spec, folder = DATASETS[name], cache_folder()
    if name not in LOADERS or folder is None:
        return load(name, data_dir).run_fingerprint
    path = folder / "datasets" / f"{name}-{_stat_key(spec, LOADERS[name](spec, data_folder(data_dir)))}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads(path.read_bytes())["run_fingerprint"]
        if stored is None or isinstance(stored, str):
            return stored
    images = load(name, data_dir)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"run_fingerprint": images.run_fingerprint}).encode())
    return images.run_fingerprint


def load_cached(spec: DatasetSpec, files: DatasetFiles) -> tuple[RawDataset, str]:
    """Return the arrays and their fingerprint, from the cache if an intact copy is there, else decoded and cached.

    If the cache cannot be written (read-only, full disk), the arrays are returned from memory.
    """
    folder = cache_folder()
    path = None if folder is None else folder / "datasets" / f"{spec.name}-{_cache_key(spec, files)}"
    if path is not None and (cached := read_cache(path, spec)) is not None:
        return cached
    decoded = files.decode()
    data_fingerprint = fingerprint(decoded.train, decoded.test)
    # Read back from the file just written: then all processes, this one included, share its pages.
    if path is not None and write_cache(path, spec, decoded, data_fingerprint):
        cached = read_cache(path, spec)
        if cached is not None:
            return cached
    return decoded, data_fingerprint


def read_cache(path: Path, spec: DatasetSpec) -> tuple[RawDataset, str] | None:
    """Return the memory-mapped arrays and their fingerprint; None unless size and fingerprint of the file are right.

    The file is mapped copy-on-write: processes share the pages, writes to the arrays do not reach the file, and torch
    accepts the arrays without its warning about read-only memory.
    """
    try:
        if path.stat().st_size != _HEADER_SIZE + sum(_array_sizes(spec)):
            return None
        mapped = np.memmap(path, dtype=np.uint8, mode="c")
        header: Any = json.loads(bytes(mapped[:_HEADER_SIZE]))
        stored_fingerprint, note = str(header["fingerprint"]), str(header["note"])
        if header["seal"] != _header_checksum(stored_fingerprint, note):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    bounds = np.cumsum([_HEADER_SIZE, *_array_sizes(spec)])
    parts = [np.asarray(mapped[start:end]) for start, end in itertools.pairwise(bounds)]
    train_labels, test_labels = (part.view("<i8").astype(np.int64, copy=False) for part in parts[:2])
    train_images, test_images = (part.reshape(-1, *spec.image_shape) for part in parts[2:])
    train, test = LabeledImages(train_images, train_labels), LabeledImages(test_images, test_labels)
    if fingerprint(train, test) != stored_fingerprint:
        return None
    return RawDataset(train, test, note), stored_fingerprint


def write_cache(path: Path, spec: DatasetSpec, data: RawDataset, data_fingerprint: str) -> bool:
    """Write the cache file atomically (staged beside it, synced, read back, renamed). Return False if that fails."""
    checksum = _header_checksum(data_fingerprint, data.note)
    header = json.dumps({"fingerprint": data_fingerprint, "note": data.note, "seal": checksum}).encode()
    assert len(header) <= _HEADER_SIZE, "a note fits into the header"
    content: list[bytes | memoryview] = [
        header.ljust(_HEADER_SIZE),
        *(labels.astype("<i8", copy=False).tobytes() for labels in (data.train.labels, data.test.labels)),
        *(np.ascontiguousarray(images).data for images in (data.train.images, data.test.images)),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        return write_atomic(path, content, durable=True, check=lambda staged: read_cache(staged, spec) is not None)
    except OSError:
        return False


def _cache_key(spec: DatasetSpec, files: DatasetFiles) -> str:
    """Return the hash of all inputs of decoding: contents of the files (not their paths) and the decoder's release."""
    expected = (spec.name, spec.image_shape, spec.classes, spec.training_images, spec.test_images)
    key = hashlib.sha256(f"supermask cache 2\n{expected}\n{files.decoder}\n".encode())
    for path in files.files:
        with translate_os_errors(path), path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()


def _stat_key(spec: DatasetSpec, files: DatasetFiles) -> str:
    """Return the hash of paths, sizes and times of the files, of the spec and of the decoder's release."""
    key = hashlib.sha256(f"supermask files 1\n{spec!r}\n{files.decoder}\n".encode())
    for path in files.files:
        with translate_os_errors(path):
            stat = path.stat()
        # The time of the last status change cannot be set back, unlike that of the last modification.
        facts = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        key.update(f"{path.absolute()!s} {facts}\n".encode(errors="surrogateescape"))
    return key.hexdigest()


def _array_sizes(spec: DatasetSpec) -> list[int]:
    """Return the bytes of training labels, test labels, training images, test images."""
    pixels = int(np.prod(spec.image_shape))
    counts = (spec.training_images, spec.test_images)
    return [8 * count for count in counts] + [pixels * count for count in counts]


def _header_checksum(data_fingerprint: str, note: str) -> str:
    return hashlib.sha256(f"{data_fingerprint}\n{note}".encode()).hexdigest()


def _remove_stale(folder: Path) -> None:
    """Remove the staged files of killed processes; younger ones may still be being written."""
    for staged in folder.glob(f"*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - staged.stat().st_mtime > _STALE_SECONDS:
                staged.unlink()
