"""The worker: one task from its initial state to the commit, in this process and with a real store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.faulty_disk import quick_folder
from helpers.small_studies import PlanRun, TrainedStore, contents, facts, leftovers, small_plan, train_plan

from supermask.core.certificate import Certificate
from supermask.core.errors import SystemFailure, UserError
from supermask.core.recipe import Recipe
from supermask.core.types import SplitData, TrainingResult
from supermask.datasets import load
from supermask.engines import reference
from supermask.engines.job import TrainingJob
from supermask.execution.commit import RunCommitter
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig, emptied_message
from supermask.execution.worker import PreparedTask, ShouldStop, Worker, get_worker
from supermask.store import Store
from supermask.store.files.entry import CorruptEntry
from supermask.study.plan import Plan
from supermask.study.run import Run

WILD = Recipe("sgd", 1e30, 60, 12, 4)

TREATMENTS = (
    {"criterion": ["large_final", "random"]},
    {"name": "late", "rewind_to": 5, "mask0": "freeze_final", "criterion": "snip"},
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def statuses(plan_run: PlanRun, plan: Plan) -> list[str]:
    return [plan_run.schedule.status[run_id] for run_id in plan.runs]


# ----------------------------------------------------------------------------------------------------- reproducibility


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_results_are_independent_of_worker_and_order(folder: Path, trained: TrainedStore, seed: int) -> None:
    """Three workers with different caches in random order, against one worker in planned order."""
    plan = small_plan(*TREATMENTS, seeds=2, levels=3)
    one = trained(plan)
    rng = np.random.default_rng(seed)
    workers = [Worker(WorkerConfig(folder / "three")) for _ in range(3)]
    scheduler = Scheduler(plan, workers[0].store)
    ready: list[Task] = []
    while scheduler.tasks_left:
        while (task := scheduler.take()) is not None:
            ready.append(task)
        task = ready.pop(rng.integers(len(ready)))
        scheduler.finish(task, workers[rng.integers(3)].run_task(task))
    assert contents(folder / "three") == contents(one)
    assert facts(folder / "three", plan) == facts(one, plan)


def test_facts_record_the_provenance_of_a_run(folder: Path) -> None:
    plan = small_plan(levels=1)
    plan_run = train_plan(plan, folder)
    for task, result in plan_run.ended:
        stored = Store(folder).facts(task.run.id)
        assert result == TaskResult(task.run.id, "finished", stored["seconds"], stored["metrics"])
        assert stored["data"] == {"fingerprint": load("digits").fingerprint, "note": ""}
        assert stored["environment"]["threads"] == 1 and stored["engine"] == "reference"
        assert stored["certificate"]["held"] and 0 < stored["seconds"] < 60
        assert result.metrics["final_test_accuracy"] > 0


def test_a_process_has_one_worker_per_config(folder: Path) -> None:
    config = WorkerConfig(folder)
    assert get_worker(config) is get_worker(WorkerConfig(folder))
    assert get_worker(replace(config, store=folder / "other")) is not get_worker(config)


@pytest.mark.slow
def test_a_second_commit_of_a_run_is_harmless(folder: Path) -> None:
    """As when two processes train the same runs at the same time."""
    plan = small_plan(*TREATMENTS, levels=2)
    train_plan(plan, folder)
    expected, before = contents(folder), facts(folder, plan)

    class Late(Worker):
        def _stored_result(self, task: Task) -> None:
            """Find nothing: the other process has not committed yet."""

    late_worker = Late(WorkerConfig(folder))
    scheduler = Scheduler(plan, Store(folder / "empty"))
    results = []
    while (task := scheduler.take()) is not None:
        results.append(late_worker.run_task(task))
        scheduler.finish(task, results[-1])
    assert {result.status for result in results} == {"finished"}
    assert (contents(folder), facts(folder, plan)) == (expected, before)
    assert not leftovers(folder)


def test_runs_that_another_process_finished_are_taken_from_the_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(*TREATMENTS, levels=2)
    scheduler = Scheduler(plan, Store(folder))
    plan_run = train_plan(plan, folder)
    monkeypatch.setattr(reference, "train", None)
    worker = Worker(WorkerConfig(folder))
    results = []
    while (task := scheduler.take()) is not None:
        results.append(worker.run_task(task))
        scheduler.finish(task, results[-1])
    assert results == [result for _, result in plan_run.ended]


def test_a_stored_run_without_a_snapshot_is_replayed_for_it(folder: Path) -> None:
    plain, late = small_plan(levels=1), small_plan({"rewind_to": 5}, levels=1)
    scheduler = Scheduler(late, Store(folder))
    train_plan(plain, folder)
    expected = contents(folder)
    worker = Worker(WorkerConfig(folder))
    while (task := scheduler.take()) is not None:
        scheduler.finish(task, worker.run_task(task))
    assert {*scheduler.status.values()} == {"finished"}
    assert expected.items() <= contents(folder).items()


# -------------------------------------------------------------------------------------------------------- failed runs


def test_a_diverged_run_ends_its_own_chain_only(folder: Path) -> None:
    """One run of one treatment trains at a far too high learning rate."""
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=3)
    criterion = {run.id: run.step.criterion if run.step else "" for run in plan.runs.values()}

    class Diverging(Worker):
        def prepare(self, task: Task, should_stop: ShouldStop) -> PreparedTask | TaskResult:
            prepared = super().prepare(task, should_stop)
            if isinstance(prepared, PreparedTask) and criterion[task.run.id] == "random" and task.run.level == 2:
                return replace(prepared, job=replace(prepared.job, recipe=WILD))
            return prepared

    plan_run = train_plan(plan, folder, worker=Diverging(WorkerConfig(folder)))
    statuses_by_level = {
        (criterion[run_id], plan.runs[run_id].level): plan_run.schedule.status[run_id] for run_id in plan.runs
    }
    assert statuses_by_level.pop(("random", 2)) == "diverged"
    assert statuses_by_level.pop(("random", 3)) == "ancestor_diverged"
    assert {*statuses_by_level.values()} == {"finished"}
    (result,) = (result for _, result in plan_run.ended if result.status == "diverged")
    assert result.metrics["diverged_at"] >= 1 and result.metrics["final_test_accuracy"] is None
    assert result.message == ""
    stored = Store(folder).read(result.run_id)
    assert stored.weights == {} and stored.facts["metrics"] == result.metrics
    assert train_plan(plan, folder).ended == []


def test_a_study_in_which_every_run_diverges_ends(folder: Path) -> None:
    plan = small_plan(levels=2, lr=1e30, optimizer="sgd", seeds=2)
    plan_run = train_plan(plan, folder)
    assert statuses(plan_run, plan) == ["diverged", "ancestor_diverged", "ancestor_diverged"] * 2


def refuse(monkeypatch: pytest.MonkeyPatch, level: int, times: int) -> None:
    """Let the certificates of the first `times` trainings of a level fail."""
    certificate = RunCommitter.certificate
    failures = [Certificate({"frozen_is_frozen": ["fc1"]})] * times

    def fail_at_first(committer: RunCommitter, run: Run, *arguments: Any) -> Certificate:
        correct = certificate(committer, run, *arguments)
        return failures.pop() if failures and run.level == level else correct

    monkeypatch.setattr(RunCommitter, "certificate", fail_at_first)


def test_a_run_that_is_refused_once_is_trained_again(
    folder: Path, trained: TrainedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a bit error in memory: the second training is right, and the chain continues."""
    plan = small_plan(levels=3)
    whole = trained(plan)
    refuse(monkeypatch, level=1, times=1)
    plan_run = train_plan(plan, folder / "store")
    assert statuses(plan_run, plan) == ["finished"] * 4
    refused = list(plan.runs)[1]
    assert [result.run_id for _, result in plan_run.ended].count(refused) == 2
    assert contents(folder / "store") == contents(whole)
    assert {**facts(folder / "store", plan)[refused], "attempts": None} == {
        **facts(whole, plan)[refused],
        "attempts": None,
    }
    (aside,) = (folder / "store" / "quarantine").iterdir()
    assert "certificate failed: frozen_is_frozen (fc1)" in (aside / "why.txt").read_text()


def test_a_run_that_an_earlier_release_refused_is_trained_once_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(levels=3)
    with monkeypatch.context() as patch:
        refuse(patch, level=1, times=2)
        train_plan(plan, folder)
    store = Store(folder)
    refused = list(plan.runs)[1]
    entry = store.read(refused)
    store.quarantine(refused, "a test")
    earlier = {name: value for name, value in entry.facts.items() if name != "attempts"}
    store.commit(refused, earlier, entry.tensors, entry.weights or {})
    plan_run = train_plan(plan, folder)
    assert statuses(plan_run, plan) == ["finished"] * 4
    assert Store(folder).facts(refused)["attempts"] == 2
    assert train_plan(plan, folder).ended == []


def test_a_run_whose_certificate_fails_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an engine that trains pruned weights."""
    train = reference.train

    def train_without_masks(
        jobs: Sequence[TrainingJob], data: Sequence[SplitData], device: str = "cpu"
    ) -> list[TrainingResult]:
        (job,) = jobs
        dense = {name: torch.ones_like(mask) for name, mask in job.start.masks.items()}
        return train([replace(job, start=replace(job.start, masks=dense))], data, device)

    monkeypatch.setattr(reference, "train", train_without_masks)
    plan = small_plan({"criterion": ["large_final", "random"]}, levels=2)
    plan_run = train_plan(plan, folder)
    assert statuses(plan_run, plan) == ["finished", *["certificate_failed", "ancestor_certificate_failed"] * 2]
    assert [result.attempts for _, result in plan_run.ended[1:]] == [1, 2, 1, 2]
    assert len(list((folder / "quarantine").iterdir())) == 2
    for _, result in plan_run.ended[1:]:
        assert "certificate failed" in result.message and "frozen_is_frozen" in result.message
        stored = Store(folder).facts(result.run_id)
        assert stored["status"] == "certificate_failed" and not stored["certificate"]["held"]
    monkeypatch.undo()
    assert train_plan(plan, folder).ended == []


def test_a_run_with_an_emptied_layer_is_trained_once_with_advice(folder: Path) -> None:
    """Weights of the first layer are drawn smaller, so global ranking by initial magnitude leaves it none."""
    plan = small_plan({"criterion": "large_init"}, scope="global", rates={"global": 0.9}, levels=3)
    plan_run = train_plan(plan, folder)
    assert statuses(plan_run, plan) == ["finished", "finished", "certificate_failed", "ancestor_certificate_failed"]
    assert [result.attempts for _, result in plan_run.ended[2:]] == [1]
    assert not list((folder / "quarantine").glob("*"))
    (refused,) = [result for _, result in plan_run.ended if result.status == "certificate_failed"]
    advice = "no weight is left in fc1.weight: all layers are ranked together (scope: global); use a lower rate "
    advice += "(prune.rates: 'global'), fewer levels, or exclude the layer (prune.exclude)"
    assert refused.message == advice
    assert emptied_message(Store(folder), [refused.run_id]) == (
        f"1 run with an emptied layer is not a result: {advice} (level 2, seed 0, run {refused.run_id})."
    )
    assert train_plan(plan, folder).ended == []


# ------------------------------------------------------------------------------------------------------ inputs of runs


def test_data_other_than_the_parents_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_plan(small_plan(levels=1), folder)
    digits = load("digits")
    late_worker = replace(digits, train_labels=digits.train_labels[::-1].copy(), fingerprint="f" * 64)
    monkeypatch.setattr("supermask.execution.resources.load_data", lambda *_: late_worker)
    with pytest.raises(UserError, match=f"other data .{digits.fingerprint[:12]}. than is there now .ffffffffffff"):
        train_plan(small_plan(levels=2), folder)
    with pytest.raises(UserError, match="other data"):
        train_plan(small_plan({"rewind_to": 5}, levels=1), folder)  # The dense run is replayed.
    assert len(Store(folder).run_ids()) == 2


def flip_bit(folder: Path, key: str, name: str = "weights.safetensors") -> None:
    """Flip one bit of an entry."""
    path = folder / ("points" if "-" in key else "runs") / key[:2] / key / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", ["weights.safetensors", "tensors.safetensors", "run.json"])
def test_a_damaged_ancestor_is_set_aside_and_recomputed(
    folder: Path, trained: TrainedStore, level: int, name: str
) -> None:
    """The damage is found when the initial state is made; the study ends bit-identical to one without damage."""
    small, plan = small_plan({"mask0": "freeze_final"}, levels=2), small_plan({"mask0": "freeze_final"}, levels=3)
    whole = trained(plan)
    train_plan(small, folder / "damaged")
    damaged = list(plan.runs)[level]
    flip_bit(folder / "damaged", damaged, name)
    plan_run = train_plan(plan, folder / "damaged")
    assert sorted(plan_run.trained) == sorted([damaged, list(plan.runs)[3]])
    (message,) = plan_run.schedule.damaged
    assert damaged in message and "set aside" in message
    assert contents(folder / "damaged") == contents(whole)
    assert [path.name[:32] for path in (folder / "damaged" / "quarantine").iterdir()] == [damaged]
    assert {*plan_run.schedule.status.values()} == {"finished"}


def test_a_damaged_snapshot_is_set_aside_and_replayed(folder: Path, trained: TrainedStore) -> None:
    late = {"rewind_to": 5}
    plan = small_plan(late, levels=2)
    whole = trained(plan)
    train_plan(small_plan(late, levels=1), folder / "damaged")
    dense = next(iter(plan.runs))
    flip_bit(folder / "damaged", f"{dense}-iteration_5", "tensors.safetensors")
    plan_run = train_plan(plan, folder / "damaged")
    assert plan_run.replayed == {dense: {5}}
    assert contents(folder / "damaged") == contents(whole)


@pytest.mark.slow
def test_snapshots_that_another_study_drops_are_replayed(folder: Path, trained: TrainedStore) -> None:
    plan = small_plan({"rewind_to": 5}, levels=3)
    whole = trained(plan)

    def drop_all(scheduler: Scheduler, task: Task) -> None:
        if dropping and task.run.level == 2:
            dropping.pop()
            for run_id in scheduler.store.run_ids():
                scheduler.store.drop_weights(run_id)
                scheduler.store.drop_snapshot(run_id, "iteration_5")
            worker.replayer = type(worker.replayer)(worker.store)

    dropping = [True]
    worker = Worker(WorkerConfig(folder / "dropped"))
    plan_run = train_plan(plan, folder / "dropped", worker=worker, before=drop_all)
    dense, first, *_ = plan.runs
    assert plan_run.replayed == {dense: {5}, first: {"end"}}
    (message,) = plan_run.schedule.damaged
    assert "is not in the store any more" in message
    assert contents(folder / "dropped") == contents(whole)
    assert not (folder / "dropped" / "quarantine").exists()


def test_a_replay_that_is_not_bit_identical_is_refused(folder: Path) -> None:
    """As on another machine: the snapshot would not lie on the stored run's trajectory."""
    plan = small_plan(levels=1)
    store = train_plan(plan, folder).schedule.store
    dense = next(iter(plan.runs))
    entry = store.read(dense)
    assert entry.weights is not None
    store.quarantine(dense, "a test")
    late_worker = {name: np.nextafter(values, np.float32(9)) for name, values in entry.weights.items()}
    store.commit(dense, entry.facts, entry.tensors, late_worker)
    with pytest.raises(SystemFailure, match=f"{dense} was trained again .* gave other bits"):
        train_plan(small_plan({"rewind_to": 5}, levels=1), folder)
    assert not store.snapshot_keys()


def test_a_snapshot_of_an_unfinished_run_in_another_environment_is_replaced(
    folder: Path, trained: TrainedStore
) -> None:
    plan = small_plan({"rewind_to": 5}, levels=1)
    whole = trained(plan)
    dense = next(iter(plan.runs))
    entry = Store(whole).read_snapshot(dense, "iteration_5")
    stale_tensors = {name: values + 1 for name, values in entry.tensors.items()}
    Store(folder / "stale").commit_snapshot(dense, "iteration_5", entry.facts, stale_tensors)
    train_plan(plan, folder / "stale")
    assert contents(folder / "stale") == contents(whole)
    statuses_by_level = Store(folder / "stale").read_snapshot(dense, "iteration_5").tensors
    assert {n: a.tobytes() for n, a in statuses_by_level.items()} == {n: a.tobytes() for n, a in entry.tensors.items()}


def test_damage_becomes_a_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every executor can continue."""
    plan = small_plan(levels=1)
    train_plan(plan, folder)
    dense, last = plan.runs.values()
    Store(folder).quarantine(last.id, "a test")

    def damaged(*_: object) -> None:
        raise CorruptEntry(dense.id, "a test")

    worker = Worker(WorkerConfig(folder))
    monkeypatch.setattr(worker, "_initial_state", damaged)
    result = worker.run_task(Task(last))
    assert (result.status, result.missing_key) == ("not_started", dense.id)
    assert not Store(folder).has(dense.id)


def test_a_replay_with_costs_of_another_release_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1)
    train_plan(plan, folder, engine="sparse")
    worker, run = Worker(WorkerConfig(folder, engine="sparse")), next(iter(plan.runs.values()))
    before = worker.store.facts(run.id)
    before["environment"]["costs"] = {"walks": {"weight": 1.0}}
    monkeypatch.setattr(Store, "facts", lambda *_: before)
    with pytest.raises(SystemFailure, match="another release of supermask"):
        worker.run_task(Task(run, frozenset({5}), replay=True))
