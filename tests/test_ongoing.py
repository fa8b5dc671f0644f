"""ongoing: who is given what, what is made of their answers and of the store; with crews that train nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from crews import Quick
from small_studies import carry_out, contents, small_plan

from supermask.errors import MachineError
from supermask.execute.ongoing import NODE_TRIES, TRIES, Died, Ongoing, Portion, Stopped, carried_out
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.stored import found, result_of
from supermask.execute.tasks import Line, Result, Site, Task
from supermask.execute.worker import Worker
from supermask.plan import Plan
from supermask.store import Store

NOWHERE = Path("/nowhere/store")


def ongoing_of(plan: Plan, store: Path = NOWHERE, **site: Any) -> tuple[Ongoing, list[str], list[str]]:
    """And what its listeners hear: of ends, and of beginnings."""
    ended: list[str] = []
    begun: list[str] = []
    made = Ongoing(
        Schedule(plan, Store(store)),
        Site(store, **site),
        lambda _, task, result: ended.append(f"{task.run.id} {result.status}"),
        "all",
        lambda task: begun.append(task.run.id),
    )
    return made, ended, begun


def sizes(portions: Sequence[Portion]) -> list[list[int]]:
    return [[len(line) for line in portion.lines] for portion in portions]


def chains(criteria: int, seeds: int, levels: int = 3) -> Plan:
    names = ["large_final", "small_final", "large_init", "random", "movement"]
    return small_plan({"criterion": names[:criteria]}, seeds=seeds, levels=levels)


def test_one_at_a_time_a_worker_is_given_a_task() -> None:
    plan, crew = chains(2, 2), Quick(3)
    ongoing, ended, begun = ongoing_of(plan)
    ongoing.carry_out(crew)
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
    plan, crew = chains(4, 2), Quick(room, whole_lines=True)
    ongoing, ended, _ = ongoing_of(plan)
    ongoing.carry_out(crew)
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
        ongoing.carry_out(crew)
        assert sorted(sizes(crew.given), key=str) == sorted(expected, key=str)
        assert len(ended) == len(plan.runs)


def test_what_has_ended_is_seen_in_the_store_before_the_worker_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crew puts a run into the store, and says nothing until it is heard of."""
    monkeypatch.setattr("supermask.execute.ongoing.LOOK_SECONDS", 0.0)
    plan = chains(1, 1)
    whole = tmp_path / "whole"
    carry_out(plan, whole)

    class Slow(Quick):
        def answers(self) -> list[tuple[Portion, Sequence[Result] | Died]]:
            (portion,) = self._waiting
            left = [task for task in portion.tasks if not store.has(task.run.id)]
            if left:
                assert len(ended) == len(plan.runs) - len(left)
                moved(whole, tmp_path / "store", left[0].run.id)
                return []
            return super().answers()

    store = Store(tmp_path / "store")
    ongoing, ended, begun = ongoing_of(plan, tmp_path / "store", engine="stacked", stack=4)
    ongoing.carry_out(Slow(1))
    assert ended == [f"{run_id} finished" for run_id in plan.runs]
    assert begun == [*plan.runs]


def test_a_line_that_breaks_off_is_given_up_below_and_nowhere_else() -> None:
    plan = chains(2, 1)
    (bad, *_) = (run.id for run in plan.runs.values() if run.level == 2)

    class Diverging(Quick):
        def answer(self, portion: Portion) -> list[Result]:
            return [result for line in portion.lines for result in until_bad(line)]

    def until_bad(line: Line) -> list[Result]:
        found: list[Result] = []
        for task in line:
            found.append(Result(task.run.id, "diverged" if task.run.id == bad else "finished"))
            if task.run.id == bad:
                break
        return found

    ongoing, _, _ = ongoing_of(plan, engine="stacked", stack=4)
    ongoing.carry_out(Diverging(1))
    counts = sorted(ongoing.schedule.status.values())
    assert counts == ["ancestor_diverged", "diverged", *["finished"] * 5]


@pytest.mark.parametrize("node", [False, True])
def test_what_died_is_tried_again_so_many_times(node: bool) -> None:
    plan, tries = chains(2, 1), NODE_TRIES if node else TRIES

    class Dying(Quick):
        deaths = 0

        def answer(self, portion: Portion) -> Sequence[Result] | Died:
            if len(portion.tasks) > 1 and self.deaths < most:
                self.deaths += 1
                return Died(node)
            return super().answer(portion)

    for most in (tries - 1, tries):
        ongoing, ended, _ = ongoing_of(plan, engine="stacked", stack=4)
        if most < tries:
            ongoing.carry_out(Dying(1))
            assert len(ended) == len(plan.runs)
        else:
            what = "a node" if node else "a worker process"
            with pytest.raises(MachineError, match=f"{what} died {tries} times .* or a smaller --stack"):
                ongoing.carry_out(Dying(1))


def test_of_lines_one_after_another_the_one_in_training_is_blamed() -> None:
    plan = chains(3, 1)
    killer = [run.id for run in plan.runs.values() if run.level == 2][1]

    class Dying(Quick):
        def answer(self, portion: Portion) -> Sequence[Result] | Died:
            return Died() if any(task.run.id == killer for task in portion.lines[0]) else super().answer(portion)

    ongoing, _, _ = ongoing_of(plan)
    with pytest.raises(MachineError, match=r"died 3 times while run .* level 1\) .* Try --workers 1\."):
        ongoing.carry_out(Dying(3, whole_lines=True))


def test_what_could_not_be_begun_has_the_schedule_made_again() -> None:
    plan = chains(2, 1, levels=1)
    answers: list[Callable[[str], Result]] = [
        lambda run_id: Result(run_id, "not_started", message="damaged", lacking="x"),
    ]

    class Damaged(Quick):
        def answer(self, portion: Portion) -> list[Result]:
            return [
                answers.pop()(task.run.id) if answers and task.run.level else Result(task.run.id, "finished")
                for task in portion.tasks
            ]

    ongoing, ended, _ = ongoing_of(plan)
    ongoing.carry_out(Damaged(1))
    # Nothing is in the store here: so the dense run is found missing, and done again with all that is below it.
    assert [line.split()[1] for line in ended] == ["finished", "not_started", *["finished"] * 3]
    always = Damaged(1)
    answers += [lambda run_id: Result(run_id, "not_started", message="damaged", lacking="x")] * TRIES
    ongoing, _, _ = ongoing_of(plan)
    with pytest.raises(MachineError, match=f"damaged This happened {TRIES} times"):
        ongoing.carry_out(always)


def test_a_promised_task_is_nobody_elses_until_it_is_returned() -> None:
    plan = chains(1, 1)
    schedule = Schedule(plan, Store(NOWHERE))
    dense = schedule.next()
    assert dense is not None
    line: list[Task] = schedule.line(dense)
    assert [task.run.level for task in line] == [0, 1, 2, 3]
    schedule.ended(line[0], Result(line[0].run.id, "finished"))
    assert schedule.next() is None
    schedule.returned(line)
    assert schedule.next() == line[1]
    assert schedule.next() is None
    schedule.ended(line[1], Result(line[1].run.id, "finished"))
    assert schedule.next() == line[2]


# ------------------------------------------------------------------------------------------- beginnings, damage, Ctrl-C


@pytest.mark.parametrize(("stack", "whole_lines"), [(3, False), (1, True), (1, False)])
def test_every_beginning_is_told_of_once_and_before_its_end(stack: int, whole_lines: bool) -> None:
    """Of lines that wait for their place in a stack, or for the line before them, too."""
    plan, heard = chains(4, 2), list[tuple[str, str]]()
    ongoing = Ongoing(
        Schedule(plan, Store(NOWHERE)),
        Site(NOWHERE, engine="stacked", stack=stack),
        lambda _, task, __: heard.append((task.run.id, "ended")),
        "all",
        lambda task: heard.append((task.run.id, "began")),
    )
    ongoing.carry_out(Quick(1, whole_lines))
    assert sorted(heard) == sorted((run_id, what) for run_id in plan.runs for what in ("began", "ended"))
    assert all(heard.index((run_id, "began")) < heard.index((run_id, "ended")) for run_id in plan.runs)


def test_what_a_dead_worker_would_have_gone_on_with_has_not_begun(tmp_path: Path) -> None:
    """It commits the first of its line and dies."""
    plan, deaths = chains(1, 1), list[int]()
    carry_out(plan, tmp_path / "whole")

    class Dying(Quick):
        def answer(self, portion: Portion) -> Sequence[Result] | Died:
            if deaths:
                return super().answer(portion)
            deaths.append(len(begun))
            moved(tmp_path / "whole", tmp_path / "store", portion.tasks[0].run.id)
            return Died()

    ongoing, ended, begun = ongoing_of(plan, tmp_path / "store", engine="stacked", stack=4)
    ongoing.carry_out(Dying(1))
    assert deaths == [1]
    assert begun == [*plan.runs]
    assert ended == [f"{run_id} finished" for run_id in plan.runs]


def moved(source: Path, target: Path, run_id: str) -> None:
    """A run from a store to another."""
    place = target / "runs" / run_id[:2]
    place.mkdir(parents=True, exist_ok=True)
    (source / "runs" / run_id[:2] / run_id).rename(place / run_id)


class InThisProcess(Quick):
    """Trains, as soon as it is asked for an answer."""

    def __init__(self, site: Site, room: int = 1) -> None:
        super().__init__(room)
        self.worker = Worker(site)

    def answer(self, portion: Portion) -> Sequence[Result] | Died:
        return self.worker.perform_lines(portion.lines)


def test_one_damaged_parent_of_a_whole_stack_is_mended(tmp_path: Path) -> None:
    """Five lines cannot begin for one reason: that is one fault of the disk, not five."""
    store = tmp_path / "store"
    carry_out(chains(5, 1, levels=1), store)
    plan = chains(5, 1, levels=2)
    dense = next(iter(plan.runs))
    (weights,) = (store / "runs" / dense[:2] / dense).glob("weights*")
    weights.write_bytes(b"damaged")
    ongoing, _, _ = ongoing_of(plan, store, engine="stacked", stack=8)
    ongoing.carry_out(InThisProcess(Site(store, engine="stacked", stack=8)))
    assert {*ongoing.schedule.status.values()} == {"finished"}
    (said,) = ongoing.schedule.damaged
    assert dense in said and "set aside" in said


def test_an_entry_that_is_found_damaged_under_way_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the store comes upon it before the worker whose turn it is."""
    monkeypatch.setattr("supermask.execute.ongoing.LOOK_SECONDS", 0.0)
    plan, store = chains(1, 1), tmp_path / "store"
    dense, *_ = plan.runs

    class Looked(InThisProcess):
        looks = 0

        def answers(self) -> list[tuple[Portion, Sequence[Result] | Died]]:
            self.looks += 1
            if self.looks == 1:
                (store / "runs" / dense[:2] / dense).mkdir(parents=True)
                return []
            return super().answers()

    ongoing, _, _ = ongoing_of(plan, store, engine="stacked", stack=4)
    ongoing.carry_out(Looked(Site(store, engine="stacked", stack=4)))
    assert {*ongoing.schedule.status.values()} == {"finished"}
    assert [dense in said for said in ongoing.schedule.damaged] == [True]


def test_what_is_in_the_store_without_its_points_has_not_ended(tmp_path: Path) -> None:
    """Another process has finished it for a study that does not look at them."""
    plan = small_plan({"rewind_to": 5}, levels=2)
    schedule = Schedule(plan, Store(tmp_path))
    task = schedule.next()
    assert task is not None and task.points == {5, "end"}
    carry_out(small_plan(levels=1), tmp_path)
    assert found(schedule.store, task) is None
    carry_out(plan, tmp_path)
    assert found(schedule.store, task) == result_of(schedule.store.facts(task.run.id))


def test_what_is_traced_again_is_seen_in_the_store_too(tmp_path: Path) -> None:
    """Trained once, also where its worker dies after that."""
    carry_out(small_plan(levels=1), tmp_path, keep="masks")
    plan, traced = small_plan(levels=2), list[str]()

    class Dying(InThisProcess):
        def answer(self, portion: Portion) -> Sequence[Result] | Died:
            line = portion.lines[0]
            if line[0].retrace:
                traced.append(line[0].run.id)
                assert self.worker.perform(line[0]).message == "points traced again"
                return Died()
            return super().answer(portion)

    ongoing, ended, _ = ongoing_of(plan, tmp_path, stack=4)
    ongoing.carry_out(Dying(Site(tmp_path)))
    assert traced and len(traced) == len({*traced})
    assert len(ended) == len({*ended})
    assert {*ongoing.schedule.status.values()} == {"finished"}


def test_what_is_left_after_ctrl_c_is_not_in_the_store(tmp_path: Path) -> None:
    """A worker that is in the middle of its portion has finished two of it, of which nobody was told yet."""
    plan = chains(1, 1)
    whole = tmp_path / "whole"
    carry_out(plan, whole)
    site = Site(tmp_path / "store", stack=4)

    class Interrupted(Quick):
        def answers(self) -> list[tuple[Portion, Sequence[Result] | Died]]:
            for run_id in [*plan.runs][:2]:
                moved(whole, site.store, run_id)
            raise KeyboardInterrupt

    with (
        pytest.raises(Stopped) as stopped,
        carried_out(plan, site, lambda *_: None, "all", None, lambda _: None) as ongoing,
    ):
        ongoing.carry_out(Interrupted(1))
    assert stopped.value.left == len(plan.runs) - 2


def test_ctrl_c_while_weights_are_dropped_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Schedule, "drop_surplus", interrupt)
    plan = chains(1, 1)
    with (
        pytest.raises(Stopped) as stopped,
        carried_out(plan, Site(tmp_path), lambda *_: None, "masks", None, lambda _: None),
    ):
        pass
    assert stopped.value.left == len(plan.runs)


# ---------------------------------------------------------------------------------------------------- whatever happens


class Chance(Quick):
    """Trains a run at a time, of any portion; any worker may die before any run."""

    def __init__(self, site: Site, chance: np.random.Generator, whole_lines: bool) -> None:
        super().__init__(3, whole_lines)
        self._worker, self._chance = Worker(site), chance
        self._through: dict[Portion, list[Result]] = {}
        self.trained: list[str] = []

    def answers(self) -> list[tuple[Portion, Sequence[Result] | Died]]:
        portion = self._waiting[self._chance.integers(len(self._waiting))]
        results = self._through.setdefault(portion, [])
        said = {result.run_id: result.status for result in results}
        lines = [[*dropwhile(lambda task: said.get(task.run.id) == "finished", line)] for line in portion.lines]
        left = [line[0] for line in lines if line and line[0].run.id not in said]
        if left and self._chance.random() > 0.1:
            task = left[self._chance.integers(len(left))]
            self.trained.append(task.run.id)
            results.append(self._worker.perform(task))
            return []
        self._waiting.remove(portion)
        return [(portion, Died(node=True) if left else results)]


@pytest.mark.parametrize("keep", get_args(Keep))
@pytest.mark.parametrize(("stack", "whole_lines"), [(1, False), (1, True), (2, False), (9, False)])
def test_whatever_dies_each_run_is_trained_and_heard_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: Keep, stack: int, whole_lines: bool
) -> None:
    """First one level, of which weights are dropped; then the study is made larger: some runs are traced again."""
    monkeypatch.setattr("supermask.execute.ongoing.LOOK_SECONDS", 0.0)
    treatments = ({"criterion": ["large_final", "random"]}, {"name": "late", "rewind_to": 5, "criterion": "snip"})
    plans = [small_plan(*treatments, seeds=2, levels=levels) for levels in (1, 3)]
    site, chance = Site(tmp_path / "store", stack=stack), np.random.default_rng(stack)
    heard: list[tuple[str, bool]] = []
    begun = Counter[str]()
    for plan in plans:
        crew = Chance(site, chance, whole_lines)
        with carried_out(
            plan,
            site,
            lambda _, task, result: heard.append((result.run_id, task.retrace)),
            keep,
            None,
            lambda task: begun.update([task.run.id]),
        ) as ongoing:
            ongoing.carry_out(crew)
        assert {*ongoing.schedule.status.values()} == {"finished"}
        assert not ongoing.schedule.damaged
        assert len({*crew.trained}) == len(crew.trained)
        carry_out(plan, tmp_path / "here", keep=keep)
    assert len({*heard}) == len(heard)
    assert {run_id for run_id, retrace in heard if not retrace} == {*plans[1].runs}
    assert {*begun} == {*plans[1].runs}
    assert contents(tmp_path / "store") == contents(tmp_path / "here")
    one, other = (Store(tmp_path / at) for at in ("store", "here"))
    assert {r for r in plans[1].runs if one.has_weights(r)} == {r for r in plans[1].runs if other.has_weights(r)}
    assert one.point_keys() == other.point_keys()
