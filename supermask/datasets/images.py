"""Images and labels as arrays, their fingerprint, and the validation split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supermask.datasets.facts import DatasetFacts
from supermask.rng import stream

Pixels = NDArray[np.uint8]
"""(images, channels, height, width), C-contiguous, as stored: 0 to `DatasetFacts.pixel_maximum`."""

Labels = NDArray[np.int64]
"""(images,), 0 to classes - 1."""

Indices = NDArray[np.int64]
"""Places in the training set, ascending."""


@dataclass(frozen=True)
class Labelled:
    """Images with their labels, in the order of their file."""

    images: Pixels
    labels: Labels


@dataclass(frozen=True)
class Decoded:
    """A whole dataset as its files give it. `note` says in what it is not the original, empty where it is."""

    train: Labelled
    test: Labelled
    note: str = ""


@dataclass(frozen=True)
class Images:
    """A dataset in memory, or memory-mapped: then every process on the machine shares the same pages.

    Pixels stay uint8 and become float32 a batch at a time. Gathered with `take` (torch: `index_select`; plain indexing
    is two to five times slower) and divided, a batch of 60 took 29 us for MNIST and 87 us for CIFAR-10; gathered as
    float32, 25 us and 105 us, after 0.6 s and 1.4 s of conversion into 190 MB and 610 MB in each process.
    """

    facts: DatasetFacts
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
        return np.divide(pixels, np.float32(self.facts.pixel_maximum), dtype=np.float32)


def fingerprint(train: Labelled, test: Labelled) -> str:
    """SHA-256 (hex) over shape and bytes of training images, training labels, test images and test labels."""
    digest = hashlib.sha256(b"supermask dataset 1\n")
    for part in (train.images, train.labels, test.images, test.labels):
        digest.update(f"{part.dtype.name} {part.shape}\n".encode())
        stored = part.astype(part.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(stored).reshape(-1).data)
    return digest.hexdigest()


def split(images: Images, seed: int) -> tuple[Indices, Indices]:
    """(training, validation) indices: `validation_images` random training images are held out, by `seed` alone.

    Source: paper.md section 2 (validation set: 5,000 random images of the training set).
    """
    total, held_out = images.facts.training_images, images.facts.validation_images
    validation = np.sort(stream(seed, "validation").choice(total, size=held_out, replace=False, shuffle=False))
    training = np.setdiff1d(np.arange(total), validation, assume_unique=True)
    return training.astype(np.int64), validation.astype(np.int64)
