"""Labeled images in Parquet files: the columns `img {bytes, path}` and `label`, as Hugging Face stores them."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from supermask.datasets.images import LabeledImages, Pixels, check_labels, corrupt_file_error
from supermask.datasets.specs import DatasetSpec

_FORMATS = ("PNG", "JPEG")
_INTEGERS = {f"{sign}{kind}" for sign in ("", "U") for kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")}
_FETCH_BYTES = 1 << 25
"""Bytes of encoded images held at once. Rows may share one value in the file, so its size bounds nothing."""
_MEMORY_LIMIT = "1GB"
"""For DuckDB, which decompresses whole pages of a file; a row group of CIFAR-10 has 5 MB."""


def read_images(
    files: tuple[Path, ...], spec: DatasetSpec, count: int, download_hint: str
) -> tuple[LabeledImages, bool]:
    """Return the images and labels of all `files`, in order, and whether any image is a JPEG (lossy).

    Number and encoded sizes of the images are checked before any of them is read.
    Raises UserError for other columns, an image that is neither PNG nor JPEG or not of the dataset's size and colors,
    a label out of range, or another number of images than `count`.
    """
    sizes = [_check_file(path, spec, download_hint) for path in files]
    if (found := sum(rows for rows, _ in sizes)) != count:
        names = ", ".join(path.name for path in files)
        reason = f"{count:,} images expected in {names}, {found:,} found"
        raise corrupt_file_error(files[0].parent, reason, download_hint)
    images = np.empty((count, *spec.image_shape), np.uint8)
    labels = np.empty(count, np.int64)
    is_lossy, first = False, 0
    for path, (rows, max_bytes) in zip(files, sizes, strict=True):
        for row, (content, label) in enumerate(_read_rows(path, rows, max_bytes, download_hint)):
            images[first + row], is_jpeg = _decode_image(path, row, content, spec.image_shape, download_hint)
            if label is None:
                raise corrupt_file_error(path, f"row {row} has no label", download_hint)
            labels[first + row] = label
            is_lossy |= is_jpeg
        check_labels(path, labels[first : first + rows], spec.classes, download_hint)
        first += rows
    return LabeledImages(images, labels), is_lossy


def max_encoded_bytes(spec: DatasetSpec) -> int:
    """Return the bytes that one encoded image may have: far more than a PNG of that size with its metadata."""
    return 16 * math.prod(spec.image_shape) + (1 << 16)


def _check_file(path: Path, spec: DatasetSpec, download_hint: str) -> tuple[int, int]:
    """Return the number of rows and the bytes of the largest encoded image. Raises UserError for too large ones."""
    limit = max_encoded_bytes(spec)
    with _open_parquet(path, download_hint) as query:
        columns = query("DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)")
        _check_columns(path, {str(row[0]): str(row[1]) for row in columns}, download_hint)
        rows, max_bytes = query(
            "SELECT count(*), coalesce(max(octet_length(img.bytes)), 0) FROM read_parquet(?, hive_partitioning = false)"
        )[0]
        if max_bytes > limit:
            row = query(_FIRST_LARGER, limit)[0][0]
            reason = f"the image in row {row} has more than {limit:,} bytes: {max_bytes:,} is the largest of the file"
            raise corrupt_file_error(path, reason, download_hint)
    return rows, max_bytes


def _read_rows(path: Path, rows: int, max_bytes: int, download_hint: str) -> Iterator[tuple[bytes | None, int | None]]:
    """Yield (encoded image, label) in the order of the file, in slices of at most `_FETCH_BYTES`."""
    # DuckDB's result of a query is held as a whole, however few rows are fetched from it: hence one query per slice.
    size = max(1, _FETCH_BYTES // max(1, max_bytes))
    with _open_parquet(path, download_hint) as query:
        for start in range(0, rows, size):
            yield from query(_SLICE, start, start + size - 1)


_FIRST_LARGER = """
SELECT min(file_row_number) FROM read_parquet(?, hive_partitioning = false, file_row_number = true)
WHERE octet_length(img.bytes) > ?
"""
_SLICE = """
SELECT img.bytes, label::BIGINT FROM read_parquet(?, hive_partitioning = false, file_row_number = true)
WHERE file_row_number BETWEEN ? AND ? ORDER BY file_row_number
"""


@contextmanager
def _open_parquet(path: Path, download_hint: str) -> Iterator[Callable[..., list[tuple[Any, ...]]]]:
    """Provide a function that runs a query on the file, the path being its first parameter.

    Errors of DuckDB become UserError.
    """
    import duckdb

    # DuckDB reads a path as a glob pattern; a character in brackets stands for itself.
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "threads": 1,
        "memory_limit": _MEMORY_LIMIT,
        "temp_directory": "",  # Otherwise DuckDB spills to .tmp in the current folder.
    }
    try:
        with duckdb.connect(":memory:", config=settings) as connection:
            yield lambda sql, *parameters: connection.execute(sql, [literal, *parameters]).fetchall()
    except duckdb.Error as error:
        first_line = str(error).strip().splitlines()[0]
        raise corrupt_file_error(path, f"not a readable Parquet file ({first_line})", download_hint) from error


def _check_columns(path: Path, columns: dict[str, str], download_hint: str) -> None:
    image_type = columns.get("img", "").lower().replace('"', "")
    if not (image_type.startswith("struct(") and "bytes blob" in image_type and columns.get("label") in _INTEGERS):
        names = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        reason = f"its columns are {names}; 'img' (a struct with 'bytes') and 'label' (an integer) expected"
        raise corrupt_file_error(path, reason, download_hint)


def _decode_image(
    path: Path, row: int, content: bytes | None, shape: tuple[int, int, int], download_hint: str
) -> tuple[Pixels, bool]:
    """Return one image as (channels, height, width), and whether it is a JPEG.

    Size and mode are checked before decoding, so that a small file cannot unpack to a huge image.
    """
    from PIL import Image

    channels, height, width = shape
    mode = {1: "L", 3: "RGB"}[channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content or b""), formats=_FORMATS) as image:
                image.verify()  # Checks the checksums of a PNG, which decoding alone ignores; it uses up the image.
            with Image.open(io.BytesIO(content or b""), formats=_FORMATS) as image:
                image_mode, image_size = image.mode, image.size
                pixels: np.ndarray[Any, np.dtype[np.uint8]] | None = None
                if (image_mode, image_size) == (mode, (width, height)):
                    pixels = np.asarray(image, dtype=np.uint8)
                is_jpeg = image.format == "JPEG"
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged images.
        reason = f"the image in row {row} is not a readable PNG or JPEG ({error})"
        raise corrupt_file_error(path, reason, download_hint) from error
    if pixels is None:
        properties = f"{image_size[0]}x{image_size[1]} pixels in mode {image_mode}"
        reason = f"the image in row {row} has {properties}; {width}x{height} in mode {mode} expected"
        raise corrupt_file_error(path, reason, download_hint)
    return pixels.reshape(height, width, channels).transpose(2, 0, 1), is_jpeg
