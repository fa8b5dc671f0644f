"""The products of a fully connected layer behind convolutions, one compiled function each, for 64 images at a time.

As in `products`, a unit's values in 64 images are one `Lanes`.

Source: paper.md section 2 (Conv2/4/6); how and how fast: docs/performance.md.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.compiling import kernel
from supermask.engines.kernels.lanes import LANES, at, dot, load, positive, splat, store
from supermask.engines.kernels.loss import count_right, cross_entropy
from supermask.engines.kernels.products import gradients_of_weights, outputs_of_weights
from supermask.engines.kernels.updates import update


@kernel
def outputs(first, shares, offset, weight, bias, x, out, relu):
    """`outputs_of_weights`; with the lists of the transposed matrix, the gradient at the input."""
    outputs_of_weights(first, shares, offset, weight, bias, x, out, relu)


@kernel
def keep_positive(out, where):
    """out where `where` > 0, else 0: with `where` = `out` ReLU, else its derivative."""
    for j in range(0, len(out), LANES):
        store(out, j, positive(load(out, j), load(where, j)))


@kernel
def gradients(first, shares, rows, offset, x, d, g):
    """`gradients_of_weights`."""
    gradients_of_weights(first, shares, rows, offset, x, d, g)


@kernel
def sums(d, out):
    """out[j] += the sum of d[j] over the images: dL/dbias."""
    ones = splat(np.float32(1))
    for j in range(len(d) // LANES):
        out[j] += dot(load(d, j * LANES), ones)


@kernel
def losses(classes, labels, logits, d, scale):
    """The sum of the images' cross-entropies and how many logits are right; scale * the sum's gradient goes to `d`."""
    return cross_entropy(classes, labels, logits, d, scale), count_right(classes, labels, logits)


@kernel
def move(how, step, words, g, w, m, v):
    """The optimiser's step how[step] for the weights of a tensor whose bits are set."""
    for i in range(len(words)):
        update(how[step], load(g, i * LANES), words[i], w, m, v, i * LANES)


@kernel
def scatter(values, places, out):
    """out[places[k]] = values[k]."""
    for k in range(len(places)):
        out[at(places, k)] = values[k]
