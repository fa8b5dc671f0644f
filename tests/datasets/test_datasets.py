"""Datasets: equal arrays from every accepted form, one clear error per defect, a cache that is always verified."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.errors import SystemFailure, UserError
from supermask.datasets import DATASETS, ImageDataset, digits, load, loading, parquet, train_validation_split
from supermask.datasets.images import LabeledImages, data_folder, fingerprint, translate_os_errors
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


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPERMASK_DATA", raising=False)
    return tmp_path / "cache" / "datasets"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


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


# --- IDX ---------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("inner", ["mnist", "", "MNIST/raw", "mnist/MNIST/raw"])
@pytest.mark.parametrize("separator", ["-idx", ".idx"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_is_found_in_every_usual_folder_and_spelling(data: Path, inner: str, separator: str, ending: str) -> None:
    folder = data / inner
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in mnist_contents().items():
        packed = gzip.compress(content) if ending else content
        (folder / (name.replace("-idx", separator) + ending)).write_bytes(packed)
    images = load_with_spec(MNIST, data)
    assert_same(images, *random_images(MNIST))
    assert images.fingerprint == fingerprint(*random_images(MNIST))
    assert images.note == ""


def test_gzip_is_detected_by_content_not_by_name(data: Path) -> None:
    for name, content in mnist_contents().items():
        (data / f"{name}.gz").write_bytes(content)
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))
    for name, content in mnist_contents().items():
        (data / name).write_bytes(gzip.compress(content))
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))


def test_an_incomplete_folder_is_skipped_for_a_complete_one(data: Path) -> None:
    write_mnist(data / "mnist")
    (data / "mnist" / MNIST_NAMES[2]).unlink()
    load_error(MNIST, data, f"{data / 'mnist'} lacks t10k-images-idx3-ubyte")
    write_mnist(data)
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))


def test_every_truncation_of_an_idx_file_is_refused(data: Path) -> None:
    whole = mnist_contents()[MNIST_NAMES[0]]
    packed = gzip.compress(whole)
    for length in range(len(whole)):
        write_mnist(data, train_images=whole[:length])
        load_error(MNIST, data, MNIST_NAMES[0], "Get it again")
    for length in range(1, len(packed)):
        write_mnist(data, train_images=packed[:length])
        load_error(MNIST, data, MNIST_NAMES[0], "Get it again")


def test_truncated_idx_error_states_the_number_of_bytes(data: Path) -> None:
    write_mnist(data, train_images=mnist_contents()[MNIST_NAMES[0]][:100])
    load_error(MNIST, data, str(data / MNIST_NAMES[0]), "truncated: 256 bytes expected, 100 found", "torchvision")
    packed = gzip.compress(mnist_contents()[MNIST_NAMES[0]])
    write_mnist(data, train_images=packed[:-9])
    load_error(MNIST, data, "truncated gzip: 256 bytes expected")


def test_every_bit_flip_in_a_gzip_file_is_detected(data: Path) -> None:
    packed = gzip.compress(mnist_contents()[MNIST_NAMES[1]], mtime=0)
    refused = 0
    for place in range(2, len(packed)):
        changed = bytearray(packed)
        changed[place] ^= 1 << place % 8
        write_mnist(data, train_labels=bytes(changed))
        try:
            assert_same(load_with_spec(MNIST, data), *random_images(MNIST))  # a gzip header byte without meaning
        except UserError:
            refused += 1
    assert refused > len(packed) - 12


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("train_images", idx(np.zeros((20, 4, 3))) + b"\0", ("bytes after its end", "256 bytes expected, 257 found")),
        (
            "train_images",
            gzip.compress(idx(np.zeros((20, 4, 3))) + b"\0" * 5, mtime=0),
            ("bytes after its end", "more found"),
        ),
        ("train_images", gzip.compress(idx(np.zeros((20, 4, 3))), mtime=0) + b"junk", ("corrupt gzip",)),
        ("train_images", idx(np.zeros((19, 4, 3))), ("19 x 4 x 3; 20 x 4 x 3 expected",)),
        ("train_images", idx(np.zeros((20, 3, 4))), ("20 x 3 x 4; 20 x 4 x 3 expected",)),
        ("train_images", struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), ("4,294,967,295",)),
        ("train_images", idx(np.zeros(20)), ("not the IDX file", "00000801, not 00000803")),
        ("train_images", b"\0\0\x0d\x03" + bytes(252), ("begins with 00000d03",)),
        ("train_images", b"", ("not the IDX file",)),
        ("train_labels", idx(np.zeros(10)), ("its header says 10; 20 expected",)),
        ("train_labels", idx(np.r_[np.zeros(19), 10]), ("label 10 at image 19; labels are 0 to 9",)),
        ("t10k_labels", idx(np.r_[255, np.zeros(9)]), ("label 255 at image 0", "t10k-labels-idx1-ubyte")),
    ],
)
def test_invalid_idx_files_are_refused(data: Path, file: str, content: bytes, words: tuple[str, ...]) -> None:
    write_mnist(data, **{file: content})
    load_error(MNIST, data, "Get it again", *words)


def test_a_folder_named_like_a_file_counts_as_missing(data: Path) -> None:
    write_mnist(data)
    (data / MNIST_NAMES[0]).unlink()
    (data / MNIST_NAMES[0]).mkdir()
    load_error(MNIST, data, f"{data} lacks train-images-idx3-ubyte")


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("inner", ["cifar10", "cifar10/cifar-10-batches-bin", "", "cifar-10-batches-bin"])
def test_cifar10_binary(data: Path, inner: str) -> None:
    write_binary(data / inner)
    images = load_with_spec(CIFAR, data)
    assert_same(images, *random_images(CIFAR))
    assert images.note == ""


@pytest.mark.parametrize("inner", ["cifar10", ""])
def test_cifar10_archive(data: Path, inner: str) -> None:
    members = [(f"cifar-10-batches-bin/{name}", content) for name, content in cifar_batches().items()]
    members.insert(2, ("cifar-10-batches-bin/readme.html", b"<html>"))
    write_archive(data / inner / "cifar-10-binary.tar.gz", members)
    assert_same(load_with_spec(CIFAR, data), *random_images(CIFAR))


@pytest.mark.parametrize("inner", ["cifar10", "cifar10/plain_text", "cifar10/odd [a-b]*?/snapshots/1"])
def test_cifar10_parquet_with_png_equals_binary(data: Path, inner: str) -> None:
    write_shards(data / inner)
    images = load_with_spec(CIFAR, data)
    assert_same(images, *random_images(CIFAR))
    assert images.note == ""
    assert images.fingerprint == fingerprint(*random_images(CIFAR))


def test_cifar10_parquet_with_jpeg_is_noted_as_lossy(data: Path) -> None:
    from PIL import Image

    write_shards(data / "cifar10", "JPEG")
    images = load_with_spec(CIFAR, data)
    assert "JPEG" in images.note
    assert images.fingerprint != fingerprint(*random_images(CIFAR))
    train, _ = random_images(CIFAR)
    np.testing.assert_array_equal(images.train_labels, train.labels)
    for decoded, original in zip(images.train_images, train.images, strict=True):
        oracle = Image.open(io.BytesIO(image_bytes(original, "JPEG")))
        pixels = [[[oracle.getpixel((x, y))[c] for x in range(5)] for y in range(4)] for c in range(3)]  # type: ignore[index]
        np.testing.assert_array_equal(decoded, pixels)
    assert load_with_spec(CIFAR, data).note == images.note, "the cache keeps the note"


def test_lossless_forms_have_priority_over_parquet(data: Path) -> None:
    write_shards(data / "cifar10", "JPEG")
    write_binary(data / "cifar10")
    assert load_with_spec(CIFAR, data).note == ""


@pytest.mark.parametrize("form", ["cifar-10-batches-py/data_batch_1", "cifar-10-python.tar.gz", "data_batch_1"])
@pytest.mark.parametrize("inner", ["cifar10", ""])
def test_pickled_files_are_refused_and_never_opened(
    data: Path, form: str, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data / inner / form
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({b"data": b"", b"labels": []}))
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(pickle, "loads", None)
    load_error(CIFAR, data, "python", "pickle", "binary", "uoft-cs/cifar10", "cs.toronto.edu")


def test_incomplete_binary_version_is_refused(data: Path) -> None:
    write_binary(data / "cifar10")
    (data / "cifar10" / "data_batch_3.bin").unlink()
    load_error(CIFAR, data, str(data / "cifar10"), "data_batch_3.bin", "not there")


def test_invalid_binary_files_are_refused(data: Path) -> None:
    whole = cifar_batches()["data_batch_2.bin"]
    write_binary(data, data_batch_2=whole[:-1])
    load_error(CIFAR, data, "data_batch_2.bin", "truncated: 244 bytes expected, 243 found")
    write_binary(data, data_batch_2=whole + b"\0")
    load_error(CIFAR, data, "too long: 244 bytes expected, 245 found")
    write_binary(data, data_batch_2=whole[:61] + b"\x0a" + whole[62:])
    load_error(CIFAR, data, "data_batch_2.bin", "label 10 at image 1;")


def test_invalid_archives_are_refused(data: Path) -> None:
    path = data / "cifar-10-binary.tar.gz"
    batches = list(cifar_batches().items())
    write_archive(path, batches[:-1])
    load_error(CIFAR, data, str(path), "lacks test_batch.bin")
    write_archive(path, [("cifar-10-batches-py/data_batch_1", pickle.dumps({}))])
    load_error(CIFAR, data, "not the binary version of CIFAR-10")
    write_archive(path, [*batches, batches[0]])
    load_error(CIFAR, data, "data_batch_1.bin is in it twice")
    write_archive(path, [(batches[0][0], batches[0][1][:-5]), *batches[1:]])
    load_error(CIFAR, data, "data_batch_1.bin", "truncated")
    write_archive(path, [("huge", bytes(10_000)), *batches])
    load_error(CIFAR, data, "too large files")
    write_archive(path, [*((f"f{n}", b"") for n in range(120)), *batches])
    load_error(CIFAR, data, "too many")
    path.write_bytes(gzip.compress(b"no tar at all" * 100))
    load_error(CIFAR, data, "corrupt archive")
    path.write_bytes(b"no gzip at all")
    load_error(CIFAR, data, "corrupt archive")


def test_hostile_member_names_write_no_file(data: Path) -> None:
    batches = list(cifar_batches().items())
    write_archive(data / "cifar-10-binary.tar.gz", [("../../outside", b"x"), (str(data / "absolute"), b"x"), *batches])
    before = sorted(data.parent.rglob("*"))
    assert_same(load_with_spec(CIFAR, data), *random_images(CIFAR))
    after = [path for path in sorted(data.parent.rglob("*")) if "cache" not in path.parts]
    assert after == [path for path in before if "cache" not in path.parts]


def test_truncated_and_changed_archives_are_refused(data: Path) -> None:
    path = data / "cifar-10-binary.tar.gz"
    write_archive(path, list(cifar_batches().items()))
    packed = path.read_bytes()
    for length in range(0, len(packed), 7):
        path.write_bytes(packed[:length])
        load_error(CIFAR, data, "Get it again")
    for place in range(31, len(packed), 7):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 0x10]) + packed[place + 1 :])
        load_error(CIFAR, data, "Get it again")


def write_one_bad_row(data: Path, content: Any, label: Any = 1, *, row: int = 3) -> Path:
    train, test = random_images(CIFAR)
    rows: list[tuple[Any, Any]] = [*rows_of(train)]
    rows[row] = (content, label)
    write_parquet(data / "cifar10" / "train-00000-of-00001.parquet", rows)
    write_parquet(data / "cifar10" / "test-00000-of-00001.parquet", rows_of(test))
    return data


def gray_image(width: int, height: int, kind: str = "PNG", mode: str = "L") -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def png_with_wrong_checksum() -> bytes:
    """Return a PNG with one flipped bit in its compressed pixels."""
    whole = bytearray(gray_image(5, 4, mode="RGB"))
    whole[whole.index(b"IDAT") + 9] ^= 1
    return bytes(whole)


def decompression_bomb() -> bytes:
    """Return a PNG whose header claims 50,000 x 50,000 pixels."""
    import zlib

    header = b"IHDR" + struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + image_bytes(np.zeros((3, 4, 5), np.uint8))[33:]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (gray_image(4, 5, mode="RGB"), "4x5 pixels in mode RGB; 5x4 in mode RGB expected"),
        (gray_image(500, 400, mode="RGB"), "500x400 pixels"),
        (gray_image(5, 4), "5x4 pixels in mode L"),
        (gray_image(5, 4, mode="RGBA"), "in mode RGBA"),
        (gray_image(5, 4, "BMP", "RGB"), "not a readable PNG or JPEG"),
        (gray_image(5, 4, "GIF", "P"), "not a readable PNG or JPEG"),
        (gray_image(5, 4, mode="RGB")[:-26], "not a readable PNG or JPEG"),
        (gray_image(5, 4, mode="RGB")[:20], "not a readable PNG or JPEG"),
        (png_with_wrong_checksum(), "not a readable PNG or JPEG"),
        (decompression_bomb(), "not a readable PNG or JPEG"),
        (b"", "not a readable PNG or JPEG"),
        (None, "not a readable PNG or JPEG"),
        (b"\x80\x04]\x94.", "not a readable PNG or JPEG"),
    ],
)
def test_invalid_images_in_parquet_are_refused(data: Path, content: bytes | None, words: str) -> None:
    load_error(CIFAR, write_one_bad_row(data, content), "train-00000-of-00001.parquet", "row 3", words)


@pytest.mark.parametrize("label", [10, -1, 2**40])
def test_label_out_of_range_in_parquet_is_refused(data: Path, label: int) -> None:
    png = image_bytes(random_images(CIFAR)[0].images[0])
    load_error(CIFAR, write_one_bad_row(data, png, label), f"label {label} at image 3; labels are 0 to 9")


def test_null_label_in_parquet_is_refused(data: Path) -> None:
    png = image_bytes(random_images(CIFAR)[0].images[0])
    load_error(CIFAR, write_one_bad_row(data, png, None), "row 3 has no label")


def test_wrong_columns_and_counts_in_parquet_are_refused(data: Path) -> None:
    train, test = random_images(CIFAR)
    folder = data / "cifar10"
    write_parquet(folder / "test-0.parquet", rows_of(test))
    write_parquet(folder / "train-0.parquet", rows_of(train), label="DOUBLE")
    load_error(CIFAR, data, "label DOUBLE", "'label' (an integer) expected")
    write_parquet(folder / "train-0.parquet", rows_of(train), image="thing")
    load_error(CIFAR, data, "thing STRUCT", "'img'")
    write_parquet(folder / "train-0.parquet", rows_of(train)[:-1], label="INTEGER")
    load_error(CIFAR, data, "20 images expected in train-0.parquet, 19 found")
    write_parquet(folder / "train-0.parquet", [*rows_of(train), (b"", 0)], label="UTINYINT")
    load_error(CIFAR, data, "20 images expected", "21 found")


def test_damaged_parquet_is_refused(data: Path) -> None:
    write_shards(data / "cifar10")
    path = data / "cifar10" / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], b"x" * 500):
        path.write_bytes(content)
        load_error(CIFAR, data, str(path), "not a readable Parquet file", "Get it again")
    for place in range(0, len(whole), 151):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_with_spec(CIFAR, data)  # Parquet values have no checksum; the fingerprint differs
        except UserError as refused:
            assert "Get it again" in str(refused)


SHARED_BLOB = Path(__file__).parents[1] / "golden" / "shared-blob.parquet"
"""1,816 bytes: 1,000 rows that share one value of 1,000,000 bytes."""

PEAK_MEMORY = """
import sys
from dataclasses import replace
from pathlib import Path
from supermask.core.errors import UserError
from supermask.datasets import DATASETS
from supermask.datasets.loading import load_with_spec

count = int(sys.argv[2])
try:
    load_with_spec(replace(DATASETS["cifar10"], training_images=count, test_images=count), Path(sys.argv[1]))
except UserError as error:
    print(error, file=sys.stderr)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
"""Prints the peak memory in kB of a process that loads the Parquet files of a folder in vain."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_rows_that_share_one_value_take_little_memory(data: Path) -> None:
    """Reading these 1,816 bytes took 2 GB."""
    (data / "cifar10").mkdir()
    for name in ("train-0", "test-0"):
        (data / "cifar10" / f"{name}.parquet").write_bytes(SHARED_BLOB.read_bytes())
    command = [sys.executable, "-c", PEAK_MEMORY, str(data), "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the image in row 0 has more than 114,688 bytes: 1,000,000 is the largest of the file" in done.stderr
    assert int(done.stdout) < 300_000


def test_duckdb_has_a_memory_limit(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(data / "cifar10")
    monkeypatch.setattr(parquet, "_MEMORY_LIMIT", "100KB")
    load_error(CIFAR, data, "not a readable Parquet file (Out of Memory")


def test_too_large_images_in_parquet_are_refused_with_their_row(data: Path) -> None:
    limit = parquet.max_encoded_bytes(CIFAR)
    large = image_bytes(random_images(CIFAR)[0].images[0]) + bytes(limit)
    write_one_bad_row(data, large, row=7)
    load_error(CIFAR, data, "train-00000-of-00001.parquet: the image in row 7 has more than 66,496 bytes")


def test_slices_of_a_parquet_file_keep_the_order(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(data / "cifar10")
    monkeypatch.setattr(parquet, "_FETCH_BYTES", 300)
    assert_same(load_with_spec(CIFAR, data), *random_images(CIFAR))


@pytest.mark.parametrize("link", ["data", "cifar10", "inner", "files"])
def test_symbolic_links_are_followed(data: Path, tmp_path: Path, link: str) -> None:
    real, top = tmp_path / "real", data
    if link == "data":
        write_shards(real / "cifar10" / "plain_text")
        top = tmp_path / "link"
        top.symlink_to(real)
    elif link == "cifar10":
        write_shards(real / "plain_text")
        (data / "cifar10").symlink_to(real)
    elif link == "inner":
        write_shards(real)
        (data / "cifar10").mkdir()
        (data / "cifar10" / "plain_text").symlink_to(real)
    else:
        write_shards(real)
        (data / "cifar10").mkdir()
        for path in real.iterdir():
            (data / "cifar10" / path.name).symlink_to(path)
    assert_same(load_with_spec(CIFAR, top), *random_images(CIFAR))


def test_a_cycle_of_symbolic_links_ends(data: Path) -> None:
    (data / "cifar10" / "a").mkdir(parents=True)
    (data / "cifar10" / "a" / "b").symlink_to(data / "cifar10")
    load_error(CIFAR, data, "was not found")
    write_shards(data / "cifar10" / "a" / "c")
    assert_same(load_with_spec(CIFAR, data), *random_images(CIFAR))


# --- identity of the data in run ids -------------------------------------------------------------------------------


def test_only_published_data_has_no_fingerprint_in_run_ids(data: Path) -> None:
    write_mnist(data)
    published = fingerprint(*random_images(MNIST))
    assert load_with_spec(replace(MNIST, published_fingerprint=published), data).run_fingerprint is None
    assert load_with_spec(replace(MNIST, published_fingerprint="0" * 64), data).run_fingerprint == published
    assert load("digits").run_fingerprint is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_cifar10_has_a_fingerprint_in_run_ids_unless_it_is_the_binary_version(data: Path, kind: str) -> None:
    write_shards(data / "cifar10", kind)
    images = load_with_spec(CIFAR, data)
    assert images.run_fingerprint == images.fingerprint
    write_binary(data / "cifar10")
    assert load_with_spec(CIFAR, data).run_fingerprint is None


def test_run_fingerprint_follows_the_files_and_decodes_them_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []

    def counted(name: str, data_dir: Path | None = None) -> ImageDataset:
        loads.append(name)
        return load_with_spec(spec, data_dir)

    spec = replace(MNIST, published_fingerprint="0" * 64)
    monkeypatch.setitem(loading.DATASETS, "mnist", spec)
    monkeypatch.setattr(loading, "load", counted)
    write_mnist(data)
    first = loading.run_fingerprint("mnist", data)
    assert loading.run_fingerprint("mnist", data) == first
    assert loads == ["mnist"]
    write_mnist(data, train_labels=idx(np.zeros(20)))
    assert loading.run_fingerprint("mnist", data) == load_with_spec(spec, data).run_fingerprint != first
    assert len(loads) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="was not found"):
        loading.run_fingerprint("mnist", tmp_path / "empty")


# --- missing data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "source"), [(MNIST, "torchvision"), (CIFAR, "uoft-cs/cifar10")])
def test_missing_data_error_names_folders_source_and_setting(
    data: Path, spec: DatasetSpec, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_error(spec, data, f"dataset '{spec.name}'", str(data / spec.name), source, "SUPERMASK_DATA", "digits")
    load_error(spec, data / "absent", "absent", "there is no such folder")
    monkeypatch.setenv("SUPERMASK_DATA", str(data / "named"))
    load_error(spec, None, f"the data folder is SUPERMASK_DATA: '{data / 'named'}'", "there is no such folder")
    monkeypatch.setenv("SUPERMASK_DATA", "")
    monkeypatch.chdir(data)
    load_error(spec, None, "the data folder is './data', as SUPERMASK_DATA is not set")


def test_the_data_dir_argument_overrides_the_environment(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_DATA", "~/there")
    assert data_folder(data).path == data
    assert data_folder().path == Path.home() / "there"


def test_unknown_dataset_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"'minst' is not known \(allowed: digits, mnist, .*npz:FILE.*\); did you mean 'mnist'\?"
    ):
        load("minst")


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EIO, SystemFailure), (errno.EACCES, UserError), (errno.ENOENT, UserError)]
)
def test_read_errors_are_user_errors_or_system_failures(code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="some/file"), translate_os_errors(Path("some/file")):
        raise OSError(code, os.strerror(code))


# --- digits ------------------------------------------------------------------------------------------------------


def test_digits_equal_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images = load("digits")
    wanted = load_digits()
    pixels = np.concatenate([images.train_images, images.test_images]).reshape(-1, 64)
    labels = np.concatenate([images.train_labels, images.test_labels])
    lines = sorted(map(tuple, np.c_[pixels, labels].tolist()))
    assert lines == sorted(map(tuple, np.c_[wanted.data, wanted.target].astype(int).tolist()))
    assert images.train_images.shape == (1437, 1, 8, 8)
    assert images.test_images.shape == (360, 1, 8, 8)
    assert images.note == "", "the split into training and test set is fixed"


def test_digits_fall_back_to_load_digits_without_the_csv_file(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = load("digits")
    monkeypatch.setattr(digits, "_read_csv", lambda: None)
    other = load("digits")
    assert other.fingerprint == usual.fingerprint


def test_digits_write_no_cache(cache_dir: Path) -> None:
    load("digits")
    assert not cache_dir.exists()


# --- pixels, fingerprint, split ----------------------------------------------------------------------------------


def nearest_float32(value: Fraction) -> np.float32:
    start = np.float32(float(value))
    near = (start, np.nextafter(start, np.float32(-1)), np.nextafter(start, np.float32(2)))
    return min(near, key=lambda candidate: abs(Fraction(float(candidate)) - value))


@pytest.mark.parametrize("spec", DATASETS.values(), ids=DATASETS)
def test_scaled_pixels_are_the_correctly_rounded_quotients(spec: DatasetSpec) -> None:
    images = replace(load("digits"), facts=spec)
    values = np.arange(spec.max_pixel + 1, dtype=np.uint8)
    scaled = images.scale(values)
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [float(nearest_float32(Fraction(int(v), spec.max_pixel))) for v in values]


def test_fingerprint_is_the_documented_hash_of_all_arrays() -> None:
    train, test = random_images(MNIST)
    digest = hashlib.sha256(b"supermask dataset 1\n")
    for kind, part in (("train", train), ("test", test)):
        count = {"train": 20, "test": 10}[kind]
        digest.update(f"uint8 ({count}, 1, 4, 3)\n".encode() + part.images.tobytes())
        digest.update(f"int64 ({count},)\n".encode() + struct.pack(f"<{count}q", *part.labels.tolist()))
    assert fingerprint(train, test) == digest.hexdigest()
    changed = train.images.copy()
    changed[-1, -1, -1, -1] ^= 1
    others = [
        (LabeledImages(changed, train.labels), test),
        (LabeledImages(train.images, (train.labels + 1) % 10), test),
        (train, LabeledImages(test.images[::-1], test.labels)),
        (LabeledImages(train.images.reshape(20, 1, 3, 4), train.labels), test),
    ]
    assert len({fingerprint(*pair) for pair in [(train, test), *others]}) == 5


def test_unpublished_data_has_a_note(data: Path) -> None:
    write_mnist(data)
    strange = load_with_spec(replace(MNIST, published_fingerprint="0" * 64), data)
    assert strange.note == "not the usual mnist: the images or labels differ from it"
    assert load_with_spec(replace(MNIST, published_fingerprint=strange.fingerprint), data).note == ""


@functools.cache
def embedded() -> ImageDataset:
    return load("digits")


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_split_is_exact_disjoint_and_depends_on_the_seed_only(seed: int, other: int) -> None:
    images = embedded()
    training, validation = train_validation_split(images, seed)
    assert (len(training), len(validation)) == (1237, 200)
    assert sorted([*training, *validation]) == list(range(1437))
    assert training.dtype == validation.dtype == np.int64
    assert (np.diff(training) > 0).all()
    assert (np.diff(validation) > 0).all()
    again = train_validation_split(replace(images, train_labels=images.train_labels[::-1]), seed)
    np.testing.assert_array_equal(again[1], validation)
    if other != seed:
        assert train_validation_split(images, other)[1].tolist() != validation.tolist()


def test_every_image_is_held_out_with_equal_probability() -> None:
    images = replace(load("digits"), facts=replace(DATASETS["digits"], training_images=10, validation_images=3))
    counts = np.bincount(
        np.concatenate([train_validation_split(images, seed)[1] for seed in range(2000)]), minlength=10
    )
    assert (abs(counts - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5).all()


def test_split_is_pinned() -> None:
    assert train_validation_split(load("digits"), 0)[1][:6].tolist() == [4, 6, 11, 13, 29, 32]


def test_specs_in_order() -> None:
    names = "digits mnist cifar10 cifar100 fashion-mnist kmnist emnist-letters emnist-balanced svhn"
    assert list(DATASETS) == names.split()
    assert [spec.name for spec in DATASETS.values()] == list(DATASETS)
    assert [spec.validation_images for spec in DATASETS.values()] == [200] + 8 * [5_000]


def test_importing_datasets_imports_no_heavy_module() -> None:
    code = "import sys, supermask.datasets; print([m for m in ('torch','duckdb','PIL','sklearn') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- cache -------------------------------------------------------------------------------------------------------


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def is_mapped(array: Any) -> bool:
    return isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and is_mapped(array.base))


def test_second_load_maps_the_cache_file_without_decoding(
    data: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(data / "cifar10", "JPEG")
    first = load_with_spec(CIFAR, data)
    monkeypatch.setattr("supermask.datasets.parquet.read_images", None)
    second = load_with_spec(CIFAR, data)
    assert (second.fingerprint, second.note) == (first.fingerprint, first.note)
    before = only_file(cache_dir).read_bytes()
    for images in (first, second):
        assert is_mapped(images.train_images)
        assert is_mapped(images.test_labels)
        images.train_images[:] = 0
        images.train_labels[:] = 0
    assert only_file(cache_dir).read_bytes() == before, "the file cannot be changed through the arrays"
    assert load_with_spec(CIFAR, data).fingerprint == first.fingerprint


def test_cache_key_depends_on_file_contents_only(data: Path, cache_dir: Path) -> None:
    write_mnist(data)
    first = load_with_spec(MNIST, data)
    write_mnist(data / "mnist")
    assert load_with_spec(MNIST, data).fingerprint == first.fingerprint
    assert len(list(cache_dir.iterdir())) == 1, "the same files elsewhere are the same data"
    write_mnist(data / "mnist", train_labels=idx(np.zeros(20)))
    assert load_with_spec(MNIST, data).fingerprint != first.fingerprint
    write_mnist(data / "mnist", train_labels=b"damaged")
    load_error(MNIST, data, "not the IDX file")


def test_every_changed_byte_of_the_cache_is_detected(data: Path, cache_dir: Path) -> None:
    write_mnist(data)
    load_with_spec(MNIST, data)
    path = only_file(cache_dir)
    whole = path.read_bytes()
    padding = range(whole.index(b"}") + 20, 4096 - 20)
    refused = 0
    for place in itertools.chain(range(padding.start), range(padding.stop, len(whole))):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        cached = loading.read_cache(path, MNIST)
        if cached is None:
            refused += 1
            continue
        decoded, data_fingerprint = cached  # a changed space between JSON tokens is harmless
        assert (data_fingerprint, decoded.note) == (fingerprint(*random_images(MNIST)), "")
        np.testing.assert_array_equal(decoded.train.images, random_images(MNIST)[0].images)
    assert refused > len(whole) - len(padding) - 40


def test_damaged_cache_is_rebuilt(data: Path, cache_dir: Path) -> None:
    write_mnist(data)
    load_with_spec(MNIST, data)
    path = only_file(cache_dir)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole + b"\0", bytes(len(whole)), whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        assert_same(load_with_spec(MNIST, data), *random_images(MNIST))
        assert only_file(cache_dir).read_bytes() == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_loading_works_if_the_cache_cannot_be_written(
    data: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    write_mnist(data)
    monkeypatch.setattr(os, "fsync", fail)
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))
    assert list(cache_dir.iterdir()) == []


def test_loading_works_if_the_cache_folder_is_a_file_or_unknown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(data)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "file"))
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("SUPERMASK_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))


def test_a_truncated_staged_file_is_not_cached(data: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(data)
    real = os.fsync

    def cut(descriptor: int) -> None:
        os.ftruncate(descriptor, 4200)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", cut)
    assert_same(load_with_spec(MNIST, data), *random_images(MNIST))
    assert list(cache_dir.iterdir()) == []


def test_only_stale_staged_files_are_removed(data: Path, cache_dir: Path) -> None:
    cache_dir.mkdir(parents=True)
    (cache_dir / "old.1.partial").write_bytes(b"x")
    (cache_dir / "new.2.partial").write_bytes(b"x")
    os.utime(cache_dir / "old.1.partial", (0, 0))
    write_mnist(data)
    load_with_spec(MNIST, data)
    assert {path.name.split("-")[0] for path in cache_dir.iterdir()} == {"new.2.partial", "mnist"}


def test_cache_folder_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_CACHE", "~/elsewhere")
    assert loading.cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("SUPERMASK_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert loading.cache_folder() == Path("/caches/supermask")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert loading.cache_folder() == Path.home() / ".cache" / "supermask"
