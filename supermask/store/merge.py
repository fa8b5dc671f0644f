"""Merging of stores: copies runs, snapshots and study notes of one store into another, and reports differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from supermask.store.files.entry import CorruptEntry, NewerFormat
from supermask.store.files.notes import StatusNotes
from supermask.store.run_store import Store

Outcome = Literal["copied", "equal", "different", "damaged"]
"""See `MergeResult`."""


@dataclass(frozen=True)
class MergeResult:
    """Outcome for one run or snapshot.

    `copied`; `equal`: the target has the same result; `different`: the target has another result, and the one of the
    source is in `conflicts/`; `damaged`: not copied.
    """

    key: str
    outcome: Outcome
    reason: str = ""


def merge_stores(source: Store, target: Store) -> Iterator[MergeResult]:
    """Copy everything of `source` into `target`, bit for bit, and yield the outcome per run and snapshot.

    No result is overwritten and none is lost: see `MergeResult`. Entries that are damaged in `source` are reported and
    left out. Raises SystemFailure if the operating system refuses.
    """
    usable: set[str] = set()
    for run_id in sorted(source.run_ids()):
        try:
            outcome = target.import_run(run_id, source)
        except (CorruptEntry, NewerFormat) as damage:
            yield MergeResult(run_id, "damaged", damage.what if isinstance(damage, CorruptEntry) else str(damage))
            continue
        if outcome == "different":
            yield MergeResult(run_id, outcome, f"{describe_environments(source, target, run_id)}; see conflicts/")
            continue
        usable.add(run_id)
        yield MergeResult(run_id, outcome)
    for key in sorted(source.snapshot_keys()):
        # A snapshot of another result lies on another trajectory than the run that the target has.
        if key.partition("-")[0] not in usable:
            continue
        try:
            yield MergeResult(key, "copied" if target.import_snapshot(key, source) else "equal")
        except (CorruptEntry, NewerFormat) as damage:
            yield MergeResult(key, "damaged", damage.what if isinstance(damage, CorruptEntry) else str(damage))
    target.import_conflicts(source)
    notes = StatusNotes(target.root)
    for name, note in StatusNotes(source.root).read("studies").items():
        notes.write("studies", name, note)


def describe_environments(source: Store, target: Store, run_id: str) -> str:
    """Return which environments two results of a run come from."""
    names = [store.facts(run_id)["environment"]["fingerprint"] for store in (source, target)]
    if names[0] == names[1]:
        return f"both results are of environment {names[0]}: one of them is wrong"
    return f"this result is of environment {names[0]}, the one in use of {names[1]}"
