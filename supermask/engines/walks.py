"""What the products of a fully connected layer walk over, and what each way costs on this machine.

A step of a layer has about as many multiply-adds as it has surviving weights, times images; or as the images have lit
pixels, times outputs; or as it has weights, times images. What one of each costs is measured; the cheapest is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from supermask.engines.job import Data, Job
from supermask.engines.kernels.lanes import LANES, padded
from supermask.networks import Dense

Walk = Literal["weights", "pixels", "all", "pixels then weights", "all then weights"]
"""Surviving weights; lit pixels (the first layer's inputs alone); everything. "X then weights": outputs, and gradients
at the inputs, walk over X, gradients of the weights over the surviving ones."""


@dataclass(frozen=True)
class WalkCosts:
    """Nanoseconds, all products and the update of one training step together."""

    weight: float
    """A surviving weight of the first layer, 64 images."""
    inner: float
    """A surviving weight of another layer, which has a gradient at its input too."""
    pixel: float
    """A lit pixel of one image, 64 outputs."""
    held: float
    """A weight of a first layer that walks over pixels, whatever is lit: its update."""
    whole: float
    """A weight of another layer that walks over everything, 64 images."""
    learnt: float
    """A surviving weight whose gradient alone walks over the surviving ones, 64 images."""
    pixel_forward: float
    """A lit pixel of one image, 64 outputs, where the gradients do not walk over pixels."""
    whole_forward: float
    """A weight of another layer that walks over everything but for the gradients of its weights, 64 images."""


def walks(job: Job, data: Data, costs: WalkCosts) -> dict[str, Walk]:
    """The cheapest walk of each layer, over pruned weights too where they are frozen at other values than 0.

    Source: docs/performance.md.
    """
    found: dict[str, Walk] = {}
    blocks = padded(job.recipe.batch_size) // LANES
    for layer in job.layers:
        assert isinstance(layer, Dense)
        name = f"{layer.name}.weight"
        mask, values = job.start.masks[name], job.start.weights[name]
        survive, outputs = blocks * int(mask.sum()), padded(layer.outputs)
        priced: dict[Walk, float] = {"weights": survive * (costs.inner if found else costs.weight)}
        if bool((values[~mask] != 0).any()):
            priced.clear()
        if found:
            places = blocks * layer.inputs * outputs
            priced["all"] = places * costs.whole
            priced["all then weights"] = places * costs.whole_forward + survive * costs.learnt
        else:
            lit = job.recipe.batch_size * layer.inputs * lit_share(data) * outputs / LANES
            priced["pixels"] = lit * costs.pixel + outputs * layer.inputs * costs.held
            priced["pixels then weights"] = lit * costs.pixel_forward + survive * costs.learnt
        found[layer.name] = min(priced, key=lambda walk: priced[walk])
    return found


def lit_share(data: Data) -> float:
    """The share of pixels that are not 0, in the first training images."""
    some = data.train_images[:1000]
    return float(np.count_nonzero(some) / some.size)
