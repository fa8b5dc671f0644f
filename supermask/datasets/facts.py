"""What is known of each dataset without reading any file: a plan needs no data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetFacts:
    """The fixed facts of a dataset. Counts are images."""

    name: str
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    classes: int
    training_images: int
    """The whole training set, validation images included."""
    test_images: int
    validation_images: int
    """How many training images are held out for validation. Source: paper.md section 2 (5,000)."""
    pixel_maximum: int
    """The stored pixel value that becomes 1.0."""
    known_fingerprint: str | None = None
    """`Images.fingerprint` of the usual files; None where several sources in use differ."""
    demonstration: bool = False
    """Too small and too easy to say anything about the paper's networks."""


DATASETS: dict[str, DatasetFacts] = {
    facts.name: facts
    for facts in (
        DatasetFacts(
            name="digits",
            image_shape=(1, 8, 8),
            classes=10,
            training_images=1_437,
            test_images=360,
            validation_images=200,
            pixel_maximum=16,
            known_fingerprint="467c691fbbaa232b1b09b00b8a9d547f59dedc1adb8bf9722963fd0eedb7d216",
            demonstration=True,
        ),
        DatasetFacts(
            name="mnist",
            image_shape=(1, 28, 28),
            classes=10,
            training_images=60_000,
            test_images=10_000,
            validation_images=5_000,
            pixel_maximum=255,
            known_fingerprint="43c37b1d5776b42b1cd65ad37a3b560fb000c585a652ddc12d9bf7b7f44b0e28",
        ),
        DatasetFacts(
            name="cifar10",
            image_shape=(3, 32, 32),
            classes=10,
            training_images=50_000,
            test_images=10_000,
            validation_images=5_000,
            pixel_maximum=255,
        ),
    )
}
"""Every dataset by its name in a study file; `digits` is the default and needs no files."""


def demonstration(datasets: Iterable[str]) -> str:
    """What has to be said on top of results where some are of a data set for demonstration; empty where none is."""
    found = [DATASETS[name] for name in dict.fromkeys(datasets) if name in DATASETS and DATASETS[name].demonstration]
    told = []
    for facts in found:
        images = facts.training_images + facts.test_images
        told.append(f"{images:,} images of {facts.image_shape[1]}x{facts.image_shape[2]} pixels ({facts.name})")
    if not told:
        return ""
    return (
        f"A demonstration, on {' and '.join(told)}: its verdicts say nothing about the paper's networks. "
        "supermask reproduce --scale laptop, or --scale paper, does."
    )


def data_texts(notes: Iterable[str]) -> list[str]:
    """Notes that rows have of their data (`data_note`), each as a sentence."""
    return [f"Data: {note.rstrip('.')}." for note in dict.fromkeys(notes) if note]
