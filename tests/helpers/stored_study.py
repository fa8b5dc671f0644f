"""A small study file, and a store in which it was trained out: what the tests of the command line read."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from helpers.small_studies import train_plan
from supermask.execution.scheduler import KeepPolicy
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan

TEXT = """
title: "A small study"
network: fc-8
dataset: digits
seeds: 2
train: {epochs: 0.6, evaluate_every: 4}
prune: {levels: 2, rates: {hidden: 0.5, output: 0.3}}
treatments:
  - {criterion: [large_final, random], mask0: [zero, freeze_init]}
reference: {criterion: large_final, mask0: zero}
scales:
  more: {prune.levels: 3}
"""
"""12 iterations a run; 592 weights; 2 dense runs and 2 x 4 x 2 pruned ones, all of them different."""

RUNS = 18


@dataclass(frozen=True)
class TrainedStudy:
    """A trained study: its file, its store and its plan."""

    study: Path
    store: Path
    plan: Plan

    @property
    def args(self) -> list[str]:
        """STUDY and --store, as the commands take them."""
        return [str(self.study), "--store", str(self.store)]

    def run_id(self, level: int, criterion: str = "large_final", mask0: str = "zero", seed: int = 0) -> str:
        """The id of one of its runs."""
        label = f"{criterion} + {mask0}"
        return next(
            m.run_id for m in self.plan.treatment_runs if (m.treatment, m.seed, m.level) == (label, seed, level)
        )

    def open_store(self) -> Store:
        """The store."""
        return Store(self.store)


def write_study(folder: Path, name: str = "small.yaml", text: str = TEXT) -> Path:
    """The study's file."""
    path = folder / name
    path.write_text(text)
    return path


def train_study(folder: Path, keep: KeepPolicy = "all", text: str = TEXT) -> TrainedStudy:
    """The study with every run in a store of its own; of the usual study a copy of `trained_store`."""
    study = write_study(folder, text=text)
    plan = make_plan(load_study(study))
    if (keep, text) == ("all", TEXT):
        shutil.copytree(trained_store(), folder / "store", copy_function=shutil.copyfile)
    else:
        train_plan(plan, folder / "store", keep)
    return TrainedStudy(study, folder / "store", plan)


@cache
def trained_store() -> Path:
    """Read-only store of the study's 18 runs, trained once for all workers of xdist."""
    shared = Path(os.environ["SUPERMASK_CACHE"])
    folder = shared / "stored-study"
    if not folder.exists():
        shared.mkdir(exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=shared))
        train_plan(make_plan(load_study(write_study(own))), own / "store")
        for path in own.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        # Another worker may have been faster.
        with suppress(OSError):
            own.rename(folder)
    return folder / "store"
