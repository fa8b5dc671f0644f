"""Consistency of a stored run: its facts against its tensors, its certificate, its provenance and its parent.

Functions named `*_faults` return check -> faults, empty lists where nothing is wrong. They compare recorded facts with
each other, with the learning curve and with the parent's facts. The values of weights and masks are not read, nor any
data set.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import CROSS_ENTROPY
from supermask.core.types import LearningCurve
from supermask.datasets.specs import DATASETS
from supermask.store.files.entry import Entry, RunFacts
from supermask.study.networks import run_network
from supermask.study.run import Run

Faults = dict[str, list[str]]

TRAINING_CHECKS = (
    "only_kernels_are_masked",
    "no_layer_is_emptied",
    "frozen_is_frozen",
    "optimizer_holds_nothing_frozen",
)
STEP_CHECKS = ("kept_count", "dead_stays_dead", "mask1_promise", "mask0_promise", "others_rewound")
LEARNING_CHECKS = ("every_kernel_has_logits", "weights_as_promised", "weights_are_frozen", "others_are_frozen")
LEARNED_CHECKS = ("logits_are_finite", "masks_are_binary", "kept_share", "accuracies_reproduced")
# The first check of either kind ends the certificate if it fails: nothing else can be judged then.
FIRST_CHECKS = ("only_kernels_are_masked", "every_kernel_has_logits")


def required_checks(run: Run, is_diverged: bool) -> tuple[str, ...]:
    """Return the checks that the certificate of a run must list."""
    if run.learning is not None:
        return LEARNING_CHECKS + (() if is_diverged else LEARNED_CHECKS)
    # Under weight decay the weights of a silent unit move although its bias cannot, so biases are not judged.
    others: tuple[str, ...] = () if run.recipe.weight_decay else ("biases_train",)
    if run_network(run).trained_others is not None:
        others = ("others_train",)
    return TRAINING_CHECKS + others + (("dense",) if run.step is None else STEP_CHECKS)


def certificate_faults(run: Run, facts: RunFacts) -> Faults:
    """Compare the certificate with the checks that such a run has, and with its own verdict."""
    checks, is_diverged = facts["certificate"]["checks"], facts["status"] == "diverged"
    is_broken = any(checks.values())
    missing = [name for name in required_checks(run, is_diverged) if name not in checks]
    if any(checks.get(name) for name in FIRST_CHECKS):
        missing = []
    verdict = [] if facts["certificate"]["held"] is not is_broken else ["held"]
    return {"the certificate lacks checks": missing, "the certificate contradicts itself": verdict}


def status_faults(run: Run, entry: Entry, curve: LearningCurve, has_children: bool) -> Faults:
    """Compare the status with the metrics, the certificate, the stored tensors and the existence of children."""
    facts, metrics = entry.facts, entry.facts["metrics"]
    status, diverged_at = facts["status"], metrics.get("diverged_at")
    faults = []
    if (status == "certificate_failed") != (not facts["certificate"]["held"]) and status != "diverged":
        faults.append("certificate")
    if (diverged_at is not None) != (status == "diverged"):
        faults.append("diverged_at")
    # Only finished runs are pruned further.
    if has_children and status != "finished":
        faults.append("runs were pruned from it")
    results = [name for name in metrics if name.startswith(("early_stop_", "final_"))]
    if status == "diverged":
        faults += [name for name in results if metrics[name] is not None]
        # A diverged run stores its curve alone, so a good run cannot be relabeled without removing its result.
        if entry.weights or any(name.startswith("other/") for name in entry.tensors):
            faults.append("it has final weights")
    elif status == "finished":
        faults += [name for name in _RESULT_METRICS if metrics.get(name) is None]
    expected = expected_iterations(run, facts["first_iteration"], diverged_at if status == "diverged" else None)
    if list(curve.iterations) != expected:
        faults.append("curve")
    return {f"status {status!r} does not match": faults}


_RESULT_METRICS = (
    *(f"{name}_{column}" for name in ("early_stop", "final") for column in ("validation_loss", "validation_accuracy")),
    *(f"{name}_test_accuracy" for name in ("early_stop", "final")),
    "early_stop_iteration",
)


def expected_iterations(run: Run, first: int, diverged_at: int | None) -> list[int]:
    """Return the iterations at which a run is evaluated: its first, multiples of `evaluate_every`, and its last.

    A diverged run has those before the iteration at which it diverged.
    """
    recipe = run.recipe
    stops = sorted({*range(0, recipe.iterations, recipe.evaluate_every), recipe.iterations})
    evaluated = [first, *(stop for stop in stops if stop > first)]
    return evaluated if diverged_at is None else [stop for stop in evaluated if stop < diverged_at]


def curve_faults(run: Run, facts: RunFacts, curve: LearningCurve) -> Faults:
    """Check the curve's values, and every accuracy: a share of a known number of images, counted in whole images."""
    faults = []
    columns = vars(curve)
    if len({len(values) for values in columns.values()}) != 1:
        return {"curve": ["columns of different lengths"]}
    if not all(math.isfinite(loss) and loss >= 0 for loss in curve.validation_loss):
        faults.append("validation_loss")
    # NaN: nothing was trained before the first entry.
    is_cross_entropy = run.recipe.loss == CROSS_ENTROPY
    is_possible = (lambda loss: loss >= 0) if is_cross_entropy else math.isfinite
    if not all(map(is_possible, curve.training_loss[1:])) and facts["status"] == "finished":
        faults.append("training_loss")
    spec, samples = run.spec, 1 if run.learning is None else run.learning.num_samples
    if not _are_image_shares(curve.validation_accuracy, spec.validation_images * samples):
        faults.append("validation_accuracy")
    metrics = facts["metrics"]
    num_samples = {"early_stop_test_accuracy": samples, "final_test_accuracy": samples}
    num_samples |= {"thresholded_test_accuracy": 1, "expected_test_accuracy": 1}
    for name, count in num_samples.items():
        if metrics.get(name) is not None and not _are_image_shares([metrics[name]], spec.test_images * count):
            faults.append(name)
    # A diverged run may have no entry at all.
    if curve.iterations and metrics.get("initial_validation_loss") not in (None, curve.validation_loss[0]):
        faults.append("initial_validation_loss")
    if curve.iterations and metrics.get("initial_validation_accuracy") not in (None, curve.validation_accuracy[0]):
        faults.append("initial_validation_accuracy")
    return {"impossible values": faults}


def _are_image_shares(accuracies: Sequence[float], images: int) -> bool:
    """Return whether accuracies are in [0, 1] and multiples of 1 / images."""
    counts = np.asarray(accuracies, dtype=np.float64) * images
    return bool(((counts >= 0) & (counts <= images) & (np.abs(counts - np.round(counts)) < 1e-3)).all())


def evaluation_faults(learning: MaskLearning, evaluation: Mapping[str, object]) -> list[str]:
    """Check the evaluation of a learned mask against itself: means, deviations, numbers of samples."""
    faults = []
    for part in ("selected", "final"):
        sampled = evaluation[part]
        assert isinstance(sampled, dict)
        accuracies = sampled["accuracies"]
        deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        if len(accuracies) != learning.num_samples:
            faults.append(f"{part}: samples")
        elif not (
            math.isclose(sampled["mean"], float(np.mean(accuracies)), abs_tol=1e-9)
            and math.isclose(sampled["std"], deviation, abs_tol=1e-9)
        ):
            faults.append(part)
    hardened = evaluation["hardened"]
    assert isinstance(hardened, list)
    if [density for density, _ in hardened] != list(learning.hardened_at):
        faults.append("hardened")
    return faults


def provenance_faults(
    facts: RunFacts, parent_facts: RunFacts | None, parent_content: Mapping[str, str] | None
) -> Faults:
    """Compare the recorded environment with its fingerprint, and data and parent with the parent's entry.

    `parent_content`: the content hashes that the parent's entry records now.
    """
    environment = {name: value for name, value in facts["environment"].items() if name != "fingerprint"}
    canonical = json.dumps(environment, sort_keys=True).encode()
    faults = []
    if hashlib.sha256(canonical).hexdigest()[:16] != facts["environment"]["fingerprint"]:
        faults.append("environment")
    if facts["environment"].get("engine", facts["engine"]) != facts["engine"]:
        faults.append("engine")
    known = DATASETS.get(facts["dataset"])
    published = None if known is None else known.published_fingerprint
    # Other data than the published ones are in the run's id; runs of earlier versions carry a note instead.
    expected = facts.get("data_fingerprint") or (None if facts["data"]["note"] else published)
    if expected not in (None, facts["data"]["fingerprint"]):
        faults.append("data")
    if parent_facts is not None and parent_facts["data"]["fingerprint"] != facts["data"]["fingerprint"]:
        faults.append("data of its parent")
    recorded = facts.get("parent_content")
    other_parent = recorded is not None and parent_content is not None and dict(recorded) != dict(parent_content)
    return {
        "provenance does not match": faults,
        "its parent is not the one it was pruned from": [str(facts["parent"])] if other_parent else [],
    }
