"""Stored supermasks: verified, forged, dropped and learned again; their initial states replayed."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.forgery import forge, not_held, verdicts
from helpers.mask_studies import Done, done, mask_plan
from helpers.small_studies import contents, same_start, train_plan

from supermask.core.learned_masks import initial_mask_state
from supermask.store import Store
from supermask.store.files.entry import RunFacts, Tensors
from supermask.store.records import state_hash
from supermask.store.replay import (
    StateReplayer,
    _load_user_criterion,
    load_step,
    step_streams,
)
from supermask.store.verify import VerificationResult
from supermask.study.networks import run_network

GRADED = {"start_from": "large_final_same_sign", "start_level": 2, "graded": True}
UNTRAINED = {"levels": 1, "trained": False}
TREATMENTS: tuple[dict[str, Any], ...] = (
    {"name": "learned", "supermask": {}, **UNTRAINED},
    {"name": "graded", "supermask": {**GRADED, "weights": "constant"}, "levels": 2},
    {"name": "signed", "supermask": {"method": "signed", "lr": 5}, **UNTRAINED, "mask1": "randomise_signs"},
    {"name": "edge", "supermask": {"method": "edge_popup", "lr": 5}},
    {"name": "heuristic", "criterion": "movement", "trained": False, "rescaled": True},
)
SMALL: dict[str, Any] = {
    "network": "fc-12",
    "learn": {"lr": 20, "batch_size": 60, "epochs": 2, "evaluate_every": 10, "samples": 2, "hardened_at": [0.3]},
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("verify"), *TREATMENTS, **SMALL)


@pytest.fixture
def study(pristine: Done, tmp_path: Path) -> Done:
    """Copy of the store for a test that changes it."""
    shutil.copytree(pristine.store, tmp_path / "store")
    return Done(pristine.plan, tmp_path / "store")


def forged(study: Done, treatment: str, level: int, change: Any) -> dict[str, VerificationResult]:
    """Return the verdicts that do not hold after a run is changed and resealed."""
    run_id = study.run(treatment, level).id
    forge(study, run_id, change)
    return not_held(study.store)


# --- valid stores ---


@pytest.mark.slow
def test_every_run_of_a_valid_store_holds(pristine: Done) -> None:
    found = verdicts(pristine.store)
    assert {v.verdict for v in found.values()} == {"held"} and found.keys() == pristine.plan.runs.keys()


@pytest.mark.parametrize("treatment", ["learned", "graded", "signed", "edge"])
def test_an_initial_state_is_replayed(pristine: Done, treatment: str) -> None:
    """From the seed, and from the stored dense run if a heuristic gives the logits."""
    run = pristine.run(treatment, 1)
    found = pristine.start(treatment, 1)
    assert run.learning is not None
    parent = step = None
    if run.parent is not None and run.step is not None:
        parent = StateReplayer(Store(pristine.store)).parent_run(run.parent)
        step = load_step(run.step)
    wanted = initial_mask_state(
        run.learning,
        run_network(run).tensors,
        run_network(run).initial_state(run.seed),
        run.seed,
        parent,
        step,
        step_streams(run),
    )
    assert same_start(found, wanted)
    assert found.logits.keys() == wanted.logits.keys() == found.weights.keys()
    assert all(torch.equal(found.logits[n], m) for n, m in wanted.logits.items())
    assert (treatment == "graded") == (run.parent is not None)


def test_another_initial_logit_is_detected(pristine: Done) -> None:
    """Each initial logit enters the recorded hash of the start."""
    start = pristine.start("graded", 1)
    logits = {n: m.clone() for n, m in start.logits.items()}
    logits["fc2.weight"][0, 0] += 1
    assert state_hash(replace(start, logits=logits)) != state_hash(start)
    assert state_hash(start) == pristine.facts("graded", 1)["start_content"]


# --- somebody: every hash is right ---


def flipped(name: str) -> Any:
    def change(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][0] ^= 1 << 7

    return change


@pytest.mark.slow
@pytest.mark.parametrize("treatment", ["learned", "graded", "signed", "edge"])
def test_a_flipped_bit_of_a_learned_mask_is_detected(study: Done, treatment: str) -> None:
    run_id = study.run(treatment, 1).id
    found = forged(study, treatment, 1, flipped("mask/fc1.weight"))
    assert found == {run_id: VerificationResult(run_id, "failed", "not the mask of its logits: fc1.weight")}


@pytest.mark.parametrize("treatment", ["learned", "heuristic"])
def test_a_flipped_bit_of_an_untrained_mask_is_detected(study: Done, treatment: str) -> None:
    """The replayed start is not the one that was measured."""
    run_id = study.run(treatment, 2).id
    found = forged(study, treatment, 2, flipped("mask/fc1.weight"))
    assert found.keys() == {run_id} and "not the one it was trained from" in found[run_id].reason


def test_other_logits_give_another_mask_and_another_follow_up(study: Done) -> None:
    def change(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["logit/fc1.weight"] = -weights["logit/fc1.weight"]

    learned, taken = study.run("learned", 1).id, study.run("learned", 2).id
    found = forged(study, "learned", 1, change)
    assert found.keys() == {learned, taken}
    assert found[learned].verdict == "failed" and "not the mask of its logits: fc1.weight" in found[learned].reason
    assert found[taken] == VerificationResult(taken, "failed", "not the criterion's mask: fc1.weight")


def test_other_weights_of_the_dense_run_do_not_match_the_start(study: Done) -> None:
    """For a mask that started from a heuristic; its descendants name the run."""

    def change(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights["kept/fc1.weight"] = weights["kept/fc1.weight"][::-1].copy()

    run_id = study.run("graded", 1).id
    found = forged(study, "graded", 0, change)
    assert found[run_id].verdict == "damaged" and "not the one it was trained from" in found[run_id].reason
    assert run_id in found[study.run("graded", 2).id].reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["kept"].update({"fc1.weight": 1}), "facts do not match the tensors: kept"),
        (lambda facts: facts["supermask"]["ones"].update({"fc2.weight": 0.5}), "do not match the tensors: fc2.weight"),
        (lambda facts: facts["supermask"].update(ones_in_all=0.5), "do not match the tensors: ones_in_all"),
        (lambda facts: facts["metrics"].update(expected_density=0.5), "do not match the tensors: expected_density"),
        (lambda facts: facts["metrics"].update(early_stop_validation_loss=0.1), "early_stop_validation_loss"),
        (lambda facts: facts["metrics"].update(early_stop_test_accuracy=1.0), "early_stop_test_accuracy"),
        (lambda facts: facts["metrics"].update(thresholded_test_accuracy=1.0), "thresholded_test_accuracy"),
        (lambda facts: facts["certificate"]["checks"].update(masks_are_binary=["fc1.weight"]), "contradicts itself"),
    ],
)
def test_changed_facts_are_detected(study: Done, change: Any, says: str) -> None:
    run_id = study.run("learned", 1).id
    found = forged(study, "learned", 1, lambda facts, tensors, weights: change(facts))
    assert found.keys() == {run_id} and found[run_id].verdict == "failed"
    assert says in found[run_id].reason


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["logit", "final_logit"])
@pytest.mark.parametrize("values", [None, np.zeros(3, np.float32), np.zeros((12, 64))])
def test_logits_of_another_shape_are_damage(study: Done, kind: str, values: Any) -> None:
    def change(facts: RunFacts, tensors: Tensors, weights: Tensors) -> None:
        weights.pop(f"{kind}/fc1.weight")
        if values is not None:
            weights[f"{kind}/fc1.weight"] = values

    run_id = study.run("edge", 1).id
    found = forged(study, "edge", 1, change)
    assert (
        found[run_id].verdict == "damaged" and "one float32 logit for each weight of fc1.weight" in found[run_id].reason
    )


def test_a_better_untrained_measurement_does_not_match_its_curve(study: Done) -> None:
    run_id = study.run("heuristic", 1).id
    change = {"early_stop_validation_accuracy": 0.99}
    found = forged(study, "heuristic", 1, lambda facts, tensors, weights: facts["metrics"].update(change))
    assert found == {
        run_id: VerificationResult(run_id, "failed", "facts do not match the tensors: early_stop_validation_accuracy")
    }


def test_another_learning_method_is_another_run(study: Done) -> None:
    run_id = study.run("edge", 1).id
    found = forged(study, "edge", 1, lambda facts, tensors, weights: facts["learning"].update(density=0.4))
    assert found[run_id].verdict == "damaged" and "its facts are those of run" in found[run_id].reason


# --- dropped, and learned again ---


def test_dropped_logits_hold_partly(study: Done) -> None:
    """The remaining tensors are checked, and so are runs made from them that can be replayed without them."""
    learned, signed = study.run("learned", 1).id, study.run("signed", 1).id
    for run_id in (learned, signed):
        Store(study.store).drop_weights(run_id)
    found = not_held(study.store)
    assert found[learned] == VerificationResult(
        learned, "partly", "its logits were dropped; its initial state is right"
    )
    assert found[study.run("learned", 2).id].verdict == found[study.run("signed", 2).id].verdict == "partly"
    assert found.keys() == {learned, signed, study.run("learned", 2).id, study.run("signed", 2).id}


@pytest.mark.slow
def test_a_mask_is_learned_again_for_a_treatment_added_later(tmp_path: Path) -> None:
    """To the same logits; no snapshot is stored that was not requested."""
    first = mask_plan(TREATMENTS[0], **SMALL)
    train_plan(first, tmp_path, keep="masks")
    assert not Store(tmp_path).has_weights(Done(first, tmp_path).run("learned", 1).id)
    more = mask_plan(TREATMENTS[0], {**TREATMENTS[0], "name": "robbed", "mask1": "randomise_signs"}, **SMALL)
    plan_run = train_plan(more, tmp_path, keep="all")
    learned = Done(more, tmp_path).run("learned", 1).id
    assert plan_run.replayed == {learned: frozenset({"end"})}
    assert not list(Store(tmp_path).snapshot_keys())
    # The dense run's weights were dropped, and nobody asked for them again.
    assert [v.verdict for run_id, v in verdicts(tmp_path).items() if more.runs[run_id].level] == ["held"] * 3
    train_plan(more, tmp_path / "fresh")
    assert contents(tmp_path) == contents(tmp_path / "fresh")


@pytest.mark.slow
def test_learned_logits_are_kept_for_treatments_added_later(tmp_path: Path) -> None:
    """`needed` keeps the weights that a treatment added later reads."""
    plan = mask_plan(*TREATMENTS[:3], **SMALL)
    train_plan(plan, tmp_path, keep="needed")
    for run in plan.runs.values():
        if run.learning is not None:
            assert Store(tmp_path).has_weights(run.id)


# --- what goes wrong while learning ---


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bernoulli", "signed"])
def test_non_finite_logits_refuse_the_run_and_not_the_others(tmp_path: Path, method: str) -> None:
    """Logits overflow with a huge learning rate; losses stay finite because the weights never move."""
    lost = {"method": method, "lr": 1e38, "multiplier": 1000.0, "weight_decay": 0.1}
    treatments = ({"name": "lost", "supermask": lost, **UNTRAINED}, TREATMENTS[3])
    study = done(tmp_path, *treatments, **SMALL)
    facts = study.facts("lost", 1)
    assert facts["status"] == "certificate_failed"
    assert facts["certificate"]["checks"]["logits_are_finite"]
    assert not Store(tmp_path).has(study.run("lost", 2).id)
    assert study.facts("edge", 1)["status"] == "finished"
    assert verdicts(tmp_path)[study.run("lost", 1).id].verdict == "failed"


# --- user criteria ---


def test_verify_imports_no_user_criterion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the start of a mask with logits from it cannot be replayed, nor its descendants."""
    (tmp_path / "own_start.py").write_text("def score(layer, rng):\n    return layer.w_final.abs()\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        study = done(
            tmp_path / "store", {"name": "own", "supermask": {"start_from": "own_start:score"}, **UNTRAINED}, **SMALL
        )
        assert study.start("own", 2).logits == {}
    monkeypatch.delitem(sys.modules, "own_start", raising=False)
    _load_user_criterion.cache_clear()
    (tmp_path / "own_start.py").write_text("raise SystemExit('imported')")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        found = not_held(tmp_path / "store")
    assert {run_id: v.verdict for run_id, v in found.items()} == {
        study.run("own", 1).id: "partly",
        study.run("own", 2).id: "partly",
    }
    assert all("own_start:score" in v.reason for v in found.values())
