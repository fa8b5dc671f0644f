"""Stores of two machines that trained one study: equal ids, other results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.small_studies import small_plan, train_plan
from supermask.store import Store
from supermask.store.files.entry import Tensors
from supermask.study.plan import Plan

BEST = {"name": "best", "criterion": "large_final", "w_final": "lowest_validation_loss"}
PLAIN = {"name": "plain", "criterion": "large_final"}


def two_level_plan(*treatments: dict[str, object]) -> Plan:
    """Return a plan of one seed: a dense run, and two levels per treatment."""
    return small_plan(*treatments, levels=2)


def dense_id(plan: Plan) -> str:
    """Return the id of the plan's dense run."""
    return next(iter(plan.runs))


def train_on_second_machine(plan: Plan, first: Path, folder: Path) -> Store:
    """Return a store of `plan` at `folder`, as a machine that rounds otherwise than that of the store `first` has it.

    The dense run and its snapshots have other weights than in `first`; the rest is trained from them.
    """
    source, target, dense = Store(first), Store(folder), dense_id(plan)
    entry = source.read(dense)
    # Counts of changed signs and shrunk weights would have to be made again.
    facts = {name: value for name, value in entry.facts.items() if name != "layers"}
    assert target.commit(dense, facts, entry.tensors, _round_otherwise(entry.weights or {}))
    for key in source.snapshot_keys():
        run_id, _, point = key.partition("-")
        if run_id == dense:
            snapshot = source.read_snapshot(run_id, point)
            facts = {name: value for name, value in snapshot.facts.items() if name != "run_content"}
            assert target.commit_snapshot(run_id, point, facts, _round_otherwise(snapshot.tensors))
    train_plan(plan, folder)
    return target


def _round_otherwise(tensors: Tensors) -> Tensors:
    """Return tensors with weights that differ enough for other masks."""
    rng = np.random.default_rng(1)

    def change(values: np.ndarray) -> np.ndarray:
        return values * rng.uniform(0.8, 1.2, values.shape).astype(values.dtype)

    return {name: change(values) if name.startswith("kept/") else values for name, values in tensors.items()}
