"""Specifications of the datasets: shapes, counts and fingerprints, known without reading a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from supermask.core.errors import UserError, quote


@dataclass(frozen=True)
class DatasetSpec:
    """Specification of a dataset. Counts are numbers of images."""

    name: str
    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    classes: int
    training_images: int
    """The whole training set, validation images included."""
    test_images: int
    validation_images: int
    """Number of training images held out for validation. Source: Zhou et al. 2019, Table S1 (5,000)."""
    max_pixel: int
    """The stored pixel value that becomes 1.0."""
    published_fingerprint: str | None = None
    """`ImageDataset.fingerprint` of the published files; None if it is not pinned, and the format of the files decides
    (`DatasetFiles.is_original`)."""
    is_demo: bool = False
    """True for a dataset that is too small and too easy to say anything about the paper's networks."""

    def to_data(self) -> dict[str, Any]:
        """Return the specification of a user's own data as a JSON-serializable dict: all that its readers need."""
        return {
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "training_images": self.training_images,
            "test_images": self.test_images,
            "validation_images": self.validation_images,
            "max_pixel": self.max_pixel,
        }

    @classmethod
    def from_data(cls, name: str, data: object) -> DatasetSpec:
        """Return the specification of a `to_data` dict, which is not trusted. Raises ValueError for anything else."""
        keys = data if isinstance(data, Mapping) else {}
        shape = keys.get("image_shape")
        numbers = [*(shape if isinstance(shape, list | tuple) else ()), *(keys.get(key) for key in _COUNT_LIMITS)]
        limits = [MAX_CHANNELS, MAX_SIDE, MAX_SIDE, *_COUNT_LIMITS.values()]
        if len(numbers) != len(limits) or not all(
            type(number) is int and 1 <= number <= limit for number, limit in zip(numbers, limits, strict=True)
        ):
            raise ValueError(f"{quote(data)} is not the specification of a dataset")
        spec = cls(name, (numbers[0], numbers[1], numbers[2]), *numbers[3:])
        if spec.validation_images >= spec.training_images:
            raise ValueError("a specification without training images")
        return spec


MAX_CHANNELS = 64
MAX_SIDE = 4096
"""Pixels."""
MAX_CLASSES = 100_000
MAX_IMAGES = 2**31 - 1
_COUNT_LIMITS = {
    "classes": MAX_CLASSES,
    "training_images": MAX_IMAGES,
    "test_images": MAX_IMAGES,
    "validation_images": MAX_IMAGES,
    "max_pixel": 255,
}


def default_validation_images(training_images: int) -> int:
    """Return the validation images of a dataset for which nothing else is said.

    The paper's 5,000; a tenth of the training images, at least 1, where there are fewer than 50,000.
    """
    return 5_000 if training_images >= 50_000 else max(1, training_images // 10)


@dataclass(frozen=True)
class DataOptions:
    """Settings of a study that change the data of its runs. The defaults change nothing."""

    train_images: int | None = None
    """Images to train on, a random subset per seed; None for all that validation leaves."""
    label_noise: float = 0.0
    """Share of the training labels that are replaced by another class, at random per seed."""
    validation: int | None = None
    """Images held out for validation; None for the dataset's own number."""

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict without defaults: the part of a run's id."""
        data = {"train_images": self.train_images, "label_noise": self.label_noise, "validation": self.validation}
        return {key: value for key, value in data.items() if value}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> DataOptions:
        """Return the options of a `to_data` dict."""
        return cls(**data)

    def resolve(self, spec: DatasetSpec) -> DataOptions:
        """Return the options without those that ask for what the dataset has anyway, so that equal runs have one id.

        Raises UserError if there are not as many images.
        """
        held_out = spec.validation_images if self.validation is None else self.validation
        available = spec.training_images - held_out
        if available < 1:
            raise UserError(
                f"validation: {held_out:,} leaves no image to train on: {spec.name} has {spec.training_images:,} "
                "training images; hold out fewer."
            )
        if self.train_images is not None and self.train_images > available:
            raise UserError(
                f"train_images: {self.train_images:,} is more than the {available:,} training images of {spec.name} "
                f"that {held_out:,} validation images leave; give at most {available:,}."
            )
        return replace(
            self,
            validation=None if held_out == spec.validation_images else held_out,
            train_images=None if self.train_images == available else self.train_images,
        )

    def num_training(self, spec: DatasetSpec) -> int:
        """Return the number of images that a run is trained on."""
        return self.train_images or spec.training_images - self.num_validation(spec)

    def num_validation(self, spec: DatasetSpec) -> int:
        """Return the number of images that are held out for validation."""
        return self.validation or spec.validation_images


DEFAULT_OPTIONS = DataOptions()
"""Options that change nothing."""

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            image_shape=(1, 8, 8),
            classes=10,
            training_images=1_437,
            test_images=360,
            validation_images=200,
            max_pixel=16,
            published_fingerprint="467c691fbbaa232b1b09b00b8a9d547f59dedc1adb8bf9722963fd0eedb7d216",
            is_demo=True,
        ),
        DatasetSpec(
            name="mnist",
            image_shape=(1, 28, 28),
            classes=10,
            training_images=60_000,
            test_images=10_000,
            validation_images=5_000,
            max_pixel=255,
            published_fingerprint="43c37b1d5776b42b1cd65ad37a3b560fb000c585a652ddc12d9bf7b7f44b0e28",
        ),
        *(
            DatasetSpec(name, shape, classes, training, test, validation_images=5_000, max_pixel=255)
            for name, shape, classes, training, test in (
                ("cifar10", (3, 32, 32), 10, 50_000, 10_000),
                ("cifar100", (3, 32, 32), 100, 50_000, 10_000),
                ("fashion-mnist", (1, 28, 28), 10, 60_000, 10_000),
                ("kmnist", (1, 28, 28), 10, 60_000, 10_000),
                ("emnist-letters", (1, 28, 28), 26, 124_800, 20_800),
                ("emnist-balanced", (1, 28, 28), 47, 112_800, 18_800),
                ("svhn", (3, 32, 32), 10, 73_257, 26_032),
            )
        ),
    )
}
"""Specification by the name used in study files. `digits` is the default and needs no files."""


@lru_cache(maxsize=256)
def dataset_spec(name: str, user_spec: DatasetSpec | None = None) -> DatasetSpec:
    """Return the specification of a dataset: of a known name, or `user_spec`, read from a user's own data.

    Raises UserError if the name is not known and there is no `user_spec`.
    """
    spec = DATASETS.get(name, user_spec)
    if spec is None:
        raise UserError(
            f"dataset {quote(name)} is not known, and its data have not been read (known: {', '.join(DATASETS)})."
        )
    return spec


@lru_cache(maxsize=256)
def effective_spec(spec: DatasetSpec, options: DataOptions) -> DatasetSpec:
    """Return the specification with the number of validation images that the options ask for."""
    return spec if options.validation is None else replace(spec, validation_images=options.validation)


def is_demonstration(dataset: str) -> bool:
    """True for a demonstration dataset. No verdict is given on it anywhere: this is the one place that decides."""
    return dataset in DATASETS and DATASETS[dataset].is_demo


def demo_notice(datasets: Iterable[str]) -> str:
    """Return the notice for results of which some are on a demonstration dataset; empty if none is."""
    demos = [DATASETS[name] for name in dict.fromkeys(datasets) if is_demonstration(name)]
    if not demos:
        return ""
    descriptions = []
    for spec in demos:
        images = spec.training_images + spec.test_images
        descriptions.append(f"{images:,} images of {spec.image_shape[1]}x{spec.image_shape[2]} pixels ({spec.name})")
    return (
        f"A demonstration, on {' and '.join(descriptions)}: it shows everything at work and gives no verdict, "
        "because it says nothing about the paper's networks. supermask reproduce --scale laptop or --scale paper does."
    )


def data_notices(notes: Iterable[str]) -> list[str]:
    """Return each distinct `data_note` of a table's rows as a sentence."""
    return [f"Data: {note.rstrip('.')}." for note in dict.fromkeys(notes) if note]
