"""One step of the optimiser on 64 weights, as PyTorch's Adam and SGD do it.

Source: paper.md section 2 (Adam with 0.9, 0.999, 1e-8).

The optimiser's numbers, step by step, as kernels take them; and what it keeps of a weight, by PyTorch's names.
"""

from __future__ import annotations

import numpy as np

from supermask.core.recipe import Recipe
from supermask.engines.job import Array
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


OPTIMIZER = np.dtype([("adam", np.int8), *((name, np.float32) for name in ("rate", "second", "momentum", "decay"))])
"""The optimiser's numbers in one step: -(learning rate), for Adam divided by 1 - 0.9^t; Adam's 1 / sqrt(1 - 0.999^t);
SGD's momentum; weight decay."""


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


def optimizer_step_table(recipe: Recipe, began: int, first: int, last: int) -> Array:
    """One `OPTIMIZER` for each of the mini-batches `first` to `last - 1`, of a training that began at `began`.

    Source: paper.md section 2 (Adam with 0.9, 0.999, 1e-8).
    """
    how = np.zeros(last - first, OPTIMIZER)
    how["adam"] = recipe.optimizer == "adam"
    how["momentum"], how["decay"] = recipe.momentum, recipe.weight_decay
    rates = -np.array([recipe.learning_rate(i) for i in range(first, last)])
    steps = np.arange(first, last) - began + 1.0
    how["rate"] = rates / (1 - 0.9**steps) if recipe.optimizer == "adam" else rates
    how["second"] = 1 / np.sqrt(1 - 0.999**steps)
    return how


def optimizer_state_names(recipe: Recipe) -> tuple[str, ...]:
    """What the optimiser keeps of every weight: of Adam its two means, of SGD with momentum one."""
    if recipe.optimizer == "adam":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if recipe.momentum else ()
