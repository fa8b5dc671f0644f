"""Statistics of two treatments over independent seeds. Numbers in, plain data out.

Levels of one chain are correlated, so no p-value is pooled over levels: each test gets one value per seed, that of one
level or the mean over a band of levels that was fixed in advance (`seed_means`). `holm` corrects where the levels are
shown one by one. A value that is not finite raises ValueError: diverged runs are
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
from supermask.analysis.stats.endpoint import (
    ErrorRatio,
    Margin,
    Relation,
    RelationTest,
    check_relation,
    error_ratio,
    seed_means,
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
    "ErrorRatio",
    "Margin",
    "MeanInterval",
    "MedianInterval",
    "Relation",
    "RelationTest",
    "Side",
    "Test",
    "bootstrap_median",
    "check_relation",
    "compare",
    "compare_to_constant",
    "effect_interval",
    "equivalence",
    "error_ratio",
    "exact_test_limit",
    "holm",
    "mean_interval",
    "min_sign_flip_p",
    "one_sided_p",
    "paired_sign_flip_p",
    "paired_spread",
    "power",
    "seed_means",
    "seeds_needed",
    "sign_flip_p",
]
