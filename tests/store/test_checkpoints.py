"""Snapshots, checkpoints, and removal of stale files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.entries import A, B, names, put, same, sample
from helpers.faulty_disk import QuickDisk, quick_folder

from supermask.store import CorruptEntry
from supermask.store.files.disk import Disk, _process_start_time
from supermask.store.files.store import EntryStore as Store


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", QuickDisk())


# ---------------------------------------------------------------------------------------- points and checkpoints


def test_snapshots_are_written_once_and_dropped(store: Store) -> None:
    tensors = sample(4).tensors
    assert store.commit_snapshot(A, "iteration_100", {"iteration": 100}, tensors)
    assert not store.commit_snapshot(A, "iteration_100", {"iteration": 101}, tensors)
    assert store.has_snapshot(A, "iteration_100") and not store.has_snapshot(A, "end")
    assert store.snapshot_keys() == {f"{A}-iteration_100"} and store.run_ids() == set()
    assert store.read_snapshot(A, "iteration_100").facts == {"iteration": 100}
    (store.root / "points" / "ab" / f"{A}-iteration_100" / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CorruptEntry, match=f"{A}-iteration_100"):
        store.read_snapshot(A, "iteration_100")
    store.drop_snapshot(A, "iteration_100")
    store.drop_snapshot(A, "iteration_100")
    assert not store.has_snapshot(A, "iteration_100") and names(store.root / "staging") == set()


def test_checkpoints_replace_each_other(store: Store) -> None:
    for seed in (1, 2, 3):
        store.save_checkpoint(A, {"iteration": seed}, sample(seed).tensors)
        found = store.load_checkpoint(A)
        assert found is not None and found.facts == {"iteration": seed}
        assert len(list((store.root / "checkpoints" / A).iterdir())) == 1
    store.remove_checkpoint(A)
    store.remove_checkpoint(A)
    assert store.load_checkpoint(A) is None
    store.save_checkpoint(A, {"iteration": 4}, {})
    assert (found := store.load_checkpoint(A)) is not None and found.facts == {"iteration": 4}


def test_a_damaged_checkpoint_is_removed_and_the_previous_one_is_used(store: Store) -> None:
    store.save_checkpoint(A, {"iteration": 1}, {})
    folder = store.root / "checkpoints" / A
    (folder / "00000002").mkdir()
    (folder / "notes").mkdir()
    assert (found := store.load_checkpoint(A)) is not None and found.facts == {"iteration": 1}
    assert not (folder / "00000002").exists()
    (folder / "00000001" / "run.json").write_text("garbage")
    assert store.load_checkpoint(A) is None
    assert not (folder / "00000001").exists()


class TakesTheNextNumber(QuickDisk):
    """Disk on which another process saves a checkpoint of the same run just before the rename."""

    def rename(self, source: Path, target: Path) -> None:
        if target.name == "00000002":
            Store(target.parents[2], QuickDisk()).save_checkpoint(target.parent.name, {"iteration": 70}, {})
        super().rename(source, target)


def test_two_processes_save_checkpoints_of_one_run(store: Store) -> None:
    store.save_checkpoint(A, {"iteration": 60}, {})
    Store(store.root, TakesTheNextNumber()).save_checkpoint(A, {"iteration": 65}, {})
    assert (found := store.load_checkpoint(A)) is not None and found.facts == {"iteration": 65}


class RemovesTheFolder(QuickDisk):
    """Disk on which another process removes the run's checkpoint folder just before the rename."""

    def __init__(self) -> None:
        self.removed = False

    def rename(self, source: Path, target: Path) -> None:
        if not self.removed:
            self.removed = True
            target.parent.rmdir()
        super().rename(source, target)


def test_a_checkpoint_is_saved_when_its_folder_is_removed_meanwhile(store: Store) -> None:
    Store(store.root, RemovesTheFolder()).save_checkpoint(A, {"iteration": 1}, {})
    assert (found := store.load_checkpoint(A)) is not None and found.facts == {"iteration": 1}


# -------------------------------------------------------------------------------------------------------- sweep


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_start_time_of_its_own() -> None:
    """Else its staged folders would be taken for those of a process that has ended."""
    Disk().process_tag()  # The start time of this process is remembered.
    read_end, write_end = os.pipe()
    time.sleep(0.02)  # Start times have ticks of 10 ms.
    if (pid := os.fork()) == 0:
        os.write(write_end, f"{Disk().process_tag()} {_process_start_time(os.getpid())}".encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as reader:
        tag, start = reader.read().split()
    os.waitpid(pid, 0)
    assert tag.split(".")[:2] == [str(pid), start]
    assert start != _process_start_time(os.getpid())


def test_remove_stale_keeps_staged_folders_of_living_processes(store: Store) -> None:
    put(store, A)
    staging = store.root / "staging"
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    _, _, machine, _ = Disk().process_tag().split(".")
    living = [
        Disk().process_tag(),
        f"{child.pid}.{_process_start_time(child.pid)}.{machine}.00000000",
        f"7.7.{'0' * 12}.elsewhere",
    ]
    dead = [f"{os.getpid()}.1.{machine}.reused_pid", f"{2**22 + 1}.1.{machine}.no_such_pid"]
    for stamp in living + dead:
        (staging / f"{A}.{stamp}" / "nested").mkdir(parents=True)
        (staging / f"{A}.{stamp}" / "run.json").write_text("half")
    assert store.remove_stale() == len(dead)
    assert names(staging) == {f"{A}.{stamp}" for stamp in living}
    child.kill()
    child.wait()
    assert child.stdin is not None
    child.stdin.close()
    assert store.remove_stale() == 1
    for name in names(staging):
        os.utime(staging / name, (0, 0))
    assert store.remove_stale() == 1
    assert names(staging) == {f"{A}.{living[0]}"}


def test_remove_stale_follows_no_links(store: Store, tmp_path: Path) -> None:
    put(store, A)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("all of it")
    garbage = store.root / "staging" / "garbage"
    garbage.mkdir()
    (garbage / "link").symlink_to(precious)
    (store.root / "staging" / "link").symlink_to(precious)
    os.utime(garbage, (0, 0))
    os.utime(store.root / "staging" / "link", (0, 0), follow_symlinks=False)
    assert store.remove_stale() == 2
    assert (precious / "thesis.tex").read_text() == "all of it"


def test_remove_stale_removes_checkpoints_of_committed_runs_only(store: Store) -> None:
    put(store, A)
    store.save_checkpoint(A, {}, {})
    store.save_checkpoint(B, {}, {})
    assert store.remove_stale() == 1
    assert store.load_checkpoint(A) is None and store.load_checkpoint(B) is not None


def test_moved_and_merged_stores_work(store: Store, tmp_path: Path) -> None:
    """As docs/store.md says: copy the folders."""
    other = Store(tmp_path / "other", QuickDisk())
    put(store, A, seed=1)
    put(other, B, seed=2)
    shutil.copytree(other.root / "runs", store.root / "runs", dirs_exist_ok=True)
    assert store.run_ids() == {A, B}
    assert same(store.read(B), sample(2)) and same(store.read(A), sample(1))
