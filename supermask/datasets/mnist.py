"""`mnist`: the four original IDX files, gzip-compressed or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from supermask.datasets.facts import DatasetFacts
from supermask.datasets.idx import read_idx
from supermask.datasets.images import Decoded, Labelled
from supermask.datasets.source import DataFolder, Source, check_labels, missing

GET_IT = (
    "the four original IDX files of MNIST, from any mirror of them: torchvision's MNIST download, "
    "or https://ossci-datasets.s3.amazonaws.com/mnist/"
)
STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def find(facts: DatasetFacts, folder: DataFolder) -> Source:
    """The four files, from the first place that has them all. Raises UserError where none has."""
    places = [folder.path / inner for inner in ("mnist", "mnist/MNIST/raw", "", "MNIST/raw")]
    partly: list[str] = []
    for place in places:
        found = {stem: path for stem in STEMS if (path := _one(place, stem)) is not None}
        if len(found) == len(STEMS):
            files = tuple(found[stem] for stem in STEMS)
            return Source(files, partial(decode, facts, files))
        if found:
            partly.append(f"{place} lacks {', '.join(f'{stem}-ubyte' for stem in STEMS if stem not in found)}")
    needed = ", ".join(f"{stem}-ubyte" for stem in STEMS) + " (each plain or .gz; '.idx' may stand for '-idx')"
    raise missing(facts.name, "; ".join([needed, *partly]), places, folder, GET_IT)


def decode(facts: DatasetFacts, files: tuple[Path, ...]) -> Decoded:
    """The arrays of the four files, in the order of `STEMS`. Raises UserError for any that is damaged."""
    train_images, train_labels, test_images, test_labels = files
    return Decoded(
        _labelled(facts, train_images, train_labels, facts.training_images),
        _labelled(facts, test_images, test_labels, facts.test_images),
    )


def _one(place: Path, stem: str) -> Path | None:
    names = (stem, stem.replace("-idx", ".idx"))
    paths = (place / f"{name}-ubyte{ending}" for ending in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _labelled(facts: DatasetFacts, images_file: Path, labels_file: Path, count: int) -> Labelled:
    channels, height, width = facts.image_shape
    images = read_idx(images_file, (count, height, width), GET_IT)
    labels = read_idx(labels_file, (count,), GET_IT).astype(np.int64)
    check_labels(labels_file, labels, facts.classes, GET_IT)
    return Labelled(images.reshape(count, channels, height, width), labels)
