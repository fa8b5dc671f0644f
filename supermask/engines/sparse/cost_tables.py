"""Cost tables of the sparse engine: all costs on which the choice of kernels rests, and the tables shipped with it.

The choice between two kernels changes the order of sums, and so the last bits. A table is therefore part of the
environment that is recorded with every run, and a replay uses the recorded one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from llvmlite.binding import get_host_cpu_features

from supermask.engines.sparse.costs import KernelCost, LayerKernelCosts, TraversalCosts

InstructionSet = Literal["avx512", "avx2", "other"]

MEASURED = "measured"
"""Name of a table that was measured on the machine itself."""


@dataclass(frozen=True)
class CostTable:
    """All costs on which the choice of kernels rests."""

    traversals: TraversalCosts
    layers: LayerKernelCosts
    name: str | None = None
    """`MEASURED`, or the name of a shipped table; None in records of releases that measured on every machine."""

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, under the keys of stored runs. The name is omitted if it is None."""
        traversals = {_STORED_KEYS.get(field, field): cost for field, cost in asdict(self.traversals).items()}
        layers = {_STORED_KEYS[field]: cost for field, cost in asdict(self.layers).items()}
        name = {} if self.name is None else {"table": self.name}
        return {**name, "walks": traversals, "layers": layers}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> CostTable:
        """Return the table of a dict made by `to_data`. Raises KeyError or TypeError if it is not one."""
        layers = {_FIELDS[key]: KernelCost(**cost) for key, cost in data["layers"].items()}
        traversals = {_FIELDS.get(key, key): cost for key, cost in data["walks"].items()}
        return cls(TraversalCosts(**traversals), LayerKernelCosts(**layers), data.get("table"))


_STORED_KEYS = {
    "pixel_update": "held",
    "sparse_grad": "learnt",
    "dense": "whole",
    "dense_forward": "whole_forward",
    "conv_forward": "filter_sums",
    "conv_weight_grad": "filter_products",
    "linear_forward": "unit_sums",
    "linear_weight_grad": "unit_products",
}
"""Field -> its key in stored costs, where the two differ. A key never changes: costs are part of the fingerprint."""
_FIELDS = {key: field for field, key in _STORED_KEYS.items()}


def instruction_set() -> InstructionSet:
    """Return the vector instructions of this machine, as LLVM sees them when it compiles the kernels."""
    features = get_host_cpu_features()
    if features.get("avx512f"):
        return "avx512"
    # Without FMA instructions every multiply-add is a call into the C library: costs of another kind.
    return "avx2" if features.get("avx2") and features.get("fma") else "other"


@cache
def default_costs(instructions: InstructionSet) -> CostTable:
    """Return the shipped table for an instruction set: the same on every machine.

    Source: default_costs.json, with the machine and the date of each measurement; docs/performance.md.
    """
    return CostTable.from_data(shipped_tables()[instructions]["costs"])


@cache
def shipped_tables() -> dict[str, Any]:
    """Return the content of default_costs.json: per instruction set, `machine`, `measured` and `costs`."""
    text = resources.files("supermask.engines.sparse").joinpath("default_costs.json").read_text("utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables
