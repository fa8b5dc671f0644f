"""`mnist`: the four original IDX files, gzip-compressed or not.

IDX format: big-endian magic number (type 8 = uint8, number of dimensions), dimensions, then the bytes.
"""

from __future__ import annotations

import gzip
import math
import zlib
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from supermask.datasets.images import (
    DataFolder,
    DatasetFiles,
    LabeledImages,
    RawDataset,
    check_labels,
    corrupt_file_error,
    not_found_error,
    translate_os_errors,
)
from supermask.datasets.specs import DatasetSpec

DOWNLOAD_HINT = (
    "the four original IDX files of MNIST, from any mirror of them: torchvision's MNIST download, "
    "or https://ossci-datasets.s3.amazonaws.com/mnist/"
)
FILE_STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
_CHUNK = 1 << 20


def find(spec: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """Return the four files from the first place that has them all. Raises UserError if none has."""
    places = [folder.path / inner for inner in ("mnist", "mnist/MNIST/raw", "", "MNIST/raw")]
    incomplete: list[str] = []
    for place in places:
        paths = {stem: path for stem in FILE_STEMS if (path := _find_file(place, stem)) is not None}
        if len(paths) == len(FILE_STEMS):
            files = tuple(paths[stem] for stem in FILE_STEMS)
            return DatasetFiles(files, partial(decode, spec, files))
        if paths:
            missing = ", ".join(f"{stem}-ubyte" for stem in FILE_STEMS if stem not in paths)
            incomplete.append(f"{place} lacks {missing}")
    needed = ", ".join(f"{stem}-ubyte" for stem in FILE_STEMS) + " (each plain or .gz; '.idx' may stand for '-idx')"
    raise not_found_error(spec.name, "; ".join([needed, *incomplete]), places, folder, DOWNLOAD_HINT)


def decode(spec: DatasetSpec, files: tuple[Path, ...]) -> RawDataset:
    """Return the arrays of the four files, in the order of `FILE_STEMS`. Raises UserError for a damaged file."""
    train_images, train_labels, test_images, test_labels = files
    return RawDataset(
        _read_labeled_images(spec, train_images, train_labels, spec.training_images),
        _read_labeled_images(spec, test_images, test_labels, spec.test_images),
    )


def read_idx(path: Path, shape: tuple[int, ...], download_hint: str) -> NDArray[np.uint8]:
    """Return the uint8 array of exactly this `shape`; gzip is recognized by the first two bytes, not by the name.

    Raises UserError for another magic number, other dimensions, missing or surplus bytes, and broken gzip.
    """
    header_size = 4 + 4 * len(shape)
    expected_size = header_size + math.prod(shape)
    content, compressed = _read_at_most(path, expected_size + 1, download_hint)
    magic = bytes((0, 0, 8, len(shape)))
    if content[:4] != magic:
        reason = f"not the IDX file that its name says: it begins with {content[:4].hex()}, not {magic.hex()}"
        raise corrupt_file_error(path, reason, download_hint)
    if len(content) >= header_size:
        stored_shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=len(shape), offset=4))
        if stored_shape != shape:
            reason = f"its header says {_format_shape(stored_shape)}; {_format_shape(shape)} expected"
            raise corrupt_file_error(path, reason, download_hint)
    if len(content) < expected_size:
        reason = f"truncated: {expected_size:,} bytes expected, {len(content):,} found"
        raise corrupt_file_error(path, reason, download_hint)
    if len(content) > expected_size:
        size = "more" if compressed else f"{path.stat().st_size:,}"
        reason = f"bytes after its end: {expected_size:,} bytes expected, {size} found"
        raise corrupt_file_error(path, reason, download_hint)
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _read_at_most(path: Path, limit: int, download_hint: str) -> tuple[bytearray, bool]:
    """Return at most `limit` uncompressed bytes, and whether the file is gzip.

    The limit bounds the memory: a small gzip file may unpack to any size.
    """
    content = bytearray()
    with translate_os_errors(path), path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        try:
            while chunk := stream.read(min(_CHUNK, limit - len(content))):
                content += chunk
        except EOFError as error:
            expected = limit - 1
            reason = f"truncated gzip: {expected:,} bytes expected when unpacked, it ends after {len(content):,}"
            raise corrupt_file_error(path, reason, download_hint) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_file_error(path, f"corrupt gzip ({error})", download_hint) from error
    return content, compressed


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)


def _find_file(place: Path, stem: str) -> Path | None:
    names = (stem, stem.replace("-idx", ".idx"))
    paths = (place / f"{name}-ubyte{ending}" for ending in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read_labeled_images(spec: DatasetSpec, images_file: Path, labels_file: Path, count: int) -> LabeledImages:
    channels, height, width = spec.image_shape
    images = read_idx(images_file, (count, height, width), DOWNLOAD_HINT)
    labels = read_idx(labels_file, (count,), DOWNLOAD_HINT).astype(np.int64)
    check_labels(labels_file, labels, spec.classes, DOWNLOAD_HINT)
    return LabeledImages(images.reshape(count, channels, height, width), labels)
