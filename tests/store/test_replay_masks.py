"""Runs that follow a learned mask: measured untrained, with random signs, trained further; from study to store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import numpy_training as by_hand
from helpers.mask_studies import Done, digits, done
from helpers.small_studies import contents, train_plan

from supermask.core.learned_masks import base_weights
from supermask.core.masks import unpack
from supermask.core.rng import child_streams
from supermask.engines.job import TrainingJob
from supermask.engines.mask_evaluation import evaluate_supermask
from supermask.store import Store
from supermask.store.records import decode_logits
from supermask.study.networks import run_network

KINDS = {
    "bernoulli": {},
    "DWR": {"weights": "signed_constant", "rescaled": True},
    "constants": {"weights": "constant", "multiplier": 2.0},
    "rounded": {"method": "rounded", "start_logit": 0.5},
    "edge_popup": {"method": "edge_popup", "density": 0.3, "lr": 5},
    "signed": {"method": "signed", "lr": 5},
    "signed DWR": {"method": "signed", "lr": 1, "rescaled": True, "weights": "signed_constant"},
}
NAMES = ("fc1.weight", "fc2.weight")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Each kind, thresholded and measured, and the same with random signs; two are trained further."""
    treatments = []
    for name, kind in KINDS.items():
        after = {"supermask": kind, "levels": 1, "trained": False}
        treatments += [{"name": name, **after}, {"name": f"{name}, random", **after, "mask1": "randomise_signs"}]
    for name in ("DWR", "signed"):
        treatments.append({"name": f"{name}, on", "supermask": KINDS[name], "levels": 2})
    return done(tmp_path_factory.mktemp("follow"), *treatments)


def taken_by_hand(study: Done, kind: str) -> dict[str, np.ndarray]:
    """Mask of each method from its stored logits, by definition."""
    found = {}
    for name, logits in study.logits(kind).items():
        m = logits.numpy()
        if kind == "edge_popup":
            found[name] = m > np.sort(m.ravel())[m.size - round(0.3 * m.size) - 1]
        else:
            found[name] = np.abs(m) > np.float32(0.01) if kind.startswith("signed") else m > 0
    return found


def inverted_by_hand(study: Done, kind: str) -> dict[str, np.ndarray]:
    """-1 where a signed mask inverts, else 1."""
    logits = study.logits(kind)
    return {n: np.where(kind.startswith("signed") & (m.numpy() < 0), -1, 1) for n, m in logits.items()}


def base_of(study: Done, kind: str) -> dict[str, np.ndarray]:
    """Fixed weights under the mask, from the seed alone."""
    run = study.run(kind, 1)
    assert run.learning is not None
    dense, rng = run_network(run).initial_state(0), child_streams(0, "supermask")
    found = run_network(run).tensors
    return {n: base_weights(run.learning, m, dense.weights[n], rng).numpy() for n, m in found.items()}


def accuracy_by_hand(weights: dict[str, np.ndarray]) -> float:
    pixels, labels, _ = digits()
    parameters = {n: w.astype(np.float64) for n, w in weights.items()}
    biases = {n.replace("weight", "bias"): np.zeros(len(w)) for n, w in weights.items()}
    return by_hand.loss_and_accuracy({**parameters, **biases}, pixels, labels)[1]


@pytest.mark.slow
def test_every_run_finished_and_its_certificate_holds(study: Done) -> None:
    for run_id in study.plan.runs:
        facts = Store(study.store).facts(run_id)
        assert (facts["status"], facts["certificate"]["held"]) == ("finished", True)
    assert study.facts("DWR", 1)["engine"] == "sparse" and study.facts("signed", 1)["engine"] == "reference"


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_learned(study: Done, kind: str) -> None:
    """Accuracy far above chance (0.1), so that the tests below mean something."""
    assert study.facts(kind, 1)["metrics"]["early_stop_test_accuracy"] > 0.6


# --- taken as it is ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_level_has_the_thresholded_mask(study: Done, kind: str) -> None:
    """In the run that learned it and in the run that follows; exact counts in the facts of both."""
    wanted, shapes = taken_by_hand(study, kind), {n: m.shape for n, m in study.logits(kind).items()}
    for level in (1, 2):
        tensors = study.tensors(kind, level)
        for name in NAMES:
            assert np.array_equal(unpack(tensors[f"mask/{name}"], tuple(shapes[name])), wanted[name])
        assert study.facts(kind, level)["kept"] == {n: int(mask.sum()) for n, mask in wanted.items()}
    assert all(0 < mask.sum() < mask.size for mask in wanted.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_level_has_the_fixed_weights_of_the_mask(study: Done, kind: str) -> None:
    """Inverted where the mask inverts, 0 where it prunes."""
    start, taken = study.start(kind, 2), taken_by_hand(study, kind)
    signs, base = inverted_by_hand(study, kind), base_of(study, kind)
    for name in NAMES:
        assert np.array_equal(start.weights[name].numpy(), base[name] * signs[name] * taken[name])
        assert np.array_equal(start.masks[name].numpy(), taken[name])
    assert kind.startswith("signed") == any((s < 0).any() for s in signs.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_untrained_network_has_exactly_the_thresholded_accuracy(study: Done, kind: str) -> None:
    """Rescaled or not: without biases a factor per layer changes no prediction.

    On constants two logits may be equal but for rounding: there one image of 360 may be off.
    """
    learned, taken = study.facts(kind, 1), study.facts(kind, 2)
    by_numpy = accuracy_by_hand({n: w.numpy() for n, w in study.start(kind, 2).weights.items()})
    thresholded = learned["supermask"]["thresholded"]
    assert learned["metrics"]["thresholded_test_accuracy"] == thresholded
    assert taken["metrics"]["early_stop_test_accuracy"] == taken["metrics"]["final_test_accuracy"]
    for found in (thresholded, taken["metrics"]["final_test_accuracy"]):
        assert abs(found - by_numpy) < (1.5 / 360 if "weights" in KINDS[kind] else 1e-12)


METHODS = {
    "bernoulli": {"lr": 50},
    "rounded": {"method": "rounded", "start_logit": 0.5, "lr": 50},
    "edge_popup": {"method": "edge_popup", "density": 0.3, "lr": 1},
    "signed": {"method": "signed", "lr": 1},
}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Every method, with and without biases trained beside the mask, rescaled in both levels or in none."""
    treatments = [
        {"name": f"{name} {others_lr} {rescaled}", "levels": 1, "trained": False, "rescaled": rescaled}
        | {"supermask": {**kind, "others_lr": others_lr, "rescaled": rescaled}}
        for name, kind in METHODS.items()
        for others_lr in (0.0, 0.3)
        for rescaled in (False, True)
    ]
    learn = {"lr": 50, "batch_size": 60, "epochs": 2, "evaluate_every": 20, "samples": 2, "hardened_at": [0.5]}
    return done(tmp_path_factory.mktemp("beside"), *treatments, learn=learn, network="fc-20")


@pytest.mark.slow
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("others_lr", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_biases_trained_beside_a_mask_are_those_of_the_next_level(
    beside: Done, method: str, others_lr: float, rescaled: bool
) -> None:
    """Its untrained network has the thresholded accuracy; rounding may move one image of 360."""
    name = f"{method} {others_lr} {rescaled}"
    learned, applied = beside.facts(name, 1), beside.facts(name, 2)
    found = applied["metrics"]["final_test_accuracy"]
    assert abs(found - learned["metrics"]["thresholded_test_accuracy"]) < 1.5 / 360
    assert (learned["certificate"]["held"], applied["certificate"]["held"]) == (True, True)
    stored = beside.tensors(name, 1)
    for bias, tensor in beside.start(name, 2).unmasked.items():
        trained = stored.get(f"logit_other/{bias}", np.zeros(tensor.shape, dtype=np.float32))
        assert np.array_equal(tensor.numpy(), trained)
        assert bool(trained.any()) == (others_lr > 0)


# --- robbed of its signs ---


@pytest.mark.parametrize("kind", KINDS)
def test_random_signs_keep_magnitudes_and_lose_the_accuracy(study: Done, kind: str) -> None:
    """Accuracy falls to about 0.1 for every mask."""
    plain, robbed = study.start(kind, 2), study.start(f"{kind}, random")
    for name in NAMES:
        before, after = plain.weights[name], robbed.weights[name]
        assert torch.equal(before.abs(), after.abs())
        assert torch.equal(plain.masks[name], robbed.masks[name])
        kept = plain.masks[name]
        agree = float((before.sign() == after.sign())[kept].float().mean())
        assert abs(agree - 0.5) < 2.5 / int(kept.sum()) ** 0.5
    assert study.facts(f"{kind}, random")["metrics"]["early_stop_test_accuracy"] < 0.3


def test_random_signs_are_the_same_for_every_treatment_of_a_seed(study: Done) -> None:
    def drawn(kind: str) -> torch.Tensor:
        return study.start(f"{kind}, random").weights["fc1.weight"].sign()

    both = (drawn("DWR") != 0) & (drawn("bernoulli") != 0)
    assert int(both.sum()) > 1000
    assert torch.equal(drawn("DWR")[both], drawn("bernoulli")[both])


# --- trained further ---


@pytest.mark.parametrize("kind", ["DWR", "signed"])
def test_trained_further_it_is_pruned_like_any_ticket(study: Done, kind: str) -> None:
    """The mask of level 2 is the learned one; level 3 prunes it by the study's rates and rewinds to level 2's start."""
    first, second = study.start(f"{kind}, on", 2), study.start(f"{kind}, on", 3)
    plain = study.start(kind, 2)
    assert (
        study.facts(f"{kind}, on", 2)["metrics"]["final_validation_loss"]
        != study.facts(kind, 2)["metrics"]["final_validation_loss"]
    )
    for name, rate in zip(NAMES, (0.5, 0.3), strict=True):
        assert torch.equal(first.weights[name], plain.weights[name]) and torch.equal(
            first.masks[name], plain.masks[name]
        )
        alive, kept = int(first.masks[name].sum()), int(second.masks[name].sum())
        assert kept == alive - round(alive * rate)
        assert not (second.masks[name] & ~first.masks[name]).any()
        assert torch.equal(second.weights[name], first.weights[name] * second.masks[name])


# --- measured again from the store ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_is_reproduced_from_the_stored_logits(study: Done, kind: str) -> None:
    """Every number, to the last bit."""
    run, facts, start = study.run(kind, 1), study.facts(kind, 1), study.start(kind, 1)
    job = TrainingJob(run_network(run), start, run.recipe, run.seed, learning=run.learning)
    states = [decode_logits(study.tensors(kind, 1), start, which) for which in ("logit", "final_logit")]
    assert evaluate_supermask(job, digits()[2], *states) == facts["supermask"]
    metrics, told = facts["metrics"], facts["supermask"]
    for name, part in (("early_stop", "selected"), ("final", "final")):
        assert metrics[f"{name}_test_accuracy"] == told[part]["mean"] == np.mean(told[part]["accuracies"])
        assert metrics[f"{name}_test_loss"] == told[part]["loss"]
    assert metrics["test_accuracy_std"] == told["selected"]["std"]
    assert metrics["expected_density"] == told["ones_in_all"]
    assert len(told["selected"]["accuracies"]) == (3 if kind in ("bernoulli", "DWR", "constants") else 1)


@pytest.mark.slow
def test_the_same_study_again_is_bit_identical(study: Done, tmp_path: Path) -> None:
    again = done(tmp_path, {"supermask": [KINDS["DWR"], KINDS["signed"]]})
    once, found = contents(study.store), contents(tmp_path)
    assert {run_id: once[run_id] for run_id in found} == found
    assert not train_plan(again.plan, tmp_path, engine="auto").ended
