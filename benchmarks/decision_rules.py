"""How often the rules that decide claims are right, in simulated studies whose truth is known.

    python benchmarks/decision_rules.py                 # 2,000 studies each of n = 5, 10, 20; about 10 s
    python benchmarks/decision_rules.py --studies 200

Paired differences (treatment - reference, percentage points) have the spreads measured for zero - freeze_init on FC at
scale=laptop, at ten levels from 65% to 1.4% of the weights; within a seed neighboring levels correlate by 0.5. Each
scenario has a true difference per level. Beside the rule of `analysis/claims`, one test of the mean over a band, is the
former rule: a test at each level, Holm's correction over them, and for `some` no significant reversal at any level.
docs/statistics.md has the table; tests/analysis/test_decision_rules.py compares these rules with those of the package.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

REMAINING = np.array([65.1, 42.3, 27.6, 17.9, 11.7, 7.6, 5.0, 3.2, 2.1, 1.4])
"""Percent of the weights at the ten levels of scale=laptop."""

SPREAD = np.array([0.181, 0.149, 0.129, 0.085, 0.142, 0.118, 0.103, 0.098, 0.198, 0.230])
"""Standard deviation of zero - freeze_init at each level, percentage points, n = 5."""

MEASURED = np.array([0.01, -0.01, 0.01, 0.07, 0.18, 0.15, 0.12, 0.12, -0.10, -0.35])
"""Mean of zero - freeze_init at each level, percentage points, n = 5: it reverses at the sparsest levels."""

CORRELATION = 0.5
"""Of neighboring levels of one seed; the measured correlations over the band have a mean of 0.35, as these have."""

ALPHA = 0.05
MARGIN = 0.2
"""Percentage points."""

SEEDS = (5, 10, 20)
STUDIES = 2_000

BAND = (REMAINING <= 18.0) & (REMAINING >= 4.9)
"""18% to 5% of the weights."""


def simulate(rng: np.random.Generator, truth: Floats, studies: int, seeds: int) -> Floats:
    """Differences (study, seed, level): the true difference of each level, plus an AR(1) chain over the levels."""
    noise = rng.normal(size=(studies, seeds, len(truth)))
    for level in range(1, len(truth)):
        noise[..., level] = CORRELATION * noise[..., level - 1] + np.sqrt(1 - CORRELATION**2) * noise[..., level]
    return truth + SPREAD * noise


def one_sided_p(values: Floats, axis: int = 1) -> Floats:
    """p of the null hypothesis "mean <= 0" by a one-sample t-test over the seeds, which are on `axis`."""
    n = values.shape[axis]
    t = values.mean(axis=axis) / (values.std(axis=axis, ddof=1) / np.sqrt(n))
    return np.asarray(stdtr(n - 1, -t), dtype=np.float64)


def two_sided_p(values: Floats) -> Floats:
    """Two-sided p of the null hypothesis "mean = 0" over axis 1."""
    p = one_sided_p(values)
    return 2 * np.minimum(p, 1 - p)


def holm(ps: Floats) -> Floats:
    """Holm's adjusted p-values over the last axis."""
    order = np.argsort(ps, axis=-1)
    factors = np.arange(ps.shape[-1], 0, -1)
    ordered = np.minimum(1.0, np.take_along_axis(ps, order, axis=-1) * factors)
    adjusted = np.empty_like(ps)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(ordered, axis=-1), axis=-1)
    return adjusted


Verdicts = tuple[Bools, Bools]
"""(supported, contradicted), one per study; a study that is neither is not supported."""


def above_on_the_band_mean(differences: Floats) -> Verdicts:
    """The rule for `above`: one two-sided t-test of the seeds' means over the band."""
    means = differences[..., BAND].mean(axis=-1)
    is_significant = two_sided_p(means) < ALPHA
    is_positive = means.mean(axis=-1) > 0
    return is_significant & is_positive, is_significant & ~is_positive


def above_at_some_level(differences: Floats) -> Verdicts:
    """The former rule for `above` with `where: some`: significant after Holm somewhere, and its reverse nowhere."""
    is_significant = holm(two_sided_p(differences)) < ALPHA
    is_positive = differences.mean(axis=1) > 0
    holds, is_opposite = (is_significant & is_positive).any(-1), (is_significant & ~is_positive).any(-1)
    return holds & ~is_opposite, is_opposite & ~holds


def matches_on_the_band_mean(differences: Floats) -> Verdicts:
    """The rule for `matches`: two one-sided t-tests (TOST) of the seeds' means over the band."""
    means = differences[..., BAND].mean(axis=-1)
    above, below = one_sided_p(means + MARGIN), one_sided_p(MARGIN - means)
    beyond = np.minimum(one_sided_p(means - MARGIN), one_sided_p(-MARGIN - means))
    return np.maximum(above, below) < ALPHA, beyond < ALPHA


def matches_at_every_level(differences: Floats) -> Verdicts:
    """The former rule for `matches`: TOST at every level of the band, with Holm's correction."""
    band = differences[..., BAND]
    ps = np.maximum(one_sided_p(band + MARGIN), one_sided_p(MARGIN - band))
    is_positive = band.mean(axis=1) > 0
    beyond = np.where(is_positive, one_sided_p(band - MARGIN), one_sided_p(-MARGIN - band))
    is_opposite = (holm(beyond) < ALPHA).any(-1)
    return (holm(ps) < ALPHA).all(-1) & ~is_opposite, is_opposite


def every_level(differences: Floats) -> Verdicts:
    """The rule for `at_least` with `where: every`: each level of the band at 0.05 (intersection-union)."""
    band = differences[..., BAND]
    is_opposite = (holm(one_sided_p(-MARGIN - band)) < ALPHA).any(-1)
    return (one_sided_p(band + MARGIN) < ALPHA).all(-1) & ~is_opposite, is_opposite


def every_level_after_holm(differences: Floats) -> Verdicts:
    """The former rule for the same: each level of the band, after Holm's correction."""
    band = differences[..., BAND]
    is_opposite = (holm(one_sided_p(-MARGIN - band)) < ALPHA).any(-1)
    return (holm(one_sided_p(band + MARGIN)) < ALPHA).all(-1) & ~is_opposite, is_opposite


@dataclass(frozen=True)
class Scenario:
    """A true state, the claim about it, and the rules that decide it."""

    name: str
    claim: str
    truth: Floats
    right: str
    """`supported`, or `none` if the claim is false at the boundary, so that a verdict of support is an error."""
    rule: Callable[[Floats], Verdicts]
    former_rule: Callable[[Floats], Verdicts]


FLAT = np.ones(len(REMAINING))
ONE_LEVEL_AT_MARGIN = np.where(np.isclose(REMAINING, 5.0), -MARGIN, 0.0)

SCENARIOS = (
    Scenario("no difference", "above", 0 * FLAT, "none", above_on_the_band_mean, above_at_some_level),
    Scenario(
        "+0.13 points at every level", "above", 0.13 * FLAT, "supported", above_on_the_band_mean, above_at_some_level
    ),
    Scenario(
        "as measured: +0.13 over the band, reversed below 3%",
        "above",
        MEASURED,
        "supported",
        above_on_the_band_mean,
        above_at_some_level,
    ),
    Scenario(
        "-0.2 points (the margin)",
        "matches",
        -MARGIN * FLAT,
        "none",
        matches_on_the_band_mean,
        matches_at_every_level,
    ),
    Scenario("no difference", "matches", 0 * FLAT, "supported", matches_on_the_band_mean, matches_at_every_level),
    Scenario(
        "-0.2 at one level of four",
        "at least, every level",
        ONE_LEVEL_AT_MARGIN,
        "none",
        every_level,
        every_level_after_holm,
    ),
    Scenario("no difference", "at least, every level", 0 * FLAT, "supported", every_level, every_level_after_holm),
)


def rates(
    scenario: Scenario, rule: Callable[[Floats], Verdicts], seeds: int, studies: int = STUDIES
) -> tuple[float, float]:
    """Shares of the studies whose verdict is supported, and contradicted. The same studies for both rules."""
    rng = np.random.default_rng([20261129, seeds, SCENARIOS.index(scenario)])
    supported, contradicted = rule(simulate(rng, scenario.truth, studies, seeds))
    return float(supported.mean()), float(contradicted.mean())


def table(studies: int) -> str:
    """Markdown: per scenario and rule the shares of "supported" and "contradicted" by n."""
    heads = ["truth", "claim", "right verdict", "rule", *(f"n = {n}" for n in SEEDS)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for scenario in SCENARIOS:
        for name, rule in (("now", scenario.rule), ("before", scenario.former_rule)):
            cells = [" / ".join(f"{rate:.3f}" for rate in rates(scenario, rule, n, studies)) for n in SEEDS]
            lines.append(f"| {' | '.join([scenario.name, scenario.claim, scenario.right, name, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=STUDIES)
    print(table(parser.parse_args().studies))


if __name__ == "__main__":
    main()
