"""ongoing: what is told and mended whatever dies, is damaged or is interrupted; each run once, to the same bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from helpers.small_studies import carry_out, contents, small_plan
from helpers.worker_pools import NOWHERE, InThisProcess, Quick, chains, moved, ongoing_of

from supermask.execution.coordinator import Assignment, Coordinator, StudyInterrupted, WorkerDied, open_coordinator
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import TaskResult, WorkerConfig, result_from_facts, stored_result
from supermask.execution.worker import Worker
from supermask.store import Store


def sizes(portions: Sequence[Assignment]) -> list[list[int]]:
    return [[len(line) for line in portion.chains] for portion in portions]


# ------------------------------------------------------------------------------------------- beginnings, damage, Ctrl-C


@pytest.mark.parametrize(("stack", "prefers_whole_chains"), [(3, False), (1, True), (1, False)])
def test_every_beginning_is_told_of_once_and_before_its_end(stack: int, prefers_whole_chains: bool) -> None:
    """Of lines that wait for their place in a stack, or for the line before them, too."""
    plan, heard = chains(4, 2), list[tuple[str, str]]()
    ongoing = Coordinator(
        Scheduler(plan, Store(NOWHERE)),
        WorkerConfig(NOWHERE, engine="stacked", stack=stack),
        lambda _, task, __: heard.append((task.run.id, "ended")),
        "all",
        lambda task: heard.append((task.run.id, "began")),
    )
    ongoing.run(Quick(1, prefers_whole_chains))
    assert sorted(heard) == sorted((run_id, what) for run_id in plan.runs for what in ("began", "ended"))
    assert all(heard.index((run_id, "began")) < heard.index((run_id, "ended")) for run_id in plan.runs)


def test_what_a_dead_worker_would_have_gone_on_with_has_not_begun(tmp_path: Path) -> None:
    """It commits the first of its line and dies."""
    plan, deaths = chains(1, 1), list[int]()
    carry_out(plan, tmp_path / "whole")

    class Dying(Quick):
        def answer(self, portion: Assignment) -> Sequence[TaskResult] | WorkerDied:
            if deaths:
                return super().answer(portion)
            deaths.append(len(begun))
            moved(tmp_path / "whole", tmp_path / "store", portion.tasks[0].run.id)
            return WorkerDied()

    ongoing, ended, begun = ongoing_of(plan, tmp_path / "store", engine="stacked", stack=4)
    ongoing.run(Dying(1))
    assert deaths == [1]
    assert begun == [*plan.runs]
    assert ended == [f"{run_id} finished" for run_id in plan.runs]


def test_one_damaged_parent_of_a_whole_stack_is_mended(tmp_path: Path) -> None:
    """Five lines cannot begin for one reason: that is one fault of the disk, not five."""
    store = tmp_path / "store"
    carry_out(chains(5, 1, levels=1), store)
    plan = chains(5, 1, levels=2)
    dense = next(iter(plan.runs))
    (weights,) = (store / "runs" / dense[:2] / dense).glob("weights*")
    weights.write_bytes(b"damaged")
    ongoing, _, _ = ongoing_of(plan, store, engine="stacked", stack=8)
    ongoing.run(InThisProcess(WorkerConfig(store, engine="stacked", stack=8)))
    assert {*ongoing.schedule.status.values()} == {"finished"}
    (said,) = ongoing.schedule.damaged
    assert dense in said and "set aside" in said


def test_an_entry_that_is_found_damaged_under_way_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at the store comes upon it before the worker whose turn it is."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.0)
    plan, store = chains(1, 1), tmp_path / "store"
    dense, *_ = plan.runs

    class Looked(InThisProcess):
        looks = 0

        def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
            self.looks += 1
            if self.looks == 1:
                (store / "runs" / dense[:2] / dense).mkdir(parents=True)
                return []
            return super().poll()

    ongoing, _, _ = ongoing_of(plan, store, engine="stacked", stack=4)
    ongoing.run(Looked(WorkerConfig(store, engine="stacked", stack=4)))
    assert {*ongoing.schedule.status.values()} == {"finished"}
    assert [dense in said for said in ongoing.schedule.damaged] == [True]


def test_what_is_in_the_store_without_its_points_has_not_ended(tmp_path: Path) -> None:
    """Another process has finished it for a study that does not look at them."""
    plan = small_plan({"rewind_to": 5}, levels=2)
    schedule = Scheduler(plan, Store(tmp_path))
    task = schedule.take()
    assert task is not None and task.snapshots == {5, "end"}
    carry_out(small_plan(levels=1), tmp_path)
    assert stored_result(schedule.store, task) is None
    carry_out(plan, tmp_path)
    assert stored_result(schedule.store, task) == result_from_facts(schedule.store.facts(task.run.id))


def test_what_is_traced_again_is_seen_in_the_store_too(tmp_path: Path) -> None:
    """Trained once, also where its worker dies after that."""
    carry_out(small_plan(levels=1), tmp_path, keep="masks")
    plan, traced = small_plan(levels=2), list[str]()

    class Dying(InThisProcess):
        def answer(self, portion: Assignment) -> Sequence[TaskResult] | WorkerDied:
            line = portion.chains[0]
            if line[0].replay:
                traced.append(line[0].run.id)
                assert self.worker.run_task(line[0]).message == "points traced again"
                return WorkerDied()
            return super().answer(portion)

    ongoing, ended, _ = ongoing_of(plan, tmp_path, stack=4)
    ongoing.run(Dying(WorkerConfig(tmp_path)))
    assert traced and len(traced) == len({*traced})
    assert len(ended) == len({*ended})
    assert {*ongoing.schedule.status.values()} == {"finished"}


def test_what_is_left_after_ctrl_c_is_not_in_the_store(tmp_path: Path) -> None:
    """A worker that is in the middle of its portion has finished two of it, of which nobody was told yet."""
    plan = chains(1, 1)
    whole = tmp_path / "whole"
    carry_out(plan, whole)
    site = WorkerConfig(tmp_path / "store", stack=4)

    class Interrupted(Quick):
        def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
            for run_id in [*plan.runs][:2]:
                moved(whole, site.store, run_id)
            raise KeyboardInterrupt

    with (
        pytest.raises(StudyInterrupted) as stopped,
        open_coordinator(plan, site, lambda *_: None, "all", None, lambda _: None) as ongoing,
    ):
        ongoing.run(Interrupted(1))
    assert stopped.value.remaining == len(plan.runs) - 2


def test_ctrl_c_while_weights_are_dropped_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Scheduler, "drop_unneeded", interrupt)
    plan = chains(1, 1)
    with (
        pytest.raises(StudyInterrupted) as stopped,
        open_coordinator(plan, WorkerConfig(tmp_path), lambda *_: None, "masks", None, lambda _: None),
    ):
        pass
    assert stopped.value.remaining == len(plan.runs)


# ---------------------------------------------------------------------------------------------------- whatever happens


class Chance(Quick):
    """Trains a run at a time, of any portion; any worker may die before any run."""

    def __init__(self, site: WorkerConfig, chance: np.random.Generator, prefers_whole_chains: bool) -> None:
        super().__init__(3, prefers_whole_chains)
        self._worker, self._chance = Worker(site), chance
        self._through: dict[Assignment, list[TaskResult]] = {}
        self.trained: list[str] = []

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        portion = self._waiting[self._chance.integers(len(self._waiting))]
        results = self._through.setdefault(portion, [])
        said = {result.run_id: result.status for result in results}
        lines = [[*dropwhile(lambda task: said.get(task.run.id) == "finished", line)] for line in portion.chains]
        left = [line[0] for line in lines if line and line[0].run.id not in said]
        if left and self._chance.random() > 0.1:
            task = left[self._chance.integers(len(left))]
            self.trained.append(task.run.id)
            results.append(self._worker.run_task(task))
            return []
        self._waiting.remove(portion)
        return [(portion, WorkerDied(node_lost=True) if left else results)]


@pytest.mark.parametrize("keep", get_args(KeepPolicy))
@pytest.mark.parametrize(("stack", "prefers_whole_chains"), [(1, False), (1, True), (2, False), (9, False)])
def test_whatever_dies_each_run_is_trained_and_heard_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: KeepPolicy, stack: int, prefers_whole_chains: bool
) -> None:
    """First one level, of which weights are dropped; then the study is made larger: some runs are traced again."""
    monkeypatch.setattr("supermask.execution.coordinator.STORE_POLL_SECONDS", 0.0)
    treatments = ({"criterion": ["large_final", "random"]}, {"name": "late", "rewind_to": 5, "criterion": "snip"})
    plans = [small_plan(*treatments, seeds=2, levels=levels) for levels in (1, 3)]
    site, chance = WorkerConfig(tmp_path / "store", stack=stack), np.random.default_rng(stack)
    heard: list[tuple[str, bool]] = []
    begun = Counter[str]()
    for plan in plans:
        crew = Chance(site, chance, prefers_whole_chains)
        with open_coordinator(
            plan,
            site,
            lambda _, task, result: heard.append((result.run_id, task.replay)),
            keep,
            None,
            lambda task: begun.update([task.run.id]),
        ) as ongoing:
            ongoing.run(crew)
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
    assert one.snapshot_keys() == other.snapshot_keys()
