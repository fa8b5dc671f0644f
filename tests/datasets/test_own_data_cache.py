"""The cache of a user's own data: identified, decoded again, never half-decoded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.own_data import (
    by_class,
    encode,
    own_arrays,
    write_images,
    write_npz,
)
from helpers.own_data_files import (
    COLOR,
    as_images,
    as_npz,
    as_parquet,
    assert_arrays,
)

from supermask.datasets import cache as cache_module
from supermask.datasets import load
from supermask.datasets.loading import identify
from supermask.datasets.progress import progress_listener

pytestmark = pytest.mark.usefixtures("folder")


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


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_images, as_parquet])
def test_images_are_decoded_again_under_other_rules(
    folder: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., str]
) -> None:
    locator = write(folder, COLOR)
    first = load(locator).fingerprint
    monkeypatch.setattr("supermask.datasets.decoding._RULES", 99)
    seen: list[str] = []
    with progress_listener(lambda what, *_: seen.append(what)):
        assert load(locator).fingerprint == first
    assert any("decoding" in what for what in seen)


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


@pytest.mark.slow
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
