"""Report on the studies of a store, rebuilt in a background thread when their runs have changed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supermask.api.reports import evaluate_claims_for
from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import Row
from supermask.reporting.html import Report, build_report, sections, table_of_contents
from supermask.reporting.html.study import StudySection, build_study_section
from supermask.reporting.html.tables import Table
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study.plan import Plan

REST_FACTOR = 4.0
"""Pause after a build, as a multiple of its duration: building then takes at most a fifth of a core from training."""

MADE_BY = "supermask serve"


@dataclass(frozen=True)
class ReportParts:
    """Report in parts; the revision of a part changes with its content, so that browsers fetch only changed parts."""

    contents: str = ""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Section id -> HTML, in the order of the page."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Id -> Plotly figure, study file, or table."""
    revisions: Mapping[str, Any] = field(default_factory=lambda: {"contents": "", "sections": {}, "data": {}})


class LiveReport:
    """Latest report of a store. `update` rebuilds it if needed; reading is safe from any thread."""

    def __init__(self, store: CachedStore) -> None:
        self._store = store
        self.parts = ReportParts()
        self.error = ""
        """Reason why the report is missing or out of date; empty if it is current."""
        self._inputs: tuple[Any, ...] = ()
        """Store revision and study keys of the latest build."""
        self._next_build = float("-inf")
        """Monotonic time before which no build starts."""
        self._has_built = False
        self._building = threading.Lock()
        self._sections: dict[tuple[str, int], tuple[int, StudySection]] = {}
        """(section id, id of the plan) -> (signature of its rows, section)."""
        self._json: dict[tuple[str, str], str] = {}
        """(name, revision) of a part -> its JSON."""

    def update(self, studies: Sequence[StoredStudy]) -> None:
        """Start a build in a thread if runs or studies have changed, none is in progress, and the pause is over."""
        inputs = (self._store.revision, tuple(study.key for study in studies))
        if inputs == self._inputs or time.monotonic() < self._next_build or not self._building.acquire(blocking=False):
            return
        threading.Thread(target=self._build, args=(studies, inputs), daemon=True).start()

    def data(self, name: str) -> str | None:
        """Return a figure, table or study file as JSON; None if the report has no part of that name."""
        parts = self.parts
        if name not in parts.data:
            return None
        key = (name, parts.revisions["data"][name])
        if key not in self._json:
            value = parts.data[name]
            text = json.dumps(value.data() if isinstance(value, Table) else value, allow_nan=False)
            self._json = {old: text for old, text in self._json.items() if old[0] != name} | {key: text}
        return self._json[key]

    def _build(self, studies: Sequence[StoredStudy], inputs: tuple[Any, ...]) -> None:
        start = time.monotonic()
        try:
            self.parts = self._build_parts(studies)
            self.error = ""
        except (UserError, SystemFailure) as error:
            self.error = f"The report cannot be made: {error}"
        except Exception:
            # A bug, which nothing else would tell the page: the thread has no caller.
            self.error = "The report cannot be made; the traceback is in the server's terminal."
            traceback.print_exc()
        finally:
            # A build that failed is repeated only when its inputs change.
            self._inputs = inputs
            # The first build also imports libraries, for seconds, and says nothing of the cost of the next.
            rest = REST_FACTOR * (time.monotonic() - start) if self._has_built else 0.0
            self._has_built, self._next_build = True, time.monotonic() + rest
            self._building.release()

    def _build_parts(self, studies: Sequence[StoredStudy]) -> ReportParts:
        plans = [study.plan for study in studies if study.plan is not None]
        collected = [(plan, *plan_rows(plan, self._store)) for plan in plans]
        started = [study for study in collected if any(row["status"] != "to_do" for row in study[1])]
        if not started:
            return ReportParts()
        report = build_report(started, evaluate_claims_for(started), self._store, MADE_BY, part_of=self._section)
        return self._parts(report, [_signature(rows) for _, rows, _ in started])

    def _section(self, section_id: str, plan: Plan, rows: list[Row], store: Store | None) -> StudySection:
        """Return the section of a study; the cached one if no run of the study has ended since."""
        signature, key = _signature(rows), (section_id, id(plan))
        if self._sections.get(key, (None,))[0] != signature:
            self._sections[key] = (signature, build_study_section(section_id, plan, rows, store))
        return self._sections[key][1]

    def _parts(self, report: Report, signatures: Sequence[int]) -> ReportParts:
        html = sections(report)
        data: dict[str, Any] = {}
        revisions: dict[str, str] = {}
        for section, signature in zip(report.studies, signatures, strict=True):
            parts: dict[str, Any] = {plot.id: plot.figure for plot in section.plots}
            parts |= {table.id: table for table in section.tables} | {f"{section.id}-file": section.file}
            data |= parts
            # 48 bits of the hash, without its sign.
            revisions |= dict.fromkeys(parts, f"{signature & 0xFFFFFFFFFFFF:x}")
        page_revisions = {
            "contents": _hash(table_of_contents(report)),
            "sections": {name: _hash(text) for name, text in html.items()},
        }
        return ReportParts(table_of_contents(report), html, data, {**page_revisions, "data": revisions})


def _signature(rows: Sequence[Row]) -> int:
    """Hash the rows of a study, whose numbers depend on nothing else. A run may be set aside and computed again."""
    # As text: NaN hashes by identity.
    return hash(tuple(tuple((name, repr(value)) for name, value in row.items()) for row in rows))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
