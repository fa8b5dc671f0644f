"""Damage is noticed by `run` and repaired by `verify --repair`, also where folders cannot be renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden.make_store import TREATMENTS, golden_study
from helpers.entries import A, B, folder_of, put, same, sample
from helpers.faulty_disk import QuickDisk, quick_folder
from helpers.golden_store import copy_golden, golden_entries, write_entry
from helpers.small_studies import contents, train_plan

from supermask.execution.scheduler import Scheduler
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import Entry
from supermask.store.files.store import EntryStore
from supermask.store.verify import repair_store, verify_store
from supermask.study.plan import make_plan


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def flip_byte(path: Path, keep_times: bool = False) -> None:
    """Change one byte in place, as `dd conv=notrunc` does; a failing disk keeps the file's times."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    if keep_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


# --- noticed by `run` ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "tensors.safetensors", "weights.safetensors"])
def test_run_notices_a_changed_file_of_a_finished_run_and_recomputes_it(folder: Path, name: str) -> None:
    plan = make_plan(golden_study(treatments=TREATMENTS[:1]))
    train_plan(plan, folder / "store")
    before = contents(folder / "store")
    store, last = Store(folder / "store"), list(plan.runs)[-1]
    flip_byte(store.root / "runs" / last[:2] / last / name)
    plan_run = train_plan(plan, store.root)
    assert plan_run.trained == [last]
    assert contents(store) == before
    assert all(verdict.verdict == "held" for verdict in verify_store(store))


def test_run_notices_a_damaged_snapshot(folder: Path) -> None:
    plan = make_plan(golden_study(treatments=TREATMENTS[1:2]))
    train_plan(plan, folder / "store")
    store = Store(folder / "store")
    key = min(key for key in store.snapshot_keys() if key.endswith("iteration_4"))
    flip_byte(store.root / "points" / key[:2] / key / "tensors.safetensors")
    schedule = Scheduler(plan, store)
    assert len(schedule.damaged) == 1 and key in schedule.damaged[0]
    assert not store.has_snapshot(*key.split("-"))


def test_unmodified_files_are_not_hashed_and_copied_ones_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(golden_study(treatments=TREATMENTS[:1]))
    train_plan(plan, folder / "store")
    hashed: list[str] = []
    real = Store(folder).__class__._check_files

    def counted(store: Store, *arguments: object) -> None:
        real(store, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "_check_files", counted)
    from supermask.store.files.folders import EntryFolders

    check = EntryFolders.check_hash
    monkeypatch.setattr(
        EntryFolders, "check_hash", lambda self, key, *rest: (hashed.append(key), check(self, key, *rest))[1]
    )
    Store(folder / "store").check_runs(plan.runs)
    assert hashed == []
    shutil.copytree(folder / "store", folder / "copy", copy_function=shutil.copyfile)
    for path in sorted((folder / "copy").rglob("weights.safetensors")):
        os.utime(path)
    facts, damaged = Store(folder / "copy").check_runs(plan.runs)
    assert facts.keys() == plan.runs.keys() and not damaged and hashed
    hashed.clear()
    Store(folder / "copy").check_runs(plan.runs)
    assert hashed == []
    (folder / "copy" / "notes" / "checked.json").write_text("[" * 10_000)
    assert Store(folder / "copy").check_runs(plan.runs)[0].keys() == plan.runs.keys()


def test_checking_a_read_only_store_works(folder: Path) -> None:
    store = copy_golden(folder)
    shutil.rmtree(store.root / "notes")
    (store.root / "notes").write_text("no folder can be made here")
    facts, damaged = store.check_runs(store.run_ids())
    assert facts.keys() == store.run_ids() and not damaged


# --- verify --repair ---


@pytest.mark.slow
def test_repair_sets_damaged_entries_aside_and_spares_their_descendants(folder: Path) -> None:
    plan = make_plan(golden_study(treatments=TREATMENTS[:2]))
    train_plan(plan, folder / "store")
    store, before = Store(folder / "store"), contents(folder / "store")
    dense, *_ = plan.runs
    # The times are as before, so only `verify` can notice.
    flip_byte(store.root / "runs" / dense[:2] / dense / "weights.safetensors", keep_times=True)
    key = min(store.snapshot_keys())
    flip_byte(store.root / "points" / key[:2] / key / "tensors.safetensors")
    verdicts = {verdict.key: verdict for verdict in verify_store(store)}
    assert verdicts[dense].verdict == "damaged"
    moved = {verdict.key: folders for verdict, folders in repair_store(store) if folders}
    assert moved.keys() == {dense, key}
    assert "weights.safetensors" in (moved[dense][0] / "why.txt").read_text()
    assert store.run_ids() == before.keys() - {dense}
    train_plan(plan, store.root)
    assert contents(store) == before
    assert all(verdict.verdict == "held" for verdict in verify_store(store))
    assert [folders for _, folders in repair_store(store) if folders] == []


def test_repair_sets_forgeries_aside_and_keeps_recorded_failures(folder: Path) -> None:
    store = copy_golden(folder)
    entries = golden_entries(store.root)
    _, refused, _, _ = entries["certificate_failed signed"]
    _, pruned, path, entry = entries["finished pruned"]
    facts = {**entry.facts, "metrics": {**entry.facts["metrics"], "final_test_accuracy": 0.123}}
    write_entry("run", pruned, path, Entry(facts, entry.tensors, entry.weights))
    moved = {verdict.key for verdict, folders in repair_store(store) if folders}
    assert moved == {pruned} and store.has(refused) and not store.has(pruned)


def test_every_message_of_damage_names_a_command_that_repairs_it(folder: Path) -> None:
    store = copy_golden(folder)
    _, key, path, _ = golden_entries(store.root)["finished dense"]
    flip_byte(path / "weights.safetensors", keep_times=True)
    with pytest.raises(CorruptEntry, match=f"{key} .*`supermask verify --repair`.* run its study again"):
        store.read(key)


# --- folders that cannot be renamed ---


class Overlay(QuickDisk):
    """Overlayfs: renaming a folder of a lower layer is refused."""

    def rename(self, source: Path, target: Path) -> None:
        if source.is_dir() and "staging" not in source.parts:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(source, target)


def test_a_damaged_run_is_set_aside_on_overlayfs(folder: Path) -> None:
    store = EntryStore(folder / "store", Overlay())
    put(store, A)
    put(store, B, seed=2)
    (folder_of(store, A) / "weights.safetensors").write_bytes(b"garbage")
    (folder_of(store, A) / "link").symlink_to("/dev/zero")
    aside = store.quarantine(A, "a test")
    assert aside is not None and not store.has(A)
    assert (aside / A / "weights.safetensors").read_bytes() == b"garbage"
    assert not (aside / A / "link").exists()
    assert put(store, A) and same(store.read(A), sample(1)) and same(store.read(B), sample(2))


def test_a_snapshot_is_dropped_on_overlayfs(folder: Path) -> None:
    store = EntryStore(folder / "store", Overlay())
    store.commit_snapshot(A, "end", {}, sample(1).tensors)
    store.drop_snapshot(A, "end")
    assert not store.has_snapshot(A, "end") and list((folder / "store" / "staging").iterdir()) == []


class Mounts(QuickDisk):
    """Every top folder of the store is on a filesystem of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def rename(self, source: Path, target: Path) -> None:
        if source.relative_to(self.root).parts[0] != target.relative_to(self.root).parts[0]:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(source, target)


def test_folders_of_the_store_may_be_mounts(folder: Path) -> None:
    root = folder / "store"
    store = EntryStore(root, Mounts(root))
    assert put(store, A) and not put(store, A), "a taken name"
    assert not put(store, A, seed=2)
    [(run_id, conflict)] = store.conflicts()
    assert run_id == A and same(store.read_conflict(A, conflict), sample(2))
    for _ in range(2):
        store.save_checkpoint(B, {}, sample(1).tensors)
    assert store.load_checkpoint(B) is not None
    store.commit_snapshot(A, "end", {}, sample(1).tensors)
    store.drop_snapshot(A, "end")
    store.drop_weights(A)
    assert store.restore_weights(A, sample(1).weights or {}) and same(store.read(A), sample(1))
    assert store.quarantine(A, "a test") is not None and not store.has(A)
    assert put(store, B) and store.run_ids() == {B}
    assert not list(root.rglob("*.*.*.*.*")), "no copy is left"


class CrashAfterCopy(Mounts):
    """The process ends between the copy and its rename."""

    def rename(self, source: Path, target: Path) -> None:
        if source.parent == target.parent:
            raise KeyboardInterrupt
        super().rename(source, target)

    def remove_tree(self, path: Path) -> None:
        """Leave everything, as a killed process does."""


def test_a_copy_that_was_left_by_a_killed_process_is_no_entry_and_is_removed(folder: Path) -> None:
    root = folder / "store"
    put(EntryStore(root, Mounts(root)), A)
    for seed, key in ((1, B), (2, A)):
        with pytest.raises(KeyboardInterrupt):
            put(EntryStore(root, CrashAfterCopy(root)), key, seed=seed)
    store = EntryStore(root, Mounts(root))
    left = [*root.glob(f"runs/*/{B}.*"), *root.glob(f"conflicts/{A}-*.*")]
    assert len(left) == 2 and store.run_ids() == {A} and store.conflicts() == []
    assert store.remove_stale() == 0, "this process may still rename them"
    store._disk.is_stale = lambda *_: True  # type: ignore[method-assign]
    store.remove_stale()
    assert not any(path.exists() for path in left) and same(store.read(A), sample(1))


class FailingCopy(Overlay):
    """An overlay on a full disk."""

    def write_files(self, folder: Path, files: object) -> None:
        if "quarantine" in folder.parts and folder.name == A:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_files(folder, files)  # type: ignore[arg-type]


def test_a_copy_that_fails_leaves_the_damaged_run_in_place(folder: Path) -> None:
    store = EntryStore(folder / "store", FailingCopy())
    put(store, A)
    with pytest.raises(Exception, match="disk is full"):
        store.quarantine(A, "a test")
    assert store.has(A) and same(store.read(A), sample(1))
    assert list((folder / "store" / "quarantine").iterdir()) == []
