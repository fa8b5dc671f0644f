"""The store: entries are read back bit-identical, also with concurrent writers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.entries import A, B, D, folder_of, names, put, put_all, same, sample
from helpers.faulty_disk import QuickDisk, quick_folder, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from supermask.core.errors import UserError
from supermask.store import CorruptEntry
from supermask.store.files.entry import RunFacts, Tensors, content_hash
from supermask.store.files.store import EntryStore as Store


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", QuickDisk())


# ------------------------------------------------------------------------------------------------- write and read


def test_a_committed_run_is_read_back_bit_identical(store: Store) -> None:
    assert put(store, A)
    assert same(store.read(A), sample(1))
    assert store.facts(A) == sample(1).facts
    assert store.has(A) and not store.has(B)
    assert store.run_ids() == {A}


def test_the_folder_may_be_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("runs").root == Store("~/runs").root == Store(Path("runs")).root == Path.cwd() / "runs"


def test_the_layout(store: Store) -> None:
    put(store, A)
    store.commit_snapshot(A, "lowest_validation_loss", {"iteration": 7}, sample(1).tensors)
    store.save_checkpoint(B, {"iteration": 3}, sample(2).tensors)
    files = {name for name, data in snapshot(store.root).items() if data is not None}
    point = f"points/ab/{A}-lowest_validation_loss"
    assert files == {
        f"runs/ab/{A}/run.json", f"runs/ab/{A}/tensors.safetensors", f"runs/ab/{A}/weights.safetensors",
        f"{point}/run.json", f"{point}/tensors.safetensors",
        f"checkpoints/{B}/00000001/run.json", f"checkpoints/{B}/00000001/tensors.safetensors",
    }  # fmt: skip


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    facts=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
            max_leaves=12,
        ),
        max_size=4,
    ),
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__" and name.isprintable()),
        st.sampled_from(["<f4", "<f8", ">f4", "<i8", "|u1", "|b1"]).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        ),
        max_size=3,
    ),
)
def test_any_json_and_any_tensors_are_read_back(facts: RunFacts, tensors: Tensors) -> None:
    with quick_folder() as root:
        store = Store(root, QuickDisk())
        store.commit(A, facts, tensors, {})
        found = store.read(A)
    assert json.dumps(found.facts, sort_keys=True) == json.dumps(facts, sort_keys=True)
    assert found.weights == {}
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        little = tensor.astype(tensor.dtype.newbyteorder("<"))
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (little.dtype, little.shape)
        assert found.tensors[name].tobytes() == little.tobytes()


def test_strided_tensors_are_stored_by_value(store: Store) -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    store.commit(A, {}, {"t": wide.T, "every_second": wide[:, ::2]}, {})
    assert np.array_equal(store.read(A).tensors["t"], wide.T)
    assert np.array_equal(store.read(A).tensors["every_second"], wide[:, ::2])


def test_tensors_that_were_read_are_writable(store: Store) -> None:
    """torch.from_numpy warns about read-only arrays."""
    put(store, A)
    entry = store.read(A)
    assert all(t.flags.writeable for t in (*entry.tensors.values(), *(entry.weights or {}).values()))


def test_content_hash_depends_on_the_tensors_not_the_file(store: Store) -> None:
    put(store, A)
    other = Store(store.root.with_name("other"), QuickDisk())
    entry = sample(1)
    other.commit(A, {"took": 3.5}, dict(reversed(entry.tensors.items())), entry.weights or {})
    assert store.tensor_hashes(A) == other.tensor_hashes(A)
    put(other, B, seed=2)
    assert other.tensor_hashes(B)["weights"] != other.tensor_hashes(A)["weights"]


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.array([1, 2], "<f4")},
        {"a": np.array([[1], [2], [3]], "<f4")},
        {"a": np.array([1, 2, 3], "<i4")},
        {"b": np.array([1, 2, 3], "<f4")},
        {"a": np.array([1, 2, -0.0], "<f4")},
        {},
    ],
)
def test_content_hash_depends_on_name_dtype_shape_and_bits(other: Tensors) -> None:
    one = {"a": np.array([1, 2, 3], "<f4")}
    assert content_hash(one) == content_hash({"a": np.array([1, 2, 3], ">f4")})
    assert content_hash(other) != content_hash(one)
    assert content_hash({"a": np.array([1, 2, 0.0], "<f4")}) != content_hash({"a": np.array([1, 2, -0.0], "<f4")})


def test_content_hash_is_pinned() -> None:
    """Stores outlive releases, so this number never changes. It is also computed by hand."""
    tensors = {"w": np.array([[1.5, -2.0]], np.float32), "m": np.array([True, False])}
    first, second = b'["m", "|b1", [2]]', b'["w", "<f4", [1, 2]]'
    by_hand = struct.pack("<Q", len(first)) + first + bytes([1, 0])
    by_hand += struct.pack("<Q", len(second)) + second + struct.pack("<ff", 1.5, -2.0)
    assert content_hash(tensors) == hashlib.sha256(by_hand).hexdigest()
    assert content_hash(tensors) == "27bb05d0f35ee1a93ef58450f6ee83d0522bd0a246f74c595bc25aa96001379e"


def test_run_json_is_readable_by_people(store: Store) -> None:
    store.commit(A, {"curve": {"loss": [0.125] * 300}, "network": "fc", "seeds": [0, 1]}, {}, {})
    lines = (folder_of(store, A) / "run.json").read_text().splitlines()
    assert len(lines) < 30
    assert '    "network": "fc",' in lines
    assert json.loads("\n".join(lines))["facts"]["seeds"] == [0, 1]


@pytest.mark.parametrize("facts", [{"loss": float("nan")}, {"loss": float("inf")}, {"rates": (1, 2)}, {1: "one"}])
def test_facts_that_json_does_not_preserve_are_a_programming_error(store: Store, facts: RunFacts) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.commit(A, facts, {}, {})
    assert store.run_ids() == set()


@pytest.mark.parametrize("key", ["", "ab", A.upper(), A + "0", f"../{A[3:]}", A[:31] + "/", A[:31] + "\n"])
def test_malformed_keys_are_a_programming_error(store: Store, key: str) -> None:
    for call in (store.has, store.read, store.facts, store.drop_weights, store.remove_checkpoint):
        with pytest.raises(AssertionError):
            call(key)
    for point in ("", "A", "../x", "a b", "a-b"):
        with pytest.raises(AssertionError):
            store.has_snapshot(A, point)


# --------------------------------------------------------------------------------------------- write-once, by many


def test_the_first_committer_wins(store: Store) -> None:
    assert put(store, A, seed=1)
    before = snapshot(store.root)
    assert not put(store, A, seed=1)
    assert not put(Store(store.root), A, seed=1)
    assert snapshot(store.root) == before
    assert store.conflicts() == []


def test_a_different_second_result_is_kept_aside_once(store: Store) -> None:
    put(store, A, seed=1)
    for _ in range(2):
        assert not put(store, A, seed=2)
    assert same(store.read(A), sample(1))
    ((run_id, folder),) = store.conflicts()
    assert run_id == A and same(store.read_conflict(A, folder), sample(2))
    assert not put(store, A, seed=3)
    assert len(store.conflicts()) == 2 and names(store.root / "staging") == set()


def test_threads_that_commit_the_same_keys(store: Store) -> None:
    """Each thread commits its own version of every key; one whole version of each stays."""
    keys = [f"{i:02x}" * 16 for i in range(12)]
    won: list[tuple[str, int]] = []
    ready = threading.Barrier(4)

    def commit_all(seed: int) -> None:
        mine = Store(store.root, QuickDisk())
        ready.wait()
        won.extend((key, seed) for key in keys if put(mine, key, seed))

    threads = [threading.Thread(target=commit_all, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for key, _ in won) == keys
    assert all(same(store.read(key), sample(seed)) for key, seed in won)
    assert names(store.root / "staging") == set()


@pytest.mark.slow
def test_processes_that_commit_the_same_keys(store: Store) -> None:
    keys = [f"{i:02x}" * 16 for i in range(20)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(put_all, [(store.root, 1, keys), (store.root, 2, keys)])
    assert sorted(won[0] + won[1]) == keys
    assert all(same(store.read(key), sample(seed + 1)) for seed in (0, 1) for key in won[seed])


def test_a_store_removed_meanwhile_is_created_again(store: Store) -> None:
    put(store, A)
    store.root.rename(store.root.with_name("moved"))
    assert put(store, B)
    assert store.run_ids() == {B}


def test_run_ids_opens_nothing_and_takes_only_ids(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, A)
    put(store, D)
    for stray in ("README", "zz", "ab/notes.txt", f"ab/{D}", "0"):
        (store.root / "runs" / stray).mkdir()
    (store.root / "runs" / "ee").mkdir()
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(os, "open", None)
    assert store.run_ids() == {A, D}


def test_reading_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "none")
    assert store.run_ids() == set() and store.snapshot_keys() == set()
    assert not store.has(A) and store.load_checkpoint(A) is None and store.remove_stale() == 0
    store.drop_weights(A)
    store.drop_snapshot(A, "end")
    store.remove_checkpoint(A)
    with pytest.raises(CorruptEntry, match="missing"):
        store.read(A)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        for call in (lambda s: put(s, A), Store.run_ids, lambda s: s.save_checkpoint(A, {}, {})):
            with pytest.raises(UserError, match=rf"but {tmp_path}/file is not a folder.*--store"):
                call(Store(root))
