"""The real MNIST and CIFAR-10 from SUPERMASK_DATA against facts that others have published."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import numpy as np
import pytest

from supermask.core.errors import UserError
from supermask.datasets import DATASETS, ImageDataset, load, mnist, train_validation_split
from supermask.datasets.images import data_folder
from supermask.datasets.mnist import read_idx

pytestmark = pytest.mark.skipif(not os.environ.get("SUPERMASK_DATA"), reason="SUPERMASK_DATA is not set")


def load_or_skip(name: str) -> ImageDataset:
    try:
        return load(name)
    except UserError as error:
        if "was not found" in str(error):
            pytest.skip(f"no {name} under SUPERMASK_DATA")
        raise


@pytest.fixture(scope="module")
def mnist_images() -> Iterator[ImageDataset]:
    yield load_or_skip("mnist")


@pytest.fixture(scope="module")
def cifar() -> Iterator[ImageDataset]:
    yield load_or_skip("cifar10")


def test_mnist_training_images_equal_the_original_file(mnist_images: ImageDataset) -> None:
    path = mnist.find(DATASETS["mnist"], data_folder()).files[0]
    pixels = read_idx(path, (60_000, 28, 28), "")
    header = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")
    digest = hashlib.md5(header + pixels.tobytes(), usedforsecurity=False).hexdigest()
    assert digest == "6bbc9ace898e44ae57da46a324031adb"
    np.testing.assert_array_equal(mnist_images.train_images[:, 0], pixels)
    assert mnist_images.note == ""


def test_mnist_counts(mnist_images: ImageDataset) -> None:
    assert mnist_images.train_images.shape == (60_000, 1, 28, 28)
    assert mnist_images.test_images.shape == (10_000, 1, 28, 28)
    train, test = np.bincount(mnist_images.train_labels), np.bincount(mnist_images.test_labels)
    assert train.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_67_pixels_are_black_in_all_training_images(mnist_images: ImageDataset) -> None:
    """These are the 20,100 first-layer weights of FC that never move."""
    assert int((mnist_images.train_images.max(axis=0) == 0).sum()) == 67


def test_mnist_validation_split(mnist_images: ImageDataset) -> None:
    training, validation = train_validation_split(mnist_images, 0)
    assert (len(training), len(validation)) == (55_000, 5_000)
    assert len(np.union1d(training, validation)) == 60_000


def test_cifar10_counts(cifar: ImageDataset) -> None:
    assert cifar.train_images.shape == (50_000, 3, 32, 32)
    assert cifar.test_images.shape == (10_000, 3, 32, 32)
    assert np.bincount(cifar.train_labels).tolist() == [5_000] * 10
    assert np.bincount(cifar.test_labels).tolist() == [1_000] * 10


def test_cifar10_channels_are_red_green_blue(cifar: ImageDataset) -> None:
    """Published channel means of the training set: 0.4914, 0.4822, 0.4465; JPEG changes them by far less than 0.002."""
    means = cifar.train_images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.002)
