"""Arrays of a user's own data: their layout, types and labels, checked and brought into the form of a dataset.

Images: uint8, `(images, height, width)` grey, `(images, height, width, channels)` or `(images, channels, height,
width)` with 1 or 3 channels. Labels: integers, `(images,)` or `(images, 1)`, 0 to classes - 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.errors import UserError, quote
from supermask.datasets.images import LabeledImages, Labels, Pixels
from supermask.datasets.specs import MAX_CLASSES, MAX_SIDE, DatasetSpec, default_validation_images

MakeError = Callable[[str], UserError]
"""Makes the error for a reason, naming the dataset or file."""

COLOR_CHANNELS = (1, 3)
IMAGE_FORMS = (
    "uint8 images of shape (images, height, width), (images, height, width, channels) or "
    "(images, channels, height, width), with 1 or 3 channels"
)
LABEL_FORM = "labels are integers: number the classes 0 to classes - 1"
_KEY = re.compile(r"(x|y|images?|labels?|targets?|data)?_?(train|test)_?(x|y|images?|labels?|targets?|data)?")
_IMAGE_WORDS = ("x", "image", "images", "data")


def locator_error(text: str, reason: str) -> UserError:
    """Return the error for data that a locator names and that cannot be used."""
    return UserError(f"dataset {quote(text)}: {reason}.")


def find_arrays(names: Sequence[str], make_error: MakeError) -> dict[str, str]:
    """Return role (`train_images`, `train_labels`, `test_images`, `test_labels`) -> name.

    `x_train`, `train_images`, `images_train`, `train_x` ... are understood, in upper and lower case.
    Raises UserError if a role is missing, or if two names may have it.
    """
    roles: dict[str, str] = {}
    for name in names:
        match = _KEY.fullmatch(name.lower())
        word = (match[1] or match[3]) if match else None
        if match is None or word is None or (match[1] and match[3]):
            continue
        role = f"{match[2]}_{'images' if word in _IMAGE_WORDS else 'labels'}"
        if role in roles:
            raise make_error(f"two arrays may be the {role.replace('_', ' ')}: {roles[role]} and {name}; remove one")
        roles[role] = name
    missing = [r for r in ("train_images", "train_labels", "test_images", "test_labels") if r not in roles]
    if missing:
        listed = ", ".join(sorted(names)[:20]) or "nothing"
        no_test = missing == ["test_images", "test_labels"]
        problem = "it has no test split" if no_test else f"it lacks {', '.join(missing).replace('_', ' ')}"
        raise make_error(
            f"{problem}: found {listed}; expected x_train, y_train, x_test, y_test (or train_images, train_labels, "
            "test_images, test_labels)"
        )
    return roles


def image_layout(
    shape: tuple[int, ...], dtype: np.dtype[Any], what: str, make_error: MakeError
) -> tuple[int, int, int, bool]:
    """Return (channels, height, width, whether channels come last) of an array of images. Raises UserError."""
    _check_pixel_type(dtype, what, make_error)
    if len(shape) == 2:
        raise make_error(f"{what} has shape {shape}: flat images; reshape it: expected {IMAGE_FORMS}")
    if len(shape) not in (3, 4):
        raise make_error(f"{what} has shape {shape}: expected {IMAGE_FORMS}")
    if shape[0] == 0:
        raise make_error(f"{what} has 0 images")
    if len(shape) == 3:
        layout = (1, shape[1], shape[2], True)
    else:
        is_last, is_first = shape[3] in COLOR_CHANNELS, shape[1] in COLOR_CHANNELS
        if is_last and is_first and shape[1:] != (1, 1, 1):
            raise make_error(f"{what} has shape {shape}: channels may be second or last; expected {IMAGE_FORMS}")
        if not (is_last or is_first):
            raise make_error(f"{what} has shape {shape}: expected {IMAGE_FORMS}")
        layout = (shape[3], shape[1], shape[2], True) if is_last else (shape[1], shape[2], shape[3], False)
    if not all(1 <= side <= MAX_SIDE for side in layout[1:3]):
        raise make_error(
            f"{what} has images of {layout[1]}x{layout[2]} pixels; 1 to {MAX_SIDE:,} on each side are allowed"
        )
    return layout


def _check_pixel_type(dtype: np.dtype[Any], what: str, make_error: MakeError) -> None:
    if dtype == np.uint8:
        return
    if dtype.hasobject:
        raise make_error(
            f"{what} is an array of Python objects (pickled), which is not read because a pickle can run code"
        )
    hint = "give uint8 pixels from 0 to 255"
    if dtype.kind == "f":
        hint = "give uint8 pixels: for values from 0 to 1, (255 * x).round().astype('uint8')"
    elif dtype.itemsize == 2 and dtype.kind in "iu":
        hint = "16-bit images: give uint8 pixels, such as (x // 257).astype('uint8')"
    raise make_error(f"{what} is of type {dtype.name}; {hint}")


def to_pixels(array: NDArray[Any], channels_last: bool) -> Pixels:
    """Return images as (images, channels, height, width)."""
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if channels_last else array


def to_labels(array: NDArray[Any], count: int, what: str, make_error: MakeError) -> Labels:
    """Return labels as int64 (images,). Raises UserError for another type, shape or number, or a negative label."""
    if array.dtype.hasobject:
        raise make_error(
            f"{what} is an array of Python objects (pickled), which is not read because a pickle can run code"
        )
    if array.dtype.kind in "US" and array.size:
        raise make_error(f"{what} holds texts such as {quote(array.flat[0].item())}; {LABEL_FORM}")
    if array.dtype.kind not in "iu":
        raise make_error(f"{what} is of type {array.dtype.name}; labels are integers from 0 on")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        hint = "; for one-hot labels take .argmax(1)" if array.ndim == 2 else ""
        raise make_error(f"{what} has shape {array.shape}: expected one label per image, (images,){hint}")
    if len(array) != count:
        raise make_error(f"{what} has {len(array):,} labels for {count:,} images")
    limit = int(array.max()) if array.dtype.kind == "u" and len(array) else 0
    if limit > np.iinfo(np.int64).max:
        raise make_error(f"{what} has the label {limit}; labels are 0 to classes - 1")
    return array.astype(np.int64)


def describe_dataset(name: str, train: LabeledImages, test: LabeledImages, make_error: MakeError) -> DatasetSpec:
    """Return the specification of checked arrays: classes are counted from the training labels.

    Raises UserError for labels that no classifier can learn: negative or missing ones, one class, a test label that
    training does not have, or no image.
    """
    for part, images in (("training", train), ("test", test)):
        if not len(images.labels):
            raise make_error(f"it has no {part} images")
        if len(negative := (images.labels < 0).nonzero()[0]):
            first = int(negative[0])
            raise make_error(
                f"label {int(images.labels[first])} at {part} image {first}; labels are integers from 0 to classes - 1"
            )
    classes = int(train.labels.max()) + 1
    if classes > MAX_CLASSES:
        raise make_error(
            f"label {classes - 1:,} among the training labels; at most {MAX_CLASSES:,} classes are supported"
        )
    if classes < 2:
        raise make_error("all training images have label 0: one class; two or more are needed")
    counts = np.bincount(train.labels, minlength=classes)
    if len(absent := (counts == 0).nonzero()[0]):
        present = int((counts > 0).sum())
        hint = " (labels begin at 1: subtract 1)" if absent.tolist() == [0] else ""
        one = ": one class; two or more are needed" if present == 1 else ""
        raise make_error(
            f"no training image has label {int(absent[0])}, the largest is {classes - 1}{hint}{one}; labels are 0 to "
            "classes - 1"
        )
    if len(unknown := (test.labels >= classes).nonzero()[0]):
        first = int(unknown[0])
        raise make_error(
            f"label {int(test.labels[first])} at test image {first}; the training labels are 0 to {classes - 1}"
        )
    if len(train.labels) < 2:
        raise make_error("it has 1 training image; two or more are needed, as one is held out for validation")
    shape = train.images.shape[1:]
    return DatasetSpec(
        name=name,
        image_shape=(shape[0], shape[1], shape[2]),
        classes=classes,
        training_images=len(train.labels),
        test_images=len(test.labels),
        validation_images=default_validation_images(len(train.labels)),
        max_pixel=255,
    )
