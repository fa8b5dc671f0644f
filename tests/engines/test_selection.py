"""Which engine trains a recipe: settings that all engines have, and those of the reference engine alone."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from supermask.core.errors import UserError
from supermask.core.recipe import Augmentation, Recipe
from supermask.engines.selection import REFERENCE_ONLY, EngineChoice, select_engine
from supermask.networks.registry import named_network

FC = named_network("fc-20", (1, 8, 8), 10)
ONLY_IN_REFERENCE: dict[str, dict[str, object]] = {
    "optimizer: adamw": {"optimizer": "adamw"},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "betas": {"betas": (0.8, 0.9)},
    "eps": {"eps": 1e-6},
    "label_smoothing": {"label_smoothing": 0.1},
    "loss": {"loss": "mine:loss", "loss_source": "0" * 64},
    "augment": {"augment": Augmentation(flip=True)},
    "normalize": {"normalize": "per_channel"},
    "precision": {"precision": "bfloat16"},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
}
SHARED: dict[str, object] = {
    "lr_milestones": (5,),
    "warmup_iterations": 3,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "momentum": 0.9,
}
PLAIN = Recipe("adam", 1e-3, 60, 10, 10)


def test_every_setting_of_a_recipe_is_in_all_engines_or_in_the_reference_engine_alone() -> None:
    needed = {"optimizer", "lr", "batch_size", "iterations", "evaluate_every", "drop_factor"}
    assert needed | SHARED.keys() | set(REFERENCE_ONLY) == {field.name for field in fields(Recipe)}
    assert {key for changes in ONLY_IN_REFERENCE.values() for key in changes} - needed - {"momentum"} == set(
        REFERENCE_ONLY
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ONLY_IN_REFERENCE)
def test_auto_selects_the_reference_engine_for_settings_of_its_own(name: str, device: str) -> None:
    fast, recipe = ("sparse" if device == "cpu" else "stacked"), replace(PLAIN, **ONLY_IN_REFERENCE[name])  # type: ignore[arg-type]
    choice = select_engine("auto", FC, device, recipe=recipe)
    assert choice == EngineChoice("reference", f"auto: the {fast} engine does not have {name}")
    with pytest.raises(UserError, match=f"the {fast} engine does not have {name}: use --engine auto or"):
        select_engine(fast, FC, device, recipe=recipe)


@pytest.mark.parametrize("name", SHARED)
def test_schedules_and_decay_are_in_all_engines(name: str) -> None:
    recipe = replace(PLAIN, **{name: SHARED[name]})  # type: ignore[arg-type]
    assert select_engine("auto", FC, "cpu", recipe=recipe).engine == "sparse"
    assert select_engine("auto", FC, "cuda", recipe=recipe).engine == "stacked"
