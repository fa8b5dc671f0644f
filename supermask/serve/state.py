"""What the server knows: the shelf, the studies, what is going on, and the report over all of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from supermask.datasets.specs import DATASETS
from supermask.serve import explorer
from supermask.serve.live_report import LiveReport
from supermask.serve.progress import live_curves, running_commands, status_payload
from supermask.serve.series import group_series
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy, Studies
from supermask.store.files.notes import StatusNotes

REFRESH_SECONDS = 1.0
"""Seconds that a look at the store is good for."""


class ServerState:
    """Shared by all requests; each of its methods may be called from any thread."""

    def __init__(self, store: Path, import_criteria: bool = False) -> None:
        self.shelf = CachedStore(store)
        self.report = LiveReport(self.shelf)
        self._notes = StatusNotes(self.shelf.root)
        self._studies = Studies(import_criteria)
        self._known: list[StoredStudy] = []
        self._looked = float("-inf")
        self._looking = threading.Lock()
        self._subjects: tuple[int, list[tuple[str, str]]] = (-1, [])
        self._views: dict[tuple[int, str, str], explorer.RunSet] = {}

    def refresh(self) -> None:
        """Looks at the store again, unless it was looked at a moment ago, or another thread is about it."""
        if time.monotonic() - self._looked < REFRESH_SECONDS or not self._looking.acquire(blocking=False):
            return
        try:
            self.shelf.refresh()
            self._known = self._studies.list(self._notes.read("studies"), self.shelf.run_ids())
            self.report.update(self._known)
        finally:
            self._looked = time.monotonic()
            self._looking.release()

    def status(self) -> dict[str, Any]:
        """What the page asks for again and again."""
        self.refresh()
        now = time.time()
        going_on = running_commands(self._notes.read("progress"), now)
        in_flight = [each.run for command in going_on for each in command.progress.in_flight]
        found = live_curves(self._notes.read("curves") if in_flight else {}, in_flight)
        told = status_payload(self.shelf, self._known, going_on, found, now)
        report = {**self.report.parts.revisions, "trouble": self.report.error}
        return {"revision": self.shelf.revision, **told, "report": report}

    def subjects(self) -> list[tuple[str, str]]:
        """(network, data set) of the runs."""
        revision = self.shelf.revision
        if self._subjects[0] != revision:
            self._subjects = (revision, explorer.network_dataset_pairs(self.shelf.rows))
        return self._subjects[1]

    def view(self, choice: explorer.Selection) -> explorer.RunSet:
        """The runs and lines of a network and data set."""
        shelf = self.shelf
        key = (shelf.revision, choice.network, choice.dataset)
        found = self._views.get(key)
        if found is None:
            rows, ancestry = explorer.filter_rows(shelf.rows, choice), shelf.ancestry
            rows = {run_id: row for run_id, row in rows.items() if run_id in ancestry}
            found = explorer.RunSet(rows, group_series(rows, ancestry))
            self._views = {old: view for old, view in self._views.items() if old[0] == key[0]} | {key: found}
        return found

    def choices(self) -> dict[str, Any]:
        """What the explorer can show."""
        told = []
        for network, dataset in self.subjects():
            view = self.view(explorer.Selection(network, dataset, ()))
            lines = view.lines
            treatments = [{"key": key, "label": line.label, "runs": len(line.run_ids)} for key, line in lines.items()]
            runs = sum(len(line.run_ids) for line in lines.values())
            first = explorer.default_selection(view)
            told.append(
                {"network": network, "dataset": dataset, "runs": runs, "treatments": treatments, "first": first}
            )
        return {"revision": self.shelf.revision, "subjects": told}

    def studies_of(self, run_id: str) -> list[tuple[str, str]]:
        """(study, treatment) for every known study that a run belongs to."""
        return [(study.name, study.labels[run_id]) for study in self._known if run_id in study.labels]

    def image_shape(self, run_id: str) -> tuple[int, int, int]:
        """Channels, height, width of the images of a run's data set."""
        return DATASETS[str(self.shelf.rows[run_id]["dataset"])].image_shape
