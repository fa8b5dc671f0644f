"""`merge` says what it found: the same difference every time, and damage and newer formats on either side."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command_line import call
from helpers.faulty_disk import quick_folder
from helpers.forgery import NEWER, folder_of, make_newer
from helpers.second_machine import Machines, copy_of_runs, copy_run, copy_snapshot, copy_store, forget_parent, verdicts
from helpers.small_studies import contents

from supermask.store import Store
from supermask.store.merge import MergeResult, merge_stores


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def merge(source: Path, target: Store) -> dict[str, MergeResult]:
    return {result.key: result for result in merge_stores(Store(source), target)}


def cut_weights(store: Store, run_id: str) -> None:
    path = folder_of(store.root, run_id) / "weights.safetensors"
    os.truncate(path, path.stat().st_size - 1)


def test_the_same_difference_is_reported_every_time(machines: Machines, folder: Path) -> None:
    target = copy_store(machines.first, folder / "target")
    before = contents(target)
    for _ in range(2):
        results = merge(machines.second, target)
        assert results.keys() == set(machines.plan.runs), "no snapshot of another trajectory"
        assert {result.outcome for result in results.values()} == {"different"}
        assert len(target.conflicts()) == len(results) and contents(target) == before
    ended = call("merge", machines.second, "--store", target.root)
    assert (ended.status, ended.out.splitlines()[-1]) == (1, "0 copied, 3 DIFFERENT")


@pytest.mark.parametrize("file", ["run.json", "tensors.safetensors", "weights.safetensors"])
def test_a_damaged_run_is_replaced_by_the_same_result(machines: Machines, folder: Path, file: str) -> None:
    target = copy_store(machines.first, folder / "target")
    path = folder_of(target.root, machines.dense) / file
    path.write_bytes(path.read_bytes()[:-1].replace(b'"', b"'"))
    results = merge(machines.first, target)
    replaced = results.pop(machines.dense)
    assert replaced.outcome == "copied" and file in replaced.reason and "quarantine" in replaced.reason
    assert {results[run_id].outcome for run_id in machines.descendants} == {"equal"}
    assert contents(target) == contents(machines.first) and set(verdicts(target).values()) == {"held"}
    assert file in next((target.root / "quarantine").iterdir()).joinpath("why.txt").read_text()


@pytest.mark.parametrize("file", ["run.json", "weights.safetensors"])
def test_a_damaged_run_is_not_replaced_by_another_result(machines: Machines, folder: Path, file: str) -> None:
    """Its children, or its own facts, say that it was another one."""
    target = copy_store(machines.first, folder / "target")
    (folder_of(target.root, machines.dense) / file).write_text("garbage")
    results = merge(machines.second, target)
    assert {result.outcome for result in results.values()} == {"different"}
    assert f"the one here is damaged ({file}" in results[machines.dense].reason
    assert machines.dense in [run_id for run_id, _ in target.conflicts()], "it is not lost"
    assert (folder_of(target.root, machines.dense) / file).read_text() == "garbage"
    ended = call("merge", machines.second, "--store", target.root)
    assert ended.status == 1 and ended.out.endswith("0 copied, 3 DIFFERENT\n")


def test_a_run_with_unreadable_facts_is_replaced_only_if_its_children_record_it(
    machines: Machines, folder: Path
) -> None:
    target = copy_store(machines.first, folder / "target")
    forget_parent(target, machines.descendants[0])
    (folder_of(target.root, machines.dense) / "run.json").write_text("garbage")
    assert merge(machines.first, target)[machines.dense].outcome == "different"
    for run_id in machines.descendants:
        shutil.rmtree(folder_of(target.root, run_id))
    assert merge(machines.first, target)[machines.dense].outcome == "copied"
    assert set(contents(target)) == set(machines.plan.runs)


@pytest.mark.parametrize("evidence", ["nothing", "snapshot of the first versions", "snapshot", "child"])
def test_a_run_with_unreadable_facts_is_not_replaced_without_evidence(
    machines: Machines, folder: Path, evidence: str
) -> None:
    """A child, or a snapshot, has to record the result of the source. Without either it may be any machine's."""
    target = Store(folder / "target")
    copy_run(machines.first, target, machines.dense)
    if evidence == "child":
        copy_run(machines.first, target, machines.descendants[0])
    elif evidence != "nothing":
        copy_snapshot(machines.first, target, machines.dense, records_run=evidence == "snapshot")
    snapshots = target.snapshot_keys()
    (folder_of(target.root, machines.dense) / "run.json").write_text("garbage")
    result = merge(copy_of_runs(machines.second, folder / "source", machines.dense).root, target)[machines.dense]
    assert result.outcome == "different" and "the one here is damaged" in result.reason
    assert [run_id for run_id, _ in target.conflicts()] == [machines.dense], "it is not lost"
    assert target.snapshot_keys() == snapshots and not (target.root / "quarantine").exists()
    replaced = merge(machines.first, target)[machines.dense]
    if evidence in ("child", "snapshot"):
        assert replaced.outcome == "copied" and target.snapshot_keys() == Store(machines.first).snapshot_keys()
        return
    assert replaced.outcome == "different" and "nothing here records that it was this result" in replaced.reason
    ended = call("merge", machines.first, "--store", target.root)
    assert ended.status == 1
    # As its message says: set aside, the next merge brings it back.
    call("verify", "--repair", "--store", target.root)
    assert merge(machines.first, target)[machines.dense].outcome == "copied"


def test_a_run_of_a_newer_format_is_left_out_and_is_no_damage(machines: Machines, folder: Path) -> None:
    last = machines.descendants[-1]
    source = copy_store(machines.first, folder / "source")
    make_newer(source.root, last)
    result = merge(source.root, Store(folder / "new"))[last]
    assert result.outcome == "newer" and NEWER in result.reason
    result = merge(machines.first, source)[last]
    assert result.outcome == "newer" and NEWER in result.reason and source.conflicts() == []
    ended = call("merge", source.root, "--store", folder / "new")
    assert ended.status == 1 and ended.out.endswith(" here already, 1 of a newer version and left out\n")


def test_a_second_result_of_a_run_that_is_nowhere_is_kept(machines: Machines, folder: Path) -> None:
    source = copy_store(machines.first, folder / "source")
    merge(machines.second, source)
    for run_id in machines.plan.runs:
        shutil.rmtree(folder_of(source.root, run_id))
    target = Store(folder / "target")
    merge(source.root, target)
    assert [path.name for _, path in target.conflicts()] == [path.name for _, path in source.conflicts()]
