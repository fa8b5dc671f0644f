"""A store of tiny runs on digits for tickets, and an independent reader of ticket files after docs/tickets.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.small_studies import small_plan, train_plan
from supermask.export.tickets.container import canonical_json, read_header, read_tensors, to_bytes
from supermask.networks.sequential import architecture, initial_state
from supermask.store import Store
from supermask.study.plan import Plan

Arrays = dict[str, NDArray[Any]]

TREATMENTS: dict[str, dict[str, Any]] = {
    "rewound": {},
    "constants": {"mask1": "signed_constant"},
    "random constants": {"mask1": "constant", "rescaled": True},
    "frozen": {"mask0": "freeze_init"},
    "frozen at the end": {"mask0": "freeze_final"},
    "late": {"rewind_to": 4},
    "zeros inside": {"mask0": "zero_if_shrunk_everywhere"},
    "reinit": {"mask1": "reinit"},
    "one shot": {"schedule": "one_shot", "criterion": "magnitude_increase"},
    "global": {"scope": "global", "criterion": "random"},
}


@dataclass(frozen=True)
class Runs:
    """A store with one seed of every treatment: fc-20 on digits, levels 0 to 2."""

    folder: Path
    plan: Plan

    @property
    def store(self) -> Store:
        """The opened store."""
        return Store(self.folder)

    def id(self, treatment: str, level: int = 2) -> str:
        """Return the id of the run of a treatment and level."""
        label = self.plan.study.treatments[list(TREATMENTS).index(treatment)].label
        return next(m.run_id for m in self.plan.treatment_runs if (m.treatment, m.level) == (label, level))

    @property
    def dense(self) -> str:
        """Id of the dense run."""
        return next(run.id for run in self.plan.runs.values() if run.parent is None)


def ticket_runs(folder: Path) -> Runs:
    """Train every run for 83 iterations."""
    treatments = ({"criterion": "large_final", **changes} for changes in TREATMENTS.values())
    plan = small_plan(*treatments, epochs=4, lr=5e-3, evaluate_every=20)
    train_plan(plan, folder / "store")
    return Runs(folder / "store", plan)


def decode_independently(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Read (document, tensors) of a ticket file with plain NumPy, and the seed's initial state with the package."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    document = json.loads(header.pop("__metadata__")["supermask.ticket"])
    kinds = {"F32": np.float32, "U8": np.uint8, "I64": np.int64}
    raw: Arrays = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        raw[name] = np.frombuffer(data[begin:end], kinds[entry["dtype"]]).reshape(entry["shape"])
    start = initial_state(architecture("fc-20", (1, 8, 8), 10), document["seed"])
    decoded: Arrays = {name.removeprefix("other/"): array for name, array in raw.items() if name.startswith("other/")}
    if document["others"] == "from_seed":
        decoded |= {name: bias.numpy() for name, bias in start.unmasked.items()}
    for layer in document["layers"]:
        name, size = layer["name"], int(np.prod(layer["shape"]))
        mask = np.unpackbits(raw[f"mask/{name}"])[:size] == 1
        assert mask.sum() == layer["kept"]
        initial, weights = start.weights[name].numpy().ravel(), np.zeros(size, np.float32)
        if layer["weights"] == "constant":
            negative = np.unpackbits(raw[f"signs/{name}"])[: mask.sum()] == 1
            weights[mask] = np.where(negative, -raw[f"constant/{name}"], raw[f"constant/{name}"])
        else:
            weights[mask] = raw[f"kept/{name}"] if layer["weights"] == "values" else initial[mask]
        if layer["frozen"] != "zero":
            weights[~mask] = raw[f"frozen/{name}"] if layer["frozen"] == "values" else initial[~mask]
        decoded[name] = weights.reshape(layer["shape"])
    return document, decoded


def forged(data: bytes, change: Callable[[dict[str, Any], Arrays], None]) -> bytes:
    """Change document or tensors of a ticket file and recompute every checksum."""
    file = BytesIO(data)
    text, specs = read_header(file, len(data))
    document, tensors = json.loads(text), {n: a.copy() for n, a in read_tensors(file, specs).items()}
    change(document, tensors)
    return sealed(document, tensors)


def sealed(document: dict[str, Any], tensors: Arrays) -> bytes:
    """Encode a ticket file with correct checksums for any document and tensors."""
    content_sum = hashlib.sha256()
    for name in sorted(tensors):
        head = json.dumps([name, tensors[name].dtype.str, list(tensors[name].shape)]).encode()
        content_sum.update(len(head).to_bytes(8, "little") + head + tensors[name].tobytes())
    if "content" in document:
        document["content"] = content_sum.hexdigest()
    document.pop("seal", None)
    seal = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return to_bytes(canonical_json({**document, "seal": seal}), tensors)
