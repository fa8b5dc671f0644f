"""False positives from rows to marks without a true effect: 5% of single tests, at most 5% of treatments marked."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from helpers.harness import IS_FULL

from supermask.analysis.stats import SIGNIFICANCE, compare, equivalence, holm, sign_flip_p
from supermask.analysis.summary import Metric, Summary, TreatmentPoint, summarize
from supermask.core.text import Row

STUDIES, LEVELS, SEEDS = 3000 if IS_FULL else 2000, 5, 5
TREATMENTS = ["large_final", "movement", "magnitude_increase"]
ACCURACY = Metric("early_stop_test_accuracy", 100.0, "%", "Test accuracy at early stopping (%)")


def chains(rng: np.random.Generator, seeds: int = SEEDS) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Accuracies (treatment, level, seed): no treatment is any better. A seed is as good or bad for all of them; what
    a treatment's own chain adds carries over from level to level."""
    seed_effect = rng.normal(0, 0.003, seeds)
    own = np.empty((len(TREATMENTS), LEVELS, seeds))
    own[:, 0] = rng.normal(0, 0.002, (len(TREATMENTS), seeds))
    for level in range(1, LEVELS):
        own[:, level] = 0.8 * own[:, level - 1] + rng.normal(0, 0.6 * 0.002, (len(TREATMENTS), seeds))
    decline = 0.002 * np.arange(LEVELS)[:, None]
    return np.round(0.97 - decline + seed_effect + own, 4)  # of 10,000 test images


def rows_of(accuracies: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[Row]:
    return [
        {
            "id": f"{treatment}-{level}-{seed}",
            "network": "fc",
            "dataset": "mnist",
            "treatment": treatment,
            "level": level,
            "seed": seed,
            "density": 0.8**level,
            "status": "finished",
            "early_stop_test_accuracy": float(accuracies[index, level - 1, seed]),
            "data_note": None,
        }
        for index, treatment in enumerate(TREATMENTS)
        for level in range(1, LEVELS + 1)
        for seed in range(accuracies.shape[-1])
    ]


@cache
def studies() -> list[Summary]:
    rng = np.random.default_rng(21)
    return [summarize(rows_of(chains(rng)), TREATMENTS, TREATMENTS[0], ACCURACY) for _ in range(STUDIES)]


def compared_lines() -> list[list[TreatmentPoint]]:
    return [summary.series[treatment] for summary in studies() for treatment in TREATMENTS[1:]]


def below(point: TreatmentPoint) -> bool:
    """True if this level's uncorrected p is below 5%."""
    p = point.comparison.p if point.comparison else None
    return p is not None and p < SIGNIFICANCE


@pytest.mark.slow
def test_five_percent_of_single_tests_are_below_five_percent() -> None:
    lines = compared_lines()
    for level in range(LEVELS):
        assert all(line[level].comparison for line in lines)
        rate = sum(below(line[level]) for line in lines) / len(lines)
        assert 0.04 < rate < 0.06, f"level {level + 1}: {rate:.2%}"


def test_at_most_five_percent_of_treatments_get_a_mark() -> None:
    lines = compared_lines()
    marked = sum(any(point.significant for point in line) for line in lines) / len(lines)
    uncorrected = sum(any(below(point) for point in line) for line in lines) / len(lines)
    assert 0.02 < marked < 0.06, f"{marked:.2%}"
    assert uncorrected > 0.09, f"{uncorrected:.2%}"  # what Holm is for


def test_rows_and_arrays_agree() -> None:
    """p-values are the same through rows and summaries as from arrays."""
    rng = np.random.default_rng(21)
    for summary in studies()[:200]:
        accuracies = chains(rng) * 100
        for index, treatment in enumerate(TREATMENTS[1:], start=1):
            ps = [
                compare(dict(enumerate(ours.tolist())), dict(enumerate(theirs.tolist()))).p
                for ours, theirs in zip(accuracies[index], accuracies[0], strict=True)
            ]
            np.testing.assert_allclose(
                np.array([point.p_holm for point in summary.series[treatment]], dtype=float),
                np.array(holm(ps), dtype=float),
                rtol=1e-9,
            )


def test_different_seeds_on_each_side() -> None:
    """Welch's test: a run of the reference diverged, or the reference has other seeds."""
    rng, found = np.random.default_rng(22), 0
    for _ in range(4000):
        ours, theirs = rng.normal(97, 0.3, 5), rng.normal(97, 0.3, 4)
        p = compare(dict(enumerate(ours.tolist())), dict(enumerate(theirs.tolist(), start=10))).p
        found += p is not None and p < SIGNIFICANCE
    assert 0.04 < found / 4000 < 0.06


def test_equivalence_at_the_margin() -> None:
    """True difference = margin: "equivalent" is a false positive, 5% if the spread is small against the margin."""
    rng, found = np.random.default_rng(23), 0
    for _ in range(4000):
        theirs = rng.normal(97, 0.3, 5)
        ours = theirs + rng.normal(1.0, 0.2, 5)
        found += equivalence(compare(dict(enumerate(ours.tolist())), dict(enumerate(theirs.tolist()))), 1.0).equivalent
    assert 0.04 < found / 4000 < 0.06


def test_sign_flip_test_keeps_its_level_without_normality() -> None:
    rng = np.random.default_rng(24)
    signs = rng.choice((-1, 1), (4000, 8))
    ps = [sign_flip_p(differences.tolist()) for differences in signs * rng.pareto(1.5, (4000, 8))]
    reachable = math.floor(0.05 * 2**8 / 2) * 2 / 2**8  # p comes in steps of 2 / 2^8
    assert abs(sum(p < SIGNIFICANCE for p in ps) / 4000 - reachable) < 0.01
