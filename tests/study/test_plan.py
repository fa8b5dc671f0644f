"""Plans: every run of a study once, parents first, without data and without torch."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from typing import Any

import pytest
from helpers.plan_chains import chain, steps
from helpers.small_studies import small_plan
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.errors import UserError
from supermask.core.masks import RankedGroup, prune_count
from supermask.study import plan as plan_module
from supermask.study import study_from_dict
from supermask.study.plan import make_plan
from supermask.study.plan_checks import ineffective_settings
from supermask.study.run import Run

ITERATIVE = {"name": "iterative", "schedule": "iterative"}
ONE_SHOT = {"name": "one_shot", "schedule": "one_shot"}


# ------------------------------------------------------------------------------------------------------ number of runs


@pytest.mark.parametrize(
    ("treatments", "seeds", "levels", "unique"),
    [
        ([{"criterion": "large_final"}], 1, 1, 2),
        ([{"criterion": "large_final"}], 3, 4, 3 * (1 + 4)),
        ([{"criterion": ["large_final", "random"]}], 2, 3, 2 * (1 + 2 * 3)),
        (
            [{"criterion": ["large_final", "random"], "mask0": ["zero", "freeze_init", "freeze_final"]}],
            2,
            5,
            2 * (1 + 6 * 5),
        ),
        ([{"schedule": "one_shot"}], 2, 3, 2 * (1 + 3)),
        # Pruning by one level is the same in both schedules.
        ([ITERATIVE, ONE_SHOT], 2, 4, 2 * (1 + 4 + 3)),
        ([ITERATIVE, ONE_SHOT], 1, 1, 2),
        (
            [{"schedule": ["iterative", "one_shot"], "criterion": ["large_final", "random"]}],
            5,
            3,
            5 * (1 + 2 * (3 + 2)),
        ),
        # Rewinding to iteration 5 once (iterative) or at every level (one-shot) differs from level 2 on only.
        ([{"name": "a", "rewind_to": 5}, {"name": "b", "rewind_to": 5, "schedule": "one_shot"}], 1, 3, 1 + 3 + 2),
    ],
)
def test_number_of_runs_equals_a_count_by_hand(
    treatments: list[dict[str, Any]], seeds: int, levels: int, unique: int
) -> None:
    plan = small_plan(*treatments, seeds=seeds, levels=levels)
    assert len(plan.runs) == unique
    assert len(plan.treatment_runs) == len(plan.study.treatments) * seeds * (levels + 1)
    assert {m.run_id for m in plan.treatment_runs} == plan.runs.keys()


def test_two_names_of_one_point_are_one_run() -> None:
    plan = small_plan({"name": "a", "w_init": "start", "levels": 2}, {"name": "b", "w_init": 0}, levels=3)
    assert len(plan.runs) == 1 + 3


def test_all_treatments_of_a_seed_share_one_dense_run() -> None:
    plan = small_plan({"criterion": ["large_final", "random"], "mask1": ["rewind", "reinit"]}, seeds=3)
    dense = {seed: {m.run_id for m in plan.treatment_runs if (m.level, m.seed) == (0, seed)} for seed in range(3)}
    assert all(len(ids) == 1 for ids in dense.values())
    assert len(set.union(*dense.values())) == 3


def test_one_shot_prunes_each_level_from_the_dense_run() -> None:
    plan = small_plan(ITERATIVE, ONE_SHOT, levels=3)
    dense, *iterative = chain(plan, "iterative")
    assert [run.parent for run in iterative] == [dense.id, iterative[0].id, iterative[1].id]
    assert [step.levels for step in steps(plan, "iterative")] == [1, 1, 1]
    assert [run.parent for run in chain(plan, "one_shot")[1:]] == [dense.id] * 3
    assert [step.levels for step in steps(plan, "one_shot")] == [1, 2, 3]
    assert chain(plan, "one_shot")[1].id == iterative[0].id


def test_parents_come_before_their_children() -> None:
    plan = small_plan(
        {"criterion": ["large_final", "random"], "schedule": ["iterative", "one_shot"]}, seeds=2, levels=4
    )
    place = {run_id: i for i, run_id in enumerate(plan.runs)}
    for run in plan.runs.values():
        assert (run.parent is None) == (run.level == 0) == (run.step is None)
        if run.parent is not None:
            assert place[run.parent] < place[run.id]
            assert run in plan.children[run.parent]
    assert sum(map(len, plan.children.values())) == len(plan.runs) - 2


# ------------------------------------------------------------------------------------------------------ ids


def test_ids_do_not_depend_on_names_or_order() -> None:
    def ids(name: str, *treatments: dict[str, Any]) -> set[str]:
        data = {"network": "fc-20", "seeds": 2, "prune": {"levels": 2}, "treatments": list(treatments)}
        return set(make_plan(study_from_dict(data, name=name)).runs)

    a, b = {"criterion": "large_final"}, {"criterion": "random"}
    expected = ids("mine", a, b)
    assert ids("yours", a, b) == expected
    assert ids("mine", b, a) == expected
    assert ids("mine", {**a, "name": "this"}, {**b, "name": "that"}) == expected
    assert ids("mine", a) | ids("mine", b) == expected


def test_ids_do_not_depend_on_other_levels_and_seeds() -> None:
    small, large = small_plan(levels=2, seeds=1), small_plan(levels=5, seeds=[3, 0, 1])
    assert small.runs.keys() < large.runs.keys()


def test_each_treatment_and_seed_has_its_own_runs() -> None:
    values = {
        "criterion": "random",
        "mask1": "reinit",
        "mask0": "freeze_init",
        "rescaled": True,
        "w_init": 3,
        "w_final": "lowest_validation_loss",
        "rewind_to": 5,
        "scope": "global",
    }
    plan = small_plan({"name": "default"}, *({"name": key, key: value} for key, value in values.items()), seeds=2)
    last = [chain(plan, name, seed)[-1].id for name in ("default", *values) for seed in (0, 1)]
    assert len(set(last)) == len(last)


@pytest.mark.slow
def test_planning_neither_imports_torch_nor_reads_data() -> None:
    script = (
        "import sys; from supermask.study.plan import make_plan; from supermask.study import load_study\n"
        "make_plan(load_study('mask-criteria', ['scale=paper']))\n"
        "assert not {'torch', 'sklearn', 'scipy', 'duckdb'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"SUPERMASK_DATA": "/nowhere"})


# --------------------------------------------------------------------------------------------------- points of a step


def test_late_rewinding_uses_the_iteration_once_then_the_parents_start() -> None:
    plan = small_plan({"name": "late", "rewind_to": 5}, levels=3)
    assert [step.rewind_to for step in steps(plan, "late")] == [5, "start", "start"]
    assert [step.w_init for step in steps(plan, "late")] == ["start"] * 3
    needed = plan.required_snapshots(lambda run_id: False)
    assert [needed[run.id] for run in chain(plan, "late")] == [{5, "end"}, {"end"}, {"end"}, set()]


def test_one_shot_late_rewinding_always_uses_the_dense_runs_iteration() -> None:
    plan = small_plan({"name": "late", "rewind_to": 5, "schedule": "one_shot"}, levels=3)
    assert [step.rewind_to for step in steps(plan, "late")] == [5, 5, 5]


def test_the_first_iteration_of_a_level_is_its_start() -> None:
    plan = small_plan({"name": "t", "rewind_to": 5, "w_init": 5, "w_final": 9}, levels=3)
    assert [step.w_init for step in steps(plan, "t")] == [5, "start", "start"]
    assert [step.w_final for step in steps(plan, "t")] == [9, 9, 9]
    dense = small_plan({"name": "t", "w_init": 0, "w_final": 9, "rewind_to": 0}, levels=2)
    assert [(step.w_init, step.rewind_to) for step in steps(dense, "t")] == [("start", "start")] * 2


@pytest.mark.parametrize("key", ["w_init", "w_final"])
def test_a_point_before_a_level_begins_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"'t': {key}: 3 is before iteration 5.*from 5 on"):
        small_plan({"name": "t", "rewind_to": 5, key: 3}, levels=2)
    # If only the dense run is read, which passes iteration 3, it is allowed.
    small_plan({"name": "t", "rewind_to": 5, key: 3}, levels=1)
    small_plan({"name": "t", "rewind_to": 5, key: 3, "schedule": "one_shot"}, levels=3)


def test_a_point_after_the_end_is_refused() -> None:
    last = next(iter(small_plan().runs.values())).recipe.iterations
    small_plan({"w_final": last - 1})
    with pytest.raises(UserError, match=f"w_final: {last} is not before the end"):
        small_plan({"w_final": last})


MIXED = small_plan(
    {"name": "plain"},
    {"name": "frozen at w_f", "mask0": "freeze_final"},
    {"name": "shrunk, early w_f", "mask0": "zero_if_shrunk", "w_final": 7},
    {"name": "late", "rewind_to": 5, "mask0": "freeze_final"},
    {"name": "fine-tuned", "rewind_to": "end"},
    {"name": "snip", "criterion": "snip", "w_init": 3},
    {"name": "best", "w_final": "lowest_validation_loss", "schedule": "one_shot"},
    levels=3,
)


@given(st.sets(st.sampled_from(sorted(MIXED.runs))))
def test_required_snapshots_equal_a_recursive_search(done: set[str]) -> None:
    needed: dict[str, set[Any]] = {run_id: set() for run_id in MIXED.runs}

    def require_initial_state(run: Run) -> None:
        if run.parent is not None and run.step is not None:
            needed[run.parent] |= run.step.initial_state_snapshots
            require_initial_state(MIXED.runs[run.parent])

    for run in MIXED.runs.values():
        if run.id not in done and run.parent is not None and run.step is not None:
            needed[run.parent] |= run.step.required_snapshots
            require_initial_state(MIXED.runs[run.parent])
    assert MIXED.required_snapshots(done.__contains__) == needed


def test_no_snapshot_is_required_if_all_runs_are_done() -> None:
    assert not any(MIXED.required_snapshots(lambda run_id: True).values())


# ------------------------------------------------------------------------------------------------------------ recipes


def test_epochs_become_iterations() -> None:
    plan = small_plan(epochs=3, batch_size=50, lr_drops=[1, 2.5], lr_drop_factor=0.5, warmup_epochs=0.1)
    recipe = next(iter(plan.runs.values())).recipe
    # 1,437 training images, 200 of them for validation: 1,237 / 50 = 24.74 batches a pass.
    assert (recipe.iterations, recipe.lr_milestones, recipe.warmup_iterations) == (75, (25, 62), 3)
    assert recipe.drop_factor == 0.5


def test_settings_without_effect_are_not_in_the_recipe() -> None:
    plain = small_plan(epochs=2)
    assert small_plan(epochs=2, lr_drops=[2, 5]).runs.keys() == plain.runs.keys()
    assert small_plan(epochs=2, lr_drops=[1, 5]).runs.keys() == small_plan(epochs=2, lr_drops=[1]).runs.keys()
    assert not small_plan(epochs=2, lr_drops=[1]).runs.keys() & plain.runs.keys()


def test_fine_tuning_uses_the_final_learning_rate() -> None:
    plan = small_plan(
        {"name": "tuned", "rewind_to": "end", "learning_rate_rewinding": False},
        {"name": "rewound", "rewind_to": "end", "learning_rate_rewinding": True},
        {"name": "weights rewound"},
        lr=0.1,
        epochs=4,
        optimizer="sgd",
        lr_drops=[2, 3],
        lr_drop_factor=0.5,
        warmup_epochs=1,
    )
    dense, first, second = (run.recipe for run in chain(plan, "tuned"))
    assert {first.learning_rate(i) for i in range(first.iterations)} == {dense.learning_rate(dense.iterations - 1)}
    assert first == second
    assert (first.iterations, first.optimizer, first.momentum) == (dense.iterations, "sgd", 0.9)
    for other in ("rewound", "weights rewound"):
        assert {run.recipe for run in chain(plan, other)} == {dense}


# ------------------------------------------------------------------------------------------ refused plans


def last_possible_level(alive: int, rate: float) -> int:
    level = 0
    while (left := alive - prune_count(alive, rate)) > 0 and left != alive:
        alive, level = left, level + 1
    assert left == 0
    return level


@pytest.mark.parametrize("schedule", ["iterative", "one_shot"])
def test_a_layer_may_not_be_emptied(schedule: str) -> None:
    rates = {"hidden": 0.2, "output": 0.9}
    last = last_possible_level(200, 0.9)
    small_plan({"schedule": schedule}, levels=last, rates=rates)
    with pytest.raises(UserError, match=rf"level {last + 1} of {last + 3} .* no weight in fc2.*at most {last} levels"):
        small_plan({"schedule": schedule}, levels=last + 3, rates=rates)


@pytest.mark.parametrize(
    ("treatments", "keys"),
    [
        ([{"name": "a", "w_init": "start"}, {"name": "b", "w_init": 0}], "w_init"),
        ([{"name": "a", "rewind_to": ["start"]}, {"name": "b", "rewind_to": 0, "w_init": 0}], "w_init, rewind_to"),
        ([{"name": "a"}, {"name": "b", "train": {"optimizer": "adamw"}}], "train.optimizer"),
        ([{"name": "a"}, {"name": "b", "initializer": "glorot_normal"}], "initializer"),
        ([{"name": "a"}, {"name": "b", "network": "fc-20"}], "network"),
        ([{"name": "a", "supermask": {}}, {"name": "b", "supermask": {"lr": 100}}], "supermask.lr"),
    ],
    ids=str,
)
def test_treatments_with_the_same_runs_are_refused(treatments: list[dict[str, Any]], keys: str) -> None:
    """A comparison of a run with itself has no difference, and the interval of it no width."""
    with pytest.raises(UserError) as caught:
        small_plan(*treatments)
    assert str(caught.value) == (
        "study 'study': treatments 'a' and 'b' are the same runs at every level: they differ only in "
        f"{keys}, without effect here; remove one of them."
    )


def test_numbers_of_levels_may_be_tried_with_one_level() -> None:
    plan = small_plan({"name": "a"}, {"name": "b", "levels": 1, "schedule": "one_shot"}, levels=1)
    assert len(plan.runs) == 2


def test_schedules_may_be_tried_with_one_level() -> None:
    plan = small_plan(ITERATIVE, ONE_SHOT, levels=1)
    texts = ineffective_settings(plan.study, plan.network, 1_237)
    assert "treatments 'iterative' and 'one_shot' are the same runs: with one level both schedules prune the dense" in (
        " ".join(texts)
    )


def test_the_whole_network_may_not_be_emptied_under_global_ranking() -> None:
    last = last_possible_level(1_480, 0.9)
    rates = {"output": 0.99, "global": 0.9}
    small_plan({"scope": "global"}, levels=last, rates=rates)
    with pytest.raises(UserError, match=f"no weight in the network .*at most {last} levels"):
        small_plan({"scope": "global"}, levels=last + 1, rates=rates)


def test_global_and_layer_wise_rates() -> None:
    plan = small_plan({"name": "layer"}, {"name": "all", "scope": "global"})
    assert steps(plan, "layer")[0].rates == {"hidden": 0.5, "output": 0.3}
    assert steps(plan, "all")[0].rates == {"global": 0.5}


# --------------------------------------------------------------------------------------------------------------- size


@pytest.mark.slow
def test_ten_thousand_runs_need_one_check_per_treatment_and_one_hash_per_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {"runs": 0, "checks": 0}

    class Counted(Run):
        def __post_init__(self, planned_with: int | None) -> None:
            counts["runs"] += 1
            super().__post_init__(planned_with)

    remaining = RankedGroup.remaining

    def counted(group: RankedGroup, levels: int) -> int:
        counts["checks"] += 1
        return remaining(group, levels)

    monkeypatch.setattr(plan_module, "Run", Counted)
    monkeypatch.setattr(RankedGroup, "remaining", counted)
    plan = small_plan({"criterion": ["large_final", "random"], "mask1": ["rewind", "reinit"]}, seeds=250, levels=10)
    assert len(plan.runs) == counts["runs"] == 250 * (1 + 4 * 10)
    assert counts["checks"] == 4 * 2  # treatments, layers
    needed = plan.required_snapshots(lambda run_id: False)
    assert sum(map(len, needed.values())) == 250 * (1 + 4 * 9)


def test_treatments_share_exactly_the_runs_with_equal_steps() -> None:
    """Two treatments share a run if and only if all their steps up to it are equal."""
    for a, b in combinations([t.label for t in MIXED.study.treatments], 2):
        same = [a_run.id == b_run.id for a_run, b_run in zip(chain(MIXED, a), chain(MIXED, b), strict=True)]
        assert same[0]
        equal = [a_step == b_step for a_step, b_step in zip(steps(MIXED, a), steps(MIXED, b), strict=True)]
        assert same[1:] == [all(equal[: i + 1]) for i in range(len(equal))]


def test_a_study_of_treatments_with_networks_of_their_own_is_checked_against_these() -> None:
    study = study_from_dict(
        {"treatments": [{"network": ["conv2", "conv4"]}], "prune": {"levels": 2, "only": ["conv1.weight"]}, "seeds": 1}
    )
    made = make_plan(study)
    assert made.networks == ("conv2", "conv4")
    assert made.network.name == "conv2"
