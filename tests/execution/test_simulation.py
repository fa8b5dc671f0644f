"""Simulated schedules, the estimates of `plan`, and the cost of scheduling, which grows with the plan only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import pytest
from helpers.command_line import call, refused
from helpers.small_studies import small_plan
from helpers.stored_seconds import store_runs
from helpers.worker_pools import InstantPool

from supermask.api import runs as api_runs
from supermask.core.errors import UserError
from supermask.engines.selection import EngineChoice
from supermask.execution import estimate as module
from supermask.execution.coordinator import Coordinator
from supermask.execution.estimate import COMMIT_SECONDS, STARTUP_SECONDS, estimate, simulate_makespan
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import RunGraph, make_plan, merge_plans
from supermask.study.run import Run

MANY = {"criterion": ["large_final", "random", "movement"], "schedule": ["iterative", "one_shot"]}


def simulate_by_ticks(runs: list[Run], durations: dict[str, int], workers: int) -> int:
    """Simulate second by second: a free worker takes the deepest ready run."""
    waiting, ended, busy, clock = {run.id: run for run in runs}, set[str](), dict[str, int](), 0
    order = {run.id: (-run.level, place) for place, run in enumerate(runs)}
    while waiting or busy:
        ready = [i for i, run in waiting.items() if run.parent in ended or run.parent not in order]
        for run_id in sorted(ready, key=order.__getitem__)[: workers - len(busy)]:
            busy[run_id] = clock + durations[run_id]
            del waiting[run_id]
        clock += 1
        for run_id in [i for i, end in busy.items() if end == clock]:
            ended.add(run_id)
            del busy[run_id]
    return clock


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 100])
def test_the_makespan_equals_that_of_a_simulation_by_ticks(workers: int) -> None:
    plan = small_plan(MANY, seeds=3, levels=4)
    runs, chance = list(plan.runs.values()), np.random.default_rng(workers)
    durations = {run.id: int(chance.integers(1, 40)) for run in runs}
    exact = {run_id: float(n) for run_id, n in durations.items()}
    assert simulate_makespan(runs, exact, 1) == sum(durations.values())
    result = simulate_makespan(runs, exact, workers)
    assert max(durations.values()) <= result <= sum(durations.values())
    assert result == simulate_by_ticks(runs, durations, workers)


def test_a_finished_parent_is_not_waited_for() -> None:
    plan = small_plan(levels=2)
    dense, *rest = plan.runs.values()
    assert simulate_makespan(rest, {run.id: 2.0 for run in rest}, 5) == 4.0
    assert simulate_makespan([], {}, 5) == 0.0
    assert dense.level == 0


# --------------------------------------------------------------------------------------------------- output of `plan`


@pytest.fixture(autouse=True)
def fixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supermask.execution.estimate._measure_madd_seconds", lambda: 2e-11)


def test_plan_adds_the_resources_of_a_cluster_to_its_output(tmp_path: Path) -> None:
    arguments = ("plan", "mask-criteria", "scale=laptop", "--store", tmp_path, "--workers", 2)
    _, before, _ = call(*arguments)
    assert [line.split()[0] for line in before.splitlines()][-1] == "estimated"
    status, out, _ = call(*arguments, "--cores", 64)
    assert status == 0 and out.startswith(before)
    cores, chain, storage = out[len(before) :].splitlines()
    report = api_runs.plan("mask-criteria", ["scale=laptop"], tmp_path, cores=64)
    hours = report.estimate.core_seconds / 3600
    assert cores.startswith("cores      ") and cores.endswith(f" on 64 cores, {hours:,.1f} core-hours")
    assert chain.startswith("at least   ") and chain.endswith("the critical path, 11 runs in a row")
    assert storage == "storage    0.11 GB, all weights kept"
    (store,) = report.resource_estimates
    assert report.estimate.chain_seconds <= store.wall_seconds < report.estimate.core_seconds
    again = call(*arguments, "--cores", 64, "--estimate")
    assert (again.status, again.out) == (status, out)
    # Nothing but the notice that the data is not there: MNIST is no part of the tests.
    assert again.err == "" or again.err.startswith("supermask: dataset 'mnist' was not found")
    assert again.err.count("\n") <= 1


def test_estimate_without_cores_uses_the_workers_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("plan", "mask-criteria", "scale=laptop", "--store", tmp_path)
    assert call(*arguments, "--workers", 3, "--estimate") == call(*arguments, "--workers", 3, "--cores", 3)
    monkeypatch.setattr("supermask.execution.run.default_workers", lambda: 5)
    assert call(*arguments, "--estimate") == call(*arguments, "--cores", 5)


def test_without_runs_of_a_gpu_plan_says_that_its_speed_is_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supermask.engines.stacked.autotune.max_replicas", lambda *_: 32)
    arguments = ("mask-criteria", "scale=paper", "seeds=29", "prune.levels=2")
    status, out, _ = call("plan", *arguments, "--store", tmp_path, "--gpus", 8)
    assert status == 0
    gpus, pace, chain, storage = out.splitlines()[7:]
    assert gpus.startswith("GPUs ") and gpus.endswith(" GPU-hours") and " on 8 GPUs, " in gpus
    # 29 seeds of 9 criteria do not fit into eight stacks of 32, so they take two rounds.
    assert pace == (
        "pace       assumed, as no such run was ever timed on a GPU: 5e12 multiply-adds and 5,000 steps "
        "of a stack per second, 80 GB free; in stacks of 17"
    )
    assert chain.endswith("the critical path, 3 runs in a row") and storage.startswith("storage ")


@pytest.mark.parametrize(("runs", "gpus", "stack"), [(4149, 8, 260), (4149, 1, 461), (45, 8, 6), (512, 1, 512)])
def test_stacks_are_equal_in_the_fewest_rounds(runs: int, gpus: int, stack: int) -> None:
    assert module._stack_size(runs, gpus, 512) == stack
    assert module._stack_size(runs, 10**9, 512) == 1


def test_untrained_runs_do_not_widen_stacks(tmp_path: Path) -> None:
    """Otherwise chains would be priced as if they shared a stack with runs that take no time."""
    untrained = {"mask1": ["rewind", "constant", "signed_constant"], "trained": False}
    plan = small_plan({}, untrained, seeds=6, levels=2)
    assert estimate(plan, Store(tmp_path), plan.runs.values(), "sparse", gpus=1).stack == 6
    measured = [run for run in plan.runs.values() if not run.is_trained]
    assert estimate(plan, Store(tmp_path), measured, "sparse", gpus=1).stack == 18


def test_only_runs_of_a_gpu_calibrate_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stacked run records its share of the stack; its training lasts for the sum of all shares."""
    monkeypatch.setattr("supermask.engines.stacked.autotune.max_replicas", lambda *_: 4)
    plan = small_plan(MANY, seeds=4, levels=2)
    first, second, *others = (run.id for run in plan.runs.values() if run.level == 0)
    store = store_runs(tmp_path, plan, [first], 1.0)
    to_do = [run for run in plan.runs.values() if run.id not in (first, second)]
    assert "assumed" in estimate(plan, store, to_do, "sparse", gpus=1).source
    environment = {"device": "NVIDIA H200", "engine": "stacked", "stack": "shared"}
    store = store_runs(tmp_path / "shared", plan, [second], 0.5, engine="stacked", environment=environment)
    result = estimate(plan, store, to_do, "sparse", gpus=1)
    assert result.source == "from runs of a GPU in the store" and result.stack == 4
    share = 0.5 + COMMIT_SECONDS
    assert result.core_seconds == pytest.approx(share * len(to_do), rel=1e-3)
    assert result.seconds[others[0]] == pytest.approx(4 * share, rel=1e-3)
    assert result.chain_seconds == pytest.approx(3 * 4 * share, rel=1e-3)
    simulated = result.simulate(to_do, 1)
    assert simulated == pytest.approx(simulate_makespan(to_do, result.seconds, 4) + STARTUP_SECONDS)
    assert simulated >= result.core_seconds
    # Runs of a GPU do not calibrate cores either.
    assert estimate(plan, store, to_do, "reference").source.startswith("roughly")


def test_a_run_outside_a_stack_takes_a_whole_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference engine, eight GPUs train eight runs at once, whatever the stack size."""
    monkeypatch.setattr(module, "select_engine", lambda *_: EngineChoice("reference", "a test"))
    plan = make_plan(load_study("learned-supermasks", ["scale=laptop", "seeds=20"]))
    to_do = [run for run in plan.runs.values() if run.learning is not None and run.learning.method == "edge_popup"]
    result = estimate(plan, Store(tmp_path), to_do, "sparse", gpus=8)
    run_seconds = result.core_seconds / len(to_do)
    assert list(result.seconds.values()) == pytest.approx([run_seconds] * len(to_do))
    assert result.simulate(to_do, 8) == pytest.approx(len(to_do) / 8 * run_seconds + STARTUP_SECONDS)


@pytest.mark.parametrize("option", ["--cores", "--gpus"])
def test_zero_cores_are_refused_and_a_billion_is_accepted(tmp_path: Path, option: str) -> None:
    arguments = ("plan", "mask-criteria", "scale=laptop", "--store", tmp_path, option)
    for number in (0, -1):
        assert option in refused(call(*arguments, number))
        with pytest.raises(UserError, match="cannot train anything: give 1 or more"):
            api_runs.plan("mask-criteria", ["scale=laptop"], tmp_path, **{option[2:]: number})
    status, out, _ = call(*arguments, 10**9)
    assert status == 0 and " on 1,000,000,000 " in out


def test_a_finished_plan_costs_nothing_on_gpus(tmp_path: Path) -> None:
    plan = small_plan(levels=1)
    store = store_runs(tmp_path, plan, list(plan.runs), 1.0)
    result = estimate(plan, store, [], "sparse", gpus=3)
    assert result.simulate([], 3) == result.core_seconds == result.stored_bytes == 0


@pytest.mark.slow
def test_the_estimated_storage_is_within_ten_percent_of_a_store(tmp_path: Path) -> None:
    from helpers.small_studies import train_plan

    plan = small_plan(MANY, {"w_final": 3}, levels=2, network="fc-300-100", evaluate_every=1)
    expected = estimate(plan, Store(tmp_path / "nothing"), plan.runs.values(), "reference").stored_bytes
    train_plan(plan, tmp_path / "store")
    files = [path.stat() for kind in ("runs", "points") for path in (tmp_path / "store" / kind).rglob("*")]
    files = [file for file in files if S_ISREG(file.st_mode)]
    assert expected == pytest.approx(sum(4096 * -(-file.st_size // 4096) for file in files), rel=0.1)


# ---------------------------------------------------------------------------------------------------------- 5,000 runs


def operations(plan: RunGraph, monkeypatch: pytest.MonkeyPatch, stack: int = 1) -> int:
    """Count calls of the scheduler's parts until a plan is executed with 64 runs in flight, or in stacks."""
    calls = 0

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return method(*arguments)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Run, "__getattribute__"), (Store, "has_snapshot"), (Store, "has_weights"), (Store, "has")):
            patch.setattr(owner, name, counting(getattr(owner, name)))
        nowhere = Path("/nowhere")
        config = WorkerConfig(nowhere, engine="stacked", stack=stack)
        coordinator = Coordinator(Scheduler(plan, Store(nowhere)), config, lambda *_: None, "needed", lambda _: None)
        coordinator.run(InstantPool(max(2, 64 // stack)))
    return calls


@pytest.mark.slow
def test_scheduling_cost_is_linear_in_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (small_plan(MANY, seeds=seeds, levels=8) for seeds in (12, 120))
    assert len(large.runs) == 10 * len(small.runs) > 5_000
    assert operations(large, monkeypatch) == pytest.approx(10 * operations(small, monkeypatch), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stack", [16, 512])
def test_scheduling_cost_is_linear_in_stacks_of_several_networks(monkeypatch: pytest.MonkeyPatch, stack: int) -> None:
    """Taking a stack does not touch the tasks that cannot join it."""
    networks = [f"fc-{n}" for n in (4, 5, 6, 7)]
    small, large = (
        merge_plans([small_plan(MANY, seeds=seeds, levels=1, network=network) for network in networks])
        for seeds in (40, 400)
    )
    assert len(large.runs) == 10 * len(small.runs) > 5_000
    counts = [operations(plan, monkeypatch, stack) / len(plan.runs) for plan in (small, large)]
    assert counts[1] == pytest.approx(counts[0], rel=0.1)
