"""A snapshot is never used beside another result of its run than the one that it belongs to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.faulty_disk import quick_folder
from helpers.forgery import folder_of
from helpers.second_machine import (
    LOWEST,
    Machines,
    copy_of_runs,
    copy_run,
    copy_snapshot,
    copy_store,
    dense_id,
    verdicts,
)
from helpers.small_studies import contents, small_plan, train_plan

from supermask.core.errors import SystemFailure
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, WorkerConfig
from supermask.execution.worker import Worker, never_stop
from supermask.store import CorruptEntry, Store
from supermask.store.merge import MergeResult, merge_stores
from supermask.store.verify import repair_store, verify_store


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def merge(source: Store, target: Store) -> dict[str, MergeResult]:
    return {result.key: result for result in merge_stores(source, target)}


def test_a_snapshot_records_the_result_of_its_run(machines: Machines) -> None:
    store = Store(machines.first)
    keys = store.snapshot_keys()
    assert {key.partition("-")[0] for key in keys} == {machines.dense, machines.descendants[0]}
    for key in keys:
        run_id, _, point = key.partition("-")
        facts = store.read_snapshot(run_id, point).facts
        assert facts == {"run": run_id, "run_content": store.tensor_hashes(run_id)}


@pytest.mark.parametrize("records_run", [True, False], ids=["recorded", "first versions"])
def test_a_repaired_run_that_is_merged_is_pruned_from_its_own_snapshot(
    machines: Machines, folder: Path, records_run: bool
) -> None:
    store, level_1 = copy_of_runs(machines.first, folder / "store", machines.dense), machines.descendants[0]
    copy_snapshot(machines.first, store, machines.dense, records_run)
    os.truncate(folder_of(store.root, machines.dense) / "weights.safetensors", 9)
    moved = [path.name.partition(".")[0] for _, folders in repair_store(store) for path in folders]
    assert moved == [machines.dense] and not store.snapshot_keys()
    assert [path.name.partition(".")[0] for path in sorted((store.root / "quarantine").glob("*-*"))] == [
        f"{machines.dense}-{LOWEST}"
    ]
    merge(copy_store(machines.second, folder / "second"), store)
    train_plan(machines.plan, store.root)
    assert contents(store) == contents(machines.second) and store.has(level_1)
    assert set(verdicts(store).values()) == {"held"}


@pytest.mark.parametrize("records_run", [True, False], ids=["recorded", "first versions"])
@pytest.mark.parametrize("has_snapshot", [True, False], ids=["snapshot there", "no snapshot there"])
def test_a_merged_run_is_not_left_beside_a_snapshot_of_another_result(
    machines: Machines, folder: Path, records_run: bool, has_snapshot: bool
) -> None:
    """As a training that was killed between its snapshots and its run leaves it."""
    target = Store(folder / "target")
    key = copy_snapshot(machines.first, target, machines.dense, records_run)
    source = copy_of_runs(machines.second, folder / "source", machines.dense)
    if has_snapshot:
        copy_snapshot(machines.second, source, machines.dense, records_run)
    results = merge(source, target)
    assert {result.outcome for result in results.values()} == {"copied"}
    assert "set aside" in results[machines.dense].reason and key in results[machines.dense].reason
    assert target.snapshot_keys() == source.snapshot_keys()
    if has_snapshot:
        train_plan(machines.plan, target.root)
        assert contents(target) == contents(machines.second)
    else:
        # Only the machine that trained the run can make its snapshot.
        with pytest.raises(SystemFailure, match="gave other bits"):
            train_plan(machines.plan, target.root)
    assert set(verdicts(target).values()) == {"held"}


@pytest.mark.parametrize("file", ["run.json", "weights.safetensors"])
def test_a_damaged_run_that_is_replaced_by_the_same_result_leaves_its_snapshots(
    machines: Machines, folder: Path, file: str
) -> None:
    """The source has none: they could not be brought back."""
    source, target = copy_of_runs(machines.first, folder / "source", *machines.plan.runs), Store(folder / "target")
    for run_id in machines.plan.runs:
        copy_run(machines.first, target, run_id)
    copy_snapshot(machines.first, target, machines.dense, records_run=True)
    copy_snapshot(machines.second, target, machines.descendants[0], records_run=True)
    for run_id in (machines.dense, machines.descendants[0]):
        path = folder_of(target.root, run_id) / file
        path.write_bytes(path.read_bytes()[:-1].replace(b'"', b"'"))
    results = merge(source, target)
    assert [results[run_id].outcome for run_id in machines.plan.runs] == ["copied", "copied", "equal"]
    # That of level 1 is of another result.
    assert target.snapshot_keys() == {f"{machines.dense}-{LOWEST}"}
    foreign = f"{machines.descendants[0]}-{LOWEST}"
    assert foreign in results[machines.descendants[0]].reason and foreign not in results[machines.dense].reason
    moved = {path.name.partition(".")[0] for path in (target.root / "quarantine").iterdir()}
    assert foreign in moved and f"{machines.dense}-{LOWEST}" not in moved
    assert verdicts(target)[f"{machines.dense}-{LOWEST}"] == "held"


@pytest.mark.parametrize("records_run", [True, False], ids=["recorded", "first versions"])
def test_a_snapshot_that_belongs_to_the_merged_run_stays(machines: Machines, folder: Path, records_run: bool) -> None:
    target = Store(folder / "target")
    key = copy_snapshot(machines.second, target, machines.dense, records_run)
    results = merge(Store(machines.second), target)
    assert (results[machines.dense].reason, results[key].outcome) == ("", "equal")
    assert not (target.root / "quarantine").exists()


@pytest.mark.parametrize(
    ("here", "there", "outcome"),
    [
        ("wrong", "recorded", "copied"),
        ("recorded", "wrong", "damaged"),
        ("right", "wrong", "different"),
        ("wrong", "right", "different"),
        ("right", "recorded", "equal"),
        ("recorded", "right", "equal"),
        ("cut", "right", "copied"),
    ],
)
def test_two_snapshots_of_one_result_are_compared(
    machines: Machines, folder: Path, here: str, there: str, outcome: str
) -> None:
    stores = []
    for name, state in (("target", here), ("source", there)):
        store = copy_of_runs(machines.first, folder / name, machines.dense)
        change = 0.25 if state == "wrong" else 0
        key = copy_snapshot(machines.first, store, machines.dense, state == "recorded", change)
        if state == "cut":
            os.truncate(store.root / "points" / key[:2] / key / "tensors.safetensors", 9)
        stores.append(store)
    target, source = stores
    result = merge(source, target)[f"{machines.dense}-{LOWEST}"]
    assert result.outcome == outcome and bool(result.reason) == (outcome in ("damaged", "different"))
    right = Store(machines.first).read_snapshot(machines.dense, LOWEST).tensors
    kept = target.read_snapshot(machines.dense, LOWEST).tensors
    is_right = all(np.array_equal(values, right[name]) for name, values in kept.items())
    assert is_right == (outcome != "different" or here == "right")


def test_a_snapshot_of_another_result_is_found_by_every_reader(machines: Machines, folder: Path) -> None:
    store = copy_of_runs(machines.second, folder / "store", *machines.plan.runs)
    key = copy_snapshot(machines.first, store, machines.dense, records_run=True)
    with pytest.raises(CorruptEntry, match="it is a snapshot of another result of its run"):
        store.read_snapshot(machines.dense, LOWEST)
    assert [damage.key for damage in store.check_runs(machines.plan.runs)[1]] == [key]
    failed = {result.key: result for result in verify_store(store) if result.verdict == "damaged"}
    assert failed[key].culprits == (key,) and "another result of its run" in failed[key].reason
    assert [path.name.partition(".")[0] for _, folders in repair_store(store) for path in folders] == [key]
    copy_snapshot(machines.first, store, machines.dense, records_run=True)
    assert len(Scheduler(machines.plan, store).damaged) == 1 and not store.snapshot_keys()


def test_a_snapshot_of_the_last_iteration_is_the_end_of_its_run(machines: Machines, folder: Path) -> None:
    """The snapshots of the first versions record no run."""
    store = copy_of_runs(machines.first, folder / "store", machines.dense)
    facts = store.facts(machines.dense)
    assert facts["metrics"]["early_stop_iteration"] == facts["recipe"]["iterations"]
    key = copy_snapshot(machines.first, store, machines.dense, records_run=False)
    assert set(verdicts(store).values()) == {"held"}
    shutil.rmtree(store.root / "points")
    copy_snapshot(machines.second, store, machines.dense, records_run=False)
    (result,) = [result for result in verify_store(store) if result.verdict != "held"]
    assert (result.key, result.verdict, result.culprits) == (key, "damaged", (key,))
    assert "it is not the end of its run" in result.reason


def test_a_new_run_is_not_committed_beside_snapshots_of_an_interrupted_training(
    machines: Machines, folder: Path
) -> None:
    """Of another environment, and of another study, which read other iterations."""
    store = Store(folder / "store")
    copy_snapshot(machines.second, store, machines.dense, records_run=False)
    other_plan = small_plan({"rewind_to": 5}, levels=1)
    assert dense_id(other_plan) == machines.dense
    train_plan(other_plan, store.root)
    assert store.snapshot_keys() == {f"{machines.dense}-iteration_5"}
    train_plan(machines.plan, store.root)
    assert contents(store).items() >= contents(machines.first).items()
    assert set(verdicts(store).values()) == {"held"}


def test_snapshots_of_a_second_result_are_not_committed(machines: Machines, folder: Path) -> None:
    worker = Worker(WorkerConfig(folder / "store"))
    task = Task(machines.plan.runs[machines.dense], frozenset({LOWEST}))
    prepared = worker.prepare(task, never_stop)
    outcome = prepared.engine.train(prepared.job, prepared.data)  # type: ignore[union-attr]
    copy_run(machines.second, worker.store, machines.dense)
    worker.commit(prepared, outcome, lambda: 0.0)  # type: ignore[arg-type]
    assert len(worker.store.conflicts()) == 1 and not worker.store.snapshot_keys()
    train_plan(machines.plan, folder / "first")
    assert contents(folder / "first") == contents(machines.first)


def test_children_hold_again_after_their_parent_was_set_aside(machines: Machines, folder: Path) -> None:
    """It is trained with the snapshots that its stored children were pruned from."""
    store = copy_store(machines.first, folder / "store")
    keys = store.snapshot_keys()
    store.quarantine(machines.dense, "a test")
    assert train_plan(machines.plan, store.root).trained == [machines.dense]
    assert store.snapshot_keys() == keys and set(verdicts(store).values()) == {"held"}
