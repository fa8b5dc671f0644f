"""Notes: only regular files of bounded size with valid text are read; everything else is ignored and logged once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supermask.store.files.notes import MAX_BYTES, StatusNotes

NAMES = [f"{digit:x}" * 32 for digit in range(16)]


class Messages(logging.Handler):
    """A handler that keeps messages."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """Messages of the package."""
    logger, handler = logging.getLogger("supermask"), Messages()
    logger.addHandler(handler)
    yield handler.texts
    logger.removeHandler(handler)


def test_what_is_no_note_is_ignored_and_logged_once(tmp_path: Path, messages: list[str]) -> None:
    notes = StatusNotes(tmp_path)
    notes.write("progress", NAMES[0], {"state": "running"})
    place = tmp_path / "notes" / "progress"
    os.mkfifo(place / f"{NAMES[1]}.json")
    (place / f"{NAMES[2]}.json").symlink_to("/dev/zero")
    (place / f"{NAMES[3]}.json").symlink_to(place / f"{NAMES[1]}.json")
    (place / f"{NAMES[4]}.json").symlink_to(place / f"{NAMES[0]}.json")
    (place / f"{NAMES[5]}.json").mkdir()
    (place / f"{NAMES[6]}.json").write_text(json.dumps({"message": "\ud800"}))
    (place / f"{NAMES[7]}.json").write_text("[1]")
    (place / f"{NAMES[8]}.json").write_text('{"left": NaN}')
    (place / f"{NAMES[9]}.json").write_bytes(b"\xff\xfe")
    (place / f"{NAMES[10]}.json").write_text("[" * 100_000)
    with (place / f"{NAMES[11]}.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    os.truncate(place / f"{NAMES[11]}.json", 300 * 10**9)
    for _ in range(3):
        assert notes.read("progress") == {NAMES[0]: {"state": "running"}}
    assert len(messages) == 11
    for number, message in enumerate(sorted(messages), start=1):
        assert "ignored" in message and f"{NAMES[number]}.json" in message


def test_a_note_replaces_a_pipe(tmp_path: Path) -> None:
    notes = StatusNotes(tmp_path)
    (tmp_path / "notes" / "curves").mkdir(parents=True)
    os.mkfifo(tmp_path / "notes" / "curves" / f"{NAMES[0]}.json")
    notes.write("curves", NAMES[0], {"run": NAMES[0]})
    assert notes.read("curves") == {NAMES[0]: {"run": NAMES[0]}}


def test_a_folder_of_notes_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    os.mkfifo(tmp_path / "notes" / "studies")
    notes = StatusNotes(tmp_path)
    notes.write("studies", NAMES[0], {})
    assert notes.read("studies") == {}
