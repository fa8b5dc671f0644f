"""What a product costs on this machine, sparse and dense, and so which kernels a layer uses.

What the products of a fully connected layer walk over, and what each way costs on this machine.

A step of a layer has about as many multiply-adds as it has surviving weights, times images; or as the images have lit
pixels, times outputs; or as it has weights, times images. What one of each costs is measured; the cheapest is taken.

In which order kernels walk over surviving weights, so that what they are multiplied by stays in the first cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from supermask.core.types import SplitData
from supermask.engines.job import Array, TrainingJob
from supermask.engines.sparse.kernels.matmul import ROWS
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, round_up
from supermask.networks.sequential import Conv, Dense


@dataclass(frozen=True)
class KernelCost:
    """Nanoseconds a multiply-add of one kind of product: walking over surviving weights, and computing everything."""

    sparse: float
    dense: float


@dataclass(frozen=True)
class LayerKernelCosts:
    """The four kinds of products: outputs (and the gradient at inputs, the same sum), and gradients of weights."""

    conv_forward: KernelCost
    conv_weight_grad: KernelCost
    linear_forward: KernelCost
    linear_weight_grad: KernelCost


@dataclass(frozen=True)
class KernelChoice:
    """How a layer computes: whether over surviving weights only."""

    sums: bool
    products: bool


def choose_kernels(layer: Conv | Dense, used: float, trained: float, costs: LayerKernelCosts) -> KernelChoice:
    """The fastest way for a layer of which the share `used` is not zero and the share `trained` can change.

    The two differ where pruned weights are frozen at other values than zero. The dense kernels are for layers of whole
    tiles alone: not for a first convolution, which is small, nor for the outputs. Walking over the surviving weights of
    a fully connected layer forward, while all of its gradients are computed, would mean copying it at every step.
    Source: docs/performance.md.
    """
    if layer.outputs % ROWS or layer.inputs % ROWS:
        return KernelChoice(sums=True, products=True)
    sums, products = costs.linear_forward, costs.linear_weight_grad
    kinds = [
        KernelChoice(sums=True, products=True),
        KernelChoice(sums=False, products=True),
        KernelChoice(sums=False, products=False),
    ]
    if isinstance(layer, Conv):
        sums, products = costs.conv_forward, costs.conv_weight_grad
        kinds.append(KernelChoice(sums=True, products=False))

    def cost(how: KernelChoice) -> float:
        forward_and_back = 2 * (used * sums.sparse if how.sums else sums.dense)
        return forward_and_back + (trained * products.sparse if how.products else products.dense)

    return min(kinds, key=cost)


Traversal = Literal["weights", "pixels", "all", "pixels then weights", "all then weights"]
"""Surviving weights; lit pixels (the first layer's inputs alone); everything. "X then weights": outputs, and gradients
at the inputs, walk over X, gradients of the weights over the surviving ones."""


@dataclass(frozen=True)
class TraversalCosts:
    """Nanoseconds, all products and the update of one training step together."""

    weight: float
    """A surviving weight of the first layer, 64 images."""
    inner: float
    """A surviving weight of another layer, which has a gradient at its input too."""
    pixel: float
    """A lit pixel of one image, 64 outputs."""
    pixel_update: float
    """A weight of a first layer that walks over pixels, whatever is lit: its update."""
    dense: float
    """A weight of another layer that walks over everything, 64 images."""
    sparse_grad: float
    """A surviving weight whose gradient alone walks over the surviving ones, 64 images."""
    pixel_forward: float
    """A lit pixel of one image, 64 outputs, where the gradients do not walk over pixels."""
    whole_forward: float
    """A weight of another layer that walks over everything but for the gradients of its weights, 64 images."""


def choose_traversals(job: TrainingJob, data: SplitData, costs: TraversalCosts) -> dict[str, Traversal]:
    """The cheapest walk of each layer, over pruned weights too where they are frozen at other values than 0.

    Source: docs/performance.md.
    """
    found: dict[str, Traversal] = {}
    blocks = round_up(job.recipe.batch_size) // VECTOR_WIDTH
    for layer in job.layers:
        assert isinstance(layer, Dense)
        name = f"{layer.name}.weight"
        mask, values = job.start.masks[name], job.start.weights[name]
        survive, outputs = blocks * int(mask.sum()), round_up(layer.outputs)
        priced: dict[Traversal, float] = {"weights": survive * (costs.inner if found else costs.weight)}
        if bool((values[~mask] != 0).any()):
            priced.clear()
        if found:
            places = blocks * layer.inputs * outputs
            priced["all"] = places * costs.dense
            priced["all then weights"] = places * costs.whole_forward + survive * costs.sparse_grad
        else:
            lit = job.recipe.batch_size * layer.inputs * nonzero_pixel_fraction(data) * outputs / VECTOR_WIDTH
            priced["pixels"] = lit * costs.pixel + outputs * layer.inputs * costs.pixel_update
            priced["pixels then weights"] = lit * costs.pixel_forward + survive * costs.sparse_grad
        found[layer.name] = min(priced, key=lambda walk: priced[walk])
    return found


def nonzero_pixel_fraction(data: SplitData) -> float:
    """The share of pixels that are not 0, in the first training images."""
    some = data.train_images[:1000]
    return float(np.count_nonzero(some) / some.size)


CACHE_COLUMNS = 128
"""32 kB of a fully connected layer's inputs, in 64 images."""

MIN_WEIGHTS_PER_BLOCK = 16
"""Surviving weights of a row in one share: fewer, and taking up a sum and putting it down costs more than it saves."""


@dataclass(frozen=True)
class BlockedIndex:
    """In which order a kernel walks over weights: by shares of the columns, then by rows."""

    first: NDArray[np.int64]
    """`(shares, rows + 1)`: where the weights of a share and a row begin."""
    offset: NDArray[np.int32]
    """For every weight, where in the kernel's input its partner begins, in floats."""
    order: NDArray[np.int64]
    """For every weight, its place in the lists that this was made of."""


def block_index(rows: Array, columns: Array, offsets: Array, shape: tuple[int, int], in_cache: int) -> BlockedIndex:
    """The order of weights at (rows, columns) of a matrix of this shape, whose partners are at `offsets`.

    At most about `in_cache` columns are in a share, and more where only few weights survive: `SHARE_WEIGHTS` a row.
    Source: docs/performance.md.
    """
    columns_wanted = max(in_cache, MIN_WEIGHTS_PER_BLOCK * shape[0] * shape[1] // max(1, len(rows)))
    shares = max(1, round(shape[1] / columns_wanted))
    width = -(-shape[1] // shares)
    key = columns // width * shape[0] + rows
    order = np.argsort(key, kind="stable")
    ends = np.searchsorted(key[order], np.arange(shares * shape[0] + 1))
    first = np.stack([ends[q * shape[0] : (q + 1) * shape[0] + 1] for q in range(shares)])
    return BlockedIndex(first, offsets[order].astype(np.int32), order)
