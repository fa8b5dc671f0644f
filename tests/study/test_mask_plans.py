"""Plans of heuristic and learned supermasks: their runs, parents, and shared runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.plan_chains import chain, steps
from helpers.small_studies import small_plan

from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning
from supermask.core.pruning import PruneStep
from supermask.core.recipe import UNTRAINED, Recipe
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study.plan import Plan
from supermask.study.run import Run

LEARN = {"lr": 5, "batch_size": 50, "epochs": 1, "evaluate_every": 10, "samples": 2, "hardened_at": [0.5]}
RECIPE = Recipe("sgd", 5.0, 50, 25, 10, momentum=0.9, drop_factor=1.0)
"""One epoch on digits: 25 batches of 50."""


def mask_plan(*treatments: dict[str, Any], **changes: Any) -> Plan:
    return small_plan(*treatments, **{"learn": dict(LEARN), **changes})


def get_learned_run(plan: Plan) -> Run:
    (run,) = {run.id: run for run in plan.runs.values() if run.learning is not None and run.seed == 0}.values()
    return run


def runs_by_level(plan: Plan, treatment: str) -> dict[int, Run]:
    return {m.level: plan.runs[m.run_id] for m in plan.treatment_runs if (m.treatment, m.seed) == (treatment, 0)}


# --- untrained networks ---


def test_one_shot_masks_need_only_the_dense_run() -> None:
    plan = mask_plan({"name": "a", "schedule": "one_shot", "trained": False}, levels=3)
    dense, *untrained = chain(plan, "a")
    assert len(plan.runs) == 4
    assert [run.parent for run in untrained] == [dense.id] * 3
    assert {run.recipe for run in untrained} == {UNTRAINED}
    assert [run.step.levels for run in untrained if run.step] == [1, 2, 3]
    assert dense.is_trained and not any(run.is_trained for run in untrained)


@pytest.mark.parametrize("mask1", ["rewind", "signed_constant", "constant"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_iterative_masks_come_from_the_trained_chain(mask1: str, rescaled: bool) -> None:
    """The chain has the same criterion with rewind and zero; its last level is not trained."""
    untrained = {"name": "u", "criterion": "movement", "mask1": mask1, "rescaled": rescaled, "trained": False}
    plan = mask_plan(untrained, {"name": "t", "criterion": "movement"}, levels=3)
    ticket, shown = chain(plan, "t"), chain(plan, "u")
    assert [run.parent for run in shown[1:]] == [run.id for run in ticket[:-1]]
    assert [run.level for run in shown] == [0, 1, 2, 3]
    assert len(plan.runs) == 1 + 3 + 3
    alone = mask_plan(untrained, levels=3)
    assert alone.runs.keys() == plan.runs.keys() - {ticket[-1].id}
    assert {m.treatment for m in alone.treatment_runs} == {"u"}
    assert len(alone.treatment_runs) == 4, "runs that only provide a mask are not reported"
    assert [s.rescaled_before for s in steps(plan, "u")] == [True, *([not rescaled] * 2)]


def test_both_schedules_share_the_first_level() -> None:
    plan = mask_plan({"schedule": ["one_shot", "iterative"], "trained": False}, levels=3)
    assert len(plan.runs) == 1 + 3 + (2 + 2)
    assert chain(plan, "one_shot")[1] == chain(plan, "iterative")[1]


def test_levels_of_a_treatment_override_the_studys() -> None:
    plan = mask_plan({"name": "a", "levels": 1}, {"name": "b"}, levels=3)
    assert len(chain(plan, "a")) == 2 and len(chain(plan, "b")) == 4
    assert len(plan.runs) == 4


def test_an_emptied_layer_is_refused_in_an_untrained_network_too() -> None:
    with pytest.raises(UserError, match=r"level 4 of 5 would leave no weight in fc1.weight"):
        mask_plan({"trained": False}, levels=5, rates={"hidden": 0.9, "output": 0.5})


# --- learned masks ---


def test_a_learned_mask_has_no_parent() -> None:
    plan = mask_plan({"name": "a", "supermask": {}}, {"name": "b", "criterion": "random"}, levels=1)
    dense, learned = chain(plan, "a")
    assert (learned.level, learned.parent, learned.step, learned.recipe) == (1, None, None, RECIPE)
    assert learned.learning == MaskLearning(samples=2, hardened_at=(0.5,))
    assert len(plan.runs) == 3
    assert [run.id for run in plan.children[dense.id]] == [chain(plan, "b")[1].id]
    assert learned.required_snapshots == learned.initial_state_snapshots == frozenset()


@pytest.mark.parametrize("graded", [False, True])
def test_a_learned_mask_from_a_heuristic_has_the_dense_run_as_parent(graded: bool) -> None:
    kind = {"start_from": "large_final_same_sign", "start_level": 2, "confidence": 3, "graded": graded}
    plan = mask_plan({"name": "a", "supermask": kind}, scope="global")
    dense, learned = chain(plan, "a")
    assert learned.parent == dense.id and learned.level == 1
    assert learned.learning == MaskLearning(confidence=3.0, graded=graded, samples=2, hardened_at=(0.5,))
    assert learned.step is not None
    assert (learned.step.criterion, learned.step.scope, learned.step.levels) == ("large_final_same_sign", "global", 2)
    assert set(learned.step.rates) == {"global"}
    # Replaying its initial logits needs the snapshots that the criterion reads.
    assert learned.required_snapshots == learned.initial_state_snapshots == frozenset({"end"})


def test_unused_keys_are_not_in_the_run_id() -> None:
    plan = mask_plan(
        {"name": "a", "supermask": {"optimizer": "sgd", "lr": 5}},
        {"name": "b", "supermask": {}, "levels": 1},
        {"name": "c", "supermask": {}, "levels": 1, "mask1": "reinit", "mask0": "freeze_init"},
    )
    assert len({chain(plan, name)[1].id for name in "abc"}) == 1


def test_a_mask_with_its_own_optimizer() -> None:
    plan = mask_plan({"name": "a", "supermask": {"optimizer": "adam", "lr": 0.1, "weight_decay": 1e-4}})
    assert get_learned_run(plan).recipe == Recipe("adam", 0.1, 50, 25, 10, weight_decay=1e-4, drop_factor=1.0)


def test_levels_after_a_learned_mask() -> None:
    """Level 2 applies the mask, later levels prune further; all train with the study's recipe."""
    plan = mask_plan({"name": "a", "supermask": {}, "levels": 3, "criterion": "movement"}, levels=9)
    dense, learned, taken, second, third = (runs_by_level(plan, "a")[n] for n in range(5))
    assert [run.parent for run in (learned, taken, second, third)] == [None, learned.id, taken.id, second.id]
    assert taken.step == PruneStep("learned", "rewind", "zero", {}, "threshold")
    assert {run.recipe for run in (taken, second, third)} == {dense.recipe}
    assert [run.step.criterion for run in (second, third) if run.step] == ["movement"] * 2
    assert [run.step.scope for run in (second, third) if run.step] == ["layer"] * 2
    assert taken.required_snapshots == frozenset({"end"}) and taken.initial_state_snapshots == frozenset()


def test_a_signed_mask_is_applied_to_its_inverted_weights() -> None:
    plan = mask_plan({"name": "a", "supermask": {"method": "signed"}, "levels": 1, "trained": False})
    step = runs_by_level(plan, "a")[2].step
    assert step is not None and (step.w_init, step.rewind_to) == ("end", "end")
    assert step.initial_state_snapshots == frozenset({"end"})


def test_biases_trained_beside_a_mask_are_kept_by_the_next_level() -> None:
    plan = mask_plan({"name": "a", "supermask": {"others_lr": 0.1}, "levels": 2})
    applied, pruned = (runs_by_level(plan, "a")[level].step for level in (2, 3))
    assert applied is not None and (applied.w_init, applied.rewind_to) == ("end", "end")
    assert pruned is not None and (pruned.w_init, pruned.rewind_to) == ("start", "start")


def test_treatments_share_one_learned_mask() -> None:
    """Evaluated as it is, evaluated with random signs, trained further: the mask is learned once."""
    plan = mask_plan(
        {"name": "a", "supermask": {}},
        {"name": "b", "supermask": {}, "levels": 1, "trained": False},
        {"name": "c", "supermask": {}, "levels": 1, "trained": False, "mask1": "randomise_signs"},
        {"name": "d", "supermask": {}, "levels": 2},
        levels=5,
    )
    assert len(plan.runs) == 1 + 1 + 1 + 1 + 2
    learned = get_learned_run(plan)
    assert [plan.runs[i.id].recipe == UNTRAINED for i in plan.children[learned.id]] == [True, True, False]


def test_parents_come_first() -> None:
    plan = mask_plan(
        {"supermask": {"start_from": ["random", "movement"]}, "levels": 2, "trained": True},
        {"schedule": ["iterative", "one_shot"], "trained": [True, False]},
        seeds=2,
    )
    seen: set[str] = set()
    for run in plan.runs.values():
        assert run.parent is None or run.parent in seen
        seen.add(run.id)


# --- ids ---


@pytest.mark.parametrize(
    "change",
    [
        {"method": "rounded"},
        {"weights": "constant"},
        {"multiplier": 2.0},
        {"rescaled": True},
        {"start_logit": 1.0},
        {"confidence": 1.0},
        {"graded": True},
        {"density": 0.4},
        {"threshold": 0.1},
        {"samples": 11},
        {"hardened_at": (0.5,)},
    ],
)
def test_each_field_of_learning_changes_the_id(change: dict[str, Any]) -> None:
    run = Run("fc-20", "digits", 0, 1, RECIPE, learning=MaskLearning())
    other = replace(run, learning=replace(MaskLearning(), **change))
    assert other.id != run.id
    assert Run.from_data(other.to_data()) == other and Run.from_data(other.to_data()).id == other.id


def test_ids_of_each_kind_are_pinned() -> None:
    """A changed id makes stores stale."""
    plan = mask_plan(
        {"name": "one shot", "schedule": "one_shot", "trained": False},
        {"name": "iterative", "trained": False, "rescaled": True},
        {"name": "learned", "supermask": {"weights": "signed_constant", "rescaled": True}},
        {"name": "from a heuristic", "supermask": {"start_from": "movement", "graded": True}},
        {"name": "taken", "supermask": {"method": "signed"}, "levels": 1, "trained": False},
    )
    ids = {
        name: list(runs_by_level(plan, name).values())[-1].id for name in {m.treatment: 0 for m in plan.treatment_runs}
    }
    assert ids == {
        "one shot": "997f93e1fe23a4d1f18654768a647da6",
        "iterative": "ea8ca486cdf90265bca8c907631a5e50",
        "learned": "97abf50cccb514098b643c9aacf4d8ea",
        "from a heuristic": "2da6834e34ccea2e5cf4dfe136e83d10",
        "taken": "9ed7fd0a6c420b4c2dfc56eaaf2e37f2",
    }


def test_rows_of_unfinished_supermask_runs(tmp_path: Path) -> None:
    """The kept count of a learned mask is unknown before it is learned; that of a heuristic mask is known."""
    plan = mask_plan(
        {"name": "a", "supermask": {"start_from": "movement", "confidence": 3, "rescaled": True}, "levels": 2},
        {"name": "u", "schedule": "one_shot", "trained": False},
    )
    rows = {row["id"]: row for row in plan_rows(plan, Store(tmp_path))[0]}
    learned, taken, pruned = (rows[runs_by_level(plan, "a")[level].id] for level in (1, 2, 3))
    assert {row["weights"] for row in rows.values()} == {1480}
    assert learned.get("kept") is taken.get("kept") is pruned.get("kept") is None
    assert (learned["supermask"], learned["base"], learned["criterion"]) == ("bernoulli", "init", "movement")
    assert (learned["confidence"], learned["graded"], learned["rescaled"]) == (3.0, False, True)
    assert (taken["criterion"], taken["scope"]) == ("learned", "threshold")
    assert pruned["criterion"] == "large_final"
    untrained = [rows[run.id] for run in chain(plan, "u")[1:]]
    assert [(row["trained"], row["kept"]) for row in untrained] == [(False, 640 + 140), (False, 320 + 98)]
    assert {row["status"] for row in rows.values()} == {"to_do"}
