"""The cache of decoded data is always verified, and never needed."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dataset_files import (
    CIFAR,
    MNIST,
    assert_same,
    idx,
    load_error,
    random_images,
    write_mnist,
    write_shards,
)

from supermask.datasets import loading
from supermask.datasets.images import fingerprint
from supermask.datasets.loading import load_with_spec

pytestmark = pytest.mark.usefixtures("cache_dir")


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def is_mapped(array: Any) -> bool:
    return isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and is_mapped(array.base))


@pytest.mark.slow
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


@pytest.mark.slow
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
