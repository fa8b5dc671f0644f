"""What is known of each dataset without reading any file: a plan needs no data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
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
    max_pixel: int
    """The stored pixel value that becomes 1.0."""
    known_fingerprint: str | None = None
    """`Images.fingerprint` of the usual files; None where several sources in use differ."""
    is_demo: bool = False
    """Too small and too easy to say anything about the paper's networks."""


DATASETS: dict[str, DatasetSpec] = {
    facts.name: facts
    for facts in (
        DatasetSpec(
            name="digits",
            image_shape=(1, 8, 8),
            classes=10,
            training_images=1_437,
            test_images=360,
            validation_images=200,
            max_pixel=16,
            known_fingerprint="467c691fbbaa232b1b09b00b8a9d547f59dedc1adb8bf9722963fd0eedb7d216",
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
            known_fingerprint="43c37b1d5776b42b1cd65ad37a3b560fb000c585a652ddc12d9bf7b7f44b0e28",
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
"""Every dataset by its name in a study file; `digits` is the default and needs no files."""


def demo_notice(datasets: Iterable[str]) -> str:
    """What has to be said on top of results where some are of a data set for demonstration; empty where none is."""
    found = [DATASETS[name] for name in dict.fromkeys(datasets) if name in DATASETS and DATASETS[name].is_demo]
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


def data_notices(notes: Iterable[str]) -> list[str]:
    """Notes that rows have of their data (`data_note`), each as a sentence."""
    return [f"Data: {note.rstrip('.')}." for note in dict.fromkeys(notes) if note]
