"""Choice of the cost table, its measurement on small layers, and compilation of the kernels in advance.

A measured table is kept in the cache folder, so that all processes of a machine use the same one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from supermask.core.environment import cache_folder, cpu_name
from supermask.core.files import write_json_once
from supermask.core.learned_masks import MaskLearning, initial_mask_state
from supermask.core.recipe import Recipe
from supermask.core.rng import child_streams, random_stream
from supermask.core.types import InitialState, SplitData
from supermask.engines.job import Array, TrainingJob
from supermask.engines.optimizer_steps import OPTIMIZER
from supermask.engines.reference import flush_denormals
from supermask.engines.selection import is_measuring_costs
from supermask.engines.sparse.conv_layer import Conv3x3Layer
from supermask.engines.sparse.convolutional import ConvNetTrainer
from supermask.engines.sparse.cost_tables import MEASURED, CostTable, default_costs, instruction_set
from supermask.engines.sparse.costs import KernelChoice, KernelCost, LayerKernelCosts, Traversal, TraversalCosts
from supermask.engines.sparse.fully_connected import MLPTrainer
from supermask.engines.sparse.kernels.jit import SOURCE_HASH
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH
from supermask.engines.sparse.layers import LinearLayer
from supermask.engines.sparse.masked import MLPMaskTrainer
from supermask.engines.training import Trainer
from supermask.networks.network import sequential_network
from supermask.networks.sequential import Architecture, Conv, Dense, architecture, initial_state, prunable_tensors

# --- the table ---


def current_costs() -> CostTable:
    """Return the table that new runs use: the shipped one of this machine's instruction set, or the measured one.

    Shipped tables are the default, so that equal machines choose the same kernels and are bit-identical.
    Raises UserError as `selection.is_measuring_costs` does.
    """
    return measured_costs() if is_measuring_costs() else default_costs(instruction_set())


@lru_cache(maxsize=1)
def measured_costs() -> CostTable:
    """Return the costs measured on this machine, now or before. Of several processes, the first result counts."""
    # Without a home folder nothing is kept, and every process measures for itself.
    folder = cache_folder()
    path = None if folder is None else folder / "costs" / f"{_cache_key()}.json"
    if path is not None and (cached := _read(path)) is not None:
        return cached
    costs = measure_costs()
    if path is not None:
        _write(path, costs)
        # Read back: another process may have been first, and all must use one table.
        return _read(path) or costs
    return costs


def measure_costs() -> CostTable:
    """Measure all costs now. One to two seconds, once the kernels are compiled."""
    with flush_denormals(threads=1):
        return CostTable(measure_traversal_costs(), measure_layer_costs(), MEASURED)


def _cache_key() -> str:
    """Hash of the facts on which costs depend: processor, compiler, kernels."""
    facts = [cpu_name(), metadata.version("numba"), metadata.version("torch"), SOURCE_HASH]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(path: Path) -> CostTable | None:
    try:
        # Files hold the costs only: every one of them was measured.
        return replace(CostTable.from_data(json.loads(path.read_text())), name=MEASURED)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, costs: CostTable) -> None:
    write_json_once(path, replace(costs, name=None).to_data(), lambda existing: _read(existing) is not None)


def _two_digits(nanoseconds: float) -> float:
    """Round to two digits, at least 0.001: a difference of two times may come out negative."""
    return float(f"{max(nanoseconds, 1e-3):.2g}")


# --- costs of layers of convolutional networks ---

DENSITY = 0.5
"""Density of the measured sparse layers: near the point where sparse and dense kernels are equally fast."""

CONV_LAYER = Conv("measured", 64, 64, (16, 16))
LINEAR_LAYER = Dense("measured", 1024, 256, False)
REPEATS = 20


def measure_layer_costs() -> LayerKernelCosts:
    """Measure nanoseconds per multiply-add of each kind of product.

    Sparse and dense kernels take turns, and the fastest of `REPEATS` turns counts. Source: docs/performance.md.
    """
    conv_layers = [_conv_layer(sparse) for sparse in (True, False)]
    linear_layers = [_linear_layer(sparse) for sparse in (True, False)]
    pixels = CONV_LAYER.side[0] * CONV_LAYER.side[1]
    conv_products = CONV_LAYER.inputs * CONV_LAYER.outputs * 9 * pixels * VEC16_WIDTH
    linear_products = LINEAR_LAYER.inputs * LINEAR_LAYER.outputs * VECTOR_WIDTH
    return LayerKernelCosts(
        _time_kernels([lambda la=la: la.forward(0) for la in conv_layers], conv_products),  # type: ignore[misc]
        _time_kernels([lambda la=la: la.backward(0, first=True) for la in conv_layers], conv_products),  # type: ignore[misc]
        _time_kernels([la.forward for la in linear_layers], linear_products),
        _time_kernels([lambda la=la: _update(la) for la in linear_layers], linear_products),  # type: ignore[misc]
    )


def _update(layer: LinearLayer) -> None:
    # Gradient and step together: the dense kernel does not separate them.
    layer.accumulate_grad(0)
    layer.optimizer_step(np.zeros(1, OPTIMIZER), 0)


def _conv_layer(sparse: bool) -> Conv3x3Layer:
    shape = (CONV_LAYER.outputs, CONV_LAYER.inputs, 3, 3)
    layer = Conv3x3Layer(CONV_LAYER, False, _mask(shape, sparse), KernelChoice(sparse, sparse))
    # Output and its gradient share a buffer, and the backward pass is measured on what the forward pass wrote.
    layer.next_x = [layer.d]
    return layer


def _linear_layer(sparse: bool) -> LinearLayer:
    mask = _mask((LINEAR_LAYER.outputs, LINEAR_LAYER.inputs), sparse)
    return LinearLayer(LINEAR_LAYER, mask, KernelChoice(sparse, sparse), VECTOR_WIDTH)


def _mask(shape: tuple[int, ...], sparse: bool) -> torch.Tensor:
    density = DENSITY if sparse else 1.0
    return torch.from_numpy(random_stream("costs", "mask").random(shape) < density)


def _time_kernels(kernels: list[Callable[[], None]], products: int) -> KernelCost:
    """Time a sparse and a dense kernel. `products`: multiply-adds of the dense one."""
    fastest = [np.inf, np.inf]
    for turn in range(REPEATS + 1):
        for i, kernel in enumerate(kernels):
            start_time = time.perf_counter()
            kernel()
            if turn > 0:  # the first call compiles
                fastest[i] = min(fastest[i], time.perf_counter() - start_time)
    sparse, dense = fastest[0] * 1e9 / (products * DENSITY), fastest[1] * 1e9 / products
    return KernelCost(float(f"{sparse:.2g}"), float(f"{dense:.2g}"))


# --- costs of traversals ---

_LAYERS: Architecture = architecture("fc-320-128", (1, 28, 28), 10)
_BATCH = 64
_STEPS, _TURNS = 6, 40
"""Steps per turn, and turns. Many short turns: on a busy machine some of them are undisturbed."""


def measure_traversal_costs() -> TraversalCosts:
    """Measure nanoseconds per element of each traversal. Half a second, once the kernels are compiled.

    Each cost is a difference between the step times of two networks that differ in one respect; networks take turns,
    and the fastest turn of each counts. Source: docs/performance.md.
    """
    sparse, denser, bright, dark = 0.02, 0.22, 0.25, 0.02
    networks = {
        "base": _network("weights", "weights", bright, sparse, sparse),
        "denser first": _network("weights", "weights", bright, denser, sparse),
        "denser second": _network("weights", "weights", bright, sparse, denser),
        "pixels": _network("pixels", "weights", bright, sparse, sparse),
        "pixels dark": _network("pixels", "weights", dark, sparse, sparse),
        "all": _network("weights", "all", bright, sparse, sparse),
        "pixels then weights": _network("pixels then weights", "weights", bright, sparse, sparse),
        "pixels then weights dark": _network("pixels then weights", "weights", dark, sparse, sparse),
        "pixels then weights denser": _network("pixels then weights", "weights", bright, denser, sparse),
        "all then weights": _network("weights", "all then weights", bright, sparse, sparse),
    }
    times = dict.fromkeys(networks, float("inf"))
    for turn in range(_TURNS):
        for name, network in networks.items():
            start_time = time.perf_counter_ns()
            network.train(turn * _STEPS, (turn + 1) * _STEPS)
            times[name] = min(times[name], (time.perf_counter_ns() - start_time) / _STEPS)
    first, second = (layer.inputs * layer.outputs for layer in _LAYERS[:2] if isinstance(layer, Dense))
    added = denser - sparse
    weight = (times["denser first"] - times["base"]) / (first * added)
    inner = (times["denser second"] - times["base"]) / (second * added)
    sparse_grad = (times["pixels then weights denser"] - times["pixels then weights"]) / (first * added)
    # Additional nonzero pixels, times blocks of 64 outputs.
    pixel_products = (bright - dark) * _BATCH * first / VECTOR_WIDTH
    pixel = (times["pixels"] - times["pixels dark"]) / pixel_products
    pixel_forward = (times["pixels then weights"] - times["pixels then weights dark"]) / pixel_products
    return TraversalCosts(
        weight=_two_digits(weight),
        inner=_two_digits(inner),
        pixel=_two_digits(pixel),
        # Against the base, the surviving weights and the dark network's nonzero pixels are taken out.
        pixel_update=_two_digits(
            (times["pixels dark"] - times["base"]) / first + weight * sparse - pixel * dark * _BATCH / VECTOR_WIDTH
        ),
        dense=_two_digits((times["all"] - times["base"]) / second + inner * sparse),
        sparse_grad=_two_digits(sparse_grad),
        pixel_forward=_two_digits(pixel_forward),
        dense_forward=_two_digits(
            (times["all then weights"] - times["base"]) / second + (inner - sparse_grad) * sparse
        ),
    )


def _network(
    first: Traversal, second: Traversal, nonzero_fraction: float, first_density: float, second_density: float
) -> MLPTrainer:
    """FC-320-128 in training, with these traversals, share of nonzero pixels, and densities of its first two layers."""
    rng = np.random.default_rng(0)
    images = (rng.random((256, 1, 28, 28)) < nonzero_fraction).astype(np.uint8)
    labels: Array = rng.integers(0, 10, 256)
    data = SplitData(images, labels, np.arange(256), images, labels, images, labels, 1)
    dense = initial_state(_LAYERS, 0)
    densities = {"fc1.weight": first_density, "fc2.weight": second_density, "fc3.weight": 1.0}
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < densities[n]) for n, w in dense.weights.items()}
    start = InitialState({n: w * masks[n] for n, w in dense.weights.items()}, masks, dense.unmasked)
    job = TrainingJob(sequential_network(_LAYERS), start, Recipe("adam", 1e-3, _BATCH, _STEPS * _TURNS, _STEPS), seed=0)
    # The output layer is too small to matter, and is the same in all networks.
    network = MLPTrainer(job, data, {"fc1": first, "fc2": second, "fc3": "weights"})
    network.load(start.state)
    return network


# --- compilation ---


def compile_kernels(convolutions: bool) -> None:
    """Load the compiled kernels of fully connected or of convolutional networks, or compile them."""
    sparse_costs, dense_costs = KernelCost(sparse=0, dense=1), KernelCost(sparse=1, dense=0)
    with flush_denormals(threads=1):
        trainers: list[Trainer] = [_network("pixels", "all then weights", 0.25, 0.1, 0.1)]
        if convolutions:
            # Once with sparse and once with dense kernels in every layer.
            job, data = _convolutional_job()
            trainers = [
                ConvNetTrainer(job, data, LayerKernelCosts(*[cost] * 4)) for cost in (sparse_costs, dense_costs)
            ]
        images, labels = np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64)
        for trainer in trainers:
            trainer.train(0, 1)
            trainer.evaluate(images, labels)


def compile_mask_kernels() -> None:
    """Load the compiled kernels of mask learning, or compile them."""
    images, labels = np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64)
    data = SplitData(images, labels, np.arange(1), images, labels, images, labels, 1)
    start = initial_mask_state(
        MaskLearning(), prunable_tensors(_LAYERS), initial_state(_LAYERS, 0), 0, None, None, child_streams(0)
    )
    recipe = Recipe("sgd", 1.0, 1, 1, 1, momentum=0.9)
    network = MLPMaskTrainer(
        TrainingJob(sequential_network(_LAYERS), start, recipe, seed=0, learning=MaskLearning()), data
    )
    with flush_denormals(threads=1):
        network.load(start.state)
        network.train(0, 1)
        network.evaluate(images, labels)


def _convolutional_job() -> tuple[TrainingJob, SplitData]:
    layers = architecture("conv2", (1, 28, 28), 10)
    images, labels = np.zeros((16, 1, 28, 28), np.uint8), np.zeros(16, np.int64)
    data = SplitData(images, labels, np.arange(16), images, labels, images, labels, 1)
    return TrainingJob(
        sequential_network(layers), initial_state(layers, 0), Recipe("adam", 1e-3, 16, 1, 1), seed=0
    ), data
