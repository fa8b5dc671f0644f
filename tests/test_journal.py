"""Notes of what is going on: what is written while a plan is carried out, and that nothing fails for want of one."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_studies import carry_out, small_plan

from supermask.carrying_out import How
from supermask.carrying_out import carry_out as carry_out_plans
from supermask.errors import UserError
from supermask.execute import checkpoints, journal
from supermask.execute.journal import Journal
from supermask.execute.local import Stopped
from supermask.execute.schedule import Schedule
from supermask.execute.tasks import Result, Site
from supermask.plan import Plan, joined
from supermask.store import Store
from supermask.store.notes import Notes, name_of
from supermask.study import study_from

NAME = "0123456789abcdef" * 2


def test_a_note_is_read_as_it_was_written_and_replaced(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    assert notes.read("progress") == {}
    for note in ({"a": 1}, {"a": 2, "text": "<script> שלום"}):
        notes.write("progress", NAME, note)
        assert notes.read("progress") == {NAME: note}
    assert [path.name for path in (tmp_path / "notes" / "progress").iterdir()] == [f"{NAME}.json"]
    notes.remove("progress", NAME)
    notes.remove("progress", NAME)
    assert notes.read("progress") == {}


def test_the_oldest_note_comes_first(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    names = [character * 32 for character in "cab"]
    for age, name in enumerate(names):
        notes.write("curves", name, {})
        os.utime(tmp_path / "notes" / "curves" / f"{name}.json", (age, age))
    assert list(notes.read("curves")) == names


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"text"', b"[" * 100_000])
def test_what_is_no_note_is_not_there(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "notes" / "studies"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.json").write_bytes(content)
    (folder / "README.json").write_text("{}")
    assert Notes(tmp_path).read("studies") == {}


def test_a_large_note_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.store.notes.LARGEST", 10)
    notes = Notes(tmp_path)
    notes.write("studies", NAME, {"text": "x" * 20})
    assert notes.read("studies") == {}


def test_a_disk_that_refuses_costs_a_note_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file where a folder should be")
    notes = Notes(tmp_path)
    notes.write("progress", NAME, {})
    notes.remove("progress", NAME)
    assert notes.read("progress") == {}


def test_a_note_that_could_not_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    Notes(tmp_path).write("progress", NAME, {})
    assert [*(tmp_path / "notes" / "progress").iterdir()] == []


def test_names_are_checked_before_they_are_paths(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Notes(tmp_path).write("progress", "../x", {})
    with pytest.raises(AssertionError):
        Notes(tmp_path).write("..", NAME, {})


def plans() -> list[Plan]:
    """Two studies that share the dense run and a chain."""
    both = [{"criterion": "large_final"}, {"criterion": "random"}]
    return [small_plan(*both), small_plan(both[0], {"criterion": "large_init"})]


def test_studies_joined_are_their_runs_each_once_parents_first() -> None:
    one, other = plans()
    graph = joined([one, other])
    assert set(graph.runs) == set(one.runs) | set(other.runs)
    assert len(graph.runs) == len(one.runs) + len(other.runs) - 3  # dense, and two levels
    seen: set[str | None] = {None}
    for run in graph.runs.values():
        assert run.parent in seen
        seen.add(run.id)
    assert graph.children[next(iter(graph.runs))] == [run for run in graph.runs.values() if run.level == 1]


def test_several_studies_are_carried_out_as_one_and_noted(tmp_path: Path) -> None:
    made = plans()
    schedule = carry_out_plans(made, How(tmp_path / "store", workers=2))
    assert sorted(schedule.status) == sorted(joined(made).runs)
    assert set(schedule.status.values()) == {"finished"}
    notes = Notes(tmp_path / "store")
    studies = notes.read("studies")
    assert [study_from(note["study"], name=note["name"]) for note in studies.values()] == [p.study for p in made]
    assert all(name == name_of(note) for name, note in studies.items())
    (progress,) = notes.read("progress").values()
    assert progress["state"] == "ended"
    assert (progress["tasks"], progress["left"], progress["in_flight"]) == (len(schedule.status), 0, [])
    assert sorted(progress["studies"]) == sorted(studies)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "runs").rglob("*")}
    carry_out_plans(made, How(tmp_path / "store"))
    assert len(notes.read("progress")) == 1  # nothing was left to do, and nothing is noted of it
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "runs").rglob("*")} == before


def noted(tmp_path: Path) -> dict[str, Any]:
    (note,) = Notes(tmp_path).read("progress").values()
    return note


def test_what_is_in_flight_and_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BEAT_SECONDS", 0.01)
    plan = small_plan()
    schedule = Schedule(plan, Store(tmp_path))
    dense = schedule.next()
    assert dense is not None

    def until(condition: str) -> dict[str, Any]:
        for _ in range(500):
            if eval(condition, {}, {"note": noted(tmp_path)}):  # noqa: S307
                return noted(tmp_path)
            time.sleep(0.01)
        raise AssertionError(noted(tmp_path))

    with pytest.raises(ValueError, match="the disk is on fire"), Journal([plan.study], schedule, 2) as kept:
        assert until("not note['in_flight']")["state"] == "running"
        kept.started(dense)
        assert until("note['in_flight']")["in_flight"][0]["run"] == dense.run.id
        result = Result(dense.run.id, "diverged", 1.0, {"diverged_at": 7})
        schedule.ended(dense, result)
        kept.ended(schedule, dense, result)
        note = until("note['failures']")
        assert note["failures"] == [{"run": dense.run.id, "status": "diverged", "message": "at iteration 7"}]
        assert (note["in_flight"], note["left"], note["workers"], note["pid"]) == ([], 0, 2, os.getpid())
        raise ValueError("the disk is on fire")
    assert (noted(tmp_path)["state"], noted(tmp_path)["message"]) == ("failed", "the disk is on fire")


@pytest.mark.parametrize(
    ("end", "state", "message"),
    [
        (Stopped(3), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(1), "stopped", ""),
        (AssertionError(), "failed", "AssertionError"),
    ],
)
def test_how_a_command_ended_is_noted(tmp_path: Path, end: BaseException, state: str, message: str) -> None:
    plan = small_plan()
    with pytest.raises(type(end)), Journal([plan.study], Schedule(plan, Store(tmp_path)), 1):
        raise end
    assert (noted(tmp_path)["state"], noted(tmp_path)["message"]) == (state, message)


def test_training_does_not_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BEAT_SECONDS", 0.01)
    writing, written, write = threading.Event(), threading.Event(), Notes.write

    def slowly(notes: Notes, kind: str, name: str, note: dict[str, Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            writing.set()
            assert written.wait(30)
        write(notes, kind, name, note)

    monkeypatch.setattr(Notes, "write", slowly)
    plan = small_plan()
    schedule = Schedule(plan, Store(tmp_path))
    dense = schedule.next()
    assert dense is not None
    with Journal([plan.study], schedule, 1) as kept:
        assert writing.wait(30)
        began = time.monotonic()
        kept.started(dense)
        assert time.monotonic() - began < 5
        written.set()
    assert noted(tmp_path)["state"] == "ended"


def test_old_progress_is_forgotten(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.write("progress", NAME, {"updated": time.time() - 10 * 86400})
    notes.write("progress", "f" * 32, {"updated": "never"})
    notes.write("curves", NAME, {"updated": time.time() - 10 * 86400})
    notes.write("curves", "f" * 32, {"updated": time.time()})
    plan = small_plan()
    with Journal([plan.study], Schedule(plan, Store(tmp_path)), 1):
        pass
    assert NAME not in notes.read("progress")
    assert list(notes.read("curves")) == ["f" * 32]


def test_a_curve_is_noted_while_its_run_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "NOTE_SECONDS", 0.0)
    seen: list[dict[str, Any]] = []
    write = Notes.write

    def kept(notes: Notes, kind: str, name: str, note: dict[str, Any]) -> None:
        write(notes, kind, name, note)
        seen.append(notes.read(kind)[name])

    monkeypatch.setattr(Notes, "write", kept)
    plan = small_plan(levels=1)
    carry_out(plan, tmp_path)
    assert {note["run"] for note in seen} == set(plan.runs)
    assert [note["iterations"] for note in seen[:4]] == [[0], [0, 4], [0, 4, 8], [0, 4, 8, 12]]
    (whole,) = {run.recipe.iterations for run in plan.runs.values()}
    assert all(note["of"] == whole and len(note["validation_loss"]) == len(note["iterations"]) for note in seen)
    assert Notes(tmp_path).read("curves") == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_can_be_looked_at(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    notes.write("studies", NAME, {"a": 1})
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert notes.read("studies") == {NAME: {"a": 1}}
    tmp_path.chmod(stat.S_IRWXU)


def test_notes_change_nothing_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    carry_out(plan, tmp_path / "without")
    monkeypatch.setattr(checkpoints, "NOTE_SECONDS", 0.0)
    carry_out(plan, tmp_path / "with", checkpoint_seconds=0.0)
    for run_id in plan.runs:
        assert Store(tmp_path / "with").contents(run_id) == Store(tmp_path / "without").contents(run_id)


def test_how_is_checked_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 workers cannot train anything"):
        How(tmp_path, workers=0).check()
    with pytest.raises(UserError, match="'warp' is not an engine"):
        carry_out_plans([], How(tmp_path, engine="warp"))
    assert json.dumps(sorted(tmp_path.iterdir())) == "[]"
    assert Site(tmp_path).store == tmp_path


@pytest.mark.parametrize(("cluster", "expected"), [(None, 2), ("local", 5), ("auto", 5)])
def test_two_share_the_gpu_of_this_machine_and_a_ray_has_all_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str | None, expected: int
) -> None:
    """It may have several GPUs, each with room for two tasks of one core."""
    given: list[int] = []

    @contextmanager
    def executor(_: object, workers: int | None, here: int) -> Iterator[tuple[Any, int]]:
        given.append(here)
        yield (lambda *_, schedule, starting: schedule), workers or here

    monkeypatch.setattr("supermask.carrying_out.executor", executor)
    monkeypatch.setattr("supermask.carrying_out.check_device", lambda _: None)
    monkeypatch.setattr("supermask.carrying_out.default_workers", lambda: 5)
    carry_out_plans([small_plan(levels=1)], How(tmp_path, device="cuda", engine="stacked", stack=4, cluster=cluster))
    assert given == [expected]
