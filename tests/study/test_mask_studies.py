"""Keys of study files for heuristic and learned supermasks: accepted values, products, labels, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.file_refusals import refusal as file_refusal
from helpers.study_refusals import labels, refusal

from supermask.core.actions import MASK0_ACTIONS
from supermask.core.errors import UserError
from supermask.core.learned_masks import METHODS, MaskLearning
from supermask.study import load_study, study_from_dict
from supermask.study.mask_settings import LearnSettings, Supermask
from supermask.study.plan import make_plan
from supermask.study.prune_settings import Prune


def load_supermasks(*values: Any) -> list[Supermask]:
    """Return the supermasks of a study with these values of `supermask`."""
    study = study_from_dict({"treatments": [{"supermask": value} for value in values]})
    assert all(t.supermask for t in study.treatments)
    return [t.supermask for t in study.treatments if t.supermask]


def supermask_refusal(kind: Any, **treatment: Any) -> str:
    return refusal({"treatments": [{"supermask": kind, **treatment}]})


# --- accepted values ---


def test_defaults_are_the_papers_settings() -> None:
    """Zhou et al. 2019, Sec. 5: SGD, momentum 0.9, batch 250, learning rate 100, start at 0, 10 single samples."""
    learn = LearnSettings()
    assert (learn.optimizer, learn.momentum, learn.batch_size, learn.lr) == ("sgd", 0.9, 250, 100.0)
    assert Supermask().learning(learn, Prune()) == MaskLearning(hardened_at=(0.5, 0.2, 0.1))
    assert (MaskLearning().start_logit, MaskLearning().samples, MaskLearning().rescaled) == (0.0, 10, False)
    (kind,) = load_supermasks({})
    assert kind == Supermask()


def test_masks_leave_out_what_prune_does_and_mask_something() -> None:
    def plan(prune: dict[str, Any]) -> Any:
        return make_plan(study_from_dict({"seeds": 1, "treatments": [{"supermask": {}}], "prune": prune}))

    plain, spared = (plan(prune).runs.values() for prune in ({}, {"exclude": ["fc1"]}))
    assert [run.learning.exclude for run in plain if run.learning] == [()]
    assert [run.to_data()["learning"]["exclude"] for run in spared if run.learning] == [["fc1"]]
    assert not any("exclude" in run.to_data()["learning"] for run in plain if run.learning)
    with pytest.raises(UserError, match=r"'bernoulli' learns a mask, but prune.only and prune.exclude leave no"):
        plan({"only": ["fc1"], "exclude": ["fc*"]})


def test_a_mask_learned_with_adam_leaves_out_the_momentum_of_sgd() -> None:
    study = study_from_dict({"learn": {"momentum": 0.5}, "treatments": [{"supermask": {"optimizer": ["sgd", "adam"]}}]})
    recipes = [run.recipe for run in make_plan(study).runs.values() if run.learning and run.seed == 0]
    assert [recipe.momentum for recipe in recipes] == [0.5, 0.0]


def test_a_masks_own_keys_override_learn() -> None:
    learn = LearnSettings(lr=3.0, epochs=2.0, weight_decay=0.1)
    assert Supermask().train_settings(learn) == {
        "optimizer": "sgd", "lr": 3.0, "batch_size": 250, "epochs": 2.0, "evaluate_every": 220, "momentum": 0.9,
        "weight_decay": 0.1,
    }  # fmt: skip
    own = Supermask(optimizer="adam", lr=0.1, weight_decay=0.0).train_settings(learn)
    assert (own["optimizer"], own["lr"], own["weight_decay"], own["epochs"]) == ("adam", 0.1, 0.0, 2.0)


def test_confidence_is_used_only_with_a_heuristic_start() -> None:
    assert Supermask().learning(LearnSettings(), Prune()).confidence == 0
    assert Supermask(start_from="random").learning(LearnSettings(), Prune()).confidence == 2
    assert (
        Supermask(start_from="random", confidence=0.5, graded=True).learning(LearnSettings(), Prune()).confidence == 0.5
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_allowed(method: str) -> None:
    (kind,) = load_supermasks({"method": method, **({"start_logit": 0.5} if method == "rounded" else {})})
    assert kind.method == kind.learning(LearnSettings(), Prune()).method == method


# --- products and labels ---


def test_lists_inside_the_map_are_a_product() -> None:
    supermasks = load_supermasks(
        {"weights": ["init", "constant"], "rescaled": [False, True]}, {"method": ["edge_popup", "signed"]}
    )
    assert [(k.method, k.weights, k.rescaled) for k in supermasks] == [
        ("bernoulli", "init", False),
        ("bernoulli", "init", True),
        ("bernoulli", "constant", False),
        ("bernoulli", "constant", True),
        ("edge_popup", "init", False),
        ("signed", "init", False),
    ]


def test_lists_of_maps_and_lists_of_values_combine() -> None:
    """The first key written varies slowest, inside the map too."""
    treatment = {
        "supermask": [{"start_logit": [1, 2]}, {"method": "signed"}],
        "levels": [1, 2],
        "mask1": ["rewind", "reinit"],
    }
    study = study_from_dict({"treatments": [treatment]})
    values = [(t.supermask.start_logit, t.supermask.method, t.levels, t.mask1) for t in study.treatments if t.supermask]
    assert len(values) == 12
    assert values[0] == (1, "bernoulli", 1, "rewind") and values[1] == (1, "bernoulli", 1, "reinit")
    assert values[4][0] == 2 and values[8][1] == "signed"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mask1": "randomise_signs"}, "mask1: randomise_signs is not used by any level"),
        ({"trained": False}, "trained: false is not used by any level"),
        ({"rescaled": True}, "The mask's own rescaling is supermask: {rescaled: true}."),
        ({"levels": 1, "criterion": "random"}, "level 2 applies it; give levels: 2 or leave it out"),
    ],
)
def test_keys_unused_beside_a_mask_are_supermask_refusal(keys: dict[str, Any], message: str) -> None:
    """Without `levels: 1` these keys would have no effect: results would suggest that signs do not matter."""
    assert message in refusal({"treatments": [{"supermask": {}, **keys}]})


def test_the_reference_may_name_some_keys_of_a_mask() -> None:
    treatments = [{"name": "a", "supermask": {"rescaled": True}}, {"name": "b", "supermask": {}}]
    data = {
        "treatments": treatments,
        "reference": {"supermask": {"rescaled": False}},
        "prune": {"schedule": "one_shot"},
    }
    assert study_from_dict(data).reference == "b"


def test_a_name_may_not_stand_for_two_masks() -> None:
    message = refusal({"treatments": [{"name": "a", "supermask": {"weights": ["init", "constant"]}}]})
    assert "two treatments are called 'a'" in message


@pytest.mark.parametrize(
    ("treatments", "expected"),
    [
        ([{"supermask": {}}], ["bernoulli"]),
        ([{"supermask": {"method": ["edge_popup", "signed"]}}], ["edge_popup", "signed"]),
        (
            [{"supermask": {"weights": "signed_constant", "rescaled": [False, True]}}],
            ["bernoulli + weights=signed_constant", "bernoulli + weights=signed_constant + rescaled=true"],
        ),
        (
            [{"supermask": {"start_from": "random", "graded": True}}],
            ["bernoulli + start_from=random + graded=true"],
        ),
        (
            [{"supermask": {}, "levels": 1, "trained": False, "mask1": "randomise_signs"}],
            ["bernoulli + randomise_signs + trained=false + levels=1"],
        ),
        ([{"criterion": "movement"}, {"supermask": {}}], ["movement", "bernoulli"]),
        (
            [{"criterion": ["movement", "random"]}, {"trained": False}],
            ["movement", "random", "large_final + trained=false"],
        ),
        (
            [{"trained": [True, False], "criterion": "movement"}, {"supermask": {}}],
            ["movement", "trained=false", "bernoulli"],
        ),
    ],
)
def test_labels(treatments: Any, expected: list[str]) -> None:
    assert labels(study_from_dict({"treatments": treatments})) == expected


def test_the_longest_generated_label_is_a_valid_name() -> None:
    kind = {
        "weights": "signed_constant", "multiplier": 2.5, "rescaled": True, "start_from": "magnitude_increase_same_sign",
        "start_level": 3, "confidence": 1.5, "graded": True, "optimizer": "adam", "lr": 0.05, "weight_decay": 1e-4,
    }  # fmt: skip
    after = {"mask1": "signed_bimodal_reinit", "mask0": "zero_if_shrunk_everywhere", "rescaled": True, "levels": 3}
    study = study_from_dict({"treatments": [{"supermask": kind, **after}]})
    assert len(study.reference) > 200
    assert study_from_dict(study.as_data()) == study


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["heuristic-supermasks", "learned-curve", "learned-supermasks", "supermask-questions", "table-one"]
)
@pytest.mark.parametrize("scale", ["digits", "laptop", "paper"])
def test_builtin_studies_can_be_planned_and_dumped(name: str, scale: str) -> None:
    study = load_study(name, [f"scale={scale}", "seeds=1"])
    plan = make_plan(study)
    assert len(plan.runs) > 10
    assert make_plan(study_from_dict(study.as_data())).runs.keys() == plan.runs.keys()


# --- refusals ---


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"density": 0.3}, "density has no meaning with method bernoulli and no start_from; leave it out."),
        ({"threshold": 0.3}, "threshold has no meaning with method bernoulli and no start_from; leave it out."),
        ({"confidence": 3.0}, "confidence has no meaning with method bernoulli and no start_from; leave it out."),
        ({"graded": True}, "graded has no meaning with method bernoulli and no start_from; leave it out."),
        ({"start_level": 2}, "start_level has no meaning with method bernoulli and no start_from; leave it out."),
        ({"method": "signed", "density": 0.3}, "density has no meaning with method signed"),
        ({"method": "edge_popup", "threshold": 0.3}, "threshold has no meaning with method edge_popup"),
        ({"method": "edge_popup", "start_logit": 1}, "start_logit has no meaning with method edge_popup"),
        ({"method": "signed", "start_logit": 1}, "start_logit has no meaning with method signed"),
        (
            {"method": "signed", "start_from": "random"},
            "start_from has no meaning with method signed and start_from: r",
        ),
        (
            {"start_from": "random", "start_logit": 1},
            "start_logit has no meaning with method bernoulli and start_from:",
        ),
        ({"method": "rounded"}, "start_logit: 0 with method rounded prunes every weight at once, and nothing learns;"),
        (
            {"method": "rounded", "start_logit": -0.5},
            "start_logit: -0.5 with method rounded prunes every weight at once",
        ),
    ],
)
def test_keys_unused_by_a_method_are_supermask_refusal(kind: dict[str, Any], says: str) -> None:
    message = supermask_refusal(kind)
    assert message.startswith(f"treatments[0].supermask: {says}")
    assert "\n" not in message


def test_keys_used_by_a_method_are_accepted() -> None:
    load_supermasks(
        {"method": "edge_popup", "density": 0.3},
        {"method": "signed", "threshold": 0.3},
        {"method": "rounded", "start_from": "random"},
        {"start_from": "random", "start_level": 2, "confidence": 3.0, "graded": True},
        {"start_logit": -1},
    )


@pytest.mark.parametrize(
    ("treatment", "says"),
    [
        ({"supermask": {}, "schedule": "one_shot"}, "a learned supermask needs schedule: iterative"),
        ({"levels": 0}, "levels: 0 leaves nothing to prune; give 1 or more, or a supermask to learn."),
        ({"levels": 0, "trained": False}, "levels: 0 leaves nothing to prune"),
        ({"supermask": {}, "trained": False, "levels": 2}, "levels: 2 with trained: false after a learned mask"),
        (
            {"trained": False, "rewind_to": 5},
            "rewind_to: 5 needs trained: true; an untrained network has no iteration 5.",
        ),
        (
            {"rewind_to": 20, "learning_rate_rewinding": False},
            "learning_rate_rewinding: false has no effect with rewind_to: 20; it is for networks that are trained from",
        ),
        (
            {"trained": False, "rewind_to": "end", "learning_rate_rewinding": False},
            "learning_rate_rewinding: false has no effect with trained: false",
        ),
        ({"supermask": {}, "scope": "global"}, "scope: global is not used by any level: level 1 learns the mask"),
        ({"supermask": {}, "levels": 1, "scope": "global"}, "scope: global is not used by any level"),
        (
            {"trained": False, "mask0": "freeze_init"},
            "mask0: freeze_init with trained: false needs schedule: one_shot; under iterative",
        ),
    ],
)
def test_inconsistent_treatments_are_supermask_refusal(treatment: dict[str, Any], says: str) -> None:
    message = refusal({"treatments": [treatment]})
    assert says in message and message.startswith("treatments[0]") and "\n" not in message


def test_a_scope_that_ranks_no_weight_is_that_of_the_study() -> None:
    """Studies that are written out name it for every treatment."""
    study = study_from_dict({"treatments": [{"supermask": {}}], "prune": {"scope": "global"}}, name="mine")
    assert study_from_dict(study.as_data(), name="mine") == study
    for used in ({"levels": 2}, {"supermask": {"start_from": "large_final"}}):
        study_from_dict({"treatments": [{"supermask": {}, "scope": "global", **used}]})


@pytest.mark.parametrize("mask0", MASK0_ACTIONS)
def test_untrained_networks_have_every_mask_0_action_with_one_shot_masks(mask0: str) -> None:
    study_from_dict({"treatments": [{"trained": False, "schedule": "one_shot", "mask0": mask0}]})


@pytest.mark.parametrize("value", ["learned", "module:"])
def test_learned_is_not_a_criterion_of_study_files(value: str) -> None:
    """The plan adds it after a learned mask; a study cannot name it."""
    assert refusal({"treatments": [{"criterion": value}]}).startswith("treatments[0].criterion: ")
    assert supermask_refusal({"start_from": value}).startswith("treatments[0].supermask.start_from: ")


def test_threshold_is_not_a_scope_of_study_files() -> None:
    assert refusal({"treatments": [{"scope": "threshold"}]}).startswith("treatments[0].scope: 'threshold' is not")


FILE = """\
treatments:
  - {criterion: random}
  - name: mine
    supermask:
      method: bernoulli
      %s
"""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("start_logits: 1", "treatments[1].supermask has no key 'start_logits'; did you mean 'start_logit'? Allowed: "),
        ("start_logit: one", "treatments[1].supermask.start_logit: 'one' is not a logit: a number from"),
        ("lr: [1, 0]", "treatments[1].supermask.lr: 0 is not a number above 0 and at most 1e+300."),
        ("weights: []", "treatments[1].supermask: an empty list leaves nothing to do."),
        ("weights: [[init]]", "treatments[1].supermask.weights: ['init'] is not a set of weights for a mask."),
        ("learn: {lr: 3}", "treatments[1].supermask has no key 'learn'; did you mean 'lr'? Allowed: "),
    ],
)
def test_an_error_inside_the_map_names_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    message = file_refusal(FILE % line, tmp_path)
    place, _, text = message.partition(": ")
    assert place in ("mine.yaml, line 6", "mine.yaml, line 5", "mine.yaml, line 4")
    assert text.startswith(says)
    if "empty" not in says:
        assert place == "mine.yaml, line 6"


def test_hostile_keys_and_values_are_escaped(tmp_path: Path) -> None:
    for line in ('"\\x1b[31m": 1', f'start_from: "{"x" * 10_000}"', 'method: "\\u202egnidnuor"'):
        message = file_refusal(FILE % line, tmp_path)
        assert message.isprintable() and len(message) < 700


def test_too_large_products_are_refused_before_expansion() -> None:
    numbers = [float(n) for n in range(1, 300)]
    message = supermask_refusal({"lr": numbers, "multiplier": numbers})
    assert message.startswith("treatments[0]: the products make more than 10,000 treatments.")


def test_the_reference_may_be_a_learned_mask() -> None:
    study = study_from_dict(
        {"treatments": [{"criterion": "random"}, {"supermask": {}}], "reference": {"name": "bernoulli"}}
    )
    assert study.reference_treatment.supermask == Supermask()
