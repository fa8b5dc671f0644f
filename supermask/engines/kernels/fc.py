"""Fully connected networks: many training steps, or a whole evaluation, as one compiled loop.

Source: paper.md section 1; what walks over what: `network`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.bits import lowest
from supermask.engines.kernels.compiling import kernel, part
from supermask.engines.kernels.lanes import LANES, at, dot, fma, load, positive, splat, store
from supermask.engines.kernels.loss import count_right, cross_entropy
from supermask.engines.kernels.network import ALL, PIXELS, WEIGHTS, lanes_of
from supermask.engines.kernels.pixels import ask_for, find_lit, read_images
from supermask.engines.kernels.products import (
    ROWS,
    gradients_of_weights,
    inputs_of_weights,
    outputs_of_weights,
    tile_into,
    transpose,
)
from supermask.engines.kernels.updates import update, update_all


@kernel
def train(net, how, images, labels, batches, losses):
    """One step for each row of `batches`, int64 `(steps, batch_size)`; `how[i]` is step i's optimiser."""
    for i in range(len(batches)):
        batch = batches[i]
        read(net, images, batch)
        if i + 1 < len(batches):
            ask_for(images, net.table[0].inputs, batches[i + 1])
        forward(net, len(batch))
        losses[i] = loss_of(net, labels, batch)
        backward(net, how[i], len(batch))


@kernel
def measure(net, images, labels):
    """The sum of the cross-entropies, float64, and the number of images whose label has the first highest logit."""
    loss, right = 0.0, 0
    layer = net.table[len(net.table) - 1]
    chosen = net.chosen
    for start in range(0, len(labels), LANES):
        count = min(LANES, len(labels) - start)
        for b in range(count):
            chosen[b] = start + b
        read(net, images, chosen[:count])
        forward(net, count)
        logits = net.x[layer.y * LANES :]
        loss += cross_entropy(layer.outputs, labels[start : start + count], logits, net.d[layer.y * LANES :], 1.0)
        right += count_right(layer.outputs, labels[start : start + count], logits)
    return loss, right


@part
def read(net, images, batch):
    layer = net.table[0]
    for start in range(0, len(batch), LANES):
        x = net.x[lanes_of(net, start, layer.x, layer.inputs)]
        chosen = batch[start : start + LANES]
        read_images(images, layer.inputs, chosen, net.maximum, net.needed, net.eights, x)
        if layer.walk == PIXELS:
            find_lit(x, layer.inputs, net.lit[start // LANES * layer.inputs :], net.seen)


@part
def forward(net, images):
    for layer in net.table:
        if layer.walk == PIXELS:
            forward_pixels(net, layer, images)
            continue
        for start in range(0, images, LANES):
            x = net.x[lanes_of(net, start, layer.x, layer.inputs)]
            y = net.x[lanes_of(net, start, layer.y, layer.outputs + ROWS)]
            bias = net.bias[layer.bias : layer.bias + layer.outputs]
            if layer.walk == WEIGHTS:
                first, offset = net.first[layer.first :], net.offset[layer.offset :]
                w = net.w[layer.w : layer.w + layer.size]
                outputs_of_weights(first, layer.shares, offset, w, bias, x, y, layer.last == 0)
            else:
                forward_all(net, layer, bias, x, y)


@part
def forward_all(net, layer, bias, x, y):
    for j in range(0, layer.outputs, ROWS):
        four = y[j * LANES :]
        tile_into(four, False, net.w, layer.w + j * layer.width, layer.width, 1, x, 0, LANES, layer.inputs)
        for r in range(min(ROWS, layer.outputs - j)):
            total = fma(np.float32(1), splat(bias[j + r]), load(four, r * LANES))
            if layer.last == 0:
                total = positive(total, total)
            store(four, r * LANES, total)


@part
def forward_pixels(net, layer, images):
    """y[b] = bias + sum over the lit pixels p of image b of x[p, b] * W[p], 64 outputs at a time; then into lanes."""
    for start in range(0, images, LANES):
        x = net.x[lanes_of(net, start, layer.x, layer.inputs)]
        lit = net.lit[start // LANES * layer.inputs :]
        for block in range(layer.width // LANES):
            bias = load(net.bias, layer.bias + block * LANES)
            for b in range(LANES):
                store(net.rows, b * LANES, bias)
            here = layer.w + block * layer.inputs * LANES
            for p in range(layer.inputs):
                bits = lit[p]
                if bits == 0:
                    continue
                row = load(net.w, here + p * LANES)
                while bits != 0:
                    b = lowest(bits)
                    store(net.rows, b * LANES, fma(x[p * LANES + b], row, load(net.rows, b * LANES)))
                    bits &= bits - np.uint64(1)
            units = min(LANES, layer.outputs - block * LANES)
            y = net.x[lanes_of(net, start, layer.y + block * LANES, units)]
            transpose(net.rows, LANES, units, LANES, y, LANES)
            if layer.last == 0:
                for j in range(units):
                    values = load(y, j * LANES)
                    store(y, j * LANES, positive(values, values))


@part
def loss_of(net, labels, batch):
    """The batch's mean cross-entropy; its gradient at the logits goes to `net.d`."""
    layer = net.table[len(net.table) - 1]
    right = net.chosen
    loss = 0.0
    for start in range(0, len(batch), LANES):
        count = min(LANES, len(batch) - start)
        for b in range(count):
            right[b] = labels[batch[start + b]]
        logits = net.x[lanes_of(net, start, layer.y, layer.outputs)]
        d = net.d[lanes_of(net, start, layer.y, layer.outputs)]
        loss += cross_entropy(layer.outputs, right[:count], logits, d, 1.0 / len(batch))
    return loss / len(batch)


@part
def backward(net, how, images):
    """From the last layer to the first: the gradient at its inputs with the weights as they are, then their update."""
    for number in range(len(net.table) - 1, -1, -1):
        layer = net.table[number]
        if layer.x > 0:
            if layer.walk == WEIGHTS:
                inputs_of_listed(net, layer, images)
            else:
                inputs_of_all(net, layer, images)
        if layer.listed != 0:
            learn_listed(net, layer, how, images)
        elif layer.walk == ALL:
            learn_all(net, layer, how, images)
        else:
            learn_pixels(net, layer, how, images)
        learn_bias(net, layer, how, images)


@part
def inputs_of_listed(net, layer, images):
    for start in range(0, images, LANES):
        x = net.x[lanes_of(net, start, layer.x, layer.inputs)]
        d = net.d[lanes_of(net, start, layer.y, layer.outputs)]
        dx = net.d[lanes_of(net, start, layer.x, layer.inputs)]
        columns = net.first_in[layer.first_in : layer.first_in + layer.inputs + 1]
        w = net.w[layer.w : layer.w + layer.size]
        inputs_of_weights(columns, net.offset_in[layer.place :], net.place[layer.place :], w, d, x, dx)


@part
def learn_listed(net, layer, how, images):
    """Gradients and update of the surviving weights alone; where outputs walk over more, these follow."""
    size = (layer.used + LANES - 1) // LANES * LANES
    g = net.g[:size]
    first, offset = net.first[layer.first :], net.offset[layer.offset :]
    for start in range(0, images, LANES):
        x = net.x[lanes_of(net, start, layer.x, layer.inputs)]
        d = net.d[lanes_of(net, start, layer.y, layer.outputs)]
        if start == 0:
            gradients_of_weights(first, layer.shares, layer.outputs, offset, x, d, g)
        else:
            more = net.g[size : 2 * size]
            gradients_of_weights(first, layer.shares, layer.outputs, offset, x, d, more)
            for k in range(layer.used):
                g[k] += more[k]
    g[layer.used :] = 0  # what another layer left behind the last weight
    there = slice(layer.compact, layer.compact + size)
    w = net.w[there]
    update_all(how, g, w, net.m[there], net.v[there])
    if layer.walk != WEIGHTS:
        for k in range(layer.used):
            net.w[at(net.home, layer.home + k)] = w[k]


@part
def inputs_of_all(net, layer, images):
    for start in range(0, images, LANES):
        x = net.x[lanes_of(net, start, layer.x, layer.inputs)]
        d = net.d[lanes_of(net, start, layer.y, layer.outputs + ROWS)]
        dx = net.d[lanes_of(net, start, layer.x, layer.inputs + ROWS)]
        for i in range(0, layer.inputs, ROWS):
            four = dx[i * LANES :]
            tile_into(four, False, net.w, layer.w + i, 1, layer.width, d, 0, LANES, layer.outputs)
            for r in range(min(ROWS, layer.inputs - i)):
                store(four, r * LANES, positive(load(four, r * LANES), load(x, (i + r) * LANES)))


@part
def learn_all(net, layer, how, images):
    for start in range(0, images, LANES):
        x, count = net.x[lanes_of(net, start, layer.x, layer.inputs)], min(LANES, images - start)
        transpose(x, layer.inputs, count, LANES, net.rows[start * layer.width :], layer.width)
    for j in range(0, layer.outputs, ROWS):
        for block in range(layer.width // LANES):
            if no_weight(net, layer, j, block):
                continue
            for start in range(0, images, LANES):
                d = net.d[lanes_of(net, start, layer.y, layer.outputs + ROWS)]
                x_at, count = start * layer.width + block * LANES, min(LANES, images - start)
                tile_into(net.scratch, start > 0, d, j * LANES, LANES, 1, net.rows, x_at, layer.width, count)
            for r in range(min(ROWS, layer.outputs - j)):
                word = net.words[layer.words + (j + r) * (layer.width // LANES) + block]
                here = layer.w + (j + r) * layer.width + block * LANES
                update(how, load(net.scratch, r * LANES), word, net.w, net.m, net.v, here)


@part
def no_weight(net, layer, j, block):
    """Whether none of 64 columns of `ROWS` rows survives."""
    found = np.uint64(0)
    for r in range(min(ROWS, layer.outputs - j)):
        found |= net.words[layer.words + (j + r) * (layer.width // LANES) + block]
    return found == 0


@part
def learn_pixels(net, layer, how, images):
    """dL/dW[p] = sum over the images b in which p is lit of x[p, b] * d[b], 64 outputs at a time."""
    pixels = layer.inputs
    for block in range(layer.width // LANES - 1, -1, -1):  # what the forward pass read last is still near
        units = min(LANES, layer.outputs - block * LANES)
        for start in range(0, images, LANES):
            d = net.d[lanes_of(net, start, layer.y + block * LANES, units)]
            transpose(d, units, LANES, LANES, net.rows[start * LANES :], LANES)
        here = layer.w + block * pixels * LANES
        for p in range(pixels):
            word = net.words[layer.words + block * pixels + p]
            if word == 0 or (net.seen[p] == 0 and how.decay == 0):  # no gradient yet: nothing would move
                continue
            total = splat(np.float32(0))
            for start in range(0, images, LANES):
                bits = net.lit[start // LANES * pixels + p]
                x_at = (start // LANES * net.units + layer.x + p) * LANES
                while bits != 0:
                    b = lowest(bits)
                    total = fma(net.x[x_at + b], load(net.rows, (start + b) * LANES), total)
                    bits &= bits - np.uint64(1)
            update(how, total, word, net.w, net.m, net.v, here + p * LANES)


@part
def learn_bias(net, layer, how, images):
    one = splat(np.float32(1))
    for start in range(0, images, LANES):
        d = net.d[lanes_of(net, start, layer.y, layer.outputs)]
        for j in range(layer.outputs):
            total = dot(one, load(d, j * LANES))
            net.bias_g[j] = total if start == 0 else net.bias_g[j] + total
    length = (layer.outputs + LANES - 1) // LANES * LANES
    net.bias_g[layer.outputs : length] = 0
    there = slice(layer.bias, layer.bias + length)
    update_all(how, net.bias_g[:length], net.bias[there], net.bias_m[there], net.bias_v[there])
