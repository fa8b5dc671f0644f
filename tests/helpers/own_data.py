"""Small datasets of a user's own, in every form that a study can name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from PIL import Image

Arrays = dict[str, np.ndarray[Any, Any]]


def own_arrays(
    train: int = 60, test: int = 12, shape: tuple[int, ...] = (6, 5, 3), classes: int = 3, seed: int = 0
) -> Arrays:
    """Return images (height, width, channels) or (height, width) that their labels can be learned from."""
    draws = np.random.default_rng(seed)

    def part(count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        labels = np.arange(count) % classes
        images = draws.integers(0, 60, (count, *shape)).astype(np.uint8)
        images[np.arange(count), labels, labels] = 250
        return images, labels.astype(np.int64)

    (x_train, y_train), (x_test, y_test) = part(train), part(test)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def write_npz(path: Path, **changes: Any) -> Path:
    """Write an archive of `own_arrays`, with changed or (None) left-out arrays."""
    arrays = {name: value for name, value in {**own_arrays(), **changes}.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def idx_bytes(array: np.ndarray[Any, Any], kind: int = 8) -> bytes:
    """Return an IDX file of uint8 values."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, arrays: Arrays, names: tuple[str, str, str, str] | None = None) -> Path:
    """Write four IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names or (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    for name, key in zip(names, ("x_train", "y_train", "x_test", "y_test"), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(idx_bytes(arrays[key]))
    return folder


def encode(image: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_images(folder: Path, arrays: Arrays, test: str = "test", kind: str = "PNG") -> Path:
    """Write `train/CLASS/*` and `test/CLASS/*`, so that the files are in the order of the arrays within a class."""
    for part, x, y in (("train", "x_train", "y_train"), (test, "x_test", "y_test")):
        for index, (image, label) in enumerate(zip(arrays[x], arrays[y], strict=True)):
            place = folder / part / f"class-{label}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index:05}.{kind.lower()}").write_bytes(encode(image, kind))
    return folder


def png16(image: np.ndarray[Any, Any]) -> bytes:
    """Return a PNG of 16 bits per channel: (height, width, channels), with 1 to 4 channels. Pillow writes grey only."""
    height, width, channels = image.shape

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def write_parquet(
    path: Path,
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    columns: tuple[str, str] = ("image", "label"),
) -> None:
    """Write a Parquet file with a struct of encoded bytes and an integer."""
    write_encoded_parquet(path, [encode(image) for image in images], [int(label) for label in labels], columns)


def write_encoded_parquet(
    path: Path, images: Sequence[bytes | None], labels: list[int], columns: tuple[str, str] = ("image", "label")
) -> None:
    """Write a Parquet file with a struct of these encoded images and an integer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(zip(images, labels, strict=True))
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (i BLOB, l BIGINT)")
        if rows:
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        image, label = columns
        connection.execute(
            f"""COPY (SELECT {{'bytes': i, 'path': 'x.png'}} AS "{image}", l AS "{label}" FROM t) """  # noqa: S608
            f"TO '{path}' (FORMAT parquet)"
        )


def write_table(path: Path, columns: dict[str, str], rows: int = 8, first_label: int = 0) -> None:
    """Write a Parquet file: images of 3x3 pixels in columns of type BLOB, labels of four classes in the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = encode(np.zeros((3, 3), np.uint8))
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        for row in range(rows):
            values = [image if kind == "BLOB" else row % 4 + first_label for kind in columns.values()]
            connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")


def by_class(arrays: Arrays) -> Arrays:
    """Return the arrays in the order of `images:FOLDER`: class by class."""
    order = {part: np.argsort(arrays[f"y_{part}"], kind="stable") for part in ("train", "test")}
    return {name: array[order[name[2:]]] for name, array in arrays.items()}
