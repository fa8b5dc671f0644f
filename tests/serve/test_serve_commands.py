"""Dashboard over HTTP: running commands, and notes that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.serving import client, note_curve, note_progress, note_study
from helpers.stored_study import RUNS, TrainedStudy


def test_running_command(store_copy: Path, trained: TrainedStudy, no_wait: None) -> None:
    key = note_study(store_copy, trained.plan)
    run_id = trained.run_id(2)
    flight = [{"run": run_id, "since": 0.0}, {"run": "f" * 32, "since": 0.0}]
    failures = [{"run": trained.run_id(1), "status": "diverged", "message": "<b>loss</b> is not finite"}]
    note_progress(store_copy, key, in_flight=flight, failures=failures)
    note_curve(store_copy, run_id)
    page = client(store_copy)
    (command,) = page.get("/live.json").json()["commands"]
    assert (command["state"], command["names"]) == ("running", ["small"])
    assert (command["tasks"], command["left"], command["time_left"]) == (18, 5, "42 s")
    first, second = command["in_flight"]
    assert (first["label"], first["level"], first["seed"]) == ("large_final + zero", 2, 0)
    assert first["curve"]["iterations"] == [0, 4, 8, 12]
    assert (second["label"], second["level"], second["curve"]) == ("", None, None)
    (failure,) = command["failures"]
    assert failure["message"] == "<b>loss</b> is not finite"
    assert failure["stored"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"updated": 1e9}, "interrupted"),
        ({"pid": 2**22 + 7}, "interrupted"),
        ({"pid": 10**30}, "interrupted"),
        ({"pid": -1}, "interrupted"),
        ({"pid": 2**22 + 7, "host": "elsewhere"}, "running"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "failed", "message": "the disk is full"}, "failed"),
        ({"state": "ended"}, None),
        ({"state": "no such state"}, "failed"),
    ],
)
def test_state_of_a_command(
    store_copy: Path, trained: TrainedStudy, changes: dict[str, Any], state: str | None
) -> None:
    note_progress(
        store_copy, note_study(store_copy, trained.plan), in_flight=[{"run": "0" * 32, "since": 0.0}], **changes
    )
    commands = client(store_copy).get("/live.json").json()["commands"]
    assert [command["state"] for command in commands] == ([] if state is None else [state])
    if commands and state != "running":
        assert commands[0]["in_flight"] == []
        assert commands[0]["time_left"] == ""


@pytest.mark.parametrize(("changes", "more"), [({}, 10), ({"failure_count": 150}, 130)])
def test_the_latest_failures_are_shown_and_the_others_counted(
    store_copy: Path, trained: TrainedStudy, changes: dict[str, Any], more: int
) -> None:
    failures = [{"run": "0" * 32, "status": "diverged", "message": str(number)} for number in range(30)]
    note_progress(store_copy, note_study(store_copy, trained.plan), failures=failures, **changes)
    (command,) = client(store_copy).get("/live.json").json()["commands"]
    assert [failure["message"] for failure in command["failures"]] == [str(number) for number in range(10, 30)]
    assert command["more_failures"] == more


def test_only_the_latest_command_of_a_study_is_shown(store_copy: Path, trained: TrainedStudy) -> None:
    key = note_study(store_copy, trained.plan)
    note_progress(store_copy, key, "1" * 32, state="stopped", updated=1000.0)
    note_progress(store_copy, key, "2" * 32, left=3)
    (command,) = client(store_copy).get("/live.json").json()["commands"]
    assert (command["state"], command["left"]) == ("running", 3)


HOSTILE: list[Any] = [
    {},
    {"studies": 7},
    {"state": ["running"]},
    {"tasks": -1},
    {"updated": "now"},
    {"in_flight": [{"run": "../../x", "since": 0}]},
    {"failures": [{"run": "<script>", "status": "x"}]},
]


@pytest.mark.parametrize("changes", HOSTILE[1:])
def test_malformed_notes_are_ignored(store_copy: Path, trained: TrainedStudy, changes: dict[str, Any]) -> None:
    note_progress(store_copy, note_study(store_copy, trained.plan), **changes)
    answer = client(store_copy).get("/live.json")
    assert answer.status_code == 200
    assert answer.json()["commands"] == []


def test_malformed_note_files_are_ignored(store_copy: Path) -> None:
    for kind in ("progress", "curves", "studies"):
        (store_copy / "notes" / kind).mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(["", "[]", "{", "{}", '{"run": NaN}', '{"of": 1e999}', "null", '"x"']):
            (store_copy / "notes" / kind / f"{number:032d}.json").write_text(text)
    answer = client(store_copy).get("/live.json")
    assert answer.status_code == 200
    assert answer.json()["commands"] == []
    shown = [study for study in answer.json()["studies"] if not study["why_not"]]
    assert [study["name"] for study in shown] == ["small"]


@pytest.mark.parametrize("key", ["criterion", "mask0", "train"])
def test_a_deeply_nested_study_is_ignored(store_copy: Path, key: str) -> None:
    """Deeper than Python's recursion goes, and less deep than its JSON parser does."""
    for depth in (20, 200, 700):
        text = f'{{"name": "deep", "study": {{"treatments": [{{"{key}": {"[" * depth}{"]" * depth}}}]}}}}'
        (store_copy / "notes" / "studies" / f"{depth:032d}.json").write_text(text)
    page = client(store_copy)
    for _ in range(2):
        answer = page.get("/live.json")
        assert answer.status_code == 200
        assert "small" in [study["name"] for study in answer.json()["studies"] if not study["why_not"]]


def test_curve_with_nan_is_ignored(store_copy: Path, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    note_progress(store_copy, note_study(store_copy, trained.plan), in_flight=[{"run": run_id, "since": 0.0}])
    path = store_copy / "notes" / "curves" / f"{run_id}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'{{"run": "{run_id}", "of": 9, "iterations": [0], "validation_loss": [NaN], "validation_accuracy": [0.5]}}'
    )
    (command,) = client(store_copy).get("/live.json").json()["commands"]
    assert command["in_flight"][0]["curve"] is None


def test_long_curves_are_thinned_and_keep_their_last_point(store_copy: Path, trained: TrainedStudy) -> None:
    run_id = trained.run_id(2)
    note_progress(store_copy, note_study(store_copy, trained.plan), in_flight=[{"run": run_id, "since": 0.0}])
    note_curve(store_copy, run_id, points=5001, of=20_000)
    (command,) = client(store_copy).get("/live.json").json()["commands"]
    curve = command["in_flight"][0]["curve"]
    assert len(curve["iterations"]) <= 240
    assert curve["iterations"][-1] == 20_000
    assert len(curve["validation_loss"]) == len(curve["validation_accuracy"]) == len(curve["iterations"])


def test_interrupted_study_without_runs(tmp_path: Path, trained: TrainedStudy) -> None:
    key = note_study(tmp_path, trained.plan)
    note_progress(tmp_path, key, pid=2**22 + 7)
    status = client(tmp_path).get("/live.json").json()
    assert (status["studies"][0]["done"], status["studies"][0]["total"]) == (0, RUNS)
    assert status["commands"][0]["state"] == "interrupted"
