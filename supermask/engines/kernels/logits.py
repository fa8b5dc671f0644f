"""A mask over a fully connected network, learned: many steps as one compiled loop.

`net.w` holds the weights of a pass, b w (times a layer's size / ones, if rescaled), and `net.m` the gradients with
respect to them; everything else about the mask is in `Mask`, laid out as `net.w` is.
Source: paper.md section 6; the products: `fc`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from supermask.engines.kernels.bits import chosen
from supermask.engines.kernels.chance import coins, sigmoid, where_less
from supermask.engines.kernels.compiling import kernel, part
from supermask.engines.kernels.fc import backward, forward, loss_of, read
from supermask.engines.kernels.lanes import LANES, dot, fma, load, multiply, splat, store, subtract
from supermask.engines.kernels.network import PIXELS
from supermask.engines.kernels.pixels import ask_for
from supermask.engines.kernels.updates import update


class Mask(NamedTuple):
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


@kernel
def train(net, mask, nothing, how, keys, images, labels, batches, losses):
    """One step for each row of `batches`; `how[i]` is step i's optimiser, `nothing` one that leaves gradients alone.

    `keys` `(steps, layers, 2)`: of each step's coins. Afterwards `net.w` are the weights of the last pass.
    """
    draw(net, mask, keys[0])
    for i in range(len(batches)):
        batch = batches[i]
        read(net, images, batch)
        if i + 1 < len(batches):
            ask_for(images, net.table[0].inputs, batches[i + 1])
        forward(net, len(batch))
        losses[i] = loss_of(net, labels, batch)
        backward(net, nothing, len(batch))
        for number in range(len(net.table)):
            learn(net, mask, number, how[i])
        if i + 1 < len(batches):
            draw(net, mask, keys[i + 1])


@kernel
def draw_pass(net, mask, keys):
    """The weights of one pass to `net.w`; `keys` `(layers, 2)`."""
    draw(net, mask, keys)


@part
def draw(net, mask, keys):
    for number in range(len(net.table)):
        layer = net.table[number]
        mask.ones[number] = draw_layer(net, mask, layer, keys[number, 0], keys[number, 1])
        if mask.rescaled != 0:
            ratio = splat(np.float32(mask.sizes[number] / max(mask.ones[number], np.float32(1))))
            for place in range(layer.w, layer.w + layer.size, LANES):
                store(net.w, place, multiply(ratio, load(net.w, place)))


@part
def draw_layer(net, mask, layer, key0, key1):
    """b w for every weight of a layer; how many ones there are."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    count = zero
    step = layer.inputs if layer.walk == PIXELS else 1
    for k in range(layer.size // LANES):
        word = net.words[layer.words + k]
        if word == 0:
            continue
        place = layer.w + k * LANES
        p = sigmoid(load(mask.logits, place))
        store(mask.p, place, p)
        if mask.bernoulli != 0:
            b = where_less(coins(key0, key1, number_of(layer, k), step), p, one, zero)
        else:
            b = where_less(zero, load(mask.logits, place), one, zero)
        b = chosen(word, b)
        count = fma(np.float32(1), b, count)
        store(net.w, place, multiply(b, load(mask.base, place)))
    return dot(one, count)


@part
def number_of(layer, k):
    """The number, in C order of the kernel (out, in), of the first of the k-th 64 weights."""
    if layer.walk == PIXELS:
        return k // layer.inputs * LANES * layer.inputs + k % layer.inputs
    blocks = layer.width // LANES
    return k // blocks * layer.inputs + k % blocks * LANES


@part
def learn(net, mask, number, how):
    """dL/db = G w r - (sum of G W) / ones, the second part if rescaled; dL/dlogit = dL/db p (1 - p); then a step."""
    layer = net.table[number]
    ratio, through = np.float32(1), splat(np.float32(0))
    if mask.rescaled != 0:
        ones = max(mask.ones[number], np.float32(1))
        ratio, total = np.float32(mask.sizes[number] / ones), splat(np.float32(0))
        for place in range(layer.w, layer.w + layer.size, LANES):
            total = fma(load(net.m, place), load(net.w, place), total)
        through = splat(dot(splat(np.float32(1)), total) / ones)
    for k in range(layer.size // LANES):
        word = net.words[layer.words + k]
        if word == 0:
            continue
        place = layer.w + k * LANES
        p = load(mask.p, place)
        g = subtract(multiply(multiply(splat(ratio), load(mask.base, place)), load(net.m, place)), through)
        g = multiply(g, subtract(p, multiply(p, p)))
        update(how, g, word, mask.logits, mask.m, mask.v, place)
