"""Stores of two machines that trained one study: equal ids, other results."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.forgery import folder_of
from helpers.golden_store import write_entry
from helpers.small_studies import small_plan, train_plan
from supermask.store import Store
from supermask.store.files.entry import Entry, Tensors
from supermask.store.verify import verify_store
from supermask.study.plan import Plan

LOWEST = "lowest_validation_loss"
BEST = {"name": "best", "criterion": "large_final", "w_final": LOWEST}
PLAIN = {"name": "plain", "criterion": "large_final"}


def two_level_plan(*treatments: dict[str, object]) -> Plan:
    """Return a plan of one seed: a dense run, and two levels per treatment."""
    return small_plan(*treatments, levels=2)


def dense_id(plan: Plan) -> str:
    """Return the id of the plan's dense run."""
    return next(iter(plan.runs))


@dataclass(frozen=True)
class Machines:
    """Stores of two machines that trained the same study, and one of the first with another treatment."""

    plan: Plan
    other_plan: Plan
    first: Path
    second: Path
    first_other: Path

    @property
    def dense(self) -> str:
        return dense_id(self.plan)

    @property
    def descendants(self) -> list[str]:
        """Levels 1 and 2 of the study."""
        return list(self.plan.runs)[1:]


def train_machines(root: Path) -> Machines:
    """Train the stores of both machines."""
    plan, other_plan = two_level_plan(BEST), two_level_plan(PLAIN)
    train_plan(plan, root / "first")
    train_plan(other_plan, root / "first-other")
    train_on_second_machine(plan, root / "first", root / "second")
    return Machines(plan, other_plan, root / "first", root / "second", root / "first-other")


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
    """Return tensors with weights that differ enough for other masks. Equal tensors change alike."""
    rng = np.random.default_rng(1)

    def change(values: np.ndarray) -> np.ndarray:
        return values * rng.uniform(0.8, 1.2, values.shape).astype(values.dtype)

    return {name: change(values) if name.startswith("kept/") else values for name, values in sorted(tensors.items())}


def copy_store(store: Path, folder: Path) -> Store:
    """Return a copy that a test may change."""
    shutil.copytree(store, folder, copy_function=shutil.copyfile)
    return Store(folder)


def copy_run(source: Path, target: Store, run_id: str) -> None:
    """Copy a run as rsync does."""
    shutil.copytree(folder_of(source, run_id), folder_of(target.root, run_id), copy_function=shutil.copyfile)


def copy_of_runs(source: Path, folder: Path, *run_ids: str) -> Store:
    """Return a store of some runs of another one, without snapshots."""
    store = Store(folder)
    for run_id in run_ids:
        copy_run(source, store, run_id)
    return store


def copy_snapshot(source: Path, target: Store, run_id: str, records_run: bool, change: float = 0) -> str:
    """Copy the snapshot of a run, with or without its record of the run, and with other weights."""
    key = f"{run_id}-{LOWEST}"
    entry = Store(source).read_snapshot(run_id, LOWEST)
    facts = entry.facts if records_run else {name: v for name, v in entry.facts.items() if name != "run_content"}
    tensors = {n: v + np.float32(change) if n.startswith("kept/") else v for n, v in entry.tensors.items()}
    path = target.root / "points" / key[:2] / key
    path.mkdir(parents=True)
    write_entry("point", key, path, Entry(facts, tensors, {}))
    return key


def forget_parent(store: Store, run_id: str) -> None:
    """Reseal a run without the content of its parent, as the first versions wrote it."""
    entry = store.read(run_id)
    entry.facts.pop("parent_content")
    write_entry("run", run_id, folder_of(store.root, run_id), entry)


def verdicts(store: Store) -> dict[str, str]:
    """Return key -> verdict of `verify`."""
    return {result.key: result.verdict for result in verify_store(store)}
