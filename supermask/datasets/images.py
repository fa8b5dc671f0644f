"""Images and labels as arrays: fingerprint, validation split, and the errors of the files that they come from."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.environment import expand_path
from supermask.core.errors import SystemFailure, UserError
from supermask.core.rng import random_stream
from supermask.core.types import SplitData
from supermask.datasets.specs import DEFAULT_OPTIONS, DataOptions, DatasetSpec

Pixels = NDArray[np.uint8]
"""(images, channels, height, width), C-contiguous, as stored: 0 to `DatasetSpec.max_pixel`."""

Labels = NDArray[np.int64]
"""(images,), 0 to classes - 1."""

Indices = NDArray[np.int64]
"""(images,), indices into the training set, ascending."""


@dataclass(frozen=True)
class LabeledImages:
    """Images with their labels, in the order of their file."""

    images: Pixels
    labels: Labels


@dataclass(frozen=True)
class RawDataset:
    """A whole dataset as decoded from its files."""

    train: LabeledImages
    test: LabeledImages
    note: str = ""
    """Difference from the published dataset; empty if there is none."""


@dataclass(frozen=True)
class ArrayShapes:
    """Shapes of the arrays of a dataset."""

    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    training_images: int
    test_images: int

    @classmethod
    def from_spec(cls, spec: DatasetSpec) -> ArrayShapes:
        """Return the shapes that a dataset's specification promises."""
        return cls(spec.image_shape, spec.training_images, spec.test_images)

    @property
    def sizes(self) -> list[int]:
        """Bytes of training labels, test labels, training images, test images."""
        pixels = int(np.prod(self.image_shape, dtype=np.int64))
        counts = (self.training_images, self.test_images)
        return [8 * count for count in counts] + [pixels * count for count in counts]

    def views(self, buffer: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[LabeledImages, LabeledImages]:
        """Return the arrays (train, test) in a buffer of at least `sum(sizes)` bytes: no copy, if little-endian."""
        bounds = np.cumsum([0, *self.sizes])
        parts = [np.asarray(buffer[start:end]) for start, end in itertools.pairwise(bounds)]
        train_labels, test_labels = (part.view("<i8").astype(np.int64, copy=False) for part in parts[:2])
        train_images, test_images = (part.reshape(-1, *self.image_shape) for part in parts[2:])
        return LabeledImages(train_images, train_labels), LabeledImages(test_images, test_labels)


Allocate = Callable[[ArrayShapes], tuple[LabeledImages, LabeledImages]]
"""Function that returns arrays of these shapes (train, test) to decode into: in memory, or mapped from a file."""


def allocate_in_memory(shapes: ArrayShapes) -> tuple[LabeledImages, LabeledImages]:
    """Return arrays in the memory of this process."""
    return shapes.views(np.zeros(sum(shapes.sizes), np.uint8))


@dataclass(frozen=True)
class ImageDataset:
    """A dataset in memory, or memory-mapped; all processes of a machine share the pages of a mapped one.

    Pixels stay uint8 and are converted to float32 per batch. Gathered with `take` (in torch: `index_select`; plain
    indexing takes two to five times as long) and divided, a batch of 60 took 29 us for MNIST and 87 us for CIFAR-10.
    Gathered as float32 it took 25 us and 105 us, after a conversion of 0.6 s and 1.4 s into 190 MB and 610 MB per
    process.
    """

    facts: DatasetSpec
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    fingerprint: str
    """SHA-256 (hex) of the decoded pixels, the labels and their shapes; independent of how the files are packed."""
    note: str
    """Difference from the published dataset, to be shown with every result; empty if there is none."""
    is_published: bool = True

    @property
    def run_fingerprint(self) -> str | None:
        """The fingerprint as a run's id contains it: None for the published dataset, so that its ids stay."""
        return None if self.is_published else self.fingerprint

    def scale(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return pixels / max_pixel as float32, in the same shape.

        On a GPU, divide by a *tensor*: a division by a Python number may multiply by its rounded reciprocal.
        The mean is not subtracted: always-black pixels must stay exactly 0, so that their weights never move.

        Source: Zhou et al. 2019, Table S1.
        """
        return np.divide(pixels, np.float32(self.facts.max_pixel), dtype=np.float32)


def fingerprint(train: LabeledImages, test: LabeledImages) -> str:
    """Return the SHA-256 (hex) over shape and bytes of training images, training labels, test images, test labels."""
    digest = hashlib.sha256(b"supermask dataset 1\n")
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{array.dtype.name} {array.shape}\n".encode())
        # Little-endian on every machine, so that the same data has the same fingerprint everywhere.
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little_endian).reshape(-1).data)
    return digest.hexdigest()


def train_validation_split(
    images: ImageDataset, seed: int, options: DataOptions = DEFAULT_OPTIONS
) -> tuple[Indices, Indices]:
    """Return (training, validation) indices; `validation_images` random training images are held out per seed.

    The split depends on the counts and on `seed` alone, not on the images. With `train_images` N, the training indices
    are the first N of a random order of the images that validation leaves: a subset of those for any larger N.

    Source: Zhou et al. 2019, Table S1 (validation set: 5,000 random images of the training set).
    Differs from the paper: the authors' code holds out the same 5,000 images for all seeds.
    """
    total, held_out = images.facts.training_images, options.num_validation(images.facts)
    validation = np.sort(random_stream(seed, "validation").choice(total, size=held_out, replace=False, shuffle=False))
    training = np.setdiff1d(np.arange(total), validation, assume_unique=True)
    if options.train_images is not None:
        training = np.sort(random_stream(seed, "training subset").permutation(training)[: options.train_images])
    return training.astype(np.int64), validation.astype(np.int64)


def noisy_labels(labels: Labels, training: Indices, classes: int, share: float, seed: int) -> Labels:
    """Return a copy of the labels in which a share of those at `training` is replaced by another class at random.

    The number of replaced labels is exactly round(share * len(training)). Which they are and by which class they are
    replaced depends on the seed alone: those of a smaller share are among those of a larger one.
    """
    stream = random_stream(seed, "label noise")
    order, offsets = stream.permutation(len(labels)), stream.integers(1, classes, len(labels))
    affected = order[np.isin(order, training)][: round(share * len(training))]
    noisy = labels.copy()
    noisy[affected] = (labels[affected] + offsets[affected]) % classes
    return noisy


def split_data(images: ImageDataset, seed: int, options: DataOptions = DEFAULT_OPTIONS) -> SplitData:
    """Return a seed's training, validation and test data, as an engine takes them.

    Label noise concerns the images that are trained on. The labels of validation and test images stay as they are, so
    that early stopping and all accuracies are measured against the true classes.
    """
    training, validation = train_validation_split(images, seed, options)
    train_labels = images.train_labels
    if options.label_noise:
        train_labels = noisy_labels(train_labels, training, images.facts.classes, options.label_noise, seed)
    return SplitData(
        train_images=images.train_images,
        train_labels=train_labels,
        train_indices=training,
        validation_images=np.ascontiguousarray(images.train_images[validation]),
        validation_labels=images.train_labels[validation],
        test_images=images.test_images,
        test_labels=images.test_labels,
        max_pixel=images.facts.max_pixel,
    )


DATA_VARIABLE = "SUPERMASK_DATA"


@dataclass(frozen=True)
class DataFolder:
    """The folder that holds the datasets, and the reason for its choice, for error messages."""

    path: Path
    origin: str


@dataclass(frozen=True)
class DatasetFiles:
    """Files of a dataset, located but not yet read."""

    files: tuple[Path, ...]
    decode: Callable[[Allocate], RawDataset]
    """Returns the arrays; a large dataset is decoded into the arrays that its argument allocates."""
    decoder: str = ""
    """Name and version of a library of which another release may decode other pixels; empty if there is none."""
    is_original: bool = True
    """False for a form in which others redistribute the dataset, with possibly other images or another order."""
    is_many: bool = False
    """True for so many files that names, sizes and times stand for their content in the cache's key."""
    describe: Callable[[], str] | None = None
    """Returns which parts of the files were taken for images and labels; None if there is no choice."""


def data_folder(path: Path | None = None) -> DataFolder:
    """Return `path` if it is given, else the folder in SUPERMASK_DATA, else `data` in the current folder."""
    if path is not None:
        return DataFolder(path, f"the data folder given: '{path}'")
    if value := os.environ.get(DATA_VARIABLE):
        return DataFolder(expand_path(value), f"the data folder is {DATA_VARIABLE}: '{value}'")
    return DataFolder(Path("data"), f"the data folder is './data', as {DATA_VARIABLE} is not set")


def not_found_error(
    name: str, needed: str, searched: Iterable[Path], folder: DataFolder, download_hint: str
) -> UserError:
    """Return the error for a missing dataset: the files needed, the places searched, the source, the setting."""
    missing = "" if folder.path.is_dir() else "; there is no such folder"
    places = "\n".join(f"  {place}" for place in searched)
    return UserError(
        f"dataset '{name}' was not found ({folder.origin}{missing}).\n"
        f"Needed: {needed}.\nLooked in:\n{places}\nGet it: {download_hint}.\n"
        f"Then set {DATA_VARIABLE} to the folder that holds '{name}', e.g. `export {DATA_VARIABLE}=$HOME/data`. "
        f"The dataset 'digits' needs no files."
    )


def corrupt_file_error(path: Path, reason: str, download_hint: str) -> UserError:
    """Return the error for a file that exists but cannot be used."""
    return UserError(f"{path}: {reason}.\nGet it again: {download_hint}.")


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Translate the errors of reading `path`: UserError if the user can fix them, SystemFailure for a failing disk."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must be a file that you may read.") from error
    except OSError as error:
        raise SystemFailure(
            f"{path}: reading failed ({error.strerror or error}); check the disk, then run again."
        ) from error


def check_labels(path: Path, labels: Labels, classes: int, download_hint: str, first_label: int = 0) -> None:
    """Raise UserError unless every label, as stored in the file, is one of the `classes` labels from `first_label`."""
    last_label = first_label + classes - 1
    invalid = ((labels < first_label) | (labels > last_label)).nonzero()[0]
    if len(invalid):
        first = int(invalid[0])
        reason = f"label {int(labels[first])} at image {first}; labels are {first_label} to {last_label}"
        raise corrupt_file_error(path, reason, download_hint)
