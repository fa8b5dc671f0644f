"""`mnist`: the four original IDX files, gzip-compressed or not.

The IDX format: big-endian magic number (type 8 = uint8, number of dimensions), dimensions, then the bytes.
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

_CHUNK = 1 << 20


def read_idx(path: Path, shape: tuple[int, ...], get_it: str) -> NDArray[np.uint8]:
    """The array of exactly this `shape` in an IDX file of uint8, gzip-compressed or not (told by its first bytes).

    Raises UserError for another magic number, other dimensions, missing or surplus bytes, and broken gzip.
    """
    header = 4 + 4 * len(shape)
    wanted = header + math.prod(shape)
    content, compressed = _read_exactly(path, wanted, get_it)
    magic = bytes((0, 0, 8, len(shape)))
    if content[:4] != magic:
        what = f"not the IDX file that its name says: it begins with {content[:4].hex()}, not {magic.hex()}"
        raise corrupt_file_error(path, what, get_it)
    if len(content) >= header:
        found = tuple(int(n) for n in np.frombuffer(content, ">u4", count=len(shape), offset=4))
        if found != shape:
            raise corrupt_file_error(
                path, f"its header says {_format_shape(found)}; {_format_shape(shape)} expected", get_it
            )
    if len(content) < wanted:
        raise corrupt_file_error(path, f"truncated: {wanted:,} bytes expected, {len(content):,} found", get_it)
    if len(content) > wanted:
        size = "more" if compressed else f"{path.stat().st_size:,}"
        raise corrupt_file_error(path, f"bytes after its end: {wanted:,} bytes expected, {size} found", get_it)
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_exactly(path: Path, wanted: int, get_it: str) -> tuple[bytearray, bool]:
    """At most one byte more than `wanted`, unpacked, so that no file can fill the memory; and: was it gzip?"""
    content = bytearray()
    with translate_os_errors(path), path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if compressed else file
        try:
            while chunk := stream.read(min(_CHUNK, wanted + 1 - len(content))):
                content += chunk
        except EOFError as error:
            what = f"truncated gzip: {wanted:,} bytes expected when unpacked, it ends after {len(content):,}"
            raise corrupt_file_error(path, what, get_it) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise corrupt_file_error(path, f"corrupt gzip ({error})", get_it) from error
    return content, compressed


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{length:,}" for length in shape)


GET_IT = (
    "the four original IDX files of MNIST, from any mirror of them: torchvision's MNIST download, "
    "or https://ossci-datasets.s3.amazonaws.com/mnist/"
)
FILE_STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def find(facts: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """The four files, from the first place that has them all. Raises UserError where none has."""
    places = [folder.path / inner for inner in ("mnist", "mnist/MNIST/raw", "", "MNIST/raw")]
    partly: list[str] = []
    for place in places:
        found = {stem: path for stem in FILE_STEMS if (path := _find_file(place, stem)) is not None}
        if len(found) == len(FILE_STEMS):
            files = tuple(found[stem] for stem in FILE_STEMS)
            return DatasetFiles(files, partial(decode, facts, files))
        if found:
            partly.append(f"{place} lacks {', '.join(f'{stem}-ubyte' for stem in FILE_STEMS if stem not in found)}")
    needed = ", ".join(f"{stem}-ubyte" for stem in FILE_STEMS) + " (each plain or .gz; '.idx' may stand for '-idx')"
    raise not_found_error(facts.name, "; ".join([needed, *partly]), places, folder, GET_IT)


def decode(facts: DatasetSpec, files: tuple[Path, ...]) -> RawDataset:
    """The arrays of the four files, in the order of `STEMS`. Raises UserError for any that is damaged."""
    train_images, train_labels, test_images, test_labels = files
    return RawDataset(
        _labelled(facts, train_images, train_labels, facts.training_images),
        _labelled(facts, test_images, test_labels, facts.test_images),
    )


def _find_file(place: Path, stem: str) -> Path | None:
    names = (stem, stem.replace("-idx", ".idx"))
    paths = (place / f"{name}-ubyte{ending}" for ending in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _labelled(facts: DatasetSpec, images_file: Path, labels_file: Path, count: int) -> LabeledImages:
    channels, height, width = facts.image_shape
    images = read_idx(images_file, (count, height, width), GET_IT)
    labels = read_idx(labels_file, (count,), GET_IT).astype(np.int64)
    check_labels(labels_file, labels, facts.classes, GET_IT)
    return LabeledImages(images.reshape(count, channels, height, width), labels)
