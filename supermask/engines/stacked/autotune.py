"""The size of a stack where none is given: as many replicas as make it faster, within the GPU's memory."""

from __future__ import annotations

import hashlib
import json
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
from supermask.engines.precision import matmul_precision
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import MatmulPrecision
from supermask.engines.stacked.bias_relu import make_bias_relu
from supermask.engines.stacked.convolutions import NUM_SEEDS, choose_conv_algorithms
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS
from supermask.engines.stacked.device import cached_measurement, empty_cache, is_out_of_memory
from supermask.engines.stacked.masked_pass import make_masked_pass
from supermask.engines.stacked.optimizer import make_optimizer_step
from supermask.engines.stacked.stack import Stack
from supermask.networks.network import Network
from supermask.networks.sequential import Conv, Dense

CANDIDATES = {"cpu": (1, 4, 16), "cuda": (1, 8, 32, 128, 512)}
"""Sizes that are measured, in this order."""
MIN_SPEEDUP = 1.05
"""Gain in throughput below which a larger stack is not worth its memory."""
MAX_STEP_SECONDS = 0.1
"""Seconds per step beyond which no larger stack is tried: the fixed cost that replicas share is small against it."""
MAX_STEPS = 20
"""Steps that are timed at most."""
NUMBERS_PER_WEIGHT = 10
"""float32 numbers per weight: itself, gradient, two moments, weights of lowest validation loss, mask, temporaries."""
MULTIPLICATIONS_PER_VALUE = 32
"""Multiplications of a module's forward pass per number kept for its backward pass: a guess from above. Counted: 26 in
ResNet-20 of width 4 on 8x8 pixels, 107 at width 16 on 32x32 pixels, 413 in VGG-11."""
MEMORY_FRACTION = 0.4
"""Part of a GPU's memory for one stack: two stacks share it, and measurements need some."""


def choose_stack_size(
    network: Network,
    recipe: Recipe,
    device: str,
    precision: MatmulPrecision = "float32",
    learning: MaskLearning | None = None,
    threads: int = 1,
) -> int:
    """The smallest stack with nearly the highest throughput, of `CANDIDATES`; measured once per machine, then cached.

    On a GPU at most `max_replicas` of its free memory. `threads`: of a worker on a CPU.
    Source: docs/performance.md.
    """
    torch_device = torch.device(device)
    candidates: Sequence[int] = CANDIDATES[torch_device.type]
    free = total = 0
    if torch_device.type == "cuda":
        free, total = torch.cuda.mem_get_info(torch_device)
        limit = max_replicas(network, recipe.batch_size, total)
        # By total memory: what is cached must not depend on other programs that use the GPU at the moment.
        candidates = sorted({min(candidate, limit) for candidate in candidates})
    size = candidates[-1]
    if recipe.iterations:
        # Settings that do not change the time of a step, so that recipes that differ in them share a measurement.
        measured = replace(
            recipe, lr=min(recipe.lr, 1e-3), lr_milestones=(), warmup_iterations=0, evaluate_every=MAX_STEPS
        )
        learning_settings = None if learning is None else (learning.method, learning.rescaled)
        optimizer = [recipe.optimizer, bool(recipe.momentum), bool(recipe.weight_decay), recipe.batch_size]
        settings = [_describe(network), optimizer, precision, learning_settings, list(candidates)]

        def measure() -> int:
            try:
                return smallest_near_best(
                    candidates,
                    lambda n: measure_stack_throughput(n, network, measured, torch_device, precision, learning),
                )
            finally:
                empty_cache(torch_device)

        with _num_threads(threads):
            size = cached_measurement("size", settings, torch_device, measure)
    return size if torch_device.type == "cpu" else min(size, max_replicas(network, recipe.batch_size, free))


def _describe(network: Network) -> list[str]:
    """Return the facts that the time of a step depends on, as plain text."""
    if network.layers is not None:
        return [repr(layer) for layer in network.layers]
    facts = json.dumps(network.facts.to_data() if network.facts else None)
    return [network.name, hashlib.sha256(facts.encode()).hexdigest()]


def max_replicas(network: Network, batch_size: int, free_bytes: int) -> int:
    """Replicas that fit into `MEMORY_FRACTION` of this much GPU memory, at least 1."""
    layers = network.layers
    if layers is None:
        values = network.multiplications // MULTIPLICATIONS_PER_VALUE
    else:
        # The "columns" algorithm copies each input of a 3x3 convolution nine times; outputs, ReLU and gradients: four.
        dense = sum(x.outputs for x in layers if isinstance(x, Dense))
        pixels = sum((9 * x.inputs + 4 * x.outputs) * x.side[0] * x.side[1] for x in layers if isinstance(x, Conv))
        values = 4 * dense + pixels
    numbers = NUMBERS_PER_WEIGHT * network.size + batch_size * values
    return max(1, min(CANDIDATES["cuda"][-1], int(MEMORY_FRACTION * free_bytes / (4 * numbers))))


def smallest_near_best(candidates: Sequence[int], measure_throughput: Callable[[int], float | None]) -> int:
    """The smallest candidate whose throughput (replica steps per second) is within 5% of the best.

    Stops at a candidate that is not 5% better than all before it, or whose step takes more than `MAX_STEP_SECONDS`. A
    throughput of None means that the candidate does not fit into memory.
    """
    throughputs: dict[int, float] = {}
    for candidate in candidates:
        measured = measure_throughput(candidate)
        if measured is None:
            break
        best_before = max(throughputs.values(), default=0.0)
        throughputs[candidate] = measured
        if measured < MIN_SPEEDUP * best_before or candidate > MAX_STEP_SECONDS * measured:
            break
    best = max(throughputs.values(), default=0.0)
    return next((candidate for candidate, value in throughputs.items() if value * MIN_SPEEDUP >= best), candidates[0])


def measure_stack_throughput(
    replicas: int,
    network: Network,
    recipe: Recipe,
    device: torch.device,
    precision: MatmulPrecision,
    learning: MaskLearning | None,
) -> float | None:
    """Replica steps per second of a stack of synthetic, half pruned replicas; None if it does not fit into memory."""
    try:
        algorithms = choose_conv_algorithms(network.layers or (), recipe.batch_size, replicas, str(device), precision)
        make_optimizer_step(recipe, device)
        make_bias_relu(device)
        if learning is not None:
            make_masked_pass(learning, device)
        with flush_denormals(), matmul_precision(precision, device):
            stack = _synthetic_stack(replicas, network, recipe, device, precision, learning, algorithms)
            return replicas / _time_step(stack, replicas)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _time_step(stack: Stack, replicas: int) -> float:
    """Mean seconds per step: of as many steps as fit into half a second on a CPU, of `MAX_STEPS` on a GPU."""
    is_gpu = stack.device.type == "cuda"
    # On a GPU the first steps are eager and the next one is recorded; only replays are timed.
    warmup = WARMUP_STEPS + 2 if is_gpu else 1
    start_time = time.perf_counter()
    stack.train([0] * replicas, warmup)
    steps = MAX_STEPS if is_gpu else max(1, min(MAX_STEPS, int(0.5 / (time.perf_counter() - start_time))))
    start_time = time.perf_counter()
    stack.train([warmup] * replicas, steps)
    return (time.perf_counter() - start_time) / steps


def _synthetic_stack(
    replicas: int,
    network: Network,
    recipe: Recipe,
    device: torch.device,
    precision: MatmulPrecision,
    learning: MaskLearning | None,
    algorithms: dict[str, str],
) -> Stack:
    rng = random_stream("size")
    images = rng.integers(0, 256, (max(256, recipe.batch_size), *_image_shape(network))).astype(np.uint8)
    assert network.facts is not None
    labels: Array = rng.integers(0, network.facts.classes, len(images))
    data = SplitData(images, labels, np.arange(len(images)), images, labels, images, labels, 255)
    # One initial state for all replicas: 512 of a large network would not fit into the host's memory.
    dense = network.initial_state(0)
    start = (
        _half_pruned_state(dense)
        if learning is None
        else initial_mask_state(learning, network.tensors, dense, 0, None, None, child_streams(0))
    )
    seeds = sorted(i % NUM_SEEDS for i in range(replicas))
    jobs = [TrainingJob(network, start, recipe, seed, learning=learning) for seed in seeds]
    return Stack(jobs, [data] * replicas, device, precision, algorithms)


def _image_shape(network: Network) -> tuple[int, int, int]:
    """(C, H, W) of the images; of fully connected networks any shape with as many pixels."""
    if network.layers is None:
        assert network.facts is not None
        return network.facts.image_shape
    first = network.layers[0]
    if isinstance(first, Conv):
        return (first.inputs, *first.side)
    return (1, 1, network.tensors[f"{first.name}.weight"].shape[1])


def _half_pruned_state(dense: InitialState) -> InitialState:
    rng = random_stream("size", "masks")
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < 0.5) for n, w in dense.weights.items()}
    return replace(dense, masks=masks, weights={n: w * masks[n] for n, w in dense.weights.items()})


@contextmanager
def _num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
