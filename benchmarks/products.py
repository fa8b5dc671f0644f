"""GFLOP/s of the sparse engine's products, each timed separately, with one thread.

First layer of FC on MNIST, 784 inputs, 300 outputs, 64 images, at several densities: the sum over surviving weights
(outputs), the dot products (their gradients), the dense tile, and PyTorch's matrix product. A traversal of weights is
bound by loads: each of its multiply-adds loads an operand, which a dense product has in a register.

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
    """Print one line per density, then the dense products."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x, d = (random_vector(rng, units * VECTOR_WIDTH) for units in (INPUTS, OUTPUTS))
    y, bias = aligned_zeros(OUTPUTS * VECTOR_WIDTH), np.zeros(OUTPUTS, np.float32)
    print("density   outputs   gradients   GFLOP/s")
    for density in DENSITIES:
        outputs, inputs = np.nonzero(rng.random((OUTPUTS, INPUTS)) < density)
        index = block_index(outputs, inputs, inputs * VECTOR_WIDTH, (OUTPUTS, INPUTS), 128)
        first, blocks = index.first.reshape(-1), len(index.first)
        w, g, flops = random_vector(rng, outputs.size), aligned_zeros(outputs.size), 2 * VECTOR_WIDTH * outputs.size
        forward = gflops(lambda: linear_forward(first, blocks, index.offset, w, bias, x, y, True), flops)  # noqa: B023
        backward = gflops(lambda: linear_weight_grad(first, blocks, OUTPUTS, index.offset, x, d, g), flops)  # noqa: B023
        print(f"{density:7.2f}   {forward:7.1f}   {backward:9.1f}")
    w, flops = random_vector(rng, INPUTS * OUTPUTS), 2 * VECTOR_WIDTH * INPUTS * OUTPUTS
    print(f"dense tile {gflops(lambda: tiles(w, x, y), flops):.1f}")
    left, right = torch.rand(OUTPUTS, INPUTS), torch.rand(INPUTS, VECTOR_WIDTH)
    result = torch.empty(OUTPUTS, VECTOR_WIDTH)
    print(f"torch.mm   {gflops(lambda: torch.mm(left, right, out=result), flops):.1f}")


@jit_entry
def tiles(w, x, y):  # type: ignore[no-untyped-def]
    for j in range(0, OUTPUTS, ROWS):
        gemm_tile_store(y[j * VECTOR_WIDTH :], False, w, j * INPUTS, INPUTS, 1, x, 0, VECTOR_WIDTH, INPUTS)


def random_vector(rng: np.random.Generator, size: int) -> np.ndarray:
    values = aligned_zeros(size)
    values[:] = rng.normal(size=size)
    return values


def gflops(product: Callable[[], object], flops: int) -> float:
    """Return the best GFLOP/s of 20 turns, each the mean of 10 products."""
    product()
    best = float("inf")
    for _ in range(20):
        start_time = time.perf_counter()
        for _ in range(10):
            product()
        best = min(best, (time.perf_counter() - start_time) / 10)
    return flops / best / 1e9


if __name__ == "__main__":
    main()
