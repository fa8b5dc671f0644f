"""The products of a layer, for 64 images at a time: a unit's values in these images are one `Lanes`.

`x` is the layer's input, `(inputs, LANES)`, `d` the gradient of the loss at its output, `(outputs, LANES)`; both
flattened. Each function is one product of the training step. Those that walk over surviving weights cost as much as
there are; they take the inputs in shares that stay in the first cache: `first[q, j]` to `first[q, j + 1]` are the
weights of row j in share q. A `tile` is four whole rows of a dense product.

Source: paper.md section 1; how and how fast: docs/performance.md.

The dense products of a fully connected layer, for 64 images at a time; weights lie in panels of 64 columns.

w[p, j, i] is the weight from input 64 p + i to output j: `(columns / 64, rows, 64)`, flattened. Whichever way a product
walks, along rows or columns, it stays in one panel, and so in the second cache. Rows are a multiple of `ROWS`. (Conv2's
first such layer has 16,384 columns. Those of `fc` are few: there a matrix lies row by row.)

Source: paper.md section 2 (Conv2/4/6); how and how fast: docs/performance.md.

The products of a fully connected layer behind convolutions, one compiled function each, for 64 images at a time.

As in `products`, a unit's values in 64 images are one `Lanes`.

Source: paper.md section 2 (Conv2/4/6); how and how fast: docs/performance.md.
"""

from __future__ import annotations

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_entry, jit_inline
from supermask.engines.sparse.kernels.loss import count_correct, cross_entropy
from supermask.engines.sparse.kernels.optimizer import optimizer_step
from supermask.engines.sparse.kernels.simd import (
    VECTOR_WIDTH,
    dot,
    dot4,
    fma,
    load,
    load_scalar,
    relu_where,
    splat,
    store,
)

# mypy: disable-error-code="no-untyped-def"


ROWS = 4
"""Rows of a dense product that are computed together: 16 registers of AVX-512 hold their sums."""


@jit_inline
def sparse_forward(first, shares, offset, w, bias, x, y, relu):
    """y[j] = bias[j] + sum over the surviving weights k of row j of w[k] * x[offset[k]:], then ReLU."""
    rows = len(bias)
    for q in range(shares):
        of_share = first[q * (rows + 1) :]
        for j in range(rows):
            total = splat(bias[j]) if q == 0 else load(y, j * VECTOR_WIDTH)
            for k in range(of_share[j], of_share[j + 1]):
                total = fma(load_scalar(w, k), load(x, load_scalar(offset, k)), total)
            if relu and q == shares - 1:
                total = relu_where(total, total)
            store(y, j * VECTOR_WIDTH, total)


@jit_inline
def sparse_weight_grad(first, shares, rows, offset, x, d, g):
    """g[k] = dot(d[j], x[offset[k]:]) for every surviving weight k of row j: dL/dw, summed over the images."""
    for q in range(shares):
        of_share = first[q * (rows + 1) :]
        for j in range(rows):
            dj = load(d, j * VECTOR_WIDTH)
            k, last = of_share[j], of_share[j + 1]
            while k + 4 <= last:
                x0, x1 = load(x, load_scalar(offset, k)), load(x, load_scalar(offset, k + 1))
                x2, x3 = load(x, load_scalar(offset, k + 2)), load(x, load_scalar(offset, k + 3))
                dot4(dj, x0, x1, x2, x3, g, k)
                k += 4
            while k < last:
                g[k] = dot(dj, load(x, load_scalar(offset, k)))
                k += 1


@jit_inline
def sparse_input_grad(first, offset, place, w, d, x, dx):
    """dx[i] = (sum over the surviving weights of column i of w * d[offset:]) where x[i] > 0, else 0.

    `place` says where in `w` the weights of column i are. Behind a ReLU, x[i] > 0 is where it lets gradients through.
    """
    for i in range(len(first) - 1):
        total = splat(np.float32(0))
        for k in range(first[i], first[i + 1]):
            total = fma(load_scalar(w, load_scalar(place, k)), load(d, load_scalar(offset, k)), total)
        store(dx, i * VECTOR_WIDTH, relu_where(total, load(x, i * VECTOR_WIDTH)))


@jit_inline
def gemm_tile(a, a_at, row_step, column_step, b, b_at, b_step, depth, total0, total1, total2, total3):
    """total[r] + sum over k < depth of a[r, k] * b[k], for `ROWS` rows r.

    a[r, k] is the number at `a_at + r * row_step + k * column_step`, b[k] the `Lanes` at `b_at + k * b_step`.
    """
    for k in range(depth):
        row, here = load(b, b_at + k * b_step), a_at + k * column_step
        total0, total1 = fma(load_scalar(a, here), row, total0), fma(load_scalar(a, here + row_step), row, total1)
        total2 = fma(load_scalar(a, here + 2 * row_step), row, total2)
        total3 = fma(load_scalar(a, here + 3 * row_step), row, total3)
    return total0, total1, total2, total3


@jit_inline
def gemm_tile_store(out, more, a, a_at, row_step, column_step, b, b_at, b_step, depth):
    """The sums of a `tile` to `out`, added to what is there if `more`."""
    zero = splat(np.float32(0))
    t0, t1, t2, t3 = zero, zero, zero, zero
    if more:
        t0, t1 = load(out, 0), load(out, VECTOR_WIDTH)
        t2, t3 = load(out, 2 * VECTOR_WIDTH), load(out, 3 * VECTOR_WIDTH)
    t0, t1, t2, t3 = gemm_tile(a, a_at, row_step, column_step, b, b_at, b_step, depth, t0, t1, t2, t3)
    store(out, 0, t0)
    store(out, VECTOR_WIDTH, t1)
    store(out, 2 * VECTOR_WIDTH, t2)
    store(out, 3 * VECTOR_WIDTH, t3)


@jit_inline
def transpose(a, rows, columns, step, out, out_step):
    """out[c, r] = a[r, c] for `rows` x `columns` numbers; rows are `step` apart in `a`, `out_step` in `out`."""
    for c in range(columns):
        for r in range(rows):
            out[c * out_step + r] = a[r * step + c]


# mypy: disable-error-code="no-untyped-def"


def panel_permutation(rows: int, columns: int) -> np.ndarray:
    """For every place of the panels, where in the kernel `(rows, columns)` its weight is, int64.

    Source: docs/performance.md.
    """
    assert columns % VECTOR_WIDTH == 0 and rows % ROWS == 0, "panels are whole"
    return np.arange(rows * columns).reshape(rows, -1, VECTOR_WIDTH).transpose(1, 0, 2).ravel()


@jit_entry
def dense_forward(w, bias, x, out):
    """out[j] = bias[j] + sum over all inputs i of W[j, i] * x[i]."""
    rows = len(out) // VECTOR_WIDTH
    for j in range(rows):
        store(out, j * VECTOR_WIDTH, splat(bias[j]))
    for panel in range(len(x) // VECTOR_WIDTH // VECTOR_WIDTH):
        for j in range(0, rows, ROWS):
            to = j * VECTOR_WIDTH
            t0, t1 = load(out, to), load(out, to + VECTOR_WIDTH)
            t2, t3 = load(out, to + 2 * VECTOR_WIDTH), load(out, to + 3 * VECTOR_WIDTH)
            here, there = (panel * rows + j) * VECTOR_WIDTH, panel * VECTOR_WIDTH * VECTOR_WIDTH
            t0, t1, t2, t3 = gemm_tile(w, here, VECTOR_WIDTH, 1, x, there, VECTOR_WIDTH, VECTOR_WIDTH, t0, t1, t2, t3)
            store(out, to, t0)
            store(out, to + VECTOR_WIDTH, t1)
            store(out, to + 2 * VECTOR_WIDTH, t2)
            store(out, to + 3 * VECTOR_WIDTH, t3)


@jit_entry
def dense_input_grad(w, d, x, dx):
    """dx[i] = sum over all outputs j of W[j, i] * d[j] where x[i] > 0, else 0."""
    rows, zero = len(d) // VECTOR_WIDTH, splat(np.float32(0))
    for panel in range(len(x) // VECTOR_WIDTH // VECTOR_WIDTH):
        for i in range(0, VECTOR_WIDTH, ROWS):
            t0, t1, t2, t3 = gemm_tile(
                w, panel * rows * VECTOR_WIDTH + i, 1, VECTOR_WIDTH, d, 0, VECTOR_WIDTH, rows, zero, zero, zero, zero
            )
            to = (panel * VECTOR_WIDTH + i) * VECTOR_WIDTH
            store(dx, to, relu_where(t0, load(x, to)))
            store(dx, to + VECTOR_WIDTH, relu_where(t1, load(x, to + VECTOR_WIDTH)))
            store(dx, to + 2 * VECTOR_WIDTH, relu_where(t2, load(x, to + 2 * VECTOR_WIDTH)))
            store(dx, to + 3 * VECTOR_WIDTH, relu_where(t3, load(x, to + 3 * VECTOR_WIDTH)))


@jit_entry
def transpose_64(x, out):
    """Each 64 units in 64 images, transposed: out[p, b, i] = x[p, i, b]."""
    for panel in range(0, len(x), VECTOR_WIDTH * VECTOR_WIDTH):
        for i in range(VECTOR_WIDTH):
            for b in range(VECTOR_WIDTH):
                out[panel + b * VECTOR_WIDTH + i] = x[panel + i * VECTOR_WIDTH + b]


@jit_entry
def dense_weight_step(how, step, words, d, x, rows, images, w, m, v):
    """The gradient of all weights, sum over the images b of d[j, b] * x[b, i], and the optimiser's step along it.

    `d` has the lanes of a block of 64 images after those of the one before; so has `x`, by image. A weight moves if its
    bit of words[p, j] is set. The gradient is nowhere stored.
    """
    panels, zero = len(words) // rows, splat(np.float32(0))
    for panel in range(panels):
        for j in range(0, rows, ROWS):
            t0, t1, t2, t3 = zero, zero, zero, zero
            for first in range(0, images, VECTOR_WIDTH):
                here, there = (first * rows) + j * VECTOR_WIDTH, (first * panels + panel * VECTOR_WIDTH) * VECTOR_WIDTH
                t0, t1, t2, t3 = gemm_tile(
                    d, here, VECTOR_WIDTH, 1, x, there, VECTOR_WIDTH, min(VECTOR_WIDTH, images - first), t0, t1, t2, t3
                )
            word = panel * rows + j
            optimizer_step(how[step], t0, words[word], w, m, v, word * VECTOR_WIDTH)
            optimizer_step(how[step], t1, words[word + 1], w, m, v, (word + 1) * VECTOR_WIDTH)
            optimizer_step(how[step], t2, words[word + 2], w, m, v, (word + 2) * VECTOR_WIDTH)
            optimizer_step(how[step], t3, words[word + 3], w, m, v, (word + 3) * VECTOR_WIDTH)


# mypy: disable-error-code="no-untyped-def"


@jit_entry
def linear_forward(first, shares, offset, weight, bias, x, out, relu):
    """`outputs_of_weights`; with the lists of the transposed matrix, the gradient at the input."""
    sparse_forward(first, shares, offset, weight, bias, x, out, relu)


@jit_entry
def relu(out, where):
    """out where `where` > 0, else 0: with `where` = `out` ReLU, else its derivative."""
    for j in range(0, len(out), VECTOR_WIDTH):
        store(out, j, relu_where(load(out, j), load(where, j)))


@jit_entry
def linear_weight_grad(first, shares, rows, offset, x, d, g):
    """`gradients_of_weights`."""
    sparse_weight_grad(first, shares, rows, offset, x, d, g)


@jit_entry
def bias_grad(d, out):
    """out[j] += the sum of d[j] over the images: dL/dbias."""
    ones = splat(np.float32(1))
    for j in range(len(d) // VECTOR_WIDTH):
        out[j] += dot(load(d, j * VECTOR_WIDTH), ones)


@jit_entry
def cross_entropy_and_grad(classes, labels, logits, d, scale):
    """The sum of the images' cross-entropies and how many logits are right; scale * the sum's gradient goes to `d`."""
    return cross_entropy(classes, labels, logits, d, scale), count_correct(classes, labels, logits)


@jit_entry
def sparse_weight_step(how, step, words, g, w, m, v):
    """The optimiser's step how[step] for the weights of a tensor whose bits are set."""
    for i in range(len(words)):
        optimizer_step(how[step], load(g, i * VECTOR_WIDTH), words[i], w, m, v, i * VECTOR_WIDTH)


@jit_entry
def scatter(values, places, out):
    """out[places[k]] = values[k]."""
    for k in range(len(places)):
        out[load_scalar(places, k)] = values[k]
