"""Notes: only regular files of bounded size with valid text are read; everything else is ignored and logged once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supermask.core.errors import UserError
from supermask.store.files.notes import MAX_BYTES, MAX_DEPTH, StatusNotes
from supermask.store.noted_studies import plan_noted_study

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


def nested(depth: int) -> list[object]:
    """Return lists nested `depth` deep."""
    value: list[object] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_a_note_that_is_nested_too_deep_is_ignored(tmp_path: Path, messages: list[str]) -> None:
    notes = StatusNotes(tmp_path)
    for name, depth in zip(NAMES, (MAX_DEPTH - 1, MAX_DEPTH, 700), strict=False):
        notes.write("studies", name, {"name": "deep", "study": nested(depth)})
    assert notes.read("studies").keys() == {NAMES[0]}
    assert len(messages) == 2 and all(f"nested more than {MAX_DEPTH} levels deep" in text for text in messages)


MALFORMED: list[object] = [
    7,
    [],
    {"treatments": 7},
    {"treatments": [{"criterion": nested(MAX_DEPTH - 10)}]},
    {"treatments": [{"criterion": None, "loss": {"a": ["x:y"]}}]},
    {"network": {"make": []}, "seeds": "x"},
]


@pytest.mark.parametrize("study", MALFORMED, ids=range(len(MALFORMED)))
@pytest.mark.parametrize("inputs", [None, 7, {"data_spec": {"name": [], "image_shape": {}}, "criterion_sources": [7]}])
def test_a_malformed_study_is_a_user_error(study: object, inputs: object) -> None:
    for options in ({}, {"uses_recorded_sources": True, "imports_code": True}):
        with pytest.raises(UserError):
            plan_noted_study({"name": "n", "study": study, "inputs": inputs}, **options)
