"""Labelled images in Parquet: the columns `img {bytes, path}` and `label`, as Hugging Face stores them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from supermask.datasets.images import LabeledImages, Pixels, check_labels, corrupt_file_error
from supermask.datasets.specs import DatasetSpec

_ROWS = 1_000
_FORMATS = ("PNG", "JPEG")
_INTEGERS = {f"{sign}{kind}" for sign in ("", "U") for kind in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")}


def read_images(files: tuple[Path, ...], facts: DatasetSpec, count: int, get_it: str) -> tuple[LabeledImages, bool]:
    """The images and labels of all `files`, in order, and whether any image is a JPEG (lossy).

    Raises UserError for other columns, an image that is neither PNG nor JPEG or not of the dataset's size and colours,
    a label out of range, or another number of images than `count`.
    """
    images = np.empty((count, *facts.image_shape), np.uint8)
    labels = np.empty(count, np.int64)
    lossy, filled = False, 0
    for path in files:
        first = filled
        for content, label in _rows(path, get_it):
            if filled < count:
                images[filled], is_jpeg = _decode_image(path, filled - first, content, facts.image_shape, get_it)
                if label is None:
                    raise corrupt_file_error(path, f"row {filled - first} has no label", get_it)
                labels[filled] = label
                lossy |= is_jpeg
            filled += 1
        check_labels(path, labels[first:filled], facts.classes, get_it)
    if filled != count:
        names = ", ".join(path.name for path in files)
        raise corrupt_file_error(files[0].parent, f"{count:,} images expected in {names}, {filled:,} found", get_it)
    return LabeledImages(images, labels), lossy


def _rows(path: Path, get_it: str) -> Iterator[tuple[bytes | None, int | None]]:
    import duckdb

    # DuckDB takes a path for a pattern; a character in brackets stands for itself.
    literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    settings: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "threads": 1,
    }
    try:
        with duckdb.connect(":memory:", config=settings) as connection:
            described = connection.execute(
                "DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)", [literal]
            ).fetchall()
            _check_columns(path, {str(row[0]): str(row[1]) for row in described}, get_it)
            table = connection.execute(
                "SELECT img.bytes, label::BIGINT FROM read_parquet(?, hive_partitioning = false)", [literal]
            )
            while rows := table.fetchmany(_ROWS):
                yield from rows
    except duckdb.Error as error:
        first_line = str(error).strip().splitlines()[0]
        raise corrupt_file_error(path, f"not a readable Parquet file ({first_line})", get_it) from error


def _check_columns(path: Path, columns: dict[str, str], get_it: str) -> None:
    image_type = columns.get("img", "").lower().replace('"', "")
    if not (image_type.startswith("struct(") and "bytes blob" in image_type and columns.get("label") in _INTEGERS):
        found = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        what = f"its columns are {found}; 'img' (a struct with 'bytes') and 'label' (an integer) expected"
        raise corrupt_file_error(path, what, get_it)


def _decode_image(
    path: Path, row: int, content: bytes | None, shape: tuple[int, int, int], get_it: str
) -> tuple[Pixels, bool]:
    """One image as (channels, height, width), and whether it is a JPEG. Size and mode are checked before decoding."""
    from PIL import Image

    channels, height, width = shape
    mode = {1: "L", 3: "RGB"}[channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content or b""), formats=_FORMATS) as image:
                image.verify()  # the checksums of a PNG, which decoding alone does not look at
            with Image.open(io.BytesIO(content or b""), formats=_FORMATS) as image:
                found = (image.mode, image.size)
                decoded: np.ndarray[Any, np.dtype[np.uint8]] | None = None
                if found == (mode, (width, height)):
                    decoded = np.asarray(image, dtype=np.uint8)
                is_jpeg = image.format == "JPEG"
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types for damaged images
        raise corrupt_file_error(
            path, f"the image in row {row} is not a readable PNG or JPEG ({error})", get_it
        ) from error
    if decoded is None:
        what = f"{found[1][0]}x{found[1][1]} pixels in mode {found[0]}; {width}x{height} in mode {mode} expected"
        raise corrupt_file_error(path, f"the image in row {row} has {what}", get_it)
    return decoded.reshape(height, width, channels).transpose(2, 0, 1), is_jpeg
