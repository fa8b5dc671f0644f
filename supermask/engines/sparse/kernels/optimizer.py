"""One step of the optimiser on 64 weights, as PyTorch's Adam and SGD do it.

Source: paper.md section 2 (Adam with 0.9, 0.999, 1e-8).
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
    """sqrt(a) to 5e-7 of it, for a >= 0: a / sqrt(a) by Newton's iteration.

    Twice as fast as the processor's own, which shares its unit with the division that follows in Adam.
    """
    y, less = rsqrt_estimate(a), multiply(splat(np.float32(-0.5)), a)
    for _ in range(3):
        y = multiply(y, fma(multiply(less, y), y, splat(np.float32(1.5))))
    return multiply(a, y)


@jit_inline
def optimizer_step(how, g, alive, w, m, v, at):
    """Moves the 64 weights at `w[at]` whose bit is set in `alive`; the others keep their bits, and zero moments.

    Adam: m += 0.1 (g - m), v = 0.999 v + 0.001 g^2, w += rate * m / (sqrt(v) * second + 1e-8).
    SGD: m = momentum * m + g, w += rate * m. Before either, g += decay * w.
    """
    here = load(w, at)
    if how.decay != 0:
        g = fma(how.decay, here, g)
    g = select_lanes(alive, g)
    if how.adam != 0:
        old = load(m, at)
        mean = fma(np.float32(0.1), subtract(g, old), old)
        square = fma(multiply(splat(np.float32(0.001)), g), g, multiply(splat(np.float32(0.999)), load(v, at)))
        below = fma(how.second, newton_sqrt(square), splat(np.float32(1e-8)))
        store(m, at, mean)
        store(v, at, square)
        store(w, at, add(here, divide(multiply(splat(how.rate), mean), below)))
    else:
        mean = fma(how.momentum, load(m, at), g)
        store(m, at, mean)
        store(w, at, fma(how.rate, mean, here))


@jit_inline
def optimizer_step_all(how, g, w, m, v):
    """`update` of every weight; lengths are multiples of `LANES`, and what lies behind the last weight is zero."""
    for at in range(0, len(w), VECTOR_WIDTH):
        optimizer_step(how, load(g, at), np.uint64(0xFFFFFFFFFFFFFFFF), w, m, v, at)
