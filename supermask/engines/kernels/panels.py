"""The dense products of a fully connected layer, for 64 images at a time; weights lie in panels of 64 columns.

w[p, j, i] is the weight from input 64 p + i to output j: `(columns / 64, rows, 64)`, flattened. Whichever way a product
walks, along rows or columns, it stays in one panel, and so in the second cache. Rows are a multiple of `ROWS`. (Conv2's
first such layer has 16,384 columns. Those of `fc` are few: there a matrix lies row by row.)

Source: paper.md section 2 (Conv2/4/6); how and how fast: docs/performance.md.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.compiling import kernel
from supermask.engines.kernels.lanes import LANES, load, positive, splat, store
from supermask.engines.kernels.products import ROWS, tile
from supermask.engines.kernels.updates import update


def panel_order(rows: int, columns: int) -> np.ndarray:
    """For every place of the panels, where in the kernel `(rows, columns)` its weight is, int64.

    Source: docs/performance.md.
    """
    assert columns % LANES == 0 and rows % ROWS == 0, "panels are whole"
    return np.arange(rows * columns).reshape(rows, -1, LANES).transpose(1, 0, 2).ravel()


@kernel
def outputs_of_panels(w, bias, x, out):
    """out[j] = bias[j] + sum over all inputs i of W[j, i] * x[i]."""
    rows = len(out) // LANES
    for j in range(rows):
        store(out, j * LANES, splat(bias[j]))
    for panel in range(len(x) // LANES // LANES):
        for j in range(0, rows, ROWS):
            to = j * LANES
            t0, t1 = load(out, to), load(out, to + LANES)
            t2, t3 = load(out, to + 2 * LANES), load(out, to + 3 * LANES)
            here, there = (panel * rows + j) * LANES, panel * LANES * LANES
            t0, t1, t2, t3 = tile(w, here, LANES, 1, x, there, LANES, LANES, t0, t1, t2, t3)
            store(out, to, t0)
            store(out, to + LANES, t1)
            store(out, to + 2 * LANES, t2)
            store(out, to + 3 * LANES, t3)


@kernel
def inputs_of_panels(w, d, x, dx):
    """dx[i] = sum over all outputs j of W[j, i] * d[j] where x[i] > 0, else 0."""
    rows, zero = len(d) // LANES, splat(np.float32(0))
    for panel in range(len(x) // LANES // LANES):
        for i in range(0, LANES, ROWS):
            t0, t1, t2, t3 = tile(w, panel * rows * LANES + i, 1, LANES, d, 0, LANES, rows, zero, zero, zero, zero)
            to = (panel * LANES + i) * LANES
            store(dx, to, positive(t0, load(x, to)))
            store(dx, to + LANES, positive(t1, load(x, to + LANES)))
            store(dx, to + 2 * LANES, positive(t2, load(x, to + 2 * LANES)))
            store(dx, to + 3 * LANES, positive(t3, load(x, to + 3 * LANES)))


@kernel
def images_of_units(x, out):
    """Each 64 units in 64 images, transposed: out[p, b, i] = x[p, i, b]."""
    for panel in range(0, len(x), LANES * LANES):
        for i in range(LANES):
            for b in range(LANES):
                out[panel + b * LANES + i] = x[panel + i * LANES + b]


@kernel
def move_panels(how, step, words, d, x, rows, images, w, m, v):
    """The gradient of all weights, sum over the images b of d[j, b] * x[b, i], and the optimiser's step along it.

    `d` has the lanes of a block of 64 images after those of the one before; so has `x`, by image. A weight moves if its
    bit of words[p, j] is set. The gradient is nowhere stored.
    """
    panels, zero = len(words) // rows, splat(np.float32(0))
    for panel in range(panels):
        for j in range(0, rows, ROWS):
            t0, t1, t2, t3 = zero, zero, zero, zero
            for first in range(0, images, LANES):
                here, there = (first * rows) + j * LANES, (first * panels + panel * LANES) * LANES
                t0, t1, t2, t3 = tile(d, here, LANES, 1, x, there, LANES, min(LANES, images - first), t0, t1, t2, t3)
            word = panel * rows + j
            update(how[step], t0, words[word], w, m, v, word * LANES)
            update(how[step], t1, words[word + 1], w, m, v, (word + 1) * LANES)
            update(how[step], t2, words[word + 2], w, m, v, (word + 2) * LANES)
            update(how[step], t3, words[word + 3], w, m, v, (word + 3) * LANES)
