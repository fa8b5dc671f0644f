"""How long a plan will take. Nothing is timed here: it is checked that the model's numbers are put together right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.small_studies import small_plan
from helpers.stored_seconds import stored

from supermask.execution import estimate as execution_estimate
from supermask.execution import estimate as module
from supermask.execution.estimate import COMMIT_SECONDS, STARTING_SECONDS, Estimate, estimate
from supermask.store import Store
from supermask.study.plan import Plan

MNIST = {"network": "fc", "dataset": "mnist", "epochs": 1, "evaluate_every": 100}
"""917 iterations."""


@pytest.fixture(autouse=True)
def fixed_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 50 thousand million multiply-adds a second."""
    monkeypatch.setattr(module, "_measure_madd_seconds", lambda: 2e-11)


def whole(plan: Plan, store: Store, engine: str = "reference") -> Estimate:
    there = store.run_ids()
    return estimate(plan, store, [run for run in plan.runs.values() if run.id not in there], engine)


def test_a_calibrated_run_costs_what_its_arithmetic_does(tmp_path: Path) -> None:
    plan = small_plan(levels=1, **MNIST)
    found = whole(plan, Store(tmp_path))
    images = 3 * 60 * 917 + 5_000 * (917 / 100 + 1) + 2 * 10_000
    seconds = images * 266_200 * 2e-11 + 917 * (4e-4 + 1e-9 * 266_200) + 0.02 + 4e-7 * 266_200
    assert found.core_seconds == pytest.approx(2 * (seconds + COMMIT_SECONDS))
    assert found.source.startswith("roughly")


def test_the_median_of_stored_runs_sets_the_pace(tmp_path: Path) -> None:
    plan = small_plan(seeds=5, levels=1, **MNIST)
    dense = [run.id for run in plan.runs.values() if run.level == 0]
    store = stored(tmp_path, plan, dense[:2], 10.0)
    stored(tmp_path, plan, dense[2:3], 400.0)
    found = whole(plan, store)
    assert found.source == "from runs in the store"
    assert found.core_seconds == pytest.approx(7 * (10.0 + COMMIT_SECONDS))


def test_runs_that_take_no_time_do_not_set_the_pace_of_those_that_do(tmp_path: Path) -> None:
    """Nor does one during which the machine slept: measured over modelled seconds, by the modelled seconds."""
    assert module._weighted_median([(2.0, 10.0), (1.0, 0.1), (1.0, 0.1), (0.5, 0.1), (50.0, 9.0)]) == 2.0
    assert module._weighted_median([(3.0, 1.0)]) == 3.0
    assert module._weighted_median([(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]) == 2.0


def test_each_kind_of_run_has_its_own_pace(tmp_path: Path) -> None:
    """Networks that are measured as they start are told from those that are trained."""
    untrained = {"criterion": "random", "trained": False}
    plan = small_plan({}, untrained, levels=1, seeds=2, **MNIST)
    runs = [next(run for run in plan.runs.values() if run.is_trained == trains) for trains in (True, False)]
    none = estimate(plan, Store(tmp_path / "none"), runs, "reference").seconds
    long, short = ([none[run.id] - COMMIT_SECONDS] for run in runs)
    store = stored(tmp_path, plan, [runs[0].id], 3 * long[0])
    stored(tmp_path, plan, [runs[1].id], 20 * short[0])
    left = [run for run in plan.runs.values() if run.id not in {done.id for done in runs}]
    for run, seconds in estimate(plan, store, left, "reference").seconds.items():
        expected = 3 * long[0] if plan.runs[run].is_trained else 20 * short[0]
        assert seconds - COMMIT_SECONDS == pytest.approx(expected, rel=1e-3)


def test_a_longer_training_takes_longer_in_proportion(tmp_path: Path) -> None:
    """Runs of another recipe tell the pace of this machine, if network and data are the same."""
    short, long = (small_plan(levels=1, **{**MNIST, "epochs": epochs}) for epochs in (1, 10))
    store = stored(tmp_path, short, list(short.runs), 3.0)
    found = whole(long, store)
    assert found.source == "from runs in the store"
    assert 2 * 3.0 * 8 < found.core_seconds < 2 * 3.0 * 10


def test_runs_of_another_network_or_data_and_diverged_ones_tell_nothing(tmp_path: Path) -> None:
    plan = small_plan(levels=1, **MNIST)
    other = small_plan(levels=1, **{**MNIST, "network": "fc-20"})
    stored(tmp_path, other, list(other.runs), 1000.0)
    dense = next(iter(plan.runs))
    store = stored(tmp_path, plan, [dense], 1000.0, status="diverged")
    assert whole(plan, store).source.startswith("roughly")


def test_the_plans_own_runs_go_before_others(tmp_path: Path) -> None:
    plan, other = (small_plan(levels=1, seeds=3, **{**MNIST, "lr": lr}) for lr in (1e-3, 2e-3))
    stored(tmp_path, other, list(other.runs), 100.0)
    store = stored(tmp_path, plan, [next(iter(plan.runs))], 2.0)
    assert whole(plan, store).core_seconds == pytest.approx(5 * (2.0 + COMMIT_SECONDS))


def test_a_damaged_run_tells_nothing(tmp_path: Path) -> None:
    plan = small_plan(levels=1, **MNIST)
    dense = next(iter(plan.runs))
    store = stored(tmp_path, plan, [dense], 5.0)
    (tmp_path / "runs" / dense[:2] / dense / "run.json").write_text("{}")
    assert whole(plan, store).source.startswith("roughly")


def test_only_so_many_runs_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(levels=1, seeds=300, network="fc-8")
    store = stored(tmp_path, plan, [run.id for run in plan.runs.values() if run.level == 0], 1.0)
    looked: list[str] = []
    facts = Store.facts

    def counted(store: Store, run_id: str) -> dict[str, Any]:
        looked.append(run_id)
        return facts(store, run_id)

    monkeypatch.setattr(Store, "facts", counted)
    whole(plan, store)
    assert len(looked) == len(set(looked)) == module.SAMPLE


def test_levels_of_a_chain_follow_each_other(tmp_path: Path) -> None:
    plan = small_plan({}, {"criterion": "random"}, levels=4, **MNIST)
    found = whole(plan, Store(tmp_path))
    each = found.core_seconds / 9
    assert found.chain_seconds == pytest.approx(5 * each)
    assert found.wall_seconds(1) == pytest.approx(9 * each + STARTING_SECONDS)
    assert found.wall_seconds(2) == pytest.approx(5 * each + STARTING_SECONDS)
    assert found.wall_seconds(1000) == pytest.approx(5 * each + STARTING_SECONDS)


def test_late_rewinding_trains_less(tmp_path: Path) -> None:
    early, late = (small_plan({"rewind_to": k}, levels=4, **MNIST) for k in ("start", 500))
    saved = whole(early, Store(tmp_path)).core_seconds - whole(late, Store(tmp_path)).core_seconds
    images = 3 * 60 * 500 + 5_000 * 500 / 100
    assert saved == pytest.approx(4 * (images * 266_200 * 2e-11 + 500 * (4e-4 + 1e-9 * 266_200)))


def test_nothing_left_takes_no_time(tmp_path: Path) -> None:
    plan = small_plan(network="fc-8")
    store = stored(tmp_path, plan, list(plan.runs), 1.0)
    assert whole(plan, store).wall_seconds(2) == 0.0


def test_the_calibration_gives_a_possible_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1e-13 < module._measure_madd_seconds() < 1e-6


# --------------------------------------------------------------------------------------------------- the sparse engine


def test_the_sparse_engines_runs_become_cheaper_with_their_masks(tmp_path: Path) -> None:
    """All weights are paid for until a walk over those that are left costs less; half of it where they are not 0."""
    plan = small_plan(
        {"mask0": "zero"}, {"mask0": "freeze_init"}, levels=2, rates={"hidden": 0.8, "output": 0.8}, **MNIST
    )
    images = 3 * 60 * 917 + 5_000 * (917 / 100 + 1) + 2 * 10_000
    beside = 917 * execution_estimate.SPARSE_STEP_SECONDS + 0.02 + 4e-7 * 266_200 + COMMIT_SECONDS
    whole_arithmetic = images * 266_200 * 2e-11 * execution_estimate.SPARSE_OVERHEAD_FRACTION
    for run in plan.runs.values():
        found = estimate(plan, Store(tmp_path), [run], "sparse").core_seconds
        share = min(1, 0.2**run.level * execution_estimate.SPARSE_SLOWNESS)
        if run.step and run.step.mask0 != "zero":
            share = (1 + share) / 2
        assert found == pytest.approx(whole_arithmetic * share + beside, rel=1e-3)


def test_another_engines_runs_tell_the_pace_of_the_machine(tmp_path: Path) -> None:
    """A machine on which the reference engine is twice as slow as modelled is so for the sparse engine too."""
    plan = small_plan(levels=1, **MNIST)
    dense = next(iter(plan.runs.values()))
    modelled = {
        engine: whole(plan, Store(tmp_path / "none"), engine).core_seconds for engine in ("reference", "sparse")
    }
    seconds = estimate(plan, Store(tmp_path / "none"), [dense], "reference").core_seconds - COMMIT_SECONDS
    store = stored(tmp_path, plan, [dense.id], 2 * seconds, kept={"all": 266_200})
    left = estimate(plan, store, list(plan.runs.values()), "sparse").core_seconds
    assert left - 2 * COMMIT_SECONDS == pytest.approx(2 * (modelled["sparse"] - 2 * COMMIT_SECONDS))


def test_a_share_of_a_stack_on_a_core_tells_the_pace_of_the_machine_too(tmp_path: Path) -> None:
    """It costs more than a run of the reference engine, of which no account may be made twice."""
    plan = small_plan(levels=1, **MNIST)
    dense = next(iter(plan.runs.values()))
    nothing = Store(tmp_path / "none")
    alone, share = (estimate(plan, nothing, [dense], e).core_seconds - COMMIT_SECONDS for e in ("reference", "stacked"))
    assert 1.5 < share / alone < execution_estimate.STACKED_SLOWNESS
    around = {"device": "cpu", "engine": "stacked", "stack": 16}
    store = stored(tmp_path, plan, [dense.id], 3 * share, engine="stacked", environment=around)
    left = [run for run in plan.runs.values() if run.id != dense.id]
    assert estimate(plan, store, left, "reference").core_seconds - COMMIT_SECONDS == pytest.approx(3 * alone, rel=1e-3)
