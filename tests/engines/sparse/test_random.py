"""Uniform numbers of the masks: bit-identical in PyTorch, kernels and NumPy, and statistically independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.numpy_masks import key_pair
from helpers.numpy_masks import uniform_samples as numpy_uniform_samples
from numba import njit
from numpy.typing import NDArray

from supermask.core.learned_masks import sampling_keys, uniform_samples
from supermask.engines.sparse.kernels import random, simd
from supermask.engines.sparse.kernels.jit import OPTIONS
from supermask.engines.sparse.kernels.simd import VECTOR_WIDTH, aligned_zeros

EXTREMES = [(0, 0), (2**32 - 1, 2**32 - 1), (2**31, 2**31 - 1), (2**31 - 1, 2**31), (12345, 0xDEADBEEF)]


def some_keys(count: int = 4) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in sampling_keys(0, "training", "fc1.weight", 0, count)]


# --- the same numbers in all engines ---


@pytest.mark.parametrize("keys", [*EXTREMES, *some_keys()])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 784), (4, 3, 3, 3)])
def test_pytorch_equals_numpy(keys: tuple[int, int], shape: tuple[int, ...]) -> None:
    actual = uniform_samples(np.array(keys, np.uint32), torch.zeros(shape))
    assert actual.dtype == torch.float32
    assert np.array_equal(actual.numpy(), numpy_uniform_samples(keys, shape))


@njit(**OPTIONS)
def write_samples(key0: Any, key1: Any, first: int, step: int, out: Any) -> None:
    simd.store(out, 0, random.hash_uniform(key0, key1, first, step))


@pytest.mark.parametrize("keys", [*EXTREMES, *some_keys()])
@pytest.mark.parametrize("step", [1, 63, 784])
def test_kernels_equal_numpy(keys: tuple[int, int], step: int) -> None:
    whole = numpy_uniform_samples(keys, (3 * VECTOR_WIDTH * step,))
    for first in (0, 1, step + 5, 2 * VECTOR_WIDTH * step - 1):
        out = aligned_zeros(VECTOR_WIDTH)
        write_samples(np.uint32(keys[0]), np.uint32(keys[1]), first, step, out)
        assert np.array_equal(out, whole[first::step][:VECTOR_WIDTH])


@njit(**OPTIONS)
def sigmoids(values: Any, out: Any) -> None:
    for at in range(0, len(values), VECTOR_WIDTH):
        simd.store(out, at, random.sigmoid(simd.load(values, at)))


def test_the_kernels_sigmoid() -> None:
    """Relative error of 2e-7 where it is not tiny; exactly 0.5 at 0, so that half of a mask is ones; NaN stays."""
    values, actual = aligned_zeros(64 * VECTOR_WIDTH), aligned_zeros(64 * VECTOR_WIDTH)
    values[:] = np.linspace(-87, 87, values.size)
    values[:8] = [0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 500, -500]
    sigmoids(values, actual)
    assert actual[0] == actual[1] == actual[5] == 0.5
    assert np.isnan(actual[4])
    assert actual[2] == actual[6] == 1
    assert 0 <= actual[3] == actual[7] < 1e-37
    exact = 1 / (1 + np.exp(-values[8:].astype(np.float64)))
    np.testing.assert_allclose(actual[8:], exact, rtol=3e-7)


# --- keys ---


def test_keys_do_not_depend_on_the_first_pass_requested() -> None:
    whole = sampling_keys(3, "training", "fc2.weight", 0, 1000)
    assert whole.dtype == np.uint32 and whole.shape == (1000, 2)
    for first, last in ((0, 1), (17, 17), (17, 640), (999, 1000)):
        assert np.array_equal(sampling_keys(3, "training", "fc2.weight", first, last), whole[first:last])
    for number in (0, 1, 999):
        assert tuple(map(int, whole[number])) == key_pair(3, "training", "fc2.weight", number)


@pytest.mark.slow
def test_no_two_passes_share_their_keys() -> None:
    """Across layers, purposes and seeds; each key alone repeats as often as random numbers do."""
    parts = [(0, "training", "a"), (0, "training", "b"), (0, "samples", "a"), (1, "training", "a")]
    keys = np.concatenate([sampling_keys(*part, 0, 50_000) for part in parts])
    whole = keys[:, 0].astype(np.uint64) << np.uint64(32) | keys[:, 1]
    assert np.unique(whole).size == whole.size
    for one in keys.T:
        repeated = one.size - np.unique(one).size
        expected = one.size**2 / 2 / 2**32
        assert abs(repeated - expected) < 5 * np.sqrt(expected) + 1


def test_keys_are_pinned() -> None:
    """Stored runs depend on them."""
    expected = [[545068362, 783288985], [4149181412, 3706587608]]
    assert sampling_keys(0, "training", "fc1.weight", 0, 2).tolist() == expected


# --- statistics ---

WEIGHTS, PASSES = 1 << 14, 64


def draw_samples(name: str = "fc1.weight", purpose: str = "training", seed: int = 0) -> NDArray[np.float32]:
    """`(passes, weights)`."""
    like = torch.zeros(WEIGHTS)
    return np.stack([uniform_samples(keys, like).numpy() for keys in sampling_keys(seed, purpose, name, 0, PASSES)])


SAMPLES = draw_samples()


def chi_square_distance(counts: NDArray[np.int64], probabilities: NDArray[np.float64] | None = None) -> float:
    """Standard deviations of a chi-square statistic from its mean."""
    expected = counts.sum() * (np.full(counts.size, 1 / counts.size) if probabilities is None else probabilities)
    freedom = counts.size - 1
    return float(abs(((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.slow
def test_samples_are_uniform() -> None:
    """Over all; per weight over passes; in every bit."""
    assert SAMPLES.min() >= 0 and SAMPLES.max() < 1
    assert chi_square_distance(np.bincount((SAMPLES * 1024).astype(int).ravel(), minlength=1024)) < 4
    of_a_weight = np.stack(
        [uniform_samples(k, torch.zeros(8)).numpy() for k in sampling_keys(5, "training", "x", 0, 4096)]
    )
    for one in of_a_weight.T:
        assert chi_square_distance(np.bincount((one * 64).astype(int), minlength=64)) < 4
    words = (SAMPLES * 2.0**24).astype(np.int64)
    for bit in range(24):
        share = (words >> bit & 1).mean()
        assert abs(share - 0.5) < 4.5 * 0.5 / np.sqrt(words.size), bit


@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.97])
def test_the_share_of_ones_is_p(p: float) -> None:
    """Per pass and per weight over passes, with the variance of independent draws."""
    b = np.float32(p) > SAMPLES
    for axis, size in ((1, WEIGHTS), (0, PASSES)):
        counts = b.sum(axis=axis)
        assert abs(counts.mean() / size - p) < 4.5 * np.sqrt(p * (1 - p) / b.size)
        assert counts.var() == pytest.approx(size * p * (1 - p), rel=6 * np.sqrt(2 / counts.size) + 0.02)


def are_related(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Return True if two sets of numbers, or their halves of [0, 1), are correlated beyond 4.5 standard deviations."""
    x, y = a.ravel().astype(np.float64) - 0.5, b.ravel().astype(np.float64) - 0.5
    correlation = (x * y).mean() * 12
    quadrants = np.bincount((x > 0) * 2 + (y > 0), minlength=4)
    return abs(correlation) > 4.5 / np.sqrt(x.size) or chi_square_distance(quadrants) > 6


@pytest.mark.parametrize("lag", [1, 2, 7, 63, 64, 100, 300, 784, 4096])
def test_neighboring_weights_are_independent(lag: int) -> None:
    assert not are_related(SAMPLES[:, lag:], SAMPLES[:, :-lag])


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 32])
def test_passes_are_independent(lag: int) -> None:
    assert not are_related(SAMPLES[lag:], SAMPLES[:-lag])
    assert not are_related(SAMPLES[lag:, 1:], SAMPLES[:-lag, :-1])


def test_layers_purposes_and_seeds_are_independent() -> None:
    for other in (draw_samples("fc2.weight"), draw_samples(purpose="samples"), draw_samples(seed=1)):
        assert not are_related(SAMPLES, other)


def test_similar_keys_give_independent_numbers() -> None:
    """Keys that differ in one bit, or by one weight: never a shifted copy."""
    like = torch.zeros(WEIGHTS)
    k0, k1 = 0x12345678, 0x9ABCDEF0
    one = uniform_samples(np.array([k0, k1], np.uint32), like).numpy()
    for a, b in ((k0, k1 ^ 1), (k0, k1 ^ 1 << 31), (k0 ^ 1 << 31, k1), (k0 + 1, k1 ^ 0x55)):
        other = uniform_samples(np.array([a, b], np.uint32), like).numpy()
        assert not are_related(one, other)
        assert not are_related(one[1:], other[:-1])


def test_the_bounds_detect_dependence() -> None:
    """Numbers shifted by a constant; one number in fifty taken from another pass."""
    assert are_related(SAMPLES, (SAMPLES + np.float32(0.45)) % 1)
    mixture = np.where(np.random.default_rng(0).random(SAMPLES.shape) < 0.02, SAMPLES, np.roll(SAMPLES, 1, 0))
    assert are_related(SAMPLES, mixture)
