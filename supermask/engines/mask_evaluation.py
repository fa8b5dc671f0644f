"""Evaluation of a learned supermask: its single samples, and the deterministic networks that it defines.

The reference engine computes everything from logits, weights and seed alone, whichever engine learned them, so every
number can be recomputed from the stored tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from supermask.core.learned_masks import (
    MaskLearning,
    expected_kept_shares,
    inversion_signs,
    mask_scores,
    probabilities,
)
from supermask.core.types import NetworkState, SplitData
from supermask.engines.job import TrainingJob
from supermask.engines.precision import matmul_precision
from supermask.engines.reference import flush_denormals
from supermask.engines.reference_masks import MaskTrainer


def evaluate_supermask(
    job: TrainingJob, data: SplitData, selected: NetworkState, final: NetworkState, device: str = "cpu"
) -> dict[str, Any]:
    """Return test accuracies (shares in [0, 1]) of the supermask `selected`, and the single samples of `final`.

    `selected`, `final`: accuracy of each single sample; their mean is the accuracy that the paper reports.
    `thresholded`: the weights with p > 0.5. `expected`: weights times p. `hardened`: the weights of highest logit per
    layer, at each density of `job.learning.hardened_at`. `ones`, `ones_in_all`: expected share of ones, per layer and
    over all layers. With dynamic weight rescaling every network has its own ratio, size / ones.
    Source: Zhou et al. 2019, Sec. 5, Table 1.
    """
    assert job.learning is not None
    with flush_denormals(), matmul_precision("float32", torch.device(device)):
        trainer = MaskTrainer(job, data, device)
        report: dict[str, Any] = {
            "final": _evaluate_samples(trainer, final, data),
            "selected": _evaluate_samples(trainer, selected, data),
        }
        report |= _evaluate_deterministic(trainer, data, job.learning)
    ones, ones_in_all = expected_kept_shares(job.learning, selected.logits, job.start.masks)
    return report | {"ones": ones, "ones_in_all": ones_in_all}


def top_k_mask(scores: Tensor, density: float) -> Tensor:
    """Return 1 at the k highest scores of a layer and 0 elsewhere, k = max(1, round(density * size)).

    Of equal scores the first are taken. Shape: that of `scores`.
    """
    flat = scores.flatten()
    keep = max(1, round(density * flat.numel()))
    chosen = flat.argsort(descending=True, stable=True)[:keep]
    return flat.new_zeros(flat.shape).index_fill_(0, chosen, 1.0).reshape(scores.shape)


def _evaluate_samples(trainer: MaskTrainer, state: NetworkState, data: SplitData) -> dict[str, Any]:
    """Test accuracy per single sample, their mean and standard deviation (n - 1), and the mean loss in nats."""
    trainer.load(state)
    evaluations = [trainer.evaluate_network(w, data.test_images, data.test_labels) for w in trainer.samples()]
    accuracies = [accuracy for _, accuracy in evaluations]
    std = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {
        "accuracies": accuracies,
        "mean": fmean(accuracies),
        "std": std,
        "loss": fmean(loss for loss, _ in evaluations),
    }


def _evaluate_deterministic(trainer: MaskTrainer, data: SplitData, learning: MaskLearning) -> dict[str, Any]:
    """Test accuracies of the networks without random draws, from the logits that `trainer` holds."""

    def accuracy(mask_from: Callable[[Tensor], Tensor]) -> float:
        weights = dict(trainer.weights)
        for name, parameter in trainer.logits.items():
            logits = parameter.detach()
            mask = mask_from(logits)
            # For `expected` the mask holds probabilities: its sum is the expected number of ones.
            ratio = mask.numel() / max(float(mask.sum()), 1.0) if learning.rescaled else 1.0
            weights[name] = trainer.weights[name] * mask * inversion_signs(learning, logits) * ratio
        return trainer.evaluate_network(weights, data.test_images, data.test_labels)[1]

    def hardened_accuracy(density: float) -> float:
        # By score and not by logit: `signed` keeps weights whose logit is large in magnitude.
        return accuracy(lambda logits: top_k_mask(mask_scores(learning, logits), density))

    return {
        "thresholded": accuracy(lambda logits: (mask_scores(learning, logits) > 0).float()),
        "expected": accuracy(lambda logits: probabilities(learning, logits)),
        "hardened": [[density, hardened_accuracy(density)] for density in learning.hardened_at],
    }
