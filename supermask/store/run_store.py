"""The store of runs: entries whose facts have the form of runs, snapshots and checkpoints."""

from __future__ import annotations

from supermask.store.documents import check_facts
from supermask.store.files.entry import CorruptEntry, Entry, Kind, RunFacts, VerifiedFacts
from supermask.store.files.store import EntryStore
from supermask.store.records import check_tensors

RESULT_FACTS = ("status", "metrics", "kept", "start_content")
"""Facts that are a run's result. The others say where and how it was computed, and may differ for equal results."""


class Store(EntryStore):
    """Store of runs. Facts and tensors are checked where they are read: see `documents.py` and `records.py`."""

    def _check_facts(self, kind: Kind, key: str, facts: RunFacts) -> None:
        check_facts(kind, key, facts)

    def _check_tensors(self, kind: Kind, key: str, entry: Entry) -> None:
        if kind == "run":
            try:
                check_tensors(entry.facts, entry.tensors)
            except ValueError as error:
                raise CorruptEntry(key, str(error)) from error

    def _is_other_result(self, stored: VerifiedFacts, other: VerifiedFacts) -> bool:
        # Test metrics are in the facts, not in the tensors.
        differs = any(stored.facts.get(name) != other.facts.get(name) for name in RESULT_FACTS)
        return differs or super()._is_other_result(stored, other)
