"""The worker: chains of tasks, in sequence or in a stack, in this process and with a real store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.faulty_disk import quick_folder
from helpers.small_studies import facts, leftovers, small_plan, train_plan

from supermask.core.errors import SystemFailure, UserError
from supermask.datasets.images import split_data
from supermask.execution.checkpoints import StoreCheckpointer, TaskInterrupted
from supermask.execution.resources import DatasetCache
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.execution.worker import PreparedTask, ShouldStop, Worker
from supermask.store import Store


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


TWO_SEEDS = {"seeds": [0, 1], "levels": 2}


def test_chains_are_trained_up_to_the_first_failure(folder: Path) -> None:
    """In sequence, as with every engine but the stacked one."""
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)
    worker = Worker(WorkerConfig(folder))
    scheduler = Scheduler(plan, worker.store)
    ((dense,),) = chains = take_all_chains(scheduler)
    (first,) = worker.run_chains(chains)
    scheduler.finish(dense, first)
    chains = take_all_chains(scheduler)
    assert [[task.run.level for task in chain] for chain in chains] == [[1, 2], [1, 2]]
    assert scheduler.take() is None  # The tasks below are reserved.
    worker.store.quarantine(dense.run.id, "a test")
    results = Worker(worker.config).run_chains(chains)
    assert [(result.run_id, result.status) for result in results] == [
        (chain[0].run.id, "not_started") for chain in chains
    ]


def take_all_chains(scheduler: Scheduler) -> list[list[Task]]:
    """Return all ready chains."""
    run_facts = []
    while (task := scheduler.take()) is not None:
        run_facts.append(scheduler.take_chain(task))
    return run_facts


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 9])
def test_chains_in_a_stack_give_the_results_of_runs_trained_alone(folder: Path, size: int) -> None:
    """Two seeds and two treatments, one of which rewinds late; more chains than the stack holds, and fewer."""
    plan = small_plan({"criterion": ["large_final", "random"]}, {"criterion": "movement", "rewind_to": 5}, **TWO_SEEDS)
    worker = Worker(WorkerConfig(folder / "stacks", engine="stacked", stack=size))
    scheduler = Scheduler(plan, worker.store)
    while scheduler.tasks_left:
        chains = take_all_chains(scheduler)
        tasks = {task.run.id: task for chain in chains for task in chain}
        for result in worker.run_chains(chains):
            assert result.status == "finished"
            scheduler.finish(tasks.pop(result.run_id), result)
        assert not tasks
    train_plan(plan, folder / "alone", engine="reference")
    stacked, alone = facts(folder / "stacks", plan), facts(folder / "alone", plan)
    for run_id in plan.runs:
        run_facts, expected = stacked[run_id], alone[run_id]
        assert (run_facts["engine"], run_facts["environment"]["stack"]) == ("stacked", "shared")
        assert run_facts["certificate"]["held"] and worker.store.facts(run_id)["seconds"] > 0
        for name in ("final_test_loss", "early_stop_validation_loss"):
            assert run_facts["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-3)
    assert len({run_facts["environment"]["fingerprint"] for run_facts in stacked.values()}) == 1


def test_a_diverged_run_in_a_stack_ends_its_own_chain_only(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)
    diverging = [run.id for run in plan.runs.values() if run.level == 1][1]

    class Diverging(Worker):
        def prepare(self, task: Task, should_stop: ShouldStop) -> PreparedTask | TaskResult:
            prepared = super().prepare(task, should_stop)
            if isinstance(prepared, PreparedTask) and task.run.id == diverging:
                weights = {name: w * 1e30 for name, w in prepared.start.weights.items()}
                return replace(prepared, job=replace(prepared.job, start=replace(prepared.start, weights=weights)))
            return prepared

    worker = Diverging(WorkerConfig(folder, engine="stacked", stack=4))
    scheduler = Scheduler(plan, worker.store)
    ((dense,),) = take_all_chains(scheduler)
    scheduler.finish(dense, worker.run_task(dense))
    statuses = [result.status for result in worker.run_chains(take_all_chains(scheduler))]
    assert sorted(statuses) == ["diverged", "finished", "finished"]


@pytest.mark.slow
def test_a_stopped_stack_resumes_from_the_checkpoints_of_all_runs(folder: Path) -> None:
    """Stopped within a level, after the first of four chains has reached its second level."""
    plan = small_plan({"criterion": ["large_final", "random"]}, **TWO_SEEDS)
    config = WorkerConfig(folder, engine="stacked", stack=3)
    scheduler = Scheduler(plan, Store(folder))
    for chain in take_all_chains(scheduler):
        scheduler.finish(chain[0], Worker(config).run_task(chain[0]))
    chains = take_all_chains(scheduler)
    calls = itertools.count()
    with pytest.raises(TaskInterrupted):
        Worker(config).run_chains(chains, lambda: next(calls) >= 12)
    saved = [*(folder / "checkpoints").iterdir()]
    assert 2 <= len(saved) <= 3
    results = Worker(config).run_chains(chains)
    assert sorted(result.run_id for result in results) == sorted(task.run.id for chain in chains for task in chain)
    assert not leftovers(folder)


@pytest.mark.parametrize("fault", [UserError("no scores"), SystemFailure("the disk is full")])
def test_a_run_that_cannot_start_costs_the_rest_of_its_stack_nothing(folder: Path, fault: Exception) -> None:
    """The chain that rewinds late ends first and cannot continue, while the other one is within its level."""
    plan = small_plan({"criterion": "large_final"}, {"criterion": "movement", "rewind_to": 5}, levels=2)

    class Failing(Worker):
        def prepare(self, task: Task, should_stop: ShouldStop) -> PreparedTask | TaskResult:
            if task.run.level == 2:
                raise fault
            return super().prepare(task, should_stop)

    worker = Failing(WorkerConfig(folder, engine="stacked", stack=2, checkpoint_seconds=1e9))
    scheduler = Scheduler(plan, worker.store)
    ((dense,),) = take_all_chains(scheduler)
    scheduler.finish(dense, worker.run_task(dense))
    chains = take_all_chains(scheduler)
    with pytest.raises(type(fault), match=str(fault)):
        worker.run_chains(chains)
    finished_id, running_id = sorted((chain[0].run.id for chain in chains), key=worker.store.has, reverse=True)
    assert worker.store.has(finished_id)
    assert not worker.store.has(running_id)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [running_id]
    assert {result.status for result in Worker(worker.config).run_chains(chains)} == {"finished"}
    assert not leftovers(folder)


def test_a_stacked_run_resumes_from_its_checkpoint_in_another_stack(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=[0], levels=1)
    worker = Worker(WorkerConfig(folder, engine="stacked", stack=2))
    scheduler = Scheduler(plan, worker.store)
    ((dense,),) = take_all_chains(scheduler)
    scheduler.finish(dense, worker.run_task(dense))
    chains = take_all_chains(scheduler)
    calls = iter([False] * 4)
    with pytest.raises(TaskInterrupted):
        worker.run_chains(chains, lambda: next(calls, True))
    loaded_checkpoints: list[object] = []
    load = StoreCheckpointer.load
    monkeypatch.setattr(
        StoreCheckpointer, "load", lambda self: loaded_checkpoints.append(load(self)) or loaded_checkpoints[-1]
    )
    second_worker = Worker(worker.config)
    assert [second_worker.run_chains([chain])[0].status for chain in chains] == ["finished"] * 2
    assert len(loaded_checkpoints) == 2
    assert None not in loaded_checkpoints


def test_finished_runs_are_not_trained_in_a_stack(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=[0], levels=1)
    worker = Worker(WorkerConfig(folder, engine="stacked", stack=4))
    scheduler = Scheduler(plan, worker.store)
    ((dense,),) = take_all_chains(scheduler)
    scheduler.finish(dense, worker.run_task(dense))
    (first, second) = (chain[0] for chain in take_all_chains(scheduler))
    finished_id = worker.run_task(first)
    results = Worker(worker.config).run_chains([[first], [second]])
    assert {result.run_id: result.status for result in results} == dict.fromkeys(
        (first.run.id, second.run.id), "finished"
    )
    assert worker.run_chains([[first]]) == [finished_id]


def test_runs_of_a_seed_share_its_split_with_any_number_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unused splits are freed: the memory of a study does not grow with its seeds."""
    split_seeds: list[int] = []
    monkeypatch.setattr("supermask.execution.resources.CACHED_SPLITS", 2)
    monkeypatch.setattr(
        "supermask.execution.resources.split_data",
        lambda _, seed, more: split_seeds.append(seed) or split_data(_, seed),
    )
    runs = [run for run in small_plan(seeds=4, levels=1).runs.values() if run.level == 0]
    cache = DatasetCache(None)
    stacked = [cache.split_for(run) for run in runs]
    assert [cache.split_for(run) for run in runs] == stacked
    assert split_seeds == [0, 1, 2, 3]
    stacked.clear()
    for run in (runs[3], runs[2], runs[0], runs[3]):
        cache.split_for(run)
    assert split_seeds == [0, 1, 2, 3, 0, 3]


def test_only_tasks_with_equal_stack_settings_are_stacked(folder: Path) -> None:
    """A treatment with another optimizer waits for the next stack; one with other learning rates does not."""
    plan = small_plan({"train": {"optimizer": ["adam", "sgd"]}}, {"train": {"lr": 1e-3}}, seeds=[0, 1], levels=1)
    scheduler = Scheduler(plan, Store(folder))
    worker = Worker(WorkerConfig(folder, engine="stacked", stack=9))
    stacks = [scheduler.take_stack(9), scheduler.take_stack(9)]
    assert [[task.run.level for task in stack] for stack in stacks] == [[0] * 4, [0] * 2]
    for task in [task for stack in stacks for task in stack]:
        scheduler.finish(task, worker.run_task(task))
    assert scheduler.ready_count() == 6
    stacks = [scheduler.take_stack(9), scheduler.take_stack(9)]
    assert sorted(len({task.run.recipe for task in stack}) for stack in stacks) == [1, 2]
    assert sum(map(len, stacks)) == 6
    assert scheduler.ready_count() == 0
    mixed_chains = [[task] for task in (stacks[0][0], stacks[1][0], stacks[0][1], stacks[1][1])]
    assert [result.status for result in worker.run_chains(mixed_chains)] == ["finished"] * 4
