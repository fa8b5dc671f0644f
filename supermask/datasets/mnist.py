"""`mnist` and the datasets made in its image: four IDX files, gzip-compressed or not, or Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from supermask.datasets.idx import normalize, read_idx, search_files
from supermask.datasets.images import (
    Allocate,
    DataFolder,
    DatasetFiles,
    LabeledImages,
    Pixels,
    RawDataset,
    allocate_in_memory,
    check_labels,
    not_found_error,
)
from supermask.datasets.parquet import find_shards, published_shards
from supermask.datasets.places import dataset_folders
from supermask.datasets.specs import DatasetSpec

FILE_STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


@dataclass(frozen=True)
class IdxForm:
    """Names and peculiarities of a dataset in IDX files."""

    hint: str
    """Sources of the files."""
    folder_names: tuple[str, ...]
    """Names of folders with the dataset, as `places.dataset_folders` compares them."""
    prefix: str = ""
    """Letters and digits with which the names of its files begin."""
    first_label: int = 0
    is_transposed: bool = False
    """True if the files hold the images with rows and columns exchanged."""

    @property
    def stems(self) -> tuple[str, ...]:
        """The four file names without `-ubyte`, for messages."""
        if not self.prefix:
            return FILE_STEMS
        kind = self.prefix.removeprefix("emnist")
        return tuple(f"emnist-{kind}-{stem.replace('t10k', 'test')}" for stem in FILE_STEMS)


_EMNIST_HINT = "gzip.zip of EMNIST from https://www.nist.gov/itl/products-and-services/emnist-dataset"
FORMS: dict[str, IdxForm] = {
    "mnist": IdxForm(
        "the four original IDX files of MNIST, from any mirror of them: `supermask data get mnist`, torchvision's "
        "MNIST download, or https://ossci-datasets.s3.amazonaws.com/mnist/",
        ("mnist", "mnistdataset"),
    ),
    "fashion-mnist": IdxForm(
        "the four IDX files of Fashion-MNIST: `supermask data get fashion-mnist`, torchvision's FashionMNIST download, "
        "or https://github.com/zalandoresearch/fashion-mnist",
        ("fashionmnist", "mnistfashion"),
    ),
    "kmnist": IdxForm(
        "the four IDX files of KMNIST: `supermask data get kmnist`, torchvision's KMNIST download, or "
        "https://codh.rois.ac.jp/kmnist/",
        ("kmnist", "kuzushijimnist"),
    ),
    "emnist-letters": IdxForm(
        f"`supermask data get emnist-letters`, torchvision's EMNIST download, or {_EMNIST_HINT}",
        ("emnistletters", "emnist", "gzip"),
        "emnistletters",
        first_label=1,
        is_transposed=True,
    ),
    "emnist-balanced": IdxForm(
        f"`supermask data get emnist-balanced`, torchvision's EMNIST download, or {_EMNIST_HINT}",
        ("emnistbalanced", "emnist", "gzip"),
        "emnistbalanced",
        is_transposed=True,
    ),
}


def find(spec: DatasetSpec, folder: DataFolder) -> DatasetFiles:
    """Return the four files from the first place that has them all, else Parquet files. Raises UserError."""
    form = FORMS[spec.name]
    usual = [folder.path / inner for inner in ("mnist", "mnist/MNIST/raw", "", "MNIST/raw")]
    places = usual if spec.name == "mnist" else [folder.path / spec.name, folder.path]
    incomplete: list[str] = []
    for place in usual if spec.name == "mnist" else ():
        paths = {stem: path for stem in FILE_STEMS if (path := _find_file(place, stem)) is not None}
        if len(paths) == len(FILE_STEMS):
            files = tuple(paths[stem] for stem in FILE_STEMS)
            return DatasetFiles(files, partial(decode, spec, files))
        if paths:
            missing = ", ".join(f"{stem}-ubyte" for stem in FILE_STEMS if stem not in paths)
            incomplete.append(f"{place} lacks {missing}")
    tops = dataset_folders(folder, form.folder_names)
    # Their names say which dataset the files of EMNIST are, so these may lie anywhere.
    for top in [*tops, folder.path] if form.prefix else tops:
        if located := search_files(top, form.prefix, accepts=_make_file_filter(form)):
            return DatasetFiles(located, partial(decode, spec, located))
    for top in [] if form.prefix else tops:
        if shards := find_shards(top):
            return published_shards(spec, shards, form.hint, f"{spec.name} decoded from JPEG (lossy)")
    needed = ", ".join(f"{stem}-ubyte" for stem in form.stems) + " (each plain or .gz; '.idx' may stand for '-idx')"
    raise not_found_error(spec.name, "; ".join([needed, *incomplete]), places, folder, form.hint)


def _make_file_filter(form: IdxForm) -> Callable[[Path], bool]:
    """Return a predicate of files that is false for those of other datasets: in a folder of another dataset's name."""
    if form.prefix:
        return Path.is_file
    others = {name for other in FORMS.values() if other is not form for name in other.folder_names}
    others -= set(form.folder_names)
    return lambda path: path.is_file() and not any(normalize(part) in others for part in path.parts[-4:-1])


def decode(spec: DatasetSpec, files: Sequence[Path], _: Allocate = allocate_in_memory) -> RawDataset:
    """Return the arrays of the four files, in the order of `idx.ROLES`. Raises UserError for a damaged file."""
    train_images, train_labels, test_images, test_labels = files
    return RawDataset(
        _read_labeled_images(spec, train_images, train_labels, spec.training_images),
        _read_labeled_images(spec, test_images, test_labels, spec.test_images),
    )


def _find_file(place: Path, stem: str) -> Path | None:
    names = (stem, stem.replace("-idx", ".idx"))
    paths = (place / f"{name}-ubyte{ending}" for ending in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read_labeled_images(spec: DatasetSpec, images_file: Path, labels_file: Path, count: int) -> LabeledImages:
    form = FORMS[spec.name]
    channels, height, width = spec.image_shape
    images: Pixels = read_idx(images_file, (count, height, width), form.hint)
    if form.is_transposed:
        images = np.ascontiguousarray(images.transpose(0, 2, 1))
    labels = read_idx(labels_file, (count,), form.hint).astype(np.int64)
    check_labels(labels_file, labels, spec.classes, form.hint, form.first_label)
    return LabeledImages(images.reshape(count, channels, height, width), labels - form.first_label)
