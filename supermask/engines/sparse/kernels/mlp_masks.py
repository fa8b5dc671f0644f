"""Mask learning over a fully connected network: many steps as one compiled loop.

`net` is `layout.MLPBuffers`, `mask` a `MaskBuffers` whose arrays are laid out as `net.w`. `net.w` holds the weights of
one forward pass, b w (times a layer's size / ones, if rescaled). `net.m` holds the gradients with respect to them: the
kernels of `mlp` leave them there when they are given an optimizer with rate 0 and momentum 0.
Source: Zhou et al. 2019, Sec. 5.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_entry, jit_inline
from supermask.engines.sparse.kernels.layout import PIXELS, prefetch_images
from supermask.engines.sparse.kernels.mlp import backward, forward, load_batch, loss_and_grad
from supermask.engines.sparse.kernels.optimizer import optimizer_step
from supermask.engines.sparse.kernels.random import hash_uniform, select_less, sigmoid
from supermask.engines.sparse.kernels.simd import (
    VECTOR_WIDTH,
    dot,
    fma,
    load,
    multiply,
    select_lanes,
    splat,
    store,
    subtract,
)


class MaskBuffers(NamedTuple):
    """All arrays of one mask in training. `(layers,)` where stated, else laid out as `net.w`."""

    logits: Any
    base: Any
    """The fixed weights w."""
    p: Any
    """sigmoid(logits)."""
    m: Any
    """First moments, or momentum buffers, of the logits."""
    v: Any
    """Second moments of the logits."""
    ones: Any
    """float32 `(layers,)`: number of ones in the mask of this forward pass."""
    sizes: Any
    """float32 `(layers,)`: number of weights."""
    bernoulli: int
    """1: b = 1 with probability p. 0: b = 1 where the logit is above 0."""
    rescaled: int
    """1: dynamic weight rescaling."""


@jit_entry
def train(net, mask, no_update, steps, keys, images, labels, batches, losses):
    """Take one step for each row of `batches`, int64 `(steps, batch_size)`, and write its loss to `losses`.

    `steps[i]`: hyperparameters of step i. `no_update`: those that change no weight. `keys`: keys of the uniform numbers
    of each step, uint32 `(steps, layers, 2)`. Afterwards `net.w` holds the weights of the last forward pass.
    """
    sample(net, mask, keys[0])
    for i in range(len(batches)):
        batch = batches[i]
        load_batch(net, images, batch)
        if i + 1 < len(batches):
            prefetch_images(images, net.table[0].inputs, batches[i + 1])
        forward(net, len(batch))
        losses[i] = loss_and_grad(net, labels, batch)
        backward(net, no_update, len(batch))
        for number in range(len(net.table)):
            update_logits(net, mask, number, steps[i])
        # Not after the last step: the caller reads the weights of the last forward pass.
        if i + 1 < len(batches):
            sample(net, mask, keys[i + 1])


@jit_entry
def sample_weights(net, mask, keys):
    """Write the weights of one forward pass to `net.w`; `keys`, uint32 `(layers, 2)`."""
    sample(net, mask, keys)


@jit_inline
def sample(net, mask, keys):
    """Write the weights of one forward pass of every layer to `net.w`, and count the ones of each mask."""
    for number in range(len(net.table)):
        layer = net.table[number]
        mask.ones[number] = sample_layer(net, mask, layer, keys[number, 0], keys[number, 1])
        if mask.rescaled != 0:
            # A second sweep: the ratio needs the number of ones of the whole layer.
            ratio = splat(np.float32(mask.sizes[number] / max(mask.ones[number], np.float32(1))))
            for at in range(layer.w, layer.w + layer.size, VECTOR_WIDTH):
                store(net.w, at, multiply(ratio, load(net.w, at)))


@jit_inline
def sample_layer(net, mask, layer, key0, key1):
    """Write b w for every weight of a layer to `net.w`; return the number of ones."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    count = zero
    # Distance, in C order of the kernel (out, in), between the weights of neighboring lanes: outputs for PIXELS, inputs
    # for ALL. The uniform number of a weight depends on its position in C order, not on the layout.
    step = layer.inputs if layer.traversal == PIXELS else 1
    for k in range(layer.size // VECTOR_WIDTH):
        bits = net.trained_bits[layer.bits + k]
        if bits == 0:  # padding
            continue
        at = layer.w + k * VECTOR_WIDTH
        p = sigmoid(load(mask.logits, at))
        store(mask.p, at, p)
        if mask.bernoulli != 0:
            b = select_less(hash_uniform(key0, key1, first_weight_index(layer, k), step), p, one, zero)
        else:
            b = select_less(zero, load(mask.logits, at), one, zero)
        b = select_lanes(bits, b)
        count = fma(np.float32(1), b, count)
        store(net.w, at, multiply(b, load(mask.base, at)))
    # Exact: each lane counts whole numbers below 2^24.
    return dot(one, count)


@jit_inline
def first_weight_index(layer, k):
    """Return the position, in C order of the kernel (out, in), of the first of the k-th 64 weights of a layer."""
    if layer.traversal == PIXELS:
        return k // layer.inputs * VECTOR_WIDTH * layer.inputs + k % layer.inputs
    blocks = layer.width // VECTOR_WIDTH
    return k // blocks * layer.inputs + k % blocks * VECTOR_WIDTH


@jit_inline
def update_logits(net, mask, number, step):
    """Take one optimizer step on the logits of a layer.

    dL/dlogit = dL/db p (1 - p), with dL/db = G w r - (sum of G W) / ones. G: gradient with respect to the weights W of
    the forward pass; r: the ratio size / ones. The second term is there only if rescaled; without it r = 1.
    """
    layer = net.table[number]
    ratio, mean_term = np.float32(1), splat(np.float32(0))
    if mask.rescaled != 0:
        ones = max(mask.ones[number], np.float32(1))
        ratio, total = np.float32(mask.sizes[number] / ones), splat(np.float32(0))
        for at in range(layer.w, layer.w + layer.size, VECTOR_WIDTH):
            total = fma(load(net.m, at), load(net.w, at), total)
        mean_term = splat(dot(splat(np.float32(1)), total) / ones)
    for k in range(layer.size // VECTOR_WIDTH):
        bits = net.trained_bits[layer.bits + k]
        if bits == 0:
            continue
        at = layer.w + k * VECTOR_WIDTH
        p = load(mask.p, at)
        g = subtract(multiply(multiply(splat(ratio), load(mask.base, at)), load(net.m, at)), mean_term)
        g = multiply(g, subtract(p, multiply(p, p)))
        optimizer_step(step, g, bits, mask.logits, mask.m, mask.v, at)
