"""Store -> rows: one plain row a run, for tables, queries and figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from supermask.entry import Facts
from supermask.errors import UserError
from supermask.masks import kept_after
from supermask.networks import maskables
from supermask.plan import Plan
from supermask.run import Run
from supermask.store import Damaged, Store
from supermask.tables import DENSE, TREATMENT_SEPARATOR, Row


def rows_of_plan(plan: Plan, store: Store) -> tuple[list[Row], list[str]]:
    """A row for every run of the plan, done or not, and a text for every damaged one (it counts as not done)."""
    there = store.run_ids()
    labels: dict[str, dict[str, None]] = {}
    for member in plan.members:
        labels.setdefault(member.run_id, {})[member.treatment] = None
    rows: list[Row] = []
    damaged: list[str] = []
    ended_badly: set[str] = set()
    for run in plan.runs.values():
        facts = None
        if run.id in there:
            try:
                facts = store.facts(run.id)
            except Damaged as damage:
                damaged.append(str(damage))
        row = _row(run, facts) | {"study": plan.study.name}
        row["treatment"] = TREATMENT_SEPARATOR.join(labels[run.id]) if run.level else DENSE
        if facts is None:
            row |= _planned(run, plan)
            row["status"] = "ancestor_diverged" if run.parent in ended_badly else "to_do"
        if row["status"] not in ("finished", "to_do"):
            ended_badly.add(run.id)
        rows.append(row)
    return rows, damaged


def rows_of_store(store: Store) -> tuple[list[Row], list[str]]:
    """A row for every run in the store, whatever study asked for it, and a text for every one that is damaged."""
    rows: list[Row] = []
    damaged: list[str] = []
    for run_id in sorted(store.run_ids()):
        try:
            facts = store.facts(run_id)
        except Damaged as damage:
            damaged.append(str(damage))
            continue
        run = Run.from_data(facts)
        step = run.step
        rows.append(_row(run, facts) | {"treatment": f"{step.criterion}, {step.mask1}, {step.mask0}" if step else DENSE})
    return rows, damaged


def find_run(store: Store, prefix: str) -> str:
    """The id that begins with `prefix` (8 hex digits or more usually do). Raises UserError for none, or for several."""
    found = [run_id for run_id in store.run_ids() if run_id.startswith(prefix.lower())] if prefix else []
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs begin with" if found else "no run begins with"
    raise UserError(
        f"{what} {prefix!r} in {store.root}; `supermask table STUDY` and `supermask query \"SELECT id FROM runs\"` list them."
    )


def _row(run: Run, facts: Facts | None) -> Row:
    recipe, step = run.recipe, run.step
    row: Row = {
        "id": run.id,
        "parent": run.parent,
        "study": None,
        "network": run.network,
        "dataset": run.dataset,
        "seed": run.seed,
        "level": run.level,
        "iterations": recipe.iterations,
        "optimizer": recipe.optimizer,
        "lr": recipe.lr,
        "batch_size": recipe.batch_size,
        "evaluate_every": recipe.evaluate_every,
    }
    if step is not None:
        row |= {
            "criterion": step.criterion,
            "mask1": step.mask1,
            "mask0": step.mask0,
            "rescaled": step.rescaled,
            "schedule": "iterative" if step.levels == 1 else "one_shot",
            "scope": step.scope,
            "w_init": str(step.w_init),
            "w_final": str(step.w_final),
            "rewind_to": str(step.rewind_to),
        }
    return row if facts is None else row | _ended(facts)


def _ended(facts: Facts) -> Row:
    kept = sum(facts["kept"].values())
    environment: dict[str, Any] = facts["environment"]
    return {
        "weights": facts["weights"],
        "kept": kept,
        "density": kept / facts["weights"],
        "status": facts["status"],
        **facts["metrics"],
        "seconds": facts["seconds"],
        "engine": facts["engine"],
        "certificate": "held" if facts["certificate"]["held"] else "failed",
        "data_fingerprint": facts["data"]["fingerprint"],
        "data_note": facts["data"]["note"] or None,
        "torch": environment["torch"],
        "environment": environment["fingerprint"],
    }


def _planned(run: Run, plan: Plan) -> Row:
    """What is known of a run before it is trained: how many weights it will keep."""
    found = maskables(plan.layers).values()
    weights = sum(m.size for m in found)
    kept = weights
    step = run.step
    if step is not None and step.scope == "global":
        kept = kept_after(weights, step.rates["global"], run.level)
    elif step is not None:
        kept = sum(kept_after(m.size, step.rates[m.kind], run.level) for m in found)
    return {"weights": weights, "kept": kept, "density": kept / weights, "certificate": None}


def count_by_status(rows: Iterable[Row]) -> dict[str, int]:
    """status -> how many rows, in the order of a run's life."""
    counts = dict.fromkeys(("finished", "diverged", "certificate_failed", "ancestor_diverged", "to_do"), 0)
    for row in rows:
        counts[str(row["status"])] += 1
    return counts
