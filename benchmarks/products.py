"""How fast the sparse engine's products are, each alone: billions of floating-point operations a second, one thread.

Of the first layer of FC on MNIST, 784 inputs, 300 outputs, 64 images, at several densities: the sum over surviving
weights (outputs), the dot products (their gradients), the dense tile, and PyTorch's matrix product for comparison.
What bounds a walk over weights: each of its multiply-adds loads an operand, which a dense product has in a register.

python benchmarks/products.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from supermask.engines.kernels.compiling import kernel
from supermask.engines.kernels.lanes import LANES, aligned
from supermask.engines.kernels.products import ROWS, tile_into
from supermask.engines.kernels.units import gradients, outputs
from supermask.engines.shares import in_shares

INPUTS, OUTPUTS = 784, 300
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def main() -> None:
    """Prints one line a density, then the dense products."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, d = (numbers(rng, units * LANES) for units in (INPUTS, OUTPUTS))
    y, bias = aligned(OUTPUTS * LANES), np.zeros(OUTPUTS, np.float32)
    print("density   outputs   gradients   GFLOP/s")
    for density in DENSITIES:
        out, into = np.nonzero(rng.random((OUTPUTS, INPUTS)) < density)
        lists = in_shares(out, into, into * LANES, (OUTPUTS, INPUTS), 128)
        first, shares = lists.first.reshape(-1), len(lists.first)
        w, g, flops = numbers(rng, out.size), aligned(out.size), 2 * LANES * out.size
        forward = rate(lambda: outputs(first, shares, lists.offset, w, bias, x, y, True), flops)  # noqa: B023
        backward = rate(lambda: gradients(first, shares, OUTPUTS, lists.offset, x, d, g), flops)  # noqa: B023
        print(f"{density:7.2f}   {forward:7.1f}   {backward:9.1f}")
    w, flops = numbers(rng, INPUTS * OUTPUTS), 2 * LANES * INPUTS * OUTPUTS
    print(f"dense tile {rate(lambda: tiles(w, x, y), flops):.1f}")
    left, right = torch.rand(OUTPUTS, INPUTS), torch.rand(INPUTS, LANES)
    result = torch.empty(OUTPUTS, LANES)
    print(f"torch.mm   {rate(lambda: torch.mm(left, right, out=result), flops):.1f}")


@kernel
def tiles(w, x, y):  # type: ignore[no-untyped-def]
    for j in range(0, OUTPUTS, ROWS):
        tile_into(y[j * LANES :], False, w, j * INPUTS, INPUTS, 1, x, 0, LANES, INPUTS)


def numbers(rng: np.random.Generator, size: int) -> np.ndarray:
    values = aligned(size)
    values[:] = rng.normal(size=size)
    return values


def rate(product: Callable[[], object], flops: int) -> float:
    """GFLOP/s: the best of some turns."""
    product()
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(10):
            product()
        best = min(best, (time.perf_counter() - began) / 10)
    return flops / best / 1e9


if __name__ == "__main__":
    main()
