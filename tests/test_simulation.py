"""Scheduling on paper, and that what it costs grows no faster than the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from small_studies import small_plan
from test_estimate import stored

from supermask import commands
from supermask.errors import UserError
from supermask.execute.estimate import estimate
from supermask.execute.ongoing import Ongoing
from supermask.execute.schedule import Schedule
from supermask.execute.simulation import wall_seconds
from supermask.execute.tasks import Result
from supermask.plan import Plan
from supermask.runs import Run
from supermask.store import Store

MANY = {"criterion": ["large_final", "random", "movement"], "schedule": ["iterative", "one_shot"]}


def by_ticks(runs: list[Run], lasts: dict[str, int], workers: int) -> int:
    """The same for whole seconds, one after another: who is free takes the deepest that is ready."""
    left, ended, busy, clock = {run.id: run for run in runs}, set[str](), dict[str, int](), 0
    order = {run.id: (-run.level, place) for place, run in enumerate(runs)}
    while left or busy:
        ready = [i for i, run in left.items() if run.parent in ended or run.parent not in order]
        for run_id in sorted(ready, key=order.__getitem__)[: workers - len(busy)]:
            busy[run_id] = clock + lasts[run_id]
            del left[run_id]
        clock += 1
        for run_id in [i for i, end in busy.items() if end == clock]:
            ended.add(run_id)
            del busy[run_id]
    return clock


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 100])
def test_time_on_paper_is_that_of_a_clock(workers: int) -> None:
    plan = small_plan(MANY, seeds=3, levels=4)
    runs, chance = list(plan.runs.values()), np.random.default_rng(workers)
    lasts = {run.id: int(chance.integers(1, 40)) for run in runs}
    exact = {run_id: float(n) for run_id, n in lasts.items()}
    assert wall_seconds(runs, exact, 1) == sum(lasts.values())
    found = wall_seconds(runs, exact, workers)
    assert max(lasts.values()) <= found <= sum(lasts.values())
    assert found == by_ticks(runs, lasts, workers)


def test_a_parent_that_is_there_already_is_not_waited_for() -> None:
    plan = small_plan(levels=2)
    dense, *rest = plan.runs.values()
    assert wall_seconds(rest, {run.id: 2.0 for run in rest}, 5) == 4.0
    assert wall_seconds([], {}, 5) == 0.0
    assert dense.level == 0


# --------------------------------------------------------------------------------------------------- what plan says


def test_plan_says_what_a_cluster_needs_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.execute.estimate._seconds_a_product", lambda: 2e-11)
    words = ("plan", "mask-criteria", "scale=laptop", "--store", tmp_path, "--workers", 2)
    _, before, _ = call(*words)
    status, out, _ = call(*words, "--cores", 64)
    assert status == 0 and out.startswith(before)
    cores, chain, storage = out[len(before) :].splitlines()
    report = commands.plan("mask-criteria", ["scale=laptop"], tmp_path, cores=64)
    hours = report.estimate.core_seconds / 3600
    assert cores.startswith("cores      ") and cores.endswith(f" on 64 cores, {hours:,.1f} core-hours")
    assert chain.startswith("at least   ") and chain.endswith("the longest chain, 11 runs in a row")
    assert storage == "storage    0.11 GB, all weights kept"
    (there,) = report.elsewhere
    assert report.estimate.chain_seconds <= there.wall_seconds < report.estimate.core_seconds


def test_gpus_are_estimated_from_runs_of_a_gpu_alone(tmp_path: Path) -> None:
    plan = small_plan(seeds=2, levels=1)
    first, second, *_ = plan.runs
    there = stored(tmp_path, plan, [first], 1.0)
    to_do = [run for run in plan.runs.values() if run.id not in (first, second)]
    with pytest.raises(UserError, match="how long a GPU takes is not known"):
        estimate(plan, there, to_do, "reference", gpu=True)
    there = stored(tmp_path, plan, [second], 50.0, environment={"device": "NVIDIA H200"})
    slow = estimate(plan, there, to_do, "reference", gpu=True).core_seconds
    fast = estimate(plan, there, to_do, "reference").core_seconds
    assert slow / fast > 10


def test_the_storage_estimated_is_what_a_store_takes(tmp_path: Path) -> None:
    from small_studies import carry_out

    plan = small_plan(MANY, levels=2, network="fc-300-100", evaluate_every=1)
    expected = estimate(plan, Store(tmp_path / "nothing"), plan.runs.values(), "reference").stored_bytes
    carry_out(plan, tmp_path / "store")
    files = [path.stat() for path in (tmp_path / "store" / "runs").rglob("*") if path.is_file()]
    assert expected == pytest.approx(sum(4096 * -(-file.st_size // 4096) for file in files), rel=0.1)


# ---------------------------------------------------------------------------------------------------------- 5,000 runs


def operations(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the schedule's parts are called until the plan is carried out with 64 in flight."""
    calls = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return method(*arguments)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Run, "__getattribute__"), (Store, "has_point"), (Store, "has_weights"), (Store, "has")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        ongoing = Ongoing(Schedule(plan, Store(Path("/nowhere"))), lambda *_: None, "needed")
        in_flight = []
        while ongoing.schedule.tasks_left:
            while len(in_flight) < 64 and (task := ongoing.next()) is not None:
                in_flight.append(task)
            task = in_flight.pop(0)
            ongoing.ended(task, Result(task.run.id, "finished"))
    return calls


def test_ten_times_the_runs_is_ten_times_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (small_plan(MANY, seeds=seeds, levels=8) for seeds in (12, 120))
    assert len(large.runs) == 10 * len(small.runs) > 5_000
    assert operations(large, monkeypatch) == pytest.approx(10 * operations(small, monkeypatch), rel=0.05)
