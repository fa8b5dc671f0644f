"""Subsets of the training images, label noise and validation images."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from supermask.core.errors import UserError
from supermask.datasets import DatasetSpec, ImageDataset, load
from supermask.datasets.images import split_data, train_validation_split
from supermask.datasets.specs import DATASETS, DataOptions, default_validation_images

pytestmark = pytest.mark.usefixtures("folder")


def options_dataset() -> ImageDataset:
    return load("digits")


def test_the_default_options_change_nothing() -> None:
    images = options_dataset()
    for seed in (0, 1):
        plain, given = train_validation_split(images, seed), train_validation_split(images, seed, DataOptions())
        assert [part.tolist() for part in plain] == [part.tolist() for part in given]
        assert split_data(images, seed).train_labels is images.train_labels


def test_training_subsets_are_nested_seeded_and_leave_validation_alone() -> None:
    images = options_dataset()
    validation = train_validation_split(images, 3)[1].tolist()
    before: set[int] = set()
    for count in (1, 10, 100, 1236):
        training, held_out = train_validation_split(images, 3, DataOptions(train_images=count))
        assert len(training) == count and training.tolist() == sorted(training.tolist())
        assert held_out.tolist() == validation
        assert before <= set(training.tolist()) and not set(training.tolist()) & set(validation)
        before = set(training.tolist())
    other = train_validation_split(images, 4, DataOptions(train_images=100))[0]
    assert set(other.tolist()) != set(train_validation_split(images, 3, DataOptions(train_images=100))[0].tolist())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_label_noise_replaces_exactly_its_share_by_other_classes(share: float) -> None:
    images = options_dataset()
    data = split_data(images, 2, DataOptions(label_noise=share))
    changed = np.flatnonzero(data.train_labels != images.train_labels)
    assert len(changed) == round(share * len(data.train_indices))
    assert set(changed.tolist()) <= set(data.train_indices.tolist())
    assert data.train_labels.min() >= 0 and data.train_labels.max() <= 9
    assert data.validation_labels.tolist() == split_data(images, 2).validation_labels.tolist()
    assert data.test_labels is images.test_labels


def test_less_noise_is_a_part_of_more_noise_and_depends_on_the_seed() -> None:
    images = options_dataset()

    def noisy(share: float, seed: int = 0, **more: Any) -> dict[int, int]:
        labels = split_data(images, seed, DataOptions(label_noise=share, **more)).train_labels
        return {int(i): int(labels[i]) for i in np.flatnonzero(labels != images.train_labels)}

    assert noisy(0.2).items() <= noisy(0.4).items()
    assert noisy(0.2) != noisy(0.2, seed=1)
    assert len(noisy(0.25, train_images=100)) == 25


def test_the_classes_of_noise_are_uniform() -> None:
    images = options_dataset()
    counts = np.zeros((10, 10), int)
    for seed in range(20):
        labels = split_data(images, seed, DataOptions(label_noise=0.9)).train_labels
        np.add.at(counts, (images.train_labels, labels), 1)
    off_diagonal = counts[~np.eye(10, dtype=bool)]
    assert abs(off_diagonal / off_diagonal.mean() - 1).max() < 0.25


def test_more_or_fewer_images_are_held_out() -> None:
    images = options_dataset()
    data = split_data(images, 0, DataOptions(validation=37))
    assert (len(data.validation_labels), len(data.train_indices)) == (37, 1400)


@pytest.mark.parametrize(
    ("training", "held_out"), [(2, 1), (9, 1), (40, 4), (49_999, 4_999), (50_000, 5_000), (10**6, 5_000)]
)
def test_a_tenth_is_held_out_of_small_datasets(training: int, held_out: int) -> None:
    assert default_validation_images(training) == held_out


def test_options_without_effect_are_left_out() -> None:
    digits = DATASETS["digits"]
    assert DataOptions(1237, 0.0, 200).resolve(digits) == DataOptions()
    assert DataOptions(1200, 0.1, 100).resolve(digits) == DataOptions(1200, 0.1, 100)
    assert DataOptions().to_data() == {}
    options = DataOptions(5, 0.25, 7)
    assert DataOptions.from_data(options.to_data()) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            DataOptions(train_images=1238),
            "1,238 is more than the 1,237 training images of digits that 200",
        ),
        (DataOptions(train_images=1238, validation=300), "give at most 1,137"),
        (DataOptions(validation=1437), "validation: 1,437 leaves no image to train on: digits has 1,437"),
    ],
)
def test_more_images_than_there_are_are_refused(options: DataOptions, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        options.resolve(DATASETS["digits"])


def test_a_specification_survives_its_data_and_nothing_else_does() -> None:
    spec = DatasetSpec("npz:a", (3, 6, 5), 3, 60, 12, 6, 255)
    data = spec.to_data()
    assert DatasetSpec.from_data("npz:a", data) == spec
    for key, value in [
        ("image_shape", [3, 6]),
        ("image_shape", [0, 6, 5]),
        ("image_shape", [3, 10**6, 5]),
        ("classes", 10**9),
        ("classes", True),
        ("training_images", -1),
        ("validation_images", 60),
        ("max_pixel", 256),
        ("test_images", "12"),
    ]:
        with pytest.raises(ValueError, match="specification"):
            DatasetSpec.from_data("npz:a", {**data, key: value})
    with pytest.raises(ValueError, match="specification"):
        DatasetSpec.from_data("npz:a", None)
