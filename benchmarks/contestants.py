"""Training loops to time in alternation: iterators that yield the milliseconds per step of their next block of steps.

The first blocks are warm-up (compilation, caches, optimizer moments that become denormal); the caller discards them. An
engine pauses at its evaluations (of one image), so only steps are timed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from supermask.core.masks import density
from supermask.core.recipe import Recipe
from supermask.core.types import InitialState, SplitData, TrainingResult
from supermask.engines.job import Array, BatchSampler, NullCheckpointer, TrainingJob
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Architecture, Conv, Dense, Pool, build_module

Train = Callable[[Sequence[TrainingJob], Sequence[SplitData]], list[TrainingResult]]


@dataclass(frozen=True)
class Case:
    """Network, initial state and data that all loops train with Adam. Keep evaluation sets tiny."""

    layers: Architecture
    start: InitialState
    data: SplitData
    batch: int = 60
    lr: float = 1.2e-3

    @property
    def density(self) -> float:
        return density(self.start.masks)

    @property
    def block(self) -> int:
        """Steps per timed block of an engine whose cost falls with the density."""
        return min(1600, round(100 / self.density))

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Masks in float32, without those that keep every weight: a dense network needs no product with its mask."""
        return {n: m.float() for n, m in self.start.masks.items() if not bool(m.all())}


def engine(train: Train, case: Case, block: int, blocks: int) -> Iterator[float]:
    """Yield milliseconds per step of one call of an engine. It runs in a thread that waits between blocks."""
    turn, done = threading.Semaphore(0), threading.Semaphore(0)
    errors: list[BaseException] = []

    class PauseAtEvaluation(NullCheckpointer):
        def should_save(self) -> bool:
            done.release()
            turn.acquire()
            if errors:
                raise errors[0]
            return False

    def run_training() -> None:
        turn.acquire()
        try:
            train(
                [
                    TrainingJob(
                        sequential_network(case.layers), case.start, recipe, seed=0, checkpointer=PauseAtEvaluation()
                    )
                ],
                [case.data],
            )
        except BaseException as error:
            errors.append(error)
        done.release()

    recipe = Recipe("adam", case.lr, case.batch, block * blocks, evaluate_every=block)
    thread = threading.Thread(target=run_training, daemon=True)
    thread.start()
    try:
        for _ in range(blocks):
            start_time = time.perf_counter()
            turn.release()
            done.acquire()
            if errors:
                raise errors[0]
            yield (time.perf_counter() - start_time) / block * 1e3
    finally:
        errors.append(GeneratorExit())
        turn.release()
        thread.join()


def eager(case: Case, block: int, blocks: int) -> Iterator[float]:
    """Yield milliseconds per step of a hand-written PyTorch loop: float32 images in memory, masked gradients."""
    module = build_module(case.layers)
    module.load_state_dict({**case.start.weights, **case.start.unmasked})
    floats = case.masks
    masks = [(p, floats[n]) for n, p in module.named_parameters() if n in floats]
    optimizer = torch.optim.Adam(module.parameters(), lr=case.lr)
    images, labels = torch.from_numpy(_pixels(case.data)), torch.from_numpy(case.data.train_labels)
    order = BatchSampler(0, case.data.train_indices, case.batch)
    for first in range(0, block * blocks, block):
        start_time = time.perf_counter()
        for i in range(first, first + block):
            batch = torch.from_numpy(order.batch(i))
            loss = cross_entropy(module(images.index_select(0, batch)), labels.index_select(0, batch))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for parameter, mask in masks:
                if parameter.grad is not None:
                    parameter.grad.mul_(mask)
            optimizer.step()
        yield (time.perf_counter() - start_time) / block * 1e3


def jax_scan(case: Case, block: int, blocks: int) -> Iterator[float]:
    """Yield milliseconds per step in JAX: one jitted scan per block, or jitted steps for a convolutional network."""
    epoch, put = _jax_epoch(case.layers, case.lr)
    weights = {n: put(_jax_layout(t)) for n, t in {**case.start.weights, **case.start.unmasked}.items()}
    masks = {n: put(_jax_layout(m)) for n, m in case.masks.items()}
    zeros = [{n: w * 0 for n, w in weights.items()} for _ in range(2)]
    images, labels = put(np.ascontiguousarray(_pixels(case.data).transpose(0, 2, 3, 1))), put(case.data.train_labels)
    order = BatchSampler(0, case.data.train_indices, case.batch)
    state: Any = (weights, *zeros, put(np.float32(0)))
    for first in range(0, block * blocks, block):
        start_time = time.perf_counter()
        batches = put(np.stack([order.batch(i) for i in range(first, first + block)]).astype(np.int32))
        state, losses = epoch(state, masks, images, labels, batches)
        losses.block_until_ready()
        yield (time.perf_counter() - start_time) / block * 1e3


def _jax_layout(tensor: torch.Tensor) -> Array:
    """Return a tensor in the layout of JAX: weights (in, out), kernels (height, width, in, out)."""
    values: Array = tensor.numpy()
    return np.ascontiguousarray(
        values.T if values.ndim == 2 else values.transpose(2, 3, 1, 0) if values.ndim == 4 else values
    )


@cache
def _jax_epoch(layers: Architecture, lr: float) -> tuple[Any, Any]:
    """Return the jitted scan over a block of batches, compiled once per set of shapes, and `jnp.asarray`.

    JAX uses one thread, if it was not imported in this process before.
    """
    # The documented flags (xla_cpu_multi_thread_eigen, intra_op_parallelism_threads) leave 1.7 threads busy.
    os.environ |= {"NPROC": "1", "PJRT_NPROC": "1", "JAX_PLATFORMS": "cpu"}
    import jax
    import jax.numpy as jnp

    def compute_loss(weights: Any, values: Any, labels: Any) -> Any:
        for layer in layers:
            if isinstance(layer, Pool):
                values = jax.lax.reduce_window(values, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
                continue
            weight, bias = weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"]
            if isinstance(layer, Conv):
                sides = ("NHWC", "HWIO", "NHWC")
                values = jax.lax.conv_general_dilated(values, weight, (1, 1), "SAME", dimension_numbers=sides) + bias
            else:
                channels_first = values.transpose(0, 3, 1, 2) if values.ndim == 4 else values
                values = channels_first.reshape(len(values), -1) @ weight + bias
            if not (isinstance(layer, Dense) and layer.last):
                values = jax.nn.relu(values)
        return -jnp.take_along_axis(jax.nn.log_softmax(values), labels[:, None], 1).mean()

    def step(state: Any, masks: Any, images: Any, labels: Any, batch: Any) -> Any:
        weights, means, squares, i = state
        loss, gradients = jax.value_and_grad(compute_loss)(weights, images[batch], labels[batch])
        gradients = {n: g * masks[n] if n in masks else g for n, g in gradients.items()}
        means = {n: 0.9 * means[n] + 0.1 * g for n, g in gradients.items()}
        squares = {n: 0.999 * squares[n] + 0.001 * g * g for n, g in gradients.items()}
        i = i + 1
        rate, scale = lr / (1 - 0.9**i), 1 / jnp.sqrt(1 - 0.999**i)
        weights = {n: w - rate * means[n] / (jnp.sqrt(squares[n]) * scale + 1e-8) for n, w in weights.items()}
        return (weights, means, squares, i), loss

    def scan(state: Any, masks: Any, images: Any, labels: Any, batches: Any) -> Any:
        return jax.lax.scan(lambda state, batch: step(state, masks, images, labels, batch), state, batches)

    jitted_step = jax.jit(step, donate_argnums=0)

    def loop(state: Any, masks: Any, images: Any, labels: Any, batches: Any) -> Any:
        for batch in batches:
            state, loss = jitted_step(state, masks, images, labels, batch)
        return state, loss

    # Inside a scan XLA computes convolutions a hundred times slower than outside (jax 0.10.2 on a CPU).
    convolves = any(isinstance(layer, Conv) for layer in layers)
    return loop if convolves else jax.jit(scan, donate_argnums=0), jnp.asarray


_FLOATS: dict[int, Array] = {}


def _pixels(data: SplitData) -> Array:
    """Return the training images in float32; they are converted once for all cases."""
    if id(data) not in _FLOATS:
        _FLOATS.clear()
        _FLOATS[id(data)] = np.divide(data.train_images, np.float32(data.max_pixel), dtype=np.float32)
    return _FLOATS[id(data)]
