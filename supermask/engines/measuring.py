"""What the sparse engine's products cost on this machine: measured once, kept in the cache folder.

A choice between two ways of computing changes the order of sums, and so bits. It therefore rests on numbers that stay:
they are part of the environment that is recorded with every run.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supermask.cache import cache_folder, keep
from supermask.engines.convolutional import Convolutional
from supermask.engines.costs import Cost, LayerCosts
from supermask.engines.fully_connected import FullyConnected
from supermask.engines.job import Array, Data, Job
from supermask.engines.kernels.compiling import SOURCES
from supermask.engines.kernels.lanes import LANES
from supermask.engines.layer_costs import measure_layer_costs
from supermask.engines.loop import Stepper
from supermask.engines.masked_network import MaskedNetwork
from supermask.engines.reference import tiny_is_zero
from supermask.engines.walks import Walk, WalkCosts
from supermask.environment import processor
from supermask.learned import Learning, learning_start
from supermask.networks import Architecture, Dense, architecture, initial_start
from supermask.recipe import Recipe
from supermask.rng import streams
from supermask.types import Start


@dataclass(frozen=True)
class Costs:
    """All that the choice of kernels rests on."""

    walks: WalkCosts
    layers: LayerCosts

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Costs:
        """The inverse of `to_data`."""
        layers = {name: Cost(**cost) for name, cost in data["layers"].items()}
        return cls(WalkCosts(**data["walks"]), LayerCosts(**layers))


@lru_cache(maxsize=1)
def costs_here() -> Costs:
    """What was measured on this machine, now or before. Of processes that measure at once, the first is believed."""
    folder = cache_folder()
    path = None if folder is None else folder / "costs" / f"{_key()}.json"
    if path is not None and (found := _read(path)) is not None:
        return found
    with tiny_is_zero(threads=1):
        fresh = Costs(measure_walk_costs(), measure_layer_costs())
    if path is not None:
        _write(path, fresh)
        return _read(path) or fresh
    return fresh


def _key() -> str:
    """What costs depend on: processor, compiler, kernels."""
    facts = [processor(), metadata.version("numba"), metadata.version("torch"), SOURCES]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(path: Path) -> Costs | None:
    try:
        return Costs.from_data(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, costs: Costs) -> None:
    keep(path, costs.to_data(), lambda there: _read(there) is not None)


def measure_walk_costs() -> WalkCosts:
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
    lit_by_outputs = (lit - dark) * _BATCH * first / LANES
    pixel = (took["bright"] - took["dark"]) / lit_by_outputs
    return WalkCosts(
        weight=_rounded(weight),
        inner=_rounded(inner),
        pixel=_rounded(pixel),
        held=_rounded((took["dark"] - took["base"]) / first + weight * few - pixel * dark * _BATCH / LANES),
        whole=_rounded((took["whole"] - took["base"]) / second + inner * few),
        learnt=_rounded(learnt),
        pixel_forward=_rounded((took["listed"] - took["listed dark"]) / lit_by_outputs),
        whole_forward=_rounded((took["whole listed"] - took["base"]) / second + (inner - learnt) * few),
    )


_LAYERS: Architecture = architecture("fc-320-128", (1, 28, 28), 10)
_BATCH = 64
_STEPS, _TURNS = 6, 40
"""Short turns, and many: on a busy machine some of them are undisturbed."""


def _network(first: Walk, second: Walk, lit: float, first_density: float, second_density: float) -> FullyConnected:
    """FC-320-128 in training, on images with so many lit pixels, with so many weights left."""
    rng = np.random.default_rng(0)
    images = (rng.random((256, 1, 28, 28)) < lit).astype(np.uint8)
    labels: Array = rng.integers(0, 10, 256)
    data = Data(images, labels, np.arange(256), images, labels, images, labels, 1)
    dense = initial_start(_LAYERS, 0)
    densities = {"fc1.weight": first_density, "fc2.weight": second_density, "fc3.weight": 1.0}
    masks = {n: torch.from_numpy(rng.random(tuple(w.shape)) < densities[n]) for n, w in dense.weights.items()}
    start = Start({n: w * masks[n] for n, w in dense.weights.items()}, masks, dense.others)
    job = Job(_LAYERS, start, Recipe("adam", 1e-3, _BATCH, _STEPS * _TURNS, _STEPS), seed=0)
    network = FullyConnected(job, data, {"fc1": first, "fc2": second, "fc3": "weights"})
    network.load(start.state)
    return network


def _rounded(nanoseconds: float) -> float:
    """To two digits, and positive even where noise says else."""
    return float(f"{max(nanoseconds, 1e-3):.2g}")


def warm_up(convolutions: bool) -> None:
    """Loads the compiled kernels of fully connected or of convolutional networks, or compiles them."""
    cheap, dear = Cost(0, 1), Cost(1, 0)
    with tiny_is_zero(threads=1):
        steppers: list[Stepper] = [_network("pixels", "all then weights", 0.25, 0.1, 0.1)]
        if convolutions:
            steppers = [Convolutional(*_convolutions(), LayerCosts(*[cost] * 4)) for cost in (cheap, dear)]
        images, labels = np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64)
        for stepper in steppers:
            stepper.train(0, 1)
            stepper.measure(images, labels)


def warm_up_masks() -> None:
    """Loads the compiled kernels that learn masks, or compiles them."""
    images, labels = np.zeros((1, 1, 28, 28), np.uint8), np.zeros(1, np.int64)
    data = Data(images, labels, np.arange(1), images, labels, images, labels, 1)
    start = learning_start(Learning(), _LAYERS, 0, None, None, streams(0))
    recipe = Recipe("sgd", 1.0, 1, 1, 1, momentum=0.9)
    network = MaskedNetwork(Job(_LAYERS, start, recipe, seed=0, learning=Learning()), data)
    with tiny_is_zero(threads=1):
        network.load(start.state)
        network.train(0, 1)
        network.measure(images, labels)


def _convolutions() -> tuple[Job, Data]:
    layers = architecture("conv2", (1, 28, 28), 10)
    images, labels = np.zeros((16, 1, 28, 28), np.uint8), np.zeros(16, np.int64)
    data = Data(images, labels, np.arange(16), images, labels, images, labels, 1)
    return Job(layers, initial_start(layers, 0), Recipe("adam", 1e-3, 16, 1, 1), seed=0), data
