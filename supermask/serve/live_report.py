"""The report over the studies of a store, made again in a thread of its own when their runs have changed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
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
"""It rests so many times as long as it took: making it takes at most a fifth of a core from what is trained."""


MADE_BY = "supermask serve"


@dataclass(frozen=True)
class ReportParts:
    """A report in parts, each with a revision that changes with it."""

    contents: str = ""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Id -> HTML, in the order of the page."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Id -> a figure, a study file, or a table."""
    revisions: Mapping[str, Any] = field(default_factory=lambda: {"contents": "", "sections": {}, "data": {}})


class LiveReport:
    """The latest report, and when it has to be made again."""

    def __init__(self, shelf: CachedStore) -> None:
        self._shelf = shelf
        self.parts = ReportParts()
        self.error = ""
        """Why it is not there, or not up to date."""
        self._of: tuple[Any, ...] = ()
        """What the latest one was made of."""
        self._next = float("-inf")
        self._making = threading.Lock()
        self._remembered: dict[tuple[str, int], tuple[int, StudySection]] = {}
        self._texts: dict[tuple[str, str], str] = {}

    def update(self, known: Sequence[StoredStudy]) -> None:
        """Begins to make it again, if anything has changed and it has not just been made."""
        of = (self._shelf.revision, tuple(study.key for study in known))
        if of == self._of or time.monotonic() < self._next or not self._making.acquire(blocking=False):
            return
        threading.Thread(target=self._build, args=(known, of), daemon=True).start()

    def data(self, name: str) -> str | None:
        """A figure, a table or a study file as JSON; None: there is none of that name."""
        parts = self.parts
        if name not in parts.data:
            return None
        key = (name, parts.revisions["data"][name])
        if key not in self._texts:
            value = parts.data[name]
            text = json.dumps(value.data() if isinstance(value, Table) else value, allow_nan=False)
            self._texts = {old: kept for old, kept in self._texts.items() if old[0] != name} | {key: text}
        return self._texts[key]

    def _build(self, known: Sequence[StoredStudy], of: tuple[Any, ...]) -> None:
        began = time.monotonic()
        try:
            self._gather(known)
        except (UserError, SystemFailure) as error:
            self.error = f"The report cannot be made: {error}"
        finally:
            # After a fault of ours as well: what failed is not tried again until something has changed.
            self._of = of
            self._next = time.monotonic() + REST_FACTOR * (time.monotonic() - began)
            self._making.release()

    def _gather(self, known: Sequence[StoredStudy]) -> None:
        plans = [study.plan for study in known if study.plan is not None]
        found = [(plan, *plan_rows(plan, self._shelf)) for plan in plans]
        begun = [each for each in found if any(row["status"] != "to_do" for row in each[1])]
        if begun:
            report = build_report(begun, evaluate_claims_for(begun), self._shelf, MADE_BY, part_of=self._part)
            self.parts = self._parts(report, [_signature(rows) for _, rows, _ in begun])
        else:
            self.parts = ReportParts()
        self.error = ""

    def _part(self, part_id: str, plan: Plan, rows: list[Row], store: Store) -> StudySection:
        """A study's part; the one from before, if none of its runs has ended since."""
        signature, key = _signature(rows), (part_id, id(plan))
        if self._remembered.get(key, (None,))[0] != signature:
            self._remembered[key] = (signature, build_study_section(part_id, plan, rows, store))
        return self._remembered[key][1]

    def _parts(self, report: Report, signatures: Sequence[int]) -> ReportParts:
        html = sections(report)
        data: dict[str, Any] = {}
        revisions: dict[str, str] = {}
        for part, signature in zip(report.studies, signatures, strict=True):
            own: dict[str, Any] = {plot.id: plot.figure for plot in part.plots}
            own |= {table.id: table for table in part.tables} | {f"{part.id}-file": part.file}
            data |= own
            revisions |= dict.fromkeys(own, f"{signature & 0xFFFFFFFFFFFF:x}")
        told = {
            "contents": _hash(table_of_contents(report)),
            "sections": {name: _hash(text) for name, text in html.items()},
        }
        return ReportParts(table_of_contents(report), html, data, {**told, "data": revisions})


def _signature(rows: Sequence[Row]) -> int:
    """What a study's numbers depend on: which runs have ended, and how. Runs themselves do not change."""
    return hash(tuple((row["id"], row["status"]) for row in rows))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
