"""The worker under interruptions and full disks: what is resumed from, and what is not lost."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoints import SGD, checkpoint
from helpers.faulty_disk import quick_folder
from helpers.small_studies import TrainedStore, contents, facts, leftovers, small_plan, train_plan

from supermask.core.errors import SystemFailure
from supermask.engines.job import BatchSampler
from supermask.execution.checkpoints import StoreCheckpointer, TaskInterrupted
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig
from supermask.execution.worker import Worker
from supermask.store import Store
from supermask.store.files.disk import Disk
from supermask.study.plan import Plan


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


# ---------------------------------------------------------------------------------------------------------- checkpoints


def interrupt_first_run(plan: Plan, folder: Path, evaluation: int, **config: Any) -> None:
    """Train the plan's first run up to this evaluation, and save a checkpoint there."""
    calls = iter(range(1_000))
    worker = Worker(WorkerConfig(folder, **config))
    task = Scheduler(plan, worker.store).take()
    assert task is not None
    # Called twice once it is True: before the save and after it.
    with pytest.raises(TaskInterrupted):
        worker.run_task(task, lambda: next(calls) >= evaluation)
    assert worker.store.load_checkpoint(task.run.id)
    assert not worker.store.has(task.run.id)


def record_first_iterations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects the iterations trained from now on."""
    first_iterations: list[int] = []
    batch = BatchSampler.batch

    def recording_batch(order: BatchSampler, iteration: int) -> Any:
        first_iterations.append(iteration)
        return batch(order, iteration)

    monkeypatch.setattr(BatchSampler, "batch", recording_batch)
    return first_iterations


POINTS = {"rewind_to": 5, "w_final": "lowest_validation_loss", "criterion": "snip"}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("evaluation", [0, 1, 2])
def test_a_resumed_run_is_bit_identical(
    folder: Path, trained: TrainedStore, monkeypatch: pytest.MonkeyPatch, evaluation: int, optimizer: str
) -> None:
    plan = small_plan(POINTS, levels=1, optimizer=optimizer)
    whole = trained(plan)
    interrupt_first_run(plan, folder / "cut", evaluation)
    trained = record_first_iterations(monkeypatch)
    train_plan(plan, folder / "cut")
    assert trained[0] == 4 * (evaluation + 1)
    assert contents(folder / "cut") == contents(whole)
    assert facts(folder / "cut", plan) == facts(whole, plan)
    points = Store(whole).snapshot_keys()
    assert len(points) == 3
    for key in points:
        resumed, late_worker = (
            Store(store).read_snapshot(*key.split("-")).tensors for store in (folder / "cut", whole)
        )
        assert {name: a.tobytes() for name, a in resumed.items()} == {
            name: a.tobytes() for name, a in late_worker.items()
        }
    assert not leftovers(folder / "cut")


def test_a_run_that_is_interrupted_at_every_evaluation_is_bit_identical(folder: Path, trained: TrainedStore) -> None:
    plan = small_plan(POINTS, levels=2)
    whole = trained(plan)
    worker = Worker(WorkerConfig(folder / "cut"))
    interruptions = 0
    while tasks := (scheduler := Scheduler(plan, worker.store)).tasks_left:
        task = scheduler.take()
        assert task is not None and tasks < 10
        try:
            worker.run_task(task, lambda: True)
        except TaskInterrupted:
            interruptions += 1
    # At every evaluation of every run: at 4, 8, 12 and the last of 13 iterations; from 5 on at 8, 12 and the last.
    assert interruptions == 4 + 3 + 3
    assert contents(folder / "cut") == contents(whole)


def test_a_checkpoint_of_another_environment_is_not_used(
    folder: Path, trained: TrainedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(levels=1)
    whole = trained(plan)
    with monkeypatch.context() as patch:
        patch.setattr("supermask.execution.resources.environment_info", lambda *_: {"fingerprint": "another"})
        interrupt_first_run(plan, folder / "cut", 1)
    trained = record_first_iterations(monkeypatch)
    train_plan(plan, folder / "cut")
    assert trained[0] == 0
    assert contents(folder / "cut") == contents(whole)
    assert not leftovers(folder / "cut")


def test_a_checkpoint_beyond_a_required_snapshot_is_not_used(
    folder: Path, trained: TrainedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study was changed after the interruption: now another treatment rewinds to iteration 2."""
    late = small_plan({"name": "a"}, {"name": "b", "rewind_to": 2, "criterion": "grad"}, levels=1)
    whole = trained(late)
    interrupt_first_run(small_plan(levels=1), folder / "cut", 1)
    trained = record_first_iterations(monkeypatch)
    plan_run = train_plan(late, folder / "cut")
    assert trained[0] == 0 and not plan_run.replayed
    assert contents(folder / "cut") == contents(whole)


def test_a_checkpoint_with_additional_snapshots_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_first_run(small_plan({"rewind_to": 2}, levels=1), folder, 1)
    trained = record_first_iterations(monkeypatch)
    train_plan(small_plan(levels=2), folder)
    assert trained[0] == 8
    assert not Store(folder).snapshot_keys()


def test_a_checkpoint_from_another_initial_state_is_not_used(folder: Path) -> None:
    plan = small_plan(levels=1)
    store, (dense, _) = Store(folder), plan.runs.values()

    def make_checkpointer(seed: int) -> StoreCheckpointer:
        start = plan.network.initial_state(seed)
        return StoreCheckpointer(
            store, dense.id, start, "here", interval_seconds=60.0, should_stop=lambda: False, recipe=SGD
        )

    facts, tensors = checkpoint(plan.network.initial_state(0), iteration=4)
    make_checkpointer(0).save(facts, tensors)
    assert make_checkpointer(1).load() is None
    loaded = make_checkpointer(0).load()
    assert loaded is not None and loaded[0] == facts


def test_checkpoints_are_due_after_an_interval_or_when_stopping(folder: Path) -> None:
    plan = small_plan(levels=1)
    should_stop = False

    def make_checkpointer(every: float) -> StoreCheckpointer:
        dense, start = next(iter(plan.runs)), plan.network.initial_state(0)
        return StoreCheckpointer(Store(folder), dense, start, "here", every, lambda: should_stop, SGD)

    rare, often = make_checkpointer(3600.0), make_checkpointer(0.0)
    assert (rare.should_save(), often.should_save()) == (False, True)
    should_stop = True
    assert rare.should_save()
    with pytest.raises(TaskInterrupted):
        rare.save(*checkpoint(plan.network.initial_state(0), iteration=4))


# ---------------------------------------------------------------------------------------------------------- disk faults


@pytest.mark.slow
@pytest.mark.parametrize("failing", range(0, 60, 7))
def test_a_full_disk_is_a_system_failure_and_loses_nothing(
    folder: Path, trained: TrainedStore, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The disk is full from the n-th write on, then has space again."""
    plan = small_plan(POINTS, levels=2)
    whole = trained(plan)
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
            train_plan(plan, folder / "full")
        except SystemFailure as error:
            assert "the disk is full" in str(error) and "finished runs are kept" in str(error)
        else:
            assert writes <= failing
    before = contents(folder / "full") if (folder / "full").exists() else {}
    Store(folder / "full").remove_stale()
    plan_run = train_plan(plan, folder / "full")
    assert not before.keys() & set(plan_run.trained)
    assert contents(folder / "full") == contents(whole)
    assert not leftovers(folder / "full")
