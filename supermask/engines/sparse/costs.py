"""Costs of sparse and dense kernels, the choices that follow from them, and the order of weights in sparse kernels.

A training step of a layer takes about as many multiply-adds as it has surviving weights, times images; or as the images
have nonzero pixels, times outputs; or as it has weights, times images. Each kind has a cost per multiply-add, and the
cheapest is taken. A choice changes the order of sums and so the last bits: costs are part of the environment's
fingerprint.
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

# --- layers of convolutional networks: sparse or dense kernels ---


@dataclass(frozen=True)
class KernelCost:
    """Nanoseconds per multiply-add of one kind of product: over the surviving weights, and over all weights."""

    sparse: float
    dense: float


@dataclass(frozen=True)
class LayerKernelCosts:
    """Costs of the four kinds of products. The gradient at the inputs is the same sum as the forward pass."""

    conv_forward: KernelCost
    conv_weight_grad: KernelCost
    linear_forward: KernelCost
    linear_weight_grad: KernelCost


@dataclass(frozen=True)
class KernelChoice:
    """Kernels of a layer: True where a product is computed over the surviving weights only."""

    sparse_forward: bool
    """Outputs, and gradient at the inputs."""
    sparse_grad: bool
    """Gradient of the weights."""


def choose_kernels(layer: Conv | Dense, nonzero: float, trained: float, costs: LayerKernelCosts) -> KernelChoice:
    """Return the fastest kernels for a layer.

    `nonzero`, `trained`: shares in [0, 1] of its weights that are not zero, and that are trained. They differ where
    pruned weights are frozen at values other than zero.
    Source: docs/performance.md.
    """
    # Dense kernels compute whole tiles. A first convolution (1 or 3 channels) and the outputs are small anyway.
    if layer.outputs % ROWS or layer.inputs % ROWS:
        return KernelChoice(sparse_forward=True, sparse_grad=True)
    forward, weight_grad = costs.linear_forward, costs.linear_weight_grad
    # Linear layers lack the fourth combination: the weights would have to be copied at every step, because the dense
    # gradient kernel updates them in its own order.
    choices = [
        KernelChoice(sparse_forward=True, sparse_grad=True),
        KernelChoice(sparse_forward=False, sparse_grad=True),
        KernelChoice(sparse_forward=False, sparse_grad=False),
    ]
    if isinstance(layer, Conv):
        forward, weight_grad = costs.conv_forward, costs.conv_weight_grad
        choices.append(KernelChoice(sparse_forward=True, sparse_grad=False))

    def cost(choice: KernelChoice) -> float:
        forward_and_input_grad = 2 * (nonzero * forward.sparse if choice.sparse_forward else forward.dense)
        return forward_and_input_grad + (trained * weight_grad.sparse if choice.sparse_grad else weight_grad.dense)

    return min(choices, key=cost)


# --- layers of fully connected networks: traversals ---

Traversal = Literal["weights", "pixels", "all", "pixels then weights", "all then weights"]
"""The elements over which a layer's products are computed: surviving weights; nonzero pixels (first layer only); all
weights. "X then weights": outputs and the gradient at the inputs over X, gradients of the weights over the surviving
ones."""


@dataclass(frozen=True)
class TraversalCosts:
    """Nanoseconds per element, for all products and the update of one training step together."""

    weight: float
    """Surviving weight of the first layer, per 64 images."""
    inner: float
    """Surviving weight of another layer, which has a gradient at its input too, per 64 images."""
    pixel: float
    """Nonzero pixel of one image, per 64 outputs."""
    pixel_update: float
    """Weight of a first layer with traversal "pixels": its update, which does not depend on the pixels."""
    dense: float
    """Weight of another layer with traversal "all", per 64 images."""
    sparse_grad: float
    """Surviving weight whose gradient alone is computed over the surviving weights, per 64 images."""
    pixel_forward: float
    """Nonzero pixel of one image in the forward pass only, per 64 outputs."""
    dense_forward: float
    """Weight of another layer with traversal "all then weights", without the gradient of the weights, per 64 images."""


def choose_traversals(job: TrainingJob, data: SplitData, costs: TraversalCosts) -> dict[str, Traversal]:
    """Return the cheapest traversal of each layer.

    Pruned weights that are frozen at values other than 0 must be read: "weights" is then not possible.
    Source: docs/performance.md.
    """
    traversals: dict[str, Traversal] = {}
    image_blocks = round_up(job.recipe.batch_size) // VECTOR_WIDTH
    for layer in job.layers:
        assert isinstance(layer, Dense)
        name, is_first = f"{layer.name}.weight", not traversals
        mask, weights = job.start.masks[name], job.start.weights[name]
        surviving, outputs = image_blocks * int(mask.sum()), round_up(layer.outputs)
        # In nanoseconds per step.
        nanoseconds: dict[Traversal, float] = {"weights": surviving * (costs.weight if is_first else costs.inner)}
        if bool((weights[~mask] != 0).any()):
            nanoseconds.clear()
        if is_first:
            nonzero_pixels = job.recipe.batch_size * layer.inputs * nonzero_pixel_fraction(data)
            pixel_products = nonzero_pixels * outputs / VECTOR_WIDTH
            nanoseconds["pixels"] = pixel_products * costs.pixel + outputs * layer.inputs * costs.pixel_update
            nanoseconds["pixels then weights"] = pixel_products * costs.pixel_forward + surviving * costs.sparse_grad
        else:
            weight_products = image_blocks * layer.inputs * outputs
            nanoseconds["all"] = weight_products * costs.dense
            nanoseconds["all then weights"] = weight_products * costs.dense_forward + surviving * costs.sparse_grad
        traversals[layer.name] = min(nanoseconds, key=lambda traversal: nanoseconds[traversal])
    return traversals


def nonzero_pixel_fraction(data: SplitData) -> float:
    """Return the share of pixels that are not 0, in the first 1,000 training images."""
    sample = data.train_images[:1000]
    return float(np.count_nonzero(sample) / sample.size)


# --- order of the weights in sparse kernels ---

CACHE_COLUMNS = 128
"""Columns per block: 32 kB of a fully connected layer's inputs, in 64 images."""

MIN_WEIGHTS_PER_BLOCK = 16
"""Surviving weights per row and block. With fewer, loading and storing a row's sum costs more than the cache saves."""


@dataclass(frozen=True)
class BlockedIndex:
    """Order in which a kernel traverses weights: by block of columns, then by row."""

    first: NDArray[np.int64]
    """`(blocks, rows + 1)`: the weights of block q and row j are `first[q, j]` to `first[q, j + 1] - 1`."""
    offset: NDArray[np.int32]
    """`(weights,)`: position in the kernel's input of the vector that each weight is multiplied by, in floats."""
    order: NDArray[np.int64]
    """`(weights,)`: position of each weight in the lists from which the index was built."""


def block_index(
    rows: Array, columns: Array, offsets: Array, shape: tuple[int, int], cache_columns: int
) -> BlockedIndex:
    """Return the order of the weights at (rows, columns) of a matrix of this shape, whose inputs are at `offsets`.

    A block has about `cache_columns` columns, and more where few weights survive: at least `MIN_WEIGHTS_PER_BLOCK` per
    row on average. Within a block and a row, weights stay in the order given. Source: docs/performance.md.
    """
    block_width = max(cache_columns, MIN_WEIGHTS_PER_BLOCK * shape[0] * shape[1] // max(1, len(rows)))
    blocks = max(1, round(shape[1] / block_width))
    width = -(-shape[1] // blocks)
    key = columns // width * shape[0] + rows
    order = np.argsort(key, kind="stable")
    ends = np.searchsorted(key[order], np.arange(blocks * shape[0] + 1))
    # One end more per block than rows: the last end of a block is the first of the next.
    first = np.stack([ends[q * shape[0] : (q + 1) * shape[0] + 1] for q in range(blocks)])
    return BlockedIndex(first, offsets[order].astype(np.int32), order)
