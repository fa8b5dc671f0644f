"""Jobs of the stacked engine, and comparisons of its results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from helpers.sparse_jobs import CLASSES, SHAPE, images
from helpers.trainings import data
from supermask.core.types import SplitData, TrainingResult
from supermask.engines import reference
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.stacked.stack import Stack


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with flush_denormals():
        yield


@cache
def other_images() -> SplitData:
    return data(SHAPE, CLASSES, train=200, seed=5)


def theirs(job: TrainingJob, of: SplitData | None = None) -> TrainingResult:
    return reference.train([job], [of or images()])[0]


def check_same_numbers(found: TrainingResult, wanted: TrainingResult) -> None:
    assert (found.status, found.curve.iterations) == (wanted.status, wanted.curve.iterations)
    for column in ("training_loss", "validation_loss"):
        np.testing.assert_allclose(getattr(found.curve, column), getattr(wanted.curve, column), rtol=1e-3)
    np.testing.assert_allclose(found.curve.validation_accuracy, wanted.curve.validation_accuracy, atol=0.05)
    assert found.metrics["final_test_loss"] == pytest.approx(wanted.metrics["final_test_loss"], rel=1e-3)
    assert found.metrics["early_stop_test_loss"] == pytest.approx(wanted.metrics["early_stop_test_loss"], rel=1e-3)
    assert found.snapshots.keys() == wanted.snapshots.keys()


def count_stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of replicas of every stack that is made."""
    sizes, make = [], Stack.__init__

    def record(stack: Stack, jobs: Sequence[TrainingJob], *others: Any) -> None:
        sizes.append(len(jobs))
        make(stack, jobs, *others)

    monkeypatch.setattr(Stack, "__init__", record)
    return sizes
