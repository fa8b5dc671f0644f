"""Atomic file writes: a reader sees the old or the new file, and no staged file remains."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from supermask.core.files import write_atomic, write_json_once


def test_file_is_written_and_replaced_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert write_atomic(path, b"one")
    assert write_atomic(path, [b"t", memoryview(b"wo")], durable=True)
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_without_replace_the_first_writer_wins(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert write_atomic(path, b"one", replace=False)
    assert not write_atomic(path, b"two", replace=False)
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_without_hard_links_the_last_writer_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*paths: Path) -> None:
        raise OSError("this filesystem has no hard links")

    monkeypatch.setattr(os, "link", no_links)
    assert write_atomic(tmp_path / "a.bin", b"one", replace=False)
    assert (tmp_path / "a.bin").read_bytes() == b"one"


def test_failed_check_keeps_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, b"one")
    assert not write_atomic(path, b"two", check=lambda staged: staged.read_bytes() != b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_disk_error_keeps_the_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.bin"
    write_atomic(path, b"one")
    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"two", durable=call == "fsync", replace=call == "fsync")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    assert write_atomic(tmp_path / ("x" * 255), b"one")


def test_threads_do_not_mix_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents


def test_json_is_written_once_unless_the_file_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json_once(path, [1], lambda _: True)
    write_json_once(path, [2], lambda _: True)
    assert json.loads(path.read_text()) == [1]
    write_json_once(path, [3], lambda _: False)
    assert json.loads(path.read_text()) == [3]


def test_json_is_not_written_if_its_folder_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_json_once(tmp_path / "file" / "a.json", [1], lambda _: True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
