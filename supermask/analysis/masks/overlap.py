"""How far masks agree, held against the agreement of random masks with the same counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks.sample import Masks

ALL_LAYERS = "all layers"
"""The key of what holds for the network as a whole, beside the layers' names."""

CENTRAL_95 = 0.95
"""Share of random pairs that lie in the range of chance, in its middle."""

PROBABILITY_CUTOFF = 1e-18
"""Probability outside of the values that are looked at."""

Verdict = Literal["above", "within", "below"]


@dataclass(frozen=True)
class ChanceOverlap:
    """The Jaccard overlap of two independent, uniformly random masks with given counts."""

    expected: float
    low: float
    high: float
    """Ends of the central 95% range: each side beyond has a probability of at most 2.5%."""


@dataclass(frozen=True)
class Overlap:
    """Two masks A and B in one layer, or in all of them."""

    weights: int
    """How many weights there were to choose from."""
    kept_a: int
    """abs(A), kept by the first."""
    kept_b: int
    """abs(B)."""
    kept_both: int
    """abs(A & B), kept by both."""
    chance: ChanceOverlap

    @property
    def jaccard(self) -> float:
        """abs(A & B) / abs(A | B), in [0, 1]; two empty masks are equal: 1."""
        either = self.kept_a + self.kept_b - self.kept_both
        return self.kept_both / either if either else 1.0

    @property
    def verdict(self) -> Verdict:
        """Where the overlap lies against the central 95% range of chance."""
        return classify_overlap(self.jaccard, self.chance)

    @property
    def nested(self) -> bool:
        """Whether one mask holds the other, as every level of an iterative chain holds the next."""
        return self.kept_both == min(self.kept_a, self.kept_b)


def classify_overlap(jaccard: float, chance: ChanceOverlap) -> Verdict:
    """Where an overlap lies against the central 95% range of chance."""
    return "above" if jaccard > chance.high else "below" if jaccard < chance.low else "within"


def layer_overlaps(one: Masks, other: Masks, among: Masks | None = None) -> dict[str, Overlap]:
    """J = abs(A & B) / abs(A | B) of two masks, in each layer and in `ALL_LAYERS`, with what chance would give.

    Chance: each mask is drawn uniformly from all masks with its own count *in each layer*, so that two masks do not
    overlap only because both keep more of the same layer. `among`, where it is given, is what there was to choose
    from (the weights alive at the level before; all but dead pixels): weights outside of it do not count on either
    side. Raises ValueError where names or shapes of the layers differ.
    Source: paper.md section 8.
    """
    check_same_layers(one, other)
    counts: dict[str, tuple[int, int, int, int]] = {}
    for name, a in one.items():
        b = other[name]
        if among is not None:
            a, b = a & among[name], b & among[name]
        weights = a.size if among is None else int(np.count_nonzero(among[name]))
        kept, others, common = (int(np.count_nonzero(mask)) for mask in (a, b, a & b))
        counts[name] = (weights, kept, others, common)
    found = {name: Overlap(*count, chance_overlap([count[:3]])) for name, count in counts.items()}
    weights, kept, others, common = (sum(column) for column in zip(*counts.values(), strict=True))
    found[ALL_LAYERS] = Overlap(weights, kept, others, common, chance_overlap([c[:3] for c in counts.values()]))
    return found


@dataclass(frozen=True)
class OverlapMatrix:
    """Every pair of n masks; arrays of shape (n, n), symmetric. On the diagonal J = 1 and chance is NaN."""

    jaccard: NDArray[np.float64]
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def verdict(self, row: int, column: int) -> Verdict:
        """Of a pair, against its central 95% range of chance."""
        chance = ChanceOverlap(*(float(part[row, column]) for part in (self.expected, self.low, self.high)))
        return classify_overlap(float(self.jaccard[row, column]), chance)


def overlap_matrix(pairs: Mapping[tuple[int, int], Mapping[str, Overlap]], n: int) -> dict[str, OverlapMatrix]:
    """The pairs (row, column) of n masks as matrices, one a layer and one for `ALL_LAYERS`."""
    layers = list(next(iter(pairs.values())))
    found = {}
    for layer in layers:
        parts = np.full((4, n, n), np.nan)
        parts[0] = np.eye(n)
        for (row, column), pair in pairs.items():
            chance = pair[layer].chance
            values = (pair[layer].jaccard, chance.expected, chance.low, chance.high)
            parts[:, row, column] = parts[:, column, row] = values
        found[layer] = OverlapMatrix(*parts)
    return found


def pairwise_overlaps(masks: Sequence[Masks], alive: Sequence[Masks]) -> dict[tuple[int, int], dict[str, Overlap]]:
    """`overlaps` of every pair, (row, column) with row < column.

    Two masks that were chosen among the same weights (siblings: `alive` is equal) are compared among those; any other
    pair among all weights. Raises ValueError as `overlaps` does.
    """
    found = {}
    for row in range(len(masks)):
        for column in range(row + 1, len(masks)):
            check_same_layers(masks[row], masks[column])
            siblings = all(np.array_equal(a, alive[column][name]) for name, a in alive[row].items())
            found[row, column] = layer_overlaps(masks[row], masks[column], alive[row] if siblings else None)
    return found


def check_same_layers(one: Masks, other: Masks) -> None:
    """Raises ValueError where names or shapes of the layers differ."""
    shapes, others = ({name: mask.shape for name, mask in masks.items()} for masks in (one, other))
    if shapes != others:
        raise ValueError(f"masks of different networks have no overlap: {shapes} and {others}")


def chance_overlap(counts: Sequence[tuple[int, int, int]]) -> ChanceOverlap:
    """The overlap of two random masks; `counts` has (weights, kept by one, kept by the other) of every layer.

    Each layer's intersection X is hypergeometric, and their sum has the convolution of the layers' probabilities. With
    a and b the kept counts in all, J = X / (a + b - X); its expectation and quantiles are sums over that distribution,
    exact but for a probability of 1e-18 a layer in the tails, and rounding. Source: paper.md section 8.
    """
    return _chance_of(tuple(sorted((weights, *sorted(kept)) for weights, *kept in counts)))


@lru_cache(maxsize=4096)
def _chance_of(counts: tuple[tuple[int, ...], ...]) -> ChanceOverlap:
    first, probability = 0, np.ones(1)
    for weights, one, other in counts:
        lowest, layer = _intersection(weights, one, other)
        first, probability = first + lowest, np.convolve(probability, layer)
        possible = np.flatnonzero(probability > PROBABILITY_CUTOFF * PROBABILITY_CUTOFF)
        first, probability = first + int(possible[0]), probability[possible[0] : possible[-1] + 1]
    a, b = sum(one for _, one, _ in counts), sum(other for _, _, other in counts)
    common = np.arange(first, first + probability.size)
    values = common / (a + b - common) if a or b else np.ones(1)
    up_to = np.cumsum(probability)
    low, high = (
        int(np.searchsorted(up_to, share * up_to[-1])) for share in ((1 - CENTRAL_95) / 2, (1 + CENTRAL_95) / 2)
    )
    return ChanceOverlap(float(probability @ values / up_to[-1]), float(values[low]), float(values[high]))


def _intersection(weights: int, one: int, other: int) -> tuple[int, NDArray[np.float64]]:
    """(lowest value, probabilities) of how many weights two random masks of these counts share.

    By the ratio p(x + 1) / p(x) = (a - x)(b - x) / ((x + 1)(n - a - b + x + 1)). Hoeffding's bound, which holds for
    draws without replacement with the smallest of the four counts a, b, n - a, n - b, says how far to go.
    """
    draws = min(one, other, weights - one, weights - other)
    reach = np.sqrt(draws * np.log(2 / PROBABILITY_CUTOFF) / 2) + 1
    mean = one * other / weights if weights else 0.0
    lowest = max(0, one + other - weights, int(np.floor(mean - reach)))
    highest = min(one, other, int(np.ceil(mean + reach)))
    x = np.arange(lowest, highest, dtype=np.float64)
    steps = np.log((one - x) * (other - x)) - np.log((x + 1) * (weights - one - other + x + 1))
    logarithm = np.concatenate([[0.0], np.cumsum(steps)])
    probability = np.exp(logarithm - logarithm.max())
    return lowest, probability / probability.sum()
