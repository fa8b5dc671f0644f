"""worker: lines of tasks, one after another or side by side in a stack; in this process, with a real store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.faulty_disk import quick_folder
from helpers.small_studies import carry_out, facts, leftovers, small_plan

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


def test_lines_are_done_until_one_does_not_finish(folder: Path) -> None:
    """One after another, as every engine but the stacked one does them."""
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)
    worker = Worker(WorkerConfig(folder))
    schedule = Scheduler(plan, worker.store)
    ((dense,),) = lines = taken(schedule)
    (first,) = worker.run_chains(lines)
    schedule.finish(dense, first)
    lines = taken(schedule)
    assert [[task.run.level for task in line] for line in lines] == [[1, 2], [1, 2]]
    assert schedule.take() is None  # what is below is promised
    worker.store.quarantine(dense.run.id, "a test")
    results = Worker(worker.site).run_chains(lines)
    assert [(result.run_id, result.status) for result in results] == [(line[0].run.id, "not_started") for line in lines]


def taken(schedule: Scheduler) -> list[list[Task]]:
    """All lines that are ready."""
    found = []
    while (task := schedule.take()) is not None:
        found.append(schedule.take_chain(task))
    return found


@pytest.mark.parametrize("size", [2, 9])
def test_lines_in_a_stack_come_to_what_their_runs_come_to_alone(folder: Path, size: int) -> None:
    """Two seeds, two treatments, one of them late at its start; more lines than places, and more places than lines."""
    plan = small_plan({"criterion": ["large_final", "random"]}, {"criterion": "movement", "rewind_to": 5}, **TWO_SEEDS)
    worker = Worker(WorkerConfig(folder / "stacks", engine="stacked", stack=size))
    schedule = Scheduler(plan, worker.store)
    while schedule.tasks_left:
        lines = taken(schedule)
        tasks = {task.run.id: task for line in lines for task in line}
        for result in worker.run_chains(lines):
            assert result.status == "finished"
            schedule.finish(tasks.pop(result.run_id), result)
        assert not tasks
    carry_out(plan, folder / "alone", engine="reference")
    stacked, alone = facts(folder / "stacks", plan), facts(folder / "alone", plan)
    for run_id in plan.runs:
        found, wanted = stacked[run_id], alone[run_id]
        assert (found["engine"], found["environment"]["stack"]) == ("stacked", "shared")
        assert found["certificate"]["held"] and worker.store.facts(run_id)["seconds"] > 0
        for name in ("final_test_loss", "early_stop_validation_loss"):
            assert found["metrics"][name] == pytest.approx(wanted["metrics"][name], rel=1e-3)
    assert len({found["environment"]["fingerprint"] for found in stacked.values()}) == 1


def test_of_lines_in_a_stack_one_diverges_and_ends_itself_alone(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)
    diverging = [run.id for run in plan.runs.values() if run.level == 1][1]

    class Diverging(Worker):
        def begin(self, task: Task, stopping: ShouldStop) -> PreparedTask | TaskResult:
            begun = super().prepare(task, stopping)
            if isinstance(begun, PreparedTask) and task.run.id == diverging:
                weights = {name: w * 1e30 for name, w in begun.start.weights.items()}
                return replace(begun, job=replace(begun.job, start=replace(begun.start, weights=weights)))
            return begun

    worker = Diverging(WorkerConfig(folder, engine="stacked", stack=4))
    schedule = Scheduler(plan, worker.store)
    ((dense,),) = taken(schedule)
    schedule.finish(dense, worker.run_task(dense))
    statuses = [result.status for result in worker.run_chains(taken(schedule))]
    assert sorted(statuses) == ["diverged", "finished", "finished"]


def test_a_stack_that_is_stopped_goes_on_from_the_checkpoints_of_all(folder: Path) -> None:
    """Stopped in the middle of a level, with the first of four lines gone on to its second."""
    plan = small_plan({"criterion": ["large_final", "random"]}, **TWO_SEEDS)
    site = WorkerConfig(folder, engine="stacked", stack=3)
    schedule = Scheduler(plan, Store(folder))
    for line in taken(schedule):
        schedule.finish(line[0], Worker(site).run_task(line[0]))
    lines = taken(schedule)
    asked = itertools.count()
    with pytest.raises(TaskInterrupted):
        Worker(site).run_chains(lines, lambda: next(asked) >= 12)
    saved = [*(folder / "checkpoints").iterdir()]
    assert 2 <= len(saved) <= 3
    results = Worker(site).run_chains(lines)
    assert sorted(result.run_id for result in results) == sorted(task.run.id for line in lines for task in line)
    assert not leftovers(folder)


@pytest.mark.parametrize("fault", [UserError("no scores"), SystemFailure("the disk is full")])
def test_one_of_a_stack_that_cannot_begin_costs_the_others_nothing(folder: Path, fault: Exception) -> None:
    """The line that begins late, ends first; it cannot go on, while the other is in the middle of its level."""
    plan = small_plan({"criterion": "large_final"}, {"criterion": "movement", "rewind_to": 5}, levels=2)

    class Failing(Worker):
        def begin(self, task: Task, stopping: ShouldStop) -> PreparedTask | TaskResult:
            if task.run.level == 2:
                raise fault
            return super().prepare(task, stopping)

    worker = Failing(WorkerConfig(folder, engine="stacked", stack=2, checkpoint_seconds=1e9))
    schedule = Scheduler(plan, worker.store)
    ((dense,),) = taken(schedule)
    schedule.finish(dense, worker.run_task(dense))
    lines = taken(schedule)
    with pytest.raises(type(fault), match=str(fault)):
        worker.run_chains(lines)
    done, under_way = sorted((line[0].run.id for line in lines), key=worker.store.has, reverse=True)
    assert worker.store.has(done)
    assert not worker.store.has(under_way)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [under_way]
    assert {result.status for result in Worker(worker.site).run_chains(lines)} == {"finished"}
    assert not leftovers(folder)


def test_a_stacked_run_goes_on_from_its_checkpoint_among_other_neighbours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=[0], levels=1)
    worker = Worker(WorkerConfig(folder, engine="stacked", stack=2))
    schedule = Scheduler(plan, worker.store)
    ((dense,),) = taken(schedule)
    schedule.finish(dense, worker.run_task(dense))
    lines = taken(schedule)
    asked = iter([False] * 4)
    with pytest.raises(TaskInterrupted):
        worker.run_chains(lines, lambda: next(asked, True))
    loaded: list[object] = []
    load = StoreCheckpointer.load
    monkeypatch.setattr(StoreCheckpointer, "load", lambda self: loaded.append(load(self)) or loaded[-1])
    again = Worker(worker.site)
    assert [again.run_chains([line])[0].status for line in lines] == ["finished"] * 2
    assert len(loaded) == 2
    assert None not in loaded


def test_of_a_stack_what_is_done_already_is_not_trained(folder: Path) -> None:
    plan = small_plan({"criterion": ["large_final", "random"]}, seeds=[0], levels=1)
    worker = Worker(WorkerConfig(folder, engine="stacked", stack=4))
    schedule = Scheduler(plan, worker.store)
    ((dense,),) = taken(schedule)
    schedule.finish(dense, worker.run_task(dense))
    (first, second) = (line[0] for line in taken(schedule))
    done = worker.run_task(first)
    results = Worker(worker.site).run_chains([[first], [second]])
    assert {result.run_id: result.status for result in results} == dict.fromkeys(
        (first.run.id, second.run.id), "finished"
    )
    assert worker.run_chains([[first]]) == [done]


def test_runs_of_a_seed_share_its_split_however_many_seeds_are_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what nobody is at goes: the memory of a study of many seeds is flat."""
    made: list[int] = []
    monkeypatch.setattr("supermask.execution.resources.CACHED_SPLITS", 2)
    monkeypatch.setattr(
        "supermask.datasets.images.split_data", lambda _, seed: made.append(seed) or split_data(_, seed)
    )
    runs = [run for run in small_plan(seeds=4, levels=1).runs.values() if run.level == 0]
    here = DatasetCache(None)
    stacked = [here.split_for(run) for run in runs]
    assert [here.split_for(run) for run in runs] == stacked
    assert made == [0, 1, 2, 3]
    stacked.clear()
    for run in (runs[3], runs[2], runs[0], runs[3]):
        here.split_for(run)
    assert made == [0, 1, 2, 3, 0, 3]


def test_only_tasks_alike_are_stacked(folder: Path) -> None:
    """A treatment of another recipe waits for the next stack."""
    plan = small_plan(
        {"rewind_to": ["start", "end"], "learning_rate_rewinding": False}, seeds=[0, 1], levels=1, lr_drops=[0.3]
    )
    schedule = Scheduler(plan, Store(folder))
    worker = Worker(WorkerConfig(folder, engine="stacked", stack=9))
    for task in schedule.take_stack(9):
        schedule.finish(task, worker.run_task(task))
    assert schedule.ready_count == 4
    stacks = [schedule.take_stack(9), schedule.take_stack(9)]
    assert [len({task.run.recipe for task in stack}) for stack in stacks] == [1, 1]
    assert sum(map(len, stacks)) == 4
    assert schedule.ready_count == 0
    mixed = [[task] for task in (stacks[0][0], stacks[1][0], stacks[0][1], stacks[1][1])]
    assert [result.status for result in worker.run_chains(mixed)] == ["finished"] * 4
