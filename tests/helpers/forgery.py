"""Forged entries of a store, and the verdicts of verify on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.stored_study import Carried, carried_out
from supermask.api import runs
from supermask.store.files.entry import RunFacts, Tensors, encode_entry
from supermask.store.verify import VerificationResult

Change = Callable[[RunFacts, Tensors, Tensors], None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    return carried_out(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def carried(pristine: Carried, tmp_path: Path) -> Carried:
    """A store of its own for a test that changes it."""
    shutil.copytree(pristine.store, tmp_path / "store")
    return Carried(pristine.study, tmp_path / "store", pristine.plan)


def verdicts(store: Path) -> dict[str, VerificationResult]:
    return {verdict.key: verdict for verdict in runs.verify(store)}


def not_held(store: Path) -> dict[str, VerificationResult]:
    return {key: verdict for key, verdict in verdicts(store).items() if verdict.verdict != "held"}


def folder_of(store: Path, run_id: str) -> Path:
    return store / "runs" / run_id[:2] / run_id


def forge(carried: Carried, run_id: str, change: Change) -> None:
    """Rewrites a stored run as if it had been committed so: every hash and seal is right."""
    entry = carried.opened().read(run_id)
    assert entry.weights is not None
    facts, tensors, weights = entry.facts, dict(entry.tensors), dict(entry.weights)
    change(facts, tensors, weights)
    for name, data in encode_entry("run", run_id, facts, {"tensors": tensors, "weights": weights}).items():
        (folder_of(carried.store, run_id) / name).write_bytes(data)
