"""Engine selection: choice, recorded environment, replays, measured costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from helpers.small_studies import contents, small_plan, train_plan

from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning, Method
from supermask.engines.selection import EngineChoice, select_engine
from supermask.engines.sparse import CostTable, current_costs
from supermask.execution.resources import EngineSelector
from supermask.execution.run import RunOptions
from supermask.execution.tasks import Task, WorkerConfig
from supermask.networks.network import Network, sequential_network
from supermask.networks.sequential import Architecture, architecture
from supermask.store import Store

LAYERS = architecture("fc-20", (1, 8, 8), 10)
FC = sequential_network(LAYERS)
CONV2, CONV6 = (sequential_network(architecture(name, (3, 32, 32), 10)) for name in ("conv2", "conv6"))


@pytest.mark.parametrize("network", [FC, CONV2], ids=["fc", "conv"])
def test_auto_selects_the_sparse_engine_on_a_cpu(network: Network) -> None:
    assert select_engine("auto", network, "cpu").engine == "sparse"
    assert select_engine("sparse", network, "cpu") == EngineChoice("sparse", "it was asked for")
    assert select_engine("reference", network, "cpu") == EngineChoice("reference", "it was asked for")


def test_auto_selects_the_stacked_engine_on_a_gpu() -> None:
    for network in (FC, CONV6):
        assert select_engine("auto", network, "cuda") == EngineChoice("stacked", "auto: a GPU trains many runs at once")
        for device in ("cpu", "cuda"):
            for method in get_args(Method):
                assert select_engine("stacked", network, device, MaskLearning(method)) == EngineChoice(
                    "stacked", "it was asked for"
                )
    with pytest.raises(UserError, match="the sparse engine trains on the CPU alone, not on cuda: use --engine auto"):
        select_engine("sparse", FC, "cuda")


def test_auto_falls_back_to_the_reference_engine_with_a_reason() -> None:
    layers: Architecture = (*LAYERS, object())  # type: ignore[assignment]
    unknown = replace(FC, layers=layers)
    for device in ("cpu", "cuda"):
        choice = select_engine("auto", unknown, device)
        assert choice.engine == "reference"
        assert "convolutions, poolings and fully connected layers alone" in choice.reason
    choice = select_engine("auto", FC, "cpu", MaskLearning("signed"))
    assert choice == EngineChoice("reference", "auto: the sparse engine learns masks by bernoulli and rounded alone")
    with pytest.raises(UserError, match="the sparse engine learns masks by bernoulli and rounded alone: use --engine"):
        select_engine("sparse", FC, "cpu", MaskLearning("edge_popup"))


@pytest.mark.parametrize(
    ("requested", "engine", "reason"),
    [
        ("auto", "sparse", "auto: its cost falls with the mask"),
        ("sparse", "sparse", "it was asked for"),
        ("stacked", "stacked", "it was asked for"),
        ("reference", "reference", "it was asked for"),
    ],
)
def test_facts_record_the_engine_and_the_reason(tmp_path: Path, requested: str, engine: str, reason: str) -> None:
    plan = small_plan(levels=1)
    train_plan(plan, tmp_path, engine=requested)
    own_keys = {
        "sparse": {"costs", "kernels", "llvmlite", "numba", "libc"},
        "stacked": {"precision", "convolutions", "optimizer_compiled", "stack"},
    }
    for run_id in plan.runs:
        facts = Store(tmp_path).facts(run_id)
        assert (facts["engine"], facts["engine_reason"], facts["environment"]["engine"]) == (engine, reason, engine)
        assert set().union(*own_keys.values()) & facts["environment"].keys() == own_keys.get(engine, set())


def test_the_engine_is_in_the_environment_and_not_in_the_id(tmp_path: Path) -> None:
    plan = small_plan(levels=1)
    for engine in ("sparse", "reference"):
        train_plan(plan, tmp_path / engine, engine=engine)
    (dense, *_) = plan.runs
    prints = {Store(tmp_path / e).facts(dense)["environment"]["fingerprint"] for e in ("sparse", "reference")}
    assert len(prints) == 2


@pytest.mark.slow
def test_a_replay_uses_the_engine_and_costs_of_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever engine is requested and whatever costs are measured since."""
    for first, later in (("reference", "auto"), ("sparse", "reference"), ("stacked", "auto")):
        folder = tmp_path / first
        train_plan(small_plan(levels=1), folder, engine=first)
        before = contents(folder)
        with monkeypatch.context() as patch:
            patch.setattr("supermask.engines.sparse.current_costs", other_costs)
            plan_run = train_plan(small_plan({"rewind_to": 5}, levels=1), folder, engine=later)
        assert len(plan_run.replayed) == 1
        assert {run_id: contents(folder)[run_id] for run_id in before} == before


def other_costs() -> CostTable:
    """Return costs that differ widely from the current ones."""
    costs = current_costs()
    return replace(costs, traversals=replace(costs.traversals, weight=1e6, inner=1e6))


def test_a_replay_accepts_costs_that_name_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of releases that measured their costs on every machine."""
    with monkeypatch.context() as patch:
        patch.setattr("supermask.engines.sparse.current_costs", lambda: replace(other_costs(), name=None))
        train_plan(small_plan(levels=1), tmp_path, engine="sparse")
    before = contents(tmp_path)
    assert all("table" not in Store(tmp_path).facts(run_id)["environment"]["costs"] for run_id in before)
    plan_run = train_plan(small_plan({"rewind_to": 5}, levels=1), tmp_path, engine="sparse")
    assert len(plan_run.replayed) == 1
    assert {run_id: contents(tmp_path)[run_id] for run_id in before} == before


def test_a_replay_of_the_sparse_engine_stays_on_the_cpu(tmp_path: Path) -> None:
    train_plan(small_plan(levels=1), tmp_path, engine="auto")
    engines = EngineSelector(WorkerConfig(tmp_path, engine="auto", device="cuda"), Store(tmp_path))
    run = next(iter(small_plan(levels=1).runs.values()))
    engine = engines.engine(Task(run, frozenset({5}), replay=True))
    assert (engine.choice.engine, engine.device) == ("sparse", "cpu")
    assert engine.environment == Store(tmp_path).facts(run.id)["environment"]


def test_a_wrong_setting_for_measured_costs_is_reported_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERMASK_MEASURE_COSTS", "yes")
    with pytest.raises(UserError, match="SUPERMASK_MEASURE_COSTS: 'yes' is not allowed"):
        RunOptions(tmp_path).validate()
