"""Evaluation of a learned mask against NumPy: single samples, and the deterministic networks that it defines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import numpy_masks as masks_by_hand
from helpers import numpy_training as by_hand
from helpers.mask_trainings import METHODS, mask_job, recipes
from helpers.trainings import data, flat

from supermask.core.learned_masks import MaskLearning
from supermask.core.types import NetworkState
from supermask.engines.job import TrainingJob
from supermask.engines.mask_evaluation import evaluate_supermask, top_k_mask

DATA = data()
HARDENED = (0.9, 0.5, 0.2, 0.01)


def case(learning: MaskLearning) -> tuple[TrainingJob, NetworkState, NetworkState]:
    """A job and two states of its logits, about half of them on either side of the threshold."""
    job = mask_job(replace(learning, hardened_at=HARDENED, samples=6), recipes(learning)["sgd"])
    states = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        logits = {
            n: torch.from_numpy(rng.normal(0, 1, m.shape).astype(np.float32)) for n, m in job.start.logits.items()
        }
        states.append(replace(job.start.state, logits=logits))
    return job, states[0], states[1]


def accuracy(weights: by_hand.Parameters) -> float:
    biases = {n.replace("weight", "bias"): np.zeros(len(w)) for n, w in weights.items()}
    return by_hand.loss_and_accuracy({**weights, **biases}, flat(DATA.test_images, DATA), DATA.test_labels)[1]


def float64(tensors: dict[str, torch.Tensor]) -> by_hand.Parameters:
    return {n: t.numpy().astype(np.float64) for n, t in tensors.items()}


@pytest.mark.parametrize("method", METHODS)
def test_single_samples(method: str) -> None:
    """Six of a Bernoulli mask, one of the others; their mean, and their standard deviation with n - 1."""
    learning = METHODS[method]
    job, selected, final = case(learning)
    report = evaluate_supermask(job, DATA, selected, final)
    for state, part in ((selected, report["selected"]), (final, report["final"])):
        w, expected_accuracies = float64(state.weights), []
        for j in range(6 if learning.method == "bernoulli" else 1):
            b = {
                n: masks_by_hand.mask(learning, m, masks_by_hand.key_pair(0, "samples", n, j))
                for n, m in float64(state.logits).items()
            }
            expected_accuracies.append(accuracy({n: masks_by_hand.masked_weights(learning, w[n], b[n]) for n in w}))
        assert part["accuracies"] == pytest.approx(expected_accuracies, abs=1e-12)
        assert part["mean"] == pytest.approx(np.mean(expected_accuracies), abs=1e-12)
        assert part["std"] == pytest.approx(
            np.std(expected_accuracies, ddof=1) if len(expected_accuracies) > 1 else 0, abs=1e-12
        )
        assert part["loss"] > 0
    assert report["selected"] != report["final"]


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_networks(method: str) -> None:
    """Thresholded, weights times p, and the highest logits per layer; each with its own ratio."""
    learning = METHODS[method]
    job, selected, final = case(learning)
    report = evaluate_supermask(job, DATA, selected, final)
    w, logits = float64(selected.weights), float64(selected.logits)
    thresholded, expected, ones = {}, {}, {}
    for name, m in logits.items():
        deterministic = replace(learning, method="rounded") if learning.method == "bernoulli" else learning
        mask = masks_by_hand.mask(deterministic, m, (0, 0))
        thresholded[name] = masks_by_hand.masked_weights(learning, w[name], mask)
        p = masks_by_hand.sigmoid(m) if learning.method == "bernoulli" else mask
        expected[name] = masks_by_hand.masked_weights(learning, w[name], p)
        ones[name] = np.abs(p).mean()
    assert report["thresholded"] == pytest.approx(accuracy(thresholded), abs=1e-12)
    assert report["expected"] == pytest.approx(accuracy(expected), abs=1e-12)
    assert report["ones"] == pytest.approx(ones, rel=1e-6)
    sizes = {n: m.size for n, m in logits.items()}
    in_all = sum(ones[n] * size for n, size in sizes.items()) / sum(sizes.values())
    assert report["ones_in_all"] == pytest.approx(in_all, rel=1e-6)
    assert [density for density, _ in report["hardened"]] == list(HARDENED)
    for density, measured in report["hardened"]:
        assert measured == pytest.approx(accuracy(hardened(learning, w, logits, density)), abs=1e-12)


def hardened(learning: MaskLearning, w: Any, logits: Any, density: float) -> by_hand.Parameters:
    """The round(density * size) highest of each layer, at least one; by magnitude where a mask may invert."""
    weights = {}
    for name, m in logits.items():
        scores = np.abs(m) if learning.method == "signed" else m
        places = np.argsort(-scores.ravel())[: max(1, round(density * m.size))]
        b = np.zeros(m.size)
        b[places] = np.sign(m).ravel()[places] if learning.method == "signed" else 1
        weights[name] = masks_by_hand.masked_weights(learning, w[name], b.reshape(m.shape))
    return weights


def test_without_densities_nothing_is_hardened() -> None:
    job, selected, final = case(MaskLearning())
    assert job.learning is not None
    job = replace(job, learning=replace(job.learning, hardened_at=()))
    assert evaluate_supermask(job, DATA, selected, final)["hardened"] == []


@pytest.mark.parametrize(("density", "count"), [(0.001, 1), (0.25, 2), (0.3, 3), (0.5, 5), (0.999, 10)])
def test_top_k_keeps_the_requested_number(density: float, count: int) -> None:
    """Exactly, with ties too; a quarter of ten is 2.5 and rounds to even."""
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.3, 0.3], [0.3, 5.0, -2.0, 0.3, 0.3]])
    mask = top_k_mask(scores, density)
    assert mask.shape == scores.shape and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert int(mask.sum()) == count
    assert float(scores[mask == 1].min()) >= float(scores[mask == 0].max() if count < 10 else -9)
    assert torch.equal(mask, top_k_mask(scores, density))


def test_an_evaluation_changes_nothing_and_can_be_repeated() -> None:
    job, selected, final = case(METHODS["bernoulli, rescaled"])
    before = {n: m.clone() for n, m in selected.logits.items()}
    once = evaluate_supermask(job, DATA, selected, final)
    assert evaluate_supermask(job, DATA, selected, final) == once
    assert all(torch.equal(before[n], m) for n, m in selected.logits.items())
