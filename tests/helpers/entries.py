"""Small entries for the tests of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from supermask.store.files.entry import Entry, Tensors
from supermask.store.files.store import EntryStore as Store

A, B, C = ("ab" + "0" * 29 + last for last in "123")
"""Run ids of one shard."""
D = "cd" + "0" * 30
"""A run id of another shard."""


def sample(seed: int) -> Entry:
    """Return an entry: facts with every JSON type, packed masks, weights with NaN and -0.0."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=7).astype(np.float32)
    weights[:2] = [np.nan, -0.0]
    return Entry(
        facts={"seed": seed, "criterion": "large_final", "lr": 1.2e-3, "parent": None, "curve": {"loss": [0.5, 0.25]}},
        tensors={"mask.fc1": rng.integers(0, 256, 5, dtype=np.uint8), "steps": np.array(seed)},
        weights={"fc1": weights, "fc2": rng.normal(size=(2, 3)).astype(np.float32)},
    )


def same_tensors(left: Tensors | None, right: Tensors | None) -> bool:
    """Return whether names, dtypes, shapes and bits are equal."""
    if left is None or right is None:
        return left is right
    return left.keys() == right.keys() and all(
        (t.dtype, t.shape, t.tobytes()) == (right[n].dtype, right[n].shape, right[n].tobytes()) for n, t in left.items()
    )


def same(left: Entry, right: Entry) -> bool:
    """Return whether facts are equal and tensors bit-identical."""
    return (
        left.facts == right.facts
        and same_tensors(left.tensors, right.tensors)
        and same_tensors(left.weights, right.weights)
    )


def put(store: Store, run_id: str, seed: int = 1) -> bool:
    """Commit a sample."""
    entry = sample(seed)
    return store.commit(run_id, entry.facts, entry.tensors, entry.weights or {})


def folder_of(store: Store, run_id: str) -> Path:
    """Return the folder of a run."""
    return store.root / "runs" / run_id[:2] / run_id


def names(folder: Path) -> set[str]:
    """Return the names in a folder."""
    return {path.name for path in folder.iterdir()}


def put_all(root: Path, seed: int, run_ids: list[str]) -> list[str]:
    """Commit one sample under every id, in a process of its own. Return the ids that it committed first."""
    store = Store(root)
    return [run_id for run_id in run_ids if put(store, run_id, seed)]
