"""Values that a user's function returns: read as arrays, or refused with one message that says what was given."""

from __future__ import annotations

import io
import struct
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.own_data import png16
from PIL import Image

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


RGB = np.kron(np.random.default_rng(0).integers(0, 256, (6, 2, 2, 3), np.uint8), np.ones((1, 2, 2, 1), np.uint8))


@pytest.mark.parametrize("mode", ["P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "L", "LA", "1"])
def test_images_of_pillow_are_read_as_image_folders_read_them(mode: str) -> None:
    images = [Image.fromarray(image).quantize(4) if "P" in mode else Image.fromarray(image) for image in RGB]
    images = [image.convert(mode) for image in images]
    data = read_items(lambda index: (images[index], index % 2))
    wanted = np.stack([np.asarray(image.convert("L" if mode in ("L", "LA", "1") else "RGB")) for image in images])
    wanted = wanted[:, None] if wanted.ndim == 3 else wanted.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.train.images, wanted)
    np.testing.assert_array_equal(read((images, Y, images, Y)).test.images, wanted)
    if mode in ("P", "RGB"):
        np.testing.assert_array_equal(wanted, RGB.transpose(0, 3, 1, 2))


def test_float_images_of_pillow_are_read_as_float_arrays_are() -> None:
    images = [Image.fromarray(image.astype(np.float32) / 255) for image in X]
    data = read_items(lambda index: (images[index], index % 2))
    np.testing.assert_array_equal(data.train.images, X[:, None])
    assert "is of type float32; give uint8 pixels" in refusal((images, Y, X, Y))


def ppm(kind: bytes, maxval: int) -> bytes:
    values = [7] * 20 * (3 if kind in b"P3P6" else 1)
    text = b" ".join(b"%d" % value for value in values) if kind in b"P2P3" else b"".join(b"\0%c" % v for v in values)
    return kind + b"\n# a comment 9 9 9\n5 4\n%d\n" % maxval + text


def tiff16() -> bytes:
    """Return a TIFF of 16 bits per channel, 1x1 pixel of color."""
    tags = [(256, 1), (257, 1), (258, None), (259, 1), (262, 2), (273, 134), (277, 3), (278, 1), (279, 6)]
    entries = b"".join(
        struct.pack("<HHII", tag, 3, 3, 122 + 6) if value is None else struct.pack("<HHII", tag, 3, 1, value)
        for tag, value in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    content = b"II*\0" + struct.pack("<I", 8) + directory
    return content.ljust(128, b"\0") + struct.pack("<HHH", 16, 16, 16) + struct.pack("<HHH", 300, 301, 302)


def jpeg2000(depth: int, kind: str) -> bytes:
    """Return a JPEG 2000 file in color with this depth in its header."""
    buffer = io.BytesIO()
    Image.fromarray(RGB[0]).save(buffer, "JPEG2000", no_jp2=kind == "j2k")
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\x4f\xff\x51")
    for component in range(3):
        content[start + 42 + 3 * component] = depth - 1
    return bytes(content)


DEEP_FILES = {
    "a.png": png16(np.full((4, 5, 3), 300)),
    "grey and alpha.png": png16(np.full((4, 5, 2), 300)),
    "a.ppm": ppm(b"P6", 65535),
    "plain.ppm": ppm(b"P3", 1023),
    "a.tiff": tiff16(),
    "a.jp2": jpeg2000(16, "jp2"),
    "a.j2k": jpeg2000(12, "j2k"),
    "a.sgi": struct.pack(">HBBHHHH", 474, 0, 2, 3, 5, 4, 3).ljust(512, b"\0") + bytes(4 * 5 * 3 * 2),
}


@pytest.mark.parametrize("name", DEEP_FILES)
@pytest.mark.parametrize("is_loaded", [False, True])
def test_files_of_more_than_8_bits_per_channel_are_refused(tmp_path: Path, name: str, is_loaded: bool) -> None:
    (tmp_path / name).write_bytes(DEEP_FILES[name])
    with Image.open(tmp_path / name) as image:
        assert image.mode in ("RGB", "RGBA"), "Pillow reduces it to 8 bits"
        if is_loaded and name not in ("a.jp2", "a.j2k"):  # The depth of these is changed in the header alone.
            image.load()
        text = refusal((Items(lambda index: (image, 0)),) * 2)
        assert "the image of item 0 of the training dataset has 1" in text and "bits per channel; convert it to" in text
        assert "item 0 has 1" in refusal(([image] * 6, Y, X, Y))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000", "SGI", "BMP", "GIF", "WEBP", "JPEG"])
def test_files_of_8_bits_are_read_in_every_format(kind: str) -> None:
    files = [io.BytesIO() for _ in RGB]
    for image, file in zip(RGB, files, strict=True):
        Image.fromarray(image).save(file, kind)
    wanted = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    data = read_items(lambda index: (Image.open(files[index]), index % 2))
    np.testing.assert_array_equal(data.train.images, wanted.transpose(0, 3, 1, 2))


TEXTS = "holds texts such as 'cat'; labels are integers: number the classes 0 to classes - 1"
REFUSED_IMAGES: list[tuple[Any, str]] = [
    (None, "the array of training images is None; expected uint8 images of shape"),
    (Broken(), "the array of training images, a Broken, cannot be read as an array (RuntimeError: no values)"),
    ([*X[:5], X[5, 1:]], "has items of different shapes: item 5 has shape (3, 5), item 0 has (4, 5)"),
    ([*map(torch.from_numpy, X[:5]), torch.zeros(3, 5)], "item 5 has shape (3, 5), item 0 has (4, 5)"),
    ([Image.new("L", (5, 4 + index)) for index in range(6)], "item 1 has shape (5, 5), item 0 has (4, 5)"),
    ([Image.new("RGB" if index else "L", (5, 4)) for index in range(6)], "convert all images of Pillow with"),
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
    (lambda index: (Image.new("HSV", (5, 4)), 0), "item 0 of the training dataset is in mode HSV; 8-bit grey or color"),
    (lambda index: (Image.new("I;16", (5, 4)), 0), "is a 16-bit or 32-bit image (mode I;16); convert it to 8 bits"),
    (
        lambda index: (Image.new("RGB" if index else "L", (5, 4)), 0),
        "convert all images of Pillow with .convert('RGB')",
    ),
    (lambda index: (Image.new("L", (5, 4 + index)), 0), "item 1 of the training dataset has shape (5, 5), item 0"),
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


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
@pytest.mark.parametrize("more", [{}, {"id": 3}])
def test_items_that_are_dicts_are_refused_with_the_way_to_give_pairs(kind: Any, more: dict[str, int]) -> None:
    image = Image.fromarray(X[0])
    rows = [kind({"image": image, "label": index % 2, **more}) for index in range(6)]
    text = refusal((Items(rows.__getitem__), Items(rows.__getitem__)))
    keys = "'image', 'label', 'id'" if more else "'image', 'label'"
    assert text.startswith(f"item 0 of the training dataset is a dict with the keys {keys}; expected (image, label)")
    assert "[(item['image'], item['label']) for item in dataset]" in text
    pairs = [(item["image"], item["label"]) for item in rows]
    np.testing.assert_array_equal(read((pairs, pairs)).train.labels, Y)


@pytest.mark.parametrize("names", [("train", "test"), ("train", "validation", "test"), ("training", "test")])
def test_a_dict_of_parts_is_refused_with_the_way_to_give_pairs(names: tuple[str, ...]) -> None:
    """`datasets.load_dataset` of Hugging Face returns such a dict."""
    text = refusal({name: [{"image": X[0], "label": 0}] for name in names})
    assert text.startswith(f"the function returned a dict of the parts {', '.join(map(repr, names))}; return two of")
    assert "[(row['image'], row['label']) for row in parts[name]]" in text


def test_two_names_that_differ_in_case_are_refused() -> None:
    arrays = {"X_train": X, "x_train": X, "y_train": Y, "x_test": X, "y_test": Y}
    assert "two arrays may be the train images: X_train and x_train; remove one" in refusal(arrays)
    assert len(read({name: array for name, array in arrays.items() if name != "x_train"}).train.labels) == 6


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
