"""Images and labels as arrays, their fingerprint, and the validation split.

Files that a dataset comes from: where they are looked for, how they are read, and what is said when they fail.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from supermask.core.errors import SystemFailure, UserError
from supermask.core.rng import random_stream
from supermask.core.types import SplitData
from supermask.datasets.specs import DatasetSpec

Pixels = NDArray[np.uint8]
"""(images, channels, height, width), C-contiguous, as stored: 0 to `DatasetFacts.pixel_maximum`."""

Labels = NDArray[np.int64]
"""(images,), 0 to classes - 1."""

Indices = NDArray[np.int64]
"""Places in the training set, ascending."""


@dataclass(frozen=True)
class LabeledImages:
    """Images with their labels, in the order of their file."""

    images: Pixels
    labels: Labels


@dataclass(frozen=True)
class RawDataset:
    """A whole dataset as its files give it. `note` says in what it is not the original, empty where it is."""

    train: LabeledImages
    test: LabeledImages
    note: str = ""


@dataclass(frozen=True)
class ImageDataset:
    """A dataset in memory, or memory-mapped: then every process on the machine shares the same pages.

    Pixels stay uint8 and become float32 a batch at a time. Gathered with `take` (torch: `index_select`; plain indexing
    is two to five times slower) and divided, a batch of 60 took 29 us for MNIST and 87 us for CIFAR-10; gathered as
    float32, 25 us and 105 us, after 0.6 s and 1.4 s of conversion into 190 MB and 610 MB in each process.
    """

    facts: DatasetSpec
    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    fingerprint: str
    """SHA-256 (hex) of the decoded pixels, the labels and their shapes; however the files were packed."""
    note: str
    """To be shown wherever a result from this data is: in what it is not the original. Empty where it is."""

    def scaled(self, pixels: Pixels) -> NDArray[np.float32]:
        """pixels / pixel_maximum in float32, nothing else. Shape as given.

        On a GPU, divide by a *tensor*: there a division by a Python number may multiply by its rounded reciprocal.

        Source: paper.md section 2 ("divided by 255, nothing else").
        """
        return np.divide(pixels, np.float32(self.facts.max_pixel), dtype=np.float32)


def fingerprint(train: LabeledImages, test: LabeledImages) -> str:
    """SHA-256 (hex) over shape and bytes of training images, training labels, test images and test labels."""
    digest = hashlib.sha256(b"supermask dataset 1\n")
    for part in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{part.dtype.name} {part.shape}\n".encode())
        stored = part.astype(part.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(stored).reshape(-1).data)
    return digest.hexdigest()


def train_validation_split(images: ImageDataset, seed: int) -> tuple[Indices, Indices]:
    """(training, validation) indices: `validation_images` random training images are held out, by `seed` alone.

    Source: paper.md section 2 (validation set: 5,000 random images of the training set).
    """
    total, held_out = images.facts.training_images, images.facts.validation_images
    validation = np.sort(random_stream(seed, "validation").choice(total, size=held_out, replace=False, shuffle=False))
    training = np.setdiff1d(np.arange(total), validation, assume_unique=True)
    return training.astype(np.int64), validation.astype(np.int64)


DATA_VARIABLE = "SUPERMASK_DATA"


@dataclass(frozen=True)
class DataFolder:
    """The folder that holds the datasets, and how it came to be chosen (for error messages)."""

    path: Path
    origin: str


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset's files, found but not yet read."""

    files: tuple[Path, ...]
    decode: Callable[[], RawDataset]
    decoder: str = ""
    """Name and version of a library whose release may change the decoded pixels; empty where there is none."""


def data_folder(given: Path | None = None) -> DataFolder:
    """The folder given, else the environment's SUPERMASK_DATA, else `data` in the current folder."""
    if given is not None:
        return DataFolder(given, f"the data folder given: '{given}'")
    if named := os.environ.get(DATA_VARIABLE):
        return DataFolder(Path(named).expanduser(), f"the data folder is {DATA_VARIABLE}: '{named}'")
    return DataFolder(Path("data"), f"the data folder is './data', as {DATA_VARIABLE} is not set")


def not_found_error(name: str, needed: str, looked_in: Iterable[Path], folder: DataFolder, get_it: str) -> UserError:
    """The error for a dataset that was not found: what, all places, where to get it, what to set."""
    there = "" if folder.path.is_dir() else "; there is no such folder"
    places = "\n".join(f"  {place}" for place in looked_in)
    return UserError(
        f"dataset '{name}' was not found ({folder.origin}{there}).\n"
        f"Needed: {needed}.\nLooked in:\n{places}\nGet it: {get_it}.\n"
        f"Then set {DATA_VARIABLE} to the folder that holds '{name}', e.g. `export {DATA_VARIABLE}=$HOME/data`. "
        f"The dataset 'digits' needs no files."
    )


def corrupt_file_error(path: Path, what: str, get_it: str) -> UserError:
    """The error for a file that is there but cannot be used."""
    return UserError(f"{path}: {what}.\nGet it again: {get_it}.")


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Errors of the operating system while `path` is read, as UserError (ours to mend) or MachineError (the disk's)."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it must be a file that you may read.") from error
    except OSError as error:
        raise SystemFailure(
            f"{path}: reading failed ({error.strerror or error}); check the disk, then run again."
        ) from error


def check_labels(path: Path, labels: Labels, classes: int, get_it: str) -> None:
    """Raises UserError unless every label is 0 to `classes` - 1."""
    wrong = ((labels < 0) | (labels >= classes)).nonzero()[0]
    if len(wrong):
        first = int(wrong[0])
        raise corrupt_file_error(
            path, f"label {int(labels[first])} at image {first}; labels are 0 to {classes - 1}", get_it
        )


def split_data(images: ImageDataset, seed: int) -> SplitData:
    """A seed's split of a data set, for an engine."""
    training, validation = train_validation_split(images, seed)
    return SplitData(
        train_images=images.train_images,
        train_labels=images.train_labels,
        train_indices=training,
        validation_images=np.ascontiguousarray(images.train_images[validation]),
        validation_labels=images.train_labels[validation],
        test_images=images.test_images,
        test_labels=images.test_labels,
        pixel_maximum=images.facts.max_pixel,
    )
