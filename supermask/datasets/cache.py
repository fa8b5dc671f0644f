"""Decoded datasets on disk, so that images are decoded once and all processes map the same pages.

One file a dataset: a header of 4,096 bytes (JSON, padded with spaces), then training labels, test labels (int64,
little-endian), training images, test images (uint8). Everything here can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from supermask.cache import cache_folder
from supermask.datasets.facts import DatasetFacts
from supermask.datasets.images import Decoded, Labelled, fingerprint
from supermask.datasets.source import Source, reading

_HEADER = 4096
_STALE_SECONDS = 3600


def decoded(facts: DatasetFacts, source: Source) -> tuple[Decoded, str]:
    """The source's arrays with their fingerprint: from the cache, where an intact copy is, else decoded and put there.

    Where the cache cannot be written (read-only, full) the arrays are returned from memory.
    """
    folder = cache_folder()
    path = None if folder is None else folder / "datasets" / f"{facts.name}-{_key(facts, source)}"
    if path is not None and (found := read(path, facts)) is not None:
        return found
    fresh = source.decode()
    mark = fingerprint(fresh.train, fresh.test)
    if path is not None and write(path, facts, fresh, mark) and (found := read(path, facts)) is not None:
        return found
    return fresh, mark


def read(path: Path, facts: DatasetFacts) -> tuple[Decoded, str] | None:
    """The cached arrays, memory-mapped, or None unless the file has the right size and its contents the right hash.

    Mapped copy-on-write: pages are shared, the file cannot be changed through them, and torch takes them unwarned.
    """
    try:
        if path.stat().st_size != _HEADER + sum(_sizes(facts)):
            return None
        bytes_ = np.memmap(path, dtype=np.uint8, mode="c")
        header: Any = json.loads(bytes(bytes_[:_HEADER]))
        mark, note = str(header["fingerprint"]), str(header["note"])
        if header["seal"] != _seal(mark, note):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    ends = np.cumsum([_HEADER, *_sizes(facts)])
    parts = [np.asarray(bytes_[start:end]) for start, end in itertools.pairwise(ends)]
    train_labels, test_labels = (part.view("<i8").astype(np.int64, copy=False) for part in parts[:2])
    train_images, test_images = (part.reshape(-1, *facts.image_shape) for part in parts[2:])
    train, test = Labelled(train_images, train_labels), Labelled(test_images, test_labels)
    if fingerprint(train, test) != mark:
        return None
    return Decoded(train, test, note), mark


def write(path: Path, facts: DatasetFacts, data: Decoded, mark: str) -> bool:
    """Puts the arrays there atomically (staged beside it, synced, read back, renamed); False where that fails."""
    header = json.dumps({"fingerprint": mark, "note": data.note, "seal": _seal(mark, data.note)}).encode()
    assert len(header) <= _HEADER, "a note fits into the header"
    staged = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with staged.open("wb") as file:
            file.write(header.ljust(_HEADER))
            for labels in (data.train.labels, data.test.labels):
                file.write(labels.astype("<i8", copy=False).tobytes())
            for images in (data.train.images, data.test.images):
                file.write(np.ascontiguousarray(images).data)
            file.flush()
            os.fsync(file.fileno())
        if read(staged, facts) is None:
            return False
        staged.replace(path)
        _sync_folder(path.parent)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
    return True


def _key(facts: DatasetFacts, source: Source) -> str:
    """Hash of all that decides the arrays: what the files hold (not where they are), and the decoder's release."""
    key = hashlib.sha256(f"supermask cache 1\n{facts!r}\n{source.decoder}\n".encode())
    for path in source.files:
        with reading(path), path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()


def _sizes(facts: DatasetFacts) -> list[int]:
    pixels = int(np.prod(facts.image_shape))
    counts = (facts.training_images, facts.test_images)
    return [8 * count for count in counts] + [pixels * count for count in counts]


def _seal(mark: str, note: str) -> str:
    return hashlib.sha256(f"{mark}\n{note}".encode()).hexdigest()


def _sweep(folder: Path) -> None:
    """Removes what killed processes left behind."""
    for left in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
