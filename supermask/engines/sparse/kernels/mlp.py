"""Fully connected networks: many training steps, or a whole evaluation, as one compiled loop.

One call trains from one evaluation to the next without Python or the GIL. `net` is `layout.MLPBuffers`, `layer` a row
of its table; shape letters as in `layout`. A layer's `traversal` decides which functions compute its products.

Source: Zhou et al. 2019, Sec. 1.
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
    """Take one step for each row of `batches`, int64 `(steps, batch_size)`, and write its loss to `losses`.

    `optimizer_steps[i]`: hyperparameters of step i. `images`: uint8, flat `(images, P)`.
    """
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
    """Return the sum of the cross-entropies in nats, float64, and the number of correctly classified images."""
    loss, correct = 0.0, 0
    layer = net.table[len(net.table) - 1]
    chosen = net.batch_scratch
    for start in range(0, len(labels), VECTOR_WIDTH):
        count = min(VECTOR_WIDTH, len(labels) - start)
        for b in range(count):
            chosen[b] = start + b
        load_batch(net, images, chosen[:count])
        forward(net, count)
        # Only the first block of the buffers is used: 64 images at a time.
        logits = net.x[layer.y * VECTOR_WIDTH :]
        loss += cross_entropy(
            layer.outputs, labels[start : start + count], logits, net.d[layer.y * VECTOR_WIDTH :], 1.0
        )
        correct += count_correct(layer.outputs, labels[start : start + count], logits)
    return loss, correct


@jit_inline
def load_batch(net, images, batch):
    """Write the pixels of a batch of images to the first layer's inputs, `(NB, P, B)`."""
    layer = net.table[0]
    for start in range(0, len(batch), VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        chosen = batch[start : start + VECTOR_WIDTH]
        load_images(images, layer.inputs, chosen, net.max_pixel, net.pixel_bytes_read, net.image_words, x)
        if layer.traversal == PIXELS:
            nonzero_pixel_bits(
                x, layer.inputs, net.nonzero_bits[start // VECTOR_WIDTH * layer.inputs :], net.ever_nonzero
            )


@jit_inline
def forward(net, images):
    """Compute the outputs of all layers for the first `images` images of the buffers."""
    for layer in net.table:
        if layer.traversal == PIXELS:
            forward_by_pixel(net, layer, images)
            continue
        for start in range(0, images, VECTOR_WIDTH):
            x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
            # ROWS units more than there are outputs: a dense tile writes whole tiles.
            y = net.x[vector_slice(net, start, layer.y, layer.outputs + ROWS)]
            bias = net.bias[layer.bias : layer.bias + layer.outputs]
            if layer.traversal == WEIGHTS:
                first, offset = net.first[layer.first :], net.offset[layer.offset :]
                w = net.w[layer.w : layer.w + layer.size]
                sparse_forward(first, layer.blocks, offset, w, bias, x, y, layer.last == 0)
            else:
                forward_dense(net, layer, bias, x, y)


@jit_inline
def forward_dense(net, layer, bias, x, y):
    """y[j] = bias[j] + sum over all inputs i of W[j, i] * x[i], then ReLU except in the last layer."""
    for j in range(0, layer.outputs, ROWS):
        tile = y[j * VECTOR_WIDTH :]
        gemm_tile_store(tile, False, net.w, layer.w + j * layer.width, layer.width, 1, x, 0, VECTOR_WIDTH, layer.inputs)
        for r in range(min(ROWS, layer.outputs - j)):
            total = fma(np.float32(1), splat(bias[j + r]), load(tile, r * VECTOR_WIDTH))
            if layer.last == 0:
                total = relu_where(total, total)
            store(tile, r * VECTOR_WIDTH, total)


@jit_inline
def forward_by_pixel(net, layer, images):
    """y[b] = bias + sum over the nonzero pixels p of image b of x[p, b] * W[p], 64 outputs at a time.

    The sums lie by image, `net.rows` `(B, 64 outputs)`, and are transposed into y, `(O, B)`, at the end.
    """
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        nonzero = net.nonzero_bits[start // VECTOR_WIDTH * layer.inputs :]
        for block in range(layer.width // VECTOR_WIDTH):
            bias = load(net.bias, layer.bias + block * VECTOR_WIDTH)
            for b in range(VECTOR_WIDTH):
                store(net.rows, b * VECTOR_WIDTH, bias)
            w_at = layer.w + block * layer.inputs * VECTOR_WIDTH
            for p in range(layer.inputs):
                bits = nonzero[p]
                if bits == 0:
                    continue
                # The pixel's 64 weights are loaded once for all images in which it is nonzero.
                row = load(net.w, w_at + p * VECTOR_WIDTH)
                while bits != 0:
                    b = count_trailing_zeros(bits)
                    store(
                        net.rows, b * VECTOR_WIDTH, fma(x[p * VECTOR_WIDTH + b], row, load(net.rows, b * VECTOR_WIDTH))
                    )
                    bits &= bits - np.uint64(1)  # clears the lowest set bit
            units = min(VECTOR_WIDTH, layer.outputs - block * VECTOR_WIDTH)
            y = net.x[vector_slice(net, start, layer.y + block * VECTOR_WIDTH, units)]
            transpose(net.rows, VECTOR_WIDTH, units, VECTOR_WIDTH, y, VECTOR_WIDTH)
            if layer.last == 0:
                for j in range(units):
                    values = load(y, j * VECTOR_WIDTH)
                    store(y, j * VECTOR_WIDTH, relu_where(values, values))


@jit_inline
def loss_and_grad(net, labels, batch):
    """Return the batch's mean cross-entropy in nats, and write its gradient at the logits to `net.d`."""
    # Labels are gathered once per block, so that the loss reads them in order.
    layer = net.table[len(net.table) - 1]
    targets = net.batch_scratch
    loss = 0.0
    for start in range(0, len(batch), VECTOR_WIDTH):
        count = min(VECTOR_WIDTH, len(batch) - start)
        for b in range(count):
            targets[b] = labels[batch[start + b]]
        logits = net.x[vector_slice(net, start, layer.y, layer.outputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        loss += cross_entropy(layer.outputs, targets[:count], logits, d, 1.0 / len(batch))
    return loss / len(batch)


@jit_inline
def backward(net, step, images):
    """Backpropagate and update, from the last layer to the first.

    The gradient at a layer's inputs is computed before its weights are updated: it needs the old ones.
    """
    for number in range(len(net.table) - 1, -1, -1):
        layer = net.table[number]
        if layer.x > 0:  # the first layer's inputs begin at unit 0, and pixels need no gradient
            if layer.traversal == WEIGHTS:
                input_grad_sparse(net, layer, images)
            else:
                input_grad_dense(net, layer, images)
        if layer.listed != 0:
            update_sparse(net, layer, step, images)
        elif layer.traversal == ALL:
            update_dense(net, layer, step, images)
        else:
            update_by_pixel(net, layer, step, images)
        update_bias(net, layer, step, images)


@jit_inline
def input_grad_sparse(net, layer, images):
    """Gradient at the inputs, over the surviving weights, by column."""
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        dx = net.d[vector_slice(net, start, layer.x, layer.inputs)]
        # Sums per column need the weights in column order; they are read through `column_order`, not copied.
        columns = net.first_in[layer.first_in : layer.first_in + layer.inputs + 1]
        w = net.w[layer.w : layer.w + layer.size]
        sparse_input_grad(
            columns, net.offset_in[layer.column_order :], net.column_order[layer.column_order :], w, d, x, dx
        )


@jit_inline
def update_sparse(net, layer, step, images):
    """Gradients and update of the surviving weights only; a dense copy that the forward pass reads is synchronized."""
    size = (layer.used + VECTOR_WIDTH - 1) // VECTOR_WIDTH * VECTOR_WIDTH
    g = net.g[:size]
    first, offset = net.first[layer.first :], net.offset[layer.offset :]
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        if start == 0:
            sparse_weight_grad(first, layer.blocks, layer.outputs, offset, x, d, g)
        else:
            block_g = net.g[size : 2 * size]
            sparse_weight_grad(first, layer.blocks, layer.outputs, offset, x, d, block_g)
            for k in range(layer.used):
                g[k] += block_g[k]
    g[layer.used :] = 0  # `net.g` is shared: another layer's gradients may lie behind the last weight
    compact = slice(layer.compact, layer.compact + size)
    w = net.w[compact]
    optimizer_step_all(step, g, w, net.m[compact], net.v[compact])
    if layer.traversal != WEIGHTS:
        for k in range(layer.used):
            net.w[load_scalar(net.dense_index, layer.dense_index + k)] = w[k]


@jit_inline
def input_grad_dense(net, layer, images):
    """Gradient at the inputs, over all weights: tiles of ROWS columns of W, read transposed."""
    for start in range(0, images, VECTOR_WIDTH):
        x = net.x[vector_slice(net, start, layer.x, layer.inputs)]
        d = net.d[vector_slice(net, start, layer.y, layer.outputs + ROWS)]
        dx = net.d[vector_slice(net, start, layer.x, layer.inputs + ROWS)]
        for i in range(0, layer.inputs, ROWS):
            tile = dx[i * VECTOR_WIDTH :]
            gemm_tile_store(tile, False, net.w, layer.w + i, 1, layer.width, d, 0, VECTOR_WIDTH, layer.outputs)
            for r in range(min(ROWS, layer.inputs - i)):
                store(tile, r * VECTOR_WIDTH, relu_where(load(tile, r * VECTOR_WIDTH), load(x, (i + r) * VECTOR_WIDTH)))


@jit_inline
def update_dense(net, layer, step, images):
    """Gradients of all weights, tile by tile, each followed by the optimizer step: they are never stored."""
    for start in range(0, images, VECTOR_WIDTH):
        x, count = net.x[vector_slice(net, start, layer.x, layer.inputs)], min(VECTOR_WIDTH, images - start)
        # By image, so that the gradient is a product over images with contiguous rows: dW = d x'.
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
                bits = net.trained_bits[layer.bits + (j + r) * (layer.width // VECTOR_WIDTH) + block]
                w_at = layer.w + (j + r) * layer.width + block * VECTOR_WIDTH
                optimizer_step(step, load(net.scratch, r * VECTOR_WIDTH), bits, net.w, net.m, net.v, w_at)


@jit_inline
def is_empty_block(net, layer, j, block):
    """Return True if no weight of 64 columns of the `ROWS` rows from j on is trained."""
    union = np.uint64(0)
    for r in range(min(ROWS, layer.outputs - j)):
        union |= net.trained_bits[layer.bits + (j + r) * (layer.width // VECTOR_WIDTH) + block]
    return union == 0


@jit_inline
def update_by_pixel(net, layer, step, images):
    """dL/dW[p] = sum over the images b in which p is nonzero of x[p, b] * d[b], 64 outputs at a time."""
    pixels = layer.inputs
    for block in range(layer.width // VECTOR_WIDTH - 1, -1, -1):  # what the forward pass read last is still in cache
        units = min(VECTOR_WIDTH, layer.outputs - block * VECTOR_WIDTH)
        for start in range(0, images, VECTOR_WIDTH):
            d = net.d[vector_slice(net, start, layer.y + block * VECTOR_WIDTH, units)]
            transpose(d, units, VECTOR_WIDTH, VECTOR_WIDTH, net.rows[start * VECTOR_WIDTH :], VECTOR_WIDTH)
        block_at = layer.w + block * pixels * VECTOR_WIDTH
        for p in range(pixels):
            trained = net.trained_bits[layer.bits + block * pixels + p]
            # Without any gradient so far all moments are zero: the step would change nothing.
            if trained == 0 or (net.ever_nonzero[p] == 0 and step.decay == 0):
                continue
            total = splat(np.float32(0))
            for start in range(0, images, VECTOR_WIDTH):
                bits = net.nonzero_bits[start // VECTOR_WIDTH * pixels + p]
                x_at = (start // VECTOR_WIDTH * net.units + layer.x + p) * VECTOR_WIDTH
                while bits != 0:
                    b = count_trailing_zeros(bits)
                    total = fma(net.x[x_at + b], load(net.rows, (start + b) * VECTOR_WIDTH), total)
                    bits &= bits - np.uint64(1)
            optimizer_step(step, total, trained, net.w, net.m, net.v, block_at + p * VECTOR_WIDTH)


@jit_inline
def update_bias(net, layer, step, images):
    """Gradients and update of all biases; biases are never pruned."""
    one = splat(np.float32(1))
    for start in range(0, images, VECTOR_WIDTH):
        d = net.d[vector_slice(net, start, layer.y, layer.outputs)]
        for j in range(layer.outputs):
            total = dot(one, load(d, j * VECTOR_WIDTH))
            net.bias_g[j] = total if start == 0 else net.bias_g[j] + total
    length = (layer.outputs + VECTOR_WIDTH - 1) // VECTOR_WIDTH * VECTOR_WIDTH
    net.bias_g[layer.outputs : length] = 0
    positions = slice(layer.bias, layer.bias + length)
    optimizer_step_all(step, net.bias_g[:length], net.bias[positions], net.bias_m[positions], net.bias_v[positions])
