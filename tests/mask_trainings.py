"""Small trainings of masks for the tests: every method, and jobs that learn it."""

from __future__ import annotations

from typing import Any

import trainings
from trainings import LAYERS

from supermask.engines.job import Job
from supermask.learned import Learning, learning_start
from supermask.networks import Architecture
from supermask.recipe import Recipe
from supermask.rng import streams
from supermask.types import Outcome

METHODS = {
    "bernoulli": Learning(),
    "bernoulli, rescaled": Learning(rescaled=True),
    "rounded": Learning("rounded", start_logit=0.2),
    "rounded, rescaled": Learning("rounded", start_logit=0.2, rescaled=True),
    "edge_popup": Learning("edge_popup", density=0.4),
    "edge_popup, rescaled": Learning("edge_popup", density=0.4, rescaled=True),
    "signed": Learning("signed", threshold=0.2),
    "signed, rescaled": Learning("signed", threshold=0.2, rescaled=True),
}
FAST = {name: learning for name, learning in METHODS.items() if learning.method in ("bernoulli", "rounded")}

RATES = {"bernoulli": 5.0, "rounded": 2.0, "edge_popup": 0.5, "signed": 0.5}
"""Of SGD without momentum: a few of the small network's weights change sides every few steps."""


def recipes(learning: Learning, batch: int = 5, iterations: int = 20, evaluate_every: int = 10) -> dict[str, Recipe]:
    """One of each kind."""
    lr, length = RATES[learning.method], (batch, iterations, evaluate_every)
    return {
        "sgd": Recipe("sgd", lr, *length),
        "momentum": Recipe("sgd", lr / 3, *length, momentum=0.9),
        "momentum with weight decay": Recipe("sgd", lr / 3, *length, momentum=0.9, weight_decay=0.01),
        "adam": Recipe("adam", 0.05, *length),
    }


def mask_job(learning: Learning, recipe: Recipe, layers: Architecture = LAYERS, seed: int = 0, **others: Any) -> Job:
    """A job that learns a mask from the method's own start."""
    start = learning_start(learning, layers, seed, None, None, streams(seed))
    points: frozenset[Any] = frozenset({"lowest_validation_loss"})
    return Job(layers, start, recipe, seed, points, learning=learning, **others)


def mask_bits(outcome: Outcome) -> dict[str, Any]:
    """`trainings.bits` with every logit."""
    states = {"end": outcome.end, **{str(point): state for point, state in outcome.points.items()}}
    logits = {(at, n): m.numpy().tobytes() for at, state in states.items() for n, m in state.logits.items()}
    assert logits
    return {**trainings.bits(outcome), "logits": logits}
