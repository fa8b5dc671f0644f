"""Scenarios for every way to write to the store, and the enumeration of all faults on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.entries import A, B, C, D, same, sample
from helpers.faulty_disk import Crash, Fault, FaultyDisk, QuickDisk, materialise, snapshot
from supermask.core.errors import SystemFailure
from supermask.store import CorruptEntry
from supermask.store.files.disk import Disk
from supermask.store.files.entry import Entry
from supermask.store.files.folders import WEIGHTS
from supermask.store.files.store import EntryStore as Store

FAULTS: tuple[Fault, ...] = ("crash", "torn", "EIO", "ENOSPC", "short", "lying")
ON_WRITES_ONLY = ("short", "lying")
FIRST, SECOND, THIRD = sample(1), sample(2), sample(3)


@dataclass(frozen=True)
class Scenario:
    """`before` prepares the store, `act` runs on the faulty disk, `check` raises AssertionError or CorruptEntry."""

    before: Callable[[Store], object]
    act: Callable[[Store], object]
    check: Callable[[Store, bool], None]
    """Takes the store afterwards and whether `act` returned."""


def commit(store: Store, run_id: str, entry: Entry | None = None) -> bool:
    """Commit the entry that the scenarios expect under this id, or another one."""
    given = entry or {A: FIRST, B: SECOND, C: THIRD, D: SECOND}[run_id]
    return store.commit(run_id, given.facts, given.tensors, given.weights or {})


def two_runs(store: Store) -> None:
    commit(store, A)
    commit(store, B)
    store.commit_snapshot(A, "iteration_5", FIRST.facts, FIRST.tensors)


def old_checkpoint(store: Store) -> None:
    two_runs(store)
    store.save_checkpoint(C, FIRST.facts, FIRST.tensors)


def dropped(store: Store) -> None:
    two_runs(store)
    store.drop_weights(A)


def others_intact(store: Store, *, but: str = "") -> None:
    for run_id, entry in ((A, FIRST), (B, SECOND)):
        assert run_id == but or same(store.read(run_id), entry), f"{run_id} changed"
    assert store.read_snapshot(A, "iteration_5").facts == FIRST.facts


def swept(store: Store) -> None:
    store.remove_stale()
    assert list((store.root / "staging").glob("*")) == [], "left over after a sweep"


def check_commit(run_id: str, fresh: bool = False) -> Callable[[Store, bool], None]:
    def check(store: Store, done: bool) -> None:
        if not fresh:
            others_intact(store)
        expected = {A: FIRST, C: THIRD, D: SECOND}[run_id]
        assert store.has(run_id) == (run_id in store.run_ids())
        if store.has(run_id):
            assert same(store.read(run_id), expected), "not what was committed"
        assert store.has(run_id) or not done, "committed, and gone"
        swept(store)
        commit(store, run_id)
        assert same(store.read(run_id), expected)

    return check


def check_point(store: Store, done: bool) -> None:
    others_intact(store)
    if store.has_snapshot(B, "end"):
        assert store.read_snapshot(B, "end").facts == SECOND.facts
    assert store.has_snapshot(B, "end") or not done, "committed, and gone"
    swept(store)
    store.commit_snapshot(B, "end", SECOND.facts, SECOND.tensors)
    assert store.read_snapshot(B, "end").facts == SECOND.facts


def check_drop_point(store: Store, done: bool) -> None:
    assert same(store.read(A), FIRST)
    if store.has_snapshot(A, "iteration_5"):
        assert not done, "dropped, and there again"
        assert store.read_snapshot(A, "iteration_5").facts == FIRST.facts
    swept(store)
    store.drop_snapshot(A, "iteration_5")
    assert not store.has_snapshot(A, "iteration_5")


def check_checkpoint(had_one: bool) -> Callable[[Store, bool], None]:
    def check(store: Store, done: bool) -> None:
        others_intact(store)
        found = store.load_checkpoint(C)
        allowed = [None if done else FIRST if had_one else None, SECOND]
        if found is None:
            assert not done and not had_one, "neither the old checkpoint nor the new one"
        else:
            assert any(e and same(found, Entry(e.facts, e.tensors, {})) for e in allowed), "a mixed checkpoint"
        swept(store)
        store.save_checkpoint(C, THIRD.facts, THIRD.tensors)
        assert (third := store.load_checkpoint(C)) is not None and third.facts == THIRD.facts
        assert len(list((store.root / "checkpoints" / C).iterdir())) == 1, "old checkpoints pile up"

    return check


def check_remove_checkpoint(store: Store, done: bool) -> None:
    others_intact(store)
    found = store.load_checkpoint(C)
    assert found is None or found.facts == FIRST.facts
    store.remove_checkpoint(C)
    assert store.load_checkpoint(C) is None


def check_drop(store: Store, done: bool) -> None:
    others_intact(store, but=A)
    found = store.read(A)
    assert (found.facts, set(found.tensors)) == (FIRST.facts, set(FIRST.tensors))
    assert store.has_weights(A) == (found.weights is not None)
    assert found.weights is None or (same(found, FIRST) and not done)
    store.drop_weights(A)
    assert store.read(A).weights is None
    assert not (store.root / "runs" / A[:2] / A / WEIGHTS).exists()


def check_restore(store: Store, done: bool) -> None:
    others_intact(store, but=A)
    found = store.read(A)
    assert same(found, FIRST) or (found.weights is None and not done)
    swept(store)
    assert store.restore_weights(A, FIRST.weights or {})
    assert same(store.read(A), FIRST)


def damage(store: Store) -> None:
    two_runs(store)
    commit(store, C)
    (store.root / "runs" / C[:2] / C / WEIGHTS).write_bytes(b"garbage")


def damage_with_snapshot(store: Store) -> None:
    damage(store)
    store.commit_snapshot(C, "end", THIRD.facts, THIRD.tensors)


def check_quarantine_with_snapshot(store: Store, done: bool) -> None:
    assert store.has(C) or not store.has_snapshot(C, "end"), "a snapshot without the run that it belongs to"
    assert not (done and store.has_snapshot(C, "end"))
    check_quarantine(store, done)
    assert not store.has_snapshot(C, "end"), "the old snapshot beside a new result"


def check_quarantine(store: Store, done: bool) -> None:
    others_intact(store)
    if store.has(C):
        assert not done, "set aside, and back again"
        with pytest.raises(CorruptEntry):
            store.read(C)
        store.quarantine(C, "once more")
    assert commit(store, C)
    assert same(store.read(C), THIRD)


SCENARIOS: Mapping[str, Scenario] = {
    "first commit of all": Scenario(lambda store: None, lambda s: commit(s, A), check_commit(A, fresh=True)),
    "commit, known shard": Scenario(two_runs, lambda s: commit(s, C), check_commit(C)),
    "commit, new shard": Scenario(two_runs, lambda s: commit(s, D), check_commit(D)),
    "commit, taken": Scenario(two_runs, lambda s: commit(s, A, SECOND), check_commit(A)),
    "commit_point": Scenario(
        two_runs, lambda s: s.commit_snapshot(B, "end", SECOND.facts, SECOND.tensors), check_point
    ),
    "drop_point": Scenario(two_runs, lambda s: s.drop_snapshot(A, "iteration_5"), check_drop_point),
    "first save_checkpoint": Scenario(
        two_runs, lambda s: s.save_checkpoint(C, SECOND.facts, SECOND.tensors), check_checkpoint(had_one=False)
    ),
    "next save_checkpoint": Scenario(
        old_checkpoint, lambda s: s.save_checkpoint(C, SECOND.facts, SECOND.tensors), check_checkpoint(had_one=True)
    ),
    "remove_checkpoint": Scenario(old_checkpoint, lambda s: s.remove_checkpoint(C), check_remove_checkpoint),
    "drop_weights": Scenario(two_runs, lambda s: s.drop_weights(A), check_drop),
    "restore_weights": Scenario(dropped, lambda s: s.restore_weights(A, FIRST.weights or {}), check_restore),
    "quarantine": Scenario(damage, lambda s: s.quarantine(C, "a test damaged it"), check_quarantine),
    "quarantine, with a snapshot": Scenario(
        damage_with_snapshot, lambda s: s.quarantine(C, "a test damaged it"), check_quarantine_with_snapshot
    ),
}

OpenStore = Callable[[Path, Disk], Store]


@dataclass
class Findings:
    """Result of an enumeration: violated promises, and the operations and faults tried."""

    problems: list[str]
    operations: list[str]
    hits: Counter[str]
    states: int = 0


def enumerate_faults(
    top: Path,
    scenario: Scenario,
    disk_type: type[FaultyDisk] = FaultyDisk,
    open_store: OpenStore = Store,
    until: str | None = None,
) -> Findings:
    """Run the scenario once per (fault, operation) and check every state that it can leave.

    With `until`, stop after the first problem that says so.
    """
    materialise(top, {})
    scenario.before(Store(top / "store", QuickDisk()))
    base = snapshot(top)
    judged: set[tuple[bool, frozenset[tuple[str, bytes | None]]]] = set()
    found = Findings([], [], Counter())

    def attempt(fault: Fault | None, index: int | None) -> FaultyDisk:
        materialise(top, base)
        disk = disk_type(top, fault, index)
        where = f"{fault} at operation {index}"
        done = False
        try:
            scenario.act(open_store(top / "store", disk))
            done = True
        except (Crash, SystemFailure):
            pass
        except OSError as error:
            found.problems.append(f"{where}: the user would see {error!r}")
        disk.end()
        if fault == "short" and not done:
            found.problems.append(f"{where}: a short write stopped it")
        found.hits[fault or "none"] += disk.hit
        for state in (snapshot(top), *disk.after_power_loss()):
            if (key := (done, frozenset(state.items()))) not in judged:
                judged.add(key)
                materialise(top, state)
                try:
                    scenario.check(Store(top / "store", QuickDisk()), done)
                except (AssertionError, SystemFailure) as error:
                    found.problems.append(f"{where} ({disk.operations[-1]}): {error or 'a promise was broken'}")
        return disk

    found.operations = attempt(None, None).operations
    for fault in FAULTS:
        for index, operation in enumerate(found.operations):
            if fault not in ON_WRITES_ONLY or operation == "write":
                attempt(fault, index)
                if until and any(until in problem for problem in found.problems):
                    return found
    found.states = len(judged)
    return found


def kinds(operations: list[str]) -> Counter[str]:
    """Count operations by kind."""
    return Counter(operation.partition(" ")[0] for operation in operations)
