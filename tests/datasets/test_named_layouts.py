"""Datasets by name: found in the layouts of their usual sources, checked, and told from each other."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from helpers.own_data import Arrays, idx_bytes, own_arrays, write_idx, write_parquet

from supermask.core.errors import UserError
from supermask.datasets import DATASETS, ImageDataset
from supermask.datasets.loading import DATASET_FILE_FINDERS, load_with_spec
from supermask.datasets.specs import DatasetSpec

COUNTS = {"training_images": 20, "test_images": 8, "validation_images": 5, "published_fingerprint": None}


def small(name: str, shape: tuple[int, int, int]) -> DatasetSpec:
    return replace(DATASETS[name], image_shape=shape, **COUNTS)


def arrays_of(spec: DatasetSpec, seed: int = 0) -> Arrays:
    channels, height, width = spec.image_shape
    shape = (height, width) if channels == 1 else (height, width, channels)
    arrays = own_arrays(spec.training_images, spec.test_images, shape, 3, seed)
    arrays["y_train"][0] = spec.classes - 1
    return arrays


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPERMASK_DATA", raising=False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def assert_arrays(images: ImageDataset, arrays: Arrays) -> None:
    for actual, name in ((images.train_images, "x_train"), (images.test_images, "x_test")):
        wanted = arrays[name]
        np.testing.assert_array_equal(actual, wanted[:, None] if wanted.ndim == 3 else wanted.transpose(0, 3, 1, 2))
    assert images.train_labels.tolist() == arrays["y_train"].tolist()
    assert images.test_labels.tolist() == arrays["y_test"].tolist()


def refusal(spec: DatasetSpec, data: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_with_spec(spec, data)
    return str(caught.value)


def test_every_dataset_from_files_has_a_loader_and_published_counts() -> None:
    assert set(DATASET_FILE_FINDERS) == set(DATASETS) - {"digits"}
    counts = {name: (spec.classes, spec.training_images, spec.test_images) for name, spec in DATASETS.items()}
    assert counts == {
        "digits": (10, 1_437, 360),
        "mnist": (10, 60_000, 10_000),
        "cifar10": (10, 50_000, 10_000),
        "cifar100": (100, 50_000, 10_000),
        "fashion-mnist": (10, 60_000, 10_000),
        "kmnist": (10, 60_000, 10_000),
        "emnist-letters": (26, 124_800, 20_800),
        "emnist-balanced": (47, 112_800, 18_800),
        "svhn": (10, 73_257, 26_032),
    }


# --------------------------------------------------------------------------------------------------------------- IDX


DOTTED = ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte")
DASHED = tuple(name.replace(".idx", "-idx") for name in DOTTED)
NESTED = tuple(f"{name}/{name}" for name in DASHED)


@pytest.mark.parametrize("names", [DOTTED, DASHED, NESTED], ids=["dotted", "dashed", "nested"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "mnist/archive"),
        ("mnist", "kaggle/mnist-dataset"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", "fashion_mnist/data/fashion"),
        ("fashion-mnist", "kaggle/zalando-research/fashionmnist"),
        ("kmnist", "KMNIST/raw"),
        ("kmnist", "kuzushiji-mnist"),
    ],
)
def test_idx_datasets_are_found_in_the_folders_of_their_sources(
    data: Path, name: str, folder: str, names: tuple[str, ...]
) -> None:
    spec = small(name, (1, 4, 3))
    arrays = arrays_of(spec)
    write_idx(data / folder, arrays, names)  # type: ignore[arg-type]
    assert_arrays(load_with_spec(spec, data), arrays)


def test_datasets_with_equal_file_names_are_not_confused(data: Path) -> None:
    specs = {name: small(name, (1, 4, 3)) for name in ("mnist", "fashion-mnist", "kmnist")}
    folders = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw", "kmnist": "KMNIST/raw"}
    for seed, name in enumerate(specs):
        write_idx(data / folders[name], arrays_of(specs[name], seed))
    for seed, spec in enumerate(specs.values()):
        assert_arrays(load_with_spec(spec, data), arrays_of(spec, seed))
    for name in ("mnist", "kmnist"):
        other = data.parent / f"only-{name}"
        write_idx(other / "mnist" / "fashion-mnist", arrays_of(specs["fashion-mnist"]))
        assert f"dataset '{name}' was not found" in refusal(specs[name], other)


def emnist_names(kind: str, ending: str = "") -> tuple[str, ...]:
    stems = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
    return tuple(f"emnist-{kind}-{stem}-ubyte{ending}" for stem in stems)


@pytest.mark.parametrize("folder", ["", "EMNIST/raw", "emnist/gzip", "gzip", "emnist-letters"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_emnist_is_found_by_its_file_names_and_turned_upright(data: Path, folder: str, ending: str) -> None:
    for kind, first_label in (("letters", 1), ("balanced", 0)):
        spec = small(f"emnist-{kind}", (1, 4, 4))
        arrays = arrays_of(spec, seed=first_label)
        stored = {
            key: value.transpose(0, 2, 1) if key[0] == "x" else value + first_label for key, value in arrays.items()
        }
        write_idx(data / folder, stored, emnist_names(kind, ending))  # type: ignore[arg-type]
        for path in (data / folder).glob("*.gz"):
            if path.read_bytes()[:2] != b"\x1f\x8b":
                path.write_bytes(gzip.compress(path.read_bytes()))
    for kind, seed in (("letters", 1), ("balanced", 0)):
        spec = small(f"emnist-{kind}", (1, 4, 4))
        assert_arrays(load_with_spec(spec, data), arrays_of(spec, seed))


def test_labels_outside_the_classes_are_refused(data: Path) -> None:
    spec = small("emnist-letters", (1, 4, 4))
    arrays = arrays_of(spec)
    write_idx(data, arrays, emnist_names("letters"))  # type: ignore[arg-type]
    text = refusal(spec, data)
    assert "emnist-letters-train-labels-idx1-ubyte: label 0 at image 3; labels are 1 to 26" in text


def test_a_truncated_file_of_a_named_dataset_is_refused(data: Path) -> None:
    spec = small("kmnist", (1, 4, 3))
    write_idx(data / "kmnist", arrays_of(spec))
    path = data / "kmnist" / DASHED[2]
    path.write_bytes(idx_bytes(arrays_of(spec)["x_test"])[:-5])
    assert f"{path}: truncated" in refusal(spec, data) and "supermask data get kmnist" in refusal(spec, data)


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "mnist/mnist"), ("fashion-mnist", "fashion_mnist/fashion_mnist")]
)
def test_parquet_forms_of_idx_datasets_are_read(data: Path, name: str, folder: str) -> None:
    spec = small(name, (1, 4, 3))
    arrays = arrays_of(spec)
    for part in ("train", "test"):
        path = data / folder / f"{part}-00000-of-00001.parquet"
        write_parquet(path, arrays[f"x_{part}"], arrays[f"y_{part}"])
    images = load_with_spec(spec, data)
    assert_arrays(images, arrays)
    assert images.run_fingerprint == images.fingerprint, "the order of a redistributed form may be another"


# ---------------------------------------------------------------------------------------------------------- CIFAR-100


CIFAR100 = small("cifar100", (3, 4, 5))


def cifar100_files(arrays: Arrays) -> dict[str, bytes]:
    def records(part: str) -> bytes:
        images = arrays[f"x_{part}"].transpose(0, 3, 1, 2).reshape(len(arrays[f"y_{part}"]), -1)
        labels = arrays[f"y_{part}"]
        coarse = np.full_like(labels, 19)
        return np.c_[coarse, labels, images].astype(np.uint8).tobytes()

    return {"train.bin": records("train"), "test.bin": records("test")}


@pytest.mark.parametrize("folder", ["cifar100", "cifar-100-binary", "cifar100/cifar-100-binary", "kaggle/CIFAR-100"])
def test_cifar100_is_read_with_its_fine_labels(data: Path, folder: str) -> None:
    arrays = arrays_of(CIFAR100)
    for name, content in cifar100_files(arrays).items():
        (data / folder).mkdir(parents=True, exist_ok=True)
        (data / folder / name).write_bytes(content)
    images = load_with_spec(CIFAR100, data)
    assert_arrays(images, arrays)
    assert images.run_fingerprint is None


def test_the_archive_of_cifar100_is_read(data: Path) -> None:
    arrays = arrays_of(CIFAR100)
    with tarfile.open(data / "cifar-100-binary.tar.gz", "w:gz") as tar:
        for name, content in cifar100_files(arrays).items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert_arrays(load_with_spec(CIFAR100, data), arrays)


def test_the_fine_label_of_parquet_files_is_used(data: Path) -> None:
    import duckdb

    arrays = arrays_of(CIFAR100)
    for part in ("train", "test"):
        plain = data / "plain.parquet"
        write_parquet(plain, arrays[f"x_{part}"], arrays[f"y_{part}"], ("img", "fine_label"))
        (data / "cifar100" / "cifar100").mkdir(parents=True, exist_ok=True)
        path = data / "cifar100" / "cifar100" / f"{part}-00000-of-00001.parquet"
        select = f"SELECT img, 7::BIGINT AS coarse_label, fine_label FROM read_parquet('{plain}')"  # noqa: S608
        duckdb.sql(f"COPY ({select}) TO '{path}' (FORMAT parquet)")
    assert_arrays(load_with_spec(CIFAR100, data), arrays)


def test_the_pickled_version_of_cifar100_is_refused(data: Path) -> None:
    (data / "cifar100" / "cifar-100-python").mkdir(parents=True)
    assert "this is the *python* version of CIFAR-100" in refusal(CIFAR100, data)
    (data / "cifar100" / "train.bin").write_bytes(b"x")
    assert "test.bin not there.\nGet both files" in refusal(CIFAR100, data)


# --------------------------------------------------------------------------------------------------------------- SVHN


SVHN = small("svhn", (3, 4, 5))


def write_svhn(folder: Path, arrays: Arrays, **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"][:, None].astype(np.uint8)
        variables = {"X": arrays[f"x_{part}"].transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)}
        variables = {name: value for name, value in {**variables, **changes}.items() if value is not None}
        scipy.io.savemat(folder / f"{part}_32x32.mat", variables, do_compression=part == "train")


@pytest.mark.parametrize("folder", ["svhn", "", "SVHN/raw", "kaggle/street-view-house-numbers"])
def test_svhn_is_read_from_matlab_files(data: Path, folder: str) -> None:
    arrays = arrays_of(SVHN)
    write_svhn(data / folder, arrays)
    images = load_with_spec(SVHN, data)
    assert_arrays(images, arrays)
    assert images.train_images.flags.c_contiguous and images.run_fingerprint is None


def test_svhn_is_read_from_parquet_files(data: Path) -> None:
    arrays = arrays_of(SVHN)
    for part in ("train", "test", "extra"):
        source = part if part != "extra" else "test"
        path = data / "svhn" / "cropped_digits" / f"{part}-00000-of-00001.parquet"
        write_parquet(path, arrays[f"x_{source}"], arrays[f"y_{source}"])
    assert_arrays(load_with_spec(SVHN, data), arrays)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": None}, "the variable X is missing; uint8 of shape (4, 5, 3, 20) expected"),
        ({"X": np.zeros((4, 5, 3, 20))}, "the variable X is double of shape (4, 5, 3, 20); uint8"),
        ({"X": np.zeros((4, 5, 3, 21), np.uint8)}, "the variable X is uint8 of shape (4, 5, 3, 21)"),
        ({"y": np.zeros((20, 1), np.uint8)}, "label 0 at image 0; labels are 1 to 10"),
        ({"y": np.full((20, 1), 11, np.uint8)}, "label 11 at image 0; labels are 1 to 10"),
        ({"X": np.array([{"a": 1}], dtype=object)}, "the variable X is cell of shape"),
    ],
)
def test_other_matlab_files_are_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    write_svhn(data / "svhn", arrays_of(SVHN), **changes)
    text = refusal(SVHN, data)
    assert "train_32x32.mat: " in text and message in text


def test_damaged_matlab_files_are_refused(data: Path) -> None:
    write_svhn(data / "svhn", arrays_of(SVHN))
    for name in ("train_32x32.mat", "test_32x32.mat"):
        path = data / "svhn" / name
        whole = path.read_bytes()
        for length in (0, 50, 128, 140, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:length])
            assert f"{name}: " in refusal(SVHN, data)
        path.write_bytes(b"\x89HDF\r\n\x1a\n" + whole)
        assert "MATLAB 7.3" in refusal(SVHN, data)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits"}))
def test_a_missing_dataset_is_refused_with_its_sources(data: Path, name: str) -> None:
    text = refusal(DATASETS[name], data)
    assert f"dataset '{name}' was not found" in text and f"supermask data get {name}" in text
