"""What the runs in a store say: studies loaded together, and the claims that are about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supermask.carrying_out import How, Listening, carry_out, check_choice
from supermask.claims import ClaimFinding, evaluate
from supermask.claims.asked import studies_asked
from supermask.errors import UserError, did_you_mean
from supermask.execute.schedule import Schedule
from supermask.plan import Plan, make_plan
from supermask.rows import rows_of_plan
from supermask.store import Store
from supermask.study import load_study, shipped_studies
from supermask.study.yaml_tree import shown
from supermask.tables import Row


@dataclass(frozen=True)
class Told:
    """A study, a row for each of its runs, done or not, and a text for each damaged one."""

    plan: Plan
    rows: list[Row]
    damaged: list[str]


def told(plans: Sequence[Plan], store: Store) -> list[Told]:
    """What the store has of these plans."""
    return [Told(plan, *rows_of_plan(plan, store)) for plan in plans]


def plans_of(words: Sequence[str]) -> list[Plan]:
    """Plans of the studies named, with the settings among the words (`KEY=VALUE`); of all that ship if none is named.

    A setting goes for every study. Raises UserError as `load_study` and `make_plan` do.
    """
    settings = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word] or [study.name for study in shipped_studies()]
    return [make_plan(load_study(name, settings)) for name in dict.fromkeys(names)]


def claims(words: Sequence[str], store: Path) -> tuple[list[ClaimFinding], list[str]]:
    """The claims about the studies named, decided by the runs in the store; and a text for each damaged run."""
    named = any("=" not in word for word in words)
    found = told(plans_of(words), Store(store))
    findings = evaluate([(each.plan.study, each.rows) for each in found], whole_paper=not named)
    if not findings:
        names = ", ".join(shown(each.plan.study.name) for each in found)
        raise UserError(
            f"nothing is claimed of {names}: give a study of {', '.join(studies_asked())}, or claims in the study file."
        )
    return findings, list(dict.fromkeys(text for each in found for text in each.damaged))


def shipped_plans(scale: str, only: Sequence[str] = ()) -> list[Plan]:
    """Plans of the shipped studies, or of those named, at one scale. Raises UserError for what does not ship."""
    shipped = shipped_studies()
    names = [study.name for study in shipped]
    for name in only:
        if name not in names:
            near = did_you_mean(name, names) or "."
            raise UserError(f"{shown(name)} is not a study that ships{near} Shipped: {', '.join(names)}.")
    wanted = [study for study in shipped if not only or study.name in only]
    scales = list(dict.fromkeys(each for study in wanted for each in study.scales))
    check_choice("a scale", scale, scales)
    return [make_plan(load_study(study.name, [f"scale={scale}"])) for study in wanted if scale in study.scales]


def reproduce(
    scale: str, only: Sequence[str], how: How, listening: Listening | None = None
) -> tuple[Schedule, list[Told]]:
    """Trains what is missing of the shipped studies, as one plan, and reads what came of it.

    Raises UserError, MachineError, and `execute.local.Stopped` on Ctrl-C: the same call goes on from there.
    """
    how.check()
    plans = shipped_plans(scale, only)
    schedule = carry_out(plans, how, listening)
    return schedule, told(plans, schedule.store)
