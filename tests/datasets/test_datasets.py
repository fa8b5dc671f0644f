"""Identity, fingerprint and split of datasets; missing data; digits."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import struct
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_files import (
    CIFAR,
    MNIST,
    idx,
    load_error,
    random_images,
    write_binary,
    write_mnist,
    write_shards,
)
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.errors import SystemFailure, UserError
from supermask.datasets import DATASETS, ImageDataset, digits, load, loading, train_validation_split
from supermask.datasets.images import LabeledImages, data_folder, fingerprint, translate_os_errors
from supermask.datasets.loading import load_with_spec
from supermask.datasets.specs import DatasetSpec

pytestmark = pytest.mark.usefixtures("cache_dir")


def test_only_published_data_has_no_fingerprint_in_run_ids(data: Path) -> None:
    write_mnist(data)
    published = fingerprint(*random_images(MNIST))
    assert load_with_spec(replace(MNIST, published_fingerprint=published), data).run_fingerprint is None
    assert load_with_spec(replace(MNIST, published_fingerprint="0" * 64), data).run_fingerprint == published
    assert load("digits").run_fingerprint is None


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_importing_datasets_imports_no_heavy_module() -> None:
    code = "import sys, supermask.datasets; print([m for m in ('torch','duckdb','PIL','sklearn') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
