"""Data that a user's function returns: arrays, or a pair of PyTorch datasets, which are read once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.errors import SystemFailure, UserError, quote
from supermask.datasets.arrays import (
    IMAGE_FORMS,
    LABEL_FORM,
    MakeError,
    find_arrays,
    image_layout,
    to_labels,
    to_pixels,
)
from supermask.datasets.conversion import color_hint, one_line, to_array
from supermask.datasets.images import LabeledImages, RawDataset
from supermask.datasets.progress import report_progress
from supermask.datasets.specs import MAX_IMAGES

EXPECTED = (
    "expected (x_train, y_train, x_test, y_test), ((x_train, y_train), (x_test, y_test)), a dict of these four arrays, "
    "or a pair of datasets (train, test) whose items are (image, label)"
)
_PROGRESS_ITEMS = 256
_TRAIN_PARTS = {"train", "training"}
"""Names of the training part in dicts of parts, as Hugging Face's `load_dataset` returns them."""


def dataset_from_objects(value: Any, make_error: MakeError) -> RawDataset:
    """Return the arrays of what the function returned. Raises UserError for anything else."""
    try:
        return _read_objects(value, make_error)
    except (UserError, SystemFailure):
        raise
    except (Exception, SystemExit) as error:  # Methods of the user's objects may raise anything.
        raise make_error(f"what the function returned cannot be read ({one_line(error)}); {EXPECTED}") from error


def _read_objects(value: Any, make_error: MakeError) -> RawDataset:
    if isinstance(value, Mapping):
        if set(value) & _TRAIN_PARTS and not any(str(name).lower().endswith(("_train", "_test")) for name in value):
            listed = ", ".join(quote(name) for name in list(value)[:10])
            raise make_error(
                f"the function returned a dict of the parts {listed}; return two of them as lists of pairs, such as "
                "tuple([(row['image'], row['label']) for row in parts[name]] for name in ('train', 'test'))"
            )
        roles = find_arrays([str(name) for name in value], make_error)
        arrays = {str(name): array for name, array in value.items()}
        items = [arrays[roles[role]] for role in ("train_images", "train_labels", "test_images", "test_labels")]
    elif isinstance(value, tuple | list) and len(value) == 4:
        items = list(value)
    elif isinstance(value, tuple | list) and len(value) == 2 and all(_is_pair(part) for part in value):
        items = [array for part in value for array in part]
    elif isinstance(value, tuple | list) and len(value) == 2 and all(_is_dataset(part) for part in value):
        items = [
            array
            for part, what in zip(value, ("training", "test"), strict=True)
            for array in _read(part, what, make_error)
        ]
    else:
        kinds = [type(part).__name__ for part in value] if isinstance(value, tuple | list) else type(value).__name__
        raise make_error(f"the function returned {kinds}; {EXPECTED}")
    train, test = _labeled(items[0], items[1], "training", make_error), _labeled(items[2], items[3], "test", make_error)
    if train.images.shape[1:] != test.images.shape[1:]:
        shapes = " and ".join(str(part.images.shape[1:]) for part in (train, test))
        raise make_error(f"training and test images differ in (channels, height, width): {shapes}")
    return RawDataset(train, test)


def _labeled(images: Any, labels: Any, what: str, make_error: MakeError) -> LabeledImages:
    name = f"the array of {what} images"
    array = to_array(images, name, f"expected {IMAGE_FORMS}", make_error)
    *_, channels_last = image_layout(array.shape, array.dtype, name, make_error)
    pixels = np.ascontiguousarray(to_pixels(array, channels_last))
    name = f"the array of {what} labels"
    return LabeledImages(
        pixels, to_labels(to_array(labels, name, LABEL_FORM, make_error), len(pixels), name, make_error)
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes)


def _read(dataset: Any, what: str, make_error: MakeError) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return all images and labels of a map-style PyTorch dataset. Raises UserError that names a bad item."""
    try:
        count = len(dataset)
    except Exception as error:
        raise make_error(f"the {what} dataset has no length ({one_line(error)}); {EXPECTED}") from error
    if not 0 < count <= MAX_IMAGES:
        raise make_error(f"the {what} dataset has {count:,} images")
    images: NDArray[Any] | None = None
    labels = np.empty(count, np.int64)
    for index in range(count):
        name = f"item {index} of the {what} dataset"
        image, label = _read_item(dataset, index, name, make_error)
        array = _pixel_array(image, name, make_error)
        if images is None:
            images = np.empty((count, *array.shape), array.dtype)
        if array.shape != images.shape[1:]:
            raise make_error(
                f"{name} has shape {array.shape}, item 0 has {images.shape[1:]}: all images need one size and one "
                f"number of channels{color_hint(array.shape, images.shape[1:])}"
            )
        if array.dtype != images.dtype:
            raise make_error(f"{name} is of type {array.dtype}, item 0 is of type {images.dtype}: give uint8 pixels")
        images[index] = array
        labels[index] = _label(label, f"the label of {name}", make_error)
        if index % _PROGRESS_ITEMS == _PROGRESS_ITEMS - 1 or index == count - 1:
            report_progress(f"reading {what} images", index + 1, count)
    assert images is not None
    return images, labels


def _read_item(dataset: Any, index: int, name: str, make_error: MakeError) -> tuple[Any, Any]:
    try:
        item = dataset[index]
        if not isinstance(item, Mapping):
            image, label = item
            return image, label
        keys = ", ".join(quote(key) for key in list(item)[:10])
    except (Exception, SystemExit) as error:
        raise make_error(f"{name} is not (image, label): {one_line(error)}") from error
    raise make_error(
        f"{name} is a dict with the keys {keys}; expected (image, label): return lists of pairs, such as "
        "[(item['image'], item['label']) for item in dataset]"
    )


def _label(value: Any, name: str, make_error: MakeError) -> int:
    array = to_array(value, name, LABEL_FORM, make_error)
    if array.size != 1:
        raise make_error(f"{name} has shape {array.shape}; one integer is expected")
    if array.dtype.kind not in "iu":
        raise make_error(f"{name} is not an integer but {quote(array.item())}; {LABEL_FORM}")
    label = int(array.item())
    if label > np.iinfo(np.int64).max:
        raise make_error(f"{name} is {label}; {LABEL_FORM}")
    return label


def _pixel_array(image: Any, name: str, make_error: MakeError) -> NDArray[Any]:
    """Return an image of uint8 as it is; one of floats in [0, 1] that were pixels / 255 is multiplied back exactly."""
    array = to_array(image, f"the image of {name}", "give uint8 pixels", make_error)
    if array.dtype.kind == "f":
        pixels = np.rint(array * 255)
        if not (((pixels >= 0) & (pixels <= 255)).all() and np.abs(array * 255 - pixels).max(initial=0) < 1e-3):
            raise make_error(
                f"{name} has float values that are not pixels / 255: leave out normalization (train.normalize does it) "
                "and augmentation, and return uint8 images"
            )
        array = pixels.astype(np.uint8)
    return array
