"""Studies of masks that are learned in no time, plan_run out in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.small_studies import small_plan, train_plan
from supermask.core.types import InitialState
from supermask.datasets import load
from supermask.datasets.images import split_data
from supermask.store import Store
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.replay import StateReplayer
from supermask.study.plan import Plan
from supermask.study.run import Run

LEARN = {"lr": 50, "batch_size": 60, "epochs": 10, "evaluate_every": 60, "samples": 3, "hardened_at": [0.5, 0.2]}
"""200 iterations on digits."""

HEURISTIC = {"criterion": "large_final_same_sign", "trained": False, "schedule": "one_shot"}
TABLE_ONE: tuple[dict[str, Any], ...] = (
    {"name": "heuristic, w_i", **HEURISTIC},
    {"name": "heuristic, signed constant", **HEURISTIC, "mask1": "signed_constant"},
    {"name": "learned, w_i", "supermask": {}},
    {"name": "learned, signed constant", "supermask": {"weights": "signed_constant"}},
    {"name": "DWR, w_i", "supermask": {"rescaled": True}},
    {"name": "DWR, signed constant", "supermask": {"weights": "signed_constant", "rescaled": True}},
)
"""The treatments of the paper's Table 1."""


@dataclass
class Done:
    """A plan with every run in the store."""

    plan: Plan
    store: Path

    def open_store(self) -> Store:
        return Store(self.store)

    def run(self, treatment: str, level: int = -1) -> Run:
        """A treatment's run of a level; its last one unless told."""
        own = [m for m in self.plan.treatment_runs if m.treatment == treatment and m.seed == 0]
        return self.plan.runs[own[level].run_id if level < 0 else next(m.run_id for m in own if m.level == level)]

    def facts(self, treatment: str, level: int = -1) -> RunFacts:
        return Store(self.store).facts(self.run(treatment, level).id)

    def tensors(self, treatment: str, level: int = -1) -> Tensors:
        """All that is stored of it."""
        entry = Store(self.store).read(self.run(treatment, level).id)
        return entry.tensors | (entry.weights or {})

    def logits(self, treatment: str, kind: str = "logit") -> dict[str, torch.Tensor]:
        found = self.tensors(treatment, 1)
        return {n.partition("/")[2]: torch.from_numpy(t) for n, t in found.items() if n.startswith(f"{kind}/")}

    def start(self, treatment: str, level: int = -1) -> InitialState:
        """Made again from the store."""
        return StateReplayer(Store(self.store)).parent_run(self.run(treatment, level).id).start


def mask_plan(*treatments: dict[str, Any], **changes: Any) -> Plan:
    """`small_plan` with 100 hidden units and `LEARN`."""
    return small_plan(*treatments, **{"network": "fc-100", "learn": dict(LEARN), **changes})


def done(store: Path, *treatments: dict[str, Any], **changes: Any) -> Done:
    """PlanRun out by the engines that `auto` takes."""
    plan = mask_plan(*treatments, **changes)
    train_plan(plan, store, engine="auto")
    return Done(plan, store)


def digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Any]:
    """(test pixels in [0, 1] as float64 rows, labels, the data of seed 0 as an engine takes it)."""
    data = split_data(load("digits", None), 0)
    pixels = data.test_images.reshape(len(data.test_images), -1) / data.max_pixel
    return pixels.astype(np.float64), data.test_labels, data
