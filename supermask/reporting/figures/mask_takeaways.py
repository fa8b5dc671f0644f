"""Last sentence of the captions of mask figures: what the figure shows, from its own numbers.

Labels are of masks or, where a figure shows the layers of one mask, of layers. Of ties the first is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks.layers import Density
from supermask.analysis.masks.overlap import ALL_LAYERS, Overlap
from supermask.analysis.masks.weights import Distribution, WeightPlane
from supermask.core.text import format_percent

Pairs = Mapping[tuple[int, int], Mapping[str, Overlap]]
"""(row, column), indices of the labels with row < column -> layer -> overlap."""

Item = TypeVar("Item")


def overlap_takeaway(pairs: Pairs, labels: Sequence[str]) -> str:
    """Name the pairs with the largest and the smallest overlap relative to chance, over all layers together."""
    ratios = {
        key: layers[ALL_LAYERS].jaccard / layers[ALL_LAYERS].chance.expected
        for key, layers in pairs.items()
        if layers[ALL_LAYERS].chance.expected > 0
    }
    if not ratios:
        return ""

    def describe(key: tuple[int, int]) -> str:
        names = " and ".join(labels[index] for index in key)
        return f"{names} overlap {_format_ratio(ratios[key])} times as much as by chance"

    most, least = max(ratios, key=lambda key: ratios[key]), min(ratios, key=lambda key: ratios[key])
    return _takeaway([describe(most)] if most == least else [describe(most), describe(least)])


def overlap_by_layer_takeaway(pairs: Pairs) -> str:
    """Name the layers whose pairs overlap above chance most often and least often."""
    layers = [layer for layer in next(iter(pairs.values()), {}) if layer != ALL_LAYERS]
    above = {layer: sum(overlaps[layer].chance_position == "above" for overlaps in pairs.values()) for layer in layers}
    if not above:
        return ""
    total = len(pairs)

    def describe(layer: str) -> str:
        return f"in {layer.removesuffix('.weight')} {above[layer]} of {total} pairs are above chance"

    return _takeaway(_extremes(layers, lambda layer: above[layer], describe))


def density_takeaway(masks: Sequence[Mapping[str, Density]], labels: Sequence[str]) -> str:
    """Name the densest and the sparsest layer; of several masks in that mask where they differ most."""

    def spread(index: int) -> float:
        shares = [density.density for layer, density in masks[index].items() if layer != ALL_LAYERS]
        return max(shares) - min(shares)

    index = max(range(len(masks)), key=spread)
    layers = {layer: density.density for layer, density in masks[index].items() if layer != ALL_LAYERS}

    def describe(layer: str) -> str:
        return f"{format_percent(100 * layers[layer])}% of {layer.removesuffix('.weight')}"

    text = " and ".join(_extremes(list(layers), lambda layer: layers[layer], describe))
    return _takeaway([f"{labels[index]} keeps {text}"])


def plane_takeaway(planes: Sequence[WeightPlane], labels: Sequence[str]) -> str:
    """Compare the mean |w_f| of kept weights with that of pruned ones: the largest and the smallest ratio."""
    ratios = {}
    for index, plane in enumerate(planes):
        kept, pruned = plane.w_f[plane.kept], plane.w_f[~plane.kept]
        if kept.size and pruned.size and np.any(pruned):
            ratios[index] = float(np.abs(kept).mean(dtype=np.float64) / np.abs(pruned).mean(dtype=np.float64))
    return _ratio_takeaway(ratios, labels, "the pruned ones")


def distribution_takeaway(pairs: Sequence[tuple[Distribution, Distribution]], labels: Sequence[str]) -> str:
    """Compare the mean |w_f| of kept weights with that of all alive before, as far as the histograms show them."""
    ratios = {}
    for index, (_, after_training) in enumerate(pairs):
        alive = _mean_magnitude(after_training.before, after_training.edges)
        kept = _mean_magnitude(after_training.after, after_training.edges)
        if alive and kept is not None:
            ratios[index] = kept / alive
    return _ratio_takeaway(ratios, labels, "all alive before")


def pixel_map_takeaway(maps: Sequence[NDArray[np.float64]], labels: Sequence[str]) -> str:
    """Name the maps whose fullest tenth of pixels has the largest and the smallest share of the kept weights."""
    shares = {}
    for index, pixels in enumerate(maps):
        values = np.sort(pixels, axis=None)[::-1]
        if values.sum() > 0:
            shares[index] = float(values[: max(1, values.size // 10)].sum() / values.sum())
    parts = _extremes(list(shares), lambda index: shares[index], lambda i: f"{100 * shares[i]:.0f}% ({labels[i]})")
    if not parts:
        return ""
    return _takeaway([f"the fullest tenth of the pixels has {' and '.join(parts)} of the kept weights"])


def _mean_magnitude(counts: NDArray[np.int64], edges: NDArray[np.float64]) -> float | None:
    """Return the mean |value| of a histogram, each value taken as the middle of its bin; None if it is empty."""
    total = int(counts.sum())
    return float((np.abs(edges[:-1] + edges[1:]) / 2 * counts).sum() / total) if total else None


def _ratio_takeaway(ratios: Mapping[int, float], labels: Sequence[str], others: str) -> str:
    parts = _extremes(
        list(ratios), lambda index: ratios[index], lambda i: f"{_format_ratio(ratios[i])} times ({labels[i]})"
    )
    if not parts:
        return ""
    return _takeaway([f"the kept weights' mean |w_f| is {' and '.join(parts)} that of {others}"])


def _format_ratio(ratio: float) -> str:
    """Format a ratio with two digits, from 100 on without decimals: `0.97`, `3.4`, `1,250`."""
    return f"{ratio:,.0f}" if ratio >= 99.5 else f"{ratio:.2g}"


def _extremes(items: Sequence[Item], key: Callable[[Item], float], describe: Callable[[Item], str]) -> list[str]:
    """Describe the items with the largest and the smallest key, in this order; one if all keys are equal."""
    if not items:
        return []
    most, least = max(items, key=key), min(items, key=key)
    return [describe(most)] if key(most) == key(least) else [describe(most), describe(least)]


def _takeaway(parts: Sequence[str]) -> str:
    return f"Takeaway: {'; '.join(parts)}."
