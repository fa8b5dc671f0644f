"""What a learned supermask is worth: its single samples, and the several networks without chance that it stands for.

Measured by the reference engine from logits, weights and seed alone, whatever engine learned them: so every number can
be had again from what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

from torch import Tensor

from supermask.engines.job import Data, Job
from supermask.engines.learning import MaskInTraining
from supermask.engines.reference import tiny_is_zero
from supermask.learned import Learning, keep_scores, probabilities, signs
from supermask.types import State


def supermask_report(job: Job, data: Data, selected: State, final: State, device: str = "cpu") -> dict[str, Any]:
    """Test accuracies (shares in [0, 1]) of the supermask `selected`; of `final` its single samples alone.

    `samples`: the paper's number is their mean. `thresholded`: the weights with p > 0.5. `expected`: weights times p.
    `hardened`: each layer's weights of highest logit, at the densities asked for. `ones`: expected share of ones, of
    each layer and in all. Under dynamic weight rescaling every network has its own ratio, (size / ones).
    Source: paper.md section 6.
    """
    assert job.learning is not None
    with tiny_is_zero():
        stepper = MaskInTraining(job, data, device)
        found: dict[str, Any] = {"final": _samples(stepper, final, data), "selected": _samples(stepper, selected, data)}
        found |= _without_chance(stepper, data, job.learning)
    shares = {n: float(probabilities(job.learning, m).double().mean()) for n, m in selected.logits.items()}
    sizes = {n: m.numel() for n, m in selected.logits.items()}
    in_all = sum(shares[n] * size for n, size in sizes.items()) / sum(sizes.values())
    return found | {"ones": shares, "ones_in_all": in_all}


def top_share(scores: Tensor, density: float) -> Tensor:
    """1 at the round(density * size) highest of a layer's scores, at least one; the first of equals. Shape: theirs."""
    flat = scores.flatten()
    keep = max(1, round(density * flat.numel()))
    chosen = flat.argsort(descending=True, stable=True)[:keep]
    return flat.new_zeros(flat.shape).index_fill_(0, chosen, 1.0).reshape(scores.shape)


def _samples(stepper: MaskInTraining, state: State, data: Data) -> dict[str, Any]:
    """Of each single sample the test accuracy; their mean and spread (n - 1), and the mean loss."""
    stepper.load(state)
    measured = [stepper.measure_network(used, data.test_images, data.test_labels) for used in stepper.samples()]
    accuracies = [accuracy for _, accuracy in measured]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {"accuracies": accuracies, "mean": fmean(accuracies), "std": spread, "loss": fmean(x for x, _ in measured)}


def _without_chance(stepper: MaskInTraining, data: Data, learning: Learning) -> dict[str, Any]:
    def accuracy(mask_of: Callable[[Tensor], Tensor]) -> float:
        used = {}
        for name, parameter in stepper.logits.items():
            logits = parameter.detach()
            mask = mask_of(logits)
            ratio = mask.numel() / max(float(mask.sum()), 1.0) if learning.rescaled else 1.0
            used[name] = stepper.weights[name] * mask * signs(learning, logits) * ratio
        return stepper.measure_network(used, data.test_images, data.test_labels)[1]

    def hardened(density: float) -> float:
        return accuracy(lambda logits: top_share(keep_scores(learning, logits), density))

    return {
        "thresholded": accuracy(lambda logits: (keep_scores(learning, logits) > 0).float()),
        "expected": accuracy(lambda logits: probabilities(learning, logits)),
        "hardened": [[density, hardened(density)] for density in learning.hardened_at],
    }
