"""The runs of a store, each read once: a committed run never changes."""

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
"""Facts that many runs have alike, and that are kept once for all of them."""

RETRY_SECONDS = 30.0
"""Seconds before a damaged run is looked at again: it may have been made anew."""


class CachedStore(Store):
    """A store whose facts are remembered. `refresh` alone looks for what is new; `run_ids` are those it has read.

    One thread refreshes; what the others see meanwhile is whole, as it was before.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.rows: Mapping[str, Row] = {}
        """Run id -> its row, in the order of the ids."""
        self.ancestry: Mapping[str, SeriesKey] = {}
        self.damaged: Mapping[str, str] = {}
        """Run id -> what is wrong with it."""
        self.error = ""
        """Why the store cannot be read at all."""
        self.revision = 0
        """Raised when runs have come or gone."""
        self.load_progress: tuple[int, int] | None = None
        """While many runs are read: how many are, and how many there are."""
        self._facts: dict[str, RunFacts] = {}
        self._alike: dict[str, Any] = {}
        self._looked: dict[str, float] = {}

    def run_ids(self) -> set[str]:
        """The runs that were there at the last refresh and are whole."""
        return set(self.rows)

    def has(self, run_id: str) -> bool:
        """Whether it is one of them."""
        return run_id in self.rows

    def facts(self, run_id: str) -> RunFacts:
        """The facts as they were read first; of a run that is not there yet, from the disk. Raises Damaged."""
        return self._facts.get(run_id) or super().facts(run_id)

    def refresh(self) -> None:
        """Reads what has come, forgets what has gone. For one thread at a time."""
        try:
            self._refresh()
            self.error = ""
        except (SystemFailure, UserError) as error:
            self.error = str(error)
        finally:
            self.load_progress = None

    def _refresh(self) -> None:
        there = super().run_ids()
        gone = self.rows.keys() - there
        came = self._read(there - self.rows.keys())
        damaged = {run_id: what for run_id, what in self.damaged.items() if run_id in there and run_id not in came}
        if not came and not gone and damaged == self.damaged:
            return
        for run_id in gone:
            self._facts.pop(run_id, None)
        rows = {run_id: row for run_id, row in self.rows.items() if run_id not in gone}
        rows |= {run_id: run_row(self._facts[run_id]) for run_id in came}
        self.ancestry = series_keys(self._facts)
        self.rows = dict(sorted(rows.items()))
        self.damaged = damaged
        self.revision += 1

    def _read(self, run_ids: Iterable[str]) -> set[str]:
        """Those of the runs that could be read; why the others could not is in `damaged`."""
        now = time.monotonic()
        wanted = sorted(run_id for run_id in run_ids if now - self._looked.get(run_id, -RETRY_SECONDS) >= RETRY_SECONDS)
        came = set()
        found = dict(self.damaged)
        for number, run_id in enumerate(wanted):
            self.load_progress = (number, len(wanted))
            try:
                self._facts[run_id] = self._compact(super().facts(run_id))
                came.add(run_id)
                self._looked.pop(run_id, None)
            except (SystemFailure, UserError) as error:
                found[run_id] = str(error)
                self._looked[run_id] = now
        if found != self.damaged:
            self.damaged = found
            self.revision += 1
        return came

    def _compact(self, facts: RunFacts) -> RunFacts:
        """The same facts, in a third of the memory."""
        for key in INTERNED_KEYS:
            if key in facts:
                facts[key] = self._alike.setdefault(json.dumps(facts[key]), facts[key])
        return {sys.intern(key): value for key, value in facts.items()}
