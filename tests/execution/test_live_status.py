"""Status notes during the execution of plans; a note that cannot be written never ends a training."""

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
from helpers.small_studies import small_plan, train_plan

from supermask.core.errors import UserError
from supermask.execution import checkpoints, live_status
from supermask.execution.live_status import LiveStatusWriter
from supermask.execution.local import StudyInterrupted
from supermask.execution.run import RunOptions, run_plans
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import TaskResult, WorkerConfig
from supermask.store import Store
from supermask.store.files.notes import StatusNotes, note_id
from supermask.study import study_from_dict
from supermask.study.plan import Plan, merge_plans

NAME = "0123456789abcdef" * 2


def test_a_note_can_be_read_back_and_replaced(tmp_path: Path) -> None:
    notes = StatusNotes(tmp_path)
    assert notes.read("progress") == {}
    for note in ({"a": 1}, {"a": 2, "text": "<script> שלום"}):
        notes.write("progress", NAME, note)
        assert notes.read("progress") == {NAME: note}
    assert [path.name for path in (tmp_path / "notes" / "progress").iterdir()] == [f"{NAME}.json"]
    notes.remove("progress", NAME)
    notes.remove("progress", NAME)
    assert notes.read("progress") == {}


def test_the_oldest_note_comes_first(tmp_path: Path) -> None:
    notes = StatusNotes(tmp_path)
    names = [character * 32 for character in "cab"]
    for age, name in enumerate(names):
        notes.write("curves", name, {})
        os.utime(tmp_path / "notes" / "curves" / f"{name}.json", (age, age))
    assert list(notes.read("curves")) == names


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"text"', b"[" * 100_000])
def test_invalid_notes_are_ignored(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "notes" / "studies"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.json").write_bytes(content)
    (folder / "README.json").write_text("{}")
    assert StatusNotes(tmp_path).read("studies") == {}


def test_a_large_note_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.store.files.notes.MAX_BYTES", 10)
    notes = StatusNotes(tmp_path)
    notes.write("studies", NAME, {"text": "x" * 20})
    assert notes.read("studies") == {}


def test_a_note_that_cannot_be_written_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("a file where a folder should be")
    notes = StatusNotes(tmp_path)
    notes.write("progress", NAME, {})
    notes.remove("progress", NAME)
    assert notes.read("progress") == {}


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    StatusNotes(tmp_path).write("progress", NAME, {})
    assert [*(tmp_path / "notes" / "progress").iterdir()] == []


def test_names_are_validated_before_they_become_paths(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        StatusNotes(tmp_path).write("progress", "../x", {})
    with pytest.raises(AssertionError):
        StatusNotes(tmp_path).write("..", NAME, {})


def make_plans() -> list[Plan]:
    """Return the plans of two studies that share the dense run and a chain."""
    both = [{"criterion": "large_final"}, {"criterion": "random"}]
    return [small_plan(*both), small_plan(both[0], {"criterion": "large_init"})]


def test_merged_plans_hold_each_run_once_and_parents_first() -> None:
    one, other = make_plans()
    graph = merge_plans([one, other])
    assert set(graph.runs) == set(one.runs) | set(other.runs)
    assert len(graph.runs) == len(one.runs) + len(other.runs) - 3  # The dense run and two levels.
    seen: set[str | None] = {None}
    for run in graph.runs.values():
        assert run.parent in seen
        seen.add(run.id)
    assert graph.children[next(iter(graph.runs))] == [run for run in graph.runs.values() if run.level == 1]


@pytest.mark.slow
def test_several_studies_run_as_one_plan_and_are_noted(tmp_path: Path) -> None:
    two_plans = make_plans()
    scheduler = run_plans(two_plans, RunOptions(tmp_path / "store", workers=2))
    assert sorted(scheduler.status) == sorted(merge_plans(two_plans).runs)
    assert set(scheduler.status.values()) == {"finished"}
    notes = StatusNotes(tmp_path / "store")
    studies = notes.read("studies")
    assert [study_from_dict(note["study"], name=note["name"]) for note in studies.values()] == [
        p.study for p in two_plans
    ]
    assert all(name == note_id(note) for name, note in studies.items())
    (progress,) = notes.read("progress").values()
    assert progress["state"] == "ended"
    assert (progress["tasks"], progress["left"], progress["in_flight"]) == (len(scheduler.status), 0, [])
    assert sorted(progress["studies"]) == sorted(studies)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "runs").rglob("*")}
    run_plans(two_plans, RunOptions(tmp_path / "store"))
    assert len(notes.read("progress")) == 1  # A command with nothing to do leaves no progress note.
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "runs").rglob("*")} == before


def progress_note(tmp_path: Path) -> dict[str, Any]:
    (note,) = StatusNotes(tmp_path).read("progress").values()
    return note


def test_running_tasks_and_failures_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_status, "UPDATE_SECONDS", 0.01)
    plan = small_plan()
    scheduler = Scheduler(plan, Store(tmp_path))
    dense = scheduler.take()
    assert dense is not None

    def wait_for_note(condition: str) -> dict[str, Any]:
        for _ in range(500):
            if eval(condition, {}, {"note": progress_note(tmp_path)}):  # noqa: S307
                return progress_note(tmp_path)
            time.sleep(0.01)
        raise AssertionError(progress_note(tmp_path))

    with pytest.raises(ValueError, match="the disk is on fire"), LiveStatusWriter([plan.study], scheduler, 2) as writer:
        assert wait_for_note("not note['in_flight']")["state"] == "running"
        writer.on_start(dense)
        assert wait_for_note("note['in_flight']")["in_flight"][0]["run"] == dense.run.id
        result = TaskResult(dense.run.id, "diverged", 1.0, {"diverged_at": 7})
        scheduler.finish(dense, result)
        writer.on_end(scheduler, dense, result)
        note = wait_for_note("note['failures']")
        assert note["failures"] == [{"run": dense.run.id, "status": "diverged", "message": "at iteration 7"}]
        assert (note["in_flight"], note["left"], note["workers"], note["pid"]) == ([], 0, 2, os.getpid())
        raise ValueError("the disk is on fire")
    assert (progress_note(tmp_path)["state"], progress_note(tmp_path)["message"]) == ("failed", "the disk is on fire")


def test_the_latest_failures_are_noted_and_all_are_counted(tmp_path: Path) -> None:
    plan = small_plan()
    scheduler = Scheduler(plan, Store(tmp_path))
    task = scheduler.take()
    assert task is not None
    with LiveStatusWriter([plan.study], scheduler, 1) as writer:
        for iteration in range(150):
            writer.on_end(scheduler, task, TaskResult(task.run.id, "not_started", message=f"failure {iteration}"))
    note = progress_note(tmp_path)
    assert [failure["message"] for failure in note["failures"]] == [f"failure {i}" for i in range(50, 150)]
    assert note["failure_count"] == 150


@pytest.mark.parametrize(
    ("end", "state", "message"),
    [
        (StudyInterrupted(3), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
        (SystemExit(1), "stopped", ""),
        (AssertionError(), "failed", "AssertionError"),
    ],
)
def test_the_end_of_a_command_is_noted(tmp_path: Path, end: BaseException, state: str, message: str) -> None:
    plan = small_plan()
    with pytest.raises(type(end)), LiveStatusWriter([plan.study], Scheduler(plan, Store(tmp_path)), 1):
        raise end
    assert (progress_note(tmp_path)["state"], progress_note(tmp_path)["message"]) == (state, message)


def test_training_does_not_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_status, "UPDATE_SECONDS", 0.01)
    writing, written, write = threading.Event(), threading.Event(), StatusNotes.write

    def slowly(notes: StatusNotes, kind: str, name: str, note: dict[str, Any]) -> None:
        if threading.current_thread() is not threading.main_thread():
            writing.set()
            assert written.wait(30)
        write(notes, kind, name, note)

    monkeypatch.setattr(StatusNotes, "write", slowly)
    plan = small_plan()
    scheduler = Scheduler(plan, Store(tmp_path))
    dense = scheduler.take()
    assert dense is not None
    with LiveStatusWriter([plan.study], scheduler, 1) as writer:
        assert writing.wait(30)
        began = time.monotonic()
        writer.on_start(dense)
        assert time.monotonic() - began < 5
        written.set()
    assert progress_note(tmp_path)["state"] == "ended"


def test_old_notes_are_removed(tmp_path: Path) -> None:
    notes = StatusNotes(tmp_path)
    notes.write("progress", NAME, {"updated": time.time() - 10 * 86400})
    notes.write("progress", "f" * 32, {"updated": "never"})
    notes.write("curves", NAME, {"updated": time.time() - 10 * 86400})
    notes.write("curves", "f" * 32, {"updated": time.time()})
    plan = small_plan()
    with LiveStatusWriter([plan.study], Scheduler(plan, Store(tmp_path)), 1):
        pass
    assert NAME not in notes.read("progress")
    assert list(notes.read("curves")) == ["f" * 32]


def test_a_curve_is_noted_while_its_run_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "NOTE_SECONDS", 0.0)
    seen: list[dict[str, Any]] = []
    write = StatusNotes.write

    def writer(notes: StatusNotes, kind: str, name: str, note: dict[str, Any]) -> None:
        write(notes, kind, name, note)
        seen.append(notes.read(kind)[name])

    monkeypatch.setattr(StatusNotes, "write", writer)
    plan = small_plan(levels=1)
    train_plan(plan, tmp_path)
    assert {note["run"] for note in seen} == set(plan.runs)
    assert [note["iterations"] for note in seen[:4]] == [[0], [0, 4], [0, 4, 8], [0, 4, 8, 12]]
    (iterations,) = {run.recipe.iterations for run in plan.runs.values()}
    assert all(note["of"] == iterations and len(note["validation_loss"]) == len(note["iterations"]) for note in seen)
    assert StatusNotes(tmp_path).read("curves") == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_notes_of_a_read_only_store_can_be_read(tmp_path: Path) -> None:
    notes = StatusNotes(tmp_path)
    notes.write("studies", NAME, {"a": 1})
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert notes.read("studies") == {NAME: {"a": 1}}
    tmp_path.chmod(stat.S_IRWXU)


def test_notes_change_no_bit_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    train_plan(plan, tmp_path / "without")
    monkeypatch.setattr(checkpoints, "NOTE_SECONDS", 0.0)
    train_plan(plan, tmp_path / "with", checkpoint_seconds=0.0)
    for run_id in plan.runs:
        assert Store(tmp_path / "with").tensor_hashes(run_id) == Store(tmp_path / "without").tensor_hashes(run_id)


def test_options_are_validated_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 workers cannot train anything"):
        RunOptions(tmp_path, workers=0).validate()
    with pytest.raises(UserError, match="'warp' is not an engine"):
        run_plans([], RunOptions(tmp_path, engine="warp"))
    assert json.dumps(sorted(tmp_path.iterdir())) == "[]"
    assert WorkerConfig(tmp_path).store == tmp_path


@pytest.mark.parametrize(("cluster", "expected"), [(None, 2), ("local", 5), ("auto", 5)])
def test_two_workers_share_this_machines_gpu_and_ray_uses_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str | None, expected: int
) -> None:
    """A Ray may have several GPUs, each for two tasks of one core."""
    slots: list[int] = []

    @contextmanager
    def fake_executor(_: object, workers: int | None, local_slots: int) -> Iterator[tuple[Any, int]]:
        slots.append(local_slots)
        yield (lambda request: request.scheduler), workers or local_slots

    monkeypatch.setattr("supermask.execution.run.open_executor", fake_executor)
    monkeypatch.setattr("supermask.execution.run.check_device", lambda _: None)
    monkeypatch.setattr("supermask.execution.run.default_workers", lambda: 5)
    run_plans([small_plan(levels=1)], RunOptions(tmp_path, device="cuda", engine="stacked", stack=4, cluster=cluster))
    assert slots == [expected]
