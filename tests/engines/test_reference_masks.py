"""Mask learning in the reference engine: against NumPy, its gradient, and the tensors that never change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import numpy_masks as masks_by_hand
from helpers import numpy_training as by_hand
from helpers.mask_trainings import METHODS, mask_job, recipes
from helpers.trainings import CLASSES, batches, data, flat

from supermask.core.learned_masks import MaskLearning, sampling_keys
from supermask.core.types import NetworkState, TrainingResult
from supermask.engines.job import TrainingJob
from supermask.engines.reference_masks import masked_weights, train
from supermask.networks.sequential import architecture

DATA = data()
KERNELS = ("fc1.weight", "fc2.weight", "fc3.weight")


def float64(tensors: dict[str, torch.Tensor]) -> by_hand.Parameters:
    return {n: t.numpy().astype(np.float64) for n, t in tensors.items()}


def learned_by_hand(job: TrainingJob) -> tuple[by_hand.Parameters, list[float], by_hand.Parameters]:
    """(logits, losses, weights of the last forward pass), from the oracle."""
    assert job.learning is not None
    parts = [float64(part) for part in (job.start.weights, job.start.unmasked, job.start.logits)]
    return masks_by_hand.train(job.learning, job.recipe, *parts, batches(job, DATA, job.recipe.iterations))


def states(outcome: TrainingResult) -> list[NetworkState]:
    return [outcome.end, *outcome.snapshots.values()]


# --- against NumPy ---
# On random weights. On constants a unit's sum is often exactly 0 in exact arithmetic; the order of summation then
# decides about its ReLU, and two correct implementations need not agree.


@pytest.mark.parametrize("recipe", ["sgd", "momentum", "momentum with weight decay", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_one_step_equals_numpy(method: str, recipe: str) -> None:
    learning = METHODS[method]
    job = mask_job(learning, replace(recipes(learning)[recipe], iterations=1))
    logits, losses, passed = learned_by_hand(job)
    outcome = train([job], [DATA])[0]
    assert outcome.curve.training_loss[1] == pytest.approx(losses[0], rel=1e-6)
    for name in KERNELS:
        np.testing.assert_allclose(outcome.last_sampled_weights[name].numpy(), passed[name], rtol=1e-6)
        before = job.start.logits[name].numpy()
        step, expected = outcome.end.logits[name].numpy() - before, logits[name] - before
        # Adam's first step is the sign of the gradient, which is random where the gradient is only rounding.
        is_clear = np.abs(expected) > (0.0499 if recipe == "adam" else -1)
        rounding = 2.0**-24 * np.linalg.norm(logits[name])
        assert np.linalg.norm((step - expected)[is_clear]) <= 1e-5 * np.linalg.norm(expected) + rounding
        assert np.linalg.norm(expected) > 0


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sgd", "momentum", "momentum with weight decay", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_twenty_steps_equal_numpy(method: str, recipe: str) -> None:
    learning = METHODS[method]
    job = mask_job(learning, replace(recipes(learning)[recipe], evaluate_every=1))
    logits, losses, passed = learned_by_hand(job)
    outcome = train([job], [DATA])[0]
    np.testing.assert_allclose(outcome.curve.training_loss[1:], losses, rtol=1e-4)
    for name in KERNELS:
        np.testing.assert_allclose(outcome.end.logits[name].numpy(), logits[name], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(outcome.last_sampled_weights[name].numpy(), passed[name], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_mask_changes_during_training(method: str) -> None:
    """The tests above therefore compare more than one mask."""
    learning = METHODS[method]
    job = mask_job(learning, recipes(learning)["momentum"])
    short = replace(job, recipe=replace(job.recipe, iterations=1))
    (first, last) = (train([j], [DATA])[0].last_sampled_weights for j in (short, job))
    assert all(not torch.equal(first[name] != 0, last[name] != 0) for name in KERNELS[:2])


def test_the_evaluation_is_the_mean_over_single_samples() -> None:
    """Mean of losses and accuracies, not those of the mean output."""
    job = mask_job(MaskLearning(samples=4), recipes(METHODS["bernoulli"])["sgd"])
    outcome = train([job], [DATA])[0]
    evaluations = []
    for j in range(4):
        b = {
            n: masks_by_hand.mask(MaskLearning(), m.numpy(), masks_by_hand.key_pair(0, "samples", n, j))
            for n, m in outcome.end.logits.items()
        }
        used = {n: b[n] * w.numpy() for n, w in job.start.weights.items()}
        parameters = {**float64(job.start.unmasked), **used}
        evaluations.append(by_hand.loss_and_accuracy(parameters, flat(DATA.test_images, DATA), DATA.test_labels))
    loss, accuracy = np.mean(evaluations, axis=0)
    assert len({a for _, a in evaluations}) > 1
    assert outcome.metrics["final_test_accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert outcome.metrics["final_test_loss"] == pytest.approx(loss, rel=1e-5)


# --- gradient ---


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_a_relaxed_mask(method: str) -> None:
    """Finite differences of the loss: b moved to each side, at zeros too, and the ratio with it."""
    learning = METHODS[method]
    job = mask_job(learning, recipes(learning)["sgd"])
    # With biases: a unit without inputs would otherwise be at the kink of its ReLU.
    biases = {n: torch.linspace(0.1, 0.3, t.numel()) for n, t in job.start.unmasked.items()}
    job = replace(job, start=replace(job.start, unmasked=biases))
    (x, y), others = batches(job, DATA, 1)[0], float64(biases)
    weights, logits = float64(job.start.weights), float64(job.start.logits)
    b = {n: masks_by_hand.mask(learning, m, masks_by_hand.key_pair(0, "training", n, 0)) for n, m in logits.items()}

    def loss(name: str, moved: by_hand.Values) -> float:
        used = {n: masks_by_hand.masked_weights(learning, weights[n], moved if n == name else b[n]) for n in weights}
        return by_hand.loss_and_accuracy({**used, **others}, x, y)[0]

    gradients = autograd(job, x.astype(np.float32), y)
    for name in KERNELS:
        m, numerical = logits[name], np.zeros_like(b[name])
        for place in np.ndindex(m.shape):
            # |b| has no derivative at 0: the mean of both sides, which is 0, is taken.
            for side in (1, -1):
                moved = b[name].copy()
                moved[place] += side * 1e-6
                numerical[place] += side * loss(name, moved) / 2e-6
        if learning.method in ("bernoulli", "rounded"):
            p = masks_by_hand.sigmoid(m)
            numerical *= p * (1 - p)
        assert np.linalg.norm(numerical) > 1e-4
        np.testing.assert_allclose(gradients[name], numerical, atol=2e-5 * np.abs(numerical).max())


def autograd(job: TrainingJob, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """dL/dlogits of the first forward pass, by PyTorch through `masked_weights`."""
    assert job.learning is not None
    logits = {n: m.clone().requires_grad_() for n, m in job.start.logits.items()}
    z = torch.from_numpy(x)
    for i, name in enumerate(KERNELS):
        keys = sampling_keys(job.seed, "training", name, 0, 1)[0]
        used = masked_weights(job.learning, logits[name], job.start.weights[name], keys)
        z = z @ used.T + job.start.unmasked[name.replace("weight", "bias")]
        z = z.relu() if i < 2 else z
    torch.nn.functional.cross_entropy(z, torch.from_numpy(y)).backward()  # type: ignore[no-untyped-call]
    return {n: m.grad.numpy() for n, m in logits.items() if m.grad is not None}


def test_pruned_weights_get_a_gradient() -> None:
    """Straight-through gradient: without it a weight left out of a mask could never come back."""
    job = mask_job(METHODS["rounded"], recipes(METHODS["rounded"])["sgd"])
    logits = {n: m.clone() for n, m in job.start.logits.items()}
    for m in logits.values():
        m.view(-1)[::3] = -0.2
    job = replace(job, start=replace(job.start, logits=logits), recipe=replace(job.recipe, iterations=1))
    outcome = train([job], [DATA])[0]
    for name in KERNELS:
        out = logits[name] < 0
        assert not outcome.last_sampled_weights[name][out].any()
        assert (outcome.end.logits[name] != logits[name])[out].any()


# --- tensors that never change ---


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_weights_and_biases_are_bit_identical_and_a_pass_uses_nothing_else(method: str) -> None:
    learning = METHODS[method]
    for recipe in recipes(learning).values():
        job = mask_job(learning, recipe)
        # Biases other than 0, one of them -0, and a weight that is almost 0.
        others = {n: torch.linspace(-0.3, 0.3, t.numel()) for n, t in job.start.unmasked.items()}
        weights = {n: w.clone() for n, w in job.start.weights.items()}
        others["fc1.bias"][3], weights["fc1.weight"][0, 0] = -0.0, 1e-30
        job = replace(job, start=replace(job.start, weights=weights, unmasked=others))
        outcome = train([job], [DATA])[0]
        for state in states(outcome):
            for name, tensor in {**weights, **others}.items():
                now = {**state.weights, **state.unmasked}[name]
                assert torch.equal(now.view(torch.int32), tensor.view(torch.int32))
        for name, used in outcome.last_sampled_weights.items():
            values = used[used != 0] / weights[name][used != 0]
            ratio = used.numel() / max(int((used != 0).sum()), 1) if learning.rescaled else 1.0
            torch.testing.assert_close(values.abs(), torch.full_like(values, ratio), rtol=0.2 / used.numel(), atol=0)
            assert learning.method == "signed" or bool((values > 0).all())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_repetition_is_bit_identical_and_another_seed_differs(method: str) -> None:
    learning = METHODS[method]
    recipe = recipes(learning)["adam"]
    once, again, other = (train([mask_job(learning, recipe, seed=s)], [DATA])[0].end.logits for s in (0, 0, 1))
    assert all(torch.equal(once[n], again[n]) and not torch.equal(once[n], other[n]) for n in KERNELS)


@pytest.mark.slow
def test_convolutional_networks_learn_masks() -> None:
    """Says nothing about the accuracy."""
    learning = METHODS["bernoulli, rescaled"]
    layers = architecture("conv2", (1, 4, 4), CLASSES)
    job = mask_job(learning, replace(recipes(learning, iterations=2)["sgd"], evaluate_every=2), layers)
    outcome = train([job], [data((1, 4, 4))])[0]
    assert outcome.status == "finished" and len(outcome.curve.training_loss) == 2
    assert set(outcome.end.logits) == {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "fc3.weight"}
    assert all(bool((m != 0).any()) for m in outcome.end.logits.values())
