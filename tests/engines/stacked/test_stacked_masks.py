"""Learned masks in the stacked engine against the reference engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.killed_training import Killed, Memory
from helpers.mask_trainings import FAST, METHODS, mask_bits, mask_job, recipes
from helpers.sparse_jobs import CLASSES, LENGTH, SHAPE, images
from helpers.sparse_tolerances import TOO_SHARP
from helpers.stacked_jobs import count_stacks
from helpers.trainings import data

from supermask.core.learned_masks import (
    MaskLearning,
    batched_uniform_samples,
    keys_as_int32,
    sampling_keys,
    uniform_samples,
)
from supermask.core.recipe import Recipe
from supermask.core.types import TrainingResult
from supermask.engines import reference_masks, stacked
from supermask.engines.job import TrainingJob
from supermask.engines.stacked.forward import masked_weights
from supermask.networks.sequential import architecture


def ours(*jobs: TrainingJob) -> list[TrainingResult]:
    return stacked.train(jobs, [images()] * len(jobs))


def test_stacked_uniform_samples_equal_those_of_each_replica() -> None:
    keys = np.stack([sampling_keys(seed, "training", "fc1.weight", 7, 8)[0] for seed in range(5)])
    like = torch.zeros(5, 13, 11)
    found = batched_uniform_samples(keys_as_int32(keys, like), like)
    assert all(torch.equal(found[r], uniform_samples(keys[r], like[r])) for r in range(5))
    assert len({float(some.sum()) for some in found}) == 5


MASK_RECIPES = {
    "sgd": Recipe("sgd", 5.0, 60, *LENGTH),
    "momentum with weight decay": Recipe("sgd", 1.0, 60, *LENGTH, momentum=0.9, weight_decay=1e-4),
    "adam": Recipe("adam", 0.02, 60, *LENGTH),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "recipe"),
    [(m, r) for m in FAST for r in MASK_RECIPES if (FAST[m].method, r) != TOO_SHARP],
)
def test_learned_masks_agree_with_the_reference(method: str, recipe: str) -> None:
    how, layers = replace(FAST[method], samples=3), architecture("fc-24", SHAPE, CLASSES)
    scaled = replace(MASK_RECIPES[recipe], lr=MASK_RECIPES[recipe].lr / (2 if method.startswith("rounded") else 1))
    jobs = [mask_job(how, scaled, layers, seed) for seed in (0, 1, 0)]
    expected = {job.seed: reference_masks.train([job], [images()])[0] for job in jobs[:2]}
    for job, found in zip(jobs, ours(*jobs), strict=True):
        wanted = expected[job.seed]
        np.testing.assert_allclose(found.curve.training_loss, wanted.curve.training_loss, atol=1e-3)
        np.testing.assert_allclose(found.curve.validation_loss, wanted.curve.validation_loss, atol=1e-3)
        for name, start in job.start.weights.items():
            assert torch.equal(found.end.weights[name], start)
            same = ((found.last_sampled_weights[name] != 0) == (wanted.last_sampled_weights[name] != 0)).float().mean()
            assert same > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_masked_weights_agree_with_the_reference(method: str) -> None:
    """Bit-identical masked weights; gradients of the logits up to the order of sums."""
    how, shape = METHODS[method], (4, 5, 7)
    rng = torch.Generator().manual_seed(0)
    logits, weights, upstream = (torch.randn(shape, generator=rng) for _ in range(3))
    keys = np.stack([sampling_keys(seed, "training", "fc1.weight", 3, 4)[0] for seed in range(4)])
    stack = logits.clone().requires_grad_()
    found = masked_weights(how, stack, weights, torch.from_numpy(keys.view(np.int32)))
    (gradient,) = torch.autograd.grad(found, stack, upstream)
    for r in range(4):
        one = logits[r].clone().requires_grad_()
        wanted = reference_masks.masked_weights(how, one, weights[r], keys[r])
        assert torch.equal(found[r], wanted)
        (expected,) = torch.autograd.grad(wanted, one, upstream[r])
        torch.testing.assert_close(gradient[r], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name not in FAST])
@pytest.mark.parametrize("recipe", ["sgd", "momentum with weight decay", "adam"])
def test_deterministic_masks_agree_with_the_reference(method: str, recipe: str) -> None:
    how = replace(METHODS[method], samples=1)
    jobs = [mask_job(how, recipes(how)[recipe], architecture("fc-24", SHAPE, CLASSES), seed) for seed in (0, 1, 0)]
    expected = {job.seed: reference_masks.train([job], [images()])[0] for job in jobs[:2]}
    for job, found in zip(jobs, ours(*jobs), strict=True):
        wanted = expected[job.seed]
        np.testing.assert_allclose(found.curve.training_loss, wanted.curve.training_loss, atol=1e-3)
        np.testing.assert_allclose(found.curve.validation_loss, wanted.curve.validation_loss, atol=1e-3)
        for name, last in wanted.last_sampled_weights.items():
            assert ((found.last_sampled_weights[name].sign() == last.sign()).float().mean()) > 0.99
            assert torch.equal(found.end.weights[name], job.start.weights[name])


@pytest.mark.slow
def test_a_resumed_learned_mask_is_bit_identical() -> None:
    recipe = Recipe("adam", 0.05, 20, 50, 10)
    job = mask_job(FAST["bernoulli, rescaled"], recipe, architecture("fc-24", SHAPE, CLASSES))
    whole = ours(job)[0]
    killed = replace(job, checkpointer=Memory(2))
    with pytest.raises(Killed):
        ours(killed)
    again = ours(killed)[0]
    assert mask_bits(again) == mask_bits(whole)
    assert all(torch.equal(again.last_sampled_weights[n], w) for n, w in whole.last_sampled_weights.items())


@pytest.mark.slow
def test_masks_with_other_initial_values_are_learned_in_one_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, layers = count_stacks(monkeypatch), architecture("fc-24", SHAPE, CLASSES)
    settings = [
        MaskLearning(samples=3),
        MaskLearning(samples=3, weights="signed_constant", multiplier=1.5),
        MaskLearning(samples=3, weights="constant", start_logit=0.5, hardened_at=(0.5,)),
    ]
    recipes = [Recipe("sgd", rate, 60, 40, 20, momentum=0.9) for rate in (5.0, 2.0, 5.0)]
    jobs = [mask_job(learning, recipe, layers) for learning, recipe in zip(settings, recipes, strict=True)]
    together = ours(*jobs)
    assert sizes == [3]
    for job, found in zip(jobs, together, strict=True):
        wanted = reference_masks.train([job], [images()])[0]
        np.testing.assert_allclose(found.curve.training_loss, wanted.curve.training_loss, atol=1e-3)
    sizes.clear()
    different = [MaskLearning(rescaled=True), MaskLearning(samples=4), MaskLearning("edge_popup")]
    ours(*(mask_job(learning, replace(recipes[0], iterations=1), layers) for learning in different))
    assert sizes == [1, 1, 1]


@pytest.mark.slow
def test_a_learned_mask_of_convolutions() -> None:
    of = data((1, 8, 8), 10, train=60)
    layers = architecture("conv2", (1, 8, 8), 10)
    job = mask_job(replace(FAST["bernoulli"], samples=2), Recipe("sgd", 2.0, 10, 6, 3), layers)
    found, wanted = stacked.train([job], [of])[0], reference_masks.train([job], [of])[0]
    np.testing.assert_allclose(found.curve.training_loss, wanted.curve.training_loss, rtol=1e-4)
    np.testing.assert_allclose(found.curve.validation_loss, wanted.curve.validation_loss, rtol=1e-4)
