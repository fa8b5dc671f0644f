"""Initializers: standard deviation, bound and shape of the distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from supermask.core.initializers import PEAK_STD, TRUNCATED_STD, bimodal, truncated_normal
from supermask.core.invariants import MAX_ABS_DRAWS
from supermask.core.rng import random_stream

N = 200_000


def test_truncated_std_equals_that_of_scipy() -> None:
    assert pytest.approx(stats.truncnorm(-2, 2).std(), rel=1e-12) == TRUNCATED_STD
    assert pytest.approx(0.8796, abs=5e-5) == TRUNCATED_STD


@pytest.mark.parametrize("std", [0.04295, 1.0, 0.5])
def test_truncated_normal(std: float) -> None:
    draws = truncated_normal((400, N // 400), std, random_stream(0, "init"))
    assert draws.shape == (400, N // 400) and draws.dtype == np.float32
    assert draws.std() == pytest.approx(std, rel=0.01)
    assert abs(draws.mean()) < 0.01 * std
    underlying = std / TRUNCATED_STD
    assert np.abs(draws).max() <= 2 * underlying * (1 + 1e-6)
    assert np.abs(draws).max() > 1.98 * underlying
    assert MAX_ABS_DRAWS["glorot_normal"] * std == pytest.approx(2 * underlying, rel=1e-9)
    assert stats.kstest(draws.ravel() / underlying, stats.truncnorm(-2, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("std", [0.04295, 1.0])
def test_bimodal(std: float) -> None:
    draws = bimodal((N,), std, random_stream(0, "init"))
    assert draws.shape == (N,) and draws.dtype == np.float32
    assert draws.std() == pytest.approx(std, rel=0.01)
    assert abs(draws.mean()) < 0.01 * std
    peak = (1 - PEAK_STD**2) ** 0.5

    def mixture(x: np.ndarray) -> np.ndarray:
        halves = [stats.norm(m, PEAK_STD).cdf(x) for m in (-peak, peak)]
        return np.asarray((halves[0] + halves[1]) / 2)

    assert stats.kstest(draws / std, mixture).pvalue > 1e-4
    density, _ = np.histogram(draws / std, bins=[-0.1, 0.1, 0.868, 1.068], density=False)
    assert density[0] < 0.01 * density[2]


@pytest.mark.parametrize("draw", [truncated_normal, bimodal])
def test_same_stream_gives_the_same_bits(draw: object) -> None:
    assert callable(draw)
    first, again, other = (draw((7, 5), 1.0, random_stream(seed, "x")) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_empty_shapes() -> None:
    assert truncated_normal((0, 3), 1.0, random_stream(0)).shape == (0, 3)
    assert bimodal((0,), 1.0, random_stream(0)).shape == (0,)
