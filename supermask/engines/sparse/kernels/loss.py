"""Softmax and cross-entropy of logits in lanes, `(classes, LANES)`; image b is lane b."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_inline
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH


@jit_inline
def cross_entropy(classes, labels, logits, d, scale):
    """The sum of the images' cross-entropies, in nats; its gradient at the logits, times `scale`, goes to `d`.

    d[c, b] = scale * (softmax(logits)[c, b] - [c is the label of b]), and 0 in the lanes behind the last image.
    """
    loss = 0.0
    for b in range(len(labels)):
        highest = logits[b]
        for c in range(1, classes):
            highest = max(highest, logits[c * VECTOR_WIDTH + b])
        total = np.float32(0)
        for c in range(classes):
            power = np.exp(logits[c * VECTOR_WIDTH + b] - highest)
            d[c * VECTOR_WIDTH + b] = power
            total += power
        loss += np.log(total) - (logits[labels[b] * VECTOR_WIDTH + b] - highest)
        share = np.float32(scale) / total
        for c in range(classes):
            d[c * VECTOR_WIDTH + b] *= share
        d[labels[b] * VECTOR_WIDTH + b] -= np.float32(scale)
    for b in range(len(labels), VECTOR_WIDTH):
        for c in range(classes):
            d[c * VECTOR_WIDTH + b] = 0
    return loss


@jit_inline
def count_correct(classes, labels, logits):
    """How many images have their highest logit, the first of equals, at their label."""
    right = 0
    for b in range(len(labels)):
        best = 0
        for c in range(1, classes):
            if logits[c * VECTOR_WIDTH + b] > logits[best * VECTOR_WIDTH + b]:
                best = c
        right += best == labels[b]
    return right
