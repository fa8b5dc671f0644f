"""Small copies of MNIST and CIFAR-10 in every form of their files."""

from __future__ import annotations

import io
import os
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supermask.core.errors import UserError
from supermask.datasets import DATASETS, ImageDataset
from supermask.datasets.images import LabeledImages
from supermask.datasets.loading import load_with_spec
from supermask.datasets.specs import DatasetSpec

MNIST = replace(
    DATASETS["mnist"],
    image_shape=(1, 4, 3),
    training_images=20,
    test_images=10,
    validation_images=5,
    published_fingerprint=None,
)
CIFAR = replace(DATASETS["cifar10"], image_shape=(3, 4, 5), training_images=20, test_images=4, validation_images=5)
MNIST_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def random_images(spec: DatasetSpec) -> tuple[LabeledImages, LabeledImages]:
    draws = np.random.default_rng(7)

    def part(count: int) -> LabeledImages:
        pixels = draws.integers(0, 256, (count, *spec.image_shape)).astype(np.uint8)
        return LabeledImages(pixels, draws.integers(0, 10, count).astype(np.int64))

    return part(spec.training_images), part(spec.test_images)


def assert_same(images: ImageDataset, train: LabeledImages, test: LabeledImages) -> None:
    for actual, expected in (
        (images.train_images, train.images),
        (images.train_labels, train.labels),
        (images.test_images, test.images),
        (images.test_labels, test.labels),
    ):
        assert actual.dtype == expected.dtype
        assert actual.flags.c_contiguous
        assert actual.flags.aligned
        np.testing.assert_array_equal(actual, expected)


def load_error(spec: DatasetSpec, folder: Path | None, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        load_with_spec(spec, folder)
    text = str(caught.value)
    for word in words:
        assert word in text, text
    return text


def idx(array: np.ndarray[Any, Any]) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_contents() -> dict[str, bytes]:
    train, test = random_images(MNIST)
    arrays: tuple[np.ndarray[Any, Any], ...] = (train.images[:, 0], train.labels, test.images[:, 0], test.labels)
    return {name: idx(array) for name, array in zip(MNIST_NAMES, arrays, strict=True)}


def write_mnist(folder: Path, **replaced: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in mnist_contents().items():
        (folder / name).write_bytes(replaced.get(name.split("-idx")[0].replace("-", "_"), content))
    return folder


def cifar_batches() -> dict[str, bytes]:
    train, test = random_images(CIFAR)

    def records(part: LabeledImages, chosen: slice) -> bytes:
        pairs = zip(part.labels[chosen], part.images[chosen], strict=True)
        return b"".join(bytes([label]) + image.tobytes() for label, image in pairs)

    contents = {f"data_batch_{n + 1}.bin": records(train, slice(4 * n, 4 * n + 4)) for n in range(5)}
    return contents | {"test_batch.bin": records(test, slice(None))}


def write_binary(folder: Path, **replaced: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in cifar_batches().items():
        (folder / name).write_bytes(replaced.get(name.removesuffix(".bin"), content))


def write_archive(path: Path, contents: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def image_bytes(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, rows: list[tuple[Any, Any]], label: str = "BIGINT", image: str = "img") -> None:
    import duckdb

    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"CREATE TABLE shard ({image} STRUCT(bytes BLOB, path VARCHAR), label {label})")
        for content, value in rows:
            connection.execute("INSERT INTO shard VALUES (row(?::BLOB, 'x.png'), ?)", [content, value])
        written = Path(os.environ["SUPERMASK_CACHE"]).with_name("shard.parquet")
        connection.table("shard").write_parquet(str(written))
    written.replace(path)


def rows_of(part: LabeledImages, kind: str = "PNG") -> list[tuple[bytes, int]]:
    return [(image_bytes(image, kind), int(label)) for image, label in zip(part.images, part.labels, strict=True)]


def write_shards(folder: Path, kind: str = "PNG") -> None:
    train, test = random_images(CIFAR)
    rows = rows_of(train, kind)
    write_parquet(folder / "train-00000-of-00002.parquet", rows[:9])
    write_parquet(folder / "train-00001-of-00002.parquet", rows[9:])
    write_parquet(folder / "test-00000-of-00001.parquet", rows_of(test, kind))
