"""The coordinator under crashes, damage and interrupts: every run is trained and reported once, bit-identically."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from helpers.faulty_disk import quick_folder
from helpers.harness import IS_FULL
from helpers.small_studies import contents, small_plan, train_plan
from helpers.worker_pools import NOWHERE, InProcessPool, InstantPool, make_chain_plan, make_coordinator, move_run

from supermask.core.errors import SystemFailure
from supermask.execution.coordinator import (
    Assignment,
    Coordinator,
    ExecutionRequest,
    StudyInterrupted,
    WorkerDied,
    open_coordinator,
)
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import TaskResult, WorkerConfig, result_from_facts, stored_result
from supermask.execution.worker import Worker
from supermask.store import Store
from supermask.store.files.disk import Disk
from supermask.study.plan import Plan


def sizes(assignments: Sequence[Assignment]) -> list[list[int]]:
    return [[len(chain) for chain in assignment.chains] for assignment in assignments]


# ----------------------------------------------------------------------------------------------- starts, damage, Ctrl-C


@pytest.mark.parametrize(("stack", "prefers_whole_chains"), [(3, False), (1, True), (1, False)])
def test_every_start_is_reported_once_and_before_its_result(stack: int, prefers_whole_chains: bool) -> None:
    """Including chains that wait for a place in a stack, or for the chain before them."""
    plan, events = make_chain_plan(4, 2), list[tuple[str, str]]()
    coordinator = Coordinator(
        Scheduler(plan, Store(NOWHERE)),
        WorkerConfig(NOWHERE, engine="stacked", stack=stack),
        lambda _, task, __: events.append((task.run.id, "ended")),
        "all",
        lambda task: events.append((task.run.id, "began")),
    )
    coordinator.run(InstantPool(1, prefers_whole_chains))
    assert sorted(events) == sorted((run_id, what) for run_id in plan.runs for what in ("began", "ended"))
    assert all(events.index((run_id, "began")) < events.index((run_id, "ended")) for run_id in plan.runs)


def test_a_dead_worker_has_not_started_the_next_task_of_its_chain(tmp_path: Path) -> None:
    """It commits the first task of its chain and dies."""
    plan, crashes = make_chain_plan(1, 1), list[int]()
    train_plan(plan, tmp_path / "whole")

    class CrashingPool(InstantPool):
        def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
            if crashes:
                return super().answer(assignment)
            crashes.append(len(started))
            move_run(tmp_path / "whole", tmp_path / "store", assignment.tasks[0].run.id)
            return WorkerDied()

    coordinator, results, started = make_coordinator(plan, tmp_path / "store", engine="stacked", stack=4)
    coordinator.run(CrashingPool(1))
    assert crashes == [1]
    assert started == [*plan.runs]
    assert results == [f"{run_id} finished" for run_id in plan.runs]


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_complete_store_on_a_read_only_disk_needs_no_cleanup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_complete: bool
) -> None:
    """A checkpoint of a finished run was left there by a killed process."""
    plan, store = small_plan(levels=1), Store(tmp_path / "store")
    train_plan(plan, store.root)
    dense, last = plan.runs
    store.save_checkpoint(dense, {"of": {"environment": "", "start": "0" * 64}, "engine": PROGRESS}, {})
    if not is_complete:
        store.quarantine(last, "a test")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Disk, "remove_tree", refuse)
    request = ExecutionRequest(plan, WorkerConfig(store.root), 1, lambda *_: None)
    if is_complete:
        with open_coordinator(request) as coordinator:
            assert coordinator.scheduler.tasks_left == 0
    else:
        with pytest.raises(SystemFailure, match="read-only"), open_coordinator(request):
            pass


PROGRESS = {"layout": 1, "iteration": 4, "best": None}


@pytest.mark.slow
def test_one_damaged_parent_of_a_whole_stack_is_recomputed(tmp_path: Path) -> None:
    """Five chains that cannot start for one reason count as one fault of the disk."""
    store = tmp_path / "store"
    train_plan(make_chain_plan(5, 1, levels=1), store)
    plan = make_chain_plan(5, 1, levels=2)
    dense = next(iter(plan.runs))
    (weights,) = (store / "runs" / dense[:2] / dense).glob("weights*")
    weights.write_bytes(b"damaged")
    coordinator, _, _ = make_coordinator(plan, store, engine="stacked", stack=8)
    coordinator.run(InProcessPool(WorkerConfig(store, engine="stacked", stack=8)))
    assert {*coordinator.scheduler.status.values()} == {"finished"}
    (message,) = coordinator.scheduler.damaged
    assert dense in message and "set aside" in message


def test_an_entry_damaged_during_the_study_is_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator finds the damage in the store before the worker does."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.0)
    plan, store = make_chain_plan(1, 1), tmp_path / "store"
    dense, *_ = plan.runs

    class DamagingPool(InProcessPool):
        polls = 0

        def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
            self.polls += 1
            if self.polls == 1:
                (store / "runs" / dense[:2] / dense).mkdir(parents=True)
                return []
            return super().poll()

    coordinator, _, _ = make_coordinator(plan, store, engine="stacked", stack=4)
    coordinator.run(DamagingPool(WorkerConfig(store, engine="stacked", stack=4)))
    assert {*coordinator.scheduler.status.values()} == {"finished"}
    assert [dense in message for message in coordinator.scheduler.damaged] == [True]


def test_a_stored_run_without_its_snapshots_has_no_result(tmp_path: Path) -> None:
    """Another process has finished it for a study that does not need them."""
    plan = small_plan({"rewind_to": 5}, levels=2)
    scheduler = Scheduler(plan, Store(tmp_path))
    task = scheduler.take()
    assert task is not None and task.snapshots == {5, "end"}
    train_plan(small_plan(levels=1), tmp_path)
    assert stored_result(scheduler.store, task) is None
    train_plan(plan, tmp_path)
    assert stored_result(scheduler.store, task) == result_from_facts(scheduler.store.facts(task.run.id))


def test_replays_are_read_from_the_store_too(tmp_path: Path) -> None:
    """Replayed once, also if its worker dies right after that."""
    train_plan(small_plan(levels=1), tmp_path, keep="masks")
    plan, replayed = small_plan(levels=2), list[str]()

    class CrashingPool(InProcessPool):
        def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
            chain = assignment.chains[0]
            if chain[0].replay:
                replayed.append(chain[0].run.id)
                assert self.worker.run_task(chain[0]).message == "missing snapshots replayed"
                return WorkerDied()
            return super().answer(assignment)

    coordinator, results, _ = make_coordinator(plan, tmp_path, stack=4)
    coordinator.run(CrashingPool(WorkerConfig(tmp_path)))
    assert replayed and len(replayed) == len({*replayed})
    assert len(results) == len({*results})
    assert {*coordinator.scheduler.status.values()} == {"finished"}


def test_runs_left_after_ctrl_c_are_those_not_in_the_store(tmp_path: Path) -> None:
    """A worker has finished two tasks of its assignment, and has not reported them yet."""
    plan = make_chain_plan(1, 1)
    complete = tmp_path / "whole"
    train_plan(plan, complete)
    config = WorkerConfig(tmp_path / "store", stack=4)

    class InterruptedPool(InstantPool):
        def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
            for run_id in [*plan.runs][:2]:
                move_run(complete, config.store, run_id)
            raise KeyboardInterrupt

    with (
        pytest.raises(StudyInterrupted) as interrupted,
        open_coordinator(ExecutionRequest(plan, config, 1, lambda *_: None)) as coordinator,
    ):
        coordinator.run(InterruptedPool(1))
    assert interrupted.value.remaining == len(plan.runs) - 2


def test_ctrl_c_while_weights_are_dropped_reports_the_tasks_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "drop_unneeded", interrupt)
    plan = make_chain_plan(1, 1)
    with (
        pytest.raises(StudyInterrupted) as interrupted,
        open_coordinator(ExecutionRequest(plan, WorkerConfig(tmp_path), 1, lambda *_: None, "masks")),
    ):
        pass
    assert interrupted.value.remaining == len(plan.runs)


# ------------------------------------------------------------------------------------------------------ random crashes


class RandomPool(InstantPool):
    """A pool that trains one run at a time, of a random assignment; any worker may die before any run."""

    def __init__(self, config: WorkerConfig, rng: np.random.Generator, prefers_whole_chains: bool) -> None:
        super().__init__(3, prefers_whole_chains)
        self._worker, self._rng = Worker(config), rng
        self._results: dict[Assignment, list[TaskResult]] = {}
        self.trained: list[str] = []

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        assignment = self._waiting[self._rng.integers(len(self._waiting))]
        results = self._results.setdefault(assignment, [])
        message = {result.run_id: result.status for result in results}
        chains = [
            [*dropwhile(lambda task: message.get(task.run.id) == "finished", chain)] for chain in assignment.chains
        ]
        left = [chain[0] for chain in chains if chain and chain[0].run.id not in message]
        if left and self._rng.random() > 0.1:
            task = left[self._rng.integers(len(left))]
            self.trained.append(task.run.id)
            results.append(self._worker.run_task(task))
            return []
        self._waiting.remove(assignment)
        return [(assignment, WorkerDied(node_lost=True) if left else results)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    """First one level, then more."""
    treatments = ({"criterion": ["large_final", "random"]}, {"name": "late", "rewind_to": 5, "criterion": "snip"})
    return [small_plan(*treatments, seeds=2, levels=levels) for levels in (1, 2)]


@pytest.fixture(scope="module")
def sequential_stores(tmp_path_factory: pytest.TempPathFactory, plans: list[Plan]) -> dict[KeepPolicy, Path]:
    """The same plans, trained one run after the other. Tests only read these stores."""
    stores: dict[KeepPolicy, Path] = {keep: tmp_path_factory.mktemp(keep) for keep in get_args(KeepPolicy)}
    for keep, store in stores.items():
        for plan in plans:
            train_plan(plan, store, keep=keep)
    return stores


@pytest.mark.slow
@pytest.mark.parametrize("keep", get_args(KeepPolicy))
@pytest.mark.parametrize(
    ("stack", "prefers_whole_chains"), [(1, True), (2, False), (9, False), *([(1, False)] if IS_FULL else [])]
)
def test_with_random_crashes_each_run_is_trained_and_reported_once(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    plans: list[Plan],
    sequential_stores: dict[KeepPolicy, Path],
    keep: KeepPolicy,
    stack: int,
    prefers_whole_chains: bool,
) -> None:
    """First one level, whose weights are dropped; then more levels, for which some runs are replayed."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.0)
    config, rng = WorkerConfig(folder / "store", stack=stack), np.random.default_rng(stack)
    events: list[tuple[str, bool]] = []
    started = Counter[str]()
    for plan in plans:
        pool = RandomPool(config, rng, prefers_whole_chains)
        request = ExecutionRequest(
            plan,
            config,
            3,
            lambda _, task, result: events.append((result.run_id, task.replay)),
            keep,
            on_start=lambda task: started.update([task.run.id]),
        )
        with open_coordinator(request) as coordinator:
            coordinator.run(pool)
        assert {*coordinator.scheduler.status.values()} == {"finished"}
        assert not coordinator.scheduler.damaged
        assert len({*pool.trained}) == len(pool.trained)
    assert len({*events}) == len(events)
    assert {run_id for run_id, replay in events if not replay} == {*plans[1].runs}
    assert {*started} == {*plans[1].runs}
    coordinated, sequential = Store(config.store), Store(sequential_stores[keep])
    assert contents(coordinated) == contents(sequential)
    assert {r for r in plans[1].runs if coordinated.has_weights(r)} == {
        r for r in plans[1].runs if sequential.has_weights(r)
    }
    assert coordinated.snapshot_keys() == sequential.snapshot_keys()
