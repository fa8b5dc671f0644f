"""Function of the command masks: load masks, compare them, draw figures.

One function per analysis; `ANALYSES` lists them. Arrays have the shape of the tensor: (out, in) or (out, in, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks import (
    Distribution,
    MaskInfo,
    WeightArrays,
    common_and_short_labels,
    layer_densities,
    pairwise_overlaps,
    pixel_map,
    symmetric_limit,
    weight_distribution,
    weight_plane,
    with_labels,
)
from supermask.analysis.masks.tables import Pairs, format_pairs, format_summary, layer_table
from supermask.api.mask_loading import load_masks
from supermask.api.runs import open_store
from supermask.core.errors import UserError, did_you_mean, quote
from supermask.export.tickets.sources import is_ticket_source
from supermask.reporting.figures import (
    RenderedFigure,
    density_by_level_figure,
    density_figure,
    distribution_figure,
    overlap_by_layer_figure,
    overlap_figure,
    pixel_map_figure,
    save_figure,
    save_table,
    slugify,
    weight_plane_figure,
)
from supermask.reporting.figures.save import MAX_STEM
from supermask.store.location import output_path

MAX_CHAINS = 9
"""Chains that one figure shows as curves over levels; with more, every mask is a row of dots."""

NamedFigures = Iterator[tuple[str, RenderedFigure]]
"""Pairs (file name without the prefix `masks-`, figure)."""


@dataclass(frozen=True)
class MaskAnalysis:
    """Result of `analyze_masks`: a summary as text, and the figures with their files."""

    masks: list[MaskInfo]
    text: str
    saved: list[tuple[RenderedFigure, list[Path]]]
    table: Path
    """CSV file with one row per mask and layer."""
    notes: list[str]
    """Warnings about the masks, and the reasons why some are missing from a figure."""

    def __repr__(self) -> str:
        return f"{self.text.rstrip()}\n\n{len(self.saved)} figures, table {self.table}"


def analyze_masks(
    names: Sequence[str | Path] | str | Path,
    store: str | Path | None = None,
    out: str | Path = "figures",
    only: str | None = None,
) -> MaskAnalysis:
    """Analyze masks of runs (ids or unique prefixes) and ticket files; save figures and a CSV into `out`.

    `only`: names from `ANALYSES`, separated by commas (default: all). Raises UserError for an unknown name or analysis,
    and for the analysis `overlap` on masks of different networks.
    """
    selected, out = _select_analyses(only), output_path(out)
    names = [names] if isinstance(names, (str, Path)) else names
    source = None if all(is_ticket_source(name) for name in names) else open_store(store)
    masks = load_masks(names, source)
    pairs = compare_masks(masks) if "overlap" in selected else {}
    text = format_summary(masks) + (f"\n{format_pairs(pairs, masks)}" if pairs else "")
    figures = (item for analysis in selected for item in ANALYSES[analysis](masks, pairs))
    stems: set[str] = set()
    saved = [(figure, save_figure(figure, out, _free_stem(f"masks-{name}", stems))) for name, figure in figures]
    table = save_table(layer_table(masks), out, "masks-layers")
    return MaskAnalysis(masks, text, saved, table, [*_notes(masks, selected)])


def _free_stem(name: str, taken: set[str]) -> str:
    """Return the file name of a figure and add it to `taken`.

    Names that would be the same file, as those of the layers `a.b` and `a_b` or of long layers, are numbered.
    """
    stem, number = slugify(name), 1
    while stem in taken:
        number += 1
        suffix = f"-{number}"
        stem = slugify(name)[: MAX_STEM - len(suffix)] + suffix
    taken.add(stem)
    return stem


def compare_masks(masks: Sequence[MaskInfo]) -> Pairs:
    """Return the overlap of every pair of masks with its chance interval; empty for a single mask.

    Raises UserError if two masks have different layers.
    """
    first = masks[0]
    for mask in masks[1:]:
        if _shapes(first) != _shapes(mask):
            others = ",".join(name for name in ANALYSES if name != "overlap")
            raise UserError(
                f"{quote(first.label)} is a mask of {first.subject}, {quote(mask.label)} of {mask.subject}: their "
                "layers differ, so their overlap is not defined. Give masks of one network, or choose analyses of "
                f"single masks: --only {others}."
            )
    return pairwise_overlaps([mask.masks for mask in masks], [mask.alive for mask in masks])


def _shapes(mask: MaskInfo) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in mask.masks.items()}


def overlap_figures(masks: Sequence[MaskInfo], pairs: Pairs) -> NamedFigures:
    """Overlap of all layers together, and of each layer; nothing for a single mask."""
    if pairs:
        common, labels = common_and_short_labels(masks)
        title = _title("Overlap of masks", common)
        yield "overlap", overlap_figure(pairs, labels, title)
        yield "overlap-layers", overlap_by_layer_figure(pairs, labels, title)


def density_figures(masks: Sequence[MaskInfo], pairs: Pairs) -> NamedFigures:
    """Density per layer: curves over levels if every mask belongs to a chain of two or more levels, else dots."""
    title = "Density of each layer"
    chains = _group_chains(masks)
    if 1 <= len(chains) <= MAX_CHAINS and all(len(chain) > 1 for chain in chains):
        # The level is the axis, so it must not be part of the labels.
        last_masks = [replace(chain[-1], level=None) for chain in chains]
        common, labels = common_and_short_labels(with_labels(last_masks))
        curves = {
            label: {mask.level or 0: layer_densities(mask.masks) for mask in chain}
            for label, chain in zip(labels, chains, strict=True)
        }
        yield "density", density_by_level_figure(curves, _title(title, common))
    else:
        common, labels = common_and_short_labels(masks)
        dots = [layer_densities(mask.masks) for mask in masks]
        yield "density", density_figure(dots, labels, _title(title, common))


def _group_chains(masks: Sequence[MaskInfo]) -> list[list[MaskInfo]]:
    """Group masks by treatment and seed, each chain sorted by level and preceded by the dense run of its seed.

    Empty if a level is unknown or occurs twice in a chain.
    """
    chains: dict[tuple[object, ...], list[MaskInfo]] = {}
    dense: dict[tuple[object, ...], MaskInfo] = {}
    for mask in sorted(masks, key=lambda mask: mask.level or 0):
        root = (mask.network, mask.dataset, mask.seed)
        if mask.level == 0:
            dense[root] = mask
            continue
        treatment = (*root, mask.criterion, *sorted(mask.details.items()))
        chains.setdefault(treatment, [dense[root]] if root in dense else []).append(mask)
    levels_by_chain = [[mask.level for mask in chain] for chain in chains.values()]
    unique = all(None not in levels and len(set(levels)) == len(levels) for levels in levels_by_chain)
    return list(chains.values()) if unique else []


def weight_plane_figures(masks: Sequence[MaskInfo], pairs: Pairs) -> NamedFigures:
    """Kept and pruned weights in the (w_i, w_f) plane: one figure per layer with one panel per mask.

    A single mask has one figure with one panel per layer. Source: Zhou et al. 2019, Sec. 2, Fig. 2.
    """
    for stem, title, labels, panels in _by_layer(masks, "plane", "Kept and pruned in the (w_i, w_f) plane"):
        planes = [weight_plane(w_i[n], w_f[n], mask.masks[n], mask.alive[n]) for mask, n, w_i, w_f in panels]
        yield stem, weight_plane_figure(planes, labels, title, shared_axes=len(masks) > 1)


def distribution_figures(masks: Sequence[MaskInfo], pairs: Pairs) -> NamedFigures:
    """Histograms of w_i and w_f, arranged like the planes; the rows of one layer share their bin edges."""
    for stem, title, labels, panels in _by_layer(masks, "distribution", "Distributions of w_i and w_f"):
        values = [(w_i[name][mask.alive[name]], w_f[name][mask.alive[name]]) for mask, name, w_i, w_f in panels]
        # Panels that share bin edges: all of a layer, or each by itself if the panels are layers of one mask.
        groups = [values] * len(panels) if len(masks) > 1 else [[pair] for pair in values]
        rows: list[tuple[Distribution, Distribution]] = []
        for (mask, name, w_i, w_f), group in zip(panels, groups, strict=True):
            kept, alive = mask.masks[name], mask.alive[name]
            edges_before = _bin_edges([before for before, _ in group], 1.0)
            # Trained weights have outliers; the 0.1% farthest from 0 would set the scale.
            edges_after = _bin_edges([after for _, after in group], 0.999)
            rows.append(
                (
                    weight_distribution(w_i[name], kept, alive, edges_before),
                    weight_distribution(w_f[name], kept, alive, edges_after),
                )
            )
        yield stem, distribution_figure(rows, labels, title)


def _bin_edges(values: Sequence[NDArray[np.float32]], share: float) -> NDArray[np.float64]:
    """Return symmetric edges of 16 to 80 bins that cover `share` of the values, with a few weights in each bin."""
    limit, smallest = symmetric_limit(values, share) * (1 + 1e-6), min(array.size for array in values)
    return np.linspace(-limit, limit, 1 + int(np.clip(2 * np.sqrt(smallest), 16, 80)))


def pixel_map_figures(masks: Sequence[MaskInfo], pairs: Pairs) -> NamedFigures:
    """Kept share per input pixel, one panel per mask whose first layer is connected to pixels; else nothing."""
    shown = [mask for mask in masks if has_pixels(mask)]
    if shown:
        common, labels = common_and_short_labels(shown)
        maps = [pixel_map(_first_mask(mask), mask.image_shape or (0, 0, 0)) for mask in shown]
        yield "pixels", pixel_map_figure(maps, labels, _title("Pixels that the first layer keeps", common))


def has_pixels(mask: MaskInfo) -> bool:
    """True if the first layer is fully connected to images of known shape."""
    if mask.image_shape is None:
        return False
    channels, height, width = mask.image_shape
    return _first_mask(mask).shape[1:] == (channels * height * width,)


def _first_mask(mask: MaskInfo) -> NDArray[np.bool_]:
    return next(iter(mask.masks.values()))


Panel = tuple[MaskInfo, str, WeightArrays, WeightArrays]
"""(mask, layer name, w_i of all layers, w_f of all layers)."""


def _by_layer(masks: Sequence[MaskInfo], stem: str, subject: str) -> Iterator[tuple[str, str, list[str], list[Panel]]]:
    """Yield (file name, title, labels, panels) per figure of w_i and w_f; masks without these weights are left out."""
    known = [(mask, mask.w_i, mask.w_f) for mask in masks if mask.w_i is not None and mask.w_f is not None]
    common, labels = common_and_short_labels([mask for mask, _, _ in known])
    if len(masks) == 1:
        for mask, w_i, w_f in known:
            names = list(mask.masks)
            panels = [(mask, name, w_i, w_f) for name in names]
            yield stem, _title(subject, mask.label), [name.removesuffix(".weight") for name in names], panels
        return
    for name in dict.fromkeys(name for mask, _, _ in known for name in mask.masks):
        indices = [index for index, (mask, _, _) in enumerate(known) if name in mask.masks]
        layer = name.removesuffix(".weight")
        panels = [(known[index][0], name, *known[index][1:]) for index in indices]
        yield f"{stem}-{layer}", _title(f"{subject}, {layer}", common), [labels[index] for index in indices], panels


def _title(subject: str, common: str) -> str:
    return f"{subject}: {common}" if common else subject


ANALYSES: dict[str, Callable[[Sequence[MaskInfo], Pairs], NamedFigures]] = {
    "overlap": overlap_figures,
    "density": density_figures,
    "plane": weight_plane_figures,
    "distribution": distribution_figures,
    "pixels": pixel_map_figures,
}
"""Analysis -> its figures, in the order in which they are drawn."""


def _select_analyses(only: str | None) -> list[str]:
    """Parse the option `--only`. Raises UserError for an unknown analysis."""
    selected = list(ANALYSES) if only is None else [name.strip() for name in only.split(",")]
    for name in selected:
        if name not in ANALYSES:
            near = did_you_mean(name, ANALYSES) or "."
            raise UserError(f"{quote(name)} is not an analysis of masks{near} Allowed: {', '.join(ANALYSES)}.")
    return [name for name in ANALYSES if name in selected]


def _notes(masks: Sequence[MaskInfo], selected: Sequence[str]) -> Iterator[str]:
    for mask in masks:
        if mask.note:
            yield f"{mask.label}: {mask.note}"
    if {"plane", "distribution"} & set(selected):
        reasons = [(mask.label, _why_without_weights(mask)) for mask in masks]
        yield from _group_notes("not in planes and distributions", reasons)
    if "pixels" in selected:
        reasons = [(mask.label, _why_without_pixels(mask)) for mask in masks]
        yield from _group_notes("no pixel map", reasons)


def _group_notes(subject: str, reasons: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield one note per reason with the labels that it holds for. `reasons`: (label, reason, or "" for none)."""
    for reason in dict.fromkeys(reason for _, reason in reasons if reason):
        labels = "; ".join(label for label, other in reasons if other == reason)
        yield f"{subject}, because {reason}: {labels}"


def _why_without_weights(mask: MaskInfo) -> str:
    """Return why the weights that the criterion saw are missing; empty if they are there."""
    if mask.w_i is not None and mask.w_f is not None:
        return ""
    if mask.criterion == "supermask":
        return "a learned mask was made by no criterion"
    if mask.is_ticket:
        return "a ticket does not hold the weights that a criterion saw"
    return "the store has dropped the weights that the criterion saw (--keep), or the run has none"


def _why_without_pixels(mask: MaskInfo) -> str:
    """Return why a mask has no pixel map; empty if it has one."""
    if has_pixels(mask):
        return ""
    if mask.image_shape is None and _first_mask(mask).ndim == 2:
        return "the shape of the network's images is not known"
    return "the first layer has no weights per pixel"
