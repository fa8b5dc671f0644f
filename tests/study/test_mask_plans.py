"""Plans of heuristic and learned supermasks: which runs there are, whose children they are, and who shares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.plan_chains import chain, steps
from helpers.small_studies import small_plan

from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import UNTRAINED, Recipe
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study.plan import Plan
from supermask.study.run import PruneStepSpec, Run

LEARN = {"lr": 5, "batch_size": 50, "epochs": 1, "evaluate_every": 10, "samples": 2, "hardened_at": [0.5]}
RECIPE = Recipe("sgd", 5.0, 50, 25, 10, momentum=0.9, drop_factor=1.0)
"""One pass over the training images of digits: 25 batches of 50."""


def plan_of(*treatments: dict[str, Any], **changes: Any) -> Plan:
    return small_plan(*treatments, **{"learn": dict(LEARN), **changes})


def learned_run(plan: Plan) -> Run:
    (run,) = {run.id: run for run in plan.runs.values() if run.learning is not None and run.seed == 0}.values()
    return run


def by_level(plan: Plan, treatment: str) -> dict[int, Run]:
    return {m.level: plan.runs[m.run_id] for m in plan.treatment_runs if (m.treatment, m.seed) == (treatment, 0)}


# --- untrained networks ---


def test_one_shot_masks_are_the_dense_runs_alone() -> None:
    plan = plan_of({"name": "a", "schedule": "one_shot", "trained": False}, levels=3)
    dense, *untrained = chain(plan, "a")
    assert len(plan.runs) == 4
    assert [run.parent for run in untrained] == [dense.id] * 3
    assert {run.recipe for run in untrained} == {UNTRAINED}
    assert [run.step.levels for run in untrained if run.step] == [1, 2, 3]
    assert dense.is_trained and not any(run.is_trained for run in untrained)


@pytest.mark.parametrize("mask1", ["rewind", "signed_constant", "constant"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_iterative_masks_are_those_of_the_chain_that_trains(mask1: str, rescaled: bool) -> None:
    """The chain is the one that the same criterion has with rewind and zero; its last level is not trained."""
    untrained = {"name": "u", "criterion": "movement", "mask1": mask1, "rescaled": rescaled, "trained": False}
    plan = plan_of(untrained, {"name": "t", "criterion": "movement"}, levels=3)
    ticket, shown = chain(plan, "t"), chain(plan, "u")
    assert [run.parent for run in shown[1:]] == [run.id for run in ticket[:-1]]
    assert [run.level for run in shown] == [0, 1, 2, 3]
    assert len(plan.runs) == 1 + 3 + 3
    alone = plan_of(untrained, levels=3)
    assert alone.runs.keys() == plan.runs.keys() - {ticket[-1].id}
    assert {m.treatment for m in alone.treatment_runs} == {"u"}
    assert len(alone.treatment_runs) == 4, "what is trained for its mask alone is no member"
    assert [s.rescaled_before for s in steps(plan, "u")] == [True, *([not rescaled] * 2)]


def test_both_schedules_share_the_first_level() -> None:
    plan = plan_of({"schedule": ["one_shot", "iterative"], "trained": False}, levels=3)
    assert len(plan.runs) == 1 + 3 + (2 + 2)
    assert chain(plan, "one_shot")[1] == chain(plan, "iterative")[1]


def test_levels_of_a_treatment_win_over_the_studys() -> None:
    plan = plan_of({"name": "a", "levels": 1}, {"name": "b"}, levels=3)
    assert len(chain(plan, "a")) == 2 and len(chain(plan, "b")) == 4
    assert len(plan.runs) == 4


def test_a_layer_that_would_be_emptied_is_told_of_an_untrained_network_too() -> None:
    with pytest.raises(UserError, match=r"level 4 of 5 would leave no weight in fc1.weight"):
        plan_of({"trained": False}, levels=5, rates={"hidden": 0.9, "output": 0.5})


# --- learned masks ---


def test_a_learned_mask_has_no_parent() -> None:
    plan = plan_of({"name": "a", "supermask": {}}, {"name": "b", "criterion": "random"}, levels=1)
    dense, learned = chain(plan, "a")
    assert (learned.level, learned.parent, learned.step, learned.recipe) == (1, None, None, RECIPE)
    assert learned.learning == MaskLearning(samples=2, hardened_at=(0.5,))
    assert len(plan.runs) == 3
    assert [run.id for run in plan.children[dense.id]] == [chain(plan, "b")[1].id]
    assert learned.points == learned.start_points == frozenset()


@pytest.mark.parametrize("graded", [False, True])
def test_unless_it_starts_from_a_heuristic(graded: bool) -> None:
    kind = {"start_from": "large_final_same_sign", "start_level": 2, "confidence": 3, "graded": graded}
    plan = plan_of({"name": "a", "supermask": kind}, scope="global")
    dense, learned = chain(plan, "a")
    assert learned.parent == dense.id and learned.level == 1
    assert learned.learning == MaskLearning(confidence=3.0, graded=graded, samples=2, hardened_at=(0.5,))
    assert learned.step is not None
    assert (learned.step.criterion, learned.step.scope, learned.step.levels) == ("large_final_same_sign", "global", 2)
    assert set(learned.step.rates) == {"global"}
    # Its logits are made again from what the criterion read.
    assert learned.points == learned.start_points == frozenset({"end"})


def test_what_a_method_does_not_look_at_is_not_in_the_runs_id() -> None:
    """So that equal runs are one."""
    plan = plan_of(
        {"name": "a", "supermask": {"optimizer": "sgd", "lr": 5}},
        {"name": "b", "supermask": {}},
        {"name": "c", "supermask": {}, "levels": 1, "mask1": "reinit", "mask0": "freeze_init"},
    )
    assert len({chain(plan, name)[1].id for name in "abc"}) == 1


def test_a_masks_own_optimiser() -> None:
    plan = plan_of({"name": "a", "supermask": {"optimizer": "adam", "lr": 0.1, "weight_decay": 1e-4}})
    assert learned_run(plan).recipe == Recipe("adam", 0.1, 50, 25, 10, weight_decay=1e-4, drop_factor=1.0)


def test_after_a_mask_that_was_learned() -> None:
    """Level 2 takes it, the levels after prune on; trained as the study's tickets are."""
    plan = plan_of({"name": "a", "supermask": {}, "levels": 3, "criterion": "movement"}, levels=9)
    dense, learned, taken, second, third = (by_level(plan, "a")[n] for n in range(5))
    assert [run.parent for run in (learned, taken, second, third)] == [None, learned.id, taken.id, second.id]
    assert taken.step == PruneStepSpec("learned", "rewind", "zero", "threshold", {}, 1)
    assert {run.recipe for run in (taken, second, third)} == {dense.recipe}
    assert [run.step.criterion for run in (second, third) if run.step] == ["movement"] * 2
    assert [run.step.scope for run in (second, third) if run.step] == ["layer"] * 2
    assert taken.points == frozenset({"end"}) and taken.start_points == frozenset()


def test_a_mask_that_inverts_is_taken_with_the_weights_that_it_inverted() -> None:
    plan = plan_of({"name": "a", "supermask": {"method": "signed"}, "levels": 1, "trained": False})
    step = by_level(plan, "a")[2].step
    assert step is not None and (step.w_init, step.rewind_to) == ("end", "end")
    assert step.initial_state_snapshots == frozenset({"end"})


def test_several_ends_of_one_learned_mask() -> None:
    """Measured as it is, without its signs, and trained on: it is learned once."""
    plan = plan_of(
        {"name": "a", "supermask": {}},
        {"name": "b", "supermask": {}, "levels": 1, "trained": False},
        {"name": "c", "supermask": {}, "levels": 1, "trained": False, "mask1": "randomise_signs"},
        {"name": "d", "supermask": {}, "levels": 2},
        levels=5,
    )
    assert len(plan.runs) == 1 + 1 + 1 + 1 + 2
    learned = learned_run(plan)
    assert [plan.runs[i.id].recipe == UNTRAINED for i in plan.children[learned.id]] == [True, True, False]


def test_parents_come_first() -> None:
    plan = plan_of(
        {"supermask": {"start_from": ["random", "movement"]}, "levels": 2, "trained": True},
        {"schedule": ["iterative", "one_shot"], "trained": [True, False]},
        seeds=2,
    )
    seen: set[str] = set()
    for run in plan.runs.values():
        assert run.parent is None or run.parent in seen
        seen.add(run.id)


# --- what an id is ---


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


def test_ids_of_each_kind_are_these() -> None:
    """An id that changes here makes stores stale."""
    plan = plan_of(
        {"name": "one shot", "schedule": "one_shot", "trained": False},
        {"name": "iterative", "trained": False, "rescaled": True},
        {"name": "learned", "supermask": {"weights": "signed_constant", "rescaled": True}},
        {"name": "from a heuristic", "supermask": {"start_from": "movement", "graded": True}},
        {"name": "taken", "supermask": {"method": "signed"}, "levels": 1, "trained": False},
    )
    found = {name: list(by_level(plan, name).values())[-1].id for name in {m.treatment: 0 for m in plan.treatment_runs}}
    assert found == {
        "one shot": "997f93e1fe23a4d1f18654768a647da6",
        "iterative": "ea8ca486cdf90265bca8c907631a5e50",
        "learned": "97abf50cccb514098b643c9aacf4d8ea",
        "from a heuristic": "2da6834e34ccea2e5cf4dfe136e83d10",
        "taken": "9ed7fd0a6c420b4c2dfc56eaaf2e37f2",
    }


def test_rows_of_what_is_still_to_be_learned(tmp_path: Path) -> None:
    """How many weights a mask will keep nobody knows; of an untrained heuristic one it is known."""
    plan = plan_of(
        {"name": "a", "supermask": {"start_from": "movement", "confidence": 3, "rescaled": True}, "levels": 2},
        {"name": "u", "schedule": "one_shot", "trained": False},
    )
    rows = {row["id"]: row for row in plan_rows(plan, Store(tmp_path))[0]}
    learned, taken, pruned = (rows[by_level(plan, "a")[level].id] for level in (1, 2, 3))
    assert {row["weights"] for row in rows.values()} == {1480}
    assert learned.get("kept") is taken.get("kept") is pruned.get("kept") is None
    assert (learned["supermask"], learned["base"], learned["criterion"]) == ("bernoulli", "init", "movement")
    assert (learned["confidence"], learned["graded"], learned["rescaled"]) == (3.0, False, True)
    assert (taken["criterion"], taken["scope"]) == ("learned", "threshold")
    assert pruned["criterion"] == "large_final"
    untrained = [rows[run.id] for run in chain(plan, "u")[1:]]
    assert [(row["trained"], row["kept"]) for row in untrained] == [(False, 640 + 140), (False, 320 + 98)]
    assert {row["status"] for row in rows.values()} == {"to_do"}
