"""Stores that several tests compare with, and a folder of a user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.faulty_disk import quick_folder
from helpers.small_studies import TrainedStore, train_plan

from supermask.execution.scheduler import KeepPolicy
from supermask.study.plan import Plan


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStore:
    """Return the store of a plan, trained once by one worker in the planned order. Tests only read it or copy it."""
    stores: dict[tuple[tuple[str, ...], KeepPolicy], Path] = {}

    def train(plan: Plan, keep: KeepPolicy = "all") -> Path:
        key = (*plan.runs,), keep
        if key not in stores:
            store = tmp_path_factory.mktemp("trained") / "store"
            plan_run = train_plan(plan, store, keep=keep)
            assert sorted(plan_run.trained) == sorted(plan.runs)
            assert {*plan_run.schedule.status.values()} == {"finished"}
            stores[key] = store
        return stores[key]

    return train


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the current directory and can hold a user's modules."""
    with quick_folder() as path:
        monkeypatch.setattr(sys, "path", [*sys.path])
        with monkeypatch.context() as patch:
            patch.chdir(path)
            yield path
