"""Merging of stores: copies runs, snapshots and study notes of one store into another, and reports differences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from supermask.store.files.entry import CorruptEntry, NewerFormat, RunFacts
from supermask.store.files.notes import StatusNotes
from supermask.store.parent_graph import ParentGraph
from supermask.store.run_store import Store

Outcome = Literal["copied", "equal", "different", "damaged"]
"""See `MergeResult`."""


@dataclass(frozen=True)
class MergeResult:
    """Outcome for one run or snapshot.

    `copied`; `equal`: the target has the same result; `different`: the target has another result of this run or of an
    ancestor, and the one of the source is in `conflicts/`; `damaged`: not copied.
    """

    key: str
    outcome: Outcome
    reason: str = ""


def merge_stores(source: Store, target: Store) -> Iterator[MergeResult]:
    """Copy everything of `source` into `target`, bit for bit, and yield the outcome per run and snapshot.

    Parents come before their children: a run is copied only if its parent in `target` is the one that it was pruned
    from. No result is overwritten and none is lost: see `MergeResult`. Entries that are damaged in `source` are
    reported and left out. Raises SystemFailure if the operating system refuses.
    """
    outcomes: dict[str, Outcome] = {}
    for run_id in ParentGraph(source).parents_first():
        result = _merge_run(source, target, run_id, outcomes)
        outcomes[run_id] = result.outcome
        yield result
    for key in sorted(source.snapshot_keys()):
        # A snapshot of another result lies on another trajectory than the run that the target has.
        if outcomes.get(key.partition("-")[0]) not in ("copied", "equal"):
            continue
        try:
            yield MergeResult(key, "copied" if target.import_snapshot(key, source) else "equal")
        except (CorruptEntry, NewerFormat) as damage:
            yield MergeResult(key, "damaged", damage.what if isinstance(damage, CorruptEntry) else str(damage))
    target.import_conflicts(source)
    notes = StatusNotes(target.root)
    for name, note in StatusNotes(source.root).read("studies").items():
        notes.write("studies", name, note)


def _merge_run(source: Store, target: Store, run_id: str, outcomes: dict[str, Outcome]) -> MergeResult:
    """Copy one run, or compare it with the target's. `outcomes`: of the runs so far, its ancestors among them."""
    try:
        facts = source.read(run_id).facts
        if not target.has(run_id) and (reason := _foreign_parent(target, facts, outcomes)):
            target.import_conflict(run_id, source)
            return MergeResult(run_id, "different", f"{reason}; see conflicts/")
        outcome = target.import_run(run_id, source)
    except (CorruptEntry, NewerFormat) as damage:
        return MergeResult(run_id, "damaged", damage.what if isinstance(damage, CorruptEntry) else str(damage))
    if outcome == "different":
        return MergeResult(run_id, outcome, f"{describe_environments(source, target, run_id)}; see conflicts/")
    return MergeResult(run_id, outcome)


def _foreign_parent(target: Store, facts: RunFacts, outcomes: dict[str, Outcome]) -> str:
    """Return why a run does not follow from the parent that the target has; empty if it does, or has none there.

    A parent that is in neither store, or is damaged, will be trained again to the bits that its children record.
    """
    parent, recorded = facts["parent"], facts.get("parent_content")
    if parent is None:
        return ""
    if not target.has(parent):
        # Its parent went to `conflicts/`, and so do all descendants.
        return f"it was pruned from the other result of {parent}" if outcomes.get(parent) == "different" else ""
    if recorded is None:
        # Runs of earlier versions do not record it: the parent beside it in the source must be the one here.
        is_parent = outcomes.get(parent) in ("copied", "equal")
    else:
        is_parent = _tensor_hashes(target, parent) == recorded
    return "" if is_parent else f"it was pruned from another result of {parent} than the one in use"


def _tensor_hashes(store: Store, run_id: str) -> dict[str, str] | None:
    try:
        return store.tensor_hashes(run_id)
    except (CorruptEntry, NewerFormat):
        return None


def describe_environments(source: Store, target: Store, run_id: str) -> str:
    """Return which environments two results of a run come from."""
    names = [store.facts(run_id)["environment"]["fingerprint"] for store in (source, target)]
    if names[0] == names[1]:
        return f"both results are of environment {names[0]}: one of them is wrong"
    return f"this result is of environment {names[0]}, the one in use of {names[1]}"
