"""Lottery tickets and supermasks: the public face. What is named here is imported when it is first asked for.

In a notebook: `supermask.run`, `table` and `figure`, such as `supermask.run("mask-criteria", scale="digits")`.
`supermask.commands` has a function for each command of the command line, such as
`commands.run("mask-criteria", ["scale=digits"])`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supermask import analysis, commands, stats
    from supermask.actions import MASK0_ACTIONS, MASK1_ACTIONS
    from supermask.analysis import Specimen
    from supermask.certificate import Certificate, certify
    from supermask.criteria import CRITERIA
    from supermask.datasets import DATASETS
    from supermask.errors import MachineError, UserError
    from supermask.learned import METHODS, Learning
    from supermask.lineage import Lineage
    from supermask.looking import look
    from supermask.masks import keep_top
    from supermask.notebook import figure, run, table
    from supermask.plan import Plan, make_plan
    from supermask.runs import Run
    from supermask.specimens import load_specimens
    from supermask.store import Damaged, Store
    from supermask.study import Study, Treatment, load_study, study_from
    from supermask.ticket import Parent, Step, next_start
    from supermask.tickets import Ticket, load_ticket, pack_run, save_ticket
    from supermask.trackers import export_tracker
    from supermask.types import Layer, Outcome, Start

__version__ = "0.1.0"

_HOMES = {
    "analysis": "",
    "commands": "",
    "stats": "",
    "Specimen": "analysis",
    "MASK0_ACTIONS": "actions",
    "MASK1_ACTIONS": "actions",
    "Certificate": "certificate",
    "certify": "certificate",
    "CRITERIA": "criteria",
    "DATASETS": "datasets",
    "MachineError": "errors",
    "UserError": "errors",
    "METHODS": "learned",
    "Learning": "learned",
    "Lineage": "lineage",
    "look": "looking",
    "keep_top": "masks",
    "figure": "notebook",
    "run": "notebook",
    "table": "notebook",
    "Plan": "plan",
    "make_plan": "plan",
    "Run": "runs",
    "load_specimens": "specimens",
    "Damaged": "store",
    "Store": "store",
    "Study": "study",
    "Treatment": "study",
    "load_study": "study",
    "study_from": "study",
    "Parent": "ticket",
    "Step": "ticket",
    "next_start": "ticket",
    "Ticket": "tickets",
    "load_ticket": "tickets",
    "pack_run": "tickets",
    "save_ticket": "tickets",
    "export_tracker": "trackers",
    "Layer": "types",
    "Outcome": "types",
    "Start": "types",
}
"""Name -> the module that it is defined in; an empty text for a module of this package."""

__all__ = [
    "CRITERIA",
    "DATASETS",
    "MASK0_ACTIONS",
    "MASK1_ACTIONS",
    "METHODS",
    "Certificate",
    "Damaged",
    "Layer",
    "Learning",
    "Lineage",
    "MachineError",
    "Outcome",
    "Parent",
    "Plan",
    "Run",
    "Specimen",
    "Start",
    "Step",
    "Store",
    "Study",
    "Ticket",
    "Treatment",
    "UserError",
    "analysis",
    "certify",
    "commands",
    "export_tracker",
    "figure",
    "keep_top",
    "load_specimens",
    "load_study",
    "load_ticket",
    "look",
    "make_plan",
    "next_start",
    "pack_run",
    "run",
    "save_ticket",
    "stats",
    "study_from",
    "table",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'supermask' has no attribute {name!r}")
    home = _HOMES[name]
    value = getattr(import_module(f"supermask.{home}"), name) if home else import_module(f"supermask.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
