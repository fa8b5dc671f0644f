"""A layer of six weights, a network of 900 weights, and a random walk in place of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from supermask.core.pruning import ParentRun, PruneStep, prune_and_reset
from supermask.core.rng import Streams, child_streams, random_stream
from supermask.core.types import (
    InitialState,
    Layer,
    LearningCurve,
    NetworkState,
    PrunableTensor,
    Snapshot,
    TrainingResult,
)
from supermask.networks.sequential import architecture, initial_state, prunable_tensors

W_INIT = [4, -5, 3, -2, 1, 6]
W_FINAL = [7, -1, -4, -8, 3, -5]
GRADIENT = [1, -2, 5, 7, -6, 0.5]
"""In eighths, so that sums, products and halves are exact. Weights 1 and 5 shrink; weights 2 and 5 change sign."""
STD = 0.5


def eighths(values: Iterable[float]) -> Tensor:
    """Return a kernel of shape (2, 3) from values in eighths."""
    return torch.tensor([v / 8 for v in values], dtype=torch.float32).reshape(2, 3)


def kept_at(places: Iterable[int]) -> Tensor:
    """Return a mask that keeps the weights with these indices."""
    return torch.tensor([i in set(places) for i in range(6)]).reshape(2, 3)


def six() -> Layer:
    """Return the six-weight layer, all weights alive."""
    w_init = eighths(W_INIT)
    return Layer(STD, w_init, eighths(W_FINAL), kept_at(range(6)), w_init, eighths(GRADIENT))


LAYERS = architecture("fc-30", (1, 4, 5), 10)
MASKABLES = prunable_tensors(LAYERS)
"""`fc1.weight` (30, 20), hidden, and `fc2.weight` (10, 30), output."""

RATES = {"hidden": 0.3, "output": 0.2, "global": 0.25}


def train(start: InitialState, seed: int, snapshots: Iterable[Snapshot] = (), still: int = 0) -> TrainingResult:
    """Every weight that may move takes random steps, and so do biases; the first `still` inputs move nothing.

    The trajectory is a straight line of 100 iterations; the gradient is noise.
    """
    rng = random_stream(seed, "train")
    steps = {n: _noise(rng, w) * start.masks[n] for n, w in start.weights.items()}
    others = {n: _noise(rng, t) for n, t in start.unmasked.items()}
    for step in steps.values():
        step[:, :still] = 0

    def at(iteration: int) -> NetworkState:
        share = (iteration - start.first_iteration) / (100 - start.first_iteration)
        weights = {n: torch.where(steps[n] == 0, w, w + share * steps[n]) for n, w in start.weights.items()}
        return NetworkState(weights, {n: t + share * others[n] for n, t in start.unmasked.items()})

    states: dict[Snapshot, NetworkState] = {p: at(p) for p in snapshots if isinstance(p, int)}
    states["lowest_validation_loss"] = at(70)
    states["gradient"] = NetworkState({n: _noise(rng, w) for n, w in start.weights.items()}, {})
    moments = {n: {"exp_avg": step, "exp_avg_sq": step**2} for n, step in steps.items()}
    return TrainingResult("finished", at(100), states, LearningCurve(), {}, moments)


def _noise(rng: np.random.Generator, like: Tensor) -> Tensor:
    return torch.from_numpy(0.3 * rng.standard_normal(tuple(like.shape), dtype=np.float32))


def parent_of(
    start: InitialState, result: TrainingResult, prunable: dict[str, PrunableTensor] = MASKABLES
) -> ParentRun:
    """Return a finished training as the parent of a pruning step."""
    return ParentRun(start, {**result.snapshots, "end": result.end}, prunable)


def dense(seed: int = 0) -> InitialState:
    """Return the initial state of the dense network."""
    return initial_state(LAYERS, seed)


def level_streams(level: int, seed: int = 0) -> Streams:
    """Return the random streams of one level."""
    return child_streams(seed, "level", level)


def chain(
    steps: list[PruneStep], seed: int = 0, snapshots: Iterable[Snapshot] = ()
) -> list[tuple[InitialState, TrainingResult]]:
    """Return the dense run and one run per step, each pruned from the one before."""
    runs = [(dense(seed), train(dense(seed), seed, snapshots))]
    for level, step in enumerate(steps, start=1):
        start = prune_and_reset(parent_of(*runs[-1]), step, level_streams(level, seed))
        runs.append((start, train(start, seed + level, (p for p in snapshots if p != start.first_iteration))))
    return runs


def step_with(step: PruneStep, **changes: object) -> PruneStep:
    """Return the step with changed fields."""
    return replace(step, **changes)  # type: ignore[arg-type]
