"""Run ids: a hash of exactly what determines the outcome. Pinned, because changed ids make every store stale."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from supermask.core.learned_masks import MaskLearning
from supermask.core.pruning import PruneStep
from supermask.core.recipe import Augmentation, Recipe
from supermask.core.types import Snapshot
from supermask.datasets.specs import DataOptions
from supermask.study.run import NUMERICS_VERSION, Run

RECIPE = Recipe("adam", 1.2e-3, 60, 50_417, 100, drop_factor=1.0)
STEP = PruneStep("large_final", "rewind", "zero", {"conv": 0.1, "hidden": 0.2, "output": 0.1})
DENSE = Run("fc-300-100", "mnist", 0, 0, RECIPE)
LEVEL_1 = Run("fc-300-100", "mnist", 0, 1, RECIPE, DENSE.id, STEP)


def test_ids_are_pinned() -> None:
    assert DENSE.id == "da9045ac170f7e6d2f34e16751cadaaa"
    assert LEVEL_1.id == "fab5980598146b0ff36c9579bed55adf"


def test_an_id_is_32_hex_digits() -> None:
    assert len(DENSE.id) == 32 and set(DENSE.id) <= set("0123456789abcdef")


OTHER: dict[type, dict[str, Any]] = {
    Run: {
        "network": "fc-300-101",
        "dataset": "digits",
        "seed": 1,
        "level": 2,
        "recipe": replace(RECIPE, lr=1e-3),
        "parent": LEVEL_1.id,
        "step": replace(STEP, mask1="reinit"),
        "learning": MaskLearning(),
        "data_fingerprint": "0" * 64,
        "data_source": "0" * 64,
        "data_options": DataOptions(train_images=100),
        "initializer": "bimodal",
        "network_source": "0" * 64,
    },
    PruneStep: {
        "criterion": "movement",
        "mask1": "reinit",
        "mask0": "freeze_init",
        "rates": {"conv": 0.1, "hidden": 0.21, "output": 0.1},
        "scope": "global",
        "levels": 2,
        "w_init": 100,
        "w_final": "lowest_validation_loss",
        "rewind_to": 100,
        "rescaled": True,
        "criterion_source": "0" * 64,
        "rescaled_before": False,
        "only": ("fc1",),
        "exclude": ("fc1",),
    },
    Recipe: {
        "optimizer": "sgd",
        "lr": 1.3e-3,
        "batch_size": 61,
        "iterations": 50_418,
        "evaluate_every": 101,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "lr_milestones": (100,),
        "drop_factor": 0.1,
        "warmup_iterations": 5,
        "schedule": "cosine",
        "nesterov": True,
        "betas": (0.9, 0.99),
        "eps": 1e-7,
        "label_smoothing": 0.1,
        "loss": "mine:loss",
        "loss_source": "0" * 64,
        "augment": Augmentation(crop=4),
        "normalize": "per_channel",
        "precision": "bfloat16",
        "channels_last": True,
        "compile": True,
    },
}


def test_every_field_has_a_changed_value() -> None:
    for kind, changes in OTHER.items():
        # `data_spec` and `network_facts` follow from the fingerprint and the source, which are in the id.
        derived = {"id", "numerics", "data_spec", "network_facts"}
        assert [f.name for f in fields(kind) if f.name not in derived] == list(changes)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, changes in OTHER.items() for name in changes])
def test_each_field_that_matters_changes_the_id(kind: type, name: str) -> None:
    change = {name: OTHER[kind][name]}
    if kind is Run:
        changed = replace(LEVEL_1, **change)
    elif kind is PruneStep:
        changed = replace(LEVEL_1, step=replace(STEP, **change))
    else:
        changed = replace(LEVEL_1, recipe=replace(RECIPE, **change))
    assert changed.id != LEVEL_1.id
    assert changed.to_data() != LEVEL_1.to_data()


def test_all_those_ids_differ_from_each_other() -> None:
    ids = {replace(LEVEL_1, **{name: value}).id for name, value in OTHER[Run].items()}
    ids |= {replace(LEVEL_1, step=replace(STEP, **{n: v})).id for n, v in OTHER[PruneStep].items()}
    ids |= {replace(LEVEL_1, recipe=replace(RECIPE, **{n: v})).id for n, v in OTHER[Recipe].items()}
    assert len(ids) == sum(map(len, OTHER.values())) - 1  # the step with reinit occurs twice


def test_a_new_run_has_the_current_numerics_version() -> None:
    assert DENSE.numerics == NUMERICS_VERSION
    older = Run.from_data({**DENSE.to_data(), "numerics": NUMERICS_VERSION + 1})
    assert older.numerics == NUMERICS_VERSION + 1 and older.id != DENSE.id
    assert Run.from_data(older.to_data()) == older


def test_rate_order_and_other_keys_do_not_change_the_id() -> None:
    rates = {"output": 0.1, "conv": 0.1, "hidden": 0.2}
    assert replace(LEVEL_1, step=replace(STEP, rates=rates)).id == LEVEL_1.id
    named = {**LEVEL_1.to_data(), "label": "mine", "study": "s", "engine": "stacked", "workers": 7, "id": "x"}
    assert Run.from_data(named).id == LEVEL_1.id


def test_kinds_of_points_have_different_ids() -> None:
    snapshots: list[Snapshot] = ["start", 0, "end", 100]
    assert len({replace(LEVEL_1, step=replace(STEP, rewind_to=p)).id for p in snapshots}) == 4


@pytest.mark.parametrize("run", [DENSE, LEVEL_1])
def test_from_data_inverts_to_data(run: Run) -> None:
    assert Run.from_data(run.to_data()) == run
    through_json = Run.from_data(json.loads(json.dumps(run.to_data())))
    assert through_json == run and through_json.id == run.id


# ------------------------------------------------------------------------------ snapshots of the parent


def required_snapshots(**changes: Any) -> tuple[set[Any], set[Any]]:
    step = replace(STEP, **changes)
    return set(step.required_snapshots), set(step.initial_state_snapshots)


@pytest.mark.parametrize(
    ("changes", "to_score", "to_start"),
    [
        ({}, {"end"}, set()),
        ({"mask0": "freeze_init"}, {"end"}, set()),
        ({"mask0": "freeze_final"}, {"end"}, {"end"}),
        ({"mask0": "zero_random"}, {"end"}, {"end"}),
        ({"criterion": "snip"}, {"end", "gradient"}, set()),
        ({"rewind_to": 100}, {"end", 100}, {100}),
        ({"rewind_to": "end"}, {"end"}, {"end"}),
        ({"w_init": 10, "w_final": 20}, {10, 20}, {10}),
        ({"w_init": 10, "w_final": 20, "mask0": "zero_if_shrunk"}, {10, 20}, {10, 20}),
        ({"w_final": "start"}, set(), set()),
    ],
)
def test_snapshots_of_the_parent(changes: dict[str, Any], to_score: set[Any], to_start: set[Any]) -> None:
    assert required_snapshots(**changes) == (to_score, to_start)
