"""Parts that all engines share: order of batches, stopping points, metrics of a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.trainings import job, pruned_start
from hypothesis import given, settings
from hypothesis import strategies as st

from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot
from supermask.engines.job import BatchSampler, Checkpointer, MetricTracker, NullCheckpointer, stopping_points

# --- order of batches ---

sizes = given(n=st.integers(1, 40), batch_size=st.integers(1, 100), seed=st.integers(0, 3))


@pytest.mark.slow
@sizes
@settings(max_examples=60, deadline=None)
def test_batches_are_full_and_every_image_occurs_once_per_epoch(n: int, batch_size: int, seed: int) -> None:
    indices = np.arange(n, dtype=np.int64) * 3 + 7
    sampler = BatchSampler(seed, indices, batch_size)
    batches = [sampler.batch(i) for i in range(-(-4 * n // batch_size))]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    sequence = np.concatenate(batches)[: 4 * n]
    for epoch in sequence.reshape(4, n):
        assert sorted(epoch) == indices.tolist()


@pytest.mark.slow
@sizes
@settings(max_examples=40, deadline=None)
def test_a_batch_depends_on_seed_and_iteration_only(n: int, batch_size: int, seed: int) -> None:
    indices = np.arange(n, dtype=np.int64)
    forwards = BatchSampler(seed, indices, batch_size)
    expected = [forwards.batch(i).tolist() for i in range(12)]
    backwards = BatchSampler(seed, indices, batch_size)
    assert [backwards.batch(i).tolist() for i in reversed(range(12))] == expected[::-1]
    assert BatchSampler(seed, indices, batch_size).batch(7).tolist() == expected[7]


@pytest.mark.slow
@sizes
@settings(max_examples=60, deadline=None)
def test_batches_equals_batch_one_by_one(n: int, batch_size: int, seed: int) -> None:
    indices = np.arange(n, dtype=np.int64) * 2 + 1
    sampler = BatchSampler(seed, indices, batch_size)
    for first, last in ((0, 1), (0, 9), (5, 7), (3, 14), (2, 2)):
        batches = sampler.batches(first, last)
        assert batches.shape == (last - first, batch_size) and batches.dtype == np.int64
        assert batches.tolist() == [
            BatchSampler(seed, indices, batch_size).batch(i).tolist() for i in range(first, last)
        ]


def test_epochs_and_seeds_have_different_orders() -> None:
    indices = np.arange(30, dtype=np.int64)
    orders = [tuple(BatchSampler(seed, indices, 30).batch(i)) for seed in range(3) for i in range(3)]
    assert len(set(orders)) == 9


def test_the_sequence_does_not_depend_on_the_batch_size() -> None:
    indices = np.arange(11, dtype=np.int64)
    one_by_one, seven = BatchSampler(0, indices, 1), BatchSampler(0, indices, 7)
    assert [int(one_by_one.batch(i)[0]) for i in range(35)] == np.concatenate(
        [seven.batch(i) for i in range(5)]
    ).tolist()


# --- stopping snapshots ---


@given(
    iterations=st.integers(1, 60),
    every=st.integers(1, 70),
    first=st.integers(0, 60),
    kept=st.frozensets(st.integers(0, 60)),
)
@settings(max_examples=60, deadline=None)
def test_stopping_points_equal_a_loop_over_all_iterations(
    iterations: int, every: int, first: int, kept: frozenset[int]
) -> None:
    first = min(first, iterations)
    snapshots: frozenset[Snapshot] = frozenset({*(min(k, iterations) for k in kept), "gradient", "end"})
    expected = []
    for i in range(first + 1, iterations + 1):
        evaluated = i % every == 0 or i == iterations
        if evaluated or i in snapshots:
            expected.append((i, evaluated))
    assert list(stopping_points(Recipe("adam", 1.0, 1, iterations, every), first, snapshots)) == expected


@pytest.mark.parametrize("point", [-1, 9, 51])
def test_a_snapshot_that_is_never_reached_fails_an_assertion(point: Snapshot) -> None:
    late = replace(pruned_start(), first_iteration=10)
    with pytest.raises(AssertionError, match="never reached"):
        job(Recipe("adam", 0.01, 5, 50, 10), late, snapshots=frozenset({point}))
    with pytest.raises(AssertionError, match="begin after its end"):
        job(Recipe("adam", 0.01, 5, 9, 10), late)


def test_the_null_checkpointer_saves_nothing() -> None:
    none: Checkpointer = NullCheckpointer()
    none.save({}, {})
    assert (none.load(), none.should_save()) == (None, False)


# --- metrics ---


def tracked(*validation: float) -> MetricTracker:
    tracker = MetricTracker()
    for i, loss in enumerate(validation):
        tracker.record_training(np.full(10, 1.0, np.float32), 10 * i)
        tracker.record_validation(10 * (i + 1), loss, 0.1 * i)
    return tracker


def test_the_best_is_the_first_of_equal_lowest_losses() -> None:
    tracker = tracked(3.0, 1.0, 2.0, 1.0, 1.5)
    metrics = tracker.metrics((0.3, 0.9), (0.4, 0.8))
    assert metrics == {
        "diverged_at": None,
        "initial_validation_loss": 3.0,
        "initial_validation_accuracy": 0.0,
        "early_stop_iteration": 20,
        "early_stop_validation_loss": 1.0,
        "early_stop_validation_accuracy": 0.1,
        "early_stop_test_loss": 0.3,
        "early_stop_test_accuracy": 0.9,
        "final_validation_loss": 1.5,
        "final_validation_accuracy": 0.4,
        "final_test_loss": 0.4,
        "final_test_accuracy": 0.8,
    }


def test_training_loss_is_the_mean_since_the_last_evaluation() -> None:
    tracker = MetricTracker()
    tracker.record_validation(0, 1.0, 0.5)
    tracker.record_training(np.array([1.0, 2.0], np.float32), 0)
    tracker.record_training(np.array([6.0], np.float32), 2)
    tracker.record_validation(3, 1.0, 0.5)
    tracker.record_training(np.array([5.0], np.float32), 3)
    tracker.record_validation(4, 1.0, 0.5)
    assert math.isnan(tracker.curve.training_loss[0])
    assert tracker.curve.training_loss[1:] == [3.0, 5.0]


@pytest.mark.parametrize("not_finite", [np.nan, np.inf, -np.inf])
def test_the_first_training_loss_that_is_not_finite_is_the_iteration_of_divergence(not_finite: float) -> None:
    tracker = tracked(3.0)
    assert not tracker.record_training(np.array([1.0, 2.0, not_finite, 1.0, not_finite], np.float32), 10)
    assert tracker.diverged_at == 13


@pytest.mark.parametrize("not_finite", [math.nan, math.inf])
def test_metrics_hold_no_number_that_is_not_finite(not_finite: float) -> None:
    diverged = tracked(3.0, 2.0, not_finite)
    assert (diverged.diverged_at, diverged.curve.iterations) == (30, [10, 20])
    unknown = MetricTracker()
    unknown.record_validation(0, not_finite, 0.1)
    for tracker, tests in (
        (diverged, (None, None)),
        (unknown, (None, None)),
        (tracked(3.0), ((not_finite, 0.1), (not_finite, 0.2))),
    ):
        metrics = tracker.metrics(*tests)
        json.dumps(metrics, allow_nan=False)
        assert metrics["early_stop_test_loss"] is None
        assert metrics.keys() == tracked(1.0).metrics(None, None).keys()
