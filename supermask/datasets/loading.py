"""From a dataset's name to its images.

Decoded datasets on disk, so that images are decoded once and all processes map the same pages.

One file a dataset: a header of 4,096 bytes (JSON, padded with spaces), then training labels, test labels (int64,
little-endian), training images, test images (uint8). Everything here can be deleted at any time.
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

_HEADER = 4096
_STALE_SECONDS = 3600


def load_cached(facts: DatasetSpec, source: DatasetFiles) -> tuple[RawDataset, str]:
    """The source's arrays with their fingerprint: from the cache, where an intact copy is, else decoded and put there.

    Where the cache cannot be written (read-only, full) the arrays are returned from memory.
    """
    folder = cache_folder()
    path = None if folder is None else folder / "datasets" / f"{facts.name}-{_key(facts, source)}"
    if path is not None and (found := read_cache(path, facts)) is not None:
        return found
    fresh = source.decode()
    mark = fingerprint(fresh.train, fresh.test)
    if path is not None and write_cache(path, facts, fresh, mark) and (found := read_cache(path, facts)) is not None:
        return found
    return fresh, mark


def read_cache(path: Path, facts: DatasetSpec) -> tuple[RawDataset, str] | None:
    """The cached arrays, memory-mapped, or None unless the file has the right size and its contents the right hash.

    Mapped copy-on-write: pages are shared, the file cannot be changed through them, and torch takes them unwarned.
    """
    try:
        if path.stat().st_size != _HEADER + sum(_sizes(facts)):
            return None
        bytes_ = np.memmap(path, dtype=np.uint8, mode="c")
        header: Any = json.loads(bytes(bytes_[:_HEADER]))
        mark, note = str(header["fingerprint"]), str(header["note"])
        if header["seal"] != _header(mark, note):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ends = np.cumsum([_HEADER, *_sizes(facts)])
    parts = [np.asarray(bytes_[start:end]) for start, end in itertools.pairwise(ends)]
    train_labels, test_labels = (part.view("<i8").astype(np.int64, copy=False) for part in parts[:2])
    train_images, test_images = (part.reshape(-1, *facts.image_shape) for part in parts[2:])
    train, test = LabeledImages(train_images, train_labels), LabeledImages(test_images, test_labels)
    if fingerprint(train, test) != mark:
        return None
    return RawDataset(train, test, note), mark


def write_cache(path: Path, facts: DatasetSpec, data: RawDataset, mark: str) -> bool:
    """Puts the arrays there atomically (staged beside it, synced, read back, renamed); False where that fails."""
    header = json.dumps({"fingerprint": mark, "note": data.note, "seal": _header(mark, data.note)}).encode()
    assert len(header) <= _HEADER, "a note fits into the header"
    content: list[bytes | memoryview] = [
        header.ljust(_HEADER),
        *(labels.astype("<i8", copy=False).tobytes() for labels in (data.train.labels, data.test.labels)),
        *(np.ascontiguousarray(images).data for images in (data.train.images, data.test.images)),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path.parent)
        return write_atomic(path, content, durable=True, check=lambda staged: read_cache(staged, facts) is not None)
    except OSError:
        return False


def _key(facts: DatasetSpec, source: DatasetFiles) -> str:
    """Hash of all that decides the arrays: what the files hold (not where they are), and the decoder's release."""
    key = hashlib.sha256(f"supermask cache 1\n{facts!r}\n{source.decoder}\n".encode())
    for path in source.files:
        with translate_os_errors(path), path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()


def _sizes(facts: DatasetSpec) -> list[int]:
    pixels = int(np.prod(facts.image_shape))
    counts = (facts.training_images, facts.test_images)
    return [8 * count for count in counts] + [pixels * count for count in counts]


def _header(mark: str, note: str) -> str:
    return hashlib.sha256(f"{mark}\n{note}".encode()).hexdigest()


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for left in folder.glob(f"*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


LOADERS: dict[str, Callable[[DatasetSpec, DataFolder], DatasetFiles]] = {"mnist": mnist.find, "cifar10": cifar10.find}
"""The datasets that come from files."""


def load(name: str, data_dir: Path | None = None) -> ImageDataset:
    """The dataset of this name, looked for in `data_dir` (default: SUPERMASK_DATA, else ./data).

    Raises UserError for an unknown name and for missing or damaged files, MachineError where the disk fails.
    """
    if name not in DATASETS:
        raise UserError(f"dataset '{name}' is not known (allowed: {', '.join(DATASETS)}){did_you_mean(name, DATASETS)}")
    return load_with_spec(DATASETS[name], data_dir)


def load_with_spec(facts: DatasetSpec, data_dir: Path | None = None) -> ImageDataset:
    """The same for any counts: the files of `facts.name`, which must hold what `facts` says."""
    if facts.name in LOADERS:
        data, mark = load_cached(facts, LOADERS[facts.name](facts, data_folder(data_dir)))
    else:
        data = digits.decode(facts)
        mark = fingerprint(data.train, data.test)
    note = data.note
    if not note and facts.known_fingerprint not in (None, mark):
        note = f"not the usual {facts.name}: the images or labels differ from it"
    return ImageDataset(facts, data.train.images, data.train.labels, data.test.images, data.test.labels, mark, note)
