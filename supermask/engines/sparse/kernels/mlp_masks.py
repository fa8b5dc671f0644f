"""A mask over a fully connected network, learned: many steps as one compiled loop.

`net.w` holds the weights of a pass, b w (times a layer's size / ones, if rescaled), and `net.m` the gradients with
respect to them; everything else about the mask is in `Mask`, laid out as `net.w` is.
Source: paper.md section 6; the products: `fc`.
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
    """All arrays of a mask in training."""

    logits: Any
    base: Any
    """The weights that never move."""
    p: Any
    """sigmoid(logits)."""
    m: Any
    v: Any
    """The optimiser's."""
    ones: Any
    """`(layers,)`: in this pass's mask."""
    sizes: Any
    """`(layers,)`: weights in all."""
    bernoulli: int
    """Else a weight is kept where its logit is above 0."""
    rescaled: int


@jit_entry
def train(net, mask, no_update, how, keys, images, labels, batches, losses):
    """One step for each row of `batches`; `how[i]` is step i's optimiser, `nothing` one that leaves gradients alone.

    `keys` `(steps, layers, 2)`: of each step's coins. Afterwards `net.w` are the weights of the last pass.
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
            update_logits(net, mask, number, how[i])
        if i + 1 < len(batches):
            sample(net, mask, keys[i + 1])


@jit_entry
def sample_weights(net, mask, keys):
    """The weights of one pass to `net.w`; `keys` `(layers, 2)`."""
    sample(net, mask, keys)


@jit_inline
def sample(net, mask, keys):
    for number in range(len(net.table)):
        layer = net.table[number]
        mask.ones[number] = sample_layer(net, mask, layer, keys[number, 0], keys[number, 1])
        if mask.rescaled != 0:
            ratio = splat(np.float32(mask.sizes[number] / max(mask.ones[number], np.float32(1))))
            for place in range(layer.w, layer.w + layer.size, VECTOR_WIDTH):
                store(net.w, place, multiply(ratio, load(net.w, place)))


@jit_inline
def sample_layer(net, mask, layer, key0, key1):
    """b w for every weight of a layer; how many ones there are."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    count = zero
    step = layer.inputs if layer.walk == PIXELS else 1
    for k in range(layer.size // VECTOR_WIDTH):
        word = net.words[layer.words + k]
        if word == 0:
            continue
        place = layer.w + k * VECTOR_WIDTH
        p = sigmoid(load(mask.logits, place))
        store(mask.p, place, p)
        if mask.bernoulli != 0:
            b = select_less(hash_uniform(key0, key1, first_weight_index(layer, k), step), p, one, zero)
        else:
            b = select_less(zero, load(mask.logits, place), one, zero)
        b = select_lanes(word, b)
        count = fma(np.float32(1), b, count)
        store(net.w, place, multiply(b, load(mask.base, place)))
    return dot(one, count)


@jit_inline
def first_weight_index(layer, k):
    """The number, in C order of the kernel (out, in), of the first of the k-th 64 weights."""
    if layer.walk == PIXELS:
        return k // layer.inputs * VECTOR_WIDTH * layer.inputs + k % layer.inputs
    blocks = layer.width // VECTOR_WIDTH
    return k // blocks * layer.inputs + k % blocks * VECTOR_WIDTH


@jit_inline
def update_logits(net, mask, number, how):
    """dL/db = G w r - (sum of G W) / ones, the second part if rescaled; dL/dlogit = dL/db p (1 - p); then a step."""
    layer = net.table[number]
    ratio, through = np.float32(1), splat(np.float32(0))
    if mask.rescaled != 0:
        ones = max(mask.ones[number], np.float32(1))
        ratio, total = np.float32(mask.sizes[number] / ones), splat(np.float32(0))
        for place in range(layer.w, layer.w + layer.size, VECTOR_WIDTH):
            total = fma(load(net.m, place), load(net.w, place), total)
        through = splat(dot(splat(np.float32(1)), total) / ones)
    for k in range(layer.size // VECTOR_WIDTH):
        word = net.words[layer.words + k]
        if word == 0:
            continue
        place = layer.w + k * VECTOR_WIDTH
        p = load(mask.p, place)
        g = subtract(multiply(multiply(splat(ratio), load(mask.base, place)), load(net.m, place)), through)
        g = multiply(g, subtract(p, multiply(p, p)))
        optimizer_step(how, g, word, mask.logits, mask.m, mask.v, place)
