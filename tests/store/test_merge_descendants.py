"""A run is merged only onto the parent that it was pruned from; `verify --repair` blames the right one of the two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faulty_disk import quick_folder
from helpers.forgery import folder_of, make_newer
from helpers.second_machine import Machines, copy_of_runs, copy_run, copy_store, forget_parent, verdicts
from helpers.small_studies import contents, train_plan

from supermask.store import Store
from supermask.store.merge import merge_stores
from supermask.store.verify import repair_store


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def test_the_machines_differ_and_hold(machines: Machines) -> None:
    first, second = Store(machines.first), Store(machines.second)
    assert first.run_ids() == second.run_ids() and len(machines.descendants) == 2
    assert all(first.tensor_hashes(run_id) != second.tensor_hashes(run_id) for run_id in first.run_ids())
    for store in (first, second, Store(machines.first_other)):
        assert set(verdicts(store).values()) == {"held"}


def test_descendants_of_a_different_run_are_not_hung_onto_the_one_in_use(machines: Machines, folder: Path) -> None:
    target = copy_store(machines.first_other, folder / "target")
    before = contents(target)
    results = {result.key: result for result in merge_stores(Store(machines.second), target)}
    assert {results[run_id].outcome for run_id in machines.plan.runs} == {"different"}
    level_1, level_2 = machines.descendants
    assert f"pruned from another result of {machines.dense} than the one in use" in results[level_1].reason
    assert f"pruned from the other result of {level_1}" in results[level_2].reason
    assert contents(target) == before, "the runs in use are as they were"
    assert sorted(run_id for run_id, _ in target.conflicts()) == sorted(machines.plan.runs), "none is lost"
    assert not [key for key in results if "-" in key], "nor are its snapshots mixed in"
    for run_id, path in target.conflicts():
        assert target.conflict_facts(run_id, path)[1] == Store(machines.second).tensor_hashes(run_id)
    found = verdicts(target)
    assert {found.pop(f"conflicts/{path.name}") for _, path in target.conflicts()} == {"failed"}
    assert set(found.values()) == {"held"}
    assert not [moved for _, moved in repair_store(target) if moved]


@pytest.mark.parametrize("records_parent", [True, False], ids=["recorded", "earlier version"])
def test_a_run_without_its_parent_here_is_merged_where_it_belongs(
    machines: Machines, folder: Path, records_parent: bool
) -> None:
    """The source has level 1 alone, as after its dense run was removed or set aside."""
    level_1 = machines.descendants[0]
    source = Store(folder / "source")
    copy_run(machines.second, source, level_1)
    if not records_parent:
        forget_parent(source, level_1)
    alone = Store(folder / "alone")
    assert [result.outcome for result in merge_stores(source, alone)] == ["copied"]
    for store, outcome in ((machines.first_other, "different"), (machines.second, "equal")):
        target = copy_store(store, folder / outcome)
        assert [result.outcome for result in merge_stores(source, target)] == [outcome]
    target = copy_store(machines.second, folder / "without it")
    shutil.rmtree(target.root / "runs" / level_1[:2] / level_1)
    # What a run of an earlier version was pruned from is only known beside its parent.
    expected = "copied" if records_parent else "different"
    assert [result.outcome for result in merge_stores(source, target)] == [expected]


def test_a_run_that_does_not_record_its_parent_is_merged_beside_it(machines: Machines, folder: Path) -> None:
    source = copy_store(machines.second, folder / "source")
    for run_id in machines.descendants:
        forget_parent(source, run_id)
    assert {result.outcome for result in merge_stores(source, Store(folder / "new"))} == {"copied"}
    target = copy_store(machines.first_other, folder / "target")
    before = contents(target)
    assert {result.outcome for result in merge_stores(source, target)} == {"different"}
    assert contents(target) == before


def break_link(store: Store, run_id: str, link: str) -> None:
    """Make one run of a chain unusable."""
    path = folder_of(store.root, run_id)
    if link == "newer":
        make_newer(store.root, run_id)
    elif link == "missing":
        shutil.rmtree(path)
    else:
        os.truncate(path / link, 9)


@pytest.mark.parametrize("link", ["weights.safetensors", "run.json", "newer", "missing"])
def test_descendants_of_a_different_run_are_not_copied_past_a_link_that_is_left_out(
    machines: Machines, folder: Path, link: str
) -> None:
    source, target = copy_store(machines.second, folder / "source"), copy_store(machines.first_other, folder / "target")
    level_1, level_2 = machines.descendants
    break_link(source, level_1, link)
    before = contents(target)
    for outcome in ("different", "damaged"):
        results = {result.key: result for result in merge_stores(source, target)}
        left_out = {"newer": "newer", "missing": None}.get(link, "damaged")
        found = [results[run_id].outcome if run_id in results else None for run_id in machines.plan.runs]
        assert found == [outcome, left_out, "different"]
        assert level_1 in results[level_2].reason and contents(target) == before
        if link != "weights.safetensors":
            assert "is unknown" in results[level_2].reason
        os.truncate(folder_of(source.root, machines.dense) / "weights.safetensors", 9)
    train_plan(machines.plan, target.root)
    found_verdicts = {key: verdict for key, verdict in verdicts(target).items() if "conflicts" not in key}
    assert set(found_verdicts.values()) == {"held"}


@pytest.mark.parametrize("link", ["weights.safetensors", "run.json", "missing"])
def test_descendants_are_copied_past_a_broken_link_where_no_result_is_different(
    machines: Machines, folder: Path, link: str
) -> None:
    """The link is trained again to the bits that they record."""
    source, level_2 = copy_store(machines.first, folder / "source"), machines.descendants[1]
    break_link(source, machines.descendants[0], link)
    for target in (Store(folder / "new"), copy_store(machines.first_other, folder / "target")):
        assert {result.key: result.outcome for result in merge_stores(source, target)}[level_2] == "copied"


def test_a_parent_here_that_cannot_be_read_is_unknown_and_is_not_called_another_result(
    machines: Machines, folder: Path
) -> None:
    source = copy_of_runs(machines.first, folder / "source", *machines.descendants)
    target = copy_of_runs(machines.first, folder / "target", machines.dense)
    (folder_of(target.root, machines.dense) / "run.json").write_text("garbage")
    results = {result.key: result for result in merge_stores(source, target)}
    assert {result.outcome for result in results.values()} == {"different"}
    for run_id, parent in zip(machines.descendants, machines.plan.runs, strict=False):
        reason = results[run_id].reason
        assert parent in reason and "is unknown" in reason and "other result" not in reason
    # Dropped weights or damaged ones do not hide what result it was.
    target = copy_of_runs(machines.first, folder / "readable", machines.dense)
    os.truncate(folder_of(target.root, machines.dense) / "weights.safetensors", 9)
    assert {result.outcome for result in merge_stores(source, target)} == {"copied"}


@pytest.mark.parametrize("records_parent", [True, False], ids=["recorded", "earlier version"])
def test_a_missing_parent_is_not_placed_under_children_of_another_result(
    machines: Machines, folder: Path, records_parent: bool
) -> None:
    """As after a damaged dense run was set aside: its children in the target record which result it was."""
    target, level_1 = copy_store(machines.first, folder / "target"), machines.descendants[0]
    shutil.rmtree(target.root / "runs" / machines.dense[:2] / machines.dense)
    if not records_parent:
        forget_parent(target, level_1)
    before = contents(target)
    for source in (copy_of_runs(machines.second, folder / "source", machines.dense), Store(machines.second)):
        results = {result.key: result for result in merge_stores(source, target)}
        assert {result.outcome for result in results.values()} == {"different"} and contents(target) == before
        assert level_1 in results[machines.dense].reason
        assert machines.dense in [run_id for run_id, _ in target.conflicts()], "it is not lost"
    # That of the same machine belongs there.
    assert {result.outcome for result in merge_stores(Store(machines.first), target)} == {"copied", "equal"}
    assert contents(target).keys() == set(machines.plan.runs)


def test_a_missing_parent_is_placed_only_if_all_children_agree(machines: Machines, folder: Path) -> None:
    """Level 1 of another treatment was pruned from another result, as `rsync` of two stores leaves it."""
    target = copy_of_runs(machines.first, folder / "target", machines.descendants[0])
    copy_run(machines.first_other, target, list(machines.other_plan.runs)[1])
    source = copy_of_runs(machines.first, folder / "source", machines.dense)
    assert [result.outcome for result in merge_stores(source, target)] == ["copied"]
    target = copy_of_runs(machines.second, folder / "mixed", machines.descendants[0])
    copy_run(machines.first_other, target, list(machines.other_plan.runs)[1])
    assert [result.outcome for result in merge_stores(source, target)] == ["different"]


def test_a_missing_parent_of_an_earlier_version_is_placed_only_beside_an_equal_child(
    machines: Machines, folder: Path
) -> None:
    """A child that records nothing says nothing by itself."""
    target = copy_of_runs(machines.first, folder / "target", machines.descendants[0])
    forget_parent(target, machines.descendants[0])
    source = copy_of_runs(machines.first, folder / "source", machines.dense)
    assert [result.outcome for result in merge_stores(source, target)] == ["different"]
    copy_run(machines.first, source, machines.descendants[0])
    assert [result.outcome for result in merge_stores(source, target)] == ["copied", "equal"]


# --- whom `verify --repair` blames ---


def test_repair_blames_the_child_of_another_result_and_spares_a_parent_that_others_agree_with(
    machines: Machines, folder: Path
) -> None:
    """As `rsync` of two stores leaves it."""
    store = copy_store(machines.first_other, folder / "store")
    before = contents(store)
    copy_run(machines.second, store, machines.descendants[0])
    moved = {result.key: folders for result, folders in repair_store(store) if folders}
    assert moved.keys() == {machines.descendants[0]}
    assert contents(store) == before and set(verdicts(store).values()) == {"held"}


@pytest.mark.parametrize("kept", ["the second result of the parent", "a second result of the child"])
def test_repair_blames_the_child_if_a_second_result_agrees_with_its_parent(
    machines: Machines, folder: Path, kept: str
) -> None:
    """No other child is in the store."""
    store, level_1 = Store(folder / "store"), machines.descendants[0]
    copy_run(machines.first, store, machines.dense)
    copy_run(machines.second, store, level_1)
    if kept == "the second result of the parent":
        list(merge_stores(copy_of_runs(machines.second, folder / "other", machines.dense), store))
    else:
        list(merge_stores(copy_of_runs(machines.first, folder / "other", level_1), store))
    assert len(store.conflicts()) == 1
    assert {result.key for result, folders in repair_store(store) if folders} == {level_1}
    assert store.has(machines.dense)


def test_repairing_and_training_again_converges(machines: Machines, folder: Path) -> None:
    """With nothing else to decide, the parent is set aside once. It comes back equal: then the child is at fault."""
    store, (level_1, level_2) = Store(folder / "store"), machines.descendants
    copy_run(machines.first, store, machines.dense)
    copy_run(machines.second, store, level_1)
    set_aside = []
    for _ in range(3):
        set_aside.append([path.name.partition(".")[0] for _, folders in repair_store(store) for path in folders])
        train_plan(machines.plan, store.root)
    # Level 2 was trained from the wrong level 1 in the meantime.
    assert set_aside == [[machines.dense], [level_1], [level_2]]
    assert contents(store) == contents(machines.first)
    assert set(verdicts(store).values()) == {"held"}
