"""Every filesystem operation of every way to write to the store, with every fault, and a power loss afterwards.

For each scenario the operations of a fault-free run are listed. Then, for each operation and each fault, the scenario
runs on a disk that fails there. Every state that is left, as it is and after every possible power loss, is opened with
a plain Store. Earlier entries must be bit-identical; the new one absent or whole (and present, once the call had
returned); nothing may be left over; and the same call must work again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from helpers.entries import A, B
from helpers.faulty_disk import Fault, FaultyDisk, QuickDisk, materialise, quick_folder, snapshot
from helpers.store_scenarios import FAULTS, ON_WRITES_ONLY, SCENARIOS, OpenStore, commit, enumerate_faults, kinds

from supermask.core.errors import SystemFailure
from supermask.store import CorruptEntry
from supermask.store.files.disk import Disk, translate_os_errors
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.files.folders import DROPPED, WEIGHTS, EntryFolders
from supermask.store.files.store import EntryStore as Store


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault_at_every_operation(name: str, tmp_path: Path) -> None:
    found = enumerate_faults(tmp_path, SCENARIOS[name])
    assert found.problems == []
    total, writes = len(found.operations), kinds(found.operations)["write"]
    assert total > 0 and found.states > 0
    expected = {fault: writes if fault in ON_WRITES_ONLY else total for fault in FAULTS}
    assert {fault: found.hits[fault] for fault in FAULTS} == expected


def test_the_operations_of_a_commit(tmp_path: Path) -> None:
    """Five fsyncs per commit into a store and shard that this process has used: three files, two folders."""
    disk = FaultyDisk(tmp_path)
    store = Store(tmp_path / "store", disk)
    commit(store, A)
    first = len(disk.operations)
    commit(store, B)
    assert kinds(disk.operations[first:]) == {
        "make_dir": 1, "create": 3, "write": 3, "fsync": 3, "size": 3, "close": 3, "fsync_dir": 2, "rename": 1,
    }  # fmt: skip
    assert kinds(disk.operations[:first]).keys() == kinds(disk.operations[first:]).keys()


# ------------------------------------------------------------------ the simulator detects broken commits


class NoFileSync(FaultyDisk):
    def fsync(self, descriptor: int) -> None:
        pass


class NoFolderSync(FaultyDisk):
    def fsync_dir(self, path: Path) -> None:
        pass


class NoStagedFolderSync(FaultyDisk):
    def fsync_dir(self, path: Path) -> None:
        if path.parent.name != "staging":
            super().fsync_dir(path)


class NoShardSync(FaultyDisk):
    def fsync_dir(self, path: Path) -> None:
        if path.name != "runs":
            super().fsync_dir(path)


class NoRenameSync(FaultyDisk):
    def fsync_dir(self, path: Path) -> None:
        if path.parent.name != "runs":
            super().fsync_dir(path)


class OneWriteOnly(FaultyDisk):
    def write_files(self, folder: Path, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            descriptor = self.create(folder / name)
            self.write(descriptor, memoryview(data))
            self.fsync(descriptor)
            self.close(descriptor)


class InPlace(EntryFolders):
    """Broken on purpose: renames before it writes."""

    def commit(self, target: Path, files: Mapping[str, bytes]) -> bool:
        self.prepare(target.parent)
        empty = self.stage(target.name, {})
        moved = self.publish(empty, target)
        self.disk.write_files(target, files)
        self.disk.fsync_dir(target)
        return moved


class Overwriting(EntryFolders):
    """Broken on purpose: the last committer wins by removing the first one's entry."""

    def commit(self, target: Path, files: Mapping[str, bytes]) -> bool:
        self.prepare(target.parent)
        staged = self.stage(target.name, files)
        self.disk.remove_tree(target)
        return self.publish(staged, target)


def with_folders(folders: type[EntryFolders]) -> OpenStore:
    def open_store(root: Path, disk: Disk) -> Store:
        store = Store(root, disk)
        store.folders = folders(root, disk)
        return store

    return open_store


class OldCheckpointFirst(Store):
    def save_checkpoint(self, run_id: str, facts: RunFacts, tensors: Tensors) -> None:
        self.remove_checkpoint(run_id)
        super().save_checkpoint(run_id, facts, tensors)


class WeightsBeforeMarker(Store):
    def drop_weights(self, run_id: str) -> None:
        folder = self.run_folder(run_id)
        with translate_os_errors(folder):
            self._disk.remove_file(folder / WEIGHTS)
            self._disk.close(self._disk.create(folder / DROPPED))
            self._disk.fsync_dir(folder)


class MarkerNotSynced(Store):
    def drop_weights(self, run_id: str) -> None:
        folder = self.run_folder(run_id)
        with translate_os_errors(folder):
            self._disk.close(self._disk.create(folder / DROPPED))
            self._disk.remove_file(folder / WEIGHTS)


class PointInPlace(Store):
    def drop_snapshot(self, run_id: str, point: str) -> None:
        folder = self.snapshot_folder(run_id, point)
        with translate_os_errors(folder):
            self._disk.remove_tree(folder)


BROKEN: Mapping[str, tuple[str, type[FaultyDisk], OpenStore, str]] = {
    "files not synced": ("commit, known shard", NoFileSync, Store, "does not match its SHA-256"),
    "folders not synced": ("commit, known shard", NoFolderSync, Store, "committed, and gone"),
    "staged folder not synced": ("commit, known shard", NoStagedFolderSync, Store, "run.json is missing"),
    "new shard not synced": ("commit, new shard", NoShardSync, Store, "committed, and gone"),
    "rename not synced": ("commit, known shard", NoRenameSync, Store, "committed, and gone"),
    "short writes believed": ("commit, known shard", OneWriteOnly, Store, "bytes, not"),
    "rename before write": ("commit, known shard", FaultyDisk, with_folders(InPlace), "run.json is missing"),
    "overwriting": ("commit, taken", FaultyDisk, with_folders(Overwriting), f"{A} changed"),
    "old checkpoint first": ("next save_checkpoint", FaultyDisk, OldCheckpointFirst, "neither the old"),
    "checkpoint not synced": ("next save_checkpoint", NoFileSync, Store, "neither the old"),
    "weights before marker": ("drop_weights", FaultyDisk, WeightsBeforeMarker, "weights.safetensors is missing"),
    "marker not synced": ("drop_weights", FaultyDisk, MarkerNotSynced, "weights.safetensors is missing"),
    "point removed in place": ("drop_point", FaultyDisk, PointInPlace, "tensors.safetensors is missing"),
    "restored weights not synced": ("restore_weights", NoFolderSync, Store, "weights.safetensors is missing"),
}
"""Fault -> (scenario that detects it, broken disk, broken store, text of the detected problem)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_commit_is_caught(name: str, tmp_path: Path) -> None:
    scenario, disk_type, open_store, said = BROKEN[name]
    found = enumerate_faults(tmp_path, SCENARIOS[scenario], disk_type, open_store, until=said)
    assert any(said in problem for problem in found.problems), found.problems


# ------------------------------------------------------------------------- messages, and the state left behind


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("ENOSPC", "disk is full"),
        ("EDQUOT", "quota"),
        ("EIO", "input/output error"),
        ("EROFS", "read-only"),
        ("EACCES", "permission denied"),
    ],
)
def test_a_refused_operation_is_a_system_failure_with_a_remedy(fault: Fault, said: str, tmp_path: Path) -> None:
    for index in range(len(clean_commit(tmp_path))):
        materialise(tmp_path, {})
        disk = FaultyDisk(tmp_path, fault, index)
        with pytest.raises(SystemFailure) as refused:
            commit(Store(tmp_path / "store", disk), A)
        disk.end()
        for part in (said, str(tmp_path / "store" / "runs"), "--store", "run the same command again", "are kept"):
            assert part in str(refused.value)
        assert refused.value.exit_status == 1
        assert [path for path in snapshot(tmp_path) if path.startswith("store/staging/")] == [], "left in staging"


def clean_commit(top: Path) -> list[str]:
    materialise(top, {})
    disk = FaultyDisk(top)
    commit(Store(top / "store", disk), A)
    return disk.operations


class ReadFails(QuickDisk):
    def __init__(self, number: int) -> None:
        self.number = number

    def read_file(self, path: Path, limit: int) -> bytes:
        raise OSError(self.number, "", str(path))


def test_an_unreadable_sector_is_damage_and_denied_permission_is_not(tmp_path: Path) -> None:
    commit(Store(tmp_path, QuickDisk()), A)
    with pytest.raises(CorruptEntry, match="input/output error"):
        Store(tmp_path, ReadFails(errno.EIO)).read(A)
    with pytest.raises(SystemFailure, match="permission denied") as refused:
        Store(tmp_path, ReadFails(errno.EACCES)).read(A)
    assert not isinstance(refused.value, CorruptEntry)


def test_states_after_a_power_loss_follow_the_fsyncs(tmp_path: Path) -> None:
    """Test of the simulator itself, on a case small enough to enumerate by hand."""

    def states(*steps: str) -> Iterator[frozenset[str]]:
        materialise(tmp_path, {})
        disk = FaultyDisk(tmp_path)
        descriptor = disk.create(tmp_path / "f")
        disk.write(descriptor, memoryview(b"xy"))
        if "fsync" in steps:
            disk.fsync(descriptor)
        if "fsync_dir" in steps:
            disk.fsync_dir(tmp_path)
        disk.close(descriptor)
        disk.end()
        for state in disk.after_power_loss():
            yield frozenset(f"{name}={data!r}" for name, data in state.items())

    nothing, whole = frozenset[str](), frozenset({"f=b'xy'"})
    damaged = {frozenset({f"f={data!r}"}) for data in (b"", b"\0\0", b"x")}
    assert set(states()) == {nothing, whole, *damaged}
    assert set(states("fsync")) == {nothing, whole}
    assert set(states("fsync_dir")) == {whole, *damaged}
    assert set(states("fsync", "fsync_dir")) == {whole}
