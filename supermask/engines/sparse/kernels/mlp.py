"""Fully connected networks: many training steps, or a whole evaluation, as one compiled loop.

Source: paper.md section 1; what walks over what: `network`.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_entry, jit_inline
from supermask.engines.sparse.kernels.layout import (
    ALL,
    PIXELS,
    WEIGHTS,
    load_images,
    nonzero_pixel_bits,
    prefetch_images,
    vector_slice,
)
from supermask.engines.sparse.kernels.loss import count_correct, cross_entropy
from supermask.engines.sparse.kernels.matmul import (
    ROWS,
    gemm_tile_store,
    sparse_forward,
    sparse_input_grad,
    sparse_weight_grad,
    transpose,
)
from supermask.engines.sparse.kernels.optimizer import optimizer_step, optimizer_step_all
from supermask.engines.sparse.kernels.simd import (
    VECTOR_WIDTH,
    count_trailing_zeros,
    dot,
    fma,
    load,
    load_scalar,
    relu_where,
    splat,
    store,
)


@jit_entry
def train(net, optimizer_steps, images, labels, batches, losses):
    """One step for each row of `batches`, int64 `(steps, batch_size)`; `how[i]` is step i's optimiser."""
    for i in range(len(batches)):
        batch = batches[i]
        load_batch(net, images, batch)
        if i + 1 < len(batches):
            prefetch_images(images, net.table[0].inputs, batches[i + 1])
        forward(net, len(batch))
        losses[i] = loss_and_grad(net, labels, batch)
        backward(net, optimizer_steps[i], len(batch))


@jit_entry
def evaluate(net, images, labels):
    """The sum of the cross-entropies, float64, and the number of images whose label has the first highest logit."""
    loss, right = 0.0, 0
    layer = net.table[len(net.table) - 1]
    chosen = net.batch_scratch
    for start in range(0, len(labels), VECTOR_WIDTH):
        count = min(VECTOR_WIDTH, len(labels) - start)
        for b in range(count):
            chosen[b] = start + b
        load_batch(net, images, chosen[:count])
        forward(net, count)
        logits = net.x[layer.y * VECTOR_WIDTH :]
        loss += cross_entropy(
            layer.outputs, labels[start : start + count], logits, net.d[layer.y * VECTOR_WIDTH :], 1.0
        )
        right += count_correct(layer.outputs, labels[start : start + count], logits)
    return loss, right


@jit_inline
def load_batch(net, images, batch):
    layer = net.table[0]
    for start in range(0, len(batch), VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        chosen = batch[start : start + VECTOR_WIDTH]
        load_images(images, layer.inputs, chosen, net.maximum, net.pixel_bytes_read, net.eights, x)
        if layer.walk == PIXELS:
            nonzero_pixel_bits(
                x, layer.inputs, net.nonzero_bits[start // VECTOR_WIDTH * layer.inputs :], net.ever_nonzero
            )


@jit_inline
def forward(net, images):
    for layer in net.table:
        if layer.walk == PIXELS:
            forward_by_pixel(net, layer, images)
            continue
        for start in range(0, images, VECTOR_WIDTH):
            x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
            y = net.x[vector_slice(net, start, layer.y, layer.outputs + ROWS)]
            bias = net.bias[layer.bias : layer.bias + layer.outputs]
            if layer.walk == WEIGHTS:
                first, offset = net.first[layer.first :], net.offset[layer.offset :]
                w = net.w[layer.w : layer.w + layer.size]
                sparse_forward(first, layer.shares, offset, w, bias, x, y, layer.last == 0)
            else:
                forward_dense(net, layer, bias, x, y)


@jit_inline
def forward_dense(net, layer, bias, x, y):
    for j in range(0, layer.outputs, ROWS):
        four = y[j * VECTOR_WIDTH :]
        gemm_tile_store(four, False, net.w, layer.w + j * layer.width, layer.width, 1, x, 0, VECTOR_WIDTH, layer.inputs)
        for r in range(min(ROWS, layer.outputs - j)):
            total = fma(np.float32(1), splat(bias[j + r]), load(four, r * VECTOR_WIDTH))
            if layer.last == 0:
                total = relu_where(total, total)
            store(four, r * VECTOR_WIDTH, total)


@jit_inline
def forward_by_pixel(net, layer, images):
    """y[b] = bias + sum over the lit pixels p of image b of x[p, b] * W[p], 64 outputs at a time; then into lanes."""
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        lit = net.nonzero_bits[start // VECTOR_WIDTH * layer.inputs :]
        for block in range(layer.width // VECTOR_WIDTH):
            bias = load(net.bias, layer.bias + block * VECTOR_WIDTH)
            for b in range(VECTOR_WIDTH):
                store(net.rows, b * VECTOR_WIDTH, bias)
            here = layer.w + block * layer.inputs * VECTOR_WIDTH
            for p in range(layer.inputs):
                bits = lit[p]
                if bits == 0:
                    continue
                row = load(net.w, here + p * VECTOR_WIDTH)
                while bits != 0:
                    b = count_trailing_zeros(bits)
                    store(
                        net.rows, b * VECTOR_WIDTH, fma(x[p * VECTOR_WIDTH + b], row, load(net.rows, b * VECTOR_WIDTH))
                    )
                    bits &= bits - np.uint64(1)
            units = min(VECTOR_WIDTH, layer.outputs - block * VECTOR_WIDTH)
            y = net.x[vector_slice(net, start, layer.y + block * VECTOR_WIDTH, units)]
            transpose(net.rows, VECTOR_WIDTH, units, VECTOR_WIDTH, y, VECTOR_WIDTH)
            if layer.last == 0:
                for j in range(units):
                    values = load(y, j * VECTOR_WIDTH)
                    store(y, j * VECTOR_WIDTH, relu_where(values, values))


@jit_inline
def loss_and_grad(net, labels, batch):
    """The batch's mean cross-entropy; its gradient at the logits goes to `net.d`."""
    layer = net.table[len(net.table) - 1]
    right = net.batch_scratch
    loss = 0.0
    for start in range(0, len(batch), VECTOR_WIDTH):
        count = min(VECTOR_WIDTH, len(batch) - start)
        for b in range(count):
            right[b] = labels[batch[start + b]]
        logits = net.x[vector_slice(net, start, layer.y, layer.outputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        loss += cross_entropy(layer.outputs, right[:count], logits, d, 1.0 / len(batch))
    return loss / len(batch)


@jit_inline
def backward(net, how, images):
    """From the last layer to the first: the gradient at its inputs with the weights as they are, then their update."""
    for number in range(len(net.table) - 1, -1, -1):
        layer = net.table[number]
        if layer.x > 0:
            if layer.walk == WEIGHTS:
                input_grad_sparse(net, layer, images)
            else:
                input_grad_dense(net, layer, images)
        if layer.listed != 0:
            update_sparse(net, layer, how, images)
        elif layer.walk == ALL:
            update_dense(net, layer, how, images)
        else:
            update_by_pixel(net, layer, how, images)
        update_bias(net, layer, how, images)


@jit_inline
def input_grad_sparse(net, layer, images):
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        dx = net.d[vector_slice(net, start, layer.x, layer.inputs)]
        columns = net.first_in[layer.first_in : layer.first_in + layer.inputs + 1]
        w = net.w[layer.w : layer.w + layer.size]
        sparse_input_grad(
            columns, net.offset_in[layer.column_order :], net.column_order[layer.column_order :], w, d, x, dx
        )


@jit_inline
def update_sparse(net, layer, how, images):
    """Gradients and update of the surviving weights alone; where outputs walk over more, these follow."""
    size = (layer.used + VECTOR_WIDTH - 1) // VECTOR_WIDTH * VECTOR_WIDTH
    g = net.g[:size]
    first, offset = net.first[layer.first :], net.offset[layer.offset :]
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        if start == 0:
            sparse_weight_grad(first, layer.shares, layer.outputs, offset, x, d, g)
        else:
            more = net.g[size : 2 * size]
            sparse_weight_grad(first, layer.shares, layer.outputs, offset, x, d, more)
            for k in range(layer.used):
                g[k] += more[k]
    g[layer.used :] = 0  # what another layer left behind the last weight
    there = slice(layer.compact, layer.compact + size)
    w = net.w[there]
    optimizer_step_all(how, g, w, net.m[there], net.v[there])
    if layer.walk != WEIGHTS:
        for k in range(layer.used):
            net.w[load_scalar(net.dense_index, layer.dense_index + k)] = w[k]


@jit_inline
def input_grad_dense(net, layer, images):
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs + ROWS)]
        dx = net.d[vector_slice(net, start, layer.x, layer.inputs + ROWS)]
        for i in range(0, layer.inputs, ROWS):
            four = dx[i * VECTOR_WIDTH :]
            gemm_tile_store(four, False, net.w, layer.w + i, 1, layer.width, d, 0, VECTOR_WIDTH, layer.outputs)
            for r in range(min(ROWS, layer.inputs - i)):
                store(four, r * VECTOR_WIDTH, relu_where(load(four, r * VECTOR_WIDTH), load(x, (i + r) * VECTOR_WIDTH)))


@jit_inline
def update_dense(net, layer, how, images):
    for start in range(0, images, VECTOR_WIDTH):
        x, count = net.x[vector_slice(net, start, layer.x, layer.inputs)], min(VECTOR_WIDTH, images - start)
        transpose(x, layer.inputs, count, VECTOR_WIDTH, net.rows[start * layer.width :], layer.width)
    for j in range(0, layer.outputs, ROWS):
        for block in range(layer.width // VECTOR_WIDTH):
            if is_empty_block(net, layer, j, block):
                continue
            for start in range(0, images, VECTOR_WIDTH):
                d = net.d[vector_slice(net, start, layer.y, layer.outputs + ROWS)]
                x_at, count = start * layer.width + block * VECTOR_WIDTH, min(VECTOR_WIDTH, images - start)
                gemm_tile_store(
                    net.scratch, start > 0, d, j * VECTOR_WIDTH, VECTOR_WIDTH, 1, net.rows, x_at, layer.width, count
                )
            for r in range(min(ROWS, layer.outputs - j)):
                word = net.words[layer.words + (j + r) * (layer.width // VECTOR_WIDTH) + block]
                here = layer.w + (j + r) * layer.width + block * VECTOR_WIDTH
                optimizer_step(how, load(net.scratch, r * VECTOR_WIDTH), word, net.w, net.m, net.v, here)


@jit_inline
def is_empty_block(net, layer, j, block):
    """Whether none of 64 columns of `ROWS` rows survives."""
    found = np.uint64(0)
    for r in range(min(ROWS, layer.outputs - j)):
        found |= net.words[layer.words + (j + r) * (layer.width // VECTOR_WIDTH) + block]
    return found == 0


@jit_inline
def update_by_pixel(net, layer, how, images):
    """dL/dW[p] = sum over the images b in which p is lit of x[p, b] * d[b], 64 outputs at a time."""
    pixels = layer.inputs
    for block in range(layer.width // VECTOR_WIDTH - 1, -1, -1):  # what the forward pass read last is still near
        units = min(VECTOR_WIDTH, layer.outputs - block * VECTOR_WIDTH)
        for start in range(0, images, VECTOR_WIDTH):
            d = net.d[vector_slice(net, start, layer.y + block * VECTOR_WIDTH, units)]
            transpose(d, units, VECTOR_WIDTH, VECTOR_WIDTH, net.rows[start * VECTOR_WIDTH :], VECTOR_WIDTH)
        here = layer.w + block * pixels * VECTOR_WIDTH
        for p in range(pixels):
            word = net.words[layer.words + block * pixels + p]
            if word == 0 or (net.ever_nonzero[p] == 0 and how.decay == 0):  # no gradient yet: nothing would move
                continue
            total = splat(np.float32(0))
            for start in range(0, images, VECTOR_WIDTH):
                bits = net.nonzero_bits[start // VECTOR_WIDTH * pixels + p]
                x_at = (start // VECTOR_WIDTH * net.units + layer.x + p) * VECTOR_WIDTH
                while bits != 0:
                    b = count_trailing_zeros(bits)
                    total = fma(net.x[x_at + b], load(net.rows, (start + b) * VECTOR_WIDTH), total)
                    bits &= bits - np.uint64(1)
            optimizer_step(how, total, word, net.w, net.m, net.v, here + p * VECTOR_WIDTH)


@jit_inline
def update_bias(net, layer, how, images):
    one = splat(np.float32(1))
    for start in range(0, images, VECTOR_WIDTH):
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        for j in range(layer.outputs):
            total = dot(one, load(d, j * VECTOR_WIDTH))
            net.bias_g[j] = total if start == 0 else net.bias_g[j] + total
    length = (layer.outputs + VECTOR_WIDTH - 1) // VECTOR_WIDTH * VECTOR_WIDTH
    net.bias_g[layer.outputs : length] = 0
    there = slice(layer.bias, layer.bias + length)
    optimizer_step_all(how, net.bias_g[:length], net.bias[there], net.bias_m[there], net.bias_v[there])
