"""A layer of six weights, a network of a few hundred, and a trainer of two lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from supermask.networks import architecture, initial_start, maskables
from supermask.rng import Streams, stream, streams
from supermask.ticket import Parent, Step, next_start
from supermask.types import Curve, Layer, Maskable, Outcome, Point, Start, State

W_INIT = [4, -5, 3, -2, 1, 6]
W_FINAL = [7, -1, -4, -8, 3, -5]
GRADIENT = [1, -2, 5, 7, -6, 0.5]
"""In eighths, so that sums, products and halves of them are exact. Weights 1 and 5 shrink; 2 and 5 change sign."""
STD = 0.5


def eighths(values: Iterable[float]) -> Tensor:
    """A kernel of two units with three inputs each."""
    return torch.tensor([v / 8 for v in values], dtype=torch.float32).reshape(2, 3)


def kept_at(places: Iterable[int]) -> Tensor:
    """The mask that keeps these of the six weights."""
    return torch.tensor([i in set(places) for i in range(6)]).reshape(2, 3)


def six() -> Layer:
    """The six-weight layer, all alive."""
    w_init = eighths(W_INIT)
    return Layer(STD, w_init, eighths(W_FINAL), kept_at(range(6)), w_init, eighths(GRADIENT))


LAYERS = architecture("fc-30", (1, 4, 5), 10)
MASKABLES = maskables(LAYERS)
"""`fc1.weight` (30, 20), hidden, and `fc2.weight` (10, 30), output."""

RATES = {"hidden": 0.3, "output": 0.2, "global": 0.25}


def train(start: Start, seed: int, points: Iterable[Point] = (), still: int = 0) -> Outcome:
    """Every weight that may move takes random steps, and so do biases; the first `still` inputs move nothing.

    The trajectory is a straight line of 100 iterations; the gradient is noise.
    """
    rng = stream(seed, "train")
    steps = {n: _noise(rng, w) * start.masks[n] for n, w in start.weights.items()}
    others = {n: _noise(rng, t) for n, t in start.others.items()}
    for step in steps.values():
        step[:, :still] = 0

    def at(iteration: int) -> State:
        share = (iteration - start.first_iteration) / (100 - start.first_iteration)
        weights = {n: torch.where(steps[n] == 0, w, w + share * steps[n]) for n, w in start.weights.items()}
        return State(weights, {n: t + share * others[n] for n, t in start.others.items()})

    states: dict[Point, State] = {p: at(p) for p in points if isinstance(p, int)}
    states["lowest_validation_loss"] = at(70)
    states["gradient"] = State({n: _noise(rng, w) for n, w in start.weights.items()}, {})
    moments = {n: {"exp_avg": step, "exp_avg_sq": step**2} for n, step in steps.items()}
    return Outcome("finished", at(100), states, Curve(), {}, moments)


def _noise(rng: np.random.Generator, like: Tensor) -> Tensor:
    return torch.from_numpy(0.3 * rng.standard_normal(tuple(like.shape), dtype=np.float32))


def parent_of(start: Start, outcome: Outcome, found: dict[str, Maskable] = MASKABLES) -> Parent:
    """A finished training, as the next round sees it."""
    return Parent(start, {**outcome.points, "end": outcome.end}, found)


def dense(seed: int = 0) -> Start:
    """The dense network of a seed."""
    return initial_start(LAYERS, seed)


def level_streams(level: int, seed: int = 0) -> Streams:
    """The streams of one level."""
    return streams(seed, "level", level)


def chain(steps: list[Step], seed: int = 0, points: Iterable[Point] = ()) -> list[tuple[Start, Outcome]]:
    """The dense run, and one run a step, each from the one before."""
    runs = [(dense(seed), train(dense(seed), seed, points))]
    for level, step in enumerate(steps, start=1):
        start = next_start(parent_of(*runs[-1]), step, level_streams(level, seed))
        runs.append((start, train(start, seed + level, (p for p in points if p != start.first_iteration))))
    return runs


def step_with(step: Step, **changes: object) -> Step:
    """A step with some fields changed."""
    return replace(step, **changes)  # type: ignore[arg-type]
