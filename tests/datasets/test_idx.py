"""IDX files: equal arrays from every accepted layout, one clear error per defect."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_files import (
    MNIST,
    MNIST_NAMES,
    assert_same,
    idx,
    load_error,
    mnist_contents,
    random_images,
    write_mnist,
)

from supermask.core.errors import UserError
from supermask.datasets.images import fingerprint
from supermask.datasets.loading import load_with_spec

pytestmark = pytest.mark.usefixtures("cache_dir")


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


@pytest.mark.slow
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
