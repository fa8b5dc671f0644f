"""Merging of stores: copies runs, snapshots and study notes of one store into another, and reports differences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from supermask.store.files.entry import CorruptEntry, NewerFormat, RunFacts
from supermask.store.files.imports import (
    compare_run,
    import_conflict,
    import_conflicts,
    import_run,
    import_snapshot,
    set_aside_foreign_snapshots,
)
from supermask.store.files.notes import StatusNotes
from supermask.store.files.store import Comparison
from supermask.store.parent_graph import Content, ParentGraph
from supermask.store.run_store import Store

Outcome = Literal["copied", "equal", "different", "damaged", "newer"]
"""See `MergeResult`."""


@dataclass(frozen=True)
class MergeResult:
    """Outcome for one run or snapshot.

    `copied`: also in place of a damaged one, which was set aside. `equal`: the target has the same result, undamaged.
    `different`: the target has another result of this run or of an ancestor, a child of another result, or a damaged
    entry that may be of another; the one of the source is in `conflicts/`. `damaged`: damaged in the source and left
    out. `newer`: of a newer format in one of the two stores, and left out.
    """

    key: str
    outcome: Outcome
    reason: str = ""


def merge_stores(source: Store, target: Store) -> Iterator[MergeResult]:
    """Copy everything of `source` into `target`, bit for bit, and yield the outcome per run and snapshot.

    Parents come before their children: a run is copied only if its parent in `target` is the one that it was pruned
    from, and its children in `target` were pruned from it. No result is overwritten and none is lost: see
    `MergeResult`. Entries that are damaged in `source` are reported and left out. Raises SystemFailure if the operating
    system refuses.
    """
    merger = _RunMerger(source, target)
    yield from merger.merge_all()
    for key in sorted(source.snapshot_keys()):
        # A snapshot of another result lies on another trajectory than the run that the target has.
        if merger.outcomes.get(key.partition("-")[0]) not in ("copied", "equal"):
            continue
        try:
            outcome = import_snapshot(target, key, source)
            yield MergeResult(key, outcome, _SNAPSHOT_REASONS.get(outcome, ""))
        except (CorruptEntry, NewerFormat) as error:
            yield _left_out(key, error)
    import_conflicts(target, source)
    notes = StatusNotes(target.root)
    for name, note in StatusNotes(source.root).read("studies").items():
        notes.write("studies", name, note)


@dataclass(frozen=True)
class _Mismatch:
    """Why a run of the source may not be used beside the runs of the target."""

    reason: str
    is_certain: bool = True
    """False: it may belong there, but nothing says so."""


class _RunMerger:
    """Merges one run after another, parents before children, and keeps the outcomes for their descendants."""

    def __init__(self, source: Store, target: Store) -> None:
        self._source = source
        self._target = target
        self._source_graph = ParentGraph(source)
        self._target_graph = ParentGraph(target)
        self.outcomes: dict[str, Outcome] = {}
        self._foreign: dict[str, bool] = {}
        """Runs whose result in the source does not belong into the target, damaged ones among them: is it certain?"""
        self._foreign_chains: set[tuple[str, int]] = set()
        """Network and seed of these runs. Descendants of a run have the same."""

    def merge_all(self) -> Iterator[MergeResult]:
        """Copy every run, or compare it with the target's."""
        for run_id in self._source_graph.parents_first():
            result = self._merge_run(run_id)
            self.outcomes[run_id] = result.outcome
            yield result

    def _merge_run(self, run_id: str) -> MergeResult:
        try:
            facts = self._source.read(run_id).facts
        except (CorruptEntry, NewerFormat) as error:
            # Its descendants are judged all the same: most damage leaves the facts readable.
            with suppress(CorruptEntry, NewerFormat):
                facts = self._source.facts(run_id)
                mismatch = self._find_mismatch(facts)
                is_other = self._target.has(run_id) and compare_run(self._target, run_id, self._source) == "different"
                if mismatch is not None or is_other:
                    self._note_foreign(facts, mismatch)
            return _left_out(run_id, error)
        mismatch = self._find_mismatch(facts)
        result = self._merge_undamaged(run_id, mismatch)
        if result.outcome == "copied":
            self._target_graph.add(run_id, facts)
        elif result.outcome == "different":
            self._note_foreign(facts, mismatch)
        return result

    def _note_foreign(self, facts: RunFacts, mismatch: _Mismatch | None) -> None:
        self._foreign[facts["id"]] = mismatch is None or mismatch.is_certain
        self._foreign_chains.add((facts["network"], facts["seed"]))

    def _merge_undamaged(self, run_id: str, mismatch: _Mismatch | None) -> MergeResult:
        source, target = self._source, self._target
        if target.has(run_id):
            try:
                target.read(run_id)
            except NewerFormat as error:
                return _left_out(run_id, error)
            except CorruptEntry as damage:
                return self._replace_damaged(run_id, damage, mismatch)
        elif mismatch is not None:
            import_conflict(target, run_id, source)
            return MergeResult(run_id, "different", f"{mismatch.reason}; see conflicts/")
        # Before the run: a crash in between must not leave it beside snapshots of another result.
        moved = [] if target.has(run_id) else set_aside_foreign_snapshots(target, run_id, source)
        outcome = import_run(target, run_id, source)
        if outcome == "different":
            return MergeResult(run_id, outcome, f"{describe_environments(source, target, run_id)}; see conflicts/")
        if outcome == "damaged":
            return MergeResult(run_id, outcome, "another process changed it meanwhile; merge again")
        return MergeResult(run_id, outcome, _describe_moved(moved))

    def _replace_damaged(self, run_id: str, damage: CorruptEntry, mismatch: _Mismatch | None) -> MergeResult:
        """Set the target's damaged run aside and copy that of the source, if something shows that they are equal.

        `mismatch`: why it may not follow from the parent in the target.
        """
        source, target = self._source, self._target
        comparison, reason = self._compare_damaged(run_id, mismatch)
        if comparison == "equal":
            why = f"{damage.what}. The undamaged one of {source.root} was merged."
            # The source may not have its snapshots, which are right: they stay.
            folder = target.quarantine(run_id, why, with_snapshots=False)
            moved = _describe_moved(set_aside_foreign_snapshots(target, run_id, source))
            outcome = import_run(target, run_id, source)
            where = "" if folder is None else f" and is set aside: {folder}"
            reason = f"the one here was damaged ({damage.what}){where}"
            return MergeResult(run_id, outcome, f"{reason}; {moved}" if moved else reason)
        import_conflict(target, run_id, source)
        advice = f"{reason}`supermask verify --repair` sets it aside"
        return MergeResult(run_id, "different", f"the one here is damaged ({damage.what}); {advice}; see conflicts/")

    def _compare_damaged(self, run_id: str, mismatch: _Mismatch | None) -> tuple[Comparison, str]:
        """Compare the target's damaged run with that of the source; with a reason if nothing says what it was.

        Its own facts decide if they can be read. Otherwise a child or a snapshot of it has to record the content of
        that of the source, and no child another one.
        """
        comparison = compare_run(self._target, run_id, self._source)
        if comparison != "damaged":
            return comparison, ""
        content = self._source.tensor_hashes(run_id)
        if mismatch is not None or self._target_graph.has_other_child(run_id, content):
            return "different", ""
        recorded = self._target_graph.recorded_by_children(run_id) + self._target.snapshot_run_contents(run_id)
        if content in recorded:
            return "equal", ""
        return "different", "nothing here records that it was this result; "

    def _find_mismatch(self, facts: RunFacts) -> _Mismatch | None:
        """Return why a run may not follow from its parent in the target, or its children there from it."""
        mismatch = self._compare_parent(facts)
        # Children of a run that the target has are its own business: `verify` judges them.
        if mismatch is None and not self._target.has(facts["id"]):
            return self._compare_children(facts["id"])
        return mismatch

    def _compare_parent(self, facts: RunFacts) -> _Mismatch | None:
        """Return why a run may not follow from the target's parent; None if it does, or has none there.

        A parent that is in neither store, or is damaged, will be trained again to the bits that its children record.
        """
        parent, recorded = facts["parent"], facts.get("parent_content")
        if parent is None:
            return None
        if not self._target.has(parent):
            return self._trace_ancestors(facts)
        content = _tensor_hashes(self._target, parent)
        other_result = _Mismatch(f"it was pruned from another result of {parent} than the one in use")
        if content is None:
            reason = (
                f"the parent {parent} here cannot be read: whether it is the one that this was pruned from is unknown"
            )
            return _Mismatch(reason, is_certain=False)
        if recorded is not None:
            return None if content == recorded else other_result
        # Runs of earlier versions do not record it: the parent beside it in the source must be the one here.
        outcome = self.outcomes.get(parent)
        if outcome in ("copied", "equal"):
            return None
        reason = f"it does not record its parent {parent}: whether that is the one here is unknown"
        return other_result if outcome == "different" else _Mismatch(reason, is_certain=False)

    def _trace_ancestors(self, facts: RunFacts) -> _Mismatch | None:
        """Return why a run whose parent the target does not have may descend from another result than those there."""
        parent = facts["parent"]
        if parent in self._foreign:
            # Its parent went to `conflicts/` or was left out. So do all descendants.
            if self._foreign[parent]:
                return _Mismatch(f"it was pruned from the other result of {parent}")
            return _Mismatch(f"whether its parent {parent} follows from the runs here is unknown", is_certain=False)
        if self._source_graph.is_readable(parent) or (facts["network"], facts["seed"]) not in self._foreign_chains:
            return None
        reason = f"its parent {parent} cannot be read in either store: whether it follows from the runs here is unknown"
        return _Mismatch(reason, is_certain=False)

    def _compare_children(self, run_id: str) -> _Mismatch | None:
        """Return which child in the target may have been pruned from another result of a run that is missing there.

        A child of an earlier version does not record its parent: it counts if the source has the same result of it.
        """
        content = self._source.tensor_hashes(run_id)
        for child in self._target_graph.children(run_id):
            recorded = self._target_graph.recorded_parent(child)
            if recorded is not None and recorded != content:
                return _Mismatch(f"its child {child} here was pruned from another result of it")
            if recorded is None and not self._is_child_in_source(child, content):
                reason = f"its child {child} here does not record which result it was pruned from"
                return _Mismatch(reason, is_certain=False)
        return None

    def _is_child_in_source(self, child: str, content: Content) -> bool:
        """Return whether the source has the target's result of a run, pruned from a parent of `content`."""
        try:
            recorded = self._source.read(child).facts.get("parent_content", content)
            return bool(recorded == content) and compare_run(self._target, child, self._source) == "equal"
        except (CorruptEntry, NewerFormat):
            return False


_SNAPSHOT_REASONS = {
    "different": "there are two different ones of the same run, and nothing says which is right. Remove the wrong one: "
    "its study computes it again",
    "damaged": "it is of another result of its run",
    "newer": "the one here was written by a newer version",
}
"""Outcome of a snapshot -> its reason."""


def _left_out(key: str, error: CorruptEntry | NewerFormat) -> MergeResult:
    if isinstance(error, NewerFormat):
        return MergeResult(key, "newer", str(error))
    return MergeResult(key, "damaged", error.what)


def _describe_moved(snapshots: list[Path]) -> str:
    folders = ", ".join(map(str, snapshots))
    return f"snapshots of another result of it are set aside: {folders}" if folders else ""


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
