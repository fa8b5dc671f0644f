"""Provenance of a report: environments, certificates, missing runs, compute time, data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from supermask.core.text import Row
from supermask.store import CorruptEntry, NewerFormat, Store
from supermask.store.files.entry import RunFacts


@dataclass(frozen=True)
class EnvironmentUse:
    """An environment and its number of runs. Runs of one fingerprint are reproducible bit by bit."""

    fingerprint: str
    runs: int
    facts: tuple[tuple[str, str], ...]
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class FlaggedRun:
    """A run that is listed in the report, with the reason."""

    id: str
    study: str
    treatment: str
    level: int
    seed: int
    why: str
    """Reason, as a phrase."""


@dataclass(frozen=True)
class ComputeTime:
    """Compute time of runs; a run that several studies share counts once."""

    unit: str
    """`core-minutes` or `GPU-minutes`; `minutes` if the device is not known."""
    minutes: float
    runs: int


@dataclass(frozen=True)
class Provenance:
    """Provenance of all runs of a report; a run that several studies share counts once."""

    made_by: str
    """Command that builds the report."""
    runs: int
    ended: int
    certificates_held: int
    failed: tuple[FlaggedRun, ...]
    """Runs whose certificate does not hold; `why` lists the failed checks."""
    diverged: tuple[FlaggedRun, ...]
    blocked: int
    """Runs that cannot start because an ancestor diverged."""
    blocked_by_failed: int
    """Runs that cannot start because the certificate of an ancestor does not hold."""
    to_do: tuple[tuple[str, int], ...]
    """(study, runs to do) of studies that are not complete."""
    damaged: tuple[str, ...]
    environments: tuple[EnvironmentUse, ...]
    costs: tuple[ComputeTime, ...]
    data: tuple[tuple[str, str, str], ...]
    """(data set, fingerprint, note on the data or empty)."""

    @property
    def shared_stacks(self) -> bool:
        """True if some runs were trained in a stack with runs of other studies."""
        return any(("stack", "shared") in environment.facts for environment in self.environments)


def collect_provenance(
    studies: Sequence[Sequence[Row]], damaged: Iterable[str], store: Store | None, made_by: str
) -> Provenance:
    """Collect the provenance of the runs of these studies; `damaged` are messages on damaged entries of the store.

    Without a store, the rows come from tables: the facts of the environments and the failed checks are not known.
    """
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
        failed=tuple(_flag(row, _failed_checks(row, store)) for row in ended if row["certificate"] != "held"),
        diverged=diverged_runs(rows),
        blocked=count_blocked(rows),
        blocked_by_failed=sum(row["status"] == "ancestor_certificate_failed" for row in rows),
        to_do=tuple(to_do.items()),
        damaged=tuple(dict.fromkeys(damaged)),
        environments=environments,
        costs=_compute_times(ended, environments, is_stored=store is not None),
        data=tuple(data),
    )


def diverged_runs(rows: Sequence[Row]) -> tuple[FlaggedRun, ...]:
    """Return the runs that diverged, with the iteration."""
    return tuple(_flag(row, _divergence_text(row)) for row in rows if row["status"] == "diverged")


def count_blocked(rows: Sequence[Row]) -> int:
    """Count the runs that cannot start because an ancestor diverged."""
    return sum(row["status"] == "ancestor_diverged" for row in rows)


def _flag(row: Row, why: str) -> FlaggedRun:
    return FlaggedRun(
        str(row["id"]),
        str(row["study"]),
        str(row["treatment"]),
        int(row["level"] or 0),
        int(row["seed"] or 0),
        why,
    )


def _divergence_text(row: Row) -> str:
    iteration = row.get("diverged_at")
    return f"loss not finite at iteration {iteration:,}" if isinstance(iteration, int) else "loss not finite"


def _failed_checks(row: Row, store: Store | None) -> str:
    facts = _read_facts(store, row)
    checks = facts["certificate"]["checks"] if facts else {}
    return ", ".join(str(name) for name, faults in checks.items() if faults) or "no check is recorded"


def _read_facts(store: Store | None, row: Row) -> RunFacts | None:
    if store is None:
        return None
    with suppress(CorruptEntry, NewerFormat):
        return store.facts(str(row["id"]))
    return None


def _environments(ended: Sequence[Row], store: Store | None) -> tuple[EnvironmentUse, ...]:
    """Return the environments, the one with the most runs first."""
    groups: dict[str, list[Row]] = {}
    for row in ended:
        groups.setdefault(str(row["environment"]), []).append(row)
    environments = []
    for fingerprint, rows in groups.items():
        # The fingerprint is a hash of the facts, so one readable run of the group has the facts of all.
        run_facts = next((facts for row in rows if (facts := _read_facts(store, row))), None)
        facts = dict(run_facts["environment"]) if run_facts else {}
        simple = {k: v for k, v in facts.items() if k != "fingerprint" and not isinstance(v, dict | list)}
        texts = tuple((str(key), str(value)) for key, value in simple.items())
        device, threads = str(facts.get("device", "cpu")), int(facts.get("threads", 1))
        environments.append(EnvironmentUse(fingerprint, len(rows), texts, device, threads))
    return tuple(sorted(environments, key=lambda environment: (-environment.runs, environment.fingerprint)))


def _compute_times(
    ended: Sequence[Row], environments: Sequence[EnvironmentUse], is_stored: bool
) -> tuple[ComputeTime, ...]:
    """Sum wall-clock times by unit; on a CPU the time of a run is multiplied by its threads.

    Tables have neither the device nor the threads, so their unit is the minute.
    """
    by_fingerprint = {environment.fingerprint: environment for environment in environments}
    minutes: dict[str, float] = {}
    runs: Counter[str] = Counter()
    for row in ended:
        environment = by_fingerprint[str(row["environment"])]
        is_cpu = environment.device == "cpu"
        unit, cores = ("core-minutes", environment.threads) if is_cpu else ("GPU-minutes", 1)
        if not is_stored:
            unit, cores = "minutes", 1
        minutes[unit] = minutes.get(unit, 0.0) + float(row.get("seconds") or 0) * cores / 60
        runs[unit] += 1
    return tuple(ComputeTime(unit, minutes[unit], runs[unit]) for unit in minutes)
