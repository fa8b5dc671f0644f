"""One optimizer step on 64 weights, with the formulas of PyTorch's Adam and SGD.

Source: Zhou et al. 2019, Sec. 2 (Adam with 0.9, 0.999, 1e-8).
"""

from __future__ import annotations

import numpy as np

from supermask.engines.sparse.kernels.jit import jit_inline
from supermask.engines.sparse.kernels.simd import (
    VECTOR_WIDTH,
    add,
    divide,
    fma,
    load,
    multiply,
    rsqrt_estimate,
    select_lanes,
    splat,
    store,
    subtract,
)

# mypy: disable-error-code="no-untyped-def"


@jit_inline
def newton_sqrt(a):
    """Return sqrt(a) for a >= 0, with a relative error of at most 5e-7: a / sqrt(a) by Newton's iteration.

    Twice as fast as the processor's own square root, which shares its unit with the division that follows in Adam.
    """
    y, minus_half_a = rsqrt_estimate(a), multiply(splat(np.float32(-0.5)), a)
    # Each iteration squares the error: 3.5%, 2e-3, 5e-6, below rounding.
    for _ in range(3):
        y = multiply(y, fma(multiply(minus_half_a, y), y, splat(np.float32(1.5))))
    return multiply(a, y)


@jit_inline
def optimizer_step(step, g, trained, w, m, v, at):
    """Update the 64 weights `w[at:]` whose bit is set in `trained`; the others stay bit-identical, with zero moments.

    Adam: m += 0.1 (g - m), v = 0.999 v + 0.001 g^2, w += rate * m / (sqrt(v) * second + 1e-8).
    SGD: m = momentum * m + g, w += rate * m. Before either, g += decay * w.
    `step`: hyperparameters, one `OPTIMIZER`. `g`: vec64, dL/dw. `trained`: uint64. `w`, `m`, `v`: float32, flat.
    """
    weights = load(w, at)
    if step.decay != 0:
        g = fma(step.decay, weights, g)
    # After the decay, and by selection: NaN or infinity in the gradient of a pruned weight becomes +0 too.
    g = select_lanes(trained, g)
    if step.adam != 0:
        previous = load(m, at)
        mean = fma(np.float32(0.1), subtract(g, previous), previous)
        square = fma(multiply(splat(np.float32(0.001)), g), g, multiply(splat(np.float32(0.999)), load(v, at)))
        denominator = fma(step.second, newton_sqrt(square), splat(np.float32(1e-8)))
        store(m, at, mean)
        store(v, at, square)
        store(w, at, add(weights, divide(multiply(splat(step.rate), mean), denominator)))
    else:
        mean = fma(step.momentum, load(m, at), g)
        store(m, at, mean)
        # A pruned weight frozen at -0 stays -0: rate is negative, so rate * 0 is -0, and -0 + -0 is -0.
        store(w, at, fma(step.rate, mean, weights))


@jit_inline
def optimizer_step_all(step, g, w, m, v):
    """Update every weight. Lengths are multiples of `VECTOR_WIDTH`; elements behind the last weight are zero."""
    for at in range(0, len(w), VECTOR_WIDTH):
        optimizer_step(step, load(g, at), np.uint64(0xFFFFFFFFFFFFFFFF), w, m, v, at)
