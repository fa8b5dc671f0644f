"""Statistics of two treatments over independent seeds, one pruning level at a time. Numbers in, plain data out.

Levels of one chain are correlated, so no function pools levels: each test gets the values of one level, one per seed,
and `holm` corrects for the number of levels shown. A value that is not finite raises ValueError: diverged runs are
counted and named by the caller. docs/statistics.md says when to use which test.
Source: Zhou et al. 2019, authors' response, items 2 and 4.
"""

from supermask.analysis.stats.comparison import (
    CONFIDENCE,
    PERCENT,
    SIGNIFICANCE,
    Comparison,
    MeanInterval,
    Test,
    compare,
    compare_to_constant,
    effect_interval,
    holm,
    mean_interval,
)
from supermask.analysis.stats.equivalence import Equivalence, Side, equivalence, one_sided_p
from supermask.analysis.stats.exact import (
    MedianInterval,
    bootstrap_median,
    exact_test_limit,
    min_sign_flip_p,
    paired_sign_flip_p,
    sign_flip_p,
)
from supermask.analysis.stats.power import paired_spread, power, seeds_needed

__all__ = [
    "CONFIDENCE",
    "PERCENT",
    "SIGNIFICANCE",
    "Comparison",
    "Equivalence",
    "MeanInterval",
    "MedianInterval",
    "Side",
    "Test",
    "bootstrap_median",
    "compare",
    "compare_to_constant",
    "effect_interval",
    "equivalence",
    "exact_test_limit",
    "holm",
    "mean_interval",
    "min_sign_flip_p",
    "one_sided_p",
    "paired_sign_flip_p",
    "paired_spread",
    "power",
    "seeds_needed",
    "sign_flip_p",
]
