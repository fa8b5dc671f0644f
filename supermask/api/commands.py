"""Functions for notebooks and scripts, one per command, with settings as keywords: see `notebook` for the others.

    sm.plan("mask-criteria", scale="laptop", cores=8)
    sm.status("mask-criteria", scale="laptop")
    sm.claims("mask-criteria", scale="laptop")
    sm.report("mask-criteria", out="report.html", scale="laptop")

They return what the command prints, as objects with a short repr. Warnings of the command are Python warnings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from supermask.api import reports, runs
from supermask.api.notebook import StudyStatus, Tables, expand_tables, progress_display, settings_to_overrides
from supermask.core.environment import expand_path
from supermask.core.text import pluralize
from supermask.execution.local import StudyInterrupted
from supermask.execution.run import RunOptions
from supermask.store.merge import Outcome
from supermask.store.tables import QueryResult
from supermask.study import StudyLike, builtin_studies

if TYPE_CHECKING:
    from supermask.analysis.claims import ClaimFinding
    from supermask.api.runs import PlanSummary
    from supermask.store.merge import MergeResult
    from supermask.store.verify import VerificationResult
    from supermask.study.loading import BuiltinStudy

PathLike = str | Path
Item = TypeVar("Item")


class Results(Sequence[Item]):
    """A list of results whose repr is a summary and one short line per result, at most 20."""

    MAX_LINES = 20

    def __init__(self, items: Sequence[Item], summary: str, lines: Sequence[str]) -> None:
        self._items, self._summary, self._lines = tuple(items), summary, tuple(lines)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        more = len(self._lines) - self.MAX_LINES
        lines = [*self._lines[: self.MAX_LINES], *([f"... and {more:,} more"] if more > 0 else [])]
        return "\n".join([self._summary, *lines])


def studies() -> Results[BuiltinStudy]:
    """Return the shipped studies: `name`, `title` and `scales` of each."""
    shipped = builtin_studies()
    lines = [f"{study.name}: {study.title} ({', '.join(study.scales)})" for study in shipped]
    return Results(shipped, pluralize(len(shipped), "study", "studies"), lines)


def plan(
    study: StudyLike,
    *,
    store: PathLike | None = None,
    cores: int | None = None,
    gpus: int | None = None,
    **settings: object,
) -> PlanSummary:
    """Plan a study and estimate its cost; nothing is trained. `.plan.runs` has the runs.

    `cores`, `gpus`: also simulate the schedule on that many. Settings are keywords: `scale="digits"`, `seeds=[0, 1]`.
    Raises UserError.
    """
    summary = runs.plan(study, settings_to_overrides(settings), store, cores, gpus)
    _warn(summary.warnings)
    return summary


def status(study: StudyLike, *, store: PathLike | None = None, **settings: object) -> StudyStatus:
    """Return the status of every run of a study: finished, diverged, to_do ... Nothing is trained. Raises UserError."""
    plan, rows, damaged = runs.study_rows(study, settings_to_overrides(settings), store)
    _warn([*plan.notices, *damaged])
    return StudyStatus(plan.study.name, {str(row["id"]): str(row["status"]) for row in rows}, runs.store_path(store))


def claims(
    *studies: PathLike, store: PathLike | None = None, rows: Tables = (), **settings: object
) -> Results[ClaimFinding]:
    """Test the claims about studies (default: all shipped ones) on the runs of a store, or of Parquet tables `rows`.

    Each finding has `verdict`, `sentence`, and `clauses` with n, effect, interval and p. Raises UserError.
    """
    overrides, tables = settings_to_overrides(settings), expand_tables(rows)
    source = None if tables and store is None else runs.open_store(store).root
    findings, damaged = reports.claims([str(study) for study in studies], overrides, source, tables)
    _warn(damaged)
    lines = [f"{finding.name} {finding.verdict}: {finding.statement}" for finding in findings]
    return Results(findings, pluralize(len(findings), "claim"), lines)


def report(
    *studies: PathLike,
    out: PathLike = "report.html",
    store: PathLike | None = None,
    rows: Tables = (),
    **settings: object,
) -> Path:
    """Write the report on studies (or on Parquet tables `rows`) as one HTML file without a server; return its path.

    Raises UserError, SystemFailure.
    """
    names, source = [str(study) for study in studies], None if store is None else expand_path(store)
    return reports.report(names, settings_to_overrides(settings), expand_path(out), source, expand_tables(rows))


def reproduce(
    scale: str,
    *,
    only: Sequence[str] | str = (),
    out: PathLike = "report.html",
    store: PathLike | None = None,
    workers: int | None = None,
) -> Path:
    """Run all shipped studies (or those in `only`) at a scale, with a progress display; write the report.

    Returns the path of the report. The same call resumes. Raises UserError, SystemFailure, and KeyboardInterrupt.
    """
    options = RunOptions(runs.store_path(store), workers)
    only = [only] if isinstance(only, str) else only
    try:
        with progress_display() as listener:
            result = reports.reproduce(scale, only, options, expand_path(out), listener)
    except StudyInterrupted as interruption:
        raise KeyboardInterrupt(f"{interruption.remaining:,} runs are left; the same call resumes.") from None
    _warn(result.without_result)
    return result.out


def export_run(run_id: str, folder: PathLike, *, store: PathLike | None = None) -> list[Path]:
    """Write `run.json` and `tensors.safetensors` of a run, given its id or a unique prefix; return their paths.

    The command is `supermask export`. Raises UserError, SystemFailure.
    """
    return runs.export(run_id, folder, store)


def query(sql: str, *, store: PathLike | None = None) -> QueryResult:
    """Query the table `runs` of a store with SQL (read-only): `.columns`, `.rows`. Raises UserError."""
    result, damaged = runs.query(sql, store)
    _warn(damaged)
    return result


def verify(store: PathLike | None = None) -> Results[VerificationResult]:
    """Recompute checksums and certificate of every run in a store; each result has `key`, `verdict` and `reason`.

    The repr lists what is not held. Raises UserError.
    """
    results = list(runs.verify(store))
    counts = {
        verdict: sum(r.verdict == verdict for r in results) for verdict in ("held", "partly", "failed", "damaged")
    }
    summary = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items() if count or verdict == "held")
    return Results(results, summary, [f"{r.key} {r.verdict}: {r.reason}" for r in results if r.verdict != "held"])


def merge(source: PathLike, store: PathLike | None = None) -> Results[MergeResult]:
    """Copy every run of the store at `source` into `store`; nothing is overwritten. Raises UserError."""
    results = list(runs.merge(source, store))
    counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in get_args(Outcome)}
    rare = ("damaged", "newer")
    summary = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if count or outcome not in rare)
    return Results(results, summary, [f"{r.key} {r.outcome}: {r.reason}" for r in results if r.reason])


def _warn(messages: Sequence[str]) -> None:
    for text in messages:
        warnings.warn(text, stacklevel=3)  # 3: the line of the user
