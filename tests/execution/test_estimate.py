"""Estimates of duration and storage. Nothing is timed: the tests check how the model combines its constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.small_studies import small_plan
from helpers.stored_seconds import store_runs

from supermask.execution import estimate as module
from supermask.execution.cost_model import (
    SPARSE_ARITHMETIC_FACTOR,
    SPARSE_SLOWNESS,
    SPARSE_STEP_SECONDS,
    STACKED_SLOWNESS,
)
from supermask.execution.estimate import COMMIT_SECONDS, STARTUP_SECONDS, Estimate, estimate
from supermask.store import Store
from supermask.study.plan import Plan

MNIST = {"network": "fc", "dataset": "mnist", "epochs": 1, "evaluate_every": 100}
"""917 iterations."""


@pytest.fixture(autouse=True)
def fixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement by 5e10 multiply-adds per second."""
    monkeypatch.setattr(module, "_measure_madd_seconds", lambda: 2e-11)


def estimate_missing(plan: Plan, store: Store, engine: str = "reference") -> Estimate:
    stored_ids = store.run_ids()
    return estimate(plan, store, [run for run in plan.runs.values() if run.id not in stored_ids], engine)


def test_core_seconds_are_arithmetic_plus_overheads(tmp_path: Path) -> None:
    plan = small_plan(levels=1, **MNIST)
    result = estimate_missing(plan, Store(tmp_path))
    images = 3 * 60 * 917 + 5_000 * (917 / 100 + 1) + 2 * 10_000
    seconds = images * 266_200 * 2e-11 + 917 * (4e-4 + 1e-9 * 266_200) + 0.02 + 4e-7 * 266_200
    assert result.core_seconds == pytest.approx(2 * (seconds + COMMIT_SECONDS))
    assert result.source.startswith("roughly")


def test_each_treatment_costs_what_its_own_network_does(tmp_path: Path) -> None:
    own = small_plan({"network": ["fc", "conv2"]}, levels=2, **MNIST)
    both = estimate_missing(own, Store(tmp_path))
    assert estimate_missing(own, Store(tmp_path), "auto").core_seconds < both.core_seconds, "the sparse engine"
    alone = [
        estimate_missing(small_plan(levels=2, **{**MNIST, "network": n}), Store(tmp_path)) for n in ("fc", "conv2")
    ]
    assert both.core_seconds == pytest.approx(sum(part.core_seconds for part in alone))
    assert both.stored_bytes == sum(part.stored_bytes for part in alone)
    assert alone[1].chain_seconds == pytest.approx(both.chain_seconds) and alone[1].core_seconds > alone[0].core_seconds


def test_the_median_of_stored_runs_calibrates_the_model(tmp_path: Path) -> None:
    plan = small_plan(seeds=5, levels=1, **MNIST)
    dense = [run.id for run in plan.runs.values() if run.level == 0]
    store = store_runs(tmp_path, plan, dense[:2], 10.0)
    store_runs(tmp_path, plan, dense[2:3], 400.0)
    result = estimate_missing(plan, store)
    assert result.source == "from runs in the store"
    assert result.core_seconds == pytest.approx(7 * (10.0 + COMMIT_SECONDS))


def test_the_median_is_weighted_by_modelled_seconds(tmp_path: Path) -> None:
    """Neither runs that take no time nor one during which the machine slept move it much."""
    assert module._weighted_median([(2.0, 10.0), (1.0, 0.1), (1.0, 0.1), (0.5, 0.1), (50.0, 9.0)]) == 2.0
    assert module._weighted_median([(3.0, 1.0)]) == 3.0
    assert module._weighted_median([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]) == 2.0


def test_each_kind_of_run_is_calibrated_separately(tmp_path: Path) -> None:
    """Untrained networks and trained ones."""
    untrained = {"criterion": "random", "trained": False}
    plan = small_plan({}, untrained, levels=1, seeds=2, **MNIST)
    runs = [next(run for run in plan.runs.values() if run.is_trained == trains) for trains in (True, False)]
    none = estimate(plan, Store(tmp_path / "none"), runs, "reference").seconds
    long, short = ([none[run.id] - COMMIT_SECONDS] for run in runs)
    store = store_runs(tmp_path, plan, [runs[0].id], 3 * long[0])
    store_runs(tmp_path, plan, [runs[1].id], 20 * short[0])
    left = [run for run in plan.runs.values() if run.id not in {done.id for done in runs}]
    for run, seconds in estimate(plan, store, left, "reference").seconds.items():
        expected = 3 * long[0] if plan.runs[run].is_trained else 20 * short[0]
        assert seconds - COMMIT_SECONDS == pytest.approx(expected, rel=1e-3)


def test_seconds_are_proportional_to_the_length_of_training(tmp_path: Path) -> None:
    """Runs of another recipe calibrate the model if network and data set are the same."""
    short, long = (small_plan(levels=1, **{**MNIST, "epochs": epochs}) for epochs in (1, 10))
    store = store_runs(tmp_path, short, list(short.runs), 3.0)
    result = estimate_missing(long, store)
    assert result.source == "from runs in the store"
    assert 2 * 3.0 * 8 < result.core_seconds < 2 * 3.0 * 10


def test_runs_of_another_network_and_diverged_runs_do_not_calibrate(tmp_path: Path) -> None:
    plan = small_plan(levels=1, **MNIST)
    other = small_plan(levels=1, **{**MNIST, "network": "fc-20"})
    store_runs(tmp_path, other, list(other.runs), 1000.0)
    dense = next(iter(plan.runs))
    store = store_runs(tmp_path, plan, [dense], 1000.0, status="diverged")
    assert estimate_missing(plan, store).source.startswith("roughly")


def test_runs_of_the_plan_are_preferred_to_others(tmp_path: Path) -> None:
    plan, other = (small_plan(levels=1, seeds=3, **{**MNIST, "lr": lr}) for lr in (1e-3, 2e-3))
    store_runs(tmp_path, other, list(other.runs), 100.0)
    store = store_runs(tmp_path, plan, [next(iter(plan.runs))], 2.0)
    assert estimate_missing(plan, store).core_seconds == pytest.approx(5 * (2.0 + COMMIT_SECONDS))


def test_a_damaged_run_does_not_calibrate(tmp_path: Path) -> None:
    plan = small_plan(levels=1, **MNIST)
    dense = next(iter(plan.runs))
    store = store_runs(tmp_path, plan, [dense], 5.0)
    (tmp_path / "runs" / dense[:2] / dense / "run.json").write_text("{}")
    assert estimate_missing(plan, store).source.startswith("roughly")


@pytest.mark.slow
def test_only_a_sample_of_runs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1, seeds=300, network="fc-8")
    store = store_runs(tmp_path, plan, [run.id for run in plan.runs.values() if run.level == 0], 1.0)
    read_ids: list[str] = []
    facts = Store.facts

    def counting_facts(store: Store, run_id: str) -> dict[str, Any]:
        read_ids.append(run_id)
        return facts(store, run_id)

    monkeypatch.setattr(Store, "facts", counting_facts)
    estimate_missing(plan, store)
    assert len(read_ids) == len(set(read_ids)) == module.MAX_SAMPLED_RUNS


def test_the_longest_chain_bounds_the_duration(tmp_path: Path) -> None:
    plan = small_plan({}, {"criterion": "random"}, levels=4, **MNIST)
    result = estimate_missing(plan, Store(tmp_path))
    run_seconds = result.core_seconds / 9
    assert result.chain_seconds == pytest.approx(5 * run_seconds)
    assert result.wall_seconds(1) == pytest.approx(9 * run_seconds + STARTUP_SECONDS)
    assert result.wall_seconds(2) == pytest.approx(5 * run_seconds + STARTUP_SECONDS)
    assert result.wall_seconds(1000) == pytest.approx(5 * run_seconds + STARTUP_SECONDS)


def test_late_rewinding_costs_less(tmp_path: Path) -> None:
    early, late = (small_plan({"rewind_to": k}, levels=4, **MNIST) for k in ("start", 500))
    saved_seconds = (
        estimate_missing(early, Store(tmp_path)).core_seconds - estimate_missing(late, Store(tmp_path)).core_seconds
    )
    images = 3 * 60 * 500 + 5_000 * 500 / 100
    assert saved_seconds == pytest.approx(4 * (images * 266_200 * 2e-11 + 500 * (4e-4 + 1e-9 * 266_200)))


def test_a_finished_plan_takes_no_time(tmp_path: Path) -> None:
    plan = small_plan(network="fc-8")
    store = store_runs(tmp_path, plan, list(plan.runs), 1.0)
    assert estimate_missing(plan, store).wall_seconds(2) == 0.0


def test_the_measured_multiply_add_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1e-13 < module._measure_madd_seconds() < 1e-6


# --------------------------------------------------------------------------------------------------- the sparse engine


def test_sparse_runs_become_cheaper_as_their_masks_shrink(tmp_path: Path) -> None:
    """Capped at the dense cost; pruned weights frozen at values other than 0 still cost half."""
    plan = small_plan(
        {"mask0": "zero"}, {"mask0": "freeze_init"}, levels=2, rates={"hidden": 0.8, "output": 0.8}, **MNIST
    )
    images = 3 * 60 * 917 + 5_000 * (917 / 100 + 1) + 2 * 10_000
    beside = 917 * SPARSE_STEP_SECONDS + 0.02 + 4e-7 * 266_200 + COMMIT_SECONDS
    whole_arithmetic = images * 266_200 * 2e-11 * SPARSE_ARITHMETIC_FACTOR
    for run in plan.runs.values():
        result = estimate(plan, Store(tmp_path), [run], "sparse").core_seconds
        share = min(1, 0.2**run.level * SPARSE_SLOWNESS)
        if run.step and run.step.mask0 != "zero":
            share = (1 + share) / 2
        assert result == pytest.approx(whole_arithmetic * share + beside, rel=1e-3)


def test_runs_of_another_engine_calibrate_the_model(tmp_path: Path) -> None:
    """A machine that is half as fast as modelled with the reference engine is so with the sparse engine."""
    plan = small_plan(levels=1, **MNIST)
    dense = next(iter(plan.runs.values()))
    modelled = {
        engine: estimate_missing(plan, Store(tmp_path / "none"), engine).core_seconds
        for engine in ("reference", "sparse")
    }
    seconds = estimate(plan, Store(tmp_path / "none"), [dense], "reference").core_seconds - COMMIT_SECONDS
    store = store_runs(tmp_path, plan, [dense.id], 2 * seconds, kept={"all": 266_200})
    left = estimate(plan, store, list(plan.runs.values()), "sparse").core_seconds
    assert left - 2 * COMMIT_SECONDS == pytest.approx(2 * (modelled["sparse"] - 2 * COMMIT_SECONDS))


def test_stacked_runs_on_a_core_calibrate_the_model(tmp_path: Path) -> None:
    """A share of a stack costs more than a reference run; calibration must not count that twice."""
    plan = small_plan(levels=1, **MNIST)
    dense = next(iter(plan.runs.values()))
    empty_store = Store(tmp_path / "none")
    alone, share = (
        estimate(plan, empty_store, [dense], e).core_seconds - COMMIT_SECONDS for e in ("reference", "stacked")
    )
    assert 1.5 < share / alone < STACKED_SLOWNESS
    environment = {"device": "cpu", "engine": "stacked", "stack": 16}
    store = store_runs(tmp_path, plan, [dense.id], 3 * share, engine="stacked", environment=environment)
    left = [run for run in plan.runs.values() if run.id != dense.id]
    assert estimate(plan, store, left, "reference").core_seconds - COMMIT_SECONDS == pytest.approx(3 * alone, rel=1e-3)
