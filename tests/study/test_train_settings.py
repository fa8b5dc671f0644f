"""Training settings of studies and treatments: recipes, dense networks, labels, and keys without effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.study_refusals import labels, refusal

from supermask.core.errors import UserError
from supermask.core.recipe import Augmentation, ChannelStatistics, Recipe
from supermask.store import Store
from supermask.store.planning import plan_study
from supermask.study.loading import load_study, study_from_dict
from supermask.study.plan import Plan, make_plan
from supermask.study.plan_checks import count_requested_runs, ineffective_settings
from supermask.study.plan_inputs import PlanInputs
from supermask.study.source_files import UserModuleNotFound
from supermask.study.train_settings import Train
from supermask.study.user_code import code_sha256


def planned(train: dict[str, Any], *treatments: dict[str, Any], **keys: Any) -> Plan:
    study = {"seeds": [3], "prune": {"levels": 2}, **keys, "train": train, "treatments": list(treatments) or [{}]}
    return make_plan(study_from_dict(study, name="mine"))


def dense(plan: Plan, label: str) -> Recipe:
    run_id = next(role.run_id for role in plan.treatment_runs if role.treatment == label and role.level == 0)
    return plan.runs[run_id].recipe


def recipe(**train: Any) -> Recipe:
    return next(iter(planned(train).runs.values())).recipe


DEFAULT = recipe()


def test_every_setting_reaches_the_recipe() -> None:
    settings = {
        "optimizer": "sgd",
        "nesterov": True,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "label_smoothing": 0.1,
        "augment": {"crop": 2, "flip": True, "cutout": 3},
        "normalize": {"mean": [0.5], "std": [0.25]},
        "precision": "bfloat16",
        "channels_last": True,
        "compile": True,
    }
    made = recipe(**settings)
    assert (made.optimizer, made.nesterov, made.momentum, made.schedule) == ("sgd", True, 0.9, "cosine")
    assert (made.warmup_iterations, made.label_smoothing) == (DEFAULT.iterations // 55 + 1, 0.1)
    assert made.augment == Augmentation(2, True, 3)
    assert made.normalize == ChannelStatistics((0.5,), (0.25,))
    assert (made.precision, made.channels_last, made.compile) == ("bfloat16", True, True)
    assert recipe(betas=[0.8, 0.9], eps=1e-4).betas == (0.8, 0.9)
    assert recipe(betas=[0.8, 0.9], eps=1e-4).eps == 1e-4


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"schedule": "constant"}, {}),
    ({"augment": "none"}, {}),
    ({"augment": {"crop": 0, "flip": False}}, {}),
    ({"normalize": "none"}, {}),
    ({"optimizer": "adamw"}, {}),
    ({"optimizer": "adamw", "lr_drops": [1]}, {"lr_drops": [1], "schedule": "step"}),
    ({"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd"}),
    ({"betas": [0.9, 0.999], "eps": 1e-8}, {}),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_settings_with_one_meaning_are_one_recipe(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert recipe(**one) == recipe(**other)


WITHOUT_EFFECT: list[tuple[dict[str, Any], str]] = [
    ({"nesterov": True}, "nesterov has no effect with optimizer: adam; leave it out."),
    ({"nesterov": True, "optimizer": "sgd", "momentum": 0}, "nesterov has no effect with momentum: 0; leave it out."),
    ({"betas": [0.5, 0.9], "optimizer": "sgd"}, "betas has no effect with optimizer: sgd; leave it out."),
    ({"eps": 1e-3, "optimizer": "sgd"}, "eps has no effect with optimizer: sgd; leave it out."),
    ({"lr_drops": [3], "schedule": "linear"}, "lr_drops has no effect with schedule: linear; leave it out."),
    ({"lr_drops": [3], "schedule": "constant"}, "lr_drops has no effect with schedule: constant; leave it out."),
    ({"lr_drop_factor": 0.5}, "lr_drop_factor has no effect without lr_drops; leave it out."),
    (
        {"lr_drop_factor": 0.5, "schedule": "cosine"},
        "lr_drop_factor has no effect with schedule: cosine; leave it out.",
    ),
    (
        {"lr_drop_factor": 0.5, "schedule": "step"},
        "lr_drop_factor has no effect without lr_drops; leave it out.",
    ),
    ({"momentum": 0.1}, "momentum has no effect with optimizer: adam; leave it out."),
    (
        {"momentum": 0, "optimizer": "adamw", "weight_decay": 0.1},
        "momentum has no effect with optimizer: adamw; leave it out.",
    ),
    ({"schedule": "step"}, "schedule: step needs lr_drops, the epochs at which the learning rate drops."),
    ({"loss": "mine:f", "label_smoothing": 0.1}, "label_smoothing has no effect with loss: mine:f; leave it out."),
]


@pytest.mark.parametrize(("train", "message"), WITHOUT_EFFECT, ids=str)
def test_a_setting_without_effect_is_refused(train: dict[str, Any], message: str) -> None:
    assert refusal({"train": train, "treatments": [{}]}) == f"train: {message}"
    assert refusal(
        {"treatments": [{"train": {k: [v] if k in ("betas", "lr_drops") else v for k, v in train.items()}}]}
    ) == (f"treatments[0].train: {message}")


NEAREST = {
    "scheduler": "schedule",
    "label_smoothin": "label_smoothing",
    "augmentation": "augment",
    "cutout": "augment.cutout",
    "optimiser": "optimizer",
    "beta": "betas",
}


@pytest.mark.parametrize(("key", "nearest"), NEAREST.items())
@pytest.mark.parametrize("place", ["train", "treatments[0].train"])
def test_an_unknown_key_names_the_nearest(place: str, key: str, nearest: str) -> None:
    train = {key: 1}
    message = refusal({"train": train, "treatments": [{}]} if place == "train" else {"treatments": [{"train": train}]})
    problem, _, suggestion = message.partition("; did you mean ")
    assert problem == f"{place} has no key '{key}'"
    assert suggestion.split("?")[0] in (f"'{nearest}'", f"'train.{nearest}'")


def test_settings_that_do_not_fit_the_images_are_refused() -> None:
    for train, message in (
        ({"augment": {"crop": 8}}, "train.augment.crop: 8 is too large for the images of digits, 8 x 8 pixels: use at"),
        ({"augment": {"cutout": 9}}, "train.augment.cutout: 9 is too large"),
        ({"normalize": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "train.normalize: 3 means and standard deviations do "),
    ):
        for plan_it in (lambda t=train: planned(t), lambda t=train: planned({}, {}, {"train": t})):
            with pytest.raises(UserError) as caught:
                plan_it()
            assert str(caught.value).startswith(f"study 'mine': {message}")
    assert "above 0" in refusal({"train": {"normalize": {"mean": [0], "std": [0]}}, "treatments": [{}]})
    assert "as many" in refusal({"train": {"normalize": {"mean": [0], "std": [1, 1]}}, "treatments": [{}]})


def test_fine_tuning_at_the_end_of_an_annealed_schedule_is_warned_of() -> None:
    tuned = {"rewind_to": "end", "learning_rate_rewinding": False}
    for schedule, warned in (("cosine", True), ("linear", True), ("constant", False)):
        plan = planned({"schedule": schedule}, tuned)
        warnings = ineffective_settings(plan.study, plan.network, 1_257)
        assert any("close to 0" in text for text in warnings) == warned


# --- settings of a treatment ---


def test_treatments_without_settings_of_their_own_are_as_before() -> None:
    plan = planned({}, {}, {"mask1": "reinit"})
    assert [t.train for t in plan.study.treatments] == [None, None]
    assert plan.has_one_dense_network
    assert all("train" not in t for t in plan.study.as_data()["treatments"])


def test_each_settings_have_a_dense_network_of_their_own() -> None:
    plan = planned({"lr_drops": [30]}, {}, {"train": {"optimizer": "adamw", "weight_decay": 0.1}}, {"mask1": "reinit"})
    assert labels(plan.study) == [
        "rewind + optimizer=adam + weight_decay=0",
        "rewind + optimizer=adamw + weight_decay=0.1",
        "reinit + optimizer=adam + weight_decay=0",
    ]
    first, second, third = (dense(plan, label) for label in labels(plan.study))
    assert (first, first.optimizer) == (third, "adam")
    assert (second.optimizer, second.weight_decay, second.lr_milestones) == ("adamw", 0.1, first.lr_milestones)
    assert not plan.has_one_dense_network
    by_level = [run.level for run in plan.runs.values()]
    # Two dense networks; three chains of two levels.
    assert (by_level.count(0), len(by_level)) == (2, 8)
    assert len(by_level) == count_requested_runs(plan.study)
    for role in plan.treatment_runs:
        assert plan.runs[role.run_id].recipe == dense(plan, role.treatment)
    for run in plan.runs.values():
        assert run.parent is None or plan.runs[run.parent].recipe == run.recipe


def test_runs_are_shared_with_a_study_that_has_the_settings_at_its_top() -> None:
    both = planned({}, {"train": {"schedule": ["constant", "cosine"]}})
    alone = [planned({"schedule": schedule}) for schedule in ("constant", "cosine")]
    assert both.runs.keys() == alone[0].runs.keys() | alone[1].runs.keys()
    assert labels(both.study) == ["schedule=constant", "schedule=cosine"]
    assert next(iter(both.runs)) == next(iter(alone[0].runs))


def test_settings_with_one_recipe_share_the_dense_network() -> None:
    """AdamW without decay is Adam."""
    plan = planned({}, {"train": {"optimizer": "adam"}}, {"train": {"optimizer": "adamw"}, "mask0": "freeze_init"})
    assert len(plan.study.treatments) == 2
    assert plan.has_one_dense_network
    assert len(plan.runs) == 1 + 2 + 2


def test_lists_are_alternatives_unless_the_value_is_a_list() -> None:
    def trains(train: dict[str, Any]) -> list[Train]:
        return [t.train for t in study_from_dict({"treatments": [{"train": train}]}).treatments if t.train]

    assert [t.lr for t in trains({"lr": [0.1, 0.2]})] == [0.1, 0.2]
    assert [t.betas for t in trains({"betas": [0.5, 0.9]})] == [(0.5, 0.9)]
    assert [t.betas for t in trains({"betas": [[0.5, 0.9], [0.6, 0.9]]})] == [(0.5, 0.9), (0.6, 0.9)]
    assert [t.lr_drops for t in trains({"lr_drops": [[1], [2, 3], []]})] == [(1.0,), (2.0, 3.0), ()]
    assert [t.augment.crop for t in trains({"augment": [{"crop": 2}, "none"]})] == [2, 0]
    assert [t.augment.crop for t in trains({"augment": {"crop": [1, 2], "flip": True}})] == [1, 2]
    given = {"mean": [0.5], "std": [0.5]}
    assert len(trains({"normalize": ["none", "per_channel", given]})) == 3


def test_inherited_settings_without_effect_are_dropped() -> None:
    top = {"optimizer": "sgd", "nesterov": True, "momentum": 0.5, "lr_drops": [30], "label_smoothing": 0.1}
    top["lr_drop_factor"] = 0.5
    for change, lost in (
        ({"optimizer": "adam"}, {"nesterov": False, "momentum": 0.9}),
        ({"momentum": 0.0}, {"nesterov": False}),
        ({"schedule": "cosine"}, {"lr_drops": (), "lr_drop_factor": 0.1}),
        ({"lr_drops": []}, {"schedule": "constant", "lr_drop_factor": 0.1}),
        ({"lr_drops": [20]}, {"schedule": "step"}),
        ({"loss": "mine:loss"}, {"label_smoothing": 0.0}),
    ):
        study = study_from_dict({"train": top, "treatments": [{}, {"train": change}]})
        train = study.treatments[1].train
        assert train is not None
        expected = {k: tuple(v) if isinstance(v, list) else v for k, v in {**top, **change, **lost}.items()}
        assert {key: getattr(train, key) for key in expected} == expected
    refused = refusal({"train": {"schedule": "cosine"}, "treatments": [{}, {"train": {"lr_drops": [3]}}]})
    assert refused == "treatments[1].train: lr_drops has no effect with schedule: cosine; leave it out."


def test_equal_settings_are_one_treatment() -> None:
    message = refusal({"train": {"lr": 0.1}, "treatments": [{}, {"train": {"lr": 0.1}}]})
    assert "is the same treatment as one of treatments[0]" in message
    assert study_from_dict({"train": {"lr": 0.1}, "treatments": [{"train": {"lr": 0.1}}]}).treatments[0].train is None


def test_a_study_with_such_settings_is_written_and_read_again() -> None:
    data = {
        "train": {"lr_drops": [30]},
        "treatments": [
            {"train": {"schedule": ["step", "cosine"], "normalize": {"mean": [0.5], "std": [0.5]}}},
            {"supermask": {"rescaled": True}},
        ],
        "reference": {"train": {"schedule": "cosine"}, "supermask": None},
        "scales": {},
    }
    study = study_from_dict(data, name="mine")
    assert labels(study) == ["lr_drops=30 + schedule=step", "schedule=cosine", "bernoulli + rescaled=true"]
    assert study.reference == "schedule=cosine"
    assert study_from_dict(study.as_data(), name="mine") == study


def test_a_reference_is_found_by_training_settings() -> None:
    treatments = [{"train": {"optimizer": ["adam", "sgd"], "schedule": ["constant", "cosine"]}}]
    study = study_from_dict(
        {"treatments": treatments, "reference": {"train": {"optimizer": "sgd", "schedule": "constant"}}}
    )
    assert study.reference == "optimizer=sgd + schedule=constant"
    assert "2 treatments have" in refusal({"treatments": treatments, "reference": {"train": {"optimizer": "sgd"}}})


def test_settings_that_no_level_uses_are_refused() -> None:
    message = refusal({"treatments": [{"supermask": {}, "train": {"lr": 0.1}}]})
    assert message.startswith("treatments[0]: train is not used by any level")
    for used in ({"levels": 1}, {"supermask": {"start_from": "large_final"}}):
        study_from_dict({"treatments": [{"supermask": {}, "train": {"lr": 0.1}, **used}]})


def test_points_are_checked_against_the_treatments_own_training() -> None:
    long, short = {"rewind_to": 100}, {"rewind_to": 100, "train": {"epochs": 1}}
    planned({}, long)
    with pytest.raises(UserError, match=r"rewind_to: 100 is not before the end of the training, .* \(1 epochs\)"):
        planned({}, long, short)


def test_mask_learning_and_untrained_networks_see_normalized_inputs() -> None:
    plan = planned({"normalize": "per_channel", "augment": {"flip": True}}, {"trained": False}, {"supermask": {}})
    assert {run.recipe.normalize for run in plan.runs.values()} == {"per_channel"}
    assert [run.recipe.augment for run in plan.runs.values() if run.learning or not run.is_trained] == [
        Augmentation()
    ] * 3


def test_each_initializer_has_a_dense_network_of_its_own() -> None:
    plan = planned({}, {"initializer": ["bimodal", "glorot_normal"]}, {"criterion": "random"})
    first = {role.treatment: plan.runs[role.run_id] for role in plan.treatment_runs if role.level == 0}
    assert list(first) == ["large_final + initializer=bimodal", "large_final + initializer=glorot_normal", "random"]
    own, default, random = first.values()
    # The default by name is the default: these treatments share the dense network of every other study.
    assert own.initializer == "bimodal" and default is random and default.initializer is None
    assert {run.initializer for run in plan.runs.values()} == {"bimodal", None} and len(plan.runs) == 2 + 3 * 2
    at_the_top = planned({}, {}, initializer="bimodal")
    assert own.id in at_the_top.runs and default.id not in at_the_top.runs
    assert len(plan.runs) <= count_requested_runs(plan.study) == 3 + 3 * 2  # an upper bound
    again = study_from_dict(plan.study.as_data(), name="mine")
    assert make_plan(again).runs == plan.runs


def test_an_unknown_initializer_of_a_treatment_is_refused() -> None:
    with pytest.raises(UserError, match="'bimodl' is not an initializer"):
        planned({}, {"initializer": "bimodl"})


def test_overrides_set_the_new_keys() -> None:
    study = load_study(
        "mask-criteria",
        ["scale=digits", "train.schedule=cosine", "train.augment.flip=true", "train.normalize=per_channel"],
    )
    assert (study.train.schedule, study.train.augment.flip, study.train.normalize) == ("cosine", True, "per_channel")


# --- losses ---

LOSS = "def focal(logits, labels):\n    return (logits - labels[:, None]).square().mean()\n\n\nVALUE = 3\n"


@pytest.fixture
def loss_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t14losses.py"
    path.write_text(LOSS)
    return path


def test_the_source_of_a_loss_is_in_the_ids(loss_file: Path) -> None:
    plan = planned({"loss": "t14losses:focal"})
    assert {run.recipe.loss_source for run in plan.runs.values()} == {code_sha256("t14losses:focal")}
    loss_file.write_text(LOSS.replace("square", "abs"))
    assert not plan.runs.keys() & planned({"loss": "t14losses:focal"}).runs.keys()


def test_planning_does_not_run_the_code_of_a_loss(loss_file: Path) -> None:
    loss_file.write_text("raise SystemExit\n" + LOSS)
    assert planned({"loss": "t14losses:focal"}).runs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t14losses:local", "has no function 'local'; did you mean 'focal'?"),
        ("t14losses:VALUE", "is of type int, not a function VALUE(logits, labels)."),
        ("os:getcwd", "is a module of Python's standard library"),
    ],
)
def test_a_loss_that_is_no_function_is_refused(loss_file: Path, name: str, said: str) -> None:
    message = refusal({"train": {"loss": name}, "treatments": [{}]})
    assert message.startswith("train.loss: ")
    assert said in message


def test_many_losses_are_refused_before_any_file_is_looked_for() -> None:
    treatments = [{"train": {"loss": [f"no_such_module:loss{i}" for i in range(101)]}}]
    assert "treatments[0].train.loss: more than 100 functions by import path." in refusal({"treatments": treatments})


def test_a_loss_with_other_parameters_is_refused(loss_file: Path) -> None:
    loss_file.write_text("def focal(logits):\n    return logits.mean()\n")
    message = refusal({"train": {"loss": "t14losses:focal"}, "treatments": [{}]})
    assert "takes (logits): it must take (logits, labels)." in message


def test_a_loss_that_is_not_found_is_refused_by_plans_and_known_to_readers() -> None:
    study = study_from_dict({"train": {"loss": "no_such_module:f"}, "treatments": [{}], "prune": {"levels": 1}})
    with pytest.raises(UserModuleNotFound, match="loss 'no_such_module:f': there is no module"):
        make_plan(study)
    inputs = PlanInputs(loss_sources={"no_such_module:f": "0" * 64})
    assert PlanInputs.from_data(inputs.to_data()) == inputs
    assert make_plan(study, inputs).runs


def test_finished_studies_are_planned_without_the_code_of_their_loss(
    loss_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_from_dict({"train": {"loss": "t14losses:focal"}, "treatments": [{}], "prune": {"levels": 1}})
    stored = make_plan(study)
    monkeypatch.setattr("supermask.store.planning._stored_runs", lambda study, store: list(stored.runs.values()))
    loss_file.unlink()
    plan = plan_study(study, Store(tmp_path / "store"))
    assert plan.runs.keys() == stored.runs.keys()
    assert any("Shown as the runs in the store were made" in notice for notice in plan.notices)


STEPS = {"optimizer": "sgd", "momentum": 0.8, "lr_drops": [2], "lr_drop_factor": 0.2, "epochs": 4}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.optimizer=adam"], {"optimizer": "adam", "momentum": 0.9, "lr_drops": (2.0,), "lr_drop_factor": 0.2}),
        (["train.lr_drops=[]"], {"optimizer": "sgd", "momentum": 0.8, "lr_drops": (), "lr_drop_factor": 0.1}),
        (["train.schedule=cosine"], {"schedule": "cosine", "lr_drops": (), "lr_drop_factor": 0.1}),
        (["train.schedule=cosine", "train.lr_drops=[]"], {"schedule": "cosine", "lr_drops": (), "lr_drop_factor": 0.1}),
        (["scale=small"], {"optimizer": "adam", "momentum": 0.9}),
        (["scale=small", "train.optimizer=sgd"], {"optimizer": "sgd", "momentum": 0.9}),
    ],
)
def test_overrides_drop_the_settings_that_they_make_unused(overrides: list[str], expected: dict[str, Any]) -> None:
    data = {"train": STEPS, "treatments": [{}], "scales": {"small": {"train.optimizer": "adam"}}}
    train = study_from_dict(data, overrides).train
    assert {key: getattr(train, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("train", "overrides", "message"),
    [
        (
            {},
            ["train.momentum=0.8"],
            "^override 'train.momentum=0.8': train.momentum has no effect with optimizer: adam",
        ),
        (STEPS, ["train.optimizer=adam", "train.momentum=0.7"], "momentum has no effect with optimizer: adam"),
        ({"optimizer": "adam", "momentum": 0.8}, ["train.lr=0.1"], "momentum has no effect with optimizer: adam"),
        ({}, ["train.lr_drop_factor=0.5"], "lr_drop_factor has no effect without lr_drops"),
    ],
)
def test_settings_without_effect_of_one_place_are_refused(
    train: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        study_from_dict({"train": train, "treatments": [{}]}, overrides)


def test_the_default_scope_may_be_written_out_beside_an_override() -> None:
    data = {"treatments": [{}, {"supermask": {}, "scope": "layer"}]}
    assert study_from_dict(data, ["prune.scope=global"]).prune.scope == "global"
    with pytest.raises(UserError, match="global is not used by any level"):
        study_from_dict({"treatments": [{}, {"supermask": {}, "scope": "global"}]})
