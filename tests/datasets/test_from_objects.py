"""Values that a user's function returns: read as arrays, or refused with one message that says what was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from supermask.core.errors import UserError
from supermask.datasets.from_objects import dataset_from_objects
from supermask.datasets.images import RawDataset

X = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
Y = np.arange(6) % 2


class Items:
    """A map-style dataset of `count` items."""

    def __init__(self, item: Callable[[int], Any], count: int = 6) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class WithoutLength(Items):
    def __len__(self) -> int:
        raise TypeError("not\nknown")


class Broken:
    """An array whose conversion fails."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no\nvalues")


def read(value: Any) -> RawDataset:
    return dataset_from_objects(value, UserError)


def read_items(item: Callable[[int], Any]) -> RawDataset:
    return read((Items(item), Items(item)))


def refusal(value: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def objects(*values: Any) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    "images",
    [torch.from_numpy(X), list(torch.from_numpy(X)), list(X), tuple(X)],
    ids=["tensor", "tensors", "list", "tuple"],
)
@pytest.mark.parametrize("labels", [Y.tolist(), torch.from_numpy(Y), list(torch.from_numpy(Y)), Y[:, None]], ids=str)
def test_tensors_and_lists_are_read_as_arrays_are(images: Any, labels: Any) -> None:
    data = read((images, labels, X, Y))
    np.testing.assert_array_equal(data.train.images, X[:, None])
    np.testing.assert_array_equal(data.train.labels, Y)
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.uint8, np.int64)


def test_floats_that_numpy_lacks_are_read_as_float32() -> None:
    data = read_items(lambda index: (torch.full((1, 4, 5), index % 2, dtype=torch.bfloat16), index % 2))
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 255] * 3
    assert "is of type float32; give uint8 pixels" in refusal((torch.from_numpy(X).bfloat16(), Y, X, Y))


TEXTS = "holds texts such as 'cat'; labels are integers: number the classes 0 to classes - 1"
REFUSED_IMAGES: list[tuple[Any, str]] = [
    (None, "the array of training images is None; expected uint8 images of shape"),
    (Broken(), "the array of training images, a Broken, cannot be read as an array (RuntimeError: no values)"),
    ([*X[:5], X[5, 1:]], "has items of different shapes: item 5 has shape (3, 5), item 0 has (4, 5)"),
    ([*map(torch.from_numpy, X[:5]), torch.zeros(3, 5)], "item 5 has shape (3, 5), item 0 has (4, 5)"),
    ([[[1, 2], [3]]], "has items of different lengths"),
    (torch.from_numpy(X).to_sparse(), "is a sparse tensor; give tensor.to_dense()"),
    (torch.empty(X.shape, device="meta"), "a Tensor, cannot be read as an array (NotImplementedError"),
    (np.ma.masked_array(X, X > 9), "has masked values; fill them"),
    (objects(*X), "holds arrays as Python objects; give one array, for example numpy.stack(list(x))"),
    (objects(*["a.png"] * 6), "holds texts such as 'a.png'; expected uint8 images"),
    (objects(*[{}] * 6), "holds objects of type dict"),
    (np.empty(0, object), "holds no values"),
]


@pytest.mark.parametrize(("images", "message"), REFUSED_IMAGES, ids=[message[:40] for _, message in REFUSED_IMAGES])
def test_other_images_are_refused(images: Any, message: str) -> None:
    assert message in refusal((images, Y, X, Y))


REFUSED_LABELS: list[tuple[Any, str]] = [
    (None, "the array of test labels is None; labels are integers: number the classes 0 to classes - 1"),
    (lambda: Y, "is of type function, not an array"),
    (["cat", "dog"] * 3, TEXTS),
    (objects(*["cat", "dog"] * 3), TEXTS),
    (objects(0, "cat", 1, 0, 1, 0), TEXTS),
    (objects(0, None, 1, 0, 1, 0), "holds None; labels are integers"),
    (objects(*Y.tolist()), "holds integers as Python objects; give them as numbers, for example with .astype('int64')"),
    ([0, 1, 0, [1, 1], 0, 1], "has items of different lengths"),
    (Y.astype(float), "is of type float64; labels are integers from 0 on"),
    (Y.astype(np.uint64) + 2**63, "has the label 9223372036854775809; labels are 0 to classes - 1"),
]


@pytest.mark.parametrize(("labels", "message"), REFUSED_LABELS, ids=[message[:40] for _, message in REFUSED_LABELS])
def test_other_labels_are_refused(labels: Any, message: str) -> None:
    text = refusal((X, Y, X, labels))
    assert "the array of test labels" in text and message in text


REFUSED_ITEMS: list[tuple[Callable[[int], Any], str]] = [
    (lambda index: (None, 0), "the image of item 0 of the training dataset is None; give uint8 pixels"),
    (lambda index: (X[index, index // 3 :], 0), "item 3 of the training dataset has shape (3, 5), item 0 has (4, 5)"),
    (
        lambda index: (X[index].astype(np.uint16 if index == 3 else np.uint8), 0),
        "item 3 of the training dataset is of type uint16, item 0 is of type uint8: give uint8 pixels",
    ),
    (lambda index: (X[index], [0, 1]), "the label of item 0 of the training dataset has shape (2,); one integer"),
    (lambda index: (X[index], [[1], [2, 3]]), "the label of item 0 of the training dataset has items of different"),
    (lambda index: (X[index], 0.5), "the label of item 0 of the training dataset is not an integer but 0.5"),
    (lambda index: (X[index], "cat"), "is not an integer but 'cat'; labels are integers: number the classes"),
    (lambda index: (X[index], None), "the label of item 0 of the training dataset is None"),
    (
        lambda index: (X[index], np.uint64(2**63 + 5)),
        "the label of item 0 of the training dataset is 92233720368547758",
    ),
    (lambda index: (X[index], 2**70), "the label of item 0 of the training dataset is 1180591620717411303424; labels"),
    (lambda index: exit(3), "item 0 of the training dataset is not (image, label): SystemExit: 3"),
]


@pytest.mark.parametrize(("item", "message"), REFUSED_ITEMS, ids=[message[:60] for _, message in REFUSED_ITEMS])
def test_other_items_of_a_dataset_are_refused(item: Callable[[int], Any], message: str) -> None:
    assert message in refusal((Items(item), Items(item)))


def test_a_dataset_without_a_length_is_refused() -> None:
    dataset = WithoutLength(lambda index: (X[index], 0))
    text = refusal((dataset, dataset))
    assert text.startswith("the training dataset has no length (TypeError: not known); expected (x_train")
    assert "the training dataset has 9,999,999,999 images" in refusal((Items(dataset.item, 9_999_999_999),) * 2)


def test_whatever_the_users_objects_raise_is_one_message() -> None:
    class Keys(dict[str, Any]):
        def items(self) -> Any:
            raise OSError("gone\naway")

    text = refusal(Keys(x_train=X, y_train=Y, x_test=X, y_test=Y))
    assert text.startswith("what the function returned cannot be read (OSError: gone away); expected (x_train")
