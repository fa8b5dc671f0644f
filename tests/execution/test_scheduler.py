"""The scheduler: order of tasks, dropping of weights, and replays of dropped snapshots."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from helpers.faulty_disk import quick_folder
from helpers.small_studies import TrainedStore, contents, facts, leftovers, small_plan, train_plan

from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import Task, TaskResult, TaskStatus, stack_key
from supermask.store import Store
from supermask.store.records import snapshot_name
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan
from supermask.study.run import Run

TWO_SCHEDULES = {"criterion": ["large_final", "random"], "schedule": ["iterative", "one_shot"]}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def finish(scheduler: Scheduler, task: Task, status: TaskStatus = "finished") -> None:
    """Record a result without any training."""
    scheduler.finish(task, TaskResult(task.run.id, status, attempts=task.attempt))


def ids(tasks: Iterable[Task]) -> list[str]:
    return [task.run.id for task in tasks]


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("study", "recipes", "stacks"), [("learned-supermasks", 11, 6), ("supermask-questions", 5, 2)])
def test_learned_masks_that_differ_in_rates_and_initial_values_share_a_stack(
    study: str, recipes: int, stacks: int
) -> None:
    runs = [run for run in make_plan(load_study(study, ["scale=paper"])).runs.values() if run.learning]
    assert len({(run.recipe, run.learning) for run in runs}) == recipes
    assert len({stack_key(Task(run)) for run in runs}) == stacks


@pytest.mark.parametrize("seed", range(10))
def test_every_run_is_taken_once_and_after_its_parent(folder: Path, seed: int) -> None:
    """With any number of workers, whose tasks end in any order."""
    rng = np.random.default_rng(seed)
    plan = small_plan(TWO_SCHEDULES, seeds=2, levels=4)
    scheduler = Scheduler(plan, Store(folder))
    workers = rng.integers(1, 10)
    in_flight: list[Task] = []
    finished_tasks: list[Task] = []
    while scheduler.tasks_left:
        while len(in_flight) < workers and (task := scheduler.take()) is not None:
            assert task.run.parent is None or task.run.parent in ids(finished_tasks)
            assert not task.replay
            in_flight.append(task)
        assert in_flight
        task = in_flight.pop(rng.integers(len(in_flight)))
        if rng.random() < 0.2:
            scheduler.requeue(task)
        else:
            finished_tasks.append(task)
            finish(scheduler, task)
    assert sorted(ids(finished_tasks)) == sorted(plan.runs)
    assert scheduler.take() is None
    assert scheduler.status == dict.fromkeys(plan.runs, "finished")


def test_the_deepest_level_goes_first() -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=2, levels=3)
    scheduler = Scheduler(plan, Store(Path("/nowhere")))
    levels = []
    while (task := scheduler.take()) is not None:
        levels.append(task.run.level)
        finish(scheduler, task)
    assert levels == [0, 1, 2, 3, 1, 2, 3] * 2


def test_a_task_lists_the_snapshots_that_will_be_read(folder: Path) -> None:
    plan = small_plan({"criterion": "snip", "rewind_to": 5}, levels=2)
    scheduler = Scheduler(plan, Store(folder))
    snapshots = []
    while (task := scheduler.take()) is not None:
        snapshots.append(task.snapshots)
        finish(scheduler, task)
    assert snapshots == [{"end", "gradient", 5}, {"end", "gradient"}, set()]


def test_a_run_that_is_trained_again_does_not_take_what_its_first_worker_has(tmp_path: Path) -> None:
    """The first worker still trains the other chains of its stack, and the tasks below the run are its own."""
    scheduler = Scheduler(small_plan(levels=3), Store(tmp_path))
    head = scheduler.take()
    assert head is not None
    chain = scheduler.take_chain(head)
    finish(scheduler, chain[0])
    finish(scheduler, chain[1], "certificate_failed")
    again = scheduler.take()
    assert again is not None and again.run is chain[1].run
    assert scheduler.take_chain(again) == [again]
    scheduler.release(chain)
    finish(scheduler, again)
    scheduler.release([again])
    assert (scheduler.take(), scheduler.take()) == (chain[2], None)


@pytest.mark.parametrize("status", ["diverged", "certificate_failed"])
def test_descendants_of_a_failed_run_are_cancelled(folder: Path, status: TaskStatus) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    scheduler = Scheduler(plan, Store(folder))
    failed_run = next(
        run for run in plan.runs.values() if run.step and run.level == 1 and run.step.criterion == "random"
    )
    taken_runs = []
    while (task := scheduler.take()) is not None:
        taken_runs.append(task.run)
        finish(scheduler, task, status if task.run == failed_run else "finished")
    assert scheduler.tasks_left == 0 and not scheduler.to_do()
    # A refused run is trained twice.
    assert len(taken_runs) == 1 + 3 + (2 if status == "certificate_failed" else 1)
    by_criterion = {
        (run.step.criterion, run.level): scheduler.status[run.id] for run in plan.runs.values() if run.step is not None
    }
    assert by_criterion == {
        **{("large_final", level): "finished" for level in (1, 2, 3)},
        ("random", 1): status,
        ("random", 2): f"ancestor_{status}",
        ("random", 3): f"ancestor_{status}",
    }


def test_a_diverged_dense_run_cancels_its_own_seed_only(folder: Path) -> None:
    plan = small_plan(TWO_SCHEDULES, seeds=2, levels=3)
    scheduler = Scheduler(plan, Store(folder))
    while (task := scheduler.take()) is not None:
        finish(scheduler, task, "diverged" if (task.run.level, task.run.seed) == (0, 1) else "finished")
    for run in plan.runs.values():
        expected = "finished" if run.seed == 0 else "diverged" if run.level == 0 else "ancestor_diverged"
        assert scheduler.status[run.id] == expected


# ------------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.slow
def test_stored_runs_are_not_trained_again(folder: Path) -> None:
    small, large = small_plan(levels=2), small_plan(TWO_SCHEDULES, levels=3)
    first, second = train_plan(small, folder), train_plan(large, folder)
    assert sorted(first.trained + second.trained) == sorted(large.runs)
    assert not second.replayed
    assert train_plan(large, folder).ended == []


def test_a_stored_failure_is_not_trained_again(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    store = train_plan(plan, folder).schedule.store
    failed_run = next(
        run for run in plan.runs.values() if run.step and run.level == 1 and run.step.criterion == "random"
    )
    entry = store.read(failed_run.id)
    for run in plan.runs.values():
        if run.level >= failed_run.level and run.step and run.step.criterion == "random":
            store.quarantine(run.id, "a test")
    store.commit(failed_run.id, {**entry.facts, "status": "diverged"}, entry.tensors, {})
    scheduler = Scheduler(plan, store)
    assert scheduler.tasks_left == 0
    assert sorted(scheduler.status.values()) == ["ancestor_diverged"] * 2 + ["diverged"] + ["finished"] * 4


def test_damaged_facts_are_set_aside_reported_and_recomputed(folder: Path) -> None:
    plan = small_plan(levels=2)
    store = train_plan(plan, folder).schedule.store
    expected = contents(store)
    _, first, last = plan.runs
    path = store.root / "runs" / first[:2] / first / "run.json"
    path.write_bytes(path.read_bytes()[:-20])
    plan_run = train_plan(plan, folder)
    assert plan_run.trained == [first]
    assert len(plan_run.schedule.damaged) == 1 and first in plan_run.schedule.damaged[0]
    assert contents(store) == expected
    assert [path.name.partition(".")[0] for path in (folder / "quarantine").iterdir()] == [first]
    assert plan_run.schedule.status == dict.fromkeys((*plan.runs,), "finished") and last in expected


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


def droppable_keys(store: Store) -> set[str]:
    """Return the keys of all stored snapshots and final weights."""
    return store.snapshot_keys() | {f"{run_id}-end" for run_id in store.run_ids() if store.has_weights(run_id)}


def keys_read_later(plan: Plan, to_do: set[str]) -> set[str]:
    """Return the keys that the initial states of the runs to do are made of, by the slow way: walk up every chain."""
    opened_keys: set[str] = set()

    def open_for_start(run: Run) -> None:
        if run.parent is not None and run.step is not None:
            opened_keys.update(f"{run.parent}-{snapshot_name(point)}" for point in run.step.initial_state_snapshots)
            open_for_start(plan.runs[run.parent])

    for run_id in to_do:
        run = plan.runs[run_id]
        if run.parent is not None and run.step is not None:
            opened_keys.update(f"{run.parent}-{snapshot_name(point)}" for point in run.step.required_snapshots)
            open_for_start(plan.runs[run.parent])
    return opened_keys


@pytest.mark.slow
@pytest.mark.parametrize("keep", get_args(KeepPolicy))
def test_exactly_the_unneeded_weights_are_dropped(folder: Path, keep: KeepPolicy) -> None:
    """After every task the store has everything that will be read, and nothing else that `keep` does not keep."""
    plan = small_plan(*MIXED, levels=3)
    checked = 0

    def check(scheduler: Scheduler, task: Task) -> None:
        nonlocal checked
        checked += 1
        finished_tasks = scheduler.store.run_ids()
        will_be_read = {
            key for key in keys_read_later(plan, plan.runs.keys() - finished_tasks) if key[:32] in finished_tasks
        }
        kept = {key for run in plan.runs.values() for key in keys_kept_by_needed(plan, run, keep)}
        assert droppable_keys(scheduler.store) >= will_be_read
        if keep == "all":
            assert droppable_keys(scheduler.store) >= {f"{run_id}-end" for run_id in finished_tasks}
        else:
            assert droppable_keys(scheduler.store) <= will_be_read | kept

    plan_run = train_plan(plan, folder, keep=keep, before=check)
    assert checked == len(plan.runs) and not plan_run.replayed
    assert {*plan_run.schedule.status.values()} == {"finished"}
    if keep == "masks":
        assert droppable_keys(plan_run.schedule.store) == set()
    assert not leftovers(folder)


def keys_kept_by_needed(plan: Plan, run: Run, keep: KeepPolicy) -> set[str]:
    """Return the keys that `needed` never drops."""
    children = plan.children[run.id]
    if keep != "needed":
        return set()
    if run.level == 0 or not children:
        snapshots = {"end"} | {
            snapshot_name(p) for child in children if child.step for p in child.step.required_snapshots
        }
    else:
        snapshots = {snapshot_name(p) for child in children if child.step for p in child.step.initial_state_snapshots}
    return {f"{run.id}-{point}" for point in snapshots}


def test_needed_keeps_the_dense_run_and_the_last_levels(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    train_plan(plan, folder, keep="needed")
    assert droppable_keys(Store(folder)) == {f"{run.id}-end" for run in plan.runs.values() if run.level in (0, 3)}


@pytest.mark.slow
def test_dropping_changes_nothing_else(trained: TrainedStore) -> None:
    plan = small_plan(*MIXED, levels=2)
    everything, masks = trained(plan), trained(plan, "masks")
    assert contents(masks) == contents(everything)
    assert facts(masks, plan) == facts(everything, plan)


def test_weights_of_a_finished_study_can_be_dropped_later(folder: Path, trained: TrainedStore) -> None:
    plan = small_plan(*MIXED, levels=2)
    store = folder / "store"
    shutil.copytree(trained(plan), store)
    assert train_plan(plan, store, keep="masks").ended == []
    assert droppable_keys(Store(store)) == set()


def test_nothing_is_dropped_that_a_pending_run_reads(folder: Path) -> None:
    """The run is finished and belongs to an earlier study; its child is new."""
    train_plan(small_plan(levels=2), folder)
    plan = small_plan({"name": "a"}, {"name": "b", "mask1": "reinit"}, levels=2)
    scheduler = Scheduler(plan, Store(folder))
    dense = next(iter(plan.runs))
    assert {run.id for run, _ in scheduler.unneeded_snapshots("masks")} == Store(folder).run_ids() - {dense}


# ------------------------------------------------------------------------------------------------------------- replays


BIGGER: dict[str, tuple[tuple[dict[str, Any], ...], int]] = {
    "more levels": (MIXED, 3),
    "another treatment": ((*MIXED, {"name": "new", "mask1": "reshuffle"}), 2),
    "another point": ((*MIXED, {"name": "new", "rewind_to": 7, "w_final": 9}), 2),
    "a gradient": (({"name": "plain"}, {"name": "new", "criterion": "grad", "rewind_to": "end"}), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("keep", get_args(KeepPolicy))
@pytest.mark.parametrize("extension", BIGGER)
def test_an_extended_study_is_bit_identical_to_a_fresh_one(
    folder: Path, trained: TrainedStore, extension: str, keep: KeepPolicy
) -> None:
    treatments, levels = BIGGER[extension]
    small, bigger = small_plan(*MIXED, levels=2), small_plan(*treatments, levels=levels)
    fresh = trained(bigger)
    shutil.copytree(trained(small, keep), folder / "extended")
    second = train_plan(bigger, folder / "extended", keep=keep)
    extended_contents = contents(folder / "extended")
    assert {run_id: extended_contents[run_id] for run_id in bigger.runs} == contents(fresh)
    assert facts(folder / "extended", bigger) == facts(fresh, bigger)
    assert sorted(second.trained) == sorted(bigger.runs.keys() - small.runs.keys())
    assert second.replayed.keys() <= small.runs.keys()
    assert {*second.schedule.status.values()} == {"finished"}
    assert not leftovers(folder / "extended")


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "expected"), [("all", 0), ("needed", 0), ("masks", 1)])
def test_more_levels_need_replays_only_after_keeping_masks(folder: Path, keep: KeepPolicy, expected: int) -> None:
    treatment = {"mask0": "freeze_final"}
    train_plan(small_plan(treatment, levels=2), folder, keep=keep)
    replayed = train_plan(small_plan(treatment, levels=4), folder, keep=keep).replayed
    assert len(replayed) == 3 * expected  # Frozen values are made of the final weights of every ancestor.


def test_only_snapshots_that_are_read_are_replayed(folder: Path) -> None:
    """In a chain that rewinds, only the last weights are missing: the other starts follow from the masks."""
    train_plan(small_plan(levels=4), folder, keep="masks")
    plan = small_plan(levels=5)
    plan_run = train_plan(plan, folder)
    *_, last, new = plan.runs
    assert plan_run.replayed == {last: {"end"}}
    assert plan_run.trained == [new]


def test_snapshots_for_another_study_are_replayed(folder: Path) -> None:
    train_plan(small_plan(levels=2), folder)
    new = {
        "criterion": "snip",
        "w_init": 3,
        "w_final": "lowest_validation_loss",
        "rewind_to": 7,
        "schedule": "one_shot",
    }
    plan = small_plan(new, levels=2)
    dense = next(iter(plan.runs))
    plan_run = train_plan(plan, folder)
    assert plan_run.replayed == {dense: {3, 7, "gradient", "lowest_validation_loss"}}
    train_plan(plan, folder / "fresh")
    for point in ("iteration_3", "iteration_7", "gradient", "lowest_validation_loss"):
        replayed, fresh = (Store(at).read_snapshot(dense, point).tensors for at in (folder, folder / "fresh"))
        assert {name: a.tobytes() for name, a in replayed.items()} == {name: a.tobytes() for name, a in fresh.items()}
    assert {*plan_run.schedule.status.values()} == {"finished"}


def test_a_dropped_ancestor_is_replayed_before_its_descendants(folder: Path) -> None:
    plan = small_plan({"mask0": "freeze_final"}, levels=3)
    store = train_plan(plan, folder).schedule.store
    *above, last = plan.runs
    for run_id in above:
        store.drop_weights(run_id)
    store.quarantine(last, "a test")
    scheduler = Scheduler(plan, store)
    assert scheduler.tasks_left == 4
    order = []
    while (task := scheduler.take()) is not None:
        order.append((task.run.level, task.replay))
        finish(scheduler, task)
    assert order == [(0, True), (1, True), (2, True), (3, False)]
