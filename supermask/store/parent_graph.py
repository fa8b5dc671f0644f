"""Parents and children of the runs in a store, from their facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from supermask.store.files.entry import CorruptEntry, NewerFormat, RunFacts
from supermask.store.run_store import Store

Content = Mapping[str, str]
"""Group of tensors -> their hash, as `Store.tensor_hashes` returns it and `parent_content` records it."""


class ParentGraph:
    """Parents and children of all runs in a store. Runs whose facts cannot be read have no parent here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._parents: dict[str, str | None] = {}
        self._unreadable: set[str] = set()
        self._children: dict[str, list[str]] = {}
        self._recorded: dict[str, Content] = {}
        for run_id in sorted(store.run_ids()):
            try:
                self.add(run_id, store.facts(run_id))
            except (CorruptEntry, NewerFormat):
                self._parents[run_id] = None
                self._unreadable.add(run_id)
        self.parents = self._children.keys()
        self._second_results: list[tuple[RunFacts, Content]] | None = None

    def add(self, run_id: str, facts: RunFacts) -> None:
        """Add a run that was committed since. One that is there already is replaced."""
        parent, recorded = facts["parent"], facts.get("parent_content")
        self._parents[run_id] = parent
        self._unreadable.discard(run_id)
        if parent is not None and run_id not in (siblings := self._children.setdefault(parent, [])):
            siblings.append(run_id)
        self._recorded.pop(run_id, None)
        if recorded is not None:
            self._recorded[run_id] = recorded

    def is_readable(self, run_id: str) -> bool:
        """Return whether a run is in the store, with facts that can be read."""
        return run_id in self._parents and run_id not in self._unreadable

    def parents_first(self) -> Iterator[str]:
        """Yield every run id, parents before children: depth first, so that a parent's start is still cached.

        Runs of unknown ancestors come last: those that cannot be read or whose parent is not there, and their children.
        """
        # No cycles: an id is the hash of facts that hold the parent's id.
        roots = [run_id for run_id, parent in self._parents.items() if parent not in self._parents]
        roots.sort(key=lambda run_id: self._parents[run_id] is not None or run_id in self._unreadable)
        stack = roots[::-1]
        while stack:
            run_id = stack.pop()
            yield run_id
            stack += reversed(self._children.get(run_id, []))

    def children(self, parent: str) -> list[str]:
        """Return the runs that were pruned from a run, which need not be in the store."""
        return self._children.get(parent, [])

    def recorded_parent(self, run_id: str) -> Content | None:
        """Return the content that a run records of its parent; None for a run of an earlier version."""
        return self._recorded.get(run_id)

    def recorded_by_children(self, parent: str) -> list[Content]:
        """Return the parent's content that each of its children records; runs of earlier versions record none."""
        return [self._recorded[child] for child in self.children(parent) if child in self._recorded]

    def has_other_child(self, parent: str, content: Content) -> bool:
        """Return whether a child of a run may have been pruned from another result of it than that of `content`."""
        return any(self._recorded.get(child) != content for child in self.children(parent))

    def is_confirmed(self, parent: str, recorded: Content) -> bool:
        """Return whether something agrees with the stored result of a parent, against a child that records another.

        That is: another run, stored or in `conflicts/`, that was pruned from the stored result; an equal result in
        `quarantine/`, so the parent was set aside and came out the same again; or the result that the child records,
        if it is in `conflicts/` or `quarantine/`, so the child descends from one that is not in use.
        """
        content = self._store.tensor_hashes(parent)
        set_aside = self._store.quarantined_hashes(parent)
        if content in self.recorded_by_children(parent) or content in set_aside or recorded in set_aside:
            return True
        if self._second_results is None:
            self._second_results = list(self._read_second_results())
        return any(
            (facts.get("parent") == parent and facts.get("parent_content") == content)
            or (facts.get("id") == parent and own == recorded)
            for facts, own in self._second_results
        )

    def _read_second_results(self) -> Iterator[tuple[RunFacts, Content]]:
        for run_id, folder in self._store.conflicts():
            try:
                yield self._store.conflict_facts(run_id, folder)
            except (CorruptEntry, NewerFormat):
                continue
