"""One step of the optimiser on 64 weights, as PyTorch's Adam and SGD do it.

Source: paper.md section 2 (Adam with 0.9, 0.999, 1e-8).
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import numpy as np

from supermask.engines.kernels.bits import chosen
from supermask.engines.kernels.compiling import part
from supermask.engines.kernels.lanes import (
    LANES,
    add,
    divide,
    fma,
    inverse_root_guess,
    load,
    multiply,
    splat,
    store,
    subtract,
)

OPTIMIZER = np.dtype([("adam", np.int8), *((name, np.float32) for name in ("rate", "second", "momentum", "decay"))])
"""The optimiser's numbers in one step: -(learning rate), for Adam divided by 1 - 0.9^t; Adam's 1 / sqrt(1 - 0.999^t);
SGD's momentum; weight decay."""


@part
def root(a):
    """sqrt(a) to 5e-7 of it, for a >= 0: a / sqrt(a) by Newton's iteration.

    Twice as fast as the processor's own, which shares its unit with the division that follows in Adam.
    """
    y, less = inverse_root_guess(a), multiply(splat(np.float32(-0.5)), a)
    for _ in range(3):
        y = multiply(y, fma(multiply(less, y), y, splat(np.float32(1.5))))
    return multiply(a, y)


@part
def update(how, g, alive, w, m, v, at):
    """Moves the 64 weights at `w[at]` whose bit is set in `alive`; the others keep their bits, and zero moments.

    Adam: m += 0.1 (g - m), v = 0.999 v + 0.001 g^2, w += rate * m / (sqrt(v) * second + 1e-8).
    SGD: m = momentum * m + g, w += rate * m. Before either, g += decay * w.
    """
    here = load(w, at)
    if how.decay != 0:
        g = fma(how.decay, here, g)
    g = chosen(alive, g)
    if how.adam != 0:
        old = load(m, at)
        mean = fma(np.float32(0.1), subtract(g, old), old)
        square = fma(multiply(splat(np.float32(0.001)), g), g, multiply(splat(np.float32(0.999)), load(v, at)))
        below = fma(how.second, root(square), splat(np.float32(1e-8)))
        store(m, at, mean)
        store(v, at, square)
        store(w, at, add(here, divide(multiply(splat(how.rate), mean), below)))
    else:
        mean = fma(how.momentum, load(m, at), g)
        store(m, at, mean)
        store(w, at, fma(how.rate, mean, here))


@part
def update_all(how, g, w, m, v):
    """`update` of every weight; lengths are multiples of `LANES`, and what lies behind the last weight is zero."""
    for at in range(0, len(w), LANES):
        update(how, load(g, at), np.uint64(0xFFFFFFFFFFFFFFFF), w, m, v, at)
