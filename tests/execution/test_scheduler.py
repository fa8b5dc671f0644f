"""schedule: what is trained when, what is dropped when, and what is traced again because it was dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from helpers.faulty_disk import quick_folder
from helpers.small_studies import carry_out, contents, facts, leftovers, small_plan

from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, TaskStatus
from supermask.store import Store
from supermask.store.records import snapshot_name
from supermask.study.plan import Plan
from supermask.study.run import Run

TWO_SCHEDULES = {"criterion": ["large_final", "random"], "schedule": ["iterative", "one_shot"]}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def ended(schedule: Scheduler, task: Task, status: TaskStatus = "finished") -> None:
    """Without any training."""
    schedule.finish(task, TaskResult(task.run.id, status))


def ids(tasks: Iterable[Task]) -> list[str]:
    return [task.run.id for task in tasks]


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("seed", range(10))
def test_every_run_once_and_no_child_before_its_parent_has_ended(folder: Path, seed: int) -> None:
    """With any number of workers, ending their tasks in any order."""
    chance = np.random.default_rng(seed)
    plan = small_plan(TWO_SCHEDULES, seeds=2, levels=4)
    schedule = Scheduler(plan, Store(folder))
    workers = chance.integers(1, 10)
    in_flight: list[Task] = []
    done: list[Task] = []
    while schedule.tasks_left:
        while len(in_flight) < workers and (task := schedule.take()) is not None:
            assert task.run.parent is None or task.run.parent in ids(done)
            assert not task.replay
            in_flight.append(task)
        assert in_flight
        task = in_flight.pop(chance.integers(len(in_flight)))
        if chance.random() < 0.2:
            schedule.requeue(task)
        else:
            done.append(task)
            ended(schedule, task)
    assert sorted(ids(done)) == sorted(plan.runs)
    assert schedule.take() is None
    assert schedule.status == dict.fromkeys(plan.runs, "finished")


def test_the_deepest_goes_first() -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=2, levels=3)
    schedule = Scheduler(plan, Store(Path("/nowhere")))
    levels = []
    while (task := schedule.take()) is not None:
        levels.append(task.run.level)
        ended(schedule, task)
    assert levels == [0, 1, 2, 3, 1, 2, 3] * 2


def test_a_task_says_which_points_will_be_read(folder: Path) -> None:
    plan = small_plan({"criterion": "snip", "rewind_to": 5}, levels=2)
    schedule = Scheduler(plan, Store(folder))
    points = []
    while (task := schedule.take()) is not None:
        points.append(task.snapshots)
        ended(schedule, task)
    assert points == [{"end", "gradient", 5}, {"end", "gradient"}, set()]


@pytest.mark.parametrize("status", ["diverged", "certificate_failed"])
def test_descendants_of_what_ended_badly_are_impossible(folder: Path, status: TaskStatus) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    schedule = Scheduler(plan, Store(folder))
    bad = next(run for run in plan.runs.values() if run.step and run.level == 1 and run.step.criterion == "random")
    seen = []
    while (task := schedule.take()) is not None:
        seen.append(task.run)
        ended(schedule, task, status if task.run == bad else "finished")
    assert schedule.tasks_left == 0 and not schedule.to_do()
    assert len(seen) == 1 + 3 + 1
    by_criterion = {
        (run.step.criterion, run.level): schedule.status[run.id] for run in plan.runs.values() if run.step is not None
    }
    assert by_criterion == {
        **{("large_final", level): "finished" for level in (1, 2, 3)},
        ("random", 1): status,
        ("random", 2): "ancestor_diverged",
        ("random", 3): "ancestor_diverged",
    }


def test_a_dense_run_that_diverges_ends_its_seed_alone(folder: Path) -> None:
    plan = small_plan(TWO_SCHEDULES, seeds=2, levels=3)
    schedule = Scheduler(plan, Store(folder))
    while (task := schedule.take()) is not None:
        ended(schedule, task, "diverged" if (task.run.level, task.run.seed) == (0, 1) else "finished")
    for run in plan.runs.values():
        expected = "finished" if run.seed == 0 else "diverged" if run.level == 0 else "ancestor_diverged"
        assert schedule.status[run.id] == expected


# ------------------------------------------------------------------------------------------------------------- resuming


def test_what_is_in_the_store_is_not_done_again(folder: Path) -> None:
    small, large = small_plan(levels=2), small_plan(TWO_SCHEDULES, levels=3)
    first, second = carry_out(small, folder), carry_out(large, folder)
    assert sorted(first.trained + second.trained) == sorted(large.runs)
    assert not second.retraced
    assert carry_out(large, folder).ended == []


def test_a_bad_end_in_the_store_is_remembered(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    store = carry_out(plan, folder).schedule.store
    bad = next(run for run in plan.runs.values() if run.step and run.level == 1 and run.step.criterion == "random")
    entry = store.read(bad.id)
    for run in plan.runs.values():
        if run.level >= bad.level and run.step and run.step.criterion == "random":
            store.quarantine(run.id, "a test")
    store.commit(bad.id, {**entry.facts, "status": "diverged"}, entry.tensors, {})
    schedule = Scheduler(plan, store)
    assert schedule.tasks_left == 0
    assert sorted(schedule.status.values()) == ["ancestor_diverged"] * 2 + ["diverged"] + ["finished"] * 4


def test_damaged_facts_are_set_aside_said_and_done_again(folder: Path) -> None:
    plan = small_plan(levels=2)
    store = carry_out(plan, folder).schedule.store
    expected = contents(store)
    _, first, last = plan.runs
    path = store.root / "runs" / first[:2] / first / "run.json"
    path.write_bytes(path.read_bytes()[:-20])
    carried = carry_out(plan, folder)
    assert carried.trained == [first]
    assert len(carried.schedule.damaged) == 1 and first in carried.schedule.damaged[0]
    assert contents(store) == expected
    assert [path.name.partition(".")[0] for path in (folder / "quarantine").iterdir()] == [first]
    assert carried.schedule.status == dict.fromkeys((*plan.runs,), "finished") and last in expected


# ------------------------------------------------------------------------------------------------------------- dropping


MIXED = (
    {"name": "plain"},
    {"name": "frozen", "mask0": "freeze_final"},
    {"name": "late", "rewind_to": 5},
    {"name": "late and frozen", "rewind_to": 5, "mask0": "zero_if_shrunk", "w_final": 9},
    {"name": "tuned", "rewind_to": "end", "learning_rate_rewinding": False},
    {"name": "snip", "criterion": "snip"},
    {"name": "best", "w_final": "lowest_validation_loss", "schedule": "one_shot"},
)


def there(store: Store) -> set[str]:
    """Everything that can be dropped and is there."""
    return store.snapshot_keys() | {f"{run_id}-end" for run_id in store.run_ids() if store.has_weights(run_id)}


def read_later(plan: Plan, to_do: set[str]) -> set[str]:
    """The slow way: whatever is opened, from now on, to make the starts of the runs to do."""
    opened: set[str] = set()

    def open_for_start(run: Run) -> None:
        if run.parent is not None and run.step is not None:
            opened.update(f"{run.parent}-{snapshot_name(point)}" for point in run.step.initial_state_snapshots)
            open_for_start(plan.runs[run.parent])

    for run_id in to_do:
        run = plan.runs[run_id]
        if run.parent is not None and run.step is not None:
            opened.update(f"{run.parent}-{snapshot_name(point)}" for point in run.step.required_snapshots)
            open_for_start(plan.runs[run.parent])
    return opened


@pytest.mark.parametrize("keep", get_args(KeepPolicy))
def test_what_is_dropped_when(folder: Path, keep: KeepPolicy) -> None:
    """After every single task: all that will still be read is there; and nothing else, as far as `keep` says."""
    plan = small_plan(*MIXED, levels=3)
    checked = 0

    def check(schedule: Scheduler, task: Task) -> None:
        nonlocal checked
        checked += 1
        done = schedule.store.run_ids()
        will_be_read = {key for key in read_later(plan, plan.runs.keys() - done) if key[:32] in done}
        kept = {key for run in plan.runs.values() for key in kept_for_good(plan, run, keep)}
        assert there(schedule.store) >= will_be_read
        if keep == "all":
            assert there(schedule.store) >= {f"{run_id}-end" for run_id in done}
        else:
            assert there(schedule.store) <= will_be_read | kept

    carried = carry_out(plan, folder, keep=keep, before=check)
    assert checked == len(plan.runs) and not carried.retraced
    assert {*carried.schedule.status.values()} == {"finished"}
    if keep == "masks":
        assert there(carried.schedule.store) == set()
    assert not leftovers(folder)


def kept_for_good(plan: Plan, run: Run, keep: KeepPolicy) -> set[str]:
    """What `needed` never drops."""
    children = plan.children[run.id]
    if keep != "needed":
        return set()
    if run.level == 0 or not children:
        points = {"end"} | {snapshot_name(p) for child in children if child.step for p in child.step.required_snapshots}
    else:
        points = {snapshot_name(p) for child in children if child.step for p in child.step.initial_state_snapshots}
    return {f"{run.id}-{point}" for point in points}


def test_needed_keeps_the_dense_run_and_the_last_levels(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    carry_out(plan, folder, keep="needed")
    assert there(Store(folder)) == {f"{run.id}-end" for run in plan.runs.values() if run.level in (0, 3)}


def test_dropping_leaves_everything_else(folder: Path) -> None:
    plan = small_plan(*MIXED, levels=2)
    carry_out(plan, folder / "all", keep="all")
    carry_out(plan, folder / "masks", keep="masks")
    assert contents(folder / "masks") == contents(folder / "all")
    assert facts(folder / "masks", plan) == facts(folder / "all", plan)


def test_a_finished_study_is_dropped_from_when_asked_later(folder: Path) -> None:
    plan = small_plan(*MIXED, levels=2)
    carry_out(plan, folder, keep="all")
    assert carry_out(plan, folder, keep="masks").ended == []
    assert there(Store(folder)) == set()


def test_nothing_is_dropped_of_a_run_that_somebody_waits_for(folder: Path) -> None:
    """A finished run of an earlier study, whose child is new."""
    carry_out(small_plan(levels=2), folder)
    plan = small_plan({"name": "a"}, {"name": "b", "mask1": "reinit"}, levels=2)
    schedule = Scheduler(plan, Store(folder))
    dense = next(iter(plan.runs))
    assert {run.id for run, _ in schedule.droppable("masks")} == Store(folder).run_ids() - {dense}


# ------------------------------------------------------------------------------------------------------- traced again


BIGGER: dict[str, tuple[tuple[dict[str, Any], ...], int]] = {
    "more levels": (MIXED, 4),
    "another treatment": ((*MIXED, {"name": "new", "mask1": "reshuffle"}), 2),
    "another point": ((*MIXED, {"name": "new", "rewind_to": 7, "w_final": 9}), 2),
    "a gradient": (({"name": "plain"}, {"name": "new", "criterion": "grad", "rewind_to": "end"}), 3),
}


@pytest.mark.parametrize("keep", get_args(KeepPolicy))
@pytest.mark.parametrize("how", BIGGER)
def test_a_study_extended_later_gives_the_bits_of_a_fresh_store(folder: Path, how: str, keep: KeepPolicy) -> None:
    treatments, levels = BIGGER[how]
    small, bigger = small_plan(*MIXED, levels=2), small_plan(*treatments, levels=levels)
    fresh = carry_out(bigger, folder / "fresh")
    first = carry_out(small, folder / "extended", keep=keep)
    second = carry_out(bigger, folder / "extended", keep=keep)
    expected = contents(folder / "fresh")
    found = contents(folder / "extended")
    assert {run_id: found[run_id] for run_id in bigger.runs} == expected
    assert facts(folder / "extended", bigger) == facts(folder / "fresh", bigger)
    assert sorted(first.trained + second.trained) == sorted(small.runs.keys() | bigger.runs.keys())
    assert second.retraced.keys() <= small.runs.keys()
    assert {*fresh.schedule.status.values()} == {*second.schedule.status.values()} == {"finished"}
    assert not leftovers(folder / "extended")


@pytest.mark.parametrize(("keep", "expected"), [("all", 0), ("needed", 0), ("masks", 1)])
def test_more_levels_are_traced_again_only_after_keeping_nothing_but_masks(
    folder: Path, keep: KeepPolicy, expected: int
) -> None:
    treatment = {"mask0": "freeze_final"}
    carry_out(small_plan(treatment, levels=2), folder, keep=keep)
    retraced = carry_out(small_plan(treatment, levels=4), folder, keep=keep).retraced
    assert len(retraced) == 3 * expected  # frozen values are made of every ancestor's w_f


def test_only_what_is_read_is_traced_again(folder: Path) -> None:
    """Of a chain of rewound starts only the last weights are missing; masks say the rest."""
    carry_out(small_plan(levels=4), folder, keep="masks")
    plan = small_plan(levels=5)
    carried = carry_out(plan, folder)
    *_, last, new = plan.runs
    assert carried.retraced == {last: {"end"}}
    assert carried.trained == [new]


def test_points_that_another_study_wants_are_traced_again(folder: Path) -> None:
    carry_out(small_plan(levels=2), folder)
    new = {
        "criterion": "snip",
        "w_init": 3,
        "w_final": "lowest_validation_loss",
        "rewind_to": 7,
        "schedule": "one_shot",
    }
    plan = small_plan(new, levels=2)
    dense = next(iter(plan.runs))
    carried = carry_out(plan, folder)
    assert carried.retraced == {dense: {3, 7, "gradient", "lowest_validation_loss"}}
    carry_out(plan, folder / "fresh")
    for point in ("iteration_3", "iteration_7", "gradient", "lowest_validation_loss"):
        one, other = (Store(at).read_snapshot(dense, point).tensors for at in (folder, folder / "fresh"))
        assert {name: a.tobytes() for name, a in one.items()} == {name: a.tobytes() for name, a in other.items()}
    assert {*carried.schedule.status.values()} == {"finished"}


def test_a_dropped_ancestor_is_traced_before_its_descendants(folder: Path) -> None:
    plan = small_plan({"mask0": "freeze_final"}, levels=3)
    store = carry_out(plan, folder).schedule.store
    *above, last = plan.runs
    for run_id in above:
        store.drop_weights(run_id)
    store.quarantine(last, "a test")
    schedule = Scheduler(plan, store)
    assert schedule.tasks_left == 4
    order = []
    while (task := schedule.take()) is not None:
        order.append((task.run.level, task.replay))
        ended(schedule, task)
    assert order == [(0, True), (1, True), (2, True), (3, False)]
