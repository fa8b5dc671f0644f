"""Overlap of masks (Jaccard index), compared with that of random masks with the same counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks.sample import MaskArrays

ALL_LAYERS = "all layers"
"""Key of the whole network, beside the layers' names."""

CENTRAL_95 = 0.95
"""Share of random pairs within the central range of chance."""

PROBABILITY_CUTOFF = 1e-18
"""Probability, per layer, of the tail values that are left out."""

ChancePosition = Literal["above", "within", "below"]
"""Position of an overlap relative to the central 95% range of chance."""


@dataclass(frozen=True)
class ChanceOverlap:
    """The Jaccard overlap of two independent, uniformly random masks with given counts."""

    expected: float
    low: float
    high: float
    """Ends of the central 95% range: each tail beyond has a probability of at most 2.5%."""


@dataclass(frozen=True)
class Overlap:
    """Overlap of two masks A and B in one layer, or in all layers."""

    weights: int
    """Weights that the masks were chosen from."""
    kept_a: int
    """|A|, weights kept by the first mask."""
    kept_b: int
    """|B|, weights kept by the second mask."""
    kept_both: int
    """|A & B|, weights kept by both masks."""
    chance: ChanceOverlap

    @property
    def jaccard(self) -> float:
        """|A & B| / |A | B|, in [0, 1]; 1 for two empty masks."""
        either = self.kept_a + self.kept_b - self.kept_both
        return self.kept_both / either if either else 1.0

    @property
    def chance_position(self) -> ChancePosition:
        """Position of the overlap relative to the central 95% range of chance."""
        return classify_overlap(self.jaccard, self.chance)

    @property
    def nested(self) -> bool:
        """True if one mask contains the other, as each level of an iterative chain contains the next."""
        return self.kept_both == min(self.kept_a, self.kept_b)


def classify_overlap(jaccard: float, chance: ChanceOverlap) -> ChancePosition:
    """Position of a Jaccard overlap relative to the central 95% range of chance."""
    return "above" if jaccard > chance.high else "below" if jaccard < chance.low else "within"


def layer_overlaps(
    masks_a: MaskArrays, masks_b: MaskArrays, candidates: MaskArrays | None = None
) -> dict[str, Overlap]:
    """J = |A & B| / |A | B| of two masks, for each layer and `ALL_LAYERS`, with the distribution under chance.

    Chance: each mask is drawn uniformly from all masks with its own count *in each layer*, so that two masks do not
    overlap only because both keep more of the same layer. `candidates`: the weights that the masks were chosen from
    (those alive at the previous level; all but dead pixels); other weights count on neither side. By default all.
    Raises ValueError if names or shapes of the layers differ.
    Source: Zhou et al. 2019, authors' response, item 6 (an open question there).
    """
    check_same_layers(masks_a, masks_b)
    counts: dict[str, tuple[int, int, int, int]] = {}
    for name, a in masks_a.items():
        b = masks_b[name]
        if candidates is not None:
            a, b = a & candidates[name], b & candidates[name]
        weights = a.size if candidates is None else int(np.count_nonzero(candidates[name]))
        kept_a, kept_b, kept_both = (int(np.count_nonzero(mask)) for mask in (a, b, a & b))
        counts[name] = (weights, kept_a, kept_b, kept_both)
    overlaps = {name: Overlap(*count, chance_overlap([count[:3]])) for name, count in counts.items()}
    weights, kept_a, kept_b, kept_both = (sum(column) for column in zip(*counts.values(), strict=True))
    chance = chance_overlap([count[:3] for count in counts.values()])
    overlaps[ALL_LAYERS] = Overlap(weights, kept_a, kept_b, kept_both, chance)
    return overlaps


@dataclass(frozen=True)
class OverlapMatrix:
    """Overlaps of all pairs of n masks: symmetric arrays (n, n). On the diagonal J = 1 and chance is NaN."""

    jaccard: NDArray[np.float64]
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def chance_position(self, row: int, column: int) -> ChancePosition:
        """Position of a pair relative to its central 95% range of chance."""
        chance = ChanceOverlap(*(float(part[row, column]) for part in (self.expected, self.low, self.high)))
        return classify_overlap(float(self.jaccard[row, column]), chance)


def overlap_matrix(pairs: Mapping[tuple[int, int], Mapping[str, Overlap]], n: int) -> dict[str, OverlapMatrix]:
    """Pairs (row, column) of n masks as matrices, one per layer and one for `ALL_LAYERS`."""
    layers = list(next(iter(pairs.values())))
    matrices = {}
    for layer in layers:
        parts = np.full((4, n, n), np.nan)
        parts[0] = np.eye(n)
        for (row, column), pair in pairs.items():
            chance = pair[layer].chance
            values = (pair[layer].jaccard, chance.expected, chance.low, chance.high)
            parts[:, row, column] = parts[:, column, row] = values
        matrices[layer] = OverlapMatrix(*parts)
    return matrices


def pairwise_overlaps(
    masks: Sequence[MaskArrays], alive: Sequence[MaskArrays]
) -> dict[tuple[int, int], dict[str, Overlap]]:
    """`layer_overlaps` of every pair (row, column) with row < column.

    Two masks that were chosen from the same weights (equal `alive`) are compared on those; any other pair on all
    weights. Raises ValueError if names or shapes of the layers differ.
    """
    overlaps = {}
    for row in range(len(masks)):
        for column in range(row + 1, len(masks)):
            check_same_layers(masks[row], masks[column])
            have_same_candidates = all(np.array_equal(a, alive[column][name]) for name, a in alive[row].items())
            candidates = alive[row] if have_same_candidates else None
            overlaps[row, column] = layer_overlaps(masks[row], masks[column], candidates)
    return overlaps


def check_same_layers(masks_a: MaskArrays, masks_b: MaskArrays) -> None:
    """Raise ValueError if names or shapes of the layers differ."""
    shapes_a, shapes_b = ({name: mask.shape for name, mask in masks.items()} for masks in (masks_a, masks_b))
    if shapes_a != shapes_b:
        raise ValueError(f"masks of different networks have no overlap: {shapes_a} and {shapes_b}")


def chance_overlap(counts: Sequence[tuple[int, int, int]]) -> ChanceOverlap:
    """Distribution of the overlap of two random masks; `counts`: (weights, kept by A, kept by B) per layer.

    The intersection X of a layer is hypergeometric; the sum over layers has the convolution of their probabilities.
    With a and b the kept counts of all layers, J = X / (a + b - X). Its mean and quantiles are sums over this
    distribution, exact up to a tail probability of 1e-18 per layer and rounding.
    Source: Zhou et al. 2019, authors' response, item 6 (an open question there).
    """
    # Sorted, so that both orders of a pair and all orders of layers share a cache entry.
    return _cached_chance_overlap(tuple(sorted((weights, *sorted(kept)) for weights, *kept in counts)))


@lru_cache(maxsize=4096)
def _cached_chance_overlap(counts: tuple[tuple[int, ...], ...]) -> ChanceOverlap:
    # probability[i] is P(X = lowest + i), X the intersection of all layers so far.
    lowest, probability = 0, np.ones(1)
    for weights, kept_a, kept_b in counts:
        layer_lowest, layer_probability = _intersection_distribution(weights, kept_a, kept_b)
        lowest, probability = lowest + layer_lowest, np.convolve(probability, layer_probability)
        # Drop values of negligible probability, or the convolutions would grow with the number of weights.
        nonzero = np.flatnonzero(probability > PROBABILITY_CUTOFF * PROBABILITY_CUTOFF)
        lowest, probability = lowest + int(nonzero[0]), probability[nonzero[0] : nonzero[-1] + 1]
    a, b = sum(kept_a for _, kept_a, _ in counts), sum(kept_b for _, _, kept_b in counts)
    intersection = np.arange(lowest, lowest + probability.size)
    jaccard = intersection / (a + b - intersection) if a or b else np.ones(1)
    cumulative = np.cumsum(probability)
    low, high = (
        int(np.searchsorted(cumulative, share * cumulative[-1]))
        for share in ((1 - CENTRAL_95) / 2, (1 + CENTRAL_95) / 2)
    )
    return ChanceOverlap(float(probability @ jaccard / cumulative[-1]), float(jaccard[low]), float(jaccard[high]))


def _intersection_distribution(n: int, a: int, b: int) -> tuple[int, NDArray[np.float64]]:
    """(lowest value, probabilities) of the number of weights that two random masks of these counts share.

    From the ratio p(x + 1) / p(x) = (a - x)(b - x) / ((x + 1)(n - a - b + x + 1)), in logarithms. The range is that of
    Hoeffding's bound for draws without replacement, with the smallest of the counts a, b, n - a, n - b.
    """
    draws = min(a, b, n - a, n - b)
    reach = np.sqrt(draws * np.log(2 / PROBABILITY_CUTOFF) / 2) + 1
    mean = a * b / n if n else 0.0
    lowest = max(0, a + b - n, int(np.floor(mean - reach)))
    highest = min(a, b, int(np.ceil(mean + reach)))
    x = np.arange(lowest, highest, dtype=np.float64)
    log_ratios = np.log((a - x) * (b - x)) - np.log((x + 1) * (n - a - b + x + 1))
    log_probability = np.concatenate([[0.0], np.cumsum(log_ratios)])
    # Relative to the largest, so that exp() does not underflow.
    probability = np.exp(log_probability - log_probability.max())
    return lowest, probability / probability.sum()
