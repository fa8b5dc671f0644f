"""A user's own data: equal arrays from every form, and one message for everything that cannot be used."""

from __future__ import annotations

import gzip
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.own_data import (
    Arrays,
    by_class,
    encode,
    idx_bytes,
    own_arrays,
    write_idx,
    write_images,
    write_npz,
    write_parquet,
)
from PIL import Image

from supermask.core.errors import UserError
from supermask.datasets import DatasetSpec, ImageDataset, load
from supermask.datasets import cache as cache_module
from supermask.datasets.images import LabeledImages, fingerprint, split_data, train_validation_split
from supermask.datasets.loading import identify
from supermask.datasets.locators import is_module_locator, parse_locator
from supermask.datasets.progress import progress_listener
from supermask.datasets.specs import DATASETS, DataOptions, default_validation_images


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERMASK_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


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


# ------------------------------------------------------------------------------------------------------------- forms


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


@pytest.mark.parametrize("arrays", [GREY, COLOR], ids=["grey", "color"])
@pytest.mark.parametrize("write", [as_npz, as_idx, as_parquet, as_images])
def test_every_form_gives_the_same_arrays(folder: Path, write: Callable[..., str], arrays: Arrays) -> None:
    if write is as_idx and arrays is COLOR:
        pytest.skip("IDX files of the known form have no colors")
    wanted = by_class(arrays) if write is as_images else arrays
    locator = write(folder, wanted)
    images = load(locator)
    assert_arrays(images, wanted)
    spec = images.facts
    assert (spec.name, spec.classes, spec.training_images, spec.test_images) == (locator, 3, 60, 12)
    assert (spec.validation_images, spec.max_pixel, spec.published_fingerprint) == (6, 255, None)
    parts = [(images.train_images, images.train_labels), (images.test_images, images.test_labels)]
    assert images.fingerprint == fingerprint(*(LabeledImages(*part) for part in parts))
    assert images.run_fingerprint == images.fingerprint
    again = load(locator)
    assert again.fingerprint == images.fingerprint
    assert is_mapped(images.train_images) and is_mapped(again.test_labels)


def is_mapped(array: Any) -> bool:
    return isinstance(array, np.memmap) or (isinstance(array, np.ndarray) and is_mapped(array.base))


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_test", "Y_test"),
        ("train_x", "train_y", "test_x", "test_y"),
        ("images_train", "labels_train", "images_test", "labels_test"),
        ("train_data", "train_targets", "test_data", "test_targets"),
    ],
)
def test_usual_names_of_arrays_are_understood(folder: Path, names: tuple[str, ...]) -> None:
    renamed = dict(zip(names, COLOR.values(), strict=True))
    np.savez_compressed(folder / "own.npz", **renamed, val_images=np.zeros(3))
    assert_arrays(load("npz:own.npz"), COLOR)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "grey with a channel first", "grey with a channel last"])
def test_layouts_of_arrays_are_recognized(folder: Path, layout: str, order: Any) -> None:
    arrays = dict(GREY if "grey" in layout else COLOR)
    changed = dict(arrays)
    for name in ("x_train", "x_test"):
        array = arrays[name]
        array = {
            "NHWC": lambda a: a,
            "NCHW": lambda a: a.transpose(0, 3, 1, 2),
            "grey with a channel first": lambda a: a[:, None],
            "grey with a channel last": lambda a: a[..., None],
        }[layout](array)
        changed[name] = np.array(array, order=order)
    changed["y_train"] = changed["y_train"][:, None].astype(np.uint8)
    write_npz(folder / "own.npz", **changed)
    assert_arrays(load("npz:own.npz"), arrays)


def test_pixels_are_read_in_slices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.datasets.npz._CHUNK_BYTES", 100)
    write_npz(folder / "own.npz")
    seen: list[tuple[str, int, int]] = []
    with progress_listener(lambda *report: seen.append(report)):
        assert_arrays(load("npz:own.npz"), COLOR)
    assert seen[0] == ("x_train", 1, 60) and ("x_test", 12, 12) in seen


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "names",
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
        ("own_train_images_idx3_ubyte", "own_train_labels_idx1_ubyte", "own_test_images_idx3_ubyte", "own_test_labels"),
        ("a/train-images.idx3-ubyte", "a/train-labels.idx1-ubyte", "a/t10k-images.ubyte", "a/t10k-labels.ubyte"),
        (
            "train-images-idx3-ubyte/train-images-idx3-ubyte",
            "train-labels-idx1-ubyte/train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte/t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte/t10k-labels-idx1-ubyte",
        ),
    ],
)
def test_idx_files_are_found_in_every_spelling(folder: Path, names: tuple[str, ...], ending: str) -> None:
    write_idx(folder / "own", GREY, tuple(name + ending for name in names))  # type: ignore[arg-type]
    for path in (folder / "own").rglob("*.gz"):
        if path.is_file():
            path.write_bytes(gzip.compress(path.read_bytes()))
    assert_arrays(load("idx:own"), GREY)


@pytest.mark.parametrize(
    "layout", ["train-0.parquet test-0.parquet", "train.parquet val.parquet", "train/0.parquet test/0.parquet"]
)
def test_parquet_files_are_found_by_their_usual_names(folder: Path, layout: str) -> None:
    for part, name in zip(("train", "test"), layout.split(), strict=True):
        write_parquet(folder / "own" / "data" / name, COLOR[f"x_{part}"], COLOR[f"y_{part}"], ("picture", "digit"))
    assert_arrays(load("parquet:own"), COLOR)
    assert_arrays(load("parquet:own#picture,digit"), COLOR)
    assert "'other' (images) and 'digit' (an integer) expected" in refusal_of_cached("parquet:own#other,digit")


def refusal_of_cached(locator: str) -> str:
    with pytest.raises(UserError) as caught:
        load(locator)
    return str(caught.value)


@pytest.mark.parametrize("test", ["test", "val", "valid", "testing"])
def test_image_folders_are_found_by_their_usual_names(folder: Path, test: str) -> None:
    arrays = by_class(COLOR)
    write_images(folder / "own", arrays, test)
    (folder / "own" / "train" / ".DS_Store").write_bytes(b"x")
    (folder / "own" / "train" / "class-0" / "boxes.txt").write_text("1 2 3 4")
    assert_arrays(load("images:own"), arrays)


def test_jpegs_are_decoded_as_pillow_decodes_them(folder: Path) -> None:
    write_images(folder / "own", COLOR, kind="JPEG")
    images = load("images:own")
    files = sorted((folder / "own" / "train").rglob("*.jpeg"))
    wanted = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(images.train_images, wanted)


def test_other_modes_become_grey_or_color(folder: Path) -> None:
    arrays = by_class(COLOR)
    write_images(folder / "own", arrays)
    files = sorted((folder / "own" / "train").rglob("*.png"))
    grey = np.full((6, 5), 77, np.uint8)
    Image.fromarray(grey).save(files[0])
    Image.fromarray(arrays["x_train"][1]).convert("RGBA").save(files[1])
    Image.fromarray(arrays["x_train"][2]).quantize(200).save(files[2])
    images = load("images:own")
    assert (images.train_images[0] == 77).all()
    np.testing.assert_array_equal(images.train_images[1], arrays["x_train"][1].transpose(2, 0, 1))
    assert images.facts.image_shape == (3, 6, 5)


def test_side_scales_the_central_square(folder: Path) -> None:
    write_images(folder / "own", COLOR)
    images = load("images:own#side=4")
    assert images.facts.image_shape == (3, 4, 4)
    files = sorted((folder / "own" / "train").rglob("*.png"))
    square = Image.open(files[0]).crop((0, 0, 5, 5))  # 5 wide, 6 high: (6 - 5) // 2 = 0 from the top
    wanted = np.asarray(square.resize((4, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images.train_images[0], wanted.transpose(2, 0, 1))


def test_a_path_is_searched_in_the_data_folder_then_in_the_current_one(folder: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "here" / "own.npz")
    here = load("npz:own.npz").fingerprint
    write_npz(folder / "own.npz", **own_arrays(seed=1))
    there = load("npz:own.npz").fingerprint
    assert here != there
    assert load(f"npz:{tmp_path}/here/own.npz").fingerprint == here
    assert load("npz:./own.npz").fingerprint == there


# ------------------------------------------------------------------------------------------------------ refused data


REFUSED_ARRAYS: list[tuple[dict[str, Any], str]] = [
    (
        {"x_train": COLOR["x_train"] / np.float32(255)},
        "x_train is of type float32; give uint8 pixels",
    ),
    ({"x_test": COLOR["x_test"].astype(np.float64)}, "x_test is of type float64"),
    ({"x_train": COLOR["x_train"].astype(np.uint16)}, "16-bit images: give uint8 pixels"),
    ({"x_train": COLOR["x_train"].astype(np.int64)}, "x_train is of type int64; give uint8 pixels from 0 to 255"),
    ({"x_train": COLOR["x_train"].reshape(60, -1)}, "x_train has shape (60, 90): flat images; reshape it"),
    ({"x_train": COLOR["x_train"][..., :2]}, "x_train has shape (60, 6, 5, 2): expected uint8 images"),
    ({"x_train": COLOR["x_train"][:, :3], "x_test": COLOR["x_test"][:, :3]}, "channels may be second or last"),
    ({"x_train": COLOR["x_train"][:0], "y_train": COLOR["y_train"][:0]}, "x_train has 0 images"),
    ({"x_test": COLOR["x_test"][:0], "y_test": COLOR["y_test"][:0]}, "x_test has 0 images"),
    (
        {"x_test": COLOR["x_test"][:, :5]},
        "differ in channels x height x width: 3x6x5 and 3x5x5",
    ),
    (
        {"x_test": None, "y_test": None},
        "it has no test split: found x_train, y_train; expected",
    ),
    ({"y_train": None}, "it lacks train labels: found"),
    ({"train_labels": COLOR["y_train"]}, "two arrays may be the train labels: y_train and train_labels; remove one"),
    ({"y_train": COLOR["y_train"][:-1]}, "y_train has 59 labels for 60 images"),
    ({"y_train": COLOR["y_train"].astype(float)}, "y_train is of type float64; labels are integers from 0 on"),
    ({"y_train": np.eye(3, dtype=int)[COLOR["y_train"]]}, "for one-hot labels take .argmax(1)"),
    ({"y_train": COLOR["y_train"] - 1}, "label -1 at training image 0"),
    (
        {"y_train": COLOR["y_train"] + 1},
        "label 0, the largest is 3 (labels begin at 1: subtract 1)",
    ),
    ({"y_train": COLOR["y_train"] * 2}, "no training image has label 1, the largest is 4"),
    ({"y_test": COLOR["y_test"] + 1}, "label 3 at test image 2; the training labels are 0 to 2"),
    ({"y_train": COLOR["y_train"] * 0}, "all training images have label 0: one class; two or more are needed"),
    ({"y_train": COLOR["y_train"] + 10**6}, "at most 100,000 classes"),
    (
        {"y_train": COLOR["y_train"].astype(object)},
        "y_train is an array of Python objects (pickled)",
    ),
    (
        {"x_train": np.array([{}] * 60, dtype=object)},
        "x_train is an array of Python objects (pickled)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED_ARRAYS, ids=[message[:40] for _, message in REFUSED_ARRAYS])
def test_unsuitable_arrays_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_npz(folder / "own.npz", **changes)
    text = refusal("npz:own.npz")
    assert text.startswith("dataset 'npz:own.npz': ")
    assert message in text
    assert "\n" not in text


def test_no_pickle_is_ever_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    monkeypatch.setattr(pickle, "Unpickler", None)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(folder / "ran"),)

    labels = np.array([Bomb()] * 60, dtype=object)
    monkeypatch.undo()
    np.savez(folder / "own.npz", **{**COLOR, "y_train": labels})
    monkeypatch.setenv("SUPERMASK_CACHE", str(folder / "cache"))
    monkeypatch.setenv("SUPERMASK_DATA", str(folder))
    assert "not read because a pickle can run code" in refusal("npz:own.npz")
    assert not (folder / "ran").exists()


def test_every_truncation_and_changed_byte_of_an_archive_is_refused_or_harmless(folder: Path) -> None:
    path = write_npz(folder / "own.npz", **own_arrays(6, 3, (2, 2), 2))
    whole = path.read_bytes()
    wanted = load("npz:own.npz").fingerprint
    for file in Path(os.environ["SUPERMASK_CACHE"]).rglob("own-*"):
        file.unlink()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert "own.npz" in refusal("npz:own.npz")
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert load("npz:own.npz").fingerprint == wanted  # A byte without meaning, such as a date.
        except UserError as error:
            assert "own.npz" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with nothing"),
        (b"\x89PNG....", "not a .npz archive: it begins with 89504e47"),
        (b"\x93NUMPY\x01\x00", "one array (.npy), not an archive of them"),
        (b"PK\x03\x04 and nothing else", "a damaged or truncated archive"),
        (pickle.dumps({"x_train": 1}), "not a .npz archive"),
    ],
)
def test_other_files_are_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "own.npz").write_bytes(content)
    assert message in refusal("npz:own.npz")


def test_missing_files_are_refused_with_the_places_searched(folder: Path) -> None:
    for locator in ("npz:none.npz", "idx:none", "parquet:none", "images:none", "images:none#side=8"):
        text = refusal(locator)
        assert f"dataset {locator!r}: there is no such" in text
        assert str(folder / "none") in text and str(Path.cwd() / "none") in text
    (folder / "empty").mkdir()
    assert "is not a file; expected a .npz archive" in refusal("npz:empty")
    assert "four IDX files expected" in refusal("idx:empty")
    assert "has no training and test split: found no .parquet file" in refusal("parquet:empty")
    assert "no folder 'train' in" in refusal("images:empty")


def bad_idx(folder: Path, name: str, content: bytes) -> str:
    write_idx(folder / "own", GREY)
    (folder / "own" / name).write_bytes(content)
    return refusal("idx:own")


def test_damaged_idx_files_are_refused(folder: Path) -> None:
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    whole = idx_bytes(GREY["x_train"])
    assert f"{images}: truncated: 1,816 bytes expected" in bad_idx(folder, images, whole[:-1])
    assert "bytes after its end" in bad_idx(folder, images, whole + b"x")
    assert "it begins with 00000d03" in bad_idx(folder, images, idx_bytes(GREY["x_train"], 0x0D))
    assert "float32 values; uint8 expected" in bad_idx(folder, images, idx_bytes(GREY["x_train"], 0x0D))
    assert "it begins with 00000803, not 00000801" in bad_idx(folder, labels, whole)
    assert "59 labels for 60 images" in bad_idx(folder, labels, idx_bytes(GREY["y_train"][:-1]))
    assert "differ in size: 6x5 and 5x5" in bad_idx(folder, "t10k-images-idx3-ubyte", idx_bytes(GREY["x_test"][:, :5]))
    huge = b"\0\0\x08\x03" + b"\x7f" * 12
    assert "which is too large" in bad_idx(folder, images, huge)
    (folder / "own" / labels).unlink()
    assert "four IDX files expected" in refusal("idx:own")


def test_damaged_images_are_named(folder: Path) -> None:
    write_images(folder / "own", COLOR)
    files = sorted((folder / "own" / "train" / "class-1").iterdir())
    whole = files[3].read_bytes()
    cases = [
        (b"", "is not a readable PNG or JPEG"),
        (whole[:-20], "is not a readable"),
        (b"GIF89a....", "is not a readable"),
    ]
    flipped = whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]
    for content, message in [*cases, (flipped, "is not a readable")]:
        files[3].write_bytes(content)
        text = refusal("images:own")
        assert f"{files[3]} {message}" in text
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(files[3])
    assert f"{files[3]} is a 16-bit or 32-bit image" in refusal("images:own")


def test_unsuitable_image_folders_are_refused(folder: Path) -> None:
    own = write_images(folder / "own", COLOR)
    odd = own / "train" / "class-1" / "odd.png"
    odd.write_bytes(encode(np.zeros((9, 8, 3), np.uint8)))
    text = refusal("images:own")
    assert "its images have 2 sizes: 5x6 (72 images), 8x9 (1 images)" in text
    assert str(odd) in text and "images:own#side=5" in text
    odd.unlink()
    (own / "train" / "class-1" / "movie.mp4").write_bytes(b"x")
    assert "movie.mp4 is not a PNG or JPEG; convert or remove it" in refusal("images:own")
    (own / "train" / "class-1" / "movie.mp4").unlink()
    (own / "test" / "class-9").mkdir()
    assert "the class 'class-9' has no training images" in refusal("images:own")
    (own / "test" / "class-9").rmdir()
    (own / "train" / "class-9").mkdir()
    assert "class-9 has 0 images (PNG or JPEG)" in refusal("images:own")
    (own / "train" / "class-9").rmdir()
    (own / "test").rename(own / "other")
    assert "no test split (a folder 'test' or 'val')" in refusal("images:own")


def test_a_huge_image_is_refused_before_it_is_decoded(folder: Path) -> None:
    own = write_images(folder / "own", COLOR)
    path = own / "train" / "class-1" / "00001.png"
    content = path.read_bytes()
    import zlib

    header = b"IHDR" + (50_000).to_bytes(4, "big") * 2 + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:])
    assert str(path) in refusal("images:own#side=8")


@pytest.mark.parametrize("value", [2**40, -1])
def test_parquet_labels_out_of_range_are_refused(folder: Path, value: int) -> None:
    labels = COLOR["y_train"].copy()
    labels[4] = value
    write_parquet(folder / "own" / "train.parquet", COLOR["x_train"], labels)
    write_parquet(folder / "own" / "test.parquet", COLOR["x_test"], COLOR["y_test"])
    assert f"train.parquet: label {value} at image 4" in refusal("parquet:own")


def test_unsuitable_parquet_folders_are_refused(folder: Path) -> None:
    own = folder / "own"
    write_parquet(own / "train.parquet", COLOR["x_train"], COLOR["y_train"])
    assert "has no test split: found train.parquet" in refusal("parquet:own")
    write_parquet(own / "test.parquet", COLOR["x_test"][:, :5], COLOR["y_test"])
    assert "its images have 2 sizes: 5x6 (60 images), 5x5 (12 images)" in refusal("parquet:own")
    write_parquet(own / "test.parquet", COLOR["x_test"][:0], COLOR["y_test"][:0])
    assert "test.parquet: 0 images" in refusal("parquet:own")
    (own / "test.parquet").write_bytes(b"PAR1 and more")
    assert "test.parquet: not a readable Parquet file" in refusal("parquet:own")
    (own / "test.parquet").unlink()
    write_parquet(own / "test.parquet", COLOR["x_test"], COLOR["y_test"], ("image", "other label"))
    assert_arrays(load("parquet:own"), COLOR)


# ---------------------------------------------------------------------------------------------------------- locators


@pytest.mark.parametrize(
    ("text", "kind", "path"),
    [
        ("npz:a/b.npz", "npz", "a/b.npz"),
        ("npz:/a:b#c.npz".replace("#", ""), "npz", "/a:bc.npz"),
        ("images:~/x#side=32", "images", "~/x"),
        ("parquet:a b#image,my label", "parquet", "a b"),
        ("mydata:load", "module", "mydata:load"),
        ("my.data:load", "module", "my.data:load"),
    ],
)
def test_locators_are_parsed(text: str, kind: str, path: str) -> None:
    locator = parse_locator(text)
    assert (locator.text, locator.kind, locator.path) == (text, kind, path)
    assert is_module_locator(text) == (kind == "module")
    assert (locator.side == 32) == ("side" in text)
    assert (locator.columns == ("image", "my label")) == ("label" in text)


@pytest.mark.parametrize(
    "text",
    [
        "npz:",
        "xyz:a/b",
        "images:a#side=0",
        "images:a#side=2000",
        "images:a#size=3",
        "npz:a#b",
        "parquet:a#b",
        "parquet:a#,b",
        "npz:a\nb",
        "npz:" + "a" * 600,
    ],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a dataset"):
        parse_locator(text)


# ------------------------------------------------------------------------------------------------------------- cache


def test_data_are_identified_without_decoding_them_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(folder / "own.npz")
    first = identify("npz:own.npz")
    assert first.spec is not None and first.spec.classes == 3
    assert first.fingerprint == load("npz:own.npz").fingerprint
    monkeypatch.setattr("supermask.datasets.loading.load", None)
    assert identify("npz:own.npz") == first


@pytest.mark.parametrize("write", [as_npz, as_images])
def test_changed_files_are_decoded_again(folder: Path, write: Callable[..., str]) -> None:
    locator = write(folder, COLOR)
    first = identify(locator)
    if write is as_images:
        path = sorted(folder.rglob("*.png"))[0]
        path.write_bytes(encode(np.zeros((6, 5, 3), np.uint8)))
    else:
        write(folder, own_arrays(seed=3))
    second = identify(locator)
    assert second.fingerprint == load(locator).fingerprint != first.fingerprint


def test_arrays_are_decoded_into_memory_if_the_disk_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(cache_module, "_reserve", full)
    monkeypatch.setattr(cache_module, "write_atomic", full)
    write_npz(folder / "own.npz")
    assert_arrays(load("npz:own.npz"), COLOR)
    assert not list(Path(os.environ["SUPERMASK_CACHE"]).rglob("own-npz*"))


def test_a_failure_in_the_middle_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(folder / "own", COLOR)
    real, calls = cache_module.fingerprint, []
    monkeypatch.setattr("supermask.datasets.loading.fingerprint", lambda *_: calls.append(1) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load("images:own")
    assert calls and not list(Path(os.environ["SUPERMASK_CACHE"]).rglob("*"))[1:]
    monkeypatch.setattr("supermask.datasets.loading.fingerprint", real)
    assert_arrays(load("images:own"), by_class(COLOR))


KILLED = """
import os, signal
from supermask.datasets import load
from supermask.datasets.progress import progress_listener

def stop(what, done, total):
    if what.startswith("decoding training"):
        os.kill(os.getpid(), signal.SIGKILL)

with progress_listener(stop):
    load("images:own")
"""


def test_a_killed_command_leaves_nothing_half_decoded(folder: Path) -> None:
    write_images(folder / "own", COLOR)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    assert subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False).returncode == -9
    (left,) = (path for path in Path(os.environ["SUPERMASK_CACHE"]).rglob("*") if path.is_file())
    assert left.name.endswith(".partial"), "staged, never under the name of a cache file"
    assert_arrays(load("images:own"), by_class(COLOR))


def test_progress_of_decoding_is_reported(folder: Path) -> None:
    write_images(folder / "own", COLOR)
    seen: list[tuple[str, int, int]] = []
    with progress_listener(lambda *report: seen.append(report)):
        load("images:own")
    assert ("reading headers", 72, 72) in seen
    assert ("decoding training images", 60, 60) in seen
    assert ("decoding test images", 12, 12) in seen


# ------------------------------------------------------------------------------------- subsets, noise and validation


def options_dataset() -> ImageDataset:
    return load("digits")


def test_the_default_options_change_nothing() -> None:
    images = options_dataset()
    for seed in (0, 1):
        plain, given = train_validation_split(images, seed), train_validation_split(images, seed, DataOptions())
        assert [part.tolist() for part in plain] == [part.tolist() for part in given]
        assert split_data(images, seed).train_labels is images.train_labels


def test_training_subsets_are_nested_seeded_and_leave_validation_alone() -> None:
    images = options_dataset()
    validation = train_validation_split(images, 3)[1].tolist()
    before: set[int] = set()
    for count in (1, 10, 100, 1236):
        training, held_out = train_validation_split(images, 3, DataOptions(train_images=count))
        assert len(training) == count and training.tolist() == sorted(training.tolist())
        assert held_out.tolist() == validation
        assert before <= set(training.tolist()) and not set(training.tolist()) & set(validation)
        before = set(training.tolist())
    other = train_validation_split(images, 4, DataOptions(train_images=100))[0]
    assert set(other.tolist()) != set(train_validation_split(images, 3, DataOptions(train_images=100))[0].tolist())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_label_noise_replaces_exactly_its_share_by_other_classes(share: float) -> None:
    images = options_dataset()
    data = split_data(images, 2, DataOptions(label_noise=share))
    changed = np.flatnonzero(data.train_labels != images.train_labels)
    assert len(changed) == round(share * len(data.train_indices))
    assert set(changed.tolist()) <= set(data.train_indices.tolist())
    assert data.train_labels.min() >= 0 and data.train_labels.max() <= 9
    assert data.validation_labels.tolist() == split_data(images, 2).validation_labels.tolist()
    assert data.test_labels is images.test_labels


def test_less_noise_is_a_part_of_more_noise_and_depends_on_the_seed() -> None:
    images = options_dataset()

    def noisy(share: float, seed: int = 0, **more: Any) -> dict[int, int]:
        labels = split_data(images, seed, DataOptions(label_noise=share, **more)).train_labels
        return {int(i): int(labels[i]) for i in np.flatnonzero(labels != images.train_labels)}

    assert noisy(0.2).items() <= noisy(0.4).items()
    assert noisy(0.2) != noisy(0.2, seed=1)
    assert len(noisy(0.25, train_images=100)) == 25


def test_the_classes_of_noise_are_uniform() -> None:
    images = options_dataset()
    counts = np.zeros((10, 10), int)
    for seed in range(20):
        labels = split_data(images, seed, DataOptions(label_noise=0.9)).train_labels
        np.add.at(counts, (images.train_labels, labels), 1)
    off_diagonal = counts[~np.eye(10, dtype=bool)]
    assert abs(off_diagonal / off_diagonal.mean() - 1).max() < 0.25


def test_more_or_fewer_images_are_held_out() -> None:
    images = options_dataset()
    data = split_data(images, 0, DataOptions(validation=37))
    assert (len(data.validation_labels), len(data.train_indices)) == (37, 1400)


@pytest.mark.parametrize(
    ("training", "held_out"), [(2, 1), (9, 1), (40, 4), (49_999, 4_999), (50_000, 5_000), (10**6, 5_000)]
)
def test_a_tenth_is_held_out_of_small_datasets(training: int, held_out: int) -> None:
    assert default_validation_images(training) == held_out


def test_options_without_effect_are_left_out() -> None:
    digits = DATASETS["digits"]
    assert DataOptions(1237, 0.0, 200).resolve(digits) == DataOptions()
    assert DataOptions(1200, 0.1, 100).resolve(digits) == DataOptions(1200, 0.1, 100)
    assert DataOptions().to_data() == {}
    options = DataOptions(5, 0.25, 7)
    assert DataOptions.from_data(options.to_data()) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            DataOptions(train_images=1238),
            "1,238 is more than the 1,237 training images of digits that 200",
        ),
        (DataOptions(train_images=1238, validation=300), "give at most 1,137"),
        (DataOptions(validation=1437), "validation: 1,437 leaves no image to train on: digits has 1,437"),
    ],
)
def test_more_images_than_there_are_are_refused(options: DataOptions, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        options.resolve(DATASETS["digits"])


def test_a_specification_survives_its_data_and_nothing_else_does() -> None:
    spec = DatasetSpec("npz:a", (3, 6, 5), 3, 60, 12, 6, 255)
    data = spec.to_data()
    assert DatasetSpec.from_data("npz:a", data) == spec
    for key, value in [
        ("image_shape", [3, 6]),
        ("image_shape", [0, 6, 5]),
        ("image_shape", [3, 10**6, 5]),
        ("classes", 10**9),
        ("classes", True),
        ("training_images", -1),
        ("validation_images", 60),
        ("max_pixel", 256),
        ("test_images", "12"),
    ]:
        with pytest.raises(ValueError, match="specification"):
            DatasetSpec.from_data("npz:a", {**data, key: value})
    with pytest.raises(ValueError, match="specification"):
        DatasetSpec.from_data("npz:a", None)
