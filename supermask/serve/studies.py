"""The studies that a store was asked for, planned again from their notes, and how far each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError, quote
from supermask.core.text import Row
from supermask.store.files.notes import Note
from supermask.store.tables import AUXILIARY, DENSE, TREATMENT_SEPARATOR
from supermask.study import builtin_studies, load_study, study_from_dict
from supermask.study.plan import Plan, make_plan

MAX_STUDIES = 12
"""Studies on one page: of more, the latest; all their runs are in the explorer."""

IMPORT_PATH_KEYS = ("criterion", "start_from")
"""Keys of a treatment under which a function of the user's own may be named."""


@dataclass(frozen=True)
class StoredStudy:
    """A study that was run into this store, or that a note says so of."""

    key: str
    """Its note's name; of a shipped study without a note, its name and scale."""
    name: str
    plan: Plan | None
    error: str = ""
    """Why there is no plan: one sentence."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """Run id -> the treatments that it serves, joined as in tables."""
        if self.plan is None:
            return {}
        found: dict[str, dict[str, None]] = {}
        for member in self.plan.treatment_runs:
            found.setdefault(member.run_id, {})[member.treatment] = None
        return {
            run.id: DENSE if run.level == 0 else TREATMENT_SEPARATOR.join(found.get(run.id, {})) or AUXILIARY
            for run in self.plan.runs.values()
        }


@dataclass(frozen=True)
class StudyProgress:
    """Runs of a study by what became of them."""

    total: int
    done: int
    """Runs that have ended, well or badly, or cannot be started."""
    by_status: dict[str, int]


class Studies:
    """The studies of notes, each planned once."""

    def __init__(self, import_criteria: bool = False) -> None:
        self._import_criteria = import_criteria
        self._known: dict[str, StoredStudy] = {}
        self._shipped: list[StoredStudy] = []
        self._looked_at = 0
        """Runs that there were when the shipped studies were looked through: that takes a second."""

    def list(self, notes: Mapping[str, Note], there: Set[str]) -> list[StoredStudy]:
        """Those of the latest notes, by name; without any, the shipped studies at the scale that has runs there."""
        for key, note in notes.items():
            if key not in self._known:
                self._known[key] = self._study(key, note)
        if notes:
            latest = [self._known[key] for key in list(notes)[-MAX_STUDIES:]]
            return sorted(latest, key=lambda study: (study.name, study.key))
        if there and len(there) >= 2 * self._looked_at:
            self._shipped, self._looked_at = list(_builtin_studies(there)), len(there)
        return _with_own_runs(self._shipped, there)

    def _study(self, key: str, note: Note) -> StoredStudy:
        name = str(note.get("name", "study"))
        data = note.get("study")
        if not isinstance(data, dict):
            return StoredStudy(key, name, None, "its note in the store is no study.")
        own = sorted({criterion for criterion in _criteria(data) if criterion not in CRITERIA})
        if own and not self._import_criteria:
            why = (
                f"it names criteria of your own ({', '.join(map(quote, own[:3]))}), whose code is not run for a page: "
            )
            return StoredStudy(key, name, None, f"{why}start this with --import-criteria, where you trust the store.")
        try:
            return StoredStudy(key, name, make_plan(study_from_dict(data, name=name)))
        except UserError as error:
            return StoredStudy(key, name, None, str(error).splitlines()[0])


def _criteria(data: Any) -> Iterator[str]:
    """Every text that stands anywhere below a key that may name a function."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _texts(value) if key in IMPORT_PATH_KEYS else _criteria(value)
    elif isinstance(data, list):
        for value in data:
            yield from _criteria(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _builtin_studies(there: Set[str]) -> Iterator[StoredStudy]:
    """Of each shipped study the scale of which most is there; none of those of which only a shared dense run is."""
    for study in builtin_studies():
        counts = {scale: _runs_there(study.name, scale, there) for scale in study.scales}
        scale = max(counts, key=lambda name: counts[name])
        if counts[scale]:
            yield StoredStudy(
                f"{study.name}-{scale}", study.name, make_plan(load_study(study.name, [f"scale={scale}"]))
            )


def _with_own_runs(studies: Sequence[StoredStudy], there: Set[str]) -> list[StoredStudy]:
    """Without those of which nothing is there but what others share: treatments share their runs across studies."""
    own = {study.key: study.labels.keys() & there for study in studies}
    told: set[str] = set()
    found = []
    for study in sorted(studies, key=lambda study: len(own[study.key]) / len(study.labels), reverse=True):
        if own[study.key] - told:
            told |= own[study.key]
            found.append(study)
    return sorted(found, key=lambda study: study.name)


def _runs_there(name: str, scale: str, there: Set[str]) -> int:
    """Pruned runs of a study's first seed that are there; most scales are told apart by their dense run alone."""
    try:
        study = load_study(name, [f"scale={scale}"])
        one_seed = study.model_copy(update={"seeds": study.seeds[:1]})
        dense = make_plan(one_seed.model_copy(update={"treatments": (study.reference_treatment,)}))
        if next(iter(dense.runs)) not in there:
            return 0
        return sum(run.id in there for run in make_plan(one_seed).runs.values() if run.level)
    except UserError:
        return 0


def study_progress(plan: Plan, rows: Mapping[str, Row]) -> StudyProgress:
    """Runs of a plan by status, from the rows of those that are in the store."""
    statuses: dict[str, str] = {}
    for run in plan.runs.values():
        own = str(rows[run.id]["status"]) if run.id in rows else "to_do"
        if own == "to_do" and run.parent and statuses.get(run.parent, "finished") not in ("finished", "to_do"):
            own = "ancestor_diverged"
        statuses[run.id] = own
    counts = Counter(statuses.values())
    return StudyProgress(len(statuses), len(statuses) - counts["to_do"], dict(counts))
