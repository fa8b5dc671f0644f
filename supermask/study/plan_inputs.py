"""Inputs of a plan that no study file has: the data, and the source of the user's code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from supermask.datasets.specs import DatasetSpec
from supermask.networks.network import NetworkFacts
from supermask.study.networks import read_network_facts


@dataclass(frozen=True)
class PlanInputs:
    """Inputs that determine results and are not in a study file: the data, and the source of user code."""

    data_fingerprint: str | None = None
    """`ImageDataset.run_fingerprint`: None for the published dataset."""
    criterion_sources: Mapping[str, str] = field(default_factory=dict)
    """Import path of a user's criterion -> `user_code.code_sha256`."""
    data_source: str | None = None
    """`user_code.code_sha256` of the user's function that returns the data; None for other data."""
    data_spec: DatasetSpec | None = None
    """Specification of a user's own data; None for a dataset of `DATASETS`."""
    loss_sources: Mapping[str, str] = field(default_factory=dict)
    """Import path of a user's loss -> `user_code.code_sha256`."""
    network_sources: Mapping[str, str] = field(default_factory=dict)
    """Network named by import path, with its arguments -> `user_code.source_identity`."""
    network_facts: Mapping[str, NetworkFacts] = field(default_factory=dict)
    """The same networks -> their facts, as far as `supermask run` has examined them."""

    def to_data(self) -> dict[str, Any]:
        """Return a JSON-serializable dict without defaults."""
        data = {
            "data_fingerprint": self.data_fingerprint,
            "criterion_sources": dict(self.criterion_sources),
            "data_source": self.data_source,
            "data_spec": self.data_spec and {"name": self.data_spec.name, **self.data_spec.to_data()},
            "loss_sources": dict(self.loss_sources),
            "network_sources": dict(self.network_sources),
            "network_facts": {name: facts.to_data() for name, facts in self.network_facts.items()},
        }
        return {key: value for key, value in data.items() if value}

    @classmethod
    def from_data(cls, data: object) -> PlanInputs:
        """Return the inputs of a `to_data` dict; what is not of its form is ignored."""
        keys = data if isinstance(data, Mapping) else {}
        fingerprint = keys.get("data_fingerprint")
        spec, data_source = keys.get("data_spec"), keys.get("data_source")
        user_spec = None
        if isinstance(spec, Mapping):
            with suppress(ValueError):
                user_spec = DatasetSpec.from_data(str(spec.get("name")), spec)
        return cls(
            fingerprint if _is_sha256(fingerprint) else None,
            _read_sources(keys.get("criterion_sources")),
            data_source if _is_sha256(data_source) else None,
            user_spec,
            _read_sources(keys.get("loss_sources")),
            _read_sources(keys.get("network_sources")),
            _read_facts(keys.get("network_facts")),
        )


def _read_facts(data: object) -> dict[str, NetworkFacts]:
    networks = data if isinstance(data, Mapping) else {}
    facts = {str(name): read_network_facts(item) for name, item in networks.items()}
    return {name: item for name, item in facts.items() if item is not None}


def _read_sources(data: object) -> dict[str, str]:
    sources = data if isinstance(data, Mapping) else {}
    return {str(name): source for name, source in sources.items() if _is_sha256(source)}


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
