"""A stored study and its dashboard."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.serving import Page, client, note_study
from helpers.stored_study import TrainedStudy, train_study


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    stored = train_study(tmp_path_factory.mktemp("serve"))
    note_study(stored.store, stored.plan)
    return stored


@pytest.fixture(scope="module")
def page(trained: TrainedStudy) -> Page:
    return client(trained.store)


@pytest.fixture
def store_copy(trained: TrainedStudy, tmp_path: Path) -> Path:
    """A copy of the store that the test may change."""
    shutil.copytree(trained.store, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request scans the store, including damaged runs."""
    monkeypatch.setattr("supermask.serve.state.REFRESH_SECONDS", 0.0)
    monkeypatch.setattr("supermask.serve.store_cache.RETRY_SECONDS", 0.0)
