"""The form of a stored recipe: every setting that the package writes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from supermask.core.recipe import MAX_COUNT, MAX_EPOCHS, MAX_NUMBER, Augmentation, ChannelStatistics, Recipe
from supermask.datasets.specs import MAX_IMAGES
from supermask.execution.estimate import estimate
from supermask.store import Store
from supermask.store.documents import Count, LearningForm, RecipeForm
from supermask.study import Train, study_from_dict
from supermask.study.plan import make_plan, resolve_recipe

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


LARGEST: dict[str, Any] = {
    "lr": MAX_NUMBER,
    "weight_decay": MAX_NUMBER,
    "epochs": MAX_EPOCHS,
    "evaluate_every": MAX_COUNT,
    "batch_size": 1,
}


@pytest.mark.parametrize("train", [{"warmup_epochs": MAX_EPOCHS}, {"lr_drops": [MAX_EPOCHS / 2]}], ids=repr)
def test_the_store_accepts_the_largest_values_of_a_study(train: dict[str, Any], tmp_path: Path) -> None:
    """With the most images that a dataset may have; so does the estimate of its time."""
    learn = LARGEST | {"samples": MAX_COUNT}
    treatments = [{}, {"supermask": {"others_lr": MAX_NUMBER}}]
    data = {"seeds": [MAX_COUNT], "train": LARGEST | train, "learn": learn, "treatments": treatments}
    plan = make_plan(study_from_dict(data))
    recipes = [run.recipe for run in plan.runs.values()]
    for recipe in [*recipes, resolve_recipe(Train(**LARGEST | train), MAX_IMAGES)]:
        FORM.validate_python(recipe.to_data())
    for run in plan.runs.values():
        TypeAdapter(Count).validate_python(run.seed)
        if run.learning is not None:
            TypeAdapter(LearningForm).validate_python(run.learning.to_data())
    assert estimate(plan, Store(tmp_path), plan.runs.values(), "reference").core_seconds > 0


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
