"""What engines share: the order of batches, where they pause, the watch over losses."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.trainings import job, pruned_start
from hypothesis import given, settings
from hypothesis import strategies as some

from supermask.core.recipe import Recipe
from supermask.core.types import Snapshot
from supermask.engines.job import BatchSampler, Checkpointer, MetricTracker, NullCheckpointer, stopping_points

# --- the order of batches ---

sizes = given(n=some.integers(1, 40), batch_size=some.integers(1, 100), seed=some.integers(0, 3))


@sizes
@settings(max_examples=60, deadline=None)
def test_batches_are_full_and_every_image_is_seen_once_a_pass(n: int, batch_size: int, seed: int) -> None:
    indices = np.arange(n, dtype=np.int64) * 3 + 7
    order = BatchSampler(seed, indices, batch_size)
    batches = [order.batch(i) for i in range(-(-4 * n // batch_size))]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    sequence = np.concatenate(batches)[: 4 * n]
    for one_pass in sequence.reshape(4, n):
        assert sorted(one_pass) == indices.tolist()


@sizes
@settings(max_examples=40, deadline=None)
def test_a_batch_depends_on_seed_and_number_alone(n: int, batch_size: int, seed: int) -> None:
    indices = np.arange(n, dtype=np.int64)
    forwards = BatchSampler(seed, indices, batch_size)
    expected = [forwards.batch(i).tolist() for i in range(12)]
    backwards = BatchSampler(seed, indices, batch_size)
    assert [backwards.batch(i).tolist() for i in reversed(range(12))] == expected[::-1]
    assert BatchSampler(seed, indices, batch_size).batch(7).tolist() == expected[7]


@sizes
@settings(max_examples=60, deadline=None)
def test_several_batches_at_once_are_those_one_after_another(n: int, batch_size: int, seed: int) -> None:
    indices = np.arange(n, dtype=np.int64) * 2 + 1
    order = BatchSampler(seed, indices, batch_size)
    for first, last in ((0, 1), (0, 9), (5, 7), (3, 14), (2, 2)):
        found = order.batches(first, last)
        assert found.shape == (last - first, batch_size) and found.dtype == np.int64
        assert found.tolist() == [BatchSampler(seed, indices, batch_size).batch(i).tolist() for i in range(first, last)]


def test_passes_and_seeds_have_different_orders() -> None:
    indices = np.arange(30, dtype=np.int64)
    orders = [tuple(BatchSampler(seed, indices, 30).batch(i)) for seed in range(3) for i in range(3)]
    assert len(set(orders)) == 9


def test_another_batch_size_walks_the_same_sequence() -> None:
    indices = np.arange(11, dtype=np.int64)
    one_by_one, seven = BatchSampler(0, indices, 1), BatchSampler(0, indices, 7)
    assert [int(one_by_one.batch(i)[0]) for i in range(35)] == np.concatenate(
        [seven.batch(i) for i in range(5)]
    ).tolist()


# --- where an engine pauses ---


@given(
    iterations=some.integers(1, 60),
    every=some.integers(1, 70),
    first=some.integers(0, 60),
    kept=some.frozensets(some.integers(0, 60)),
)
@settings(max_examples=100, deadline=None)
def test_pauses_are_those_of_a_loop_over_all_iterations(
    iterations: int, every: int, first: int, kept: frozenset[int]
) -> None:
    first = min(first, iterations)
    points: frozenset[Snapshot] = frozenset({*(min(k, iterations) for k in kept), "gradient", "end"})
    expected = []
    for i in range(first + 1, iterations + 1):
        evaluated = i % every == 0 or i == iterations
        if evaluated or i in points:
            expected.append((i, evaluated))
    assert list(stopping_points(Recipe("adam", 1.0, 1, iterations, every), first, points)) == expected


@pytest.mark.parametrize("point", [-1, 9, 51])
def test_a_point_that_the_training_never_passes_is_our_own_mistake(point: Snapshot) -> None:
    late = replace(pruned_start(), first_iteration=10)
    with pytest.raises(AssertionError, match="never passed"):
        job(Recipe("adam", 0.01, 5, 50, 10), late, points=frozenset({point}))
    with pytest.raises(AssertionError, match="begin after its end"):
        job(Recipe("adam", 0.01, 5, 9, 10), late)


def test_without_checkpoints_nothing_is_kept() -> None:
    none: Checkpointer = NullCheckpointer()
    none.save({}, {})
    assert (none.load(), none.should_save()) == (None, False)


# --- the watch ---


def watched(*validation: float) -> MetricTracker:
    watch = MetricTracker()
    for i, loss in enumerate(validation):
        watch.record_training(np.full(10, 1.0, np.float32), 10 * i)
        watch.record_validation(10 * (i + 1), loss, 0.1 * i)
    return watch


def test_the_best_is_the_first_of_the_lowest() -> None:
    watch = watched(3.0, 1.0, 2.0, 1.0, 1.5)
    metrics = watch.metrics((0.3, 0.9), (0.4, 0.8))
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


def test_training_loss_is_the_mean_over_all_batches_since_the_last_evaluation() -> None:
    watch = MetricTracker()
    watch.record_validation(0, 1.0, 0.5)
    watch.record_training(np.array([1.0, 2.0], np.float32), 0)
    watch.record_training(np.array([6.0], np.float32), 2)
    watch.record_validation(3, 1.0, 0.5)
    watch.record_training(np.array([5.0], np.float32), 3)
    watch.record_validation(4, 1.0, 0.5)
    assert math.isnan(watch.curve.training_loss[0])
    assert watch.curve.training_loss[1:] == [3.0, 5.0]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_the_first_training_loss_that_is_not_finite_is_the_step_of_divergence(broken: float) -> None:
    watch = watched(3.0)
    assert not watch.record_training(np.array([1.0, 2.0, broken, 1.0, broken], np.float32), 10)
    assert watch.diverged_at == 13


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_no_number_that_is_not_finite_gets_into_the_metrics(broken: float) -> None:
    diverged = watched(3.0, 2.0, broken)
    assert (diverged.diverged_at, diverged.curve.iterations) == (30, [10, 20])
    never_known = MetricTracker()
    never_known.record_validation(0, broken, 0.1)
    for watch, tests in (
        (diverged, (None, None)),
        (never_known, (None, None)),
        (watched(3.0), ((broken, 0.1), (broken, 0.2))),
    ):
        metrics = watch.metrics(*tests)
        json.dumps(metrics, allow_nan=False)
        assert metrics["early_stop_test_loss"] is None
        assert metrics.keys() == watched(1.0).metrics(None, None).keys()
