"""SIMD vectors of 64 floats: every operation against NumPy, at any offset, with the promised rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from supermask.engines.sparse.kernels import layout, matmul, optimizer, simd
from supermask.engines.sparse.kernels.jit import OPTIONS
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros, round_up

Floats = NDArray[np.float32]


def numbers(seed: int, size: int = VECTOR_WIDTH) -> Floats:
    """Aligned numbers of all magnitudes and both signs, some of them zero."""
    rng = np.random.default_rng(seed)
    values = aligned_zeros(size)
    values[:] = rng.normal(0, 1, size) * 10.0 ** rng.uniform(-6, 6, size) * (rng.random(size) > 0.1)
    return values


def test_arrays_begin_on_a_cache_line() -> None:
    for size in (1, 64, 1000):
        array = aligned_zeros(size)
        assert array.shape == (size,) and array.dtype == np.float32 and not array.any()
        assert array.ctypes.data % simd.ALIGNMENT == 0
    assert [round_up(n) for n in (0, 1, 64, 65)] == [0, 64, 64, 128]


@njit(**OPTIONS)
def arithmetic(a: Any, b: Any, c: Any, out: Any) -> None:
    x, y, z = simd.load(a, 3), simd.load(b, 0), simd.load(c, 0)
    simd.store(out, 0, simd.add(x, y))
    simd.store(out, 64, simd.subtract(x, y))
    simd.store(out, 128, simd.multiply(x, y))
    simd.store(out, 192, simd.divide(x, z))
    simd.store(out, 256, simd.fma(x, y, z))
    simd.store(out, 320, simd.fma(a[0], y, z))
    simd.store(out, 384, simd.relu_where(x, y))
    simd.store(out, 448, simd.splat(a[1]))


def test_arithmetic_is_ieee_and_fma_rounds_once() -> None:
    a, b, c, out = numbers(0, 70), numbers(1), numbers(2), aligned_zeros(512)
    c[c == 0] = 1
    arithmetic(a, b, c, out)
    x = a[3:67]
    exact = (x.astype(np.float64) * b + c).astype(np.float32)  # a product of two float32 is exact in float64
    scaled = (a[0].astype(np.float64) * b + c).astype(np.float32)
    expected = [x + b, x - b, x * b, x / c, exact, scaled, np.where(b > 0, x, 0), np.full(64, a[1])]
    assert np.array_equal(out, np.concatenate(expected).astype(np.float32))


@njit(**OPTIONS)
def dots(a: Any, b: Any, one: Any, four: Any) -> None:
    x = simd.load(a, 0)
    for i in range(4):
        one[i] = simd.dot(x, simd.load(b, i * VECTOR_WIDTH))
    simd.dot4(x, simd.load(b, 0), simd.load(b, 64), simd.load(b, 128), simd.load(b, 192), four, 1)


def test_dot4_is_bit_identical_to_dot() -> None:
    for seed in range(20):
        a, b, one, four = numbers(seed), numbers(seed + 100, 256), np.zeros(4, np.float32), np.zeros(6, np.float32)
        dots(a, b, one, four)
        assert np.array_equal(one, four[1:5]) and four[0] == four[5] == 0
        exact = b.reshape(4, 64).astype(np.float64) @ a
        scale = np.abs(b.reshape(4, 64).astype(np.float64)) @ np.abs(a)
        assert (np.abs(one - exact) <= 1e-6 * scale).all()


@njit(**OPTIONS)
def bits(values: Any, word: Any, out: Any) -> Any:
    simd.store(out, 0, simd.select_lanes(word, simd.load(values, 0)))
    return simd.nonzero_mask(simd.load(values, 0))


@pytest.mark.parametrize("word", [0, 1, 2**63, 0xF0F0F0F0F0F0F0F0, 2**64 - 1])
def test_bit_i_is_lane_i(word: int) -> None:
    values, out = numbers(3), aligned_zeros(64)
    values[5], values[7], values[9] = np.nan, np.inf, -0.0
    positive = bits(values, np.uint64(word), out)
    assert [int(positive) >> i & 1 for i in range(64)] == [int(v > 0) for v in values]
    expected = np.where([word >> i & 1 for i in range(64)], values, np.float32(0))
    assert np.array_equal(out.view(np.int32), expected.astype(np.float32).view(np.int32))


@njit(**OPTIONS)
def lowest_bits(words: Any, out: Any) -> None:
    for i in range(len(words)):
        out[i] = simd.count_trailing_zeros(words[i])


def test_the_lowest_bit() -> None:
    out = np.zeros(64, np.int64)
    lowest_bits(np.array([(2**64 - 1) << i & (2**64 - 1) for i in range(64)], np.uint64), out)
    assert np.array_equal(out, np.arange(64))


@njit(**OPTIONS)
def read_into(images: Any, count: Any, chosen: Any, maximum: Any, bytes_read: Any, words: Any, x: Any) -> None:
    layout.load_images(images, count, chosen, maximum, bytes_read, words, x)


@pytest.mark.slow
@pytest.mark.parametrize("maximum", [1, 16, 255])
@pytest.mark.parametrize("count", [8, 63, 784])
def test_pixels_are_divided_as_a_division_rounds(count: int, maximum: int) -> None:
    """Every possible byte, by the product and correction that replace the division."""
    rng = np.random.default_rng(count)
    images = rng.integers(0, maximum + 1, (300, count)).astype(np.uint8)
    images[0, :] = np.arange(count) % (maximum + 1)
    chosen = rng.permutation(300)[:60]
    chosen[0] = 0
    x, needed = aligned_zeros(count * VECTOR_WIDTH), np.ones(-(-count // 8), np.uint8)
    read_into(images.reshape(-1), count, chosen, np.float32(maximum), needed, np.zeros(64, np.uint64), x)
    expected = np.zeros((count, VECTOR_WIDTH), np.float32)
    expected[:, :60] = (images[chosen] / np.float32(maximum)).astype(np.float32).T
    assert np.array_equal(x.reshape(count, VECTOR_WIDTH), expected)


def test_pixels_without_weights_are_not_read() -> None:
    images, x = np.full((64, 24), 255, np.uint8), aligned_zeros(24 * VECTOR_WIDTH)
    read_into(
        images.reshape(-1),
        24,
        np.arange(64),
        np.float32(255),
        np.array([1, 0, 1], np.uint8),
        np.zeros(64, np.uint64),
        x,
    )
    assert x.reshape(3, -1).sum(1).tolist() == [512, 0, 512]


@njit(**OPTIONS)
def roots(a: Any, out: Any) -> None:
    for i in range(0, len(a), VECTOR_WIDTH):
        simd.store(out, i, optimizer.newton_sqrt(simd.load(a, i)))


def test_the_error_of_the_square_root() -> None:
    """For all magnitudes that are not denormal, and for zero."""
    a, out = aligned_zeros(64 * 2000), aligned_zeros(64 * 2000)
    a[:] = 10.0 ** np.random.default_rng(0).uniform(-37.5, 38, a.size)
    a[0], a[1] = 0, np.finfo(np.float32).tiny
    roots(a, out)
    exact = np.sqrt(a.astype(np.float64))
    assert out[0] == 0
    assert (np.abs(out[1:] - exact[1:]) <= 5e-7 * exact[1:]).all()


@njit(**OPTIONS)
def tiles(a: Any, b: Any, out: Any) -> None:
    matmul.gemm_tile_store(out, False, a, 2, 7, 1, b, 0, VECTOR_WIDTH, 5)
    matmul.gemm_tile_store(out, True, a, 2, 7, 1, b, 0, VECTOR_WIDTH, 5)


@pytest.mark.slow
def test_a_tile_is_four_rows_of_a_product() -> None:
    a, b, out = numbers(5, 64), numbers(6, 5 * VECTOR_WIDTH), numbers(7, 4 * VECTOR_WIDTH)
    tiles(a, b, out)
    rows = np.stack([a[2 + 7 * r : 7 + 7 * r] for r in range(4)]).astype(np.float64)
    expected = 2 * rows @ b.reshape(5, VECTOR_WIDTH)
    scale = 2 * np.abs(rows) @ np.abs(b.reshape(5, VECTOR_WIDTH))
    assert (np.abs(out.reshape(4, VECTOR_WIDTH) - expected) <= 1e-6 * scale).all()
