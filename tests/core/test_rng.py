"""Random streams: equal names give equal draws in every process and on every machine."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.rng import child_streams, random_stream

name = st.one_of(st.integers(-3, 100), st.text(max_size=4))


def test_first_draws_are_pinned() -> None:
    """A change here changes the numbers of every run and needs a new `runs.NUMERICS`."""
    assert random_stream(0, "init", "fc1.weight").integers(0, 10**9, 3).tolist() == [370964428, 139076230, 221201046]
    assert random_stream(7, "ties").random(2).tolist() == [0.6242221029193693, 0.25110613393619086]


def test_draws_are_equal_in_another_process() -> None:
    code = "from supermask.core.rng import random_stream; print(random_stream(3, 'order', 5).random(4).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(random_stream(3, "order", 5).random(4).tolist())


def test_streams_are_independent_of_earlier_draws() -> None:
    alone = random_stream(1, "b").random(5)
    random_stream(1, "a").random(1000)
    np.random.default_rng(0).random(3)
    assert np.array_equal(random_stream(1, "b").random(5), alone)


@pytest.mark.slow
@given(st.lists(name, min_size=1, max_size=4), st.lists(name, min_size=1, max_size=4))
def test_different_names_give_different_streams(first: list[int | str], second: list[int | str]) -> None:
    same = [(type(a), a) for a in first] == [(type(b), b) for b in second]
    draws = [random_stream(*names).integers(0, 2**63, 2).tolist() for names in (first, second)]
    assert (draws[0] == draws[1]) == same


def test_names_are_not_concatenated() -> None:
    seen = {
        random_stream(*names).integers(0, 2**63)
        for names in [(0, "ab", "c"), (0, "a", "bc"), (0, "abc"), (0, "abc", "")]
    }
    assert len(seen) == 4


def test_number_and_its_text_are_different_names() -> None:
    assert random_stream(1, "level", 2).random() != random_stream(1, "level", "2").random()


@given(st.integers(0, 9), st.lists(name, max_size=2), st.lists(name, max_size=2))
def test_child_streams_prepend_their_prefix(seed: int, prefix: list[int | str], names: list[int | str]) -> None:
    assert child_streams(seed, *prefix)(*names).random() == random_stream(seed, *prefix, *names).random()


def test_streams_of_adjacent_seeds_are_uncorrelated() -> None:
    draws = np.array([random_stream(seed, "init").standard_normal(2000) for seed in range(12)])
    correlations = np.corrcoef(draws)[np.triu_indices(12, k=1)]
    assert np.abs(correlations).max() < 0.1  # 66 pairs, each about N(0, 0.022)
