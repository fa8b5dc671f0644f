"""The keys by which a study measures heuristic supermasks and learns others: what they give, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.file_refusals import refusal as refusal_of_a_file
from helpers.study_refusals import labels, refusal

from supermask.core.learned_masks import METHODS, MaskLearning
from supermask.study import load_study, study_from_dict
from supermask.study.plan import make_plan
from supermask.study.schema import LearnSettings, Supermask


def kinds(*values: Any) -> list[Supermask]:
    """Of the treatments that these values of `supermask` stand for."""
    study = study_from_dict({"treatments": [{"supermask": value} for value in values]})
    assert all(t.supermask for t in study.treatments)
    return [t.supermask for t in study.treatments if t.supermask]


def refused(kind: Any, **treatment: Any) -> str:
    return refusal({"treatments": [{"supermask": kind, **treatment}]})


# --- what the keys give ---


def test_defaults_are_the_papers() -> None:
    """Section 6: SGD, momentum 0.9, batch 250, learning rate 100, start at 0, 10 single samples."""
    learn = LearnSettings()
    assert (learn.optimizer, learn.momentum, learn.batch_size, learn.lr) == ("sgd", 0.9, 250, 100.0)
    assert Supermask().learning(learn) == MaskLearning(hardened_at=(0.5, 0.2, 0.1))
    assert (MaskLearning().start_logit, MaskLearning().samples, MaskLearning().rescaled) == (0.0, 10, False)
    (kind,) = kinds({})
    assert kind == Supermask()


def test_a_mask_is_trained_as_learn_says_but_for_its_own_keys() -> None:
    learn = LearnSettings(lr=3.0, epochs=2.0, weight_decay=0.1)
    assert Supermask().train_settings(learn) == {
        "optimizer": "sgd", "lr": 3.0, "batch_size": 250, "epochs": 2.0, "evaluate_every": 220, "momentum": 0.9,
        "weight_decay": 0.1,
    }  # fmt: skip
    own = Supermask(optimizer="adam", lr=0.1, weight_decay=0.0).train_settings(learn)
    assert (own["optimizer"], own["lr"], own["weight_decay"], own["epochs"]) == ("adam", 0.1, 0.0, 2.0)


def test_confidence_counts_only_with_a_heuristic_start() -> None:
    assert Supermask().learning(LearnSettings()).confidence == 0
    assert Supermask(start_from="random").learning(LearnSettings()).confidence == 2
    assert Supermask(start_from="random", confidence=0.5, graded=True).learning(LearnSettings()).confidence == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_allowed(method: str) -> None:
    (kind,) = kinds({"method": method, **({"start_logit": 0.5} if method == "rounded" else {})})
    assert kind.method == kind.learning(LearnSettings()).method == method


# --- products and labels ---


def test_lists_inside_the_map_are_a_product() -> None:
    found = kinds({"weights": ["init", "constant"], "rescaled": [False, True]}, {"method": ["edge_popup", "signed"]})
    assert [(k.method, k.weights, k.rescaled) for k in found] == [
        ("bernoulli", "init", False),
        ("bernoulli", "init", True),
        ("bernoulli", "constant", False),
        ("bernoulli", "constant", True),
        ("edge_popup", "init", False),
        ("signed", "init", False),
    ]


def test_lists_of_maps_and_lists_beside_them() -> None:
    """The first key written varies slowest, inside the map too."""
    treatment = {
        "supermask": [{"start_logit": [1, 2]}, {"method": "signed"}],
        "levels": [1, 2],
        "mask1": ["rewind", "reinit"],
    }
    study = study_from_dict({"treatments": [treatment]})
    found = [(t.supermask.start_logit, t.supermask.method, t.levels, t.mask1) for t in study.treatments if t.supermask]
    assert len(found) == 12
    assert found[0] == (1, "bernoulli", 1, "rewind") and found[1] == (1, "bernoulli", 1, "reinit")
    assert found[4][0] == 2 and found[8][1] == "signed"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mask1": "randomise_signs"}, "mask1: randomise_signs is looked at by no level"),
        ({"trained": False}, "trained: false is looked at by no level"),
        ({"rescaled": True}, "The mask's own rescaling is supermask: {rescaled: true}."),
        ({"levels": 1, "criterion": "random"}, "level 2 takes it; give levels: 2 or leave it out"),
    ],
)
def test_what_no_level_looks_at_beside_a_mask_is_refused(given: dict[str, Any], says: str) -> None:
    """Forgetting `levels: 1` would publish that signs do not matter."""
    assert says in refusal({"treatments": [{"supermask": {}, **given}]})


def test_a_mask_is_found_as_the_reference_by_some_of_its_keys() -> None:
    treatments = [{"name": "a", "supermask": {"rescaled": True}}, {"name": "b", "supermask": {}}]
    data = {
        "treatments": treatments,
        "reference": {"supermask": {"rescaled": False}},
        "prune": {"schedule": "one_shot"},
    }
    assert study_from_dict(data).reference == "b"


def test_a_name_goes_with_one_mask() -> None:
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
            [{"trained": [True, False], "criterion": "movement"}, {"supermask": {}}],
            ["trained=true", "trained=false", "bernoulli"],
        ),
    ],
)
def test_labels(treatments: Any, expected: list[str]) -> None:
    assert labels(study_from_dict({"treatments": treatments})) == expected


def test_a_label_of_everything_is_a_name_when_the_study_is_written_out() -> None:
    kind = {
        "weights": "signed_constant", "multiplier": 2.5, "rescaled": True, "start_from": "magnitude_increase_same_sign",
        "start_level": 3, "confidence": 1.5, "graded": True, "optimizer": "adam", "lr": 0.05, "weight_decay": 1e-4,
    }  # fmt: skip
    after = {"mask1": "signed_bimodal_reinit", "mask0": "zero_if_shrunk_everywhere", "rescaled": True, "levels": 3}
    study = study_from_dict({"treatments": [{"supermask": kind, **after}]})
    assert len(study.reference) > 200
    assert study_from_dict(study.as_data()) == study


@pytest.mark.parametrize("name", ["heuristic-supermasks", "learned-supermasks", "supermask-questions"])
@pytest.mark.parametrize("scale", ["digits", "laptop", "paper"])
def test_what_ships_can_be_planned_and_written_out(name: str, scale: str) -> None:
    study = load_study(name, [f"scale={scale}", "seeds=1"])
    plan = make_plan(study)
    assert len(plan.runs) > 10
    assert make_plan(study_from_dict(study.as_data())).runs.keys() == plan.runs.keys()


# --- what is refused ---


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
        ({"method": "rounded"}, "start_logit: 0 with method rounded prunes everything at once, and nothing learns;"),
        ({"method": "rounded", "start_logit": -0.5}, "start_logit: -0.5 with method rounded prunes everything at once"),
    ],
)
def test_what_a_method_does_not_use_is_refused(kind: dict[str, Any], says: str) -> None:
    message = refused(kind)
    assert message.startswith(f"treatments[0].supermask: {says}")
    assert "\n" not in message


def test_what_is_used_is_not() -> None:
    kinds(
        {"method": "edge_popup", "density": 0.3},
        {"method": "signed", "threshold": 0.3},
        {"method": "rounded", "start_from": "random"},
        {"start_from": "random", "start_level": 2, "confidence": 3.0, "graded": True},
        {"start_logit": -1},
    )


@pytest.mark.parametrize(
    ("treatment", "says"),
    [
        ({"supermask": {}, "schedule": "one_shot"}, "a learned supermask is one mask, gone on from level by level"),
        ({"levels": 0}, "levels: 0 leaves nothing to do; give 1 or more, or a supermask to learn."),
        ({"levels": 0, "trained": False}, "levels: 0 leaves nothing to do"),
        ({"supermask": {}, "trained": False, "levels": 2}, "levels: 2 of untrained networks after a learned mask"),
        ({"trained": False, "rewind_to": 5}, "rewind_to: 5 makes no sense of an untrained network"),
    ],
)
def test_what_cannot_be_is_refused(treatment: dict[str, Any], says: str) -> None:
    message = refusal({"treatments": [treatment]})
    assert says in message and message.startswith("treatments[0]") and "\n" not in message


@pytest.mark.parametrize("value", ["learned", "module:"])
def test_learned_is_no_criterion_of_a_study(value: str) -> None:
    """It follows where a mask was learned; nothing names it."""
    assert refusal({"treatments": [{"criterion": value}]}).startswith("treatments[0].criterion: ")
    assert refused({"start_from": value}).startswith("treatments[0].supermask.start_from: ")


def test_threshold_is_no_scope_of_a_study() -> None:
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
        ("lr: [1, 0]", "treatments[1].supermask.lr: 0 is not a number above 0."),
        ("weights: []", "treatments[1].supermask: an empty list leaves nothing to do."),
        ("weights: [[init]]", "treatments[1].supermask.weights: ['init'] is not what a mask can be put on."),
        ("learn: {lr: 3}", "treatments[1].supermask has no key 'learn'; did you mean 'lr'? Allowed: "),
    ],
)
def test_a_fault_inside_the_map_is_told_with_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    message = refusal_of_a_file(FILE % line, tmp_path)
    place, _, text = message.partition(": ")
    assert place in ("mine.yaml, line 6", "mine.yaml, line 5", "mine.yaml, line 4")
    assert text.startswith(says)
    if "empty" not in says:
        assert place == "mine.yaml, line 6"


def test_hostile_keys_and_values_are_shown_harmlessly(tmp_path: Path) -> None:
    for line in ('"\\x1b[31m": 1', f'start_from: "{"x" * 10_000}"', 'method: "\\u202egnidnuor"'):
        message = refusal_of_a_file(FILE % line, tmp_path)
        assert message.isprintable() and len(message) < 700


def test_products_that_are_too_large_are_not_made() -> None:
    numbers = [float(n) for n in range(1, 300)]
    message = refused({"lr": numbers, "multiplier": numbers})
    assert message.startswith("treatments[0]: the products make more than 10,000 treatments.")


def test_a_reference_names_a_learned_mask() -> None:
    study = study_from_dict(
        {"treatments": [{"criterion": "random"}, {"supermask": {}}], "reference": {"name": "bernoulli"}}
    )
    assert study.reference_treatment.supermask == Supermask()
