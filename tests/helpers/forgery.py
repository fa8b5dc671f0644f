"""Forged entries of a store, and the verdicts of `verify` on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.stored_study import TrainedStudy
from supermask.api import runs
from supermask.store.files.entry import FORMAT, Entry, RunFacts, Tensors, encode_entry
from supermask.store.files.store import EntryStore
from supermask.store.verify import VerificationResult

Change = Callable[[RunFacts, Tensors, Tensors], None]


def verdicts(store: Path) -> dict[str, VerificationResult]:
    return {verdict.key: verdict for verdict in runs.verify(store)}


def not_held(store: Path) -> dict[str, VerificationResult]:
    return {key: verdict for key, verdict in verdicts(store).items() if verdict.verdict != "held"}


def copy_without_frozen(trained: TrainedStudy, folder: Path) -> TrainedStudy:
    """Copy the ten runs whose treatments set pruned weights to 0: what a test forges and what verify reads besides."""
    run_ids = {member.run_id for member in trained.plan.treatment_runs if member.treatment.endswith("+ zero")}
    for run_id in run_ids:
        shutil.copytree(
            folder_of(trained.store, run_id), folder_of(folder / "store", run_id), copy_function=shutil.copyfile
        )
    return TrainedStudy(trained.study, folder / "store", trained.plan)


def folder_of(store: Path, run_id: str) -> Path:
    return store / "runs" / run_id[:2] / run_id


def make_newer(store: Path, run_id: str, folder: Path | None = None) -> None:
    """Replace the facts of a run by an entry of the next store format. `folder`: of the entry, if not the run's."""
    with pytest.MonkeyPatch.context() as newer:
        newer.setattr("supermask.store.files.entry.FORMAT", FORMAT + 1)
        data = encode_entry("run", run_id, {}, {"tensors": {}})["run.json"]
    ((folder or folder_of(store, run_id)) / "run.json").write_bytes(data)


NEWER = f"was written in store format {FORMAT + 1}; this supermask reads format {FORMAT}."
"""Message about such an entry."""


def forge(trained: TrainedStudy, run_id: str, change: Change, relink: bool = True) -> None:
    """Change a stored run and reseal it: every hash is right. `relink`: also in what its children record of it."""
    store = trained.open_store()
    entry = store.read(run_id)
    assert entry.weights is not None
    facts, tensors, weights = entry.facts, dict(entry.tensors), dict(entry.weights)
    change(facts, tensors, weights)
    _write(trained, run_id, Entry(facts, tensors, weights))
    if not relink:
        return
    sealed = EntryStore(trained.store)
    for child in store.run_ids() - {run_id}:
        stored = sealed.facts(child)
        if stored["parent"] == run_id:
            child_entry = sealed.read(child)
            if "parent_content" in stored and child_entry.weights is not None:
                stored["parent_content"] = sealed.tensor_hashes(run_id)
                _write(trained, child, Entry(stored, child_entry.tensors, child_entry.weights))


def _write(trained: TrainedStudy, run_id: str, entry: Entry) -> None:
    files = encode_entry("run", run_id, entry.facts, {"tensors": entry.tensors, "weights": entry.weights or {}})
    for name, data in files.items():
        (folder_of(trained.store, run_id) / name).write_bytes(data)
