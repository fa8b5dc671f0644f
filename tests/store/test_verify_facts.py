"""`verify`: forged facts that it detects, and changes that it cannot detect."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from helpers.forgery import Change, forge, not_held, verdicts
from helpers.stored_study import TrainedStudy

from supermask.store.files.entry import RunFacts, Tensors

# --- forgeries: facts ---


def relabel_as_diverged(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["status"] = "diverged"


def relabel_with_metrics(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["status"] = "diverged"
    metrics = facts["metrics"]
    metrics["diverged_at"] = 12
    metrics.update({name: None for name in metrics if name.startswith(("early_stop_", "final_"))})


def relabel_without_weights(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    relabel_with_metrics(facts, tensors, weights)
    weights.clear()


def relabel_as_refused(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["status"] = "certificate_failed"


def cut_curve(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    for name in [name for name in tensors if name.startswith("curve/")]:
        tensors[name] = np.delete(tensors[name], 1)


def set_fact(*path: str, value: object) -> Change:
    def change(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        parent = facts
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value

    return change


FORGERIES: dict[str, tuple[Change, str, str]] = {
    "a good run that diverged": (relabel_as_diverged, "failed", "status 'diverged' does not match: diverged_at"),
    "with its metrics": (relabel_with_metrics, "failed", "it has final weights"),
    "without its weights": (relabel_without_weights, "failed", "it has final weights"),
    "a good run that was refused": (relabel_as_refused, "failed", "status 'certificate_failed' does not match"),
    "an unknown status": (set_fact("status", value="great"), "damaged", "status: "),
    "1700% accuracy": (set_fact("metrics", "early_stop_test_accuracy", value=17.0), "damaged", "less than or equal"),
    "half an image": (
        set_fact("metrics", "final_test_accuracy", value=0.5 + 0.5 / 360),
        "failed",
        "final_test_accuracy",
    ),
    "a negative loss": (set_fact("metrics", "final_test_loss", value=-0.1), "damaged", "final_test_loss"),
    "no checks": (set_fact("certificate", "checks", value={}), "failed", "the certificate lacks checks: only_kernels"),
    "one check less": (
        lambda facts, tensors, weights: facts["certificate"]["checks"].pop("mask0_promise"),
        "failed",
        "the certificate lacks checks: mask0_promise",
    ),
    "a verdict of its own": (set_fact("certificate", "held", value=False), "failed", "contradicts itself"),
    "negative seconds": (set_fact("seconds", value=-1.0), "damaged", "seconds"),
    "another engine": (set_fact("engine", value="sparse"), "failed", "provenance does not match: engine"),
    "another processor": (
        set_fact("environment", "processor", value="better"),
        "failed",
        "does not match: environment",
    ),
    "another fingerprint": (set_fact("environment", "fingerprint", value="0" * 16), "failed", "match: environment"),
    "other data": (set_fact("data", "fingerprint", value="0" * 64), "failed", "does not match: data"),
    "a curve with a gap": (cut_curve, "failed", "curve"),
    "another first loss": (
        set_fact("metrics", "initial_validation_loss", value=0.1),
        "failed",
        "initial_validation_loss",
    ),
    "more kept than there are": (set_fact("weights", value=3), "damaged", "more weights than it has"),
}
"""Forgery -> (change, verdict, reason)."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_fact_is_detected(trained: TrainedStudy, name: str) -> None:
    change, verdict, reason = FORGERIES[name]
    run_id = trained.run_id(2)
    forge(trained, run_id, change)
    found = verdicts(trained.store)
    assert (found[run_id].verdict, reason in found[run_id].reason) == (verdict, True), found[run_id]
    assert {key for key, v in found.items() if v.verdict != "held"} == {run_id}


@pytest.mark.parametrize("status", ["diverged", "certificate_failed"])
def test_a_run_that_others_were_pruned_from_has_finished(trained: TrainedStudy, status: str) -> None:
    run_id = trained.run_id(1)
    forge(trained, run_id, set_fact("status", value=status))
    assert "runs were pruned from it" in verdicts(trained.store)[run_id].reason


def test_one_changed_weight_of_a_middle_level_is_detected(trained: TrainedStudy) -> None:
    """So small that every mask and every start below stays as it was."""
    run_id, child = trained.run_id(1), trained.run_id(2)

    def nudge(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["kept/fc2.weight"][0] = np.nextafter(weights["kept/fc2.weight"][0], np.float32(0))

    forge(trained, run_id, nudge, relink=False)
    found = not_held(trained.store)
    assert found.keys() == {child} and found[child].culprits == (run_id,)
    assert found[child].reason == f"its parent is not the one it was pruned from: {run_id}"


# --- changes that are not detected: the list of docs/store.md ---


def invent_test_metrics(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["metrics"].update(final_test_accuracy=1.0, final_test_loss=0.0, early_stop_test_loss=0.0)


def invent_training_loss(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["curve/training_loss"][1:] = 0.0


def invent_curve(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["curve/validation_loss"] = tensors["curve/validation_loss"] * 0.5
    for name in ("initial", "early_stop", "final"):
        facts["metrics"][f"{name}_validation_loss"] *= 0.5


def invent_cost(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts.update(seconds=0.001, engine_reason="invented")


def invent_environment(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    environment = {name: value for name, value in facts["environment"].items() if name != "fingerprint"}
    environment["processor"] = "better"
    canonical = json.dumps(environment, sort_keys=True).encode()
    facts["environment"] = {**environment, "fingerprint": hashlib.sha256(canonical).hexdigest()[:16]}


def invent_notes(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    facts["certificate"]["notes"] = {"biases_train": ["invented"]}


def change_end(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["other/fc1.bias"] = tensors["other/fc1.bias"] * 2
    # Every sign stays, and every weight that shrank is still the smaller one.
    weights["kept/fc2.weight"] = weights["kept/fc2.weight"] * np.float32(1.000001)


def hold_one_bias(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    tensors["other/fc1.bias"][0] = 0.0


def replace_by_diverged(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
    relabel_without_weights(facts, tensors, weights)
    for name in [name for name in tensors if name.startswith("other/")]:
        del tensors[name]
    before = tensors["curve/iterations"] < facts["metrics"]["diverged_at"]
    for name in [name for name in tensors if name.startswith("curve/")]:
        tensors[name] = tensors[name][before]


UNSEEN: dict[str, Change] = {
    "test metrics": invent_test_metrics,
    "training loss": invent_training_loss,
    "curve": invent_curve,
    "cost": invent_cost,
    "environment": invent_environment,
    "notes": invent_notes,
    "weights and biases": change_end,
    "one held bias": hold_one_bias,
    "replaced by a diverged run": replace_by_diverged,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_changes_that_are_not_detected(trained: TrainedStudy, name: str) -> None:
    """Checked at a last level, on which nothing else in the store depends."""
    forge(trained, trained.run_id(2), UNSEEN[name])
    assert not_held(trained.store) == {}


def test_a_chain_that_was_resealed_as_a_whole_is_not_detected(trained: TrainedStudy) -> None:
    """A middle level's weight changes so little that its child's mask stays, and the child records the new hash."""

    def nudge(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["kept/fc2.weight"][0] = np.nextafter(weights["kept/fc2.weight"][0], np.float32(0))

    forge(trained, trained.run_id(1), nudge, relink=True)
    assert not_held(trained.store) == {}


def test_a_changed_parent_of_a_run_without_its_content_is_not_detected(trained: TrainedStudy) -> None:
    """Runs of the first versions do not record `parent_content`."""

    def forget(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        del facts["parent_content"]

    def nudge(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["kept/fc2.weight"][0] = np.nextafter(weights["kept/fc2.weight"][0], np.float32(0))

    for run_id in trained.open_store().run_ids():
        if trained.open_store().facts(run_id)["parent"] == trained.run_id(1):
            forge(trained, run_id, forget)
    forge(trained, trained.run_id(1), nudge, relink=False)
    assert not_held(trained.store) == {}
