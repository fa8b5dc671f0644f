"""What the sparse engine's products cost on this machine: measured once, kept in the cache folder.

A choice between two ways of computing changes the order of sums, and so bits. It therefore rests on numbers that stay:
they are part of the environment that is recorded with every run.

What a product costs on this machine, measured on small layers in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

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
from supermask.engines.sparse.conv_layer import Conv3x3Layer
from supermask.engines.sparse.convolutional import ConvNetTrainer
from supermask.engines.sparse.costs import KernelChoice, KernelCost, LayerKernelCosts, Traversal, TraversalCosts
from supermask.engines.sparse.fully_connected import MLPTrainer
from supermask.engines.sparse.kernels.jit import SOURCE_HASH
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH
from supermask.engines.sparse.kernels.simd16 import VEC16_WIDTH
from supermask.engines.sparse.layers import LinearLayer
from supermask.engines.sparse.masked import MLPMaskTrainer
from supermask.engines.training import Trainer
from supermask.networks.sequential import Architecture, Conv, Dense, architecture, initial_state, prunable_tensors

DENSITY = 0.5
"""Near where sparse and dense kernels are as fast."""

FILTERS = Conv("measured", 64, 64, (16, 16))
UNITS = Dense("measured", 1024, 256, False)
REPEATS = 20


def measure_layer_costs() -> LayerKernelCosts:
    """Nanoseconds a multiply-add of each kind of product; the fastest of several turns, taken alternately.

    Source: docs/performance.md.
    """
    filters = [_filters(sparse) for sparse in (True, False)]
    units = [_units(sparse) for sparse in (True, False)]
    products = FILTERS.inputs * FILTERS.outputs * 9 * FILTERS.side[0] * FILTERS.side[1] * VEC16_WIDTH
    of_units = UNITS.inputs * UNITS.outputs * VECTOR_WIDTH
    return LayerKernelCosts(
        _time_kernel([lambda f=f: f.forward(0) for f in filters], products),  # type: ignore[misc]
        _time_kernel([lambda f=f: f.backward(0, first=True) for f in filters], products),  # type: ignore[misc]
        _time_kernel([u.forward for u in units], of_units),
        _time_kernel([lambda u=u: _learn(u) for u in units], of_units),  # type: ignore[misc]
    )


def _learn(layer: LinearLayer) -> None:
    layer.accumulate_grad(0)
    layer.optimizer_step(np.zeros(1, OPTIMIZER), 0)


def _filters(sparse: bool) -> Conv3x3Layer:
    layer = Conv3x3Layer(
        FILTERS, False, _mask((FILTERS.outputs, FILTERS.inputs, 3, 3), sparse), KernelChoice(sparse, sparse)
    )
    layer.next_x = [layer.d]
    return layer


def _units(sparse: bool) -> LinearLayer:
    return LinearLayer(UNITS, _mask((UNITS.outputs, UNITS.inputs), sparse), KernelChoice(sparse, sparse), VECTOR_WIDTH)


def _mask(shape: tuple[int, ...], sparse: bool) -> torch.Tensor:
    share = DENSITY if sparse else 1.0
    return torch.from_numpy(random_stream("costs", "mask").random(shape) < share)


def _time_kernel(contenders: list[Callable[[], None]], products: int) -> KernelCost:
    fastest = [np.inf, np.inf]
    for turn in range(REPEATS + 1):
        for i, contender in enumerate(contenders):
            began = time.perf_counter()
            contender()
            if turn > 0:  # the first one compiles
                fastest[i] = min(fastest[i], time.perf_counter() - began)
    sparse, dense = fastest[0] * 1e9 / (products * DENSITY), fastest[1] * 1e9 / products
    return KernelCost(float(f"{sparse:.2g}"), float(f"{dense:.2g}"))


@dataclass(frozen=True)
class CostTable:
    """All that the choice of kernels rests on."""

    walks: TraversalCosts
    layers: LayerKernelCosts

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, under the keys of stored runs."""
        walks = {_STORED_KEYS.get(name, name): cost for name, cost in asdict(self.walks).items()}
        layers = {_STORED_KEYS[name]: cost for name, cost in asdict(self.layers).items()}
        return {"walks": walks, "layers": layers}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> CostTable:
        """The inverse of `to_data`."""
        layers = {_FIELDS[key]: KernelCost(**cost) for key, cost in data["layers"].items()}
        walks = {_FIELDS.get(key, key): cost for key, cost in data["walks"].items()}
        return cls(TraversalCosts(**walks), LayerKernelCosts(**layers))


_STORED_KEYS = {
    "pixel_update": "held",
    "sparse_grad": "learnt",
    "dense": "whole",
    "conv_forward": "filter_sums",
    "conv_weight_grad": "filter_products",
    "linear_forward": "unit_sums",
    "linear_weight_grad": "unit_products",
}
"""Field -> its key in stored costs, where the two differ. A key never changes: costs are part of the fingerprint."""
_FIELDS = {key: name for name, key in _STORED_KEYS.items()}


@lru_cache(maxsize=1)
def measured_costs() -> CostTable:
    """What was measured on this machine, now or before. Of processes that measure at once, the first is believed."""
    folder = cache_folder()
    path = None if folder is None else folder / "costs" / f"{_key()}.json"
    if path is not None and (found := _read(path)) is not None:
        return found
    with flush_denormals(threads=1):
        fresh = CostTable(measure_traversal_costs(), measure_layer_costs())
    if path is not None:
        _write(path, fresh)
        return _read(path) or fresh
    return fresh


def _key() -> str:
    """What costs depend on: processor, compiler, kernels."""
    facts = [cpu_name(), metadata.version("numba"), metadata.version("torch"), SOURCE_HASH]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(path: Path) -> CostTable | None:
    try:
        return CostTable.from_data(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, costs: CostTable) -> None:
    write_json_once(path, costs.to_data(), lambda there: _read(there) is not None)


def measure_traversal_costs() -> TraversalCosts:
    """Times training steps of networks that differ in one thing each, taking turns. Half a second, once compiled."""
    few, some, lit, dark = 0.02, 0.22, 0.25, 0.02
    networks = {
        "base": _network("weights", "weights", lit, few, few),
        "weight": _network("weights", "weights", lit, some, few),
        "inner": _network("weights", "weights", lit, few, some),
        "bright": _network("pixels", "weights", lit, few, few),
        "dark": _network("pixels", "weights", dark, few, few),
        "whole": _network("weights", "all", lit, few, few),
        "listed": _network("pixels then weights", "weights", lit, few, few),
        "listed dark": _network("pixels then weights", "weights", dark, few, few),
        "learnt": _network("pixels then weights", "weights", lit, some, few),
        "whole listed": _network("weights", "all then weights", lit, few, few),
    }
    took = dict.fromkeys(networks, float("inf"))
    for turn in range(_TURNS):
        for name, network in networks.items():
            began = time.perf_counter_ns()
            network.train(turn * _STEPS, (turn + 1) * _STEPS)
            took[name] = min(took[name], (time.perf_counter_ns() - began) / _STEPS)
    first, second = (layer.inputs * layer.outputs for layer in _LAYERS[:2] if isinstance(layer, Dense))
    weight = (took["weight"] - took["base"]) / (first * (some - few))
    inner = (took["inner"] - took["base"]) / (second * (some - few))
    learnt = (took["learnt"] - took["listed"]) / (first * (some - few))
    lit_by_outputs = (lit - dark) * _BATCH * first / VECTOR_WIDTH
    pixel = (took["bright"] - took["dark"]) / lit_by_outputs
    return TraversalCosts(
        weight=_two_digits(weight),
        inner=_two_digits(inner),
        pixel=_two_digits(pixel),
        pixel_update=_two_digits(
            (took["dark"] - took["base"]) / first + weight * few - pixel * dark * _BATCH / VECTOR_WIDTH
        ),
        dense=_two_digits((took["whole"] - took["base"]) / second + inner * few),
        sparse_grad=_two_digits(learnt),
        pixel_forward=_two_digits((took["listed"] - took["listed dark"]) / lit_by_outputs),
        whole_forward=_two_digits((took["whole listed"] - took["base"]) / second + (inner - learnt) * few),
    )


_LAYERS: Architecture = architecture("fc-320-128", (1, 28, 28), 10)
_BATCH = 64
_STEPS, _TURNS = 6, 40
"""Short turns, and many: on a busy machine some of them are undisturbed."""


def _network(
    first: Traversal, second: Traversal, lit: float, first_density: float, second_density: float
) -> MLPTrainer:
    """FC-320-128 in training, on images with so many lit pixels, with so many weights left."""
    rng = np.random.default_rng(0)
    images = (rng.random((256, 1, 28, 28)) < lit).astype(np.uint8)
    labels: Array = rng.integers(0, 10, 256)
    data = SplitData(images, labels, np.arange(256), images, labels, images, labels, 1)
    dense = initial_state(_LAYERS, 0)
    densities = {"fc1.weight": first_density, "fc2.weight": second_density, "fc3.weight": 1.0}
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < densities[n]) for n, w in dense.weights.items()}
    start = InitialState({n: w * masks[n] for n, w in dense.weights.items()}, masks, dense.unmasked)
    job = TrainingJob(_LAYERS, start, Recipe("adam", 1e-3, _BATCH, _STEPS * _TURNS, _STEPS), seed=0)
    network = MLPTrainer(job, data, {"fc1": first, "fc2": second, "fc3": "weights"})
    network.load(start.state)
    return network


def _two_digits(nanoseconds: float) -> float:
    """To two digits, and positive even where noise says else."""
    return float(f"{max(nanoseconds, 1e-3):.2g}")


def compile_kernels(convolutions: bool) -> None:
    """Loads the compiled kernels of fully connected or of convolutional networks, or compiles them."""
    cheap, dear = KernelCost(0, 1), KernelCost(1, 0)
    with flush_denormals(threads=1):
        steppers: list[Trainer] = [_network("pixels", "all then weights", 0.25, 0.1, 0.1)]
        if convolutions:
            steppers = [ConvNetTrainer(*_convolutions(), LayerKernelCosts(*[cost] * 4)) for cost in (cheap, dear)]
        images, labels = np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64)
        for stepper in steppers:
            stepper.train(0, 1)
            stepper.evaluate(images, labels)


def compile_mask_kernels() -> None:
    """Loads the compiled kernels that learn masks, or compiles them."""
    images, labels = np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64)
    data = SplitData(images, labels, np.arange(1), images, labels, images, labels, 1)
    start = initial_mask_state(
        MaskLearning(), prunable_tensors(_LAYERS), initial_state(_LAYERS, 0), 0, None, None, child_streams(0)
    )
    recipe = Recipe("sgd", 1.0, 1, 1, 1, momentum=0.9)
    network = MLPMaskTrainer(TrainingJob(_LAYERS, start, recipe, seed=0, learning=MaskLearning()), data)
    with flush_denormals(threads=1):
        network.load(start.state)
        network.train(0, 1)
        network.evaluate(images, labels)


def _convolutions() -> tuple[TrainingJob, SplitData]:
    layers = architecture("conv2", (1, 28, 28), 10)
    images, labels = np.zeros((16, 1, 28, 28), np.uint8), np.zeros(16, np.int64)
    data = SplitData(images, labels, np.arange(16), images, labels, images, labels, 1)
    return TrainingJob(layers, initial_state(layers, 0), Recipe("adam", 1e-3, 16, 1, 1), seed=0), data
