"""The coordinator: dispatch of tasks, worker answers and store results, with pools that train nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.small_studies import train_plan
from helpers.worker_pools import NOWHERE, InstantPool, make_chain_plan, make_coordinator, move_run

from supermask.core.errors import SystemFailure
from supermask.execution.coordinator import MAX_NODE_LOSSES, MAX_WORKER_CRASHES, Assignment, WorkerDied
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Chain, Task, TaskResult
from supermask.store import Store


def sizes(assignments: Sequence[Assignment]) -> list[list[int]]:
    return [[len(chain) for chain in assignment.chains] for assignment in assignments]


def test_each_worker_gets_one_task_at_a_time() -> None:
    plan, pool = make_chain_plan(2, 2), InstantPool(3)
    coordinator, results, started = make_coordinator(plan)
    coordinator.run(pool)
    assert sizes(pool.received) == [[1]] * len(plan.runs)
    assert sorted(results) == sorted(f"{run_id} finished" for run_id in plan.runs)
    assert sorted(started) == sorted(plan.runs)
    assert max(pool.in_flight_counts) == 3


@pytest.mark.parametrize(
    ("capacity", "expected"),
    [
        (8, [[[1]] * 2, [[3]] * 8]),  # One chain per job.
        (4, [[[1]] * 2, [[3]] * 6, [[3, 3]]]),
        (1, [[[1, 1]], [[3] * 8]]),  # Several chains per job, rather than jobs in a row.
    ],
)
def test_slow_pools_get_whole_chains(capacity: int, expected: list[list[list[int]]]) -> None:
    plan, pool = make_chain_plan(4, 2), InstantPool(capacity, prefers_whole_chains=True)
    coordinator, results, _ = make_coordinator(plan)
    coordinator.run(pool)
    received = sizes(pool.received)
    assert received[: len(expected[0])] == expected[0]
    assert sorted(map(sum, received)) == sorted(sum(chain) for part in expected for chain in part)
    assert len(results) == len(plan.runs)


def test_stacks_share_chains_among_workers_and_hold_enough_for_one_refill() -> None:
    """Twenty chains and two workers: ten chains each in stacks of 16, six chains at a time in stacks of 3."""
    plan = make_chain_plan(5, 4)
    for stack, expected in ((16, [[1] * 2] * 2 + [[3] * 10] * 2), (3, [[1] * 2] * 2 + [[3] * 6] * 3 + [[3] * 2])):
        pool = InstantPool(2)
        coordinator, results, _ = make_coordinator(plan, engine="stacked", stack=stack)
        coordinator.run(pool)
        assert sorted(sizes(pool.received), key=str) == sorted(expected, key=str)
        assert len(results) == len(plan.runs)


def test_chains_that_do_not_fill_a_gpu_are_not_spread_over_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty chains and eight GPU slots: two stacks, of twelve and eight chains, if twelve fill a GPU."""
    monkeypatch.setattr("supermask.execution.coordinator.MIN_CHAINS_PER_GPU", 12)
    pool = InstantPool(8)
    coordinator, results, _ = make_coordinator(make_chain_plan(5, 4), engine="stacked", stack=None, device="cuda")
    coordinator.run(pool)
    assert sizes(pool.received) == [[1] * 4, [3] * 12, [3] * 8]
    assert len(results) == len(coordinator.scheduler.plan.runs)


def test_results_are_read_from_the_store_before_the_worker_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool commits a run and does not answer until the coordinator has seen it."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.0)
    plan = make_chain_plan(1, 1)
    complete = tmp_path / "whole"
    train_plan(plan, complete)

    class SilentPool(InstantPool):
        def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
            (assignment,) = self._waiting
            left = [task for task in assignment.tasks if not store.has(task.run.id)]
            if left:
                assert len(results) == len(plan.runs) - len(left)
                move_run(complete, tmp_path / "store", left[0].run.id)
                return []
            return super().poll()

    store = Store(tmp_path / "store")
    coordinator, results, started = make_coordinator(plan, tmp_path / "store", engine="stacked", stack=4)
    coordinator.run(SilentPool(1))
    assert results == [f"{run_id} finished" for run_id in plan.runs]
    assert started == [*plan.runs]


def test_a_diverged_run_cancels_its_own_descendants_only() -> None:
    plan = make_chain_plan(2, 1)
    (diverging, *_) = (run.id for run in plan.runs.values() if run.level == 2)

    class DivergingPool(InstantPool):
        def answer(self, assignment: Assignment) -> list[TaskResult]:
            return [result for chain in assignment.chains for result in train_chain(chain)]

    def train_chain(chain: Chain) -> list[TaskResult]:
        results: list[TaskResult] = []
        for task in chain:
            results.append(TaskResult(task.run.id, "diverged" if task.run.id == diverging else "finished"))
            if task.run.id == diverging:
                break
        return results

    coordinator, _, _ = make_coordinator(plan, engine="stacked", stack=4)
    coordinator.run(DivergingPool(1))
    counts = sorted(coordinator.scheduler.status.values())
    assert counts == ["ancestor_diverged", "diverged", *["finished"] * 5]


@pytest.mark.parametrize("node_lost", [False, True])
def test_crashed_runs_are_retried_up_to_a_limit(node_lost: bool) -> None:
    plan, max_crashes = make_chain_plan(2, 1), MAX_NODE_LOSSES if node_lost else MAX_WORKER_CRASHES

    class CrashingPool(InstantPool):
        crashes = 0

        def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
            if len(assignment.tasks) > 1 and self.crashes < limit:
                self.crashes += 1
                return WorkerDied(node_lost)
            return super().answer(assignment)

    for limit in (max_crashes - 1, max_crashes):
        coordinator, results, _ = make_coordinator(plan, engine="stacked", stack=4)
        if limit < max_crashes:
            coordinator.run(CrashingPool(1))
            assert len(results) == len(plan.runs)
        else:
            culprit = "a node" if node_lost else "a worker process"
            with pytest.raises(SystemFailure, match=f"{culprit} died {max_crashes} times .* or a smaller --stack"):
                coordinator.run(CrashingPool(1))


def test_the_chain_in_training_is_blamed_for_a_crash() -> None:
    plan = make_chain_plan(3, 1)
    killer = [run.id for run in plan.runs.values() if run.level == 2][1]

    class CrashingPool(InstantPool):
        def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
            return (
                WorkerDied()
                if any(task.run.id == killer for task in assignment.chains[0])
                else super().answer(assignment)
            )

    coordinator, _, _ = make_coordinator(plan)
    with pytest.raises(SystemFailure, match=r"died 3 times while run .* level 1\) .* Try --workers 1\."):
        coordinator.run(CrashingPool(3, prefers_whole_chains=True))


def test_a_task_that_cannot_start_rebuilds_the_scheduler() -> None:
    plan = make_chain_plan(2, 1, levels=1)
    answers: list[Callable[[str], TaskResult]] = [
        lambda run_id: TaskResult(run_id, "not_started", message="damaged", missing_key="x", is_damage=True),
    ]

    class DamagedPool(InstantPool):
        def answer(self, assignment: Assignment) -> list[TaskResult]:
            return [
                answers.pop()(task.run.id) if answers and task.run.level else TaskResult(task.run.id, "finished")
                for task in assignment.tasks
            ]

    coordinator, results, _ = make_coordinator(plan)
    coordinator.run(DamagedPool(1))
    # The store is empty here, so the new scheduler trains the dense run again, with all its descendants.
    assert [text.split()[1] for text in results] == ["finished", "not_started", *["finished"] * 3]
    always_damaged = DamagedPool(1)
    answers += [
        lambda run_id: TaskResult(run_id, "not_started", message="damaged", missing_key="x", is_damage=True)
    ] * MAX_WORKER_CRASHES
    coordinator, _, _ = make_coordinator(plan)
    with pytest.raises(SystemFailure, match=f"damaged This happened {MAX_WORKER_CRASHES} times"):
        coordinator.run(always_damaged)


def test_a_reserved_task_is_taken_by_nobody_until_its_chain_is_released() -> None:
    plan = make_chain_plan(1, 1)
    scheduler = Scheduler(plan, Store(NOWHERE))
    dense = scheduler.take()
    assert dense is not None
    chain: list[Task] = scheduler.take_chain(dense)
    assert [task.run.level for task in chain] == [0, 1, 2, 3]
    scheduler.finish(chain[0], TaskResult(chain[0].run.id, "finished"))
    assert scheduler.take() is None
    scheduler.release(chain)
    assert scheduler.take() == chain[1]
    assert scheduler.take() is None
    scheduler.finish(chain[1], TaskResult(chain[1].run.id, "finished"))
    assert scheduler.take() == chain[2]
