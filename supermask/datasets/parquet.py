"""Labeled images in Parquet files: the columns `img {bytes, path}` and `label`, as Hugging Face stores them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from supermask.datasets.images import LabeledImages, Pixels, check_labels, corrupt_file_error
from supermask.datasets.specs import DatasetSpec

_ROWS_PER_FETCH = 1_000
_FORMATS = ("PNG", "JPEG")
_INTEGERS = {f"{sign}{kind}" for sign in ("", "U") for kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")}


def read_images(
    files: tuple[Path, ...], spec: DatasetSpec, count: int, download_hint: str
) -> tuple[LabeledImages, bool]:
    """Return the images and labels of all `files`, in order, and whether any image is a JPEG (lossy).

    Raises UserError for other columns, an image that is neither PNG nor JPEG or not of the dataset's size and colors,
    a label out of range, or another number of images than `count`.
    """
    images = np.empty((count, *spec.image_shape), np.uint8)
    labels = np.empty(count, np.int64)
    is_lossy, filled = False, 0
    for path in files:
        first = filled
        for content, label in _read_rows(path, download_hint):
            # Surplus rows are counted for the message, not decoded.
            if filled < count:
                row = filled - first
                images[filled], is_jpeg = _decode_image(path, row, content, spec.image_shape, download_hint)
                if label is None:
                    raise corrupt_file_error(path, f"row {row} has no label", download_hint)
                labels[filled] = label
                is_lossy |= is_jpeg
            filled += 1
        check_labels(path, labels[first:filled], spec.classes, download_hint)
    if filled != count:
        names = ", ".join(path.name for path in files)
        reason = f"{count:,} images expected in {names}, {filled:,} found"
        raise corrupt_file_error(files[0].parent, reason, download_hint)
    return LabeledImages(images, labels), is_lossy


def _read_rows(path: Path, download_hint: str) -> Iterator[tuple[bytes | None, int | None]]:
    import duckdb

    # DuckDB reads a path as a glob pattern; a character in brackets stands for itself.
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "threads": 1,
    }
    try:
        with duckdb.connect(":memory:", config=settings) as connection:
            description = connection.execute(
                "DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)", [literal]
            ).fetchall()
            _check_columns(path, {str(row[0]): str(row[1]) for row in description}, download_hint)
            table = connection.execute(
                "SELECT img.bytes, label::BIGINT FROM read_parquet(?, hive_partitioning = false)", [literal]
            )
            while rows := table.fetchmany(_ROWS_PER_FETCH):
                yield from rows
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
