"""The form of a stored recipe: every setting that the package writes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from supermask.core.recipe import Augmentation, ChannelStatistics, Recipe
from supermask.store.documents import RecipeForm

PLAIN = Recipe("adamw", 1e-3, 60, 10, 10, weight_decay=0.1)
ALL = replace(
    PLAIN,
    schedule="cosine",
    nesterov=True,
    betas=(0.5, 0.9),
    eps=1e-6,
    label_smoothing=0.1,
    loss="mine:loss",
    loss_source="0" * 64,
    augment=Augmentation(4, True, 8),
    normalize=ChannelStatistics((0.5,), (0.25,)),
    precision="bfloat16",
    channels_last=True,
    compile=True,
)
FORM: TypeAdapter[Any] = TypeAdapter(RecipeForm)


@pytest.mark.parametrize(
    "recipe", [PLAIN, ALL, replace(ALL, normalize="per_channel")], ids=["plain", "all", "channels"]
)
def test_every_recipe_has_the_form_and_comes_back(recipe: Recipe) -> None:
    assert Recipe.from_data(FORM.validate_python(recipe.to_data())) == recipe


WRONG: dict[str, list[Any]] = {
    "optimizer": ["rmsprop", None],
    "schedule": ["exponential", 1],
    "nesterov": [1, "yes"],
    "betas": [[0.9], [0.9, 2], 0.9, [0.1, 0.2, 0.3], [True, 0.9]],
    "eps": [-1, "0"],
    "label_smoothing": [1.5, -1],
    "loss": [3, None, "x" * 10_001],
    "loss_source": ["abc", 3],
    "augment": [{"crop": 0}, {"crop": 2**20}, {"crop": True}, {"rotate": 3}, [], "all"],
    "normalize": ["batch", {"mean": [0.5]}, {"mean": [], "std": []}, {"mean": [0.5], "std": [0]}, 3],
    "precision": ["float16"],
    "channels_last": [1],
    "compile": ["true"],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG.items() for v in values], ids=repr)
def test_a_wrong_value_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        FORM.validate_python({**ALL.to_data(), key: value})
