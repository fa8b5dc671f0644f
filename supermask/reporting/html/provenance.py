"""How what a report says was made: environments, certificates, what is missing, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from supermask.core.text import Row
from supermask.store import CorruptEntry, Store
from supermask.store.files.entry import RunFacts


@dataclass(frozen=True)
class EnvironmentUse:
    """Where runs were made: equal fingerprints promise equal bits."""

    fingerprint: str
    runs: int
    facts: tuple[tuple[str, str], ...]
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class FlaggedRun:
    """A run that a reader has to hear of, and why."""

    id: str
    study: str
    treatment: str
    level: int
    seed: int
    why: str


@dataclass(frozen=True)
class ComputeTime:
    """Time that runs took, each once however many studies it serves. `unit`: core-minutes, or GPU-minutes."""

    unit: str
    minutes: float
    runs: int


@dataclass(frozen=True)
class Provenance:
    """Counts are of distinct runs: one that serves several studies counts once."""

    made_by: str
    runs: int
    ended: int
    certificates_held: int
    failed: tuple[FlaggedRun, ...]
    """Runs whose certificate does not hold; `why` names the checks."""
    diverged: tuple[FlaggedRun, ...]
    blocked: int
    """Runs that cannot be done because one before them ended badly."""
    to_do: tuple[tuple[str, int], ...]
    """(study, runs to do), of those that have any."""
    damaged: tuple[str, ...]
    environments: tuple[EnvironmentUse, ...]
    costs: tuple[ComputeTime, ...]
    data: tuple[tuple[str, str, str], ...]
    """(data set, fingerprint, what a reader has to know about it)."""

    @property
    def shared_stacks(self) -> bool:
        """Whether runs are among them that were trained in a stack with others."""
        return any(("stack", "shared") in each.facts for each in self.environments)


def collect_provenance(
    studies: Sequence[Sequence[Row]], damaged: Iterable[str], store: Store, made_by: str
) -> Provenance:
    """How the runs of these studies were made."""
    rows = list({str(row["id"]): row for rows in studies for row in rows}.values())
    ended = [row for row in rows if row.get("certificate")]
    environments = _environments(ended, store)
    to_do = Counter(str(row["study"]) for rows in studies for row in rows if row["status"] == "to_do")
    data = {(str(row["dataset"]), str(row["data_fingerprint"]), str(row.get("data_note") or "")): None for row in ended}
    return Provenance(
        made_by=made_by,
        runs=len(rows),
        ended=len(ended),
        certificates_held=sum(row["certificate"] == "held" for row in ended),
        failed=tuple(_named(row, _failed_checks(row, store)) for row in ended if row["certificate"] != "held"),
        diverged=diverged_runs(rows),
        blocked=count_blocked(rows),
        to_do=tuple(to_do.items()),
        damaged=tuple(dict.fromkeys(damaged)),
        environments=environments,
        costs=_costs(ended, environments),
        data=tuple(data),
    )


def diverged_runs(rows: Sequence[Row]) -> tuple[FlaggedRun, ...]:
    """The runs that diverged, and when."""
    return tuple(_named(row, _divergence_text(row)) for row in rows if row["status"] == "diverged")


def count_blocked(rows: Sequence[Row]) -> int:
    """How many runs cannot be done because one before them diverged."""
    return sum(row["status"] == "ancestor_diverged" for row in rows)


def _named(row: Row, why: str) -> FlaggedRun:
    return FlaggedRun(
        str(row["id"]),
        str(row["study"]),
        str(row["treatment"]),
        int(row["level"] or 0),
        int(row["seed"] or 0),
        why,
    )


def _divergence_text(row: Row) -> str:
    at = row.get("diverged_at")
    return f"loss not finite at iteration {at:,}" if isinstance(at, int) else "loss not finite"


def _failed_checks(row: Row, store: Store) -> str:
    facts = _facts(store, row)
    checks = facts["certificate"]["checks"] if facts else {}
    return ", ".join(str(name) for name, faults in checks.items() if faults) or "its certificate says so"


def _facts(store: Store, row: Row) -> RunFacts | None:
    with suppress(CorruptEntry):
        return store.facts(str(row["id"]))
    return None


def _environments(ended: Sequence[Row], store: Store) -> tuple[EnvironmentUse, ...]:
    """The one of most runs first. Its facts are those of any of its runs: they are what the fingerprint is made of."""
    groups: dict[str, list[Row]] = {}
    for row in ended:
        groups.setdefault(str(row["environment"]), []).append(row)
    found = []
    for fingerprint, rows in groups.items():
        known = next((facts for row in rows if (facts := _facts(store, row))), None)
        facts = dict(known["environment"]) if known else {}
        told = {k: v for k, v in facts.items() if k != "fingerprint" and not isinstance(v, dict | list)}
        words = tuple((str(key), str(value)) for key, value in told.items())
        device, threads = str(facts.get("device", "cpu")), int(facts.get("threads", 1))
        found.append(EnvironmentUse(fingerprint, len(rows), words, device, threads))
    return tuple(sorted(found, key=lambda each: (-each.runs, each.fingerprint)))


def _costs(ended: Sequence[Row], environments: Sequence[EnvironmentUse]) -> tuple[ComputeTime, ...]:
    """On a CPU a run's time times its threads; on anything else its time."""
    by_fingerprint = {each.fingerprint: each for each in environments}
    minutes: dict[str, float] = {}
    runs: Counter[str] = Counter()
    for row in ended:
        where = by_fingerprint[str(row["environment"])]
        unit, cores = ("core-minutes", where.threads) if where.device == "cpu" else ("GPU-minutes", 1)
        minutes[unit] = minutes.get(unit, 0.0) + float(row.get("seconds") or 0) * cores / 60
        runs[unit] += 1
    return tuple(ComputeTime(unit, minutes[unit], runs[unit]) for unit in minutes)
