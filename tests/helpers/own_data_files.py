"""A user's own data in every form, and the message of data that is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.own_data import (
    Arrays,
    own_arrays,
    write_idx,
    write_images,
    write_npz,
    write_parquet,
)
from supermask.core.errors import UserError
from supermask.datasets import ImageDataset, load


def assert_arrays(images: ImageDataset, arrays: Arrays) -> None:
    """Compare with arrays of shape (images, height, width[, channels])."""
    for actual, name in ((images.train_images, "x_train"), (images.test_images, "x_test")):
        wanted = arrays[name]
        wanted = wanted[:, None] if wanted.ndim == 3 else wanted.transpose(0, 3, 1, 2)
        assert actual.dtype == np.uint8 and actual.flags.c_contiguous
        np.testing.assert_array_equal(actual, wanted)
    for actual, name in ((images.train_labels, "y_train"), (images.test_labels, "y_test")):
        assert actual.dtype == np.int64
        np.testing.assert_array_equal(actual, arrays[name])


def refusal(locator: str) -> str:
    with pytest.raises(UserError) as caught:
        load(locator)
    text = str(caught.value)
    assert "Traceback" not in text
    assert not list(Path(os.environ["SUPERMASK_CACHE"]).rglob("own-*")), "nothing half-decoded is kept"
    return text


GREY = own_arrays(shape=(6, 5))
COLOR = own_arrays()


def as_npz(folder: Path, arrays: Arrays) -> str:
    write_npz(folder / "own.npz", **arrays)
    return "npz:own.npz"


def as_idx(folder: Path, arrays: Arrays) -> str:
    write_idx(folder / "own", arrays)
    return "idx:own"


def as_parquet(folder: Path, arrays: Arrays) -> str:
    half = len(arrays["y_train"]) // 2
    for number, part in enumerate((slice(None, half), slice(half, None))):
        path = folder / "own" / f"train-{number:05}-of-00002.parquet"
        write_parquet(path, arrays["x_train"][part], arrays["y_train"][part])
    write_parquet(folder / "own" / "test-00000-of-00001.parquet", arrays["x_test"], arrays["y_test"])
    return "parquet:own"


def as_images(folder: Path, arrays: Arrays) -> str:
    write_images(folder / "own", arrays)
    return "images:own"


def is_mapped(array: Any) -> bool:
    return isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and is_mapped(array.base))


def refusal_of_cached(locator: str) -> str:
    with pytest.raises(UserError) as caught:
        load(locator)
    return str(caught.value)
