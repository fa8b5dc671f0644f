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

from supermask.engines.sparse.costs import block_index
from supermask.engines.sparse.kernels.jit import jit_entry
from supermask.engines.sparse.kernels.matmul import ROWS, gemm_tile_store, linear_forward, linear_weight_grad
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros

INPUTS, OUTPUTS = 784, 300
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def main() -> None:
    """Prints one line a density, then the dense products."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, d = (numbers(rng, units * VECTOR_WIDTH) for units in (INPUTS, OUTPUTS))
    y, bias = aligned_zeros(OUTPUTS * VECTOR_WIDTH), np.zeros(OUTPUTS, np.float32)
    print("density   outputs   gradients   GFLOP/s")
    for density in DENSITIES:
        out, into = np.nonzero(rng.random((OUTPUTS, INPUTS)) < density)
        lists = block_index(out, into, into * VECTOR_WIDTH, (OUTPUTS, INPUTS), 128)
        first, shares = lists.first.reshape(-1), len(lists.first)
        w, g, flops = numbers(rng, out.size), aligned_zeros(out.size), 2 * VECTOR_WIDTH * out.size
        forward = rate(lambda: linear_forward(first, shares, lists.offset, w, bias, x, y, True), flops)  # noqa: B023
        backward = rate(lambda: linear_weight_grad(first, shares, OUTPUTS, lists.offset, x, d, g), flops)  # noqa: B023
        print(f"{density:7.2f}   {forward:7.1f}   {backward:9.1f}")
    w, flops = numbers(rng, INPUTS * OUTPUTS), 2 * VECTOR_WIDTH * INPUTS * OUTPUTS
    print(f"dense tile {rate(lambda: tiles(w, x, y), flops):.1f}")
    left, right = torch.rand(OUTPUTS, INPUTS), torch.rand(INPUTS, VECTOR_WIDTH)
    result = torch.empty(OUTPUTS, VECTOR_WIDTH)
    print(f"torch.mm   {rate(lambda: torch.mm(left, right, out=result), flops):.1f}")


@jit_entry
def tiles(w, x, y):  # type: ignore[no-untyped-def]
    for j in range(0, OUTPUTS, ROWS):
        gemm_tile_store(y[j * VECTOR_WIDTH :], False, w, j * INPUTS, INPUTS, 1, x, 0, VECTOR_WIDTH, INPUTS)


def numbers(rng: np.random.Generator, size: int) -> np.ndarray:
    values = aligned_zeros(size)
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
