"""Masks: how many weights are kept, which ones, and how a mask is packed. The only place that sorts scores."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.rng import Stream, Streams
from supermask.core.types import Masks, Weights

if TYPE_CHECKING:
    from torch import Tensor


def prune_count(alive: int, prune_rate: float | str) -> int:
    """How many of `alive` weights one level prunes: round_half_even(alive * prune_rate), in exact arithmetic.

    The rate is read as the decimal that was written (0.2 is 1/5, not the nearest binary float).
    Source: paper.md section 1, step 3. Differs from the paper: the authors' code truncates a float product
    (47,039 instead of 47,040 in FC's first layer; paper.md section 10).
    """
    return round(alive * Fraction(str(prune_rate)))


def remaining_after(alive: int, prune_rate: float | str, levels: int) -> int:
    """Weights left of `alive` after `levels` levels, each rounded by `prune_count` as a chain would."""
    for _ in range(levels):
        alive -= prune_count(alive, prune_rate)
    return alive


def keep_top(scores: Weights, alive: Masks, keep: Mapping[str, int] | int, rng: Streams) -> Masks:
    """The masks that keep exactly `keep` of the alive weights: those with the highest scores.

    Scores and masks have the shapes of the kernels. A mapping keeps its own count in each layer (layer-wise ranking);
    one number keeps that many over all layers together (global ranking). Equal scores are settled uniformly at random
    by the stream `rng("ties", layer)` (`rng("ties")` if global). Raises ValueError for NaN scores of alive weights.
    Source: paper.md section 1, step 3.
    """
    alive_scores = {name: scores[name].numpy()[alive[name].numpy()] for name in scores}
    for name, values in alive_scores.items():
        if np.isnan(values).any():
            raise ValueError(f"a score of {name} is NaN: each alive weight needs a number (infinity is one)")
    if isinstance(keep, int):
        chosen = _top_indices(np.concatenate(list(alive_scores.values())), keep, rng("ties"))
        ends = np.cumsum([s.size for s in alive_scores.values()])
        parts = dict(zip(alive_scores, np.split(chosen, ends[:-1]), strict=True))
    else:
        parts = {name: _top_indices(s, keep[name], rng("ties", name)) for name, s in alive_scores.items()}
    return {name: _scatter(alive[name], parts[name]) for name in scores}


def _top_indices(scores: NDArray[Any], count: int, rng: Stream) -> NDArray[np.bool_]:
    """Bool vector with exactly `count` True at the highest of `scores`; linear time, ties at random."""
    assert 0 <= count <= scores.size, (count, scores.size)
    if count == 0:
        return np.zeros(scores.size, dtype=bool)
    cut = scores.size - count
    lowest_kept = np.partition(scores, cut)[cut]
    chosen: NDArray[np.bool_] = scores > lowest_kept
    tied = np.flatnonzero(scores == lowest_kept)
    chosen[rng.choice(tied, size=count - int(chosen.sum()), replace=False)] = True
    return chosen


def _scatter(alive: Tensor, chosen: NDArray[np.bool_]) -> Tensor:
    mask = alive.numpy().copy()
    mask[mask] = chosen
    return alive.new_tensor(mask)


def rank(values: Tensor, alive: Tensor) -> Tensor:
    """Rank of each alive value among the alive of its layer, as a share in (0, 1]; 1 = largest; 0 for dead weights.

    Equal values share their mean rank; NaN has rank NaN. Shares, not counts, so that layers of different sizes can be
    ranked together. Shape: that of `values`, float64.
    Source: paper.md section 3 (alpha "equal to min(rank of abs(w_i), rank of abs(w_f)) among alive weights").
    """
    where_alive = alive.numpy()
    ranked = values.numpy()[where_alive]
    _, inverse, counts = np.unique(ranked, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    ranks = np.zeros(tuple(values.shape))
    ranks[where_alive] = np.where(np.isnan(ranked), np.nan, mean_ranks[inverse] / inverse.size)
    return values.double().new_tensor(ranks)


def count_kept(masks: Masks) -> dict[str, int]:
    """Number of kept weights in each tensor."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def density(masks: Masks) -> float:
    """Kept weights over all maskable weights, in [0, 1]."""
    return sum(count_kept(masks).values()) / sum(mask.numel() for mask in masks.values())


def pack(mask: Tensor) -> NDArray[np.uint8]:
    """One bit a weight, in C order, first weight in the highest bit of the first byte; ceil(size / 8) bytes."""
    return np.packbits(mask.numpy())


def unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The bool array of `shape` that `pack` packed. Raises ValueError if the number of bytes does not fit."""
    size = int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.shape != ((size + 7) // 8,):
        raise ValueError(
            f"a packed mask of shape {shape} has {(size + 7) // 8} bytes, not {packed.dtype}{packed.shape}"
        )
    return np.unpackbits(packed, count=size).astype(bool).reshape(shape)
