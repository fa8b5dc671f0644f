"""Studies of notes: data and user code that a study file does not contain come from the note, without any import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from supermask.execution.live_status import LiveStatusWriter
from supermask.execution.scheduler import Scheduler
from supermask.serve.studies import Studies
from supermask.store import Store
from supermask.store.files.notes import StatusNotes
from supermask.study import study_from_dict
from supermask.study.plan import make_plan
from supermask.study.plan_inputs import PlanInputs

DATA: dict[str, Any] = {"seeds": 1, "treatments": [{"criterion": "scores_of_a_note:score"}], "prune": {"levels": 1}}


@pytest.mark.parametrize("fingerprint", [None, "d" * 64])
def test_a_note_has_the_inputs_of_its_plan(tmp_path: Path, fingerprint: str | None) -> None:
    inputs = PlanInputs(fingerprint, {"scores_of_a_note:score": "c" * 64})
    plan = make_plan(study_from_dict(DATA, name="mine"), inputs)
    store = Store(tmp_path)
    with LiveStatusWriter([plan.study], Scheduler(plan, store), 1, [plan.inputs]):
        pass
    (note,) = StatusNotes(tmp_path).read("studies").values()
    (study,) = Studies().list({"key": note}, set())
    assert study.plan is not None and study.plan.runs.keys() == plan.runs.keys(), study.error
    assert "scores_of_a_note" not in sys.modules


def test_a_note_without_the_code_s_hash_is_not_planned() -> None:
    for inputs in ({}, {"criterion_sources": {"scores_of_a_note:score": "not a hash"}}):
        (study,) = Studies().list({"key": {"name": "mine", "study": DATA, "inputs": inputs}}, set())
        assert study.plan is None and "user-defined criteria ('scores_of_a_note:score')" in study.error


def test_only_the_studies_that_are_shown_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may have notes of hundreds of studies, and the plan of a large one takes seconds."""
    planned: list[str] = []
    monkeypatch.setattr("supermask.serve.studies.plan_noted_study", lambda note, **_: planned.append(note["name"]))
    notes = {f"{number:032d}": {"name": f"study-{number:02d}"} for number in range(40)}
    studies = Studies()
    for _ in range(2):
        assert [study.name for study in studies.list(notes, set())] == [f"study-{n}" for n in range(28, 40)]
    assert planned == [f"study-{n}" for n in range(28, 40)]
    notes[f"{0:032d}"] = notes.pop(f"{0:032d}")
    assert [study.name for study in studies.list(notes, set())][:2] == ["study-00", "study-29"]
    assert planned[12:] == ["study-00"]
