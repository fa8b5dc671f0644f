"""Forged entries of a store, and the verdicts of `verify` on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from helpers.stored_study import Carried
from supermask.api import runs
from supermask.store.files.entry import RunFacts, Tensors, encode_entry
from supermask.store.verify import VerificationResult

Change = Callable[[RunFacts, Tensors, Tensors], None]


def verdicts(store: Path) -> dict[str, VerificationResult]:
    return {verdict.key: verdict for verdict in runs.verify(store)}


def not_held(store: Path) -> dict[str, VerificationResult]:
    return {key: verdict for key, verdict in verdicts(store).items() if verdict.verdict != "held"}


def folder_of(store: Path, run_id: str) -> Path:
    return store / "runs" / run_id[:2] / run_id


def forge(carried: Carried, run_id: str, change: Change) -> None:
    """Change a stored run and reseal it: every hash is right."""
    entry = carried.opened().read(run_id)
    assert entry.weights is not None
    facts, tensors, weights = entry.facts, dict(entry.tensors), dict(entry.weights)
    change(facts, tensors, weights)
    for name, data in encode_entry("run", run_id, facts, {"tensors": tensors, "weights": weights}).items():
        (folder_of(carried.store, run_id) / name).write_bytes(data)
