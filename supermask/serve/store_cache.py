"""Store that reads the facts of each run once: a committed run never changes, unless it is set aside first."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import Row
from supermask.serve.series import SeriesKey, series_keys
from supermask.store import Store
from supermask.store.files.entry import RunFacts
from supermask.store.rows import run_row

INTERNED_KEYS = ("certificate", "data", "environment", "recipe", "step")
"""Facts whose values many runs share; equal values are kept in memory once."""

RETRY_SECONDS = 30.0
"""Seconds until a damaged run is read again: another command may have replaced it."""


class CachedStore(Store):
    """Store with cached facts. Only `refresh` looks for new runs; `run_ids` returns those that it has read.

    One thread refreshes at a time. It replaces mappings and never changes them, so readers always see a complete state.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.rows: Mapping[str, Row] = {}
        """Run id -> row, sorted by id."""
        self.ancestry: Mapping[str, SeriesKey] = {}
        self.damaged: Mapping[str, str] = {}
        """Run id -> description of the damage."""
        self.error = ""
        """Reason why the store cannot be read; empty if it can."""
        self.revision = 0
        """Incremented when runs or damage have changed."""
        self.load_progress: tuple[int, int] | None = None
        """(runs read, runs to read) during a refresh, else None."""
        self._facts: dict[str, RunFacts] = {}
        self._interned: dict[str, Any] = {}
        """JSON of a value -> the value, for `INTERNED_KEYS`."""
        self._last_try: dict[str, float] = {}
        """Id of a damaged run -> monotonic time of the last attempt to read it."""
        self._quarantined: set[str] = set()
        """Folders in `quarantine/` at the last refresh."""

    def run_ids(self) -> set[str]:
        """Return the ids of undamaged runs at the last refresh."""
        return set(self.rows)

    def has(self, run_id: str) -> bool:
        """True if the run was in the store, undamaged, at the last refresh."""
        return run_id in self.rows

    def facts(self, run_id: str) -> RunFacts:
        """Return the cached facts of a run; read them from disk if it is not cached. Raises CorruptEntry."""
        return self._facts.get(run_id) or super().facts(run_id)

    def refresh(self) -> None:
        """Read new runs and forget removed ones. Must not be called from two threads at once."""
        try:
            self._refresh()
            self.error = ""
        except (SystemFailure, UserError) as error:
            self.error = str(error)
        finally:
            self.load_progress = None

    def _refresh(self) -> None:
        # Listed before the runs: a run that is set aside later is noticed by the next refresh.
        quarantined = self.quarantine_names()
        set_aside = {name.partition(".")[0] for name in quarantined - self._quarantined}
        stored = super().run_ids()
        # A run may be set aside and computed again, to another result, between two refreshes.
        removed = {run_id for run_id in self.rows if run_id in set_aside or run_id not in stored}
        added = self._read(stored - (self.rows.keys() - removed))
        self._quarantined = quarantined
        damaged = {run_id: text for run_id, text in self.damaged.items() if run_id in stored and run_id not in added}
        if not added and not removed and damaged == self.damaged:
            return
        for run_id in removed - added:
            self._facts.pop(run_id, None)
        rows = {run_id: row for run_id, row in self.rows.items() if run_id not in removed}
        rows |= {run_id: run_row(self._facts[run_id]) for run_id in added}
        self.ancestry = series_keys(self._facts)
        self.rows = dict(sorted(rows.items()))
        self.damaged = damaged
        self.revision += 1

    def _read(self, run_ids: Iterable[str]) -> set[str]:
        """Read runs into the cache; return the ids of the readable ones and put the others into `damaged`."""
        now = time.monotonic()
        due = sorted(run_id for run_id in run_ids if now - self._last_try.get(run_id, -RETRY_SECONDS) >= RETRY_SECONDS)
        added = set()
        damaged = dict(self.damaged)
        for number, run_id in enumerate(due):
            self.load_progress = (number, len(due))
            try:
                self._facts[run_id] = self._compact(super().facts(run_id))
                added.add(run_id)
                self._last_try.pop(run_id, None)
            except (SystemFailure, UserError) as error:
                damaged[run_id] = str(error)
                self._last_try[run_id] = now
        if damaged != self.damaged:
            self.damaged = damaged
            self.revision += 1
        return added

    def _compact(self, facts: RunFacts) -> RunFacts:
        """Share equal values between runs, which reduces memory to a third."""
        for key in INTERNED_KEYS:
            if key in facts:
                facts[key] = self._interned.setdefault(json.dumps(facts[key]), facts[key])
        return {sys.intern(key): value for key, value in facts.items()}
