"""The commands `data list` and `data inspect`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import call, refused
from helpers.own_data import own_arrays, write_idx, write_images, write_npz, write_table
from PIL import Image

from supermask.cli.progress import show_progress
from supermask.datasets import load
from supermask.datasets.contact_sheet import COLUMNS
from supermask.datasets.progress import report_progress


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SUPERMASK_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_list_says_what_is_known_and_where_it_was_found(here: Path) -> None:
    write_idx(here / "data" / "KMNIST" / "raw", own_arrays(shape=(6, 5)))
    ended = call("data", "list")
    assert (ended.status, ended.err) == (0, "")
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line}
    assert str(here / "data" / "KMNIST" / "raw") in lines["kmnist"]
    assert "comes with scikit-learn" in lines["digits"]
    assert "no: supermask data get cifar100" in lines["cifar100"]
    assert lines["svhn"].split()[1:5] == ["3x32x32", "10", "73,257", "26,032"]


def test_inspect_describes_own_data_and_draws_them(here: Path) -> None:
    arrays = own_arrays()
    write_npz(here / "own.npz", **arrays)
    ended = call("data", "inspect", "npz:own.npz", "--out", "new/sheet.png")
    assert (ended.status, ended.err) == (0, "")
    images = load("npz:own.npz")
    assert f"data      {images.fingerprint} (in every run's id)" in ended.out
    assert "images    6x5 pixels, 3 channels, 0 to 255" in ended.out
    assert "training  60 images, of which 6 are held out for validation" in ended.out
    assert "test      12 images" in ended.out
    rows = [line.split() for line in ended.out.splitlines()]
    assert all([str(label), "20", "4"] in rows for label in range(3))
    sheet = np.asarray(Image.open(here / "new" / "sheet.png"))
    factor = -(-32 // 5)
    assert sheet.shape == (3 * (6 * factor + 2) + 2, COLUMNS * (5 * factor + 2) + 2, 3)
    # The second image of class 1 is image 4.
    top, left = 1 * (6 * factor + 2) + 2, 1 * (5 * factor + 2) + 2
    shown = sheet[top : top + 6 * factor : factor, left : left + 5 * factor : factor]
    np.testing.assert_array_equal(shown, arrays["x_train"][4])


def test_inspect_names_the_columns_of_parquet_files(here: Path) -> None:
    for part in ("train", "test"):
        write_table(here / "own" / f"{part}.parquet", {"photo": "BLOB", "breed": "BIGINT"})
    for _ in range(2):  # Decoded, then from the cache.
        assert "\ncolumns   images from 'photo', labels from 'breed'\n" in call("data", "inspect", "parquet:own").out
    write_table(here / "own" / "test.parquet", {"photo": "BLOB", "label": "BIGINT"})
    both = "images from 'photo', labels from 'breed'; images from 'photo', labels from 'label'"
    assert f"\ncolumns   {both}\n" in call("data", "inspect", "parquet:own").out


def test_inspect_scales_the_pixels_of_digits(here: Path) -> None:
    ended = call("data", "inspect", "digits")
    assert ended.status == 0 and "(published files)" in ended.out
    assert np.asarray(Image.open(here / "contact-sheet.png"))[2:-2, 2:-2].max() == 255


def test_bad_data_are_one_message_and_leave_no_sheet(here: Path) -> None:
    own = write_images(here / "own", own_arrays())
    (own / "train" / "class-0" / "bad.png").write_bytes(b"no image")
    error = refused(call("data", "inspect", "images:own"))
    assert "bad.png is not a readable PNG or JPEG" in error and error.count("\n") == 1
    assert "is not known (allowed: digits, mnist" in refused(call("data", "inspect", "minst"))
    assert not (here / "contact-sheet.png").exists()


def test_a_sheet_that_cannot_be_written_is_a_failure(here: Path) -> None:
    (here / "file").write_text("")
    assert "the contact sheet cannot be written" in refused(
        call("data", "inspect", "digits", "--out", "file/x"), status=1
    )


def test_progress_is_one_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with show_progress():
        report_progress("decoding", 1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("supermask.cli.progress._FIRST_SECONDS", 0.0)
    monkeypatch.setattr("supermask.cli.progress._INTERVAL_SECONDS", 0.0)
    with show_progress():
        report_progress("decoding", 1_000, 2_000)
        report_progress("downloading", 3, 0)
    written = capsys.readouterr().err
    assert "\rdecoding: 1,000 of 2,000 (50%)" in written and "\rdownloading: 3" in written
    assert written.endswith("\r") and "\n" not in written
