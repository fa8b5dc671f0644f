"""What a learned supermask is worth: its single samples, and the several networks without chance that it stands for.

Measured by the reference engine from logits, weights and seed alone, whatever engine learned them: so every number can
be had again from what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from supermask.core.learned_masks import MaskLearning, inversion_signs, mask_scores, probabilities
from supermask.core.types import NetworkState, SplitData
from supermask.engines.job import TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.reference_masks import MaskTrainer


def evaluate_supermask(
    job: TrainingJob, data: SplitData, selected: NetworkState, final: NetworkState, device: str = "cpu"
) -> dict[str, Any]:
    """Test accuracies (shares in [0, 1]) of the supermask `selected`; of `final` its single samples alone.

    `samples`: the paper's number is their mean. `thresholded`: the weights with p > 0.5. `expected`: weights times p.
    `hardened`: each layer's weights of highest logit, at the densities asked for. `ones`: expected share of ones, of
    each layer and in all. Under dynamic weight rescaling every network has its own ratio, (size / ones).
    Source: paper.md section 6.
    """
    assert job.learning is not None
    with flush_denormals():
        stepper = MaskTrainer(job, data, device)
        found: dict[str, Any] = {
            "final": _evaluate_samples(stepper, final, data),
            "selected": _evaluate_samples(stepper, selected, data),
        }
        found |= _evaluate_deterministic(stepper, data, job.learning)
    shares = {n: float(probabilities(job.learning, m).double().mean()) for n, m in selected.logits.items()}
    sizes = {n: m.numel() for n, m in selected.logits.items()}
    in_all = sum(shares[n] * size for n, size in sizes.items()) / sum(sizes.values())
    return found | {"ones": shares, "ones_in_all": in_all}


def top_k_mask(scores: Tensor, density: float) -> Tensor:
    """1 at the round(density * size) highest of a layer's scores, at least one; the first of equals. Shape: theirs."""
    flat = scores.flatten()
    keep = max(1, round(density * flat.numel()))
    chosen = flat.argsort(descending=True, stable=True)[:keep]
    return flat.new_zeros(flat.shape).index_fill_(0, chosen, 1.0).reshape(scores.shape)


def _evaluate_samples(stepper: MaskTrainer, state: NetworkState, data: SplitData) -> dict[str, Any]:
    """Of each single sample the test accuracy; their mean and spread (n - 1), and the mean loss."""
    stepper.load(state)
    measured = [stepper.evaluate_network(used, data.test_images, data.test_labels) for used in stepper.samples()]
    accuracies = [accuracy for _, accuracy in measured]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {"accuracies": accuracies, "mean": fmean(accuracies), "std": spread, "loss": fmean(x for x, _ in measured)}


def _evaluate_deterministic(stepper: MaskTrainer, data: SplitData, learning: MaskLearning) -> dict[str, Any]:
    def accuracy(mask_of: Callable[[Tensor], Tensor]) -> float:
        used = {}
        for name, parameter in stepper.logits.items():
            logits = parameter.detach()
            mask = mask_of(logits)
            ratio = mask.numel() / max(float(mask.sum()), 1.0) if learning.rescaled else 1.0
            used[name] = stepper.weights[name] * mask * inversion_signs(learning, logits) * ratio
        return stepper.evaluate_network(used, data.test_images, data.test_labels)[1]

    def hardened(density: float) -> float:
        return accuracy(lambda logits: top_k_mask(mask_scores(learning, logits), density))

    return {
        "thresholded": accuracy(lambda logits: (mask_scores(learning, logits) > 0).float()),
        "expected": accuracy(lambda logits: probabilities(learning, logits)),
        "hardened": [[density, hardened(density)] for density in learning.hardened_at],
    }
