"""Chains of runs in a plan."""

from __future__ import annotations

from supermask.core.pruning import PruneStep
from supermask.study.plan import Plan
from supermask.study.run import Run


def chain(plan: Plan, treatment: str, seed: int = 0) -> list[Run]:
    """Return a treatment's runs, level 0 first."""
    members = [m for m in plan.treatment_runs if (m.treatment, m.seed) == (treatment, seed)]
    assert [m.level for m in members] == list(range(len(members)))
    return [plan.runs[m.run_id] for m in members]


def steps(plan: Plan, treatment: str) -> list[PruneStep]:
    """Return a treatment's prune steps, from level 1 on."""
    return [run.step for run in chain(plan, treatment) if run.step is not None]
