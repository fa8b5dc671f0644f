"""Damage is detected before use, quarantined and recomputed; dropped weights are not damage."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.entries import A, B, C, folder_of, put, same, sample
from helpers.faulty_disk import QuickDisk, quick_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from supermask.core.errors import SystemFailure, UserError
from supermask.store import CorruptEntry
from supermask.store.files.entry import Entry, RunFacts
from supermask.store.files.store import EntryStore as Store


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", QuickDisk())


# ------------------------------------------------------------------------------------------------------- damage


def assert_corrupt_or_unchanged(store: Store, whole: Entry) -> None:
    """Expect CorruptEntry or an unchanged entry: a flip in a JSON escape may not change the value."""
    try:
        found = store.read(A)
    except CorruptEntry as damaged:
        assert damaged.key == A and A in str(damaged)
    else:
        assert same(found, whole)


@pytest.mark.parametrize("file", ["run.json", "tensors.safetensors", "weights.safetensors"])
def test_every_flipped_byte_is_detected(store: Store, file: str) -> None:
    put(store, A)
    path = folder_of(store, A) / file
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])
        if file == "run.json":
            assert_corrupt_or_unchanged(store, sample(1))
        else:
            with pytest.raises(CorruptEntry, match="SHA-256"):
                store.read(A)


@pytest.mark.parametrize("file", ["run.json", "tensors.safetensors", "weights.safetensors"])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(path.read_bytes()[:9]),
        lambda path: path.write_bytes(path.read_bytes() + b"}"),
        lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    ],
    ids=["gone", "empty", "two bytes short", "nine bytes", "one byte more", "ones", "zeros", "a folder", "a device"],
)
def test_a_changed_file_is_detected_quarantined_and_committed_again(
    store: Store, file: str, change: Callable[[Path], object]
) -> None:
    put(store, A)
    put(store, B, seed=2)
    change(folder_of(store, A) / file)
    with pytest.raises(CorruptEntry) as damaged:
        store.read(A)
    assert file in damaged.value.what
    aside = store.quarantine(A, damaged.value.what)
    assert aside is not None and aside.parent == store.root / "quarantine"
    assert file in (aside / "why.txt").read_text()
    assert (aside / A).is_dir() and not store.has(A)
    assert put(store, A) and same(store.read(A), sample(1))
    assert same(store.read(B), sample(2))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"seal": 3}',
        "{" * 100_000,
        "[" * 100_000,
        '"',
        "NaN",
        '{"a": 1e999}',
        "1" * 10_000,
        "\0",
    ],
    ids=lambda text: text[:8] or "nothing",
)
def test_any_garbage_for_run_json_is_damage(store: Store, text: str) -> None:
    put(store, A)
    (folder_of(store, A) / "run.json").write_text(text)
    for call in (store.read, store.facts, store.tensor_hashes):
        with pytest.raises(CorruptEntry):
            call(A)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_for_any_file_are_damage(data: bytes) -> None:
    with quick_folder() as root:
        store = Store(root, QuickDisk())
        put(store, A)
        for file in ("weights.safetensors", "tensors.safetensors", "run.json"):
            (folder_of(store, A) / file).write_bytes(data)
            with pytest.raises(CorruptEntry):
                store.read(A)


def rewrite(store: Store, change: Callable[[RunFacts], object]) -> None:
    path = folder_of(store, A) / "run.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_json_layout_does_not_matter_and_every_value_does(store: Store) -> None:
    put(store, A)
    rewrite(store, lambda document: None)
    assert same(store.read(A), sample(1))
    rewrite(store, lambda document: document["facts"].update(seed=2))
    with pytest.raises(CorruptEntry, match="seal"):
        store.facts(A)


def test_a_duplicate_key_is_damage(store: Store) -> None:
    put(store, A)
    path = folder_of(store, A) / "run.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2, "seed": 1'))
    with pytest.raises(CorruptEntry, match="twice"):
        store.facts(A)


def test_an_entry_in_the_wrong_place_is_damage(store: Store) -> None:
    put(store, A)
    folder_of(store, A).rename(folder_of(store, B))
    with pytest.raises(CorruptEntry, match=f"belongs to run {A}"):
        store.read(B)
    store.save_checkpoint(C, {}, {})
    (store.root / "checkpoints" / C / "00000001").rename(folder_of(store, C))
    with pytest.raises(CorruptEntry, match=f"belongs to checkpoint {C}"):
        store.read(C)


def test_mixed_files_of_two_entries_are_damage(store: Store) -> None:
    put(store, A, seed=1)
    put(store, B, seed=2)
    file = "weights.safetensors"
    (folder_of(store, B) / file).replace(folder_of(store, A) / file)
    with pytest.raises(CorruptEntry, match="weights"):
        store.read(A)


def test_a_newer_format_is_not_damage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.store.files.entry.FORMAT", 2)
    put(store, A)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2"):
        store.read(A)


def test_a_safetensors_header_is_not_read_before_the_hash_is_checked(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, A)
    path = folder_of(store, A) / "tensors.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    monkeypatch.setattr("safetensors.numpy.load", None)
    with pytest.raises(CorruptEntry, match="SHA-256"):
        store.read(A)


def test_quarantine_keeps_every_copy_and_returns_none_the_second_time(store: Store) -> None:
    for _ in range(2):
        put(store, A)
        assert store.quarantine(A, "requested by a test") is not None
    assert store.quarantine(A, "too late") is None
    store.commit_snapshot(A, "end", {}, {})
    aside = store.quarantine(f"{A}-end", "a point")
    assert aside is not None and (aside / f"{A}-end").is_dir()
    assert not store.has_snapshot(A, "end")
    assert len(list((store.root / "quarantine").iterdir())) == 3


def test_corrupt_entry_can_be_pickled() -> None:
    damaged = multiprocessing.reduction.ForkingPickler.loads(
        multiprocessing.reduction.ForkingPickler.dumps(CorruptEntry(A, "run.json is missing"))
    )
    assert (damaged.key, damaged.what) == (A, "run.json is missing")
    assert isinstance(damaged, SystemFailure) and damaged.exit_status == 1


# ---------------------------------------------------------------------------------------------- dropped weights


def test_dropped_weights_are_not_damage_and_missing_ones_are(store: Store) -> None:
    put(store, A)
    put(store, B)
    assert store.has_weights(A)
    store.drop_weights(A)
    store.drop_weights(A)
    assert not store.has_weights(A)
    found = store.read(A)
    assert found.weights is None and found.facts == sample(1).facts
    assert not (folder_of(store, A) / "weights.safetensors").exists()
    (folder_of(store, B) / "weights.safetensors").unlink()
    store.drop_weights(B)
    with pytest.raises(CorruptEntry, match=r"weights\.safetensors is missing"):
        store.read(B)


def test_dropping_the_weights_does_not_hide_other_damage(store: Store) -> None:
    put(store, A)
    store.drop_weights(A)
    (folder_of(store, A) / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CorruptEntry, match="tensors"):
        store.read(A)


def test_restored_weights_are_those_that_were_dropped(store: Store) -> None:
    put(store, A)
    store.drop_weights(A)
    assert not store.restore_weights(A, sample(2).weights or {})
    assert not store.restore_weights(A, {})
    assert store.read(A).weights is None
    assert store.restore_weights(A, sample(1).weights or {})
    assert same(store.read(A), sample(1)) and store.has_weights(A)
    assert store.restore_weights(A, sample(1).weights or {})
    assert same(store.read(A), sample(1))


def test_an_entry_without_weights_has_none_to_drop(store: Store) -> None:
    store.commit(A, {}, {}, {})
    store.drop_weights(A)
    assert store.read(A).weights == {} and not store.has_weights(A)
    assert store.restore_weights(A, {}) and not store.restore_weights(A, sample(1).weights or {})


class DropsMeanwhile(QuickDisk):
    """Disk on which another process drops the weights just before they are opened."""

    def size(self, path: Path) -> int:
        if path.name == "weights.safetensors":
            Store(path.parents[3], QuickDisk()).drop_weights(path.parent.name)
        return super().size(path)


def test_weights_may_be_dropped_while_a_run_is_read(store: Store) -> None:
    put(store, A)
    assert Store(store.root, DropsMeanwhile()).read(A).weights is None
