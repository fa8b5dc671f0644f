"""`verify` says what is known of a second result in `conflicts/`, and never advises removing the only good one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faulty_disk import quick_folder
from helpers.forgery import NEWER, folder_of, make_newer
from helpers.second_machine import Machines, copy_of_runs, copy_run, forget_parent

from supermask.store import NewerFormat, Store
from supermask.store.files.imports import import_conflict
from supermask.store.verify import VerificationResult, repair_store, verify_store


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def add_conflict(store: Store, source: Path, run_id: str) -> Path:
    """Put the result of another store into `conflicts/` and return its folder."""
    import_conflict(store, run_id, Store(source))
    ((_, path),) = store.conflicts()
    return path


def verify_conflict(store: Store) -> VerificationResult:
    (result,) = [result for result in verify_store(store) if result.key.startswith("conflicts/")]
    assert result.verdict in ("failed", "damaged") and not result.culprits
    return result


@pytest.mark.parametrize("file", ["run.json", "tensors.safetensors", "weights.safetensors"])
def test_a_good_second_result_of_a_damaged_run_is_not_called_damaged(
    machines: Machines, folder: Path, file: str
) -> None:
    store = copy_of_runs(machines.first, folder / "store", machines.dense)
    path = add_conflict(store, machines.second, machines.dense)
    (folder_of(store.root, machines.dense) / file).write_text("garbage")
    result = verify_conflict(store)
    assert result.verdict == "failed" and f"the one in use is damaged ({file}" in result.reason
    assert "Remove" not in result.reason, "it may be all that is left"
    moved = [folders for result, folders in repair_store(store) if folders]
    assert len(moved) == 1 and path.exists() and not store.has(machines.dense)
    assert "of which none is in use" in verify_conflict(store).reason


def test_a_damaged_second_result_is_damaged(machines: Machines, folder: Path) -> None:
    store = copy_of_runs(machines.first, folder / "store", machines.dense)
    path = add_conflict(store, machines.second, machines.dense)
    (path / "weights.safetensors").write_text("garbage")
    result = verify_conflict(store)
    assert result.verdict == "damaged" and "weights.safetensors" in result.reason


def test_a_second_result_of_a_run_of_a_newer_format_is_reported(machines: Machines, folder: Path) -> None:
    store = copy_of_runs(machines.first, folder / "store", machines.dense)
    add_conflict(store, machines.second, machines.dense)
    make_newer(store.root, machines.dense)
    verification = verify_store(store)
    result = next(verification)
    with pytest.raises(NewerFormat):
        next(verification)
    assert result.verdict == "failed" and NEWER in result.reason and "Remove" not in result.reason


def test_an_equal_second_result_may_be_removed(machines: Machines, folder: Path) -> None:
    """As after a repair that computed the run again."""
    store = copy_of_runs(machines.first, folder / "store", machines.dense)
    add_conflict(store, machines.first, machines.dense)
    reason = verify_conflict(store).reason
    assert "equals the one in use" in reason and "different" not in reason and "Remove that folder" in reason


@pytest.mark.parametrize(
    ("parent", "known"),
    [
        ("first", "it does not follow from the runs here"),
        ("second", "it was pruned from the run"),
        ("missing", "is unknown"),
        ("damaged", "is unknown"),
        ("not recorded", "is unknown"),
    ],
)
def test_the_only_result_of_a_run_is_kept_and_described(
    machines: Machines, folder: Path, parent: str, known: str
) -> None:
    level_1, source, store = machines.descendants[0], Store(folder / "source"), Store(folder / "store")
    copy_run(machines.second, source, level_1)
    if parent == "not recorded":
        forget_parent(source, level_1)
    if parent != "missing":
        copy_run(machines.second if parent == "second" else machines.first, store, machines.dense)
    if parent == "damaged":
        (folder_of(store.root, machines.dense) / "run.json").write_text("garbage")
    add_conflict(store, source.root, level_1)
    reason = verify_conflict(store).reason
    assert "of which none is in use" in reason and known in reason and machines.dense in reason
    assert ("does not follow" in reason) == (parent == "first") and "Remove" not in reason


def test_the_only_result_of_a_dense_run_is_kept(machines: Machines, folder: Path) -> None:
    store = Store(folder / "store")
    add_conflict(store, machines.second, machines.dense)
    reason = verify_conflict(store).reason
    assert "of which none is in use" in reason and "follow" not in reason and "Remove" not in reason
