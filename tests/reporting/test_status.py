"""Status: notes on runs of several environments and on runs that were trained on different data."""

from __future__ import annotations

import pytest
from helpers.command_line import call
from helpers.report_page import read
from helpers.stored_study import TrainedStudy, train_study

from supermask.api import runs
from supermask.core.text import Row
from supermask.reporting.html import build_report, sections
from supermask.reporting.status import environment_note, format_status, mixed_data_note
from supermask.store.rows import STATUSES


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("status"))


def run(seed: int, environment: str | None = "e1" * 32, data: str = "d1" * 32, **facts: str) -> Row:
    return {
        "id": f"run-{seed}",
        "treatment": "random",
        "level": 1,
        "seed": seed,
        "status": "finished",
        "density": 0.5,
        "early_stop_test_accuracy": 0.9 + 0.01 * seed,
        "engine": "sparse",
        "torch": "2.10.0",
        "environment": environment,
        "data_fingerprint": data,
        **facts,
    }


def test_one_environment_and_one_data_set_have_no_note() -> None:
    rows = [run(0), run(1), run(2, environment=None)]
    assert environment_note(rows) == mixed_data_note(rows) == ""
    assert format_status(["random"], rows).count("\n") == 3


def test_the_note_counts_the_runs_of_each_environment() -> None:
    rows = [run(0), run(1), run(2, "f2" * 32, engine="reference", torch="2.11.0")]
    note = environment_note(rows)
    assert note.startswith(
        "These runs mix 2 environments: 2 runs in e1e1e1e1 (sparse engine, torch 2.10.0); "
        "1 run in f2f2f2f2 (reference engine, torch 2.11.0). Repeated runs are bit-identical only within one"
    )
    assert note in format_status(["random"], rows)
    assert environment_note([*rows, rows[0]]) == note, "a run that several treatments share counts once"


def test_accuracies_of_different_data_are_not_averaged() -> None:
    rows = [run(0), run(1, data="f2" * 32)]
    text = format_status(["random"], rows)
    assert "mixed data" in text and "90.50%" not in text
    assert "2 different versions of the data: 1 run in d1d1d1d1; 1 run in f2f2f2f2." in text
    assert "(--store)" in text


def test_report_and_command_name_the_environments(trained: TrainedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, rows, _ = runs.study_rows(str(trained.study), store=trained.store)
    mixed = [{**row, "environment": "f2" * 32} if row["seed"] == 1 else row for row in rows]
    monkeypatch.setattr(runs, "study_rows", lambda *_: (plan, mixed, []))
    printed = call("status", *trained.args).out
    assert "These runs mix 2 environments: 9 runs in " in printed
    report = build_report([(plan, mixed, [])], [], trained.open_store(), "")
    page = sections(report)
    assert "These runs mix 2 environments: 9 runs in " in read(page["study-small"]).text
    assert "These runs come from 2 environments. One study mixes environments" in read(page["provenance"]).text
    report = build_report([(plan, rows, [])], [], trained.open_store(), "")
    page = sections(report)
    assert "mix" not in read(page["provenance"]).text + read(page["study-small"]).text


def test_every_status_has_a_title_and_a_wording() -> None:
    from supermask.reporting.figures.caption import STATUS_WORDING
    from supermask.reporting.status import COLUMN_TITLES, END_STATUSES

    assert set(STATUSES) <= set(COLUMN_TITLES) & set(END_STATUSES) & set(STATUS_WORDING)
