"""Primary endpoint of a claim: one number per seed over a band of levels, one test over seeds, one relation.

Levels of one chain are correlated, but n seeds are n independent values; so the mean over a band that was fixed in
advance is one value per seed, and the test of these values is one test. More seeds decide any true effect.
Source: Zhou et al. 2019, authors' response, items 2 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from supermask.analysis.stats.comparison import SIGNIFICANCE, Comparison, compare_to_constant, mean, mean_interval
from supermask.analysis.stats.equivalence import Side, one_sided_p
from supermask.analysis.stats.power import paired_spread, seeds_needed

Relation = Literal["above", "below", "at_least", "at_most", "matches"]

Margin = float | Mapping[int, float]
"""A constant in the values' unit, or one per seed."""


def seed_means(levels: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Mean of each seed over levels, given seed -> value per level; seeds that lack a level are left out."""
    if not levels:
        return {}
    seeds = set.intersection(*(set(values) for values in levels))
    return {seed: mean([values[seed] for values in levels]) for seed in sorted(seeds)}


@dataclass(frozen=True)
class RelationTest:
    """Test of one relation between a treatment and its reference."""

    p: float | None
    """p of the null hypothesis that the relation does not hold; None if there is no test."""
    p_opposite: float | None
    """p of the null hypothesis that its opposite does not hold. `above`, `below`: the same two-sided p."""
    has_claimed_sign: bool
    """True if the mean difference lies on the claimed side of the margin."""
    seeds_needed: int | None
    """Seeds for a power of 80% if the difference and spread are as found; None without spread, or above 10,000."""

    @property
    def holds(self) -> bool:
        """True if the relation is significant."""
        return self.has_claimed_sign and self.p is not None and self.p < SIGNIFICANCE

    @property
    def is_reversed(self) -> bool:
        """True if the opposite of the relation is significant."""
        return not self.has_claimed_sign and self.p_opposite is not None and self.p_opposite < SIGNIFICANCE


def check_relation(
    relation: Relation,
    difference: Comparison,
    values: Mapping[int, float],
    margin: Margin,
    corrected_over: int = 1,
) -> RelationTest:
    """Test a relation on the differences of n seeds.

    `difference`: comparison of the treatment with its reference; `values`: its difference by seed; `margin`: at least
    0, constant or by seed. With d the difference and m the margin:

    - `above`, `below`: d > m, d < -m; two-sided t-test;
    - `at_least`, `at_most`: d > -m, d < m; one-sided t-test;
    - `matches`: |d| < m; two one-sided t-tests (TOST), the larger p.

    A margin by seed, such as a share of what a control loses, is part of the tested contrast d + m or d - m, so that
    its own spread counts. `corrected_over`: number of tests that Holm's correction will count; the seeds needed are
    for a test at SIGNIFICANCE / `corrected_over`. Raises ValueError if the margin, or the mean of one by seed, is
    negative.

    Source: Schuirmann (1987).
    """
    sign = {"above": 1, "below": -1, "at_least": -1, "at_most": 1}
    size = margin if isinstance(margin, float | int) else mean([margin[seed] for seed in sorted(margin)])

    if size < 0:
        raise ValueError(f"a margin is at least 0; this one is {size}")
    significance = SIGNIFICANCE / corrected_over

    def p_beyond(side_of_margin: int, side: Side) -> float | None:
        return _shifted(difference, values, margin, side_of_margin, side)

    if relation == "matches":
        is_positive = difference.difference > 0
        ps = p_beyond(-1, "greater"), p_beyond(1, "less")
        p = None if None in ps else max(ps[0] or 0.0, ps[1] or 0.0)
        p_opposite = p_beyond(1, "greater") if is_positive else p_beyond(-1, "less")
        distance = size - abs(difference.difference)
        return RelationTest(
            p, p_opposite, distance > 0, _seeds(difference, values, margin, 1 if is_positive else -1, 2 * significance)
        )
    claimed: Side = "greater" if relation in ("above", "at_least") else "less"
    other: Side = "less" if claimed == "greater" else "greater"
    beyond = difference.difference - sign[relation] * size
    has_sign = beyond > 0 if claimed == "greater" else beyond < 0
    p, p_opposite = p_beyond(sign[relation], claimed), p_beyond(sign[relation], other)
    is_two_sided = relation in ("above", "below")
    if is_two_sided:
        p = p_opposite = None if p is None or p_opposite is None else min(1.0, 2.0 * min(p, p_opposite))
    alpha = significance if is_two_sided else 2 * significance
    return RelationTest(p, p_opposite, has_sign, _seeds(difference, values, margin, sign[relation], alpha))


def _shifted(c: Comparison, values: Mapping[int, float], margin: Margin, sign: int, side: Side) -> float | None:
    """One-sided p of "difference <= sign * margin" (`greater`), or of "difference >= sign * margin" (`less`)."""
    if isinstance(margin, float | int):
        return one_sided_p(c, sign * margin, side)
    return one_sided_p(_contrast(values, margin, sign), 0.0, side)


def _contrast(values: Mapping[int, float], margin: Mapping[int, float], sign: int) -> Comparison:
    return compare_to_constant({seed: value - sign * margin[seed] for seed, value in values.items()}, 0.0)


def _seeds(c: Comparison, values: Mapping[int, float], margin: Margin, sign: int, alpha: float) -> int | None:
    """Seeds at which a two-sided test at `alpha` has a power of 80% for the distance found to sign * margin."""
    if isinstance(margin, float | int):
        distance, spread = c.difference - sign * margin, paired_spread(c)
    else:
        contrast = _contrast(values, margin, sign)
        distance, spread = contrast.difference, paired_spread(contrast)
    if not spread or not distance:
        return None
    return seeds_needed(distance, spread, alpha=alpha, paired=c.test != "Welch t")


@dataclass(frozen=True)
class ErrorRatio:
    """Geometric mean over seeds of error rate of the treatment / error rate of the reference, and its 95% interval."""

    ratio: float
    low: float | None
    high: float | None


def error_ratio(levels: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> ErrorRatio | None:
    """Ratio of error rates: exp of the mean over seeds and levels of ln((100 - a) / (100 - b)).

    `levels`: per level the accuracies of treatment and reference in percent, by seed; seeds that lack a level are left
    out. The interval is exp of the t-interval of the seeds' means. None without seeds, or if an error rate is 0.
    """
    logs = []
    for ours, theirs in levels:
        seeds = ours.keys() & theirs.keys()
        if any(ours[seed] >= 100.0 or theirs[seed] >= 100.0 for seed in seeds):
            return None
        logs.append({seed: math.log((100.0 - ours[seed]) / (100.0 - theirs[seed])) for seed in seeds})
    means = seed_means(logs)
    if not means:
        return None
    interval = mean_interval([means[seed] for seed in sorted(means)])
    low, high = (None if end is None else math.exp(end) for end in (interval.low, interval.high))
    return ErrorRatio(math.exp(interval.mean), low, high)
