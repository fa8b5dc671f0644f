"""Matrix products of a layer for 64 images: sparse, over the surviving weights, and dense, by tiles.

Shape letters (as in `layout`):

    B   VECTOR_WIDTH = 64 images, the lanes of one vec64
    I   inputs (columns of the weight matrix), O outputs (rows)
    K   weights of a list, by block of columns, then by row
    Q   blocks of columns
    P   panels of 64 columns: I / 64

Positions `at`, `to`, `a_at`, ... count floats from the beginning of a flat array.

Arrays are flat. x `(I, B)` is a layer's input, y `(O, B)` its output, d `(O, B)` the gradient of the loss at the
output, dx `(I, B)` that at the input. Each function is one product of a training step.

The cost of a sparse product is proportional to the number of weights in its list. The list is cut into blocks of
columns so small that their part of x stays in the first-level cache while all rows use it. `first` `(Q, O + 1)`: the
weights of row j in block q are `first[q, j]` to `first[q, j + 1] - 1`. `offset` `(K,)`: position in x of each
weight's input, in floats.

A dense product computes tiles of ROWS = 4 rows of the output. The weights of layers behind convolutions lie in
panels, w[p, j, i] = weight from input 64 p + i to output j, `(P, O, 64)`: along rows or along columns, a product
stays in one panel, and so in the second-level cache (Conv2's first such layer has 16,384 columns). Fully connected
networks are small enough to lie row by row.

Source: Zhou et al. 2019, Sec. 2, Table S1 (the networks); speed: docs/performance.md.
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
"""Rows of a dense product that are computed together: their sums fill 16 of the 32 registers of AVX-512."""


# --- sparse products ---


@jit_inline
def sparse_forward(first, blocks, offset, w, bias, x, y, relu):
    """y[j] = bias[j] + sum over the weights k of row j of w[k] * x[offset[k]:], then ReLU if `relu`.

    `first` `(Q, O + 1)`, `offset` and `w` `(K,)`, `bias` `(O,)`, `x` `(I, B)`, `y` `(O, B)`.
    """
    rows = len(bias)
    for q in range(blocks):
        block_first = first[q * (rows + 1) :]
        for j in range(rows):
            # The sum of a row is continued from block to block through memory: registers hold one row at a time.
            total = splat(bias[j]) if q == 0 else load(y, j * VECTOR_WIDTH)
            for k in range(block_first[j], block_first[j + 1]):
                total = fma(load_scalar(w, k), load(x, load_scalar(offset, k)), total)
            if relu and q == blocks - 1:
                total = relu_where(total, total)
            store(y, j * VECTOR_WIDTH, total)


@jit_inline
def sparse_weight_grad(first, blocks, rows, offset, x, d, g):
    """g[k] = dot(d[j], x[offset[k]:]) for every weight k of row j: dL/dw, summed over the images. `g` `(K,)`."""
    for q in range(blocks):
        block_first = first[q * (rows + 1) :]
        for j in range(rows):
            dj = load(d, j * VECTOR_WIDTH)
            k, end = block_first[j], block_first[j + 1]
            # Four at a time share the last additions; `dot4` and `dot` are bit-identical, so the cut does not matter.
            while k + 4 <= end:
                x0, x1 = load(x, load_scalar(offset, k)), load(x, load_scalar(offset, k + 1))
                x2, x3 = load(x, load_scalar(offset, k + 2)), load(x, load_scalar(offset, k + 3))
                dot4(dj, x0, x1, x2, x3, g, k)
                k += 4
            while k < end:
                g[k] = dot(dj, load(x, load_scalar(offset, k)))
                k += 1


@jit_inline
def sparse_input_grad(first_in, offset_in, column_order, w, d, x, dx):
    """dx[i] = (sum over the weights of column i of w * d[offset_in:]) where x[i] > 0, else 0.

    `first_in` `(I + 1,)`; `offset_in`, `column_order` `(K,)`, by column: position in `d` of each weight's output, and
    in `w` of the weight. `w` `(K,)`, `d` `(O, B)`, `x` and `dx` `(I, B)`. x is the output of a ReLU, which passes
    gradients where x[i] > 0.
    """
    for i in range(len(first_in) - 1):
        total = splat(np.float32(0))
        for k in range(first_in[i], first_in[i + 1]):
            total = fma(load_scalar(w, load_scalar(column_order, k)), load(d, load_scalar(offset_in, k)), total)
        store(dx, i * VECTOR_WIDTH, relu_where(total, load(x, i * VECTOR_WIDTH)))


# --- dense products ---


@jit_inline
def gemm_tile(a, a_at, row_step, column_step, b, b_at, b_step, depth, total0, total1, total2, total3):
    """Return total[r] + sum over k < depth of a[r, k] * b[k], for `ROWS` rows r; each total is one vec64.

    a[r, k] is the float at `a_at + r * row_step + k * column_step`, b[k] the vec64 at `b_at + k * b_step`.
    """
    # Per k one load of b serves four multiply-adds; the four factors are loaded with their broadcast.
    for k in range(depth):
        row, at = load(b, b_at + k * b_step), a_at + k * column_step
        total0, total1 = fma(load_scalar(a, at), row, total0), fma(load_scalar(a, at + row_step), row, total1)
        total2 = fma(load_scalar(a, at + 2 * row_step), row, total2)
        total3 = fma(load_scalar(a, at + 3 * row_step), row, total3)
    return total0, total1, total2, total3


@jit_inline
def gemm_tile_store(out, accumulate, a, a_at, row_step, column_step, b, b_at, b_step, depth):
    """Write the sums of `gemm_tile` to `out`, `(ROWS, B)`; add them to its content if `accumulate`."""
    zero = splat(np.float32(0))
    t0, t1, t2, t3 = zero, zero, zero, zero
    if accumulate:
        t0, t1 = load(out, 0), load(out, VECTOR_WIDTH)
        t2, t3 = load(out, 2 * VECTOR_WIDTH), load(out, 3 * VECTOR_WIDTH)
    t0, t1, t2, t3 = gemm_tile(a, a_at, row_step, column_step, b, b_at, b_step, depth, t0, t1, t2, t3)
    store(out, 0, t0)
    store(out, VECTOR_WIDTH, t1)
    store(out, 2 * VECTOR_WIDTH, t2)
    store(out, 3 * VECTOR_WIDTH, t3)


@jit_inline
def transpose(a, rows, columns, step, out, out_step):
    """out[c, r] = a[r, c] for `rows` x `columns` floats; rows are `step` apart in `a`, `out_step` in `out`."""
    for c in range(columns):
        for r in range(rows):
            out[c * out_step + r] = a[r * step + c]


def panel_permutation(rows: int, columns: int) -> np.ndarray:
    """Return, for every element of the panels, its position in the flat kernel `(rows, columns)`, int64.

    `columns` must be a multiple of 64, `rows` of `ROWS`. Source: docs/performance.md.
    """
    assert columns % VECTOR_WIDTH == 0 and rows % ROWS == 0, "panels are whole"
    return np.arange(rows * columns).reshape(rows, -1, VECTOR_WIDTH).transpose(1, 0, 2).ravel()


@jit_entry
def dense_forward(w, bias, x, out):
    """out[j] = bias[j] + sum over all inputs i of W[j, i] * x[i]. `w` `(P, O, 64)`, `x` `(I, B)`, `out` `(O, B)`."""
    rows = len(out) // VECTOR_WIDTH
    for j in range(rows):
        store(out, j * VECTOR_WIDTH, splat(bias[j]))
    for panel in range(len(x) // VECTOR_WIDTH // VECTOR_WIDTH):
        for j in range(0, rows, ROWS):
            to = j * VECTOR_WIDTH
            # Sums are continued from panel to panel through memory, once per 64 inputs.
            t0, t1 = load(out, to), load(out, to + VECTOR_WIDTH)
            t2, t3 = load(out, to + 2 * VECTOR_WIDTH), load(out, to + 3 * VECTOR_WIDTH)
            w_at, x_at = (panel * rows + j) * VECTOR_WIDTH, panel * VECTOR_WIDTH * VECTOR_WIDTH
            t0, t1, t2, t3 = gemm_tile(w, w_at, VECTOR_WIDTH, 1, x, x_at, VECTOR_WIDTH, VECTOR_WIDTH, t0, t1, t2, t3)
            store(out, to, t0)
            store(out, to + VECTOR_WIDTH, t1)
            store(out, to + 2 * VECTOR_WIDTH, t2)
            store(out, to + 3 * VECTOR_WIDTH, t3)


@jit_entry
def dense_input_grad(w, d, x, dx):
    """dx[i] = sum over all outputs j of W[j, i] * d[j] where x[i] > 0, else 0. `w` `(P, O, 64)`, `d` `(O, B)`."""
    rows, zero = len(d) // VECTOR_WIDTH, splat(np.float32(0))
    for panel in range(len(x) // VECTOR_WIDTH // VECTOR_WIDTH):
        for i in range(0, VECTOR_WIDTH, ROWS):
            # The tile reads w transposed: neighboring columns are 1 apart, neighboring rows 64.
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
    """Transpose each 64 units in 64 images: out[p, b, i] = x[p, i, b], both `(P, 64, 64)`."""
    for panel in range(0, len(x), VECTOR_WIDTH * VECTOR_WIDTH):
        for i in range(VECTOR_WIDTH):
            for b in range(VECTOR_WIDTH):
                out[panel + b * VECTOR_WIDTH + i] = x[panel + i * VECTOR_WIDTH + b]


@jit_entry
def dense_weight_step(steps, step, trained_bits, d, x, rows, images, w, m, v):
    """Compute the gradient of all weights, sum over images b of d[j, b] * x[b, i], and take the optimizer step.

    `d` `(NB, O, B)` and `x` `(NB, P, B, 64)`, transposed, hold all blocks of B images of the mini-batch. `w`, `m`, `v`
    `(P, O, 64)`. `trained_bits`, uint64 `(P, O)`: a weight is trained if its bit is set. `steps[step]`:
    hyperparameters. The gradient is never stored: a tile of it goes from registers into the optimizer.
    """
    panels, zero = len(trained_bits) // rows, splat(np.float32(0))
    for panel in range(panels):
        for j in range(0, rows, ROWS):
            t0, t1, t2, t3 = zero, zero, zero, zero
            # Images behind the last one are left out, not computed with zeros.
            for first in range(0, images, VECTOR_WIDTH):
                d_at = (first * rows) + j * VECTOR_WIDTH
                x_at = (first * panels + panel * VECTOR_WIDTH) * VECTOR_WIDTH
                t0, t1, t2, t3 = gemm_tile(
                    d, d_at, VECTOR_WIDTH, 1, x, x_at, VECTOR_WIDTH, min(VECTOR_WIDTH, images - first), t0, t1, t2, t3
                )
            word = panel * rows + j
            optimizer_step(steps[step], t0, trained_bits[word], w, m, v, word * VECTOR_WIDTH)
            optimizer_step(steps[step], t1, trained_bits[word + 1], w, m, v, (word + 1) * VECTOR_WIDTH)
            optimizer_step(steps[step], t2, trained_bits[word + 2], w, m, v, (word + 2) * VECTOR_WIDTH)
            optimizer_step(steps[step], t3, trained_bits[word + 3], w, m, v, (word + 3) * VECTOR_WIDTH)


# --- entry points of the layers behind convolutions ---


@jit_entry
def linear_forward(first, blocks, offset, weight, bias, x, out, relu):
    """Call `sparse_forward`. With the lists of the transposed matrix it computes the gradient at the input."""
    sparse_forward(first, blocks, offset, weight, bias, x, out, relu)


@jit_entry
def relu(out, where):
    """Keep `out` where `where` > 0, set it to 0 elsewhere: ReLU for `where` = `out`, else its derivative."""
    for j in range(0, len(out), VECTOR_WIDTH):
        store(out, j, relu_where(load(out, j), load(where, j)))


@jit_entry
def linear_weight_grad(first, blocks, rows, offset, x, d, g):
    """Call `sparse_weight_grad`."""
    sparse_weight_grad(first, blocks, rows, offset, x, d, g)


@jit_entry
def bias_grad(d, out):
    """out[j] += the sum of d[j] over the images: dL/dbias. `d` `(O, B)`, `out` `(O,)`."""
    ones = splat(np.float32(1))
    for j in range(len(d) // VECTOR_WIDTH):
        out[j] += dot(load(d, j * VECTOR_WIDTH), ones)


@jit_entry
def cross_entropy_and_grad(classes, labels, logits, d, scale):
    """Return the sum of the cross-entropies and the number of correct images; write scale * gradient to `d`."""
    return cross_entropy(classes, labels, logits, d, scale), count_correct(classes, labels, logits)


@jit_entry
def sparse_weight_step(steps, step, trained_bits, g, w, m, v):
    """Take the optimizer step `steps[step]` for the weights of a tensor whose bits are set."""
    for i in range(len(trained_bits)):
        optimizer_step(steps[step], load(g, i * VECTOR_WIDTH), trained_bits[i], w, m, v, i * VECTOR_WIDTH)


@jit_entry
def scatter(values, positions, out):
    """out[positions[k]] = values[k]."""
    for k in range(len(positions)):
        out[load_scalar(positions, k)] = values[k]
