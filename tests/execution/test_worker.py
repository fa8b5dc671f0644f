"""worker: one task, from start to commit; in this process, with a real store."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faulty_disk import quick_folder
from helpers.small_studies import Carried, carry_out, contents, facts, leftovers, small_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.core.recipe import Recipe
from supermask.core.types import SplitData, TrainingResult
from supermask.datasets import load
from supermask.engines import reference
from supermask.engines.job import BatchSampler, TrainingJob
from supermask.execution.checkpoints import StoreCheckpointer, TaskInterrupted
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.execution.worker import PreparedTask, ShouldStop, Worker, get_worker
from supermask.networks.sequential import initial_state
from supermask.store import Store
from supermask.store.files.disk import Disk
from supermask.store.files.entry import CorruptEntry
from supermask.study.plan import Plan

WILD = Recipe("sgd", 1e30, 60, 12, 4)

TREATMENTS = (
    {"criterion": ["large_final", "random"]},
    {"name": "late", "rewind_to": 5, "mask0": "freeze_final", "criterion": "snip"},
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def statuses(carried: Carried, plan: Plan) -> list[str]:
    return [carried.schedule.status[run_id] for run_id in plan.runs]


# ----------------------------------------------------------------------------------------- nothing but the run counts


@pytest.mark.parametrize("seed", range(3))
def test_results_depend_neither_on_the_worker_nor_on_the_order(folder: Path, seed: int) -> None:
    """Three workers, whose memories differ, in a random order; against one worker in the planned order."""
    plan = small_plan(*TREATMENTS, seeds=2, levels=3)
    carry_out(plan, folder / "one")
    chance = np.random.default_rng(seed)
    workers = [Worker(WorkerConfig(folder / "three")) for _ in range(3)]
    schedule = Scheduler(plan, workers[0].store)
    ready: list[Task] = []
    while schedule.tasks_left:
        while (task := schedule.take()) is not None:
            ready.append(task)
        task = ready.pop(chance.integers(len(ready)))
        schedule.finish(task, workers[chance.integers(3)].run_task(task))
    assert contents(folder / "three") == contents(folder / "one")
    assert facts(folder / "three", plan) == facts(folder / "one", plan)


def test_facts_say_how_a_run_came_to_be(folder: Path) -> None:
    plan = small_plan(levels=1)
    carried = carry_out(plan, folder)
    for task, result in carried.ended:
        stored = Store(folder).facts(task.run.id)
        assert result == TaskResult(task.run.id, "finished", stored["seconds"], stored["metrics"])
        assert stored["data"] == {"fingerprint": load("digits").fingerprint, "note": ""}
        assert stored["environment"]["threads"] == 1 and stored["engine"] == "reference"
        assert stored["certificate"]["held"] and 0 < stored["seconds"] < 60
        assert result.metrics["final_test_accuracy"] > 0


def test_a_process_has_one_worker_a_site(folder: Path) -> None:
    site = WorkerConfig(folder)
    assert get_worker(site) is get_worker(WorkerConfig(folder))
    assert get_worker(replace(site, store=folder / "other")) is not get_worker(site)


def test_a_second_commit_of_a_run_is_harmless(folder: Path) -> None:
    """Two processes train the same runs at the same time."""
    plan = small_plan(*TREATMENTS, levels=2)
    carry_out(plan, folder)
    expected, before = contents(folder), facts(folder, plan)

    class Late(Worker):
        def _found(self, task: Task) -> None:
            """The other one has not committed yet when this one looks."""

    other = Late(WorkerConfig(folder))
    everything = Scheduler(plan, Store(folder / "empty"))
    results = []
    while (task := everything.take()) is not None:
        results.append(other.run_task(task))
        everything.finish(task, results[-1])
    assert {result.status for result in results} == {"finished"}
    assert (contents(folder), facts(folder, plan)) == (expected, before)
    assert not leftovers(folder)


def test_what_another_process_has_finished_meanwhile_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(*TREATMENTS, levels=2)
    schedule = Scheduler(plan, Store(folder))
    carried = carry_out(plan, folder)
    monkeypatch.setattr(reference, "train", None)
    worker = Worker(WorkerConfig(folder))
    results = []
    while (task := schedule.take()) is not None:
        results.append(worker.run_task(task))
        schedule.finish(task, results[-1])
    assert results == [result for _, result in carried.ended]


def test_a_run_that_another_study_finished_without_a_point_is_trained_for_it(folder: Path) -> None:
    plain, late = small_plan(levels=1), small_plan({"rewind_to": 5}, levels=1)
    schedule = Scheduler(late, Store(folder))
    carry_out(plain, folder)
    expected = contents(folder)
    worker = Worker(WorkerConfig(folder))
    while (task := schedule.take()) is not None:
        schedule.finish(task, worker.run_task(task))
    assert {*schedule.status.values()} == {"finished"}
    assert expected.items() <= contents(folder).items()


# ------------------------------------------------------------------------------------------- runs that are no results


def test_a_diverged_run_ends_its_own_chain_alone(folder: Path) -> None:
    """Fine-tuning at a learning rate that only it has; the other treatment never gets to it."""
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    criterion = {run.id: run.step.criterion if run.step else "" for run in plan.runs.values()}

    class Diverging(Worker):
        def begin(self, task: Task, stopping: ShouldStop) -> PreparedTask | TaskResult:
            begun = super().prepare(task, stopping)
            if isinstance(begun, PreparedTask) and criterion[task.run.id] == "random" and task.run.level == 2:
                return replace(begun, job=replace(begun.job, recipe=WILD))
            return begun

    carried = carry_out(plan, folder, worker=Diverging(WorkerConfig(folder)))
    found = {(criterion[run_id], plan.runs[run_id].level): carried.schedule.status[run_id] for run_id in plan.runs}
    assert found.pop(("random", 2)) == "diverged"
    assert found.pop(("random", 3)) == "ancestor_diverged"
    assert {*found.values()} == {"finished"}
    (result,) = (result for _, result in carried.ended if result.status == "diverged")
    assert result.metrics["diverged_at"] >= 1 and result.metrics["final_test_accuracy"] is None
    assert result.message == ""
    stored = Store(folder).read(result.run_id)
    assert stored.weights == {} and stored.facts["metrics"] == result.metrics
    assert carry_out(plan, folder).ended == []


def test_a_study_whose_learning_rate_is_far_too_high_ends(folder: Path) -> None:
    plan = small_plan(levels=2, lr=1e30, optimizer="sgd", seeds=2)
    carried = carry_out(plan, folder)
    assert statuses(carried, plan) == ["diverged", "ancestor_diverged", "ancestor_diverged"] * 2


def test_a_run_whose_certificate_fails_is_no_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not hold the masks."""
    train = reference.train

    def forgetful(jobs: Sequence[TrainingJob], data: Sequence[SplitData], device: str = "cpu") -> list[TrainingResult]:
        (job,) = jobs
        dense = {name: torch.ones_like(mask) for name, mask in job.start.masks.items()}
        return train([replace(job, start=replace(job.start, masks=dense))], data, device)

    monkeypatch.setattr(reference, "train", forgetful)
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)
    carried = carry_out(plan, folder)
    assert statuses(carried, plan) == ["finished", *["certificate_failed", "ancestor_diverged"] * 2]
    for _, result in carried.ended[1:]:
        assert "certificate refused" in result.message and "frozen_is_frozen" in result.message
        stored = Store(folder).facts(result.run_id)
        assert stored["status"] == "certificate_failed" and not stored["certificate"]["held"]
    monkeypatch.undo()
    assert carry_out(plan, folder).ended == []


# -------------------------------------------------------------------------------------------------- what it starts from


def test_other_data_than_the_parents_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(small_plan(levels=1), folder)
    digits = load("digits")
    other = replace(digits, train_labels=digits.train_labels[::-1].copy(), fingerprint="f" * 64)
    monkeypatch.setattr("supermask.execution.resources.load", lambda name, data_dir: other)
    with pytest.raises(UserError, match=f"other data .{digits.fingerprint[:12]}. than is there now .ffffffffffff"):
        carry_out(small_plan(levels=2), folder)
    with pytest.raises(UserError, match="other data"):
        carry_out(small_plan({"rewind_to": 5}, levels=1), folder)  # the dense run is traced again
    assert len(Store(folder).run_ids()) == 2


def flip(folder: Path, key: str, name: str = "weights.safetensors") -> None:
    """Damages one bit of an entry."""
    path = folder / ("points" if "-" in key else "runs") / key[:2] / key / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", ["weights.safetensors", "tensors.safetensors", "run.json"])
def test_a_damaged_ancestor_is_set_aside_and_computed_again(folder: Path, level: int, name: str) -> None:
    """When its bits are read to make a start; the study then gives the same bits as without damage."""
    small, plan = small_plan({"mask0": "freeze_final"}, levels=2), small_plan({"mask0": "freeze_final"}, levels=3)
    carry_out(plan, folder / "whole")
    carry_out(small, folder / "damaged")
    damaged = list(plan.runs)[level]
    flip(folder / "damaged", damaged, name)
    carried = carry_out(plan, folder / "damaged")
    assert sorted(carried.trained) == sorted([damaged, list(plan.runs)[3]])
    (said,) = carried.schedule.damaged
    assert damaged in said and "set aside" in said
    assert contents(folder / "damaged") == contents(folder / "whole")
    assert [path.name[:32] for path in (folder / "damaged" / "quarantine").iterdir()] == [damaged]
    assert {*carried.schedule.status.values()} == {"finished"}


def test_a_damaged_point_is_set_aside_and_traced_again(folder: Path) -> None:
    late = {"rewind_to": 5}
    plan = small_plan(late, levels=2)
    carry_out(plan, folder / "whole")
    carry_out(small_plan(late, levels=1), folder / "damaged")
    dense = next(iter(plan.runs))
    flip(folder / "damaged", f"{dense}-iteration_5", "tensors.safetensors")
    carried = carry_out(plan, folder / "damaged")
    assert carried.retraced == {dense: {5}}
    assert contents(folder / "damaged") == contents(folder / "whole")


def test_what_another_study_drops_meanwhile_is_traced_again(folder: Path) -> None:
    plan = small_plan({"rewind_to": 5}, levels=3)
    carry_out(plan, folder / "whole")

    def drop_all(schedule: Scheduler, task: Task) -> None:
        if dropping and task.run.level == 2:
            dropping.pop()
            for run_id in schedule.store.run_ids():
                schedule.store.drop_weights(run_id)
                schedule.store.drop_snapshot(run_id, "iteration_5")
            worker.lineage = type(worker.lineage)(worker.store)

    dropping = [True]
    worker = Worker(WorkerConfig(folder / "dropped"))
    carried = carry_out(plan, folder / "dropped", worker=worker, before=drop_all)
    dense, first, *_ = plan.runs
    assert carried.retraced == {dense: {5}, first: {"end"}}
    (said,) = carried.schedule.damaged
    assert "is not in the store any more" in said
    assert contents(folder / "dropped") == contents(folder / "whole")
    assert not (folder / "dropped" / "quarantine").exists()


def test_a_trace_that_comes_to_other_bits_is_refused(folder: Path) -> None:
    """As on another machine: the point would not lie on the stored run's trajectory."""
    plan = small_plan(levels=1)
    store = carry_out(plan, folder).schedule.store
    dense = next(iter(plan.runs))
    entry = store.read(dense)
    assert entry.weights is not None
    store.quarantine(dense, "a test")
    other = {name: np.nextafter(values, np.float32(9)) for name, values in entry.weights.items()}
    store.commit(dense, entry.facts, entry.tensors, other)
    with pytest.raises(SystemFailure, match=f"{dense} was trained again .* gave other bits"):
        carry_out(small_plan({"rewind_to": 5}, levels=1), folder)
    assert not store.snapshot_keys()


def test_a_point_that_another_environment_left_unfinished_is_replaced(folder: Path) -> None:
    plan = small_plan({"rewind_to": 5}, levels=1)
    carry_out(plan, folder / "whole")
    dense = next(iter(plan.runs))
    entry = Store(folder / "whole").read_snapshot(dense, "iteration_5")
    stale = {name: values + 1 for name, values in entry.tensors.items()}
    Store(folder / "stale").commit_snapshot(dense, "iteration_5", entry.facts, stale)
    carry_out(plan, folder / "stale")
    assert contents(folder / "stale") == contents(folder / "whole")
    found = Store(folder / "stale").read_snapshot(dense, "iteration_5").tensors
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in entry.tensors.items()}


# ---------------------------------------------------------------------------------------------------------- checkpoints


def interrupted(plan: Plan, folder: Path, at: int, **site: Any) -> None:
    """Trains the plan's first run up to its `at`-th evaluation, and saves a checkpoint there."""
    asked = iter(range(1_000))
    worker = Worker(WorkerConfig(folder, **site))
    task = Scheduler(plan, worker.store).take()
    assert task is not None
    # Asked twice where it is true: whether to save, and whether to go on.
    with pytest.raises(TaskInterrupted):
        worker.run_task(task, lambda: next(asked) >= at)
    assert worker.store.load_checkpoint(task.run.id)
    assert not worker.store.has(task.run.id)


def iterations_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first iteration of every training from now on."""
    began: list[int] = []
    batch = BatchSampler.batch

    def noted(order: BatchSampler, iteration: int) -> Any:
        began.append(iteration)
        return batch(order, iteration)

    monkeypatch.setattr(BatchSampler, "batch", noted)
    return began


POINTS = {"rewind_to": 5, "w_final": "lowest_validation_loss", "criterion": "snip"}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, optimizer: str
) -> None:
    plan = small_plan(POINTS, levels=1, optimizer=optimizer)
    carry_out(plan, folder / "whole")
    interrupted(plan, folder / "cut", at)
    trained = iterations_trained(monkeypatch)
    carry_out(plan, folder / "cut")
    assert trained[0] == 4 * (at + 1)
    assert contents(folder / "cut") == contents(folder / "whole")
    assert facts(folder / "cut", plan) == facts(folder / "whole", plan)
    points = Store(folder / "whole").snapshot_keys()
    assert len(points) == 3
    for key in points:
        one, other = (Store(folder / at).read_snapshot(*key.split("-")).tensors for at in ("cut", "whole"))
        assert {name: a.tobytes() for name, a in one.items()} == {name: a.tobytes() for name, a in other.items()}
    assert not leftovers(folder / "cut")


def test_a_run_that_is_cut_off_again_and_again_comes_to_the_same_bits(folder: Path) -> None:
    plan = small_plan(POINTS, levels=2)
    carry_out(plan, folder / "whole")
    worker = Worker(WorkerConfig(folder / "cut"))
    cuts = 0
    while tasks := (schedule := Scheduler(plan, worker.store)).tasks_left:
        task = schedule.take()
        assert task is not None and tasks < 10
        try:
            worker.run_task(task, lambda: True)
        except TaskInterrupted:
            cuts += 1
    # At every evaluation of every run: at 4, 8, 12 and the last of 13 iterations; from 5 on at 8, 12 and the last.
    assert cuts == 4 + 3 + 3
    assert contents(folder / "cut") == contents(folder / "whole")


def test_a_checkpoint_of_another_environment_is_not_gone_on_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    carry_out(plan, folder / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("supermask.execution.resources.environment", lambda *_: {"fingerprint": "another"})
        interrupted(plan, folder / "cut", 1)
    trained = iterations_trained(monkeypatch)
    carry_out(plan, folder / "cut")
    assert trained[0] == 0
    assert contents(folder / "cut") == contents(folder / "whole")
    assert not leftovers(folder / "cut")


def test_a_checkpoint_that_passed_a_wanted_point_is_not_gone_on_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study was changed after it was interrupted: now another treatment rewinds to iteration 2."""
    late = small_plan({"name": "a"}, {"name": "b", "rewind_to": 2, "criterion": "grad"}, levels=1)
    carry_out(late, folder / "whole")
    interrupted(small_plan(levels=1), folder / "cut", 1)
    trained = iterations_trained(monkeypatch)
    carried = carry_out(late, folder / "cut")
    assert trained[0] == 0 and not carried.retraced
    assert contents(folder / "cut") == contents(folder / "whole")


def test_a_checkpoint_with_more_points_than_wanted_is_gone_on_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(small_plan({"rewind_to": 2}, levels=1), folder, 1)
    trained = iterations_trained(monkeypatch)
    carry_out(small_plan(levels=2), folder)
    assert trained[0] == 8
    assert not Store(folder).snapshot_keys()


def test_a_checkpoint_from_another_start_is_not_gone_on_from(folder: Path) -> None:
    plan = small_plan(levels=1)
    store, (dense, _) = Store(folder), plan.runs.values()

    def checkpoints(seed: int) -> StoreCheckpointer:
        start = initial_state(plan.layers, seed)
        return StoreCheckpointer(store, dense.id, start, "here", every=60.0, stopping=lambda: False, iterations=10)

    checkpoints(0).save({"iteration": 4}, {"a": np.zeros(3)})
    assert checkpoints(1).load() is None
    loaded = checkpoints(0).load()
    assert loaded is not None and loaded[0] == {"iteration": 4}


def test_checkpoints_are_due_when_time_has_passed_or_at_once_when_stopping(folder: Path) -> None:
    plan = small_plan(levels=1)
    stopping = False

    def checkpoints(every: float) -> StoreCheckpointer:
        dense, start = next(iter(plan.runs)), initial_state(plan.layers, 0)
        return StoreCheckpointer(Store(folder), dense, start, "here", every, lambda: stopping, 10)

    rare, often = checkpoints(3600.0), checkpoints(0.0)
    assert (rare.should_save(), often.should_save()) == (False, True)
    stopping = True
    assert rare.should_save()
    with pytest.raises(TaskInterrupted):
        rare.save({}, {})


# ---------------------------------------------------------------------------------------------------- a disk that fails


@pytest.mark.parametrize("failing", range(0, 60, 7))
def test_a_full_disk_is_the_machines_error_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """From the n-th write on, until there is room again."""
    plan = small_plan(POINTS, levels=2)
    carry_out(plan, folder / "whole")
    writes = 0
    write = Disk.write

    def full(disk: Disk, descriptor: int, data: memoryview) -> int:
        nonlocal writes
        writes += 1
        if writes > failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(disk, descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "write", full)
        try:
            carry_out(plan, folder / "full")
        except SystemFailure as error:
            assert "the disk is full" in str(error) and "finished runs are kept" in str(error)
        else:
            assert writes <= failing
    before = contents(folder / "full") if (folder / "full").exists() else {}
    Store(folder / "full").remove_stale()
    carried = carry_out(plan, folder / "full")
    assert not before.keys() & set(carried.trained)
    assert contents(folder / "full") == contents(folder / "whole")
    assert not leftovers(folder / "full")


def test_damage_is_never_passed_on_as_such(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever `perform` meets of it becomes a result, so that every executor can go on."""
    plan = small_plan(levels=1)
    carry_out(plan, folder)
    dense, last = plan.runs.values()
    Store(folder).quarantine(last.id, "a test")

    def damaged(*_: object) -> None:
        raise CorruptEntry(dense.id, "a test")

    worker = Worker(WorkerConfig(folder))
    monkeypatch.setattr(worker, "_start", damaged)
    result = worker.run_task(Task(last))
    assert (result.status, result.missing_key) == ("not_started", dense.id)
    assert not Store(folder).has(dense.id)


def test_costs_of_another_release_are_told_of_and_not_tripped_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(levels=1)
    carry_out(plan, folder, engine="sparse")
    worker, run = Worker(WorkerConfig(folder, engine="sparse")), next(iter(plan.runs.values()))
    before = worker.store.facts(run.id)
    before["environment"]["costs"] = {"walks": {"weight": 1.0}}
    monkeypatch.setattr(Store, "facts", lambda *_: before)
    with pytest.raises(SystemFailure, match="another release of supermask"):
        worker.run_task(Task(run, frozenset({5}), replay=True))
