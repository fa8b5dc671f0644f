"""Recipes: exact numbers of iterations, and the learning rate of each iteration."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from math import ceil, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.recipe import Augmentation, ChannelStatistics, Recipe, epochs_to_iterations

PLAIN = Recipe("adam", 1.2e-3, 60, 100, 100)
FULL = Recipe(
    "sgd",
    0.1,
    128,
    1000,
    50,
    momentum=0.9,
    weight_decay=1e-4,
    lr_milestones=(500, 750),
    drop_factor=0.1,
    warmup_iterations=10,
)

EVERYTHING = Recipe(
    "sgd",
    0.1,
    128,
    1000,
    50,
    momentum=0.9,
    schedule="linear",
    nesterov=True,
    betas=(0.9, 0.95),
    eps=1e-6,
    label_smoothing=0.1,
    loss="mine:loss",
    loss_source="0" * 64,
    augment=Augmentation(crop=4, cutout=8),
    normalize=ChannelStatistics((0.5,), (0.25,)),
    precision="bfloat16",
    channels_last=True,
    compile=True,
)


@pytest.mark.parametrize(
    ("epochs", "images", "batch", "count"),
    [
        (55, 55_000, 60, 50_417),  # the four networks of the paper: about 50k, 20k, 25k, 30k
        (27, 45_000, 60, 20_250),
        (34, 45_000, 60, 25_500),
        (40, 45_000, 60, 30_000),
        (1, 60, 60, 1),
        (1, 61, 60, 2),
        (0.1, 600, 60, 1),  # exactly 1, although the float 0.1 is above 1/10
        (0.7, 100, 10, 7),  # exactly 7, although the float 0.7 is below 7/10
        (1e-9, 600, 60, 1),
    ],
)
def test_epochs_to_iterations(epochs: float, images: int, batch: int, count: int) -> None:
    assert epochs_to_iterations(epochs, images, batch) == count


@given(st.integers(1, 10_000), st.integers(1, 60_000), st.integers(1, 1000))
def test_epochs_to_iterations_equals_exact_decimal_arithmetic(hundredths: int, images: int, batch: int) -> None:
    assert epochs_to_iterations(hundredths / 100, images, batch) == max(
        1, ceil(Decimal(hundredths) * images / 100 / batch)
    )


def test_learning_rate_is_constant_by_default() -> None:
    assert {PLAIN.learning_rate(i) for i in range(100)} == {1.2e-3}


def test_learning_rate_warms_up_and_drops() -> None:
    rates = [FULL.learning_rate(i) for i in range(1000)]
    assert rates[:10] == pytest.approx([0.01 * n for n in range(1, 11)])
    assert rates[10:500] == pytest.approx([0.1] * 490)
    assert rates[500:750] == pytest.approx([0.01] * 250)
    assert rates[750:] == pytest.approx([0.001] * 250)


def test_final_learning_rate() -> None:
    tuned = FULL.at_final_learning_rate()
    assert {tuned.learning_rate(i) for i in range(1000)} == {FULL.learning_rate(999)}
    assert (tuned.optimizer, tuned.momentum, tuned.weight_decay, tuned.iterations) == ("sgd", 0.9, 1e-4, 1000)
    assert tuned.at_final_learning_rate() == tuned


def test_final_learning_rate_of_a_constant_rate_is_the_same_recipe() -> None:
    """Without drops the plan sets the factor to 1."""
    constant = Recipe("adam", 1.2e-3, 60, 100, 100, drop_factor=1.0)
    assert constant.at_final_learning_rate() == constant


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_annealed_learning_rates(schedule: str, warmup: int) -> None:
    recipe = replace(PLAIN, schedule=schedule, warmup_iterations=warmup)  # type: ignore[arg-type]
    rates = [recipe.learning_rate(i) for i in range(100)]
    assert rates[:warmup] == pytest.approx([1.2e-3 * n / 10 for n in range(1, warmup + 1)])
    left = np.linspace(1, 0, 101 - warmup)[:-1]
    expected = 1.2e-3 * (left if schedule == "linear" else np.sin(np.pi / 2 * left) ** 2)
    assert rates[warmup:] == pytest.approx(expected.tolist())
    tuned = recipe.at_final_learning_rate()
    assert {tuned.learning_rate(i) for i in range(100)} == {rates[-1]}


def test_a_warmup_as_long_as_the_training_leaves_nothing_to_anneal() -> None:
    recipe = replace(PLAIN, schedule="cosine", warmup_iterations=200)
    assert [recipe.learning_rate(i) for i in (0, 99)] == pytest.approx([1.2e-3 / 200, 1.2e-3 / 2])


def test_later_fields_are_stored_only_where_they_differ() -> None:
    """Ids of earlier runs are hashes of exactly these keys."""
    earlier = ["optimizer", "lr", "batch_size", "iterations", "evaluate_every", "momentum", "weight_decay"]
    assert list(FULL.to_data()) == [*earlier, "drops", "drop_factor", "warmup"]
    assert EVERYTHING.to_data().keys() - FULL.to_data().keys() == {
        *("schedule", "nesterov", "betas", "eps", "label_smoothing", "loss", "loss_source", "augment", "normalize"),
        *("precision", "channels_last", "compile"),
    }
    assert EVERYTHING.to_data()["augment"] == {"crop": 4, "cutout": 8}


@pytest.mark.parametrize("recipe", [PLAIN, FULL, EVERYTHING, replace(EVERYTHING, normalize="per_channel")])
def test_recipe_round_trips_through_json(recipe: Recipe) -> None:
    assert Recipe.from_data(json.loads(json.dumps(recipe.to_data()))) == recipe


def test_the_largest_input_follows_from_the_normalization() -> None:
    assert PLAIN.max_input == 1.0 and replace(PLAIN, normalize="per_channel").max_input == inf
    statistics = ChannelStatistics((0.5, 0.1), (0.25, 0.1))
    assert replace(PLAIN, normalize=statistics).max_input == pytest.approx(9.0)  # (1 - 0.1) / 0.1
