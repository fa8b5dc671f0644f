"""ongoing: who is given what, what is made of their answers and of the store; with crews that train nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers.small_studies import carry_out
from helpers.worker_pools import NOWHERE, Quick, chains, moved, ongoing_of

from supermask.core.errors import SystemFailure
from supermask.execution.coordinator import MAX_NODE_LOSSES, MAX_WORKER_CRASHES, Assignment, WorkerDied
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Chain, Task, TaskResult
from supermask.store import Store


def sizes(portions: Sequence[Assignment]) -> list[list[int]]:
    return [[len(line) for line in portion.chains] for portion in portions]


def test_one_at_a_time_a_worker_is_given_a_task() -> None:
    plan, crew = chains(2, 2), Quick(3)
    ongoing, ended, begun = ongoing_of(plan)
    ongoing.run(crew)
    assert sizes(crew.given) == [[1]] * len(plan.runs)
    assert sorted(ended) == sorted(f"{run_id} finished" for run_id in plan.runs)
    assert sorted(begun) == sorted(plan.runs)
    assert max(crew.at_once) == 3


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (8, [[[1]] * 2, [[3]] * 8]),  # a line a job
        (4, [[[1]] * 2, [[3]] * 6, [[3, 3]]]),
        (1, [[[1, 1]], [[3] * 8]]),  # several lines a job, rather than one job after another
    ],
)
def test_whole_lines_where_answers_take_long(room: int, expected: list[list[list[int]]]) -> None:
    plan, crew = chains(4, 2), Quick(room, prefers_whole_chains=True)
    ongoing, ended, _ = ongoing_of(plan)
    ongoing.run(crew)
    given = sizes(crew.given)
    assert given[: len(expected[0])] == expected[0]
    assert sorted(map(sum, given)) == sorted(sum(line) for part in expected for line in part)
    assert len(ended) == len(plan.runs)


def test_stacks_leave_other_workers_theirs_and_hold_what_fills_them_up_again() -> None:
    """Twenty chains: to two workers with room for 16 each, ten; with room for 3, twice that many lines at a time."""
    plan = chains(5, 4)
    for stack, expected in ((16, [[1] * 2] * 2 + [[3] * 10] * 2), (3, [[1] * 2] * 2 + [[3] * 6] * 3 + [[3] * 2])):
        crew = Quick(2)
        ongoing, ended, _ = ongoing_of(plan, engine="stacked", stack=stack)
        ongoing.run(crew)
        assert sorted(sizes(crew.given), key=str) == sorted(expected, key=str)
        assert len(ended) == len(plan.runs)


def test_lines_that_do_not_fill_a_gpu_are_not_spread_over_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty chains and eight places on GPUs: two stacks, of twelve and of eight, where a dozen fill one."""
    monkeypatch.setattr("supermask.execution.coordinator.MIN_CHAINS_PER_GPU", 12)
    crew = Quick(8)
    ongoing, ended, _ = ongoing_of(chains(5, 4), engine="stacked", stack=None, device="cuda")
    ongoing.run(crew)
    assert sizes(crew.given) == [[1] * 4, [3] * 12, [3] * 8]
    assert len(ended) == len(ongoing.schedule.plan.runs)


def test_what_has_ended_is_seen_in_the_store_before_the_worker_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crew puts a run into the store, and says nothing until it is heard of."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.0)
    plan = chains(1, 1)
    whole = tmp_path / "whole"
    carry_out(plan, whole)

    class Slow(Quick):
        def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
            (portion,) = self._waiting
            left = [task for task in portion.tasks if not store.has(task.run.id)]
            if left:
                assert len(ended) == len(plan.runs) - len(left)
                moved(whole, tmp_path / "store", left[0].run.id)
                return []
            return super().poll()

    store = Store(tmp_path / "store")
    ongoing, ended, begun = ongoing_of(plan, tmp_path / "store", engine="stacked", stack=4)
    ongoing.run(Slow(1))
    assert ended == [f"{run_id} finished" for run_id in plan.runs]
    assert begun == [*plan.runs]


def test_a_line_that_breaks_off_is_given_up_below_and_nowhere_else() -> None:
    plan = chains(2, 1)
    (bad, *_) = (run.id for run in plan.runs.values() if run.level == 2)

    class Diverging(Quick):
        def answer(self, portion: Assignment) -> list[TaskResult]:
            return [result for line in portion.chains for result in until_bad(line)]

    def until_bad(line: Chain) -> list[TaskResult]:
        found: list[TaskResult] = []
        for task in line:
            found.append(TaskResult(task.run.id, "diverged" if task.run.id == bad else "finished"))
            if task.run.id == bad:
                break
        return found

    ongoing, _, _ = ongoing_of(plan, engine="stacked", stack=4)
    ongoing.run(Diverging(1))
    counts = sorted(ongoing.schedule.status.values())
    assert counts == ["ancestor_diverged", "diverged", *["finished"] * 5]


@pytest.mark.parametrize("node", [False, True])
def test_what_died_is_tried_again_so_many_times(node: bool) -> None:
    plan, tries = chains(2, 1), MAX_NODE_LOSSES if node else MAX_WORKER_CRASHES

    class Dying(Quick):
        deaths = 0

        def answer(self, portion: Assignment) -> Sequence[TaskResult] | WorkerDied:
            if len(portion.tasks) > 1 and self.deaths < most:
                self.deaths += 1
                return WorkerDied(node)
            return super().answer(portion)

    for most in (tries - 1, tries):
        ongoing, ended, _ = ongoing_of(plan, engine="stacked", stack=4)
        if most < tries:
            ongoing.run(Dying(1))
            assert len(ended) == len(plan.runs)
        else:
            what = "a node" if node else "a worker process"
            with pytest.raises(SystemFailure, match=f"{what} died {tries} times .* or a smaller --stack"):
                ongoing.run(Dying(1))


def test_of_lines_one_after_another_the_one_in_training_is_blamed() -> None:
    plan = chains(3, 1)
    killer = [run.id for run in plan.runs.values() if run.level == 2][1]

    class Dying(Quick):
        def answer(self, portion: Assignment) -> Sequence[TaskResult] | WorkerDied:
            return WorkerDied() if any(task.run.id == killer for task in portion.chains[0]) else super().answer(portion)

    ongoing, _, _ = ongoing_of(plan)
    with pytest.raises(SystemFailure, match=r"died 3 times while run .* level 1\) .* Try --workers 1\."):
        ongoing.run(Dying(3, prefers_whole_chains=True))


def test_what_could_not_be_begun_has_the_schedule_made_again() -> None:
    plan = chains(2, 1, levels=1)
    answers: list[Callable[[str], TaskResult]] = [
        lambda run_id: TaskResult(run_id, "not_started", message="damaged", missing_key="x"),
    ]

    class Damaged(Quick):
        def answer(self, portion: Assignment) -> list[TaskResult]:
            return [
                answers.pop()(task.run.id) if answers and task.run.level else TaskResult(task.run.id, "finished")
                for task in portion.tasks
            ]

    ongoing, ended, _ = ongoing_of(plan)
    ongoing.run(Damaged(1))
    # Nothing is in the store here: so the dense run is found missing, and done again with all that is below it.
    assert [line.split()[1] for line in ended] == ["finished", "not_started", *["finished"] * 3]
    always = Damaged(1)
    answers += [
        lambda run_id: TaskResult(run_id, "not_started", message="damaged", missing_key="x")
    ] * MAX_WORKER_CRASHES
    ongoing, _, _ = ongoing_of(plan)
    with pytest.raises(SystemFailure, match=f"damaged This happened {MAX_WORKER_CRASHES} times"):
        ongoing.run(always)


def test_a_promised_task_is_nobody_elses_until_it_is_returned() -> None:
    plan = chains(1, 1)
    schedule = Scheduler(plan, Store(NOWHERE))
    dense = schedule.take()
    assert dense is not None
    line: list[Task] = schedule.take_chain(dense)
    assert [task.run.level for task in line] == [0, 1, 2, 3]
    schedule.finish(line[0], TaskResult(line[0].run.id, "finished"))
    assert schedule.take() is None
    schedule.release(line)
    assert schedule.take() == line[1]
    assert schedule.take() is None
    schedule.finish(line[1], TaskResult(line[1].run.id, "finished"))
    assert schedule.take() == line[2]
