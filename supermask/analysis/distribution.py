"""Distributions of a layer's weights before and after masking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Distribution:
    """Counts of one layer's weights between edges; `edges` has one entry more than the counts."""

    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    """All that were alive before the mask."""
    after: NDArray[np.int64]
    """Those that the mask keeps."""
    outside: int
    """Alive weights beyond the edges: in no count."""


def distribution_of(
    values: NDArray[Any], mask: NDArray[np.bool_], alive: NDArray[np.bool_] | None, edges: NDArray[np.float64]
) -> Distribution:
    """Counts of w_i or w_f of one layer, of the alive weights and of the kept ones.

    All arrays but `edges` have the kernel's shape; `alive` None is all of them. Source: paper.md section 8.
    """
    before = values[np.ones(mask.shape, dtype=bool) if alive is None else alive]
    counts = np.histogram(before, edges)[0]
    after = np.histogram(values[mask if alive is None else mask & alive], edges)[0]
    return Distribution(edges, counts, after, int(before.size - counts.sum()))


def limits_of(values: Sequence[NDArray[Any]], share: float = 0.999) -> float:
    """The magnitude that `share` of the values do not exceed, in whichever array it is largest; above 0."""
    found = [float(np.quantile(np.abs(array), share)) for array in values if array.size]
    return max(found, default=0.0) or 1.0
