"""The products of a layer, for 64 images at a time: a unit's values in these images are one `Lanes`.

`x` is the layer's input, `(inputs, LANES)`, `d` the gradient of the loss at its output, `(outputs, LANES)`; both
flattened. Each function is one product of the training step. Those that walk over surviving weights cost as much as
there are; they take the inputs in shares that stay in the first cache: `first[q, j]` to `first[q, j + 1]` are the
weights of row j in share q. A `tile` is four whole rows of a dense product.

Source: paper.md section 1; how and how fast: docs/performance.md.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.compiling import part
from supermask.engines.kernels.lanes import LANES, at, dot, dot4, fma, load, positive, splat, store

ROWS = 4
"""Rows of a dense product that are computed together: 16 registers of AVX-512 hold their sums."""


@part
def outputs_of_weights(first, shares, offset, w, bias, x, y, relu):
    """y[j] = bias[j] + sum over the surviving weights k of row j of w[k] * x[offset[k]:], then ReLU."""
    rows = len(bias)
    for q in range(shares):
        of_share = first[q * (rows + 1) :]
        for j in range(rows):
            total = splat(bias[j]) if q == 0 else load(y, j * LANES)
            for k in range(of_share[j], of_share[j + 1]):
                total = fma(at(w, k), load(x, at(offset, k)), total)
            if relu and q == shares - 1:
                total = positive(total, total)
            store(y, j * LANES, total)


@part
def gradients_of_weights(first, shares, rows, offset, x, d, g):
    """g[k] = dot(d[j], x[offset[k]:]) for every surviving weight k of row j: dL/dw, summed over the images."""
    for q in range(shares):
        of_share = first[q * (rows + 1) :]
        for j in range(rows):
            dj = load(d, j * LANES)
            k, last = of_share[j], of_share[j + 1]
            while k + 4 <= last:
                x0, x1 = load(x, at(offset, k)), load(x, at(offset, k + 1))
                x2, x3 = load(x, at(offset, k + 2)), load(x, at(offset, k + 3))
                dot4(dj, x0, x1, x2, x3, g, k)
                k += 4
            while k < last:
                g[k] = dot(dj, load(x, at(offset, k)))
                k += 1


@part
def inputs_of_weights(first, offset, place, w, d, x, dx):
    """dx[i] = (sum over the surviving weights of column i of w * d[offset:]) where x[i] > 0, else 0.

    `place` says where in `w` the weights of column i are. Behind a ReLU, x[i] > 0 is where it lets gradients through.
    """
    for i in range(len(first) - 1):
        total = splat(np.float32(0))
        for k in range(first[i], first[i + 1]):
            total = fma(at(w, at(place, k)), load(d, at(offset, k)), total)
        store(dx, i * LANES, positive(total, load(x, i * LANES)))


@part
def tile(a, a_at, row_step, column_step, b, b_at, b_step, depth, total0, total1, total2, total3):
    """total[r] + sum over k < depth of a[r, k] * b[k], for `ROWS` rows r.

    a[r, k] is the number at `a_at + r * row_step + k * column_step`, b[k] the `Lanes` at `b_at + k * b_step`.
    """
    for k in range(depth):
        row, here = load(b, b_at + k * b_step), a_at + k * column_step
        total0, total1 = fma(at(a, here), row, total0), fma(at(a, here + row_step), row, total1)
        total2 = fma(at(a, here + 2 * row_step), row, total2)
        total3 = fma(at(a, here + 3 * row_step), row, total3)
    return total0, total1, total2, total3


@part
def tile_into(out, more, a, a_at, row_step, column_step, b, b_at, b_step, depth):
    """The sums of a `tile` to `out`, added to what is there if `more`."""
    zero = splat(np.float32(0))
    t0, t1, t2, t3 = zero, zero, zero, zero
    if more:
        t0, t1 = load(out, 0), load(out, LANES)
        t2, t3 = load(out, 2 * LANES), load(out, 3 * LANES)
    t0, t1, t2, t3 = tile(a, a_at, row_step, column_step, b, b_at, b_step, depth, t0, t1, t2, t3)
    store(out, 0, t0)
    store(out, LANES, t1)
    store(out, 2 * LANES, t2)
    store(out, 3 * LANES, t3)


@part
def transpose(a, rows, columns, step, out, out_step):
    """out[c, r] = a[r, c] for `rows` x `columns` numbers; rows are `step` apart in `a`, `out_step` in `out`."""
    for c in range(columns):
        for r in range(rows):
            out[c * out_step + r] = a[r * step + c]
