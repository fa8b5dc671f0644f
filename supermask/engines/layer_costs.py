"""What a product costs on this machine, measured on small layers in a fraction of a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from supermask.engines.costs import Cost, Kind, LayerCosts
from supermask.engines.filter_layer import Filters
from supermask.engines.kernels.lanes import LANES
from supermask.engines.kernels.line import IMAGES
from supermask.engines.kernels.updates import OPTIMIZER
from supermask.engines.layers import Units
from supermask.networks import Conv, Dense
from supermask.rng import stream

DENSITY = 0.5
"""Near where sparse and dense kernels are as fast."""

FILTERS = Conv("measured", 64, 64, (16, 16))
UNITS = Dense("measured", 1024, 256, False)
TURNS = 20


def measure_layer_costs() -> LayerCosts:
    """Nanoseconds a multiply-add of each kind of product; the fastest of several turns, taken alternately.

    Source: docs/performance.md.
    """
    filters = [_filters(sparse) for sparse in (True, False)]
    units = [_units(sparse) for sparse in (True, False)]
    products = FILTERS.inputs * FILTERS.outputs * 9 * FILTERS.side[0] * FILTERS.side[1] * IMAGES
    of_units = UNITS.inputs * UNITS.outputs * LANES
    return LayerCosts(
        _cost([lambda f=f: f.forward(0) for f in filters], products),  # type: ignore[misc]
        _cost([lambda f=f: f.backward(0, first=True) for f in filters], products),  # type: ignore[misc]
        _cost([u.forward for u in units], of_units),
        _cost([lambda u=u: _learn(u) for u in units], of_units),  # type: ignore[misc]
    )


def _learn(layer: Units) -> None:
    layer.learn(0)
    layer.move(np.zeros(1, OPTIMIZER), 0)


def _filters(sparse: bool) -> Filters:
    layer = Filters(FILTERS, False, _mask((FILTERS.outputs, FILTERS.inputs, 3, 3), sparse), Kind(sparse, sparse))
    layer.next_x = [layer.d]
    return layer


def _units(sparse: bool) -> Units:
    return Units(UNITS, _mask((UNITS.outputs, UNITS.inputs), sparse), Kind(sparse, sparse), LANES)


def _mask(shape: tuple[int, ...], sparse: bool) -> torch.Tensor:
    share = DENSITY if sparse else 1.0
    return torch.from_numpy(stream("costs", "mask").random(shape) < share)


def _cost(contenders: list[Callable[[], None]], products: int) -> Cost:
    fastest = [np.inf, np.inf]
    for turn in range(TURNS + 1):
        for i, contender in enumerate(contenders):
            began = time.perf_counter()
            contender()
            if turn > 0:  # the first one compiles
                fastest[i] = min(fastest[i], time.perf_counter() - began)
    sparse, dense = fastest[0] * 1e9 / (products * DENSITY), fastest[1] * 1e9 / products
    return Cost(float(f"{sparse:.2g}"), float(f"{dense:.2g}"))
