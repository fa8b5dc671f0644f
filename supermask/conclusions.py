"""What the runs in a store say: claims decided, and the paper reproduced."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.carrying_out import How, Listening, carry_out, check_choice
from supermask.claims import ClaimFinding, evaluate
from supermask.claims.asked import studies_asked
from supermask.errors import UserError
from supermask.execute.schedule import Schedule
from supermask.plan import Plan, make_plan
from supermask.report import Report
from supermask.report_commands import check_writable, report_on, write
from supermask.rows import rows_of_plan
from supermask.store import Store
from supermask.study import load_study, shipped_studies
from supermask.study.yaml_tree import shown


def claims(studies: Sequence[str], overrides: Sequence[str], store: Path) -> tuple[list[ClaimFinding], list[str]]:
    """The claims about the studies named (all that ship, if none is), decided by the runs in the store.

    And a text for each damaged run. Raises UserError as `load_study` does, and where nothing is claimed of them.
    """
    names = dict.fromkeys(studies or [study.name for study in shipped_studies()])
    found = [(plan, *rows_of_plan(plan, Store(store))) for plan in (_plan(name, overrides) for name in names)]
    findings = evaluate([(plan.study, rows) for plan, rows, _ in found], whole_paper=not studies)
    if not findings:
        asked = ", ".join(shown(plan.study.name) for plan, _, _ in found)
        raise UserError(
            f"nothing is claimed of {asked}: give a study of {', '.join(studies_asked())}, or claims in the study file."
        )
    return findings, list(dict.fromkeys(text for _, _, damaged in found for text in damaged))


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` leaves: how each run ended, and the report that says what they mean."""

    schedule: Schedule
    report: Report
    out: Path


def reproduce(
    scale: str, only: Sequence[str], how: How, out: Path = Path("report.html"), listening: Listening | None = None
) -> Reproduced:
    """Trains what is missing of the shipped studies, as one plan, and writes the report.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how.check()
    plans = shipped_plans(scale, only)
    check_writable(out)
    schedule = carry_out(plans, how, listening)
    found = [(plan, *rows_of_plan(plan, schedule.store)) for plan in plans]
    words = ["supermask", "reproduce", "--scale", scale, *(word for name in only for word in ("--only", name))]
    report = report_on(found, schedule.store, shlex.join(words), scale, whole_paper=not only)
    return Reproduced(schedule, report, write(report, out))


def shipped_plans(scale: str, only: Sequence[str] = ()) -> list[Plan]:
    """Plans of the shipped studies, or of those named, at one scale, in the order of the paper's claims.

    Raises UserError for what does not ship.
    """
    order = studies_asked()
    shipped = sorted(
        shipped_studies(), key=lambda study: (study.name not in order, [*order, study.name].index(study.name))
    )
    for name in only:
        check_choice("a study that ships", name, [study.name for study in shipped])
    wanted = [study for study in shipped if not only or study.name in only]
    check_choice("a scale", scale, list(dict.fromkeys(each for study in wanted for each in study.scales)))
    return [_plan(study.name, [f"scale={scale}"]) for study in wanted if scale in study.scales]


def _plan(study: str, overrides: Sequence[str]) -> Plan:
    return make_plan(load_study(study, overrides))
