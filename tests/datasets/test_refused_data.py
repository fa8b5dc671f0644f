"""Unsuitable data of a user's own: one message that says what was found and what is expected."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.own_data import (
    encode,
    idx_bytes,
    own_arrays,
    png16,
    write_encoded_parquet,
    write_idx,
    write_images,
    write_npz,
    write_parquet,
    write_table,
)
from helpers.own_data_files import (
    COLOR,
    GREY,
    assert_arrays,
    refusal,
)
from helpers.study_refusals import refusal as study_refusal
from PIL import Image

from supermask.core.errors import UserError
from supermask.datasets import load

pytestmark = pytest.mark.usefixtures("folder")


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
    ({"X_train": COLOR["x_train"]}, "two arrays may be the train images: x_train and X_train; remove one"),
    ({"Y_TEST": COLOR["y_test"]}, "two arrays may be the test labels: y_test and Y_TEST; remove one"),
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


def test_an_array_that_is_in_an_archive_twice_is_refused(folder: Path) -> None:
    path = write_npz(folder / "own.npz")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x_train.npy", archive.read("x_train.npy"))
    assert "own.npz: x_train is in the archive twice; remove one" in refusal("npz:own.npz")


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


@pytest.mark.slow
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


def test_a_path_without_its_kind_suggests_the_kind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "photos" / "train").mkdir(parents=True)
    for name in ("rows/train-0.parquet", "grey/train-images-idx3-ubyte", "own.npz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    suggested = {"photos": "images:photos", "rows": "parquet:rows", "grey": "idx:grey", "own.npz": "npz:own.npz"}
    for name, locator in suggested.items():
        for message in (refusal(name), study_refusal({"dataset": name, "treatments": [{}]})):
            assert f"did you mean '{locator}'?" in message
    assert "did you mean 'mnist'?" in refusal("MNIST")
    assert "did you mean" not in refusal("nothing/of\0it")


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


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_files_of_16_bits_are_refused_in_every_color_type(folder: Path, channels: int) -> None:
    own = write_images(folder / "own", COLOR)
    path = own / "train" / "class-1" / "00001.png"
    path.write_bytes(png16(np.full((6, 5, channels), 300)))
    text = refusal("images:own")
    assert str(path) in text and "16" in text and "bit" in text and text.count("convert it to 8 bits") == 1


def test_parquet_images_of_16_bits_are_refused(folder: Path) -> None:
    for part in ("train", "test"):
        write_encoded_parquet(folder / "own" / f"{part}.parquet", [png16(np.full((6, 5, 3), 300))] * 4, [0, 1, 0, 1])
    assert "the image in row 0 has 16 bits per channel; convert it to 8 bits" in refusal("parquet:own")


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


@pytest.mark.slow
@pytest.mark.parametrize("value", [2**40, -1])
def test_parquet_labels_out_of_range_are_refused(folder: Path, value: int) -> None:
    labels = COLOR["y_train"].copy()
    labels[4] = value
    write_parquet(folder / "own" / "train.parquet", COLOR["x_train"], labels)
    write_parquet(folder / "own" / "test.parquet", COLOR["x_test"], COLOR["y_test"])
    assert f"train.parquet: label {value} at image 4" in refusal("parquet:own")


@pytest.mark.slow
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


LABEL_GUESSES: list[tuple[dict[str, str], str]] = [
    ({"photo": "BLOB", "species": "VARCHAR", "row": "BIGINT"}, "name them: parquet:FOLDER#IMAGE_COLUMN,LABEL_COLUMN"),
    ({"photo": "BLOB", "species": "VARCHAR", "__index_level_0__": "BIGINT"}, "name them: parquet:FOLDER#"),
    ({"photo": "BLOB", "__index_level_0__": "BIGINT"}, "name them: parquet:FOLDER#"),
    ({"photo": "BLOB", "score": "DOUBLE", "id": "BIGINT"}, "name them: parquet:FOLDER#"),
    ({"photo": "BLOB", "species": "VARCHAR"}, "its columns are photo BLOB, species VARCHAR;"),
    ({"photo": "BLOB", "breed": "BIGINT"}, ""),
    ({"photo": "BLOB", "breed": "BIGINT", "__index_level_0__": "BIGINT"}, ""),
    ({"__index_level_0__": "BIGINT", "photo": "BLOB", "id": "BIGINT", "target": "INTEGER"}, ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "message"), LABEL_GUESSES, ids=lambda value: " ".join(value))
def test_an_integer_is_taken_for_the_label_only_if_it_is_alone(
    folder: Path, columns: dict[str, str], message: str
) -> None:
    for part in ("train", "test"):
        write_table(folder / "own" / f"{part}.parquet", columns)
    if message:
        assert message in refusal("parquet:own")
    else:
        assert load("parquet:own").facts.classes == 4
    label = next((name for name, kind in columns.items() if "INT" in kind), None)
    if label is not None:
        assert load(f"parquet:own#photo,{label}").facts.classes == 4


def test_errors_of_parquet_files_name_the_columns(folder: Path) -> None:
    for part in ("train", "test"):
        write_table(folder / "own" / f"{part}.parquet", {"photo": "BLOB", "breed": "BIGINT"}, first_label=1)
    assert (
        "(labels begin at 1: subtract 1); labels are 0 to classes - 1 (images from 'photo', labels from 'breed')"
        in (refusal("parquet:own"))
    )
    write_table(folder / "own" / "train.parquet", {"photo": "BLOB", "breed": "BIGINT"}, first_label=-1)
    text = refusal("parquet:own")
    assert "train.parquet: label -1 at image 0" in text and "(images from 'photo', labels from 'breed')" in text
    assert "Get it again" not in text and "\n" not in text


def test_images_that_are_null_or_empty_are_named_by_their_row(folder: Path) -> None:
    images: list[bytes | None] = [encode(np.zeros((3, 3), np.uint8))] * 8
    for part in ("train", "test"):
        write_encoded_parquet(folder / "own" / f"{part}.parquet", images, [0, 1] * 4)
    for content, message in (
        (
            None,
            "train.parquet: row 5 has no image: NULL is not a readable PNG or JPEG (images from 'image'",
        ),
        (b"", "train.parquet: the image in row 5 is not a readable PNG or JPEG (it is empty)"),
        (b"GIF89a", "train.parquet: the image in row 5 is not a readable PNG or JPEG (its format is another or it is"),
    ):
        images[5] = content
        write_encoded_parquet(folder / "own" / "train.parquet", images, [0, 1] * 4)
        text = refusal("parquet:own")
        assert message in text and "0x" not in text


@pytest.mark.parametrize("name", ["file_row_number", "File_Row_Number"])
def test_a_column_with_a_name_of_duckdb_is_refused_by_its_name(folder: Path, name: str) -> None:
    for part in ("train", "test"):
        write_table(folder / "own" / f"{part}.parquet", {"image": "BLOB", "label": "BIGINT", name: "BIGINT"})
    text = refusal("parquet:own")
    assert f"it has a column '{name}', a name that DuckDB needs itself; rename the column" in text


def test_a_label_above_the_largest_integer_is_out_of_range(folder: Path) -> None:
    for part in ("train", "test"):
        write_table(folder / "own" / f"{part}.parquet", {"image": "BLOB", "label": "UBIGINT"}, first_label=2**63)
    text = refusal("parquet:own")
    assert "train.parquet: a label is out of range (" in text and "not a readable Parquet file" not in text
