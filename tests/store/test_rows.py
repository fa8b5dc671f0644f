"""Rows of a study and of a store: planned, ended and damaged runs."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.mask_studies import mask_plan
from helpers.small_studies import small_plan, train_plan
from helpers.stored_study import RUNS, TrainedStudy, train_study

from supermask.core.errors import UserError
from supermask.core.types import LearningCurve
from supermask.store import Store
from supermask.store.files.notes import StatusNotes, note_id
from supermask.store.records import decode_curve
from supermask.store.rows import STATUSES, plan_rows, resolve_run_id, store_rows, validation_rise
from supermask.store.tables import COLUMNS, to_csv, to_json, treatment_labels
from supermask.study import load_study
from supermask.study.plan import make_plan


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("rows"))


def test_every_run_has_one_row_with_known_columns(trained: TrainedStudy) -> None:
    rows, damaged = plan_rows(trained.plan, trained.open_store())
    assert [row["id"] for row in rows] == list(trained.plan.runs)
    assert not damaged
    for row in rows:
        assert row.keys() <= COLUMNS.keys()
        assert row["status"] == "finished"
        assert row["certificate"] == "held"
        assert row["study"] == "small"


def test_a_dense_run_is_called_dense_and_has_no_criterion(trained: TrainedStudy) -> None:
    rows, _ = plan_rows(trained.plan, trained.open_store())
    dense = [row for row in rows if row["level"] == 0]
    assert [(row["treatment"], row["density"], row.get("criterion")) for row in dense] == [("dense", 1.0, None)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "treatment",
    [{}, {"schedule": "one_shot"}, {"scope": "global"}, {"scope": "global", "schedule": "one_shot", "rewind_to": 4}],
)
def test_planned_counts_equal_stored_counts(tmp_path: Path, treatment: dict[str, str]) -> None:
    plan = small_plan(treatment, network="fc-8", levels=3)
    planned, _ = plan_rows(plan, Store(tmp_path))
    assert {row["status"] for row in planned} == {"to_do"}
    train_plan(plan, tmp_path)
    ended, _ = plan_rows(plan, Store(tmp_path))
    assert {row["status"] for row in ended} == {"finished"}
    for before, after in zip(planned, ended, strict=True):
        known = {name: value for name, value in before.items() if name not in ("status", "certificate")}
        assert {name: after[name] for name in known} == known


def test_a_run_of_several_treatments_has_all_their_labels(tmp_path: Path) -> None:
    plan = small_plan({"name": "a chain"}, {"name": "at once", "schedule": "one_shot"}, network="fc-8")
    rows, _ = plan_rows(plan, Store(tmp_path))
    labels = {(row["level"], *treatment_labels(row)) for row in rows}
    assert labels == {(0, "dense"), (1, "a chain", "at once"), (2, "a chain"), (2, "at once")}


def test_an_extended_study_is_partly_to_do(trained: TrainedStudy) -> None:
    more = make_plan(load_study(trained.study, ["scale=more"]))
    rows, _ = plan_rows(more, trained.open_store())
    assert {row["level"]: row["status"] for row in rows} == {0: "finished", 1: "finished", 2: "finished", 3: "to_do"}


def test_below_a_diverged_run_nothing_is_to_do(tmp_path: Path) -> None:
    plan = small_plan(network="fc-8", lr=1e30)
    train_plan(plan, tmp_path)
    rows, _ = plan_rows(plan, Store(tmp_path))
    assert [row["status"] for row in rows] == ["diverged", "ancestor_diverged", "ancestor_diverged"]
    assert rows[0]["diverged_at"]
    assert rows[0]["final_test_accuracy"] is None
    assert all(row["status"] in STATUSES for row in rows)


def test_below_a_refused_run_the_status_names_the_certificate(tmp_path: Path) -> None:
    plan = small_plan(network="fc-8", levels=3)
    train_plan(plan, tmp_path)
    store = Store(tmp_path)
    _, refused, *below = plan.runs
    entry = store.read(refused)
    for run_id in (refused, *below):
        store.quarantine(run_id, "a test")
    store.commit(refused, {**entry.facts, "status": "certificate_failed"}, entry.tensors, entry.weights or {})
    rows, _ = plan_rows(plan, store)
    expected = ["finished", "certificate_failed", "ancestor_certificate_failed", "ancestor_certificate_failed"]
    assert [row["status"] for row in rows] == expected


def test_a_damaged_run_is_reported_and_counts_as_to_do(trained: TrainedStudy, tmp_path: Path) -> None:
    shutil.copytree(trained.store, tmp_path / "store")
    run_id = trained.run_id(1)
    path = tmp_path / "store" / "runs" / run_id[:2] / run_id / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 9'))
    rows, damaged = plan_rows(trained.plan, Store(tmp_path / "store"))
    assert {row["id"] for row in rows if row["status"] == "to_do"} == {run_id}
    everything, also = store_rows(Store(tmp_path / "store"))
    assert len(everything) == RUNS - 1
    (text,) = damaged
    assert text in also
    assert run_id in text


def test_rows_of_a_store_belong_to_no_study(trained: TrainedStudy) -> None:
    rows, damaged = store_rows(trained.open_store())
    assert [row["id"] for row in rows] == sorted(trained.plan.runs)
    assert not damaged
    assert {row["study"] for row in rows} == {None}
    assert {row["treatment"] for row in rows} == {
        "dense",
        "large_final, rewind, zero",
        "large_final, rewind, freeze_init",
        "random, rewind, zero",
        "random, rewind, freeze_init",
    }


def test_reading_an_absent_store_makes_nothing(trained: TrainedStudy, tmp_path: Path) -> None:
    rows, _ = plan_rows(trained.plan, Store(tmp_path / "absent"))
    assert {row["status"] for row in rows} == {"to_do"}
    assert store_rows(Store(tmp_path / "absent")) == ([], [])
    assert not (tmp_path / "absent").exists()
    assert to_csv(rows).count("\n") == RUNS + 1
    assert to_json(rows).count("\n") == RUNS + 2


def test_a_run_id_is_resolved_from_its_prefix(trained: TrainedStudy) -> None:
    store = trained.open_store()
    for run_id in trained.plan.runs:
        assert resolve_run_id(store, run_id) == run_id
        assert resolve_run_id(store, run_id[:20].upper()) == run_id
    for unknown in ("", "g", run_id + "0", "runs/../", "*"):
        with pytest.raises(UserError, match="no run in"):
            resolve_run_id(store, unknown)


def test_the_first_level_has_the_schedule_of_the_study(tmp_path: Path) -> None:
    """It is the same run under both."""
    both = small_plan({"name": "chain"}, {"name": "at once", "schedule": "one_shot"}, network="fc-8", levels=2)
    once = small_plan({"schedule": "one_shot"}, network="fc-8", levels=2)
    for plan, first in ((both, "iterative | one_shot"), (once, "one_shot")):
        rows, _ = plan_rows(plan, Store(tmp_path / "store"))
        assert {row["schedule"] for row in rows if row["level"] == 1} == {first}
        assert {row.get("schedule") for row in rows if row["level"] == 0} == {None}


def test_runs_of_a_store_have_the_names_of_the_studies_that_were_run_there(
    trained: TrainedStudy, tmp_path: Path
) -> None:
    shutil.copytree(trained.store, tmp_path / "store", copy_function=shutil.copyfile)
    notes, study = StatusNotes(tmp_path / "store"), load_study(trained.study)
    for name, data in (("one", study.as_data()), ("two", study.as_data()), ("broken", {"network": 3}), ("none", None)):
        note = {"name": name, "study": data}
        notes.write("studies", note_id(note), note)
    rows, _ = store_rows(Store(tmp_path / "store"))
    assert {frozenset(str(row["study"]).split(" | ")) for row in rows} == {frozenset({"one", "two"})}


def test_a_note_that_names_user_code_is_not_planned(
    trained: TrainedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_note.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(trained.store, tmp_path / "store", copy_function=shutil.copyfile)
    for key in ("criterion", "supermask"):
        value = "evil_note:score" if key == "criterion" else {"start_from": ["evil_note:score"]}
        note = {"name": "evil", "study": {"network": "fc-8", "treatments": [{key: value}]}}
        StatusNotes(tmp_path / "store").write("studies", note_id(note), note)
    rows, _ = store_rows(Store(tmp_path / "store"))
    assert {row["study"] for row in rows} == {None}
    assert "evil_note" not in sys.modules


def test_the_rise_of_the_validation_accuracy_is_the_slope_over_the_last_doubling() -> None:
    iterations = [0, 100, 200, 300, 400, 500, 600, 700, 800]
    accuracies = [0.1, 0.5, 0.6, 0.66, 0.7, 0.72, 0.735, 0.75, 0.76]
    curve = LearningCurve(iterations, [math.nan] * 9, [1.0] * 9, accuracies)
    slope, _ = np.polyfit(np.log2(iterations[4:]), accuracies[4:], 1)
    assert validation_rise(curve) == pytest.approx(slope, rel=1e-12)
    exact = [0.9 + 0.002 * math.log2(max(1, iteration)) for iteration in iterations]
    assert validation_rise(replace(curve, validation_accuracy=exact)) == pytest.approx(0.002, rel=1e-9)
    for few in ([], [0], [0, 100]):
        assert validation_rise(LearningCurve(few, [1.0] * len(few), [1.0] * len(few), [0.5] * len(few))) is None


def test_only_runs_that_learned_a_mask_have_a_rise(tmp_path: Path) -> None:
    plan = mask_plan({"supermask": {}}, {"criterion": "random", "trained": False}, seeds=1)
    train_plan(plan, tmp_path, engine="auto")
    store = Store(tmp_path)
    for rows in (plan_rows(plan, store)[0], store_rows(store)[0]):
        for row in rows:
            rise = row.get("validation_rise")
            if row.get("supermask"):
                curve = decode_curve(store.read(str(row["id"])).tensors)
                assert rise == validation_rise(curve) is not None
            else:
                assert rise is None
