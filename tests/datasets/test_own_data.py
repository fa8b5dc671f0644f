"""A user's own data: equal arrays from every form, and the locators that name them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.own_data import (
    Arrays,
    by_class,
    own_arrays,
    write_idx,
    write_images,
    write_npz,
    write_parquet,
)
from helpers.own_data_files import (
    COLOR,
    GREY,
    as_idx,
    as_images,
    as_npz,
    as_parquet,
    assert_arrays,
    is_mapped,
    refusal_of_cached,
)
from PIL import Image

from supermask.core.errors import UserError
from supermask.datasets import load
from supermask.datasets.images import LabeledImages, fingerprint
from supermask.datasets.locators import is_module_locator, parse_locator
from supermask.datasets.progress import progress_listener

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["train-0.parquet test-0.parquet", "train.parquet val.parquet", "train/0.parquet test/0.parquet"]
)
def test_parquet_files_are_found_by_their_usual_names(folder: Path, layout: str) -> None:
    for part, name in zip(("train", "test"), layout.split(), strict=True):
        write_parquet(folder / "own" / "data" / name, COLOR[f"x_{part}"], COLOR[f"y_{part}"], ("picture", "digit"))
    assert_arrays(load("parquet:own"), COLOR)
    assert_arrays(load("parquet:own#picture,digit"), COLOR)
    assert "'other' (images) and 'digit' (an integer) expected" in refusal_of_cached("parquet:own#other,digit")


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


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".thumbnails", "__MACOSX", "more/.cache", ".a/more"])
def test_files_in_hidden_folders_are_left_out(folder: Path, name: str) -> None:
    own = write_images(folder / ".hidden" / "own", COLOR)
    wanted = load("images:.hidden/own").fingerprint
    hidden = own / "train" / "class-1" / name
    hidden.mkdir(parents=True)
    Image.new("L", (5, 6)).save(hidden / "0-checkpoint.png")
    (hidden / "file.bin").write_bytes(b"x")
    assert load("images:.hidden/own").fingerprint == wanted


def test_links_to_folders_are_followed_once(folder: Path, tmp_path: Path) -> None:
    own = write_images(folder / "own", COLOR)
    plain = load("images:own")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (5, 6), (9, 9, 9)).save(elsewhere / "more.png")
    (elsewhere / "loop").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(own / "train" / "class-1")
    first = own / "train" / "class-1"
    (first / "0-linked").symlink_to(elsewhere)
    (first / "1-again").symlink_to(elsewhere)
    images = load("images:own")
    assert images.facts.training_images == plain.facts.training_images + 1
    index = int((plain.train_labels == 0).sum())
    assert (images.train_images[index] == 9).all() and images.train_labels[index] == 1
    np.testing.assert_array_equal(np.delete(images.train_images, index, 0), plain.train_images)


def test_links_within_a_class_and_to_folders_above_change_nothing(folder: Path) -> None:
    own = write_images(folder / "own", COLOR)
    first = own / "train" / "class-1"
    (first / "part").mkdir()
    for path in sorted(first.glob("*.png"))[5:9]:
        path.rename(first / "part" / path.name)
    wanted = load("images:own").fingerprint
    (first / "0-part").symlink_to("part")
    (first / "up").symlink_to("..")
    (first / "part" / "top").symlink_to(folder)
    assert load("images:own").fingerprint == wanted


def test_a_path_is_searched_in_the_data_folder_then_in_the_current_one(folder: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "here" / "own.npz")
    here = load("npz:own.npz").fingerprint
    write_npz(folder / "own.npz", **own_arrays(seed=1))
    there = load("npz:own.npz").fingerprint
    assert here != there
    assert load(f"npz:{tmp_path}/here/own.npz").fingerprint == here
    assert load("npz:./own.npz").fingerprint == there


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


@pytest.mark.parametrize(
    "text", ["npz:a#1.npz", "idx:a#1", "parquet:a#1", "images:a#1", "images:a#1#side=8", "parquet:a#1#image,label,x"]
)
def test_a_path_with_the_mark_of_options_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(UserError, match="A path with # cannot be named: rename it, or make a link without # to it"):
        parse_locator(text)
