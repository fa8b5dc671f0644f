"""Shared state of the dashboard: cached runs, studies, and the report."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from supermask.serve import explorer
from supermask.serve.live_report import LiveReport
from supermask.serve.progress import live_curves, running_commands, status_payload
from supermask.serve.series import group_series
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy, Studies
from supermask.store.files.notes import StatusNotes
from supermask.study.run import Run

REFRESH_SECONDS = 1.0
"""Minimum time between two scans of the store."""


class ServerState:
    """State shared by all requests. Every method may be called from any thread."""

    def __init__(self, root: Path, import_criteria: bool = False) -> None:
        self.store = CachedStore(root)
        self.report = LiveReport(self.store)
        self._notes = StatusNotes(self.store.root)
        self._studies = Studies(import_criteria)
        self._stored_studies: list[StoredStudy] = []
        self._last_refresh = float("-inf")
        self._refreshing = threading.Lock()
        self._subjects: tuple[int, list[tuple[str, str]]] = (-1, [])
        """(revision of the store, subjects at that revision)."""
        self._run_sets: dict[tuple[int, str, str], explorer.RunSet] = {}
        """(revision of the store, network, dataset) -> runs."""

    def refresh(self) -> None:
        """Scan the store, unless that was done less than `REFRESH_SECONDS` ago or another thread is doing it."""
        if time.monotonic() - self._last_refresh < REFRESH_SECONDS or not self._refreshing.acquire(blocking=False):
            return
        try:
            self.store.refresh()
            self._stored_studies = self._studies.list(self._notes.read("studies"), self.store.run_ids())
            self.report.update(self._stored_studies)
        finally:
            self._last_refresh = time.monotonic()
            self._refreshing.release()

    def status(self) -> dict[str, Any]:
        """Return what the page polls: studies, commands, damage, and the revisions of the report."""
        self.refresh()
        now = time.time()
        commands = running_commands(self._notes.read("progress"), now)
        in_flight = [active.run for command in commands for active in command.progress.in_flight]
        curves = live_curves(self._notes.read("curves") if in_flight else {}, in_flight)
        status = status_payload(self.store, self._stored_studies, commands, curves, now)
        report = {**self.report.parts.revisions, "trouble": self.report.error}
        return {"revision": self.store.revision, **status, "report": report}

    def subjects(self) -> list[tuple[str, str]]:
        """Return the pairs (network, dataset) that have runs."""
        revision = self.store.revision
        if self._subjects[0] != revision:
            self._subjects = (revision, explorer.network_dataset_pairs(self.store.rows))
        return self._subjects[1]

    def run_set(self, selection: explorer.Selection) -> explorer.RunSet:
        """Return the runs of a network and dataset, grouped into series."""
        store = self.store
        key = (store.revision, selection.network, selection.dataset)
        run_set = self._run_sets.get(key)
        if run_set is None:
            rows, ancestry = explorer.filter_rows(store.rows, selection), store.ancestry
            # Another thread may replace `rows` between the two reads above; only runs in both are used.
            rows = {run_id: row for run_id, row in rows.items() if run_id in ancestry}
            run_set = explorer.RunSet(rows, group_series(rows, ancestry))
            current = {old: value for old, value in self._run_sets.items() if old[0] == key[0]}
            self._run_sets = current | {key: run_set}
        return run_set

    def choices(self) -> dict[str, Any]:
        """Return networks, datasets and treatments that the explorer can show."""
        subjects = []
        for network, dataset in self.subjects():
            run_set = self.run_set(explorer.Selection(network, dataset, ()))
            treatments = [
                {"key": key, "label": series.label, "runs": len(series.run_ids)}
                for key, series in run_set.series.items()
            ]
            subjects.append(
                {
                    "network": network,
                    "dataset": dataset,
                    "runs": sum(len(series.run_ids) for series in run_set.series.values()),
                    "treatments": treatments,
                    "first": explorer.default_selection(run_set),
                }
            )
        return {"revision": self.store.revision, "subjects": subjects}

    def find_studies(self, run_id: str) -> list[tuple[str, str]]:
        """Return the pairs (study, treatment) of the studies that a run belongs to."""
        return [(study.name, study.labels[run_id]) for study in self._stored_studies if run_id in study.labels]

    def image_shape(self, run_id: str) -> tuple[int, int, int]:
        """Return (channels, height, width) of the images of a run's dataset."""
        return Run.from_data(self.store.facts(run_id)).spec.image_shape
