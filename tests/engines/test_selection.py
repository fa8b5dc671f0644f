"""Engines that train a recipe: settings that all engines have, and those of the reference engine alone."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from supermask.core.errors import UserError
from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import Augmentation, Recipe
from supermask.engines.selection import NOT_SPARSE, REFERENCE_ONLY, EngineChoice, select_engine
from supermask.networks.registry import named_network

FC = named_network("fc-20", (1, 8, 8), 10)
ONLY_IN_REFERENCE: dict[str, dict[str, object]] = {
    "optimizer: adamw": {"optimizer": "adamw"},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    "betas": {"betas": (0.8, 0.9)},
    "eps": {"eps": 1e-6},
    "loss": {"loss": "mine:loss", "loss_source": "0" * 64},
    "precision": {"precision": "bfloat16"},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
}
NOT_IN_SPARSE: dict[str, dict[str, object]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "augment": {"augment": Augmentation(flip=True)},
    "normalize": {"normalize": "per_channel"},
}
SHARED: dict[str, object] = {
    "lr_milestones": (5,),
    "warmup_iterations": 3,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "momentum": 0.9,
}
PLAIN = Recipe("adam", 1e-3, 60, 10, 10)


def test_every_setting_of_a_recipe_says_which_engines_have_it() -> None:
    needed = {"optimizer", "lr", "batch_size", "iterations", "evaluate_every", "drop_factor"}
    assert needed | SHARED.keys() | set(REFERENCE_ONLY) | set(NOT_SPARSE) == {field.name for field in fields(Recipe)}
    assert not set(REFERENCE_ONLY) & set(NOT_SPARSE)
    for settings, names in ((ONLY_IN_REFERENCE, REFERENCE_ONLY), (NOT_IN_SPARSE, NOT_SPARSE)):
        assert {key for changes in settings.values() for key in changes} - needed - {"momentum"} == set(names)


@pytest.mark.parametrize("rules", [{"exclude": ("fc1",)}, {"only": ("fc1",)}])
def test_masks_that_leave_out_tensors_are_learned_by_the_reference_engine(rules: dict[str, tuple[str]]) -> None:
    for device, engine in (("cpu", "sparse"), ("cuda", "stacked")):
        assert select_engine("auto", FC, device, MaskLearning(), PLAIN).engine == engine
        assert select_engine("auto", FC, device, MaskLearning(**rules), PLAIN).engine == "reference"  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"without prune.only and prune.exclude: use --engine auto"):
            select_engine(engine, FC, device, MaskLearning(**rules), PLAIN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "name"),
    [("sparse", name) for name in (*ONLY_IN_REFERENCE, *NOT_IN_SPARSE)]
    + [("stacked", name) for name in ONLY_IN_REFERENCE],
)
def test_auto_selects_the_reference_engine_for_settings_that_the_fast_one_lacks(engine: str, name: str) -> None:
    device, recipe = (
        ("cpu" if engine == "sparse" else "cuda"),
        replace(PLAIN, **{**ONLY_IN_REFERENCE, **NOT_IN_SPARSE}[name]),
    )  # type: ignore[arg-type]
    choice = select_engine("auto", FC, device, recipe=recipe)
    assert choice == EngineChoice("reference", f"auto: the {engine} engine does not have {name}")
    with pytest.raises(UserError, match=f"the {engine} engine does not have {name}: use --engine auto or"):
        select_engine(engine, FC, device, recipe=recipe)


@pytest.mark.parametrize("name", NOT_IN_SPARSE)
def test_the_stacked_engine_has_settings_of_inputs_and_loss(name: str) -> None:
    recipe = replace(PLAIN, **NOT_IN_SPARSE[name])  # type: ignore[arg-type]
    assert select_engine("stacked", FC, "cpu", recipe=recipe).engine == "stacked"


@pytest.mark.parametrize("name", SHARED)
def test_schedules_and_decay_are_in_all_engines(name: str) -> None:
    recipe = replace(PLAIN, **{name: SHARED[name]})  # type: ignore[arg-type]
    assert select_engine("auto", FC, "cpu", recipe=recipe).engine == "sparse"
    assert select_engine("auto", FC, "cuda", recipe=recipe).engine == "stacked"
