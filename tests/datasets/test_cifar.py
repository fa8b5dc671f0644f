"""CIFAR-10 as binary files, archive and Parquet: equal arrays, one clear error per defect."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dataset_files import (
    CIFAR,
    assert_same,
    cifar_batches,
    image_bytes,
    load_error,
    random_images,
    rows_of,
    write_archive,
    write_binary,
    write_parquet,
    write_shards,
)

from supermask.core.errors import UserError
from supermask.datasets import parquet
from supermask.datasets.images import fingerprint
from supermask.datasets.loading import load_with_spec

pytestmark = pytest.mark.usefixtures("cache_dir")


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


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["cifar10", "cifar10/plain_text", "cifar10/odd [a-b]*?/snapshots/1"])
def test_cifar10_parquet_with_png_equals_binary(data: Path, inner: str) -> None:
    write_shards(data / inner)
    images = load_with_spec(CIFAR, data)
    assert_same(images, *random_images(CIFAR))
    assert images.note == ""
    assert images.fingerprint == fingerprint(*random_images(CIFAR))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_slices_of_a_parquet_file_keep_the_order(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(data / "cifar10")
    monkeypatch.setattr(parquet, "_FETCH_BYTES", 300)
    assert_same(load_with_spec(CIFAR, data), *random_images(CIFAR))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_cycle_of_symbolic_links_ends(data: Path) -> None:
    (data / "cifar10" / "a").mkdir(parents=True)
    (data / "cifar10" / "a" / "b").symlink_to(data / "cifar10")
    load_error(CIFAR, data, "was not found")
    write_shards(data / "cifar10" / "a" / "c")
    assert_same(load_with_spec(CIFAR, data), *random_images(CIFAR))
