"""The studies that a store was asked for, planned again from their notes, and how far each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from supermask.criteria import CRITERIA
from supermask.errors import UserError
from supermask.plan import Plan, make_plan
from supermask.store.notes import Note
from supermask.study import load_study, shipped_studies, study_from
from supermask.study.yaml_tree import shown
from supermask.tables import CHAIN, DENSE, TREATMENT_SEPARATOR, Row

MOST = 12
"""Studies on one page: of more, the latest; all their runs are in the explorer."""

NAMED_BY_PATH = ("criterion", "start_from")
"""Keys of a treatment under which a function of the user's own may be named."""


@dataclass(frozen=True)
class KnownStudy:
    """A study that was run into this store, or that a note says so of."""

    key: str
    """Its note's name; of a shipped study without a note, its name and scale."""
    name: str
    plan: Plan | None
    why_not: str = ""
    """Why there is no plan: one sentence."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """Run id -> the treatments that it serves, joined as in tables."""
        if self.plan is None:
            return {}
        found: dict[str, dict[str, None]] = {}
        for member in self.plan.members:
            found.setdefault(member.run_id, {})[member.treatment] = None
        return {
            run.id: DENSE if run.level == 0 else TREATMENT_SEPARATOR.join(found.get(run.id, {})) or CHAIN
            for run in self.plan.runs.values()
        }


@dataclass(frozen=True)
class HowFar:
    """Runs of a study by what became of them."""

    total: int
    done: int
    """Runs that have ended, well or badly, or cannot be started."""
    by_status: dict[str, int]


class Studies:
    """The studies of notes, each planned once."""

    def __init__(self, import_criteria: bool = False) -> None:
        self._import_criteria = import_criteria
        self._known: dict[str, KnownStudy] = {}
        self._shipped: list[KnownStudy] = []
        self._looked_at = 0
        """Runs that there were when the shipped studies were looked through: that takes a second."""

    def known(self, notes: Mapping[str, Note], there: Set[str]) -> list[KnownStudy]:
        """Those of the latest notes, by name; without any, the shipped studies at the scale that has runs there."""
        for key, note in notes.items():
            if key not in self._known:
                self._known[key] = self._study(key, note)
        if notes:
            latest = [self._known[key] for key in list(notes)[-MOST:]]
            return sorted(latest, key=lambda study: (study.name, study.key))
        if there and len(there) >= 2 * self._looked_at:
            self._shipped, self._looked_at = list(_shipped(there)), len(there)
        return _telling(self._shipped, there)

    def _study(self, key: str, note: Note) -> KnownStudy:
        name = str(note.get("name", "study"))
        data = note.get("study")
        if not isinstance(data, dict):
            return KnownStudy(key, name, None, "its note in the store is no study.")
        own = sorted({criterion for criterion in _criteria(data) if criterion not in CRITERIA})
        if own and not self._import_criteria:
            why = (
                f"it names criteria of your own ({', '.join(map(shown, own[:3]))}), whose code is not run for a page: "
            )
            return KnownStudy(key, name, None, f"{why}start this with --import-criteria, where you trust the store.")
        try:
            return KnownStudy(key, name, make_plan(study_from(data, name=name)))
        except UserError as error:
            return KnownStudy(key, name, None, str(error).splitlines()[0])


def _criteria(data: Any) -> Iterator[str]:
    """Every text that stands anywhere below a key that may name a function."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _texts(value) if key in NAMED_BY_PATH else _criteria(value)
    elif isinstance(data, list):
        for value in data:
            yield from _criteria(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _shipped(there: Set[str]) -> Iterator[KnownStudy]:
    """Of each shipped study the scale of which most is there; none of those of which only a shared dense run is."""
    for study in shipped_studies():
        counts = {scale: _runs_there(study.name, scale, there) for scale in study.scales}
        scale = max(counts, key=lambda name: counts[name])
        if counts[scale]:
            yield KnownStudy(f"{study.name}-{scale}", study.name, make_plan(load_study(study.name, [f"scale={scale}"])))


def _telling(studies: Sequence[KnownStudy], there: Set[str]) -> list[KnownStudy]:
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


def how_far(plan: Plan, rows: Mapping[str, Row]) -> HowFar:
    """Runs of a plan by status, from the rows of those that are in the store."""
    statuses: dict[str, str] = {}
    for run in plan.runs.values():
        own = str(rows[run.id]["status"]) if run.id in rows else "to_do"
        if own == "to_do" and run.parent and statuses.get(run.parent, "finished") not in ("finished", "to_do"):
            own = "ancestor_diverged"
        statuses[run.id] = own
    counts = Counter(statuses.values())
    return HowFar(len(statuses), len(statuses) - counts["to_do"], dict(counts))
