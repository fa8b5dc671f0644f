"""Small mask-learning jobs for the tests: one per method."""

from __future__ import annotations

from typing import Any

from helpers import trainings
from helpers.trainings import LAYERS
from supermask.core.learned_masks import MaskLearning, initial_mask_state
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams
from supermask.core.types import TrainingResult
from supermask.engines.job import TrainingJob
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Architecture, initial_state, prunable_tensors

METHODS = {
    "bernoulli": MaskLearning(),
    "bernoulli, rescaled": MaskLearning(rescaled=True),
    "rounded": MaskLearning("rounded", start_logit=0.2),
    "rounded, rescaled": MaskLearning("rounded", start_logit=0.2, rescaled=True),
    "edge_popup": MaskLearning("edge_popup", density=0.4),
    "edge_popup, rescaled": MaskLearning("edge_popup", density=0.4, rescaled=True),
    "signed": MaskLearning("signed", threshold=0.2),
    "signed, rescaled": MaskLearning("signed", threshold=0.2, rescaled=True),
}
FAST = {name: learning for name, learning in METHODS.items() if learning.method in ("bernoulli", "rounded")}

RATES = {"bernoulli": 5.0, "rounded": 2.0, "edge_popup": 0.5, "signed": 0.5}
"""Learning rates of SGD without momentum: a few mask elements of the small network change every few steps."""


def recipes(
    learning: MaskLearning, batch: int = 5, iterations: int = 20, evaluate_every: int = 10
) -> dict[str, Recipe]:
    """One recipe per optimizer."""
    lr, length = RATES[learning.method], (batch, iterations, evaluate_every)
    return {
        "sgd": Recipe("sgd", lr, *length),
        "momentum": Recipe("sgd", lr / 3, *length, momentum=0.9),
        "momentum with weight decay": Recipe("sgd", lr / 3, *length, momentum=0.9, weight_decay=0.01),
        "adam": Recipe("adam", 0.05, *length),
    }


def mask_job(
    learning: MaskLearning, recipe: Recipe, layers: Architecture = LAYERS, seed: int = 0, **others: Any
) -> TrainingJob:
    """A job that learns a mask from the method's own initial logits."""
    start = initial_mask_state(
        learning, prunable_tensors(layers), initial_state(layers, seed), seed, None, None, child_streams(seed)
    )
    snapshots: frozenset[Any] = frozenset({"lowest_validation_loss"})
    return TrainingJob(sequential_network(layers), start, recipe, seed, snapshots, learning=learning, **others)


def mask_bits(outcome: TrainingResult) -> dict[str, Any]:
    """Return `trainings.bits` with every logit."""
    states = {"end": outcome.end, **{str(point): state for point, state in outcome.snapshots.items()}}
    logits = {(at, n): m.numpy().tobytes() for at, state in states.items() for n, m in state.logits.items()}
    assert logits
    return {**trainings.bits(outcome), "logits": logits}
