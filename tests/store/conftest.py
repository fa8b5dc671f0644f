"""Valid stores, and copies of them for tests that forge their runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.faulty_disk import quick_folder
from helpers.forgery import copy_without_frozen
from helpers.second_machine import Machines, train_machines
from helpers.stored_study import TrainedStudy, train_study


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> TrainedStudy:
    return train_study(tmp_path_factory.mktemp("verify"))


@pytest.fixture
def trained(pristine: TrainedStudy) -> Iterator[TrainedStudy]:
    """Copy of the store for a test that changes it."""
    with quick_folder() as folder:
        yield copy_without_frozen(pristine, folder)


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """Stores of two machines that trained the same study. Tests only read them."""
    return train_machines(tmp_path_factory.mktemp("machines"))
