"""Cost tables of the sparse engine: shipped ones, measured ones, recorded ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from supermask.core.errors import UserError
from supermask.engines import sparse
from supermask.engines.sparse import autotune, cost_tables
from supermask.engines.sparse.autotune import current_costs, measured_costs
from supermask.engines.sparse.cost_tables import (
    MEASURED,
    CostTable,
    InstructionSet,
    default_costs,
    instruction_set,
    shipped_tables,
)
from supermask.engines.sparse.costs import KernelChoice, KernelCost, LayerKernelCosts, TraversalCosts, choose_kernels
from supermask.networks.sequential import Conv, Dense

INSTRUCTION_SETS: tuple[InstructionSet, ...] = get_args(InstructionSet)

RECORDED = {
    "walks": {
        "weight": 3.2, "inner": 4.4, "pixel": 3.1, "held": 0.62, "whole": 4.8, "learnt": 2.4, "pixel_forward": 2.5,
        "whole_forward": 2.6,
    },
    "layers": {
        "filter_sums": {"sparse": 0.023, "dense": 0.011},
        "filter_products": {"sparse": 0.032, "dense": 0.012},
        "unit_sums": {"sparse": 0.024, "dense": 0.018},
        "unit_products": {"sparse": 0.045, "dense": 0.025},
    },
}  # fmt: skip
"""Costs in the record of a run of a release that measured on every machine."""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERMASK_MEASURE_COSTS", raising=False)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder."""
    monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / "cache"))
    measured_costs.cache_clear()
    yield tmp_path / "cache"
    measured_costs.cache_clear()


@pytest.fixture
def quick_measurement(monkeypatch: pytest.MonkeyPatch) -> list[CostTable]:
    """Replace the measurement by one that differs at every call; return its results."""
    results: list[CostTable] = []

    def measure() -> CostTable:
        traversals = TraversalCosts(*[float(len(results) + 1)] * 8)
        results.append(CostTable(traversals, LayerKernelCosts(*[KernelCost(1.0, 2.0)] * 4), MEASURED))
        return results[-1]

    monkeypatch.setattr(autotune, "measure_costs", measure)
    return results


# --- shipped tables ---


def test_by_default_nothing_is_measured(own_cache: Path, quick_measurement: list[CostTable]) -> None:
    assert current_costs() == default_costs(instruction_set())
    sparse.compile_and_measure(convolutions=False)
    assert quick_measurement == [] and not own_cache.exists()


def test_two_cache_folders_choose_the_same_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_measurement: list[CostTable]
) -> None:
    """Runs of one machine with two cache folders, or of two equal machines, were not bit-identical."""
    tables = []
    for name in ("one", "other"):
        monkeypatch.setenv("SUPERMASK_CACHE", str(tmp_path / name))
        measured_costs.cache_clear()
        tables.append(current_costs())
    assert tables[0] == tables[1]
    assert sparse.environment_facts(tables[0]) == sparse.environment_facts(tables[1])


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx512f": True, "avx2": True, "fma": True}, "avx512"),
        ({"avx512f": False, "avx2": True, "fma": True}, "avx2"),
        ({"avx2": True, "fma": False}, "other"),
        ({"neon": True, "fullfp16": True}, "other"),
        ({}, "other"),
    ],
)
def test_the_instruction_set(
    features: dict[str, bool], expected: InstructionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_tables, "get_host_cpu_features", lambda: features)
    assert instruction_set() == expected
    assert current_costs() == default_costs(expected)


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_every_instruction_set_has_a_table_and_its_provenance(instructions: InstructionSet) -> None:
    entry = shipped_tables()[instructions]
    assert entry.keys() == {"machine", "measured", "costs"}
    assert entry["machine"] and entry["measured"]
    assert default_costs(instructions).name == entry["costs"]["table"]
    for cost in numbers(entry["costs"]):
        assert 0 < cost < 1000 and float(f"{cost:.2g}") == cost
    assert CostTable.from_data(entry["costs"]).to_data() == entry["costs"]


def numbers(costs: dict[str, Any]) -> list[float]:
    values = [v for value in costs.values() for v in (numbers(value) if isinstance(value, dict) else [value])]
    return [v for v in values if not isinstance(v, str)]


def test_shipped_tables_are_listed_completely_under_different_names() -> None:
    assert shipped_tables().keys() == set(INSTRUCTION_SETS)
    assert len({default_costs(instructions).name for instructions in INSTRUCTION_SETS}) == len(INSTRUCTION_SETS)


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_shipped_tables_choose_sparse_kernels_for_sparse_layers(instructions: InstructionSet) -> None:
    """And dense ones for dense convolutions. Dense linear kernels are faster only if their tiles fit in registers."""
    costs = default_costs(instructions).layers
    dense, sparse_ = KernelChoice(sparse_forward=False, sparse_grad=False), KernelChoice(True, True)
    conv, linear = Conv("conv", 64, 64, (16, 16)), Dense("fc", 1024, 256, False)
    assert choose_kernels(conv, 1.0, 1.0, costs) == dense
    assert choose_kernels(linear, 1.0, 1.0, costs) == (dense if instructions == "avx512" else sparse_)
    assert choose_kernels(conv, 0.1, 0.1, costs) == choose_kernels(linear, 0.1, 0.1, costs) == sparse_


# --- the record ---


def test_the_fingerprint_names_the_table() -> None:
    assert sparse.environment_facts(default_costs("avx2"))["costs"]["table"].startswith("avx2-")
    measured = replace(default_costs("avx2"), name=MEASURED)
    assert sparse.environment_facts(measured)["costs"]["table"] == "measured"


@pytest.mark.parametrize("is_used", [False, True])
def test_the_fingerprint_names_another_math_library(is_used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SVML nothing is added, so fingerprints stay as they were."""
    monkeypatch.setattr(sparse.numba.config, "USING_SVML", is_used)
    facts = sparse.environment_facts(default_costs("avx512"))
    assert facts.get("svml", False) == is_used
    assert facts.keys() - {"svml"} == {"numba", "llvmlite", "libc", "kernels", "costs"}


def test_recorded_costs_of_earlier_releases_are_unchanged() -> None:
    """Their fingerprint must stay as it was: a replay compares it."""
    table = CostTable.from_data(RECORDED)
    assert table.name is None
    assert table.to_data() == RECORDED
    assert table.traversals.pixel_update == 0.62 and table.layers.linear_weight_grad == KernelCost(0.045, 0.025)


# --- measurement ---


def test_the_variable_requests_a_measurement(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, quick_measurement: list[CostTable]
) -> None:
    monkeypatch.setenv("SUPERMASK_MEASURE_COSTS", "1")
    assert current_costs() == quick_measurement[0]
    assert current_costs().name == MEASURED
    monkeypatch.setenv("SUPERMASK_MEASURE_COSTS", "0")
    assert current_costs() == default_costs(instruction_set())
    assert len(quick_measurement) == 1


@pytest.mark.parametrize("value", ["yes", "true", "2", " 1"])
def test_other_values_of_the_variable_are_an_error(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERMASK_MEASURE_COSTS", value)
    with pytest.raises(UserError, match=r"SUPERMASK_MEASURE_COSTS: .* is not allowed. Allowed: 1 .* 0 or unset"):
        current_costs()


@pytest.mark.slow
def test_a_measurement_has_two_digits_and_is_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = measured_costs()
    (file,) = (own_cache / "costs").iterdir()
    assert CostTable.from_data(json.loads(file.read_text())) == replace(table, name=None)
    assert all(0 < n < 1000 and float(f"{n:.2g}") == n for n in numbers(table.to_data()))
    measured_costs.cache_clear()
    monkeypatch.setattr(autotune, "measure_costs", lambda: pytest.fail("measured again"))
    assert measured_costs() == table


def test_of_two_processes_the_first_determines_the_costs(own_cache: Path, quick_measurement: list[CostTable]) -> None:
    first, second = autotune.measure_costs(), autotune.measure_costs()
    file = own_cache / "costs" / "new.json"
    autotune._write(file, first)
    autotune._write(file, second)
    assert autotune._read(file) == first != second
    assert [path.name for path in file.parent.iterdir()] == ["new.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"walks": {"weight": 1}}', '{"walks": 3}'])
def test_a_broken_file_is_measured_again(own_cache: Path, text: str, quick_measurement: list[CostTable]) -> None:
    measured_costs()
    (file,) = (own_cache / "costs").iterdir()
    file.write_text(text)
    measured_costs.cache_clear()
    assert measured_costs() == quick_measurement[1]
    assert autotune._read(file) == quick_measurement[1]


def test_costs_are_measured_without_a_cache_folder(own_cache: Path, quick_measurement: list[CostTable]) -> None:
    own_cache.write_text("in the way")
    assert measured_costs() == quick_measurement[0]
    assert own_cache.read_text() == "in the way"
