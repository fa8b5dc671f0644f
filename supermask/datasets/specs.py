"""Specifications of the datasets: shapes, counts and fingerprints, known without reading a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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
        DatasetSpec(
            name="cifar10",
            image_shape=(3, 32, 32),
            classes=10,
            training_images=50_000,
            test_images=10_000,
            validation_images=5_000,
            max_pixel=255,
        ),
    )
}
"""Specification by the name used in study files. `digits` is the default and needs no files."""


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
