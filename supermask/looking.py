"""Looking at masks, the Python API behind `supermask masks`: specimens in, a summary and figures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from supermask.analysis import (
    Arrays,
    Distribution,
    Specimen,
    densities,
    distribution_of,
    labelled,
    limits_of,
    pairs_of,
    pixel_map,
    plane_of,
    short_labels,
)
from supermask.analysis.summary import Pairs, layer_rows, pairs_text, summary_text
from supermask.commands import existing_store
from supermask.errors import UserError, did_you_mean
from supermask.figures import (
    Drawn,
    density_figure,
    density_over_levels_figure,
    distribution_figure,
    overlap_by_layer_figure,
    overlap_figure,
    pixel_map_figure,
    plane_figure,
    save,
    save_table,
)
from supermask.specimens import load_specimens
from supermask.study.yaml_tree import shown

MOST_CHAINS = 9
"""Chains that are drawn over their levels; of more, every mask is a row of dots."""

Figures = Iterator[tuple[str, Drawn]]
"""File name without `masks-` -> figure."""


@dataclass(frozen=True)
class Looked:
    """What was found: text for a person, figures with the files they were saved in."""

    specimens: list[Specimen]
    text: str
    saved: list[tuple[Drawn, list[Path]]]
    table: Path
    """The CSV with a row for every mask and layer."""
    notes: list[str]
    """What has to be known of the masks, and what could not be drawn of them."""


def look(
    names: Sequence[str | Path], store: Path | None = None, out: Path = Path("figures"), only: str | None = None
) -> Looked:
    """Looks at the masks of runs (ids or their beginnings) and ticket files; saves figures and a CSV into `out`.

    `only`: some of `ANALYSES`, separated by commas; all, if it is not given. Raises UserError for a name that is
    neither, an analysis that does not exist, and masks that cannot be laid over each other and should be.
    """
    wanted = _wanted(only)
    at = None if all(Path(name).is_file() for name in names) else existing_store(store)
    specimens = load_specimens(names, at)
    pairs = pairs_between(specimens) if "overlap" in wanted else {}
    text = summary_text(specimens) + (f"\n{pairs_text(pairs, specimens)}" if pairs else "")
    saved = [
        (drawn, save(drawn, out, f"masks-{name}"))
        for analysis in wanted
        for name, drawn in ANALYSES[analysis](specimens, pairs)
    ]
    table = save_table(layer_rows(specimens), out, "masks-layers")
    return Looked(specimens, text, saved, table, [*_notes(specimens, wanted)])


def pairs_between(specimens: Sequence[Specimen]) -> Pairs:
    """The overlap of every pair of specimens with its range of chance; empty for one alone.

    Raises UserError where two of them have different layers.
    """
    first = specimens[0]
    for other in specimens[1:]:
        if _shapes(first) != _shapes(other):
            others = ",".join(name for name in ANALYSES if name != "overlap")
            raise UserError(
                f"{shown(first.label)} is a mask of {first.subject}, {shown(other.label)} of {other.subject}: their "
                "layers differ, so they cannot be laid over each other. Give masks of one network, or choose what "
                f"looks at each by itself: --only {others}."
            )
    return pairs_of([specimen.masks for specimen in specimens], [specimen.alive for specimen in specimens])


def _shapes(specimen: Specimen) -> dict[str, tuple[int, ...]]:
    return {name: mask.shape for name, mask in specimen.masks.items()}


def overlaps_drawn(specimens: Sequence[Specimen], pairs: Pairs) -> Figures:
    """All layers together, and each layer by itself; nothing for one specimen alone."""
    if pairs:
        common, labels = short_labels(specimens)
        title = _title("Overlap of masks", common)
        yield "overlap", overlap_figure(pairs, labels, title)
        yield "overlap-layers", overlap_by_layer_figure(pairs, labels, title)


def densities_drawn(specimens: Sequence[Specimen], pairs: Pairs) -> Figures:
    """Over the levels where all specimens are of chains with two levels or more; else specimen by specimen."""
    title = "Density of each layer"
    chains = _chains(specimens)
    if 1 <= len(chains) <= MOST_CHAINS and all(len(chain) > 1 for chain in chains):
        whole = [replace(chain[-1], level=None) for chain in chains]
        common, labels = short_labels(labelled(whole))
        found = {
            label: {specimen.level or 0: densities(specimen.masks) for specimen in chain}
            for label, chain in zip(labels, chains, strict=True)
        }
        yield "density", density_over_levels_figure(found, _title(title, common))
    else:
        common, labels = short_labels(specimens)
        dots = [densities(specimen.masks) for specimen in specimens]
        yield "density", density_figure(dots, labels, _title(title, common))


def _chains(specimens: Sequence[Specimen]) -> list[list[Specimen]]:
    """Specimens of one treatment and seed, by level, after the dense one of that seed; none if a level is doubled."""
    chains: dict[tuple[object, ...], list[Specimen]] = {}
    roots: dict[tuple[object, ...], Specimen] = {}
    for specimen in sorted(specimens, key=lambda each: each.level or 0):
        root = (specimen.network, specimen.dataset, specimen.seed)
        if specimen.level == 0:
            roots[root] = specimen
            continue
        treatment = (*root, specimen.criterion, *sorted(specimen.details.items()))
        chains.setdefault(treatment, [roots[root]] if root in roots else []).append(specimen)
    levels = [[specimen.level for specimen in chain] for chain in chains.values()]
    single = all(None not in found and len(set(found)) == len(found) for found in levels)
    return list(chains.values()) if single else []


def planes_drawn(specimens: Sequence[Specimen], pairs: Pairs) -> Figures:
    """One figure a layer with a panel a specimen; of one specimen alone, one figure with a panel a layer."""
    for stem, title, labels, panels in _by_layer(specimens, "plane", "Kept and pruned in the (w_i, w_f) plane"):
        planes = [plane_of(w_i[n], w_f[n], s.masks[n], s.alive[n]) for s, n, w_i, w_f in panels]
        yield stem, plane_figure(planes, labels, title, shared_axes=len(specimens) > 1)


def distributions_drawn(specimens: Sequence[Specimen], pairs: Pairs) -> Figures:
    """Arranged as the planes are; rows of one layer have the same edges."""
    for stem, title, labels, panels in _by_layer(specimens, "distribution", "Distributions of w_i and w_f"):
        values = [(w_i[name][s.alive[name]], w_f[name][s.alive[name]]) for s, name, w_i, w_f in panels]
        groups = [values] * len(panels) if len(specimens) > 1 else [[pair] for pair in values]
        rows: list[tuple[Distribution, Distribution]] = []
        for (s, name, w_i, w_f), group in zip(panels, groups, strict=True):
            mask, alive = s.masks[name], s.alive[name]
            before, after = _edges([a for a, _ in group], 1.0), _edges([b for _, b in group], 0.999)
            parts = (distribution_of(w_i[name], mask, alive, before), distribution_of(w_f[name], mask, alive, after))
            rows.append(parts)
        yield stem, distribution_figure(rows, labels, title)


def _edges(values: Sequence[NDArray[np.float32]], share: float) -> NDArray[np.float64]:
    """So many bins that the smallest set has a few weights in each."""
    limit, fewest = limits_of(values, share) * (1 + 1e-6), min(array.size for array in values)
    return np.linspace(-limit, limit, 1 + int(np.clip(2 * np.sqrt(fewest), 16, 80)))


def pixels_drawn(specimens: Sequence[Specimen], pairs: Pairs) -> Figures:
    """A panel a specimen whose first layer has weights of each pixel's own; nothing if there is none."""
    seen = [specimen for specimen in specimens if has_pixels(specimen)]
    if seen:
        common, labels = short_labels(seen)
        maps = [pixel_map(_first(specimen), specimen.image_shape or (0, 0, 0)) for specimen in seen]
        yield "pixels", pixel_map_figure(maps, labels, _title("Pixels that the first layer keeps", common))


def has_pixels(specimen: Specimen) -> bool:
    """Whether its first layer is fully connected to images whose shape is known."""
    if specimen.image_shape is None:
        return False
    channels, height, width = specimen.image_shape
    return _first(specimen).shape[1:] == (channels * height * width,)


def _first(specimen: Specimen) -> NDArray[np.bool_]:
    return next(iter(specimen.masks.values()))


Panel = tuple[Specimen, str, Arrays, Arrays]
"""A specimen, the name of a layer, all of its w_i and w_f."""


def _by_layer(specimens: Sequence[Specimen], stem: str, what: str) -> Iterator[tuple[str, str, list[str], list[Panel]]]:
    """(file name, title, labels, panels) of every figure that shows w_i and w_f; specimens without them are in none."""
    known = [(s, s.w_i, s.w_f) for s in specimens if s.w_i is not None and s.w_f is not None]
    common, labels = short_labels([specimen for specimen, _, _ in known])
    if len(specimens) == 1:
        for specimen, w_i, w_f in known:
            names = list(specimen.masks)
            panels = [(specimen, name, w_i, w_f) for name in names]
            yield stem, _title(what, specimen.label), [name.removesuffix(".weight") for name in names], panels
        return
    for name in dict.fromkeys(name for specimen, _, _ in known for name in specimen.masks):
        there = [place for place, (specimen, _, _) in enumerate(known) if name in specimen.masks]
        layer = name.removesuffix(".weight")
        panels = [(known[place][0], name, *known[place][1:]) for place in there]
        yield f"{stem}-{layer}", _title(f"{what}, {layer}", common), [labels[place] for place in there], panels


def _title(what: str, common: str) -> str:
    return f"{what}: {common}" if common else what


ANALYSES: dict[str, Callable[[Sequence[Specimen], Pairs], Figures]] = {
    "overlap": overlaps_drawn,
    "density": densities_drawn,
    "plane": planes_drawn,
    "distribution": distributions_drawn,
    "pixels": pixels_drawn,
}
"""What can be drawn, in the order in which it is."""


def _wanted(only: str | None) -> list[str]:
    asked = list(ANALYSES) if only is None else [name.strip() for name in only.split(",")]
    for name in asked:
        if name not in ANALYSES:
            near = did_you_mean(name, ANALYSES) or "."
            raise UserError(f"{shown(name)} is nothing that can be drawn{near} Allowed: {', '.join(ANALYSES)}.")
    return [name for name in ANALYSES if name in asked]


def _notes(specimens: Sequence[Specimen], wanted: Sequence[str]) -> Iterator[str]:
    for specimen in specimens:
        if specimen.note:
            yield f"{specimen.label}: {specimen.note}"
    without = [s.label for s in specimens if s.w_i is None or s.w_f is None]
    if without and {"plane", "distribution"} & set(wanted):
        yield (
            "not in planes and distributions, because what a criterion saw is not there (a learned mask, weights "
            f"dropped by --keep, or a ticket file): {'; '.join(without)}"
        )
    blind = [specimen.label for specimen in specimens if not has_pixels(specimen)]
    if blind and "pixels" in wanted:
        yield f"no pixel map, because their first layer has no weights of each pixel's own: {'; '.join(blind)}"
