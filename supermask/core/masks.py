"""Masks: exact counts, selection of the top scores, ranks, packing.

`keep_top` is the only place of the package that ranks weights by a criterion's scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.rng import Stream, Streams
from supermask.core.types import Masks, Weights

if TYPE_CHECKING:
    from torch import Tensor


def prune_count(alive: int, prune_rate: float | str) -> int:
    """Number of weights that one level prunes: round_half_even(alive * prune_rate), in exact arithmetic.

    The rate is read as the decimal that was written: 0.2 is 1/5, not the nearest binary float.
    Source: Zhou et al. 2019, Sec. 1.
    Differs from the paper: the authors' code truncates a float product and prunes 47,039 instead of 47,040 weights of
    FC's first layer.
    """
    return round(alive * Fraction(str(prune_rate)))


@lru_cache(maxsize=1024)
def remaining_after(alive: int, prune_rate: float | str, levels: int) -> int:
    """Number of weights left of `alive` after `levels` levels, rounding at each level as a chain does.

    Cached: a plan asks for the same layers and rates once per treatment, and the arithmetic is exact and slow.
    """
    for _ in range(levels):
        alive -= prune_count(alive, prune_rate)
    return alive


@dataclass(frozen=True)
class RankedGroup:
    """Weights that are ranked together: those of one tensor, or of all tensors under global scope."""

    alive: int
    prune_rate: float

    def remaining(self, levels: int) -> int:
        """Number of weights left after `levels` levels."""
        return remaining_after(self.alive, self.prune_rate, levels)


ALL_TENSORS = "all"
"""Name of the only group under global scope."""


def matches_pattern(tensor: str, pattern: str) -> bool:
    """Return True if a pattern names a tensor: its name or its layer's, with `*` and `?` for any characters.

    Every other character stands for itself, `[` too: `[[]` is `fnmatch`'s form of a literal `[`.
    """
    literal = pattern.replace("[", "[[]")
    return any(fnmatchcase(name, literal) for name in (tensor, tensor.rpartition(".")[0]))


def prune_rate_for(tensor: str, kind: str, rates: Mapping[str, float]) -> float:
    """Return the rate of a tensor: that of the longest name or pattern that matches it, else that of its kind."""
    key = rate_key(tensor, rates)
    return rates[kind if key is None else key]


def rate_key(tensor: str, rates: Mapping[str, float]) -> str | None:
    """Return the longest name or pattern that matches a tensor; None if its kind decides.

    Of patterns of equal length the first in alphabetical order counts.
    """
    matching = [key for key in rates if key not in RATE_KINDS and matches_pattern(tensor, key)]
    return min(matching, key=lambda key: (-len(key), key), default=None)


RATE_KINDS = ("conv", "hidden", "output", "global")
"""Keys of prune rates that are not names or patterns of tensors."""


def is_pruned(tensor: str, rates: Mapping[str, float], only: Sequence[str] = (), exclude: Sequence[str] = ()) -> bool:
    """Return False for a tensor that is never pruned: by `only`, by `exclude`, or by a rate of 0 for its name."""
    is_included = not only or any(matches_pattern(tensor, pattern) for pattern in only)
    is_excluded = any(matches_pattern(tensor, pattern) for pattern in exclude)
    key = rate_key(tensor, rates)
    return is_included and not is_excluded and (key is None or rates[key] > 0)


def ranked_groups(
    alive: Mapping[str, int],
    kinds: Mapping[str, str],
    scope: str,
    rates: Mapping[str, float],
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> dict[str, RankedGroup]:
    """Return the groups of weights that are ranked together, by tensor name; under global scope one is `ALL_TENSORS`.

    `alive` is the number of weights by tensor, `kinds` its kind, which selects its rate unless a name or pattern does.
    A tensor that is never pruned is a group of rate 0. The only place where a prune rate is assigned to weights, except
    for the certificate, which assigns it independently.
    """
    spared = {n: RankedGroup(count, 0.0) for n, count in alive.items() if not is_pruned(n, rates, only, exclude)}
    if scope == "global":
        ranked = sum(count for name, count in alive.items() if name not in spared)
        return {ALL_TENSORS: RankedGroup(ranked, rates["global"]), **spared}
    return {
        name: spared[name] if name in spared else RankedGroup(count, prune_rate_for(name, kinds[name], rates))
        for name, count in alive.items()
    }


def keep_top(scores: Weights, alive: Masks, keep: Mapping[str, int] | int, rng: Streams) -> Masks:
    """Return the masks that keep exactly `keep` of the alive weights: those with the highest scores.

    Scores and masks have the shapes of the kernels. `keep` as a mapping gives a count per layer; as a number it is the
    count over all layers together (global ranking). Ties are broken uniformly at random by the stream
    `rng("ties", layer)`, or `rng("ties")` for global ranking.
    Raises ValueError for NaN scores of alive weights. Source: Zhou et al. 2019, Sec. 1 and 2.
    """
    alive_scores = {name: scores[name].numpy()[alive[name].numpy()] for name in scores}
    for name, values in alive_scores.items():
        if np.isnan(values).any():
            raise ValueError(f"a score of {name} is NaN: each alive weight needs a number (infinity is one)")
    if isinstance(keep, int):
        is_top = _select_top(np.concatenate(list(alive_scores.values())), keep, rng("ties"))
        ends = np.cumsum([s.size for s in alive_scores.values()])
        kept = dict(zip(alive_scores, np.split(is_top, ends[:-1]), strict=True))
    else:
        kept = {name: _select_top(s, keep[name], rng("ties", name)) for name, s in alive_scores.items()}
    return {name: _scatter(alive[name], kept[name]) for name in scores}


def _select_top(scores: NDArray[Any], count: int, rng: Stream) -> NDArray[np.bool_]:
    """Return a bool vector with exactly `count` True at the highest of `scores`; linear time, ties at random."""
    assert 0 <= count <= scores.size, (count, scores.size)
    if count == 0:
        return np.zeros(scores.size, dtype=bool)
    cut = scores.size - count
    lowest_kept = np.partition(scores, cut)[cut]
    is_top: NDArray[np.bool_] = scores > lowest_kept
    # Ties are real: weights of pixels that are always black never move, so all of them score 0 under `movement`.
    tied = np.flatnonzero(scores == lowest_kept)
    is_top[rng.choice(tied, size=count - int(is_top.sum()), replace=False)] = True
    return is_top


def count_random_ties(scores: Weights, alive: Masks, kept: Masks, scope: str = "layer") -> dict[str, int]:
    """Number of kept weights per tensor that were drawn at random from equal scores at the cut.

    A weight counts if its score is the lowest kept one and an alive weight of this score was pruned; 0 where the scores
    decide. `alive`: before pruning, `kept`: after it. `scope`: `layer` or `global`; a threshold draws nothing.
    """
    if scope == "threshold":
        return dict.fromkeys(scores, 0)
    if not scores:
        return {}
    groups = [list(scores)] if scope == "global" else [[name] for name in scores]
    ties: dict[str, int] = {}
    for names in groups:
        alive_scores = {name: scores[name].numpy()[alive[name].numpy()] for name in names}
        is_kept = {name: kept[name].numpy()[alive[name].numpy()] for name in names}
        kept_scores = np.concatenate([alive_scores[name][is_kept[name]] for name in names])
        lowest = kept_scores.min() if kept_scores.size else np.inf
        has_choice = any(bool((alive_scores[name][~is_kept[name]] == lowest).any()) for name in names)
        for name in names:
            ties[name] = int((alive_scores[name][is_kept[name]] == lowest).sum()) if has_choice else 0
    return ties


def _scatter(alive: Tensor, kept: NDArray[np.bool_]) -> Tensor:
    mask = alive.numpy().copy()
    mask[mask] = kept
    return alive.new_tensor(mask)


def rank(values: Tensor, alive: Tensor) -> Tensor:
    """Rank of each alive value among the alive values of its layer, as a share in (0, 1]; 1 is the largest.

    Pruned weights have rank 0. Equal values share their mean rank; NaN has rank NaN. Shares instead of counts make
    layers of different sizes comparable under global ranking. Shape of `values`, float64.
    Source: Zhou et al. 2019, Sec. 2: alpha makes both conditions of `large_init_large_final` prune the same share.
    """
    where_alive = alive.numpy()
    ranked = values.numpy()[where_alive]
    _, inverse, counts = np.unique(ranked, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    ranks = np.zeros(tuple(values.shape))
    ranks[where_alive] = np.where(np.isnan(ranked), np.nan, mean_ranks[inverse] / inverse.size)
    return values.double().new_tensor(ranks)


def count_kept(masks: Masks) -> dict[str, int]:
    """Number of kept weights per tensor."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def density(masks: Masks) -> float:
    """Share of all prunable weights that is kept, in [0, 1]."""
    return sum(count_kept(masks).values()) / sum(mask.numel() for mask in masks.values())


def pack(mask: Tensor) -> NDArray[np.uint8]:
    """Pack a mask, one bit per weight in C order, first weight in the highest bit; ceil(size / 8) bytes."""
    return np.packbits(mask.numpy())


def unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the bool array of `shape` that `pack` packed. Raises ValueError if the number of bytes does not match."""
    size = int(np.prod(shape))
    if packed.dtype != np.uint8 or packed.shape != ((size + 7) // 8,):
        raise ValueError(
            f"a packed mask of shape {shape} has {(size + 7) // 8} bytes, not {packed.dtype}{packed.shape}"
        )
    return np.unpackbits(packed, count=size).astype(bool).reshape(shape)
