"""`digits`: 1,797 images of 8x8 pixels that come with scikit-learn; the default dataset, which needs no files."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path

import numpy as np

from supermask.core.rng import random_stream
from supermask.datasets.images import LabeledImages, Labels, Pixels, RawDataset
from supermask.datasets.specs import DatasetSpec


def decode(spec: DatasetSpec) -> RawDataset:
    """Return the images, split into training and test set by one fixed permutation (there is no official split)."""
    images, labels = _load_sklearn_digits()
    order = random_stream("digits", "test split").permutation(len(images))
    test, train = np.sort(order[: spec.test_images]), np.sort(order[spec.test_images :])
    return RawDataset(LabeledImages(images[train], labels[train]), LabeledImages(images[test], labels[test]))


def _load_sklearn_digits() -> tuple[Pixels, Labels]:
    table = _read_csv()
    if table is None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.images.astype(np.uint8).reshape(-1, 1, 8, 8), bunch.target.astype(np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)


@cache
def _read_csv() -> np.ndarray[tuple[int, int], np.dtype[np.int64]] | None:
    """Read scikit-learn's file, (images, 64 pixels + label), without importing sklearn, which takes over a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="ascii") as file:
        numbers = np.array(file.read().replace("\n", ",").rstrip(",").split(","), dtype=np.int64)
    return numbers.reshape(-1, 65)
