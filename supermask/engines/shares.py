"""In which order kernels walk over surviving weights, so that what they are multiplied by stays in the first cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supermask.engines.job import Array

UNITS_IN_CACHE = 128
"""32 kB of a fully connected layer's inputs, in 64 images."""

SHARE_WEIGHTS = 16
"""Surviving weights of a row in one share: fewer, and taking up a sum and putting it down costs more than it saves."""


@dataclass(frozen=True)
class Shares:
    """In which order a kernel walks over weights: by shares of the columns, then by rows."""

    first: NDArray[np.int64]
    """`(shares, rows + 1)`: where the weights of a share and a row begin."""
    offset: NDArray[np.int32]
    """For every weight, where in the kernel's input its partner begins, in floats."""
    order: NDArray[np.int64]
    """For every weight, its place in the lists that this was made of."""


def in_shares(rows: Array, columns: Array, offsets: Array, shape: tuple[int, int], in_cache: int) -> Shares:
    """The order of weights at (rows, columns) of a matrix of this shape, whose partners are at `offsets`.

    At most about `in_cache` columns are in a share, and more where only few weights survive: `SHARE_WEIGHTS` a row.
    Source: docs/performance.md.
    """
    columns_wanted = max(in_cache, SHARE_WEIGHTS * shape[0] * shape[1] // max(1, len(rows)))
    shares = max(1, round(shape[1] / columns_wanted))
    width = -(-shape[1] // shares)
    key = columns // width * shape[0] + rows
    order = np.argsort(key, kind="stable")
    ends = np.searchsorted(key[order], np.arange(shares * shape[0] + 1))
    first = np.stack([ends[q * shape[0] : (q + 1) * shape[0] + 1] for q in range(shares)])
    return Shares(first, offsets[order].astype(np.int32), order)
