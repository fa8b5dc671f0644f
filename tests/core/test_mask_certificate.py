"""Certificates of learned masks: correct runs of every method pass; each fault is detected by its check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from helpers.mask_trainings import METHODS, mask_job, recipes
from helpers.trainings import LAYERS, data
from torch import Tensor

from supermask.core.learned_masks import MaskLearning
from supermask.core.mask_certificate import certify_learned_mask
from supermask.core.types import InitialState, TrainingResult, Weights
from supermask.engines.job import TrainingJob
from supermask.engines.mask_evaluation import evaluate_supermask
from supermask.engines.reference_masks import train
from supermask.networks.sequential import initial_state, prunable_tensors

DATA = data()
TEST_IMAGES = len(DATA.test_labels)
NAMES = ["fc1.weight", "fc2.weight", "fc3.weight"]
ALWAYS = {"every_kernel_has_logits", "weights_as_promised", "weights_are_frozen", "others_are_frozen"}
FINISHED = ALWAYS | {"logits_are_finite", "masks_are_binary", "kept_share", "accuracies_reproduced"}
BASES = {
    "init": MaskLearning(),
    "init x 2": MaskLearning(multiplier=2.0),
    "signed_constant": MaskLearning(weights="signed_constant", multiplier=0.3),
    "constant": MaskLearning(weights="constant", rescaled=True),
}
LEARNINGS = METHODS | BASES


@cache
def correct_run(name: str, recipe: str = "momentum") -> tuple[TrainingJob, TrainingResult]:
    learning = LEARNINGS[name]
    job = mask_job(learning, recipes(learning)[recipe])
    result = train([job], [DATA])[0]
    selected = result.snapshots["lowest_validation_loss"]
    return job, replace(result, supermask=evaluate_supermask(job, DATA, selected, result.end))


def failed_checks(job: TrainingJob, result: TrainingResult, start: InitialState | None = None) -> dict[str, list[str]]:
    assert job.learning is not None
    dense = initial_state(LAYERS, 0)
    found = certify_learned_mask(prunable_tensors(LAYERS), dense, start or job.start, result, job.learning, TEST_IMAGES)
    assert found.passed == (not any(found.checks.values()))
    assert found.checks.keys() <= FINISHED
    return {check: layers for check, layers in found.checks.items() if layers}


def with_one_changed(
    tensors: Weights, name: str, change: Callable[[Tensor], Tensor], where: Tensor | None = None
) -> Weights:
    """Return a copy in which the first value, or the first value of `where`, is changed."""
    values = tensors[name].clone()
    place = tuple((torch.ones_like(values, dtype=torch.bool) if where is None else where).nonzero()[0].tolist())
    values[place] = change(values[place])
    return {**tensors, name: values}


def next_up(value: Tensor) -> Tensor:
    return torch.nextafter(value, value * 2)


# --- correct runs ---


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["momentum", "adam"])
@pytest.mark.parametrize("name", LEARNINGS)
def test_correct_run_passes(name: str, recipe: str) -> None:
    assert failed_checks(*correct_run(name, recipe)) == {}


SPARED = {"exclude": ("fc1",), "only": ("fc?",)}


@cache
def spared_run(name: str) -> tuple[TrainingJob, TrainingResult]:
    """Return a run whose mask leaves out the first layer."""
    learning = replace(LEARNINGS[name], **SPARED)
    job = mask_job(learning, recipes(learning)["momentum"])
    result = train([job], [DATA])[0]
    selected = result.snapshots["lowest_validation_loss"]
    return job, replace(result, supermask=evaluate_supermask(job, DATA, selected, result.end))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNINGS)
def test_correct_run_with_a_spared_tensor_passes(name: str) -> None:
    job, result = spared_run(name)
    assert set(result.end.logits) == {"fc2.weight", "fc3.weight"}
    assert result.supermask["ones"]["fc1.weight"] == 1
    assert torch.equal(result.last_sampled_weights["fc1.weight"], job.start.weights["fc1.weight"])
    assert failed_checks(job, result) == {}


def test_a_masked_weight_of_a_spared_tensor_is_detected() -> None:
    job, result = spared_run("bernoulli")
    used = with_one_changed(result.last_sampled_weights, "fc1.weight", lambda w: w * 0)
    assert failed_checks(job, replace(result, last_sampled_weights=used)) == {"masks_are_binary": ["fc1.weight"]}
    logits = {**job.start.logits, "fc1.weight": torch.zeros_like(job.start.weights["fc1.weight"])}
    assert failed_checks(job, result, replace(job.start, logits=logits)) == {"every_kernel_has_logits": ["fc1.weight"]}
    unmasked = {name: logits for name, logits in job.start.logits.items() if name != "fc2.weight"}
    assert failed_checks(job, result, replace(job.start, logits=unmasked)) == {
        "every_kernel_has_logits": ["fc2.weight"]
    }


def test_diverged_run_is_checked_by_its_fixed_tensors() -> None:
    job, result = correct_run("bernoulli")
    lost = {n: torch.full_like(m, torch.nan) for n, m in result.end.logits.items()}
    diverged = TrainingResult("diverged", replace(result.end, logits=lost), {}, result.curve, {})
    assert failed_checks(job, diverged) == {}
    moved = with_one_changed(result.end.weights, "fc2.weight", next_up)
    assert failed_checks(job, replace(diverged, end=replace(diverged.end, weights=moved))) == {
        "weights_are_frozen": ["fc2.weight"]
    }


# --- the weights ---

WRONG_WEIGHT: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "init": [next_up, lambda w: -w, lambda w: w * 0],
    "init x 2": [next_up, lambda w: w / 2],
    "signed_constant": [next_up, lambda w: -w, lambda w: w * 0],
    "constant": [next_up, lambda w: w * 0],
}


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_one_wrong_base_weight_is_detected(base: str) -> None:
    """The weight is wrong from the start, so it never moves."""
    job, result = correct_run(base)
    for change in WRONG_WEIGHT[base]:
        weights = with_one_changed(
            job.start.weights, "fc1.weight", change, result.last_sampled_weights["fc1.weight"] == 0
        )
        states = [replace(state, weights=weights) for state in (result.end, *result.snapshots.values())]
        forged = replace(result, end=states[0], snapshots=dict(zip(result.snapshots, states[1:], strict=True)))
        assert failed_checks(job, forged, replace(job.start, weights=weights)) == {
            "weights_as_promised": ["fc1.weight"]
        }


@pytest.mark.parametrize("change", [next_up, lambda w: -w, lambda w: w + torch.nan])
@pytest.mark.parametrize("part", ["weights", "unmasked"])
def test_moved_weight_or_bias_is_detected(part: str, change: Callable[[Tensor], Tensor]) -> None:
    """The value moved in the final state or in the snapshot of the mask."""
    job, result = correct_run("bernoulli, rescaled")
    name = {"weights": "fc2.weight", "unmasked": "fc2.bias"}[part]
    moved = with_one_changed(getattr(result.end, part), name, change if part == "weights" else lambda b: b - 1e-30)
    check = {{"weights": "weights_are_frozen", "unmasked": "others_are_frozen"}[part]: [name]}
    assert failed_checks(job, replace(result, end=replace(result.end, **{part: moved}))) == check
    point = replace(result.snapshots["lowest_validation_loss"], **{part: moved})
    assert failed_checks(job, replace(result, snapshots={"lowest_validation_loss": point})) == check


def test_changed_bits_of_a_bias_are_detected() -> None:
    job, result = correct_run("bernoulli")
    for others in (
        {**result.end.unmasked, "fc1.bias": -result.end.unmasked["fc1.bias"]},
        {n: t for n, t in result.end.unmasked.items() if n != "fc1.bias"},
        {**result.end.unmasked, "fc1.bias": result.end.unmasked["fc1.bias"].double()},
    ):
        assert failed_checks(job, replace(result, end=replace(result.end, unmasked=others))) == {
            "others_are_frozen": ["fc1.bias"]
        }


# --- the mask ---


def with_pass(result: TrainingResult, last_pass: Weights) -> TrainingResult:
    return replace(result, last_sampled_weights=last_pass)


@pytest.mark.parametrize("name", METHODS)
def test_mask_that_is_not_binary_is_detected(name: str) -> None:
    """Faults: one weight times 0.5, times 1.01, NaN, inverted without `signed`; every weight times 0.7."""
    job, result = correct_run(name)
    used = result.last_sampled_weights
    changes: list[Callable[[Tensor], Tensor]] = [lambda w: w * 0.5, lambda w: w * 1.01, lambda w: w + torch.nan]
    if not name.startswith("signed"):
        changes.append(lambda w: -w)
    for change in changes:
        one = with_one_changed(used, "fc1.weight", change, used["fc1.weight"] != 0)
        assert failed_checks(job, with_pass(result, one)) == {"masks_are_binary": ["fc1.weight"]}
    soft = {n: w * 0.7 for n, w in used.items()}
    assert failed_checks(job, with_pass(result, soft)) == {"masks_are_binary": NAMES}
    assert failed_checks(job, with_pass(result, {n: w for n, w in used.items() if n != NAMES[1]})) == {
        "masks_are_binary": ["fc2.weight"]
    }


@pytest.mark.parametrize("name", [n for n in METHODS if "rescaled" in n])
def test_wrong_rescaling_factor_is_detected(name: str) -> None:
    """Faults: the factor of a mask with one more weight; no factor; a factor off by 0.1%."""
    job, result = correct_run(name)
    used = result.last_sampled_weights["fc1.weight"]
    ones = int((used != 0).sum())
    for wrong in (ones / (ones + 1), ones / used.numel(), 1.001):
        forged = {**result.last_sampled_weights, "fc1.weight": used * wrong}
        assert failed_checks(job, with_pass(result, forged)) == {"masks_are_binary": ["fc1.weight"]}


def test_unwanted_rescaling_is_detected() -> None:
    job, result = correct_run("bernoulli")
    used = result.last_sampled_weights["fc1.weight"]
    forged = {**result.last_sampled_weights, "fc1.weight": used * (used.numel() / int((used != 0).sum()))}
    assert failed_checks(job, with_pass(result, forged)) == {"masks_are_binary": ["fc1.weight"]}


def test_kept_weight_of_zero_counts_in_the_factor() -> None:
    """A kept weight whose value is 0 looks pruned in the last pass, but counts as kept in the factor."""
    job, result = correct_run("bernoulli, rescaled")
    name = "fc1.weight"
    used = result.last_sampled_weights[name]
    place = tuple((used != 0).nonzero()[0].tolist())
    start, seen = job.start.weights[name].clone(), used.clone()
    start[place] = seen[place] = 0.0
    states = replace(job.start.state, weights={**job.start.weights, name: start}, logits=result.end.logits)
    forged = replace(result, end=states, snapshots={}, last_sampled_weights={**result.last_sampled_weights, name: seen})
    # The only visible fault is that this weight differs from w_i.
    found = failed_checks(job, forged, replace(job.start, weights=states.weights))
    assert found == {"weights_as_promised": [name]}


@pytest.mark.parametrize("name", ["edge_popup", "edge_popup, rescaled"])
def test_edge_popup_count_is_checked_except_for_ties(name: str) -> None:
    """38 of 96 weights. Ties at the threshold are all pruned, so one or two kept weights may be missing."""
    job, result = correct_run(name)
    used, w = result.last_sampled_weights["fc1.weight"], job.start.weights["fc1.weight"]
    assert int((used != 0).sum()) == 38

    def keeping(count: int) -> TrainingResult:
        kept = torch.zeros(96)
        kept[:count] = 96 / count if "rescaled" in name else 1.0
        return with_pass(result, {**result.last_sampled_weights, "fc1.weight": w * kept.reshape(w.shape)})

    for count in (38, 37, 36):
        assert failed_checks(job, keeping(count)) == {}
    for count in (35, 39, 96):
        assert failed_checks(job, keeping(count)) == {"kept_share": [f"fc1.weight: {count} kept, 38 asked"]}
    # As many equal logits, as a large layer has by chance, explain more missing weights.
    logits = result.end.logits["fc1.weight"].clone()
    logits.view(-1)[:5] = logits.view(-1)[0]
    tied_end = replace(result.end, logits={**result.end.logits, "fc1.weight": logits})
    for count, failed in ((34, {}), (33, {"kept_share": ["fc1.weight: 33 kept, 38 asked"]})):
        assert failed_checks(job, replace(keeping(count), end=tied_end)) == failed


# --- the logits ---


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["bernoulli", "edge_popup", "signed"])
def test_logits_that_are_not_finite_are_detected(name: str, value: float) -> None:
    job, result = correct_run(name)
    lost = with_one_changed(result.end.logits, "fc3.weight", lambda m: torch.full_like(m, value))
    check = {"logits_are_finite": ["fc3.weight"]}
    assert failed_checks(job, replace(result, end=replace(result.end, logits=lost))) == check
    point = replace(result.snapshots["lowest_validation_loss"], logits=lost)
    assert failed_checks(job, replace(result, snapshots={"lowest_validation_loss": point})) == check


def test_logits_that_do_not_match_the_kernels_are_detected() -> None:
    job, result = correct_run("bernoulli")
    without = {n: m for n, m in job.start.logits.items() if n != "fc2.weight"}
    assert failed_checks(job, result, replace(job.start, logits=without)) == {"every_kernel_has_logits": ["fc2.weight"]}
    weights = {**job.start.weights, "fc9.weight": torch.ones(2, 2)}
    other = replace(job.start, weights=weights, logits={**job.start.logits, "fc9.weight": torch.ones(2, 2)})
    assert failed_checks(job, result, other) == {"every_kernel_has_logits": ["fc9.weight"]}


# --- accuracies ---


@pytest.mark.parametrize("which", ["early_stop", "final"])
@pytest.mark.parametrize("name", ["bernoulli", "signed"])
def test_accuracy_that_cannot_be_reproduced_is_detected(name: str, which: str) -> None:
    """A difference of 2 of the 17 test images passes; 3 images, or a missing accuracy, fails."""
    job, result = correct_run(name)
    key = f"{which}_test_accuracy"
    seen = result.metrics[key]
    assert seen is not None
    for images in (2, -2):
        assert failed_checks(job, replace(result, metrics={**result.metrics, key: seen + images / 17})) == {}
    supermask = {part: {**result.supermask[part], "mean": 8 / 17} for part in ("selected", "final")}
    assert (10 / 17 - 8 / 17) * 17 > 2
    metrics = {**result.metrics, "early_stop_test_accuracy": 10 / 17, "final_test_accuracy": 10 / 17}
    assert failed_checks(job, replace(result, metrics=metrics, supermask=supermask)) == {}
    for wrong in (seen + 3 / 17, seen - 3 / 17, None):
        (check,) = failed_checks(job, replace(result, metrics={**result.metrics, key: wrong})).items()
        assert check[0] == "accuracies_reproduced" and check[1][0].startswith(key)


@pytest.mark.parametrize(("loss", "passes"), [(1.3862943, True), (1.3863, False)])
def test_accuracies_of_equal_logits_may_differ(loss: float, passes: bool) -> None:
    """With weights of 1e-12 the logits of three layers are below 1.2e-38, and engines flush them differently."""
    job, result = correct_run("init")
    supermask = {part: {**result.supermask[part], "mean": 2 / 17, "loss": loss} for part in ("selected", "final")}
    metrics = {**result.metrics, "early_stop_test_accuracy": 10 / 17, "final_test_accuracy": 10 / 17}
    failed = failed_checks(job, replace(result, metrics=metrics, supermask=supermask))
    assert list(failed) == ([] if passes else ["accuracies_reproduced"])


@pytest.mark.parametrize(("base", "passes"), [("constant", True), ("init", False)])
def test_accuracies_on_constant_weights_may_differ_by_ties(base: str, passes: bool) -> None:
    """Equal logits of constant weights are told apart by rounding only: up to 1% of the test images are noted."""
    job, result = correct_run(base)
    assert job.learning is not None
    for images, is_allowed in ((100, passes), (101, False)):
        accuracy = result.supermask["final"]["mean"] + images / 10_000.0001
        metrics = {**result.metrics, "final_test_accuracy": accuracy}
        metrics["early_stop_test_accuracy"] = result.supermask["selected"]["mean"]
        forged = replace(result, metrics=metrics)
        certificate = certify_learned_mask(
            prunable_tensors(LAYERS), initial_state(LAYERS, 0), job.start, forged, job.learning, 10_000
        )
        assert certificate.passed == is_allowed
        assert bool(certificate.notes) == is_allowed


def test_certificate_as_plain_data() -> None:
    job, result = correct_run("bernoulli")
    assert job.learning is not None
    found = certify_learned_mask(
        prunable_tensors(LAYERS), initial_state(LAYERS, 0), job.start, result, job.learning, TEST_IMAGES
    ).to_data()
    assert found == {"held": True, "checks": {name: [] for name in FINISHED}}
