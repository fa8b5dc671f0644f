"""A valid store, and copies of it for tests that forge its runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.faulty_disk import quick_folder
from helpers.forgery import copy_without_frozen
from helpers.stored_study import TrainedStudy, train_study


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def trained(pristine: TrainedStudy) -> Iterator[TrainedStudy]:
    """Copy of the store for a test that changes it."""
    with quick_folder() as folder:
        yield copy_without_frozen(pristine, folder)
