"""What runs say of two treatments, over independent seeds, at one pruning level at a time. Numbers in, plain data out.

Levels of one chain are correlated, so nothing here ever pools levels: each test sees one level's values, one a seed,
and `holm` corrects for the number of levels that are shown. A value that is not finite is refused (ValueError): a
diverged run is the caller's to count and to name. docs/statistics.md says when which test is meant.
Source: paper.md section 7.
"""

from supermask.stats.comparing import (
    CONFIDENCE,
    SIGNIFICANCE,
    Comparison,
    MeanInterval,
    Test,
    against,
    compare,
    mean_interval,
)
from supermask.stats.correction import holm
from supermask.stats.effect import effect_interval
from supermask.stats.exact import exact_remark, least_sign_flip_p, paired_sign_flip_p, sign_flip_p
from supermask.stats.margins import Equivalence, Side, equivalence, shifted_p
from supermask.stats.median import MedianInterval, bootstrap_median
from supermask.stats.planning import power, seeds_needed, spread_of

__all__ = [
    "CONFIDENCE",
    "SIGNIFICANCE",
    "Comparison",
    "Equivalence",
    "MeanInterval",
    "MedianInterval",
    "Side",
    "Test",
    "against",
    "bootstrap_median",
    "compare",
    "effect_interval",
    "equivalence",
    "exact_remark",
    "holm",
    "least_sign_flip_p",
    "mean_interval",
    "paired_sign_flip_p",
    "power",
    "seeds_needed",
    "shifted_p",
    "sign_flip_p",
    "spread_of",
]
