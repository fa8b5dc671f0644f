"""How many replicas a stack has, where nobody says it: as many as make it faster, if there is memory for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from supermask.core.learned_masks import MaskLearning, initial_mask_state
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams, random_stream
from supermask.core.types import InitialState, SplitData
from supermask.engines.job import Array, TrainingJob
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import Precision
from supermask.engines.stacked.convolutions import fastest_algorithms
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS
from supermask.engines.stacked.device import cached_measurement, empty_cache, is_out_of_memory, matmul_precision
from supermask.engines.stacked.stack import Stack
from supermask.networks.sequential import Architecture, Conv, Dense, initial_state, prunable_tensors

CANDIDATES = {"cpu": (1, 4, 16), "cuda": (1, 8, 32, 128, 512)}
"""Sizes that are tried, in this order."""
MIN_SPEEDUP = 1.05
"""So many times as many networks a second, or a larger stack is not worth its memory."""
MAX_STEP_SECONDS = 0.1
"""Seconds of a step, from which on none is larger: what replicas save together is small against that."""
STEPS = 20
"""Measured at most."""
BYTES_FACTOR = 10
"""Of every weight: itself, its gradient, two moments, the lowest validation loss's, its mask, and what a step makes."""
MEMORY_FRACTION = 0.4
"""Of a GPU's free memory: two stacks, and room for what is measured."""
SEEDS = 5
"""Of the synthetic replicas; those of one seed share their batches, as a study's do."""


def choose_stack_size(
    layers: Architecture,
    recipe: Recipe,
    device: str,
    precision: Precision = "float32",
    learning: MaskLearning | None = None,
    threads: int = 1,
) -> int:
    """The smallest stack that trains nearly the most networks a second: `best` of `CANDIDATES`, measured once and kept.

    On a GPU at most as many as fit into two fifths of its free memory. `threads`: of a worker on a CPU.
    Source: docs/performance.md.
    """
    place = torch.device(device)
    candidates: Sequence[int] = CANDIDATES[place.type]
    free = total = 0
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        most = max_replicas(layers, recipe.batch_size, total)
        # What is kept does not depend on who else is there at the moment.
        candidates = sorted({min(candidate, most) for candidate in candidates})
    found = candidates[-1]
    if recipe.iterations:
        # What makes no difference to the time, as it suits measuring.
        trained = replace(recipe, lr=min(recipe.lr, 1e-3), lr_milestones=(), warmup_iterations=0, evaluate_every=STEPS)
        how = None if learning is None else (learning.method, learning.rescaled)
        optimizer = [recipe.optimizer, bool(recipe.momentum), bool(recipe.weight_decay), recipe.batch_size]
        of = [[repr(layer) for layer in layers], optimizer, precision, how, list(candidates)]

        def measure() -> int:
            try:
                return smallest_near_best(
                    candidates, lambda n: throughput(n, layers, trained, place, precision, learning)
                )
            finally:
                empty_cache(place)

        with _threads(threads):
            found = cached_measurement("size", of, place, measure)
    return found if place.type == "cpu" else min(found, max_replicas(layers, recipe.batch_size, free))


def max_replicas(layers: Architecture, batch: int, free: int) -> int:
    """How many fit, of a GPU with so many bytes free."""
    weights = sum(m.size for m in prunable_tensors(layers).values())
    dense = sum(x.outputs for x in layers if isinstance(x, Dense))
    # A convolution's inputs may be laid out as columns, nine times.
    pixels = sum((9 * x.inputs + 4 * x.outputs) * x.side[0] * x.side[1] for x in layers if isinstance(x, Conv))
    numbers = BYTES_FACTOR * weights + batch * (4 * dense + pixels)
    return max(1, min(CANDIDATES["cuda"][-1], int(MEMORY_FRACTION * free / (4 * numbers))))


def smallest_near_best(candidates: Sequence[int], rate: Callable[[int], float | None]) -> int:
    """The smallest whose rate, in replicas' steps a second, is within 5% of the best.

    Looking ends with one that is not 5% better than those before, or whose step is `LONG`. Rate None: there is no
    memory for so many.
    """
    rates: dict[int, float] = {}
    for candidate in candidates:
        found = rate(candidate)
        if found is None:
            break
        before = max(rates.values(), default=0.0)
        rates[candidate] = found
        if found < MIN_SPEEDUP * before or candidate > MAX_STEP_SECONDS * found:
            break
    top = max(rates.values(), default=0.0)
    return next((candidate for candidate, found in rates.items() if found * MIN_SPEEDUP >= top), candidates[0])


def throughput(
    replicas: int,
    layers: Architecture,
    recipe: Recipe,
    place: torch.device,
    precision: Precision,
    learning: MaskLearning | None,
) -> float | None:
    """Replicas that make a step in a second, of synthetic ones, half pruned; None if there is no memory for them."""
    try:
        ways = fastest_algorithms(layers, recipe.batch_size, replicas, str(place), precision)
        with flush_denormals(), matmul_precision(precision, place):
            stack = _synthetic(replicas, layers, recipe, place, precision, learning, ways)
            return replicas / _step_seconds(stack, replicas)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _step_seconds(stack: Stack, replicas: int) -> float:
    """Of a step, the mean of as many as fit into half a second after the first ones; on a GPU of `STEPS`."""
    gpu = stack.device.type == "cuda"
    warm = WARMUP_STEPS + 2 if gpu else 1
    began = time.perf_counter()
    stack.train([0] * replicas, warm)
    steps = STEPS if gpu else max(1, min(STEPS, int(0.5 / (time.perf_counter() - began))))
    began = time.perf_counter()
    stack.train([warm] * replicas, steps)
    return (time.perf_counter() - began) / steps


def _synthetic(
    replicas: int,
    layers: Architecture,
    recipe: Recipe,
    place: torch.device,
    precision: Precision,
    learning: MaskLearning | None,
    ways: dict[str, str],
) -> Stack:
    first, rng = layers[0], random_stream("size")
    shape = (
        (first.inputs, *first.side)
        if isinstance(first, Conv)
        else (1, 1, prunable_tensors(layers)[f"{first.name}.weight"].shape[1])
    )
    classes = next(x.outputs for x in layers if isinstance(x, Dense) and x.last)
    images = rng.integers(0, 256, (max(256, recipe.batch_size), *shape)).astype(np.uint8)
    labels: Array = rng.integers(0, classes, len(images))
    data = SplitData(images, labels, np.arange(len(images)), images, labels, images, labels, 255)
    # One start for all: of a large network so many are more than a machine's memory holds.
    start = (
        _half_pruned(layers)
        if learning is None
        else initial_mask_state(
            learning, prunable_tensors(layers), initial_state(layers, 0), 0, None, None, child_streams(0)
        )
    )
    seeds = sorted(i % SEEDS for i in range(replicas))
    jobs = [TrainingJob(layers, start, recipe, seed, learning=learning) for seed in seeds]
    return Stack(jobs, [data] * replicas, place, precision, ways)


def _half_pruned(layers: Architecture) -> InitialState:
    dense, rng = initial_state(layers, 0), random_stream("size", "masks")
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in dense.weights.items()}
    return replace(dense, masks=masks, weights={n: w * masks[n] for n, w in dense.weights.items()})


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
