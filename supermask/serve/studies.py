"""Studies of a store, planned from the notes that `supermask run` leaves, and their progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

from supermask.core.errors import UserError, quote
from supermask.core.text import Row
from supermask.store.files.notes import Note
from supermask.store.noted_studies import UnknownFunctions, plan_noted_study
from supermask.store.rows import BLOCKED_STATUS
from supermask.store.tables import AUXILIARY, DENSE, TREATMENT_SEPARATOR
from supermask.study import builtin_studies, load_study
from supermask.study.plan import Plan, make_plan

MAX_STUDIES = 12
"""Studies on the report page, the latest first to be kept; the explorer shows all runs."""


@dataclass(frozen=True)
class StoredStudy:
    """A study with runs in the store, or with a note there."""

    key: str
    """Name of its note; name and scale for a shipped study without a note."""
    name: str
    plan: Plan | None
    error: str = ""
    """Reason why there is no plan, as one sentence."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """Run id -> its treatments, joined as in tables."""
        if self.plan is None:
            return {}
        treatments: dict[str, dict[str, None]] = {}
        for member in self.plan.treatment_runs:
            treatments.setdefault(member.run_id, {})[member.treatment] = None
        return {
            run.id: DENSE
            if run.level == 0 and self.plan.has_one_dense_network
            else TREATMENT_SEPARATOR.join(treatments.get(run.id, {})) or AUXILIARY
            for run in self.plan.runs.values()
        }


@dataclass(frozen=True)
class StudyProgress:
    """Counts of a study's runs."""

    total: int
    done: int
    """Runs that have ended with any status, or whose ancestor failed."""
    by_status: dict[str, int]


class Studies:
    """Studies of the latest notes of a store, each planned once."""

    def __init__(self, import_criteria: bool = False) -> None:
        self._import_criteria = import_criteria
        self._by_note: dict[str, StoredStudy] = {}
        self._shipped: list[StoredStudy] = []
        self._runs_at_search = 0
        """Number of runs when the shipped studies were last searched; a search takes a second."""

    def list(self, notes: Mapping[str, Note], stored: Set[str]) -> list[StoredStudy]:
        """Return the studies of the latest notes, by name; without notes, the shipped studies that have runs.

        `stored`: ids of the runs in the store.
        """
        if notes:
            latest = list(notes)[-MAX_STUDIES:]
            # Only those that are shown: the plan of a large study takes seconds and hundreds of megabytes.
            self._by_note = {key: self._by_note.get(key) or self._study(key, notes[key]) for key in latest}
            return sorted(self._by_note.values(), key=lambda study: (study.name, study.key))
        # Searched again only when the store has doubled, because every search plans all shipped studies.
        if stored and len(stored) >= 2 * self._runs_at_search:
            self._shipped, self._runs_at_search = list(_builtin_studies(stored)), len(stored)
        return _with_exclusive_runs(self._shipped, stored)

    def _study(self, key: str, note: Note) -> StoredStudy:
        name = str(note.get("name", "study"))
        try:
            plan = plan_noted_study(note, uses_recorded_sources=True, imports_code=self._import_criteria)
        except UnknownFunctions as unknown:
            names = ", ".join(map(quote, unknown.names[:3]))
            reason = f"it names user-defined criteria ({names}), whose code is not run for a page"
            hint = "restart with --import-criteria if you trust the store"
            return StoredStudy(key, name, None, f"{reason}: {hint}.")
        except UserError as error:
            return StoredStudy(key, name, None, str(error).splitlines()[0])
        return StoredStudy(key, name, plan)


def _builtin_studies(stored: Set[str]) -> Iterator[StoredStudy]:
    """Yield shipped studies, each at the scale with the most runs in the store; studies without runs are left out."""
    for study in builtin_studies():
        counts = {scale: _count_stored(study.name, scale, stored) for scale in study.scales}
        scale = max(counts, key=lambda name: counts[name])
        if counts[scale]:
            yield StoredStudy(
                f"{study.name}-{scale}", study.name, make_plan(load_study(study.name, [f"scale={scale}"]))
            )


def _with_exclusive_runs(studies: Sequence[StoredStudy], stored: Set[str]) -> list[StoredStudy]:
    """Drop studies whose stored runs all belong to other studies too: equal treatments share runs across studies."""
    runs = {study.key: study.labels.keys() & stored for study in studies}
    covered: set[str] = set()
    kept = []
    # The most complete studies first, so that they cover the shared runs.
    for study in sorted(studies, key=lambda study: len(runs[study.key]) / len(study.labels), reverse=True):
        if runs[study.key] - covered:
            covered |= runs[study.key]
            kept.append(study)
    return sorted(kept, key=lambda study: study.name)


def _count_stored(name: str, scale: str, stored: Set[str]) -> int:
    """Count the stored pruned runs of the first seed of a study; 0 if the dense run is missing, a cheap test."""
    try:
        study = load_study(name, [f"scale={scale}"])
        one_seed = study.model_copy(update={"seeds": study.seeds[:1]})
        dense = make_plan(one_seed.model_copy(update={"treatments": (study.reference_treatment,)}))
        if next(iter(dense.runs)) not in stored:
            return 0
        return sum(run.id in stored for run in make_plan(one_seed).runs.values() if run.level)
    except UserError:
        return 0


def study_progress(plan: Plan, rows: Mapping[str, Row]) -> StudyProgress:
    """Count the runs of a plan by status; `rows` are those of the store."""
    statuses: dict[str, str] = {}
    for run in plan.runs.values():
        status = str(rows[run.id]["status"]) if run.id in rows else "to_do"
        # Parents come before children in a plan, so a failure reaches all descendants.
        if status == "to_do" and run.parent:
            status = BLOCKED_STATUS.get(statuses.get(run.parent, ""), status)
        statuses[run.id] = status
    counts = Counter(statuses.values())
    return StudyProgress(len(statuses), len(statuses) - counts["to_do"], dict(counts))
