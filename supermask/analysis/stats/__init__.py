"""What runs say of two treatments, over independent seeds, at one pruning level at a time. Numbers in, plain data out.

Levels of one chain are correlated, so nothing here ever pools levels: each test sees one level's values, one a seed,
and `holm` corrects for the number of levels that are shown. A value that is not finite is refused (ValueError): a
diverged run is the caller's to count and to name. docs/statistics.md says when which test is meant.
Source: paper.md section 7.
"""

from supermask.analysis.stats.comparison import (
    CONFIDENCE,
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
