"""The Study: defaults, rules, and expansion of treatments."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from helpers.study_refusals import labels, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from supermask.core.actions import MASK0_ACTIONS, MASK1_ACTIONS
from supermask.core.criteria import CRITERIA
from supermask.core.errors import UserError
from supermask.networks.sequential import NETWORK_NAMES, canonical_name
from supermask.study.loading import builtin_study_names, load_study, study_from_dict
from supermask.study.mask_settings import LearnSettings, Supermask
from supermask.study.prune_settings import Rates
from supermask.study.schema import Study, Treatment
from supermask.study.train_settings import Augment, Train

DEFAULTS = {
    "title": "",
    "network": "fc",
    "dataset": "digits",
    "train_images": None,
    "label_noise": 0.0,
    "validation": None,
    "seeds": [0, 1, 2, 3, 4],
    "train": {
        "optimizer": "adam",
        "lr": 1.2e-3,
        "batch_size": 60,
        "epochs": 55.0,
        "evaluate_every": 100,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "lr_drops": [],
        "lr_drop_factor": 0.1,
        "warmup_epochs": 0.0,
        "schedule": "constant",
        "nesterov": False,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "label_smoothing": 0.0,
        "loss": "cross_entropy",
        "augment": {"crop": 0, "flip": False, "cutout": 0},
        "normalize": "none",
        "precision": "float32",
        "channels_last": False,
        "compile": False,
    },
    "prune": {
        "schedule": "iterative",
        "scope": "layer",
        "levels": 24,
        "rates": {"conv": 0.1, "hidden": 0.2, "output": 0.1, "global": 0.2},
    },
    "learn": {
        "optimizer": "sgd",
        "lr": 100.0,
        "batch_size": 250,
        "epochs": 100.0,
        "evaluate_every": 220,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "samples": 10,
        "hardened_at": [0.5, 0.2, 0.1],
    },
    "treatments": [
        {
            "name": "large_final",
            "criterion": "large_final",
            "mask1": "rewind",
            "mask0": "zero",
            "rescaled": False,
            "w_init": "start",
            "w_final": "end",
            "rewind_to": "start",
            "learning_rate_rewinding": True,
            "schedule": "iterative",
            "scope": "layer",
            "trained": True,
            "supermask": None,
            "levels": None,
        }
    ],
    "reference": {"name": "large_final"},
}


def test_only_treatments_is_required_and_defaults_are_explicit() -> None:
    data = study_from_dict({"treatments": [{}]}).as_data()
    assert data == DEFAULTS
    assert list(data) == list(DEFAULTS)
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_as_data_gives_an_equal_study() -> None:
    for name in builtin_study_names():
        named = name not in ("mask-0-actions", "mask-1-actions", "mask-criteria", "heuristic-supermasks")
        study = load_study(name, [] if named else ["treatments.0.w_final=[end, 300]", "reference.w_final=end"])
        assert study_from_dict(study.as_data(), name=name) == study


def test_a_study_is_immutable() -> None:
    study = study_from_dict({"treatments": [{}]})
    assert isinstance(hash(study), int)
    with pytest.raises(ValidationError):
        study.seeds = (1,)
    with pytest.raises(ValidationError):
        study.prune.rates.hidden = 0.5


@pytest.mark.parametrize(("given_seeds", "seeds"), [(1, (0,)), (5, (0, 1, 2, 3, 4)), ([7], (7,)), ([9, 0], (9, 0))])
def test_a_number_of_seeds_counts_from_zero_and_a_list_is_kept(given_seeds: Any, seeds: object) -> None:
    assert study_from_dict({"treatments": [{}], "seeds": given_seeds}).seeds == seeds


WRONG: dict[str, list[Any]] = {
    "seeds": [0, -1, True, 2.0, "3", [], [1, 1], [-1], [True], [1.0], [2**53 + 1], [2**63], 10_001, None, {}],
    "title": [3, "a\nb", "\x1b[1m", "x" * 201, None],
    "initializer": ["glorot", "", 3],
    "network": ["fc-", "fc-0", "fc-30-", "resnet21", "FC", 3, ["fc"], "fc-٣", "conv2 "],
    "dataset": [
        "MNIST",
        "",
        "../mnist",
        None,
        ["mnist"],
        "npz:",
        "a b:c",
        "own.npz",
        "idx:a#b",
        "images:a#side=0",
        ":",
    ],
    "train_images": [0, -1, 10.0, "10", True, [10]],
    "label_noise": [-0.1, 1, "0.2", True, float("nan")],
    "validation": [0, 0.1, "10", True],
    "train.optimizer": ["Adam", None, 1],
    "train.lr": [0, -1, "fast", "1e-3", True, None, float("nan"), float("inf"), [1], 1e301],
    "train.batch_size": [0, 60.0, "60", True, 2**53 + 1],
    "train.epochs": ["three", 0, True, float("inf"), 1e308, 1_000_001],
    "train.evaluate_every": [0, 0.5, 2**53 + 1],
    "train.momentum": [1, -0.1, True, float("nan")],
    "train.weight_decay": [-1e-9, "0", 1e301],
    "train.lr_drops": [[3, 2], [2, 2], [0], ["1"], 3, [True], None, [1e7]],
    "train.lr_drop_factor": [0, 1],
    "train.warmup_epochs": [-1, 1e308],
    "train.schedule": ["cosin", "Step", None, True],
    "train.nesterov": [1, "yes", None],
    "train.betas": [0.9, [0.9], [0.9, 1], [0.9, 0.99, 0.999], ["0.9", 0.99], [True, 0.9], None],
    "train.eps": [0, -1e-8, "1e-8", float("nan"), None],
    "train.label_smoothing": [1, -0.1, "0.1", True, None],
    "train.loss": ["crossentropy", "mse", 3, None, ["cross_entropy"], "my loss"],
    "train.augment": ["crop", 4, [], True],
    "train.augment.crop": [-1, 4.0, True, "4", 5000, None],
    "train.augment.flip": [1, "yes"],
    "train.augment.cutout": [-1, 0.5],
    "train.normalize": [
        "channel",
        True,
        0.5,
        None,
        {},
        {"mean": [0.5]},
        {"mean": [], "std": []},
        {"mean": 0, "std": 1},
    ],
    "train.precision": ["float16", "bf16", None],
    "train.channels_last": [1, "true"],
    "train.compile": [0, None],
    "prune.schedule": ["oneshot", True, "one-shot"],
    "prune.scope": ["layers", None],
    "prune.levels": [0, 1001, 2.0, True],
    "prune.rates.conv": [-0.1, 1],
    "prune.rates.hidden": [1.2, 20, -0.2, float("nan"), "20%", True],
    "prune.rates.output": [None],
    "prune.rates.global": [[0.2]],
    "treatments[0].name": ["", "dense", "a | b", " a", "a\n", 3, None, ["a", "b"], "x" * 301],
    "treatments[0].criterion": ["large_finl", 3, None, [["random"]], {}, "", "large final"],
    "treatments[0].mask1": ["rewnd", "rescaled", True],
    "treatments[0].mask0": ["0", 0, None],
    "treatments[0].rescaled": ["yes", 1, None],
    "treatments[0].w_init": [-1, "beginning", True, 1.0, "gradient", None],
    "treatments[0].w_final": ["lowest validation loss", [[1]]],
    "treatments[0].rewind_to": ["lowest_validation_loss", -1],
    "treatments[0].learning_rate_rewinding": [0, "no"],
    "treatments[0].initializer": ["glorot", "", 3],
    "treatments[0].network": ["resnet21", "my nets:make", 3],
    "treatments[0].schedule": ["iterativ"],
    "treatments[0].scope": ["Layer"],
    "treatments[0].trained": [0, "no", None],
    "treatments[0].train": ["adam", 3, True, [[{}]]],
    "treatments[0].levels": [-1, 1001, 1.0, True, "2"],
    "treatments[0].supermask": ["bernoulli", 3, True, [[{}]]],
    "learn.optimizer": ["SGD", None],
    "learn.lr": [0, "100", 1e301],
    "learn.batch_size": [0, 250.0],
    "learn.epochs": [0, None, 1e308],
    "learn.evaluate_every": [0, 0.5, 2**53 + 1],
    "learn.momentum": [1, -0.1],
    "learn.weight_decay": [-1e-9],
    "learn.samples": [0, 10.0, True],
    "learn.hardened_at": [[0], [1], 0.5, ["0.5"], None],
    "treatments[0].supermask.method": ["Bernoulli", "edge-popup", None, 1],
    "treatments[0].supermask.weights": ["w_i", True],
    "treatments[0].supermask.multiplier": [0, -1, float("inf"), "2"],
    "treatments[0].supermask.rescaled": [1, "yes"],
    "treatments[0].supermask.start_logit": ["0", float("nan"), float("-inf"), None],
    "treatments[0].supermask.start_from": ["large_finl", 3, [["random"]]],
    "treatments[0].supermask.start_level": [0, 1.5],
    "treatments[0].supermask.confidence": [0, float("inf")],
    "treatments[0].supermask.graded": [0],
    "treatments[0].supermask.density": [0, 1, "0.5"],
    "treatments[0].supermask.threshold": [0, None],
    "treatments[0].supermask.others_lr": [-0.1, "a", 1e301],
    "treatments[0].supermask.optimizer": ["rmsprop"],
    "treatments[0].supermask.lr": [0, "fast"],
    "treatments[0].supermask.weight_decay": [-1],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, values in WRONG.items() for v in values], ids=repr)
def test_an_invalid_value_is_refused_with_key_value_and_rule(key: str, value: Any) -> None:
    data: dict[str, Any] = {"treatments": [{}]}
    at: Any = data
    *sections, last = key.replace("[0]", ".0").split(".")
    for section in sections:
        at = at[int(section)] if isinstance(at, list) else at.setdefault(section, {})
    at[last] = value
    message = refusal(data)
    assert message.startswith(f"{key}: ")
    assert " is not " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("seeds", [2**53 + 1], "9,007,199,254,740,992."),
        ("train.lr", 1e301, "above 0 and at most 1e+300."),
        ("train.weight_decay", 1e301, "at least 0 and at most 1e+300."),
        ("train.evaluate_every", 2**53 + 1, "at least 1 and at most 9,007,199,254,740,992."),
        ("train.epochs", 1e308, "above 0 and at most 1,000,000."),
        ("train.warmup_epochs", 1e308, "at least 0 and at most 1,000,000."),
        ("train.lr_drops", [1e308], "above 0 and at most 1,000,000, ascending."),
    ],
)
def test_a_value_above_its_bound_names_the_bound(key: str, value: Any, bound: str) -> None:
    section, _, name = key.rpartition(".")
    message = refusal({"treatments": [{}], **({section: {name: value}} if section else {name: value})})
    assert message.startswith(f"{key}: ") and message.endswith(bound)


def test_the_wrong_values_cover_every_key() -> None:
    models: dict[str, type[BaseModel]] = {
        "": Study,
        "train.": Train,
        "train.augment.": Augment,
        "prune.rates.": Rates,
        "treatments[0].": Treatment,
        "learn.": LearnSettings,
        "treatments[0].supermask.": Supermask,
    }
    keys = {p + (f.alias or n) for p, model in models.items() for n, f in model.model_fields.items()}
    keys |= {"prune.schedule", "prune.scope", "prune.levels"}
    assert keys - {"name", "train", "prune", "learn", "treatments", "reference", "claims"} == set(WRONG)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "treatments: there are none; a study needs at least one, such as treatments: [{criterion: "),
        ({"treatments": []}, "treatments: there are none"),
        ({"treatments": None}, "treatments: there are none"),
        ({"treatments": {"criterion": "random"}}, "treatments: a map is not a list of them"),
        ({"treatments": [None]}, "treatments[0]: null is not a map of keys and values"),
        ({"treatments": [{"mask1": []}]}, "treatments[0].mask1: an empty list leaves nothing to do."),
        (
            {"treatments": [{"w_final": list(range(300)), "w_init": list(range(300))}]},
            "treatments[0]: the products make",
        ),
        ({"treatments": [{"critrion": "random"}]}, "treatments[0] has no key 'critrion'; did you mean 'criterion'? Al"),
        ({"treatments": [{}], "treatment": []}, "a study has no key 'treatment'; did you mean 'treatments'? Allowed:"),
        ({"treatments": [{}], "prune": {"rates": {"convs": "a"}}}, "prune.rates.convs: 'a' is not a prune rate"),
        ({"treatments": [{}], "name": "x"}, "a study has no key 'name'"),
        ({"treatments": [{}], "train": [1]}, "train: [1] is not a map of keys and values."),
        ({"treatments": [{}], 3: 4}, "the key 3 is not text"),
    ],
)
def test_a_study_of_the_wrong_shape_is_refused(data: Any, message: str) -> None:
    assert refusal(data).startswith(message)


def test_every_registered_name_is_allowed() -> None:
    study = study_from_dict({"treatments": [{"criterion": list(CRITERIA)}]})
    assert labels(study) == list(CRITERIA)
    study = study_from_dict({"treatments": [{"mask1": list(MASK1_ACTIONS), "mask0": list(MASK0_ACTIONS)}]})
    assert [(t.mask1, t.mask0) for t in study.treatments] == list(itertools.product(MASK1_ACTIONS, MASK0_ACTIONS))


@pytest.mark.parametrize("name", [*NETWORK_NAMES, "fc-1", "fc-300-100", "fc-999999-2-3"])
def test_every_allowed_network_exists(name: str) -> None:
    assert canonical_name(study_from_dict({"treatments": [{}], "network": name}).network)


VALUES: dict[str, list[Any]] = {
    "criterion": ["large_final", "random", "movement"],
    "mask0": ["zero", "freeze_init"],
    "w_final": ["end", 100, 200],
    "rescaled": [False, True],
    "schedule": ["iterative", "one_shot"],
}


@pytest.mark.slow
@given(st.permutations(list(VALUES)), st.data())
@settings(deadline=None, max_examples=60)
def test_the_product_is_taken_in_the_order_written(keys: list[str], data: st.DataObject) -> None:
    chosen = {
        key: data.draw(st.lists(st.sampled_from(VALUES[key]), min_size=1, unique=True), label=key)
        for key in keys[: data.draw(st.integers(1, 4), label="keys")]
    }
    written = {key: values[0] if len(values) == 1 else values for key, values in chosen.items()}
    study = study_from_dict({"treatments": [written]})
    expected = [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]
    assert [{key: getattr(t, key) for key in chosen} for t in study.treatments] == expected
    assert len(set(labels(study))) == len(expected)


def test_schedule_and_scope_default_to_the_studys() -> None:
    study = study_from_dict(
        {
            "prune": {"schedule": "one_shot", "scope": "global"},
            "treatments": [{}, {"schedule": "iterative"}, {"scope": "layer"}],
        }
    )
    assert [(t.schedule, t.scope) for t in study.treatments] == [
        ("one_shot", "global"),
        ("iterative", "global"),
        ("one_shot", "layer"),
    ]


@pytest.mark.parametrize(
    ("treatments", "expected"),
    [
        ([{"criterion": "movement"}], ["movement"]),
        ([{"mask1": ["rewind", "signed_reinit"]}], ["rewind", "signed_reinit"]),
        ([{"criterion": ["random", "movement"], "mask0": "freeze_init"}], ["random", "movement"]),
        ([{}, {"criterion": "random", "mask1": "reinit"}], ["large_final + rewind", "random + reinit"]),
        ([{"rescaled": [True, False]}], ["rescaled=true", "rescaled=false"]),
        ([{"w_final": ["end", 500], "scope": ["layer"]}], ["w_final=end", "w_final=500"]),
        ([{"schedule": ["one_shot", "iterative"]}], ["one_shot", "iterative"]),
        ([{"name": "mine"}, {"mask0": "freeze_init"}], ["mine", "freeze_init"]),
        ([{"name": "größer ✓"}], ["größer ✓"]),
    ],
)
def test_a_label_is_the_name_or_the_varying_fields_or_the_criterion(treatments: Any, expected: list[str]) -> None:
    assert labels(study_from_dict({"treatments": treatments})) == expected


def test_equal_treatments_and_equal_names_are_refused() -> None:
    twice = refusal({"treatments": [{}, {"criterion": ["random", "large_final"], "mask0": "zero"}]})
    assert twice == (
        "treatments[1] (large_final, rewind, zero, ...) is the same treatment as one of treatments[0]; "
        "remove one of them."
    )
    assert "is the same treatment" in refusal({"treatments": [{"name": "a"}, {"name": "b"}]})
    assert "is the same treatment" in refusal({"treatments": [{"mask0": ["zero", "zero"]}]})
    named = refusal({"treatments": [{"name": "a", "mask0": ["zero", "freeze_init"]}]})
    assert named == "treatments[0]: two treatments are called 'a'; a name goes with one treatment, without lists."
    assert "called 'random'" in refusal({"treatments": [{"criterion": "random"}, {"name": "random"}]})


def test_iteration_zero_differs_from_false_and_from_start() -> None:
    assert len(study_from_dict({"treatments": [{"w_init": [0, "start", 1]}]}).treatments) == 3


TREATMENTS = [
    {"criterion": ["large_final", "random"], "mask0": ["zero", "freeze_init"]},
    {"name": "x", "mask1": "reinit"},
]


@pytest.mark.parametrize(
    ("reference", "label"),
    [
        (None, "large_final + rewind + zero"),
        ({"criterion": "random", "mask0": "zero"}, "random + rewind + zero"),
        ({"mask1": "reinit"}, "x"),
        ({"name": "x"}, "x"),
        ({"name": "random + rewind + zero"}, "random + rewind + zero"),
        ({"criterion": "random", "mask0": "freeze_init", "rescaled": False}, "random + rewind + freeze_init"),
    ],
)
def test_the_reference_is_the_one_treatment_that_matches(reference: Any, label: str) -> None:
    data: dict[str, Any] = {"treatments": TREATMENTS}
    study = study_from_dict(data if reference is None else {**data, "reference": reference})
    assert study.reference == study.reference_treatment.label == label


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            {"criterion": "random"},
            "reference: 2 treatments have {criterion: 'random'}: random + rewind + zero, random + ",
        ),
        (
            {"criterion": "movement"},
            "reference: no treatment has {criterion: 'movement'}; the study's treatments are: ",
        ),
        ({"rescaled": 0}, "reference: no treatment has {rescaled: 0}"),
        ({"criterion": ["random"]}, "reference: no treatment has {criterion: ['random']}"),
        ({"mask0": {}}, "reference: no treatment has {mask0: {}}"),
        ({}, "reference: 5 treatments have {}: large_final + rewind + zero, "),
        ({"mask2": "zero"}, "reference has no key 'mask2'; did you mean 'mask"),
        ("large_final", "reference: 'large_final' is not a map of keys and values"),
        (None, "reference: null is not a map"),
    ],
)
def test_an_ambiguous_or_unmatched_reference_is_refused(reference: Any, message: str) -> None:
    assert refusal({"treatments": TREATMENTS, "reference": reference}).startswith(message)


def test_rewind_to_needs_mask1_rewind() -> None:
    assert study_from_dict({"treatments": [{"rewind_to": [500, "end"]}]})
    assert refusal({"treatments": [{"mask1": "reinit", "rewind_to": 500}]}) == (
        "treatments[0].rewind_to: 500 needs mask1: rewind, but mask1 is reinit, which does not rewind."
    )


def test_points_must_be_before_the_end_of_training() -> None:
    study = study_from_dict({"treatments": [{"w_final": ["end", 299, 300]}]}, name="mine")
    study.check_points(301)
    with pytest.raises(UserError) as caught:
        study.check_points(300)
    assert str(caught.value) == (
        "study 'mine': treatment 'w_final=300': w_final: 300 is not before the end of the training, which has 300 "
        "iterations (55 epochs); choose an earlier iteration, or end."
    )
