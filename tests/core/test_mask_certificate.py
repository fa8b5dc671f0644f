"""The certificate of a learned mask: honest runs hold, whatever the method; each check names what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers.mask_trainings import METHODS, mask_job, recipes
from helpers.trainings import LAYERS, data
from torch import Tensor

from supermask.core.certificate import certify_learned_mask
from supermask.core.learned_masks import MaskLearning
from supermask.core.types import InitialState, TrainingResult, Weights
from supermask.engines.job import TrainingJob
from supermask.engines.mask_evaluation import evaluate_supermask
from supermask.engines.reference_masks import train
from supermask.networks.sequential import initial_state, prunable_tensors

DATA = data()
TESTS = len(DATA.test_labels)
NAMES = ["fc1.weight", "fc2.weight", "fc3.weight"]
ALWAYS = {"every_kernel_has_logits", "weights_as_promised", "weights_are_frozen", "others_are_frozen"}
FINISHED = ALWAYS | {"logits_are_finite", "masks_are_binary", "kept_share", "accuracies_reproduced"}
BASES = {
    "init": MaskLearning(),
    "init x 2": MaskLearning(multiplier=2.0),
    "signed_constant": MaskLearning(weights="signed_constant", multiplier=0.3),
    "constant": MaskLearning(weights="constant", rescaled=True),
}
EVERY = METHODS | BASES


@cache
def honest(name: str, recipe: str = "momentum") -> tuple[TrainingJob, TrainingResult]:
    learning = EVERY[name]
    job = mask_job(learning, recipes(learning)[recipe])
    outcome = train([job], [DATA])[0]
    selected = outcome.points["lowest_validation_loss"]
    return job, replace(outcome, supermask=evaluate_supermask(job, DATA, selected, outcome.end))


def broken(job: TrainingJob, outcome: TrainingResult, start: InitialState | None = None) -> dict[str, list[str]]:
    assert job.learning is not None
    dense = initial_state(LAYERS, 0)
    found = certify_learned_mask(prunable_tensors(LAYERS), dense, start or job.start, outcome, job.learning, TESTS)
    assert found.passed == (not any(found.checks.values()))
    assert found.checks.keys() <= FINISHED
    return {check: layers for check, layers in found.checks.items() if layers}


def with_one(tensors: Weights, name: str, change: Callable[[Tensor], Tensor], where: Tensor | None = None) -> Weights:
    """A copy in which the first value, or the first at `where`, is changed."""
    values = tensors[name].clone()
    place = tuple((torch.ones_like(values, dtype=torch.bool) if where is None else where).nonzero()[0].tolist())
    values[place] = change(values[place])
    return {**tensors, name: values}


def next_up(value: Tensor) -> Tensor:
    return torch.nextafter(value, value * 2)


# --- no false alarm ---


@pytest.mark.parametrize("recipe", ["momentum", "adam"])
@pytest.mark.parametrize("name", EVERY)
def test_an_honest_run_holds(name: str, recipe: str) -> None:
    assert broken(*honest(name, recipe)) == {}


def test_a_diverged_run_is_judged_by_what_never_moves() -> None:
    job, outcome = honest("bernoulli")
    lost = {n: torch.full_like(m, torch.nan) for n, m in outcome.end.logits.items()}
    diverged = TrainingResult("diverged", replace(outcome.end, logits=lost), {}, outcome.curve, {})
    assert broken(job, diverged) == {}
    moved = with_one(outcome.end.weights, "fc2.weight", next_up)
    assert broken(job, replace(diverged, end=replace(diverged.end, weights=moved))) == {
        "weights_are_frozen": ["fc2.weight"]
    }


# --- the weights ---

WRONG_WEIGHT: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "init": [next_up, lambda w: -w, lambda w: w * 0],
    "init x 2": [next_up, lambda w: w / 2],
    "signed_constant": [next_up, lambda w: -w, lambda w: w * 0],
    "constant": [next_up, lambda w: w * 0],
}


@pytest.mark.parametrize("base", BASES)
def test_one_weight_is_not_what_was_promised(base: str) -> None:
    """From the start on, so that nothing moved."""
    job, outcome = honest(base)
    for change in WRONG_WEIGHT[base]:
        weights = with_one(job.start.weights, "fc1.weight", change, outcome.last_sampled_weights["fc1.weight"] == 0)
        states = [replace(state, weights=weights) for state in (outcome.end, *outcome.points.values())]
        forged = replace(outcome, end=states[0], points=dict(zip(outcome.points, states[1:], strict=True)))
        assert broken(job, forged, replace(job.start, weights=weights)) == {"weights_as_promised": ["fc1.weight"]}


@pytest.mark.parametrize("change", [next_up, lambda w: -w, lambda w: w + torch.nan])
@pytest.mark.parametrize("part", ["weights", "others"])
def test_a_weight_or_a_bias_that_moved(part: str, change: Callable[[Tensor], Tensor]) -> None:
    """At the end, or where the mask was taken; a bias of 0 that became -0 too."""
    job, outcome = honest("bernoulli, rescaled")
    name, field = {"weights": ("fc2.weight", "weights"), "others": ("fc2.bias", "unmasked")}[part]
    moved = with_one(getattr(outcome.end, field), name, change if part == "weights" else lambda b: b - 1e-30)
    check = {f"{part}_are_frozen": [name]}
    assert broken(job, replace(outcome, end=replace(outcome.end, **{field: moved}))) == check
    point = replace(outcome.points["lowest_validation_loss"], **{field: moved})
    assert broken(job, replace(outcome, points={"lowest_validation_loss": point})) == check


def test_a_bias_of_minus_zero_and_a_missing_one() -> None:
    job, outcome = honest("bernoulli")
    for others in (
        {**outcome.end.unmasked, "fc1.bias": -outcome.end.unmasked["fc1.bias"]},
        {n: t for n, t in outcome.end.unmasked.items() if n != "fc1.bias"},
        {**outcome.end.unmasked, "fc1.bias": outcome.end.unmasked["fc1.bias"].double()},
    ):
        assert broken(job, replace(outcome, end=replace(outcome.end, unmasked=others))) == {
            "others_are_frozen": ["fc1.bias"]
        }


# --- the mask ---


def with_pass(outcome: TrainingResult, last_pass: Weights) -> TrainingResult:
    return replace(outcome, last_sampled_weights=last_pass)


@pytest.mark.parametrize("name", METHODS)
def test_a_mask_that_is_not_binary(name: str) -> None:
    """One weight kept by half, in part, with another value, inverted where nothing inverts; all of them by half."""
    job, outcome = honest(name)
    used = outcome.last_sampled_weights
    changes: list[Callable[[Tensor], Tensor]] = [lambda w: w * 0.5, lambda w: w * 1.01, lambda w: w + torch.nan]
    if not name.startswith("signed"):
        changes.append(lambda w: -w)
    for change in changes:
        one = with_one(used, "fc1.weight", change, used["fc1.weight"] != 0)
        assert broken(job, with_pass(outcome, one)) == {"masks_are_binary": ["fc1.weight"]}
    soft = {n: w * 0.7 for n, w in used.items()}
    assert broken(job, with_pass(outcome, soft)) == {"masks_are_binary": NAMES}
    assert broken(job, with_pass(outcome, {n: w for n, w in used.items() if n != NAMES[1]})) == {
        "masks_are_binary": ["fc2.weight"]
    }


@pytest.mark.parametrize("name", [n for n in METHODS if "rescaled" in n])
def test_another_ratio(name: str) -> None:
    """That of a mask with one more weight; none at all; that of the share expected."""
    job, outcome = honest(name)
    used = outcome.last_sampled_weights["fc1.weight"]
    ones = int((used != 0).sum())
    for wrong in (ones / (ones + 1), ones / used.numel(), 1.001):
        forged = {**outcome.last_sampled_weights, "fc1.weight": used * wrong}
        assert broken(job, with_pass(outcome, forged)) == {"masks_are_binary": ["fc1.weight"]}


def test_a_ratio_that_nobody_asked_for() -> None:
    job, outcome = honest("bernoulli")
    used = outcome.last_sampled_weights["fc1.weight"]
    forged = {**outcome.last_sampled_weights, "fc1.weight": used * (used.numel() / int((used != 0).sum()))}
    assert broken(job, with_pass(outcome, forged)) == {"masks_are_binary": ["fc1.weight"]}


def test_a_weight_of_zero_may_be_kept_unseen() -> None:
    """It counts among the ones of the ratio."""
    job, outcome = honest("bernoulli, rescaled")
    name = "fc1.weight"
    used = outcome.last_sampled_weights[name]
    place = tuple((used != 0).nonzero()[0].tolist())
    start, seen = job.start.weights[name].clone(), used.clone()
    start[place] = seen[place] = 0.0
    states = replace(job.start.state, weights={**job.start.weights, name: start}, logits=outcome.end.logits)
    forged = replace(outcome, end=states, points={}, last_sampled_weights={**outcome.last_sampled_weights, name: seen})
    # Only that the weight is not w_i is seen.
    found = broken(job, forged, replace(job.start, weights=states.weights))
    assert found == {"weights_as_promised": [name]}


@pytest.mark.parametrize("name", ["edge_popup", "edge_popup, rescaled"])
def test_edge_popup_keeps_its_share(name: str) -> None:
    """38 of 96. Weights that tie at the cut are pruned, so that one or two may be missing, and never one too many."""
    job, outcome = honest(name)
    used, w = outcome.last_sampled_weights["fc1.weight"], job.start.weights["fc1.weight"]
    assert int((used != 0).sum()) == 38

    def keeping(count: int) -> TrainingResult:
        kept = torch.zeros(96)
        kept[:count] = 96 / count if "rescaled" in name else 1.0
        return with_pass(outcome, {**outcome.last_sampled_weights, "fc1.weight": w * kept.reshape(w.shape)})

    for count in (38, 37, 36):
        assert broken(job, keeping(count)) == {}
    for count in (35, 39, 96):
        assert broken(job, keeping(count)) == {"kept_share": [f"fc1.weight: {count} kept, 38 asked"]}


# --- the logits ---


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["bernoulli", "edge_popup", "signed"])
def test_logits_that_are_lost(name: str, value: float) -> None:
    job, outcome = honest(name)
    lost = with_one(outcome.end.logits, "fc3.weight", lambda m: torch.full_like(m, value))
    check = {"logits_are_finite": ["fc3.weight"]}
    assert broken(job, replace(outcome, end=replace(outcome.end, logits=lost))) == check
    point = replace(outcome.points["lowest_validation_loss"], logits=lost)
    assert broken(job, replace(outcome, points={"lowest_validation_loss": point})) == check


def test_a_kernel_without_logits_and_logits_without_a_kernel() -> None:
    job, outcome = honest("bernoulli")
    without = {n: m for n, m in job.start.logits.items() if n != "fc2.weight"}
    assert broken(job, outcome, replace(job.start, logits=without)) == {"every_kernel_has_logits": ["fc2.weight"]}
    weights = {**job.start.weights, "fc9.weight": torch.ones(2, 2)}
    other = replace(job.start, weights=weights, logits={**job.start.logits, "fc9.weight": torch.ones(2, 2)})
    assert broken(job, outcome, other) == {"every_kernel_has_logits": ["fc9.weight"]}


# --- what is reported ---


@pytest.mark.parametrize("which", ["early_stop", "final"])
@pytest.mark.parametrize("name", ["bernoulli", "signed"])
def test_an_accuracy_that_cannot_be_had_again(name: str, which: str) -> None:
    """Two of the 17 test images are let pass, three are not; nor an accuracy that nobody saw."""
    job, outcome = honest(name)
    key = f"{which}_test_accuracy"
    seen = outcome.metrics[key]
    assert seen is not None
    for images in (2, -2):
        assert broken(job, replace(outcome, metrics={**outcome.metrics, key: seen + images / 17.001})) == {}
    for wrong in (seen + 3 / 17, seen - 3 / 17, None):
        (check,) = broken(job, replace(outcome, metrics={**outcome.metrics, key: wrong})).items()
        assert check[0] == "accuracies_reproduced" and check[1][0].startswith(key)


def test_a_certificate_is_plain_data() -> None:
    job, outcome = honest("bernoulli")
    assert job.learning is not None
    found = certify_learned_mask(
        prunable_tensors(LAYERS), initial_state(LAYERS, 0), job.start, outcome, job.learning, TESTS
    ).to_data()
    assert found == {"held": True, "checks": {name: [] for name in FINISHED}}
