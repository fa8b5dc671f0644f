"""What the runs in a store say: claims decided, and the paper reproduced.

The Python API behind `supermask report`: it gathers, writes one file, and prints nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.analysis.claims import ClaimFinding, evaluate_claims
from supermask.analysis.claims.paper import studies_with_claims
from supermask.api.runs import default_store_path, study_rows
from supermask.core.errors import SystemFailure, UserError, check_one_of, quote
from supermask.core.files import write_atomic
from supermask.core.text import Row
from supermask.execution.run import ListenerFactory, RunOptions, run_plans
from supermask.execution.scheduler import Scheduler
from supermask.reporting.html import Report, build_report, render_report
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import builtin_studies, load_study
from supermask.study.plan import Plan, make_plan

StudyRows = tuple[Plan, list[Row], list[str]]


def report(
    studies: Sequence[str], overrides: Sequence[str] = (), out: Path = Path("report.html"), store: Path | None = None
) -> Path:
    """Writes the report on studies, shipped ones or files, as one HTML file that needs nothing else; returns its path.

    Raises UserError where no study is given, where none of their runs has ended, or `out` cannot be a file;
    MachineError where it cannot be written.
    """
    return write_report(collect_report(studies, overrides, store, out), out)


def collect_report(
    studies: Sequence[str], overrides: Sequence[str] = (), store: Path | None = None, out: Path = Path("report.html")
) -> Report:
    """What the report says; `out` is there for the command that makes it again."""
    if not studies:
        known = ", ".join(study.name for study in builtin_studies())
        raise UserError(f"no study was given to report on: give one or more of {known}; or paths to .yaml files.")
    found = [study_rows(study, overrides, store) for study in dict.fromkeys(studies)]
    if all(row["status"] == "to_do" for _, all_rows, _ in found for row in all_rows):
        named = ", ".join(quote(made.study.name) for made, _, _ in found)
        raise UserError(
            f"no run of {named} with these settings is in {store or default_store_path()} yet: `supermask run` "
            f"{'it' if len(found) == 1 else 'them'} first, with the same settings and the same --store."
        )
    scales = [word.partition("=")[2] for word in overrides if word.startswith("scale=")]
    at = Store(store or default_store_path())
    return build_report_for(found, at, _command(studies, overrides, out), scales[-1] if scales else "")


def build_report_for(
    found: Sequence[StudyRows], store: Store, made_by: str, scale: str = "", whole_paper: bool = False
) -> Report:
    """The report on studies whose rows are there. `whole_paper`: with the claims that no study can decide yet."""
    return build_report(found, evaluate_claims_for(found, whole_paper), store, made_by, scale)


def evaluate_claims_for(found: Sequence[StudyRows], whole_paper: bool = False) -> list[ClaimFinding]:
    """What the runs say of the claims about these studies."""
    return evaluate_claims([(made.study, all_rows) for made, all_rows, _ in found], whole_paper)


def write_report(made: Report, out: Path) -> Path:
    """Writes the page, whole or not at all. Raises UserError, MachineError."""
    text = render_report(made).encode("utf-8", errors="replace")
    ensure_writable(out)
    try:
        write_atomic(out, text)
    except OSError as error:
        raise SystemFailure(f"the report cannot be written to {out}: {error.strerror or error}") from error
    return out


def ensure_writable(out: Path) -> None:
    """Makes the folder of a file that is to be written. Raises UserError, MachineError."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out the name of a file, such as {out / 'report.html'}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out.parent} is not a folder: give --out a file in one.") from error
    except OSError as error:
        raise SystemFailure(f"the report cannot be written to {out}: {error.strerror or error}") from error


def _command(studies: Sequence[str], overrides: Sequence[str], out: Path) -> str:
    """As it is typed; without the folder of the store, which is the machine's."""
    words = ["supermask", "report", *studies, *overrides]
    return shlex.join(words if out == Path("report.html") else [*words, "--out", out.name])


def claims(studies: Sequence[str], overrides: Sequence[str], store: Path) -> tuple[list[ClaimFinding], list[str]]:
    """The claims about the studies named (all that ship, if none is), decided by the runs in the store.

    And a text for each damaged run. Raises UserError as `load_study` does, and where nothing is claimed of them.
    """
    names = dict.fromkeys(studies or [study.name for study in builtin_studies()])
    found = [(plan, *plan_rows(plan, Store(store))) for plan in (_load_plan(name, overrides) for name in names)]
    findings = evaluate_claims([(plan.study, rows) for plan, rows, _ in found], whole_paper=not studies)
    if not findings:
        asked = ", ".join(quote(plan.study.name) for plan, _, _ in found)
        raise UserError(
            f"nothing is claimed of {asked}: give a study of {', '.join(studies_with_claims())}, or claims in the "
            "study file."
        )
    return findings, list(dict.fromkeys(text for _, _, damaged in found for text in damaged))


@dataclass(frozen=True)
class ReproductionResult:
    """What `reproduce` leaves: how each run ended, and the report that says what they mean."""

    schedule: Scheduler
    report: Report
    out: Path


def reproduce(
    scale: str,
    only: Sequence[str],
    how: RunOptions,
    out: Path = Path("report.html"),
    listening: ListenerFactory | None = None,
) -> ReproductionResult:
    """Trains what is missing of the shipped studies, as one plan, and writes the report.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how.validate()
    plans = builtin_plans(scale, only)
    ensure_writable(out)
    schedule = run_plans(plans, how, listening)
    found = [(plan, *plan_rows(plan, schedule.store)) for plan in plans]
    words = ["supermask", "reproduce", "--scale", scale, *(word for name in only for word in ("--only", name))]
    report = build_report_for(found, schedule.store, shlex.join(words), scale, whole_paper=not only)
    return ReproductionResult(schedule, report, write_report(report, out))


def builtin_plans(scale: str, only: Sequence[str] = ()) -> list[Plan]:
    """Plans of the shipped studies, or of those named, at one scale, in the order of the paper's claims.

    Raises UserError for what does not ship.
    """
    order = studies_with_claims()
    shipped = sorted(
        builtin_studies(), key=lambda study: (study.name not in order, [*order, study.name].index(study.name))
    )
    for name in only:
        check_one_of("a study that ships", name, [study.name for study in shipped])
    wanted = [study for study in shipped if not only or study.name in only]
    check_one_of("a scale", scale, list(dict.fromkeys(each for study in wanted for each in study.scales)))
    return [_load_plan(study.name, [f"scale={scale}"]) for study in wanted if scale in study.scales]


def _load_plan(study: str, overrides: Sequence[str]) -> Plan:
    return make_plan(load_study(study, overrides))
