"""Chains of a plan."""

from __future__ import annotations

from supermask.study.plan import Plan
from supermask.study.run import PruneStepSpec, Run


def chain(plan: Plan, treatment: str, seed: int = 0) -> list[Run]:
    """A treatment's runs, level 0 first."""
    own = [m for m in plan.treatment_runs if (m.treatment, m.seed) == (treatment, seed)]
    assert [m.level for m in own] == list(range(len(own)))
    return [plan.runs[m.run_id] for m in own]


def steps(plan: Plan, treatment: str) -> list[PruneStepSpec]:
    """From level 1 on."""
    return [run.step for run in chain(plan, treatment) if run.step is not None]
