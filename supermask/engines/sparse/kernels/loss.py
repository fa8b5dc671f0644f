"""Softmax cross-entropy and correct predictions, from logits in SIMD layout.

Shapes: C classes, B = `VECTOR_WIDTH` lanes; image b is lane b. Arrays are flat: element (c, b) is at c * B + b.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_inline
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH


@jit_inline
def cross_entropy(classes, labels, logits, d, scale):
    """Return the sum of the images' cross-entropies in nats, and write `scale` times its gradient to `d`.

    d[c, b] = scale * (softmax(logits)[c, b] - [c is the label of b]), and 0 in the lanes behind the last image.
    `labels`: int64 `(images,)`, at most B. `logits`, `d`: float32 `(C, B)`.
    """
    loss = 0.0
    for b in range(len(labels)):
        highest = logits[b]
        for c in range(1, classes):
            highest = max(highest, logits[c * VECTOR_WIDTH + b])
        total = np.float32(0)
        for c in range(classes):
            # Shifted by the highest logit, so that exp cannot overflow.
            power = np.exp(logits[c * VECTOR_WIDTH + b] - highest)
            d[c * VECTOR_WIDTH + b] = power
            total += power
        loss += np.log(total) - (logits[labels[b] * VECTOR_WIDTH + b] - highest)
        factor = np.float32(scale) / total
        for c in range(classes):
            d[c * VECTOR_WIDTH + b] *= factor
        d[labels[b] * VECTOR_WIDTH + b] -= np.float32(scale)
    # Lanes without an image must add nothing to the sums over lanes that make the weights' gradients.
    for b in range(len(labels), VECTOR_WIDTH):
        for c in range(classes):
            d[c * VECTOR_WIDTH + b] = 0
    return loss


@jit_inline
def count_correct(classes, labels, logits):
    """Return the number of images whose highest logit, the first of equal ones, is that of their label."""
    correct = 0
    for b in range(len(labels)):
        best = 0
        for c in range(1, classes):
            if logits[c * VECTOR_WIDTH + b] > logits[best * VECTOR_WIDTH + b]:
                best = c
        correct += best == labels[b]
    return correct
