"""Engine selection: choice, recorded environment, replays, measured costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.small_studies import carry_out, contents, small_plan

from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning, Method
from supermask.engines.selection import EngineChoice, select_engine
from supermask.engines.sparse import autotune
from supermask.engines.sparse.autotune import CostTable, measured_costs
from supermask.engines.sparse.kernels import jit
from supermask.execution.resources import EngineSelector
from supermask.execution.tasks import Task, WorkerConfig
from supermask.networks.sequential import Architecture, architecture
from supermask.store import Store

FC = architecture("fc-20", (1, 8, 8), 10)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    measured_costs.cache_clear()
    yield tmp_path / "cache"
    measured_costs.cache_clear()


@pytest.mark.parametrize("layers", [FC, architecture("conv2", (3, 32, 32), 10)], ids=["fc", "conv"])
def test_auto_selects_the_sparse_engine_on_a_cpu(layers: Architecture) -> None:
    assert select_engine("auto", layers, "cpu").engine == "sparse"
    assert select_engine("sparse", layers, "cpu") == EngineChoice("sparse", "it was asked for")
    assert select_engine("reference", layers, "cpu") == EngineChoice("reference", "it was asked for")


def test_auto_selects_the_stacked_engine_on_a_gpu() -> None:
    for layers in (FC, architecture("conv6", (3, 32, 32), 10)):
        assert select_engine("auto", layers, "cuda") == EngineChoice("stacked", "auto: a GPU trains many runs at once")
        for device in ("cpu", "cuda"):
            for method in get_args(Method):
                assert select_engine("stacked", layers, device, MaskLearning(method)) == EngineChoice(
                    "stacked", "it was asked for"
                )
    with pytest.raises(UserError, match="the sparse engine trains on the CPU alone, not on cuda: use --engine auto"):
        select_engine("sparse", FC, "cuda")


def test_auto_falls_back_to_the_reference_engine_with_a_reason() -> None:
    unknown: Architecture = (*FC, object())  # type: ignore[assignment]
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
    carry_out(plan, tmp_path, engine=requested)
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
        carry_out(plan, tmp_path / engine, engine=engine)
    (dense, *_) = plan.runs
    prints = {Store(tmp_path / e).facts(dense)["environment"]["fingerprint"] for e in ("sparse", "reference")}
    assert len(prints) == 2


def test_a_replay_uses_the_engine_and_costs_of_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever engine is requested and whatever costs are measured since."""
    for first, later in (("reference", "auto"), ("sparse", "reference"), ("stacked", "auto")):
        folder = tmp_path / first
        carry_out(small_plan(levels=1), folder, engine=first)
        before = contents(folder)
        with monkeypatch.context() as patch:
            patch.setattr("supermask.engines.sparse.measured_costs", other_costs)
            carried = carry_out(small_plan({"rewind_to": 5}, levels=1), folder, engine=later)
        assert len(carried.retraced) == 1
        assert {run_id: contents(folder)[run_id] for run_id in before} == before


def other_costs() -> CostTable:
    """Return costs that differ widely from the measured ones."""
    costs = measured_costs()
    return replace(costs, walks=replace(costs.walks, weight=1e6, inner=1e6))


def test_a_replay_of_the_sparse_engine_stays_on_the_cpu(tmp_path: Path) -> None:
    carry_out(small_plan(levels=1), tmp_path, engine="auto")
    engines = EngineSelector(WorkerConfig(tmp_path, engine="auto", device="cuda"), Store(tmp_path))
    run = next(iter(small_plan(levels=1).runs.values()))
    engine = engines.engine(Task(run, frozenset({5}), replay=True))
    assert (engine.choice.engine, engine.device) == ("sparse", "cpu")
    assert engine.environment == Store(tmp_path).facts(run.id)["environment"]


# ------------------------------------------------------------------------------------------------------ measured costs


def test_costs_are_measured_once_and_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured_costs()
    (file,) = (own_cache / "costs").iterdir()
    assert CostTable.from_data(json.loads(file.read_text())) == first
    data = json.loads(file.read_text())
    numbers = [*data["walks"].values(), *(n for cost in data["layers"].values() for n in cost.values())]
    assert all(0 < n < 1000 and float(f"{n:.2g}") == n for n in numbers)
    measured_costs.cache_clear()
    for what in ("measure_walk_costs", "measure_layer_costs"):
        monkeypatch.setattr(autotune, what, lambda: pytest.fail("measured again"))
    assert measured_costs() == first


def test_the_first_of_two_processes_determines_the_costs(own_cache: Path) -> None:
    first = measured_costs()
    (file,) = (own_cache / "costs").iterdir()
    other = replace(first, walks=replace(first.walks, weight=99.0))
    autotune._write(file.with_name("new.json"), first)
    autotune._write(file.with_name("new.json"), other)
    assert autotune._read(file.with_name("new.json")) == first
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([file.name, "new.json"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"walks": {"weight": 1}}', '{"walks": 3}'])
def test_a_broken_file_is_measured_again(own_cache: Path, text: str) -> None:
    measured_costs()
    (file,) = (own_cache / "costs").iterdir()
    good = file.read_text()
    file.write_text(text)
    measured_costs.cache_clear()
    measured_costs()
    assert json.loads(file.read_text()).keys() == json.loads(good).keys()


def test_costs_are_measured_without_a_cache_folder(own_cache: Path) -> None:
    own_cache.write_text("in the way")
    assert 0 < measured_costs().walks.weight < 1000
    assert own_cache.read_text() == "in the way"


def test_kernels_work_if_their_code_cannot_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(cache: bool = False, **_: bool) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(jit, "njit", njit)
    assert jit.jit_entry(abs) is abs


def test_kernels_are_recompiled_when_any_source_changes(tmp_path: Path) -> None:
    """In a copy of the kernels, a function is changed that is called from another file."""
    package = Path(jit.__file__).parent
    program = """
import numpy as np
from kernels.products import tile_into
from kernels.compiling import kernel
from kernels.lanes import LANES
@kernel
def four(a, b, out):
    tile_into(out, False, a, 0, 1, 1, b, 0, LANES, 1)
out = np.zeros(4 * LANES, np.float32)
four(np.full(4, 2, np.float32), np.full(LANES, 3, np.float32), out)
print(out[0], sum(four.stats.cache_hits.values()))
"""
    copy = tmp_path / "kernels"
    copy.mkdir()
    for path in package.glob("*.py"):
        (copy / path.name).write_text(path.read_text().replace("supermask.engines.sparse.kernels", "kernels"))
    (tmp_path / "program.py").write_text(program)

    def answer() -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, str(tmp_path / "program.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert [answer(), answer()] == ["6.0 0", "6.0 1"]
    products = copy / "products.py"
    products.write_text(
        products.read_text().replace(
            "total0, total1 = fma(at(a, here), row, total0)", "total0, total1 = fma(at(a, here), row, row)"
        )
    )
    assert answer() == "9.0 0"
