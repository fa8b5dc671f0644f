"""Looking at masks, the Python API behind `supermask masks`: specimens in, a summary and figures out.

Specimens to look at, made of stored runs and ticket files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks import (
    Distribution,
    MaskInfo,
    Masks,
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
from supermask.api.runs import open_store
from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.core.pruning import ParentRun
from supermask.core.types import Snapshot
from supermask.datasets.specs import DATASETS
from supermask.export.tickets import load_ticket
from supermask.export.tickets.model import get_fact
from supermask.networks.sequential import prunable_tensors
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
    weight_plane_figure,
)
from supermask.store import CorruptEntry, Store
from supermask.store.records import decode_masks
from supermask.store.replay import SnapshotMissing, StateReplayer, run_architecture
from supermask.store.rows import resolve_run_id
from supermask.study.run import Run

if TYPE_CHECKING:
    from torch import Tensor

MAX_MASKS = 64
"""Specimens at once: one of FC on MNIST takes about 5 MB of memory, of Conv2 about 80 MB."""

STATUS_NOTES = {
    "diverged": "its training diverged, so it has no end.",
    "certificate_failed": "its certificate does not hold, so it is no result; `supermask verify` says why.",
}
"""Status of a run -> what has to be said of its mask."""


def load_masks(names: Sequence[str | Path], store: Store | None = None, weights: bool = True) -> list[MaskInfo]:
    """What is named, in that order and with labels: run ids of `store` (or beginnings of them) and ticket files.

    A file that is there is a ticket; everything else is a run. One named twice is there once. Without `weights` only
    masks are read. Raises UserError for what is neither, for none and for more than `MOST`; Damaged for runs that are
    not what was committed. Weights that were dropped are None.
    """
    if not 1 <= len(names) <= MAX_MASKS:
        raise UserError(f"{len(names)} masks to look at: give 1 to {MAX_MASKS} run ids or ticket files.")
    lineage = None if store is None else StateReplayer(store)
    found: dict[str, MaskInfo] = {}
    for name in map(str, names):
        if Path(name).is_file():
            found.setdefault(name, mask_from_ticket(Path(name), weights))
        elif store is None or lineage is None or not re.fullmatch("[0-9a-fA-F]{1,32}", name):
            where = "" if store is not None else " (and no store was given)"
            raise UserError(f"{quote(name)} is neither a file nor the beginning of a run's id{where}.")
        elif (run_id := resolve_run_id(store, name)) not in found:
            found[run_id] = mask_from_run(store, lineage, run_id, weights)
    return with_labels(list(found.values()))


def mask_from_run(store: Store, lineage: StateReplayer, run_id: str, weights: bool = True) -> MaskInfo:
    """A stored run: its masks, what its criterion saw (the parent's weights), its own start and end.

    Raises Damaged.
    """
    facts = store.facts(run_id)
    run = Run.from_data(facts)
    step = run.step
    masks = _stored_masks(store, run_id)
    start, end = _points(lineage, run_id, "start", "end") if weights else (None, None)
    if run.learning is not None:
        # Nothing was trained that a criterion saw: the weights are those that the mask was learned for.
        all_alive: Masks = {name: np.ones_like(mask) for name, mask in masks.items()}
        alive, w_i, w_f = all_alive, start, None
    elif run.parent is None or step is None:
        alive, w_i, w_f = masks, start, end
    else:
        alive = _stored_masks(store, run.parent)
        w_i, w_f = _points(lineage, run.parent, step.w_init, step.w_final) if weights else (None, None)
    details = {} if step is None else {"mask1": step.mask1, "mask0": step.mask0}
    if run.learning is not None:
        details = {"method": run.learning.method, "base": run.learning.weights}
        details |= {"rescaled": "rescaled"} if run.learning.rescaled else {}
    elif step is not None:
        details |= {"rescaled": "rescaled"} if step.rescaled else {}
        details |= {"schedule": "iterative" if step.levels == 1 else "one_shot"}
    return MaskInfo(
        name=run_id,
        masks=masks,
        alive=alive,
        network=run.network,
        dataset=run.dataset,
        image_shape=DATASETS[run.dataset].image_shape,
        criterion="supermask" if run.learning else step.criterion if step else None,
        level=run.level,
        seed=run.seed,
        details={**details, "network": run.network, "dataset": run.dataset},
        w_i=w_i,
        w_f=w_f,
        initial_weights=start,
        final_weights=end,
        note=STATUS_NOTES.get(facts["status"], ""),
    )


def mask_from_ticket(path: Path, weights: bool = True) -> MaskInfo:
    """A ticket file: its masks, the initial network of its seed as w_i, the network in it as the end.

    What its criterion saw of the pruned weights is not in the file, so w_f is None. Raises UserError for no ticket.
    """
    ticket = load_ticket(path)
    masks = _arrays(ticket.masks)
    known = DATASETS.get(ticket.dataset or "")
    told = {key: get_fact(ticket, str, "run", key) for key in ("mask1", "mask0", "criterion")}
    details = {key: sanitize(value) for key, value in told.items() if value is not None and key != "criterion"}
    network, criterion = ticket.network, told["criterion"]
    if get_fact(ticket, str, "run", "learning", "method") is not None:
        criterion = "supermask"
    return MaskInfo(
        name=sanitize(path.name),
        masks=masks,
        alive={name: np.ones_like(mask) for name, mask in masks.items()},
        network=network,
        dataset=ticket.dataset,
        image_shape=known.image_shape if known else None,
        criterion=None if criterion is None else sanitize(criterion),
        level=get_fact(ticket, int, "run", "level"),
        seed=ticket.seed,
        details=details | ({"network": network} if network else {}),
        w_i=_made(ticket.initial_weights, masks) if weights else None,
        final_weights=_made(ticket.network_weights, masks) if weights else None,
    )


def _made(weights: Callable[[], Mapping[str, Tensor]], masks: Masks) -> WeightArrays | None:
    """The maskable tensors of a network that a ticket makes; None where it cannot make them."""
    try:
        made = weights()
    except UserError:
        return None
    return _arrays({name: made[name] for name in masks})


def _points(lineage: StateReplayer, run_id: str, *points: Snapshot) -> list[WeightArrays | None]:
    """A run's weights at points of its trajectory; None for what the store does not have any more."""
    try:
        parent = lineage.parent_run(run_id)
    except SnapshotMissing:
        return [None for _ in points]
    return [_point(parent, point) for point in points]


def _point(parent: ParentRun, point: Snapshot) -> WeightArrays | None:
    try:
        return _arrays(parent.state_at(point).weights)
    except SnapshotMissing:
        return None


def _stored_masks(store: Store, run_id: str) -> Masks:
    """As stored, or all ones for a dense run. Raises Damaged."""
    entry = store.read(run_id)
    run = Run.from_data(entry.facts)
    found = prunable_tensors(run_architecture(run))
    if run.parent is None and run.learning is None:
        return {name: np.ones(m.shape, dtype=bool) for name, m in found.items()}
    try:
        return _arrays(decode_masks(entry.tensors, found))
    except ValueError as error:
        raise CorruptEntry(run_id, str(error)) from error


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


MAX_CHAINS = 9
"""Chains that are drawn over their levels; of more, every mask is a row of dots."""

Figures = Iterator[tuple[str, RenderedFigure]]
"""File name without `masks-` -> figure."""


@dataclass(frozen=True)
class MaskAnalysis:
    """What was found: text for a person, figures with the files they were saved in."""

    specimens: list[MaskInfo]
    text: str
    saved: list[tuple[RenderedFigure, list[Path]]]
    table: Path
    """The CSV with a row for every mask and layer."""
    notes: list[str]
    """What has to be known of the masks, and what could not be drawn of them."""


def analyze_masks(
    names: Sequence[str | Path], store: Path | None = None, out: Path = Path("figures"), only: str | None = None
) -> MaskAnalysis:
    """Looks at the masks of runs (ids or their beginnings) and ticket files; saves figures and a CSV into `out`.

    `only`: some of `ANALYSES`, separated by commas; all, if it is not given. Raises UserError for a name that is
    neither, an analysis that does not exist, and masks that cannot be laid over each other and should be.
    """
    wanted = _select_analyses(only)
    at = None if all(Path(name).is_file() for name in names) else open_store(store)
    specimens = load_masks(names, at)
    pairs = compare_masks(specimens) if "overlap" in wanted else {}
    text = format_summary(specimens) + (f"\n{format_pairs(pairs, specimens)}" if pairs else "")
    saved = [
        (drawn, save_figure(drawn, out, f"masks-{name}"))
        for analysis in wanted
        for name, drawn in ANALYSES[analysis](specimens, pairs)
    ]
    table = save_table(layer_table(specimens), out, "masks-layers")
    return MaskAnalysis(specimens, text, saved, table, [*_notes(specimens, wanted)])


def compare_masks(specimens: Sequence[MaskInfo]) -> Pairs:
    """The overlap of every pair of specimens with its range of chance; empty for one alone.

    Raises UserError where two of them have different layers.
    """
    first = specimens[0]
    for other in specimens[1:]:
        if _shapes(first) != _shapes(other):
            others = ",".join(name for name in ANALYSES if name != "overlap")
            raise UserError(
                f"{quote(first.label)} is a mask of {first.subject}, {quote(other.label)} of {other.subject}: their "
                "layers differ, so they cannot be laid over each other. Give masks of one network, or choose what "
                f"looks at each by itself: --only {others}."
            )
    return pairwise_overlaps([specimen.masks for specimen in specimens], [specimen.alive for specimen in specimens])


def _shapes(specimen: MaskInfo) -> dict[str, tuple[int, ...]]:
    return {name: mask.shape for name, mask in specimen.masks.items()}


def overlap_figures(specimens: Sequence[MaskInfo], pairs: Pairs) -> Figures:
    """All layers together, and each layer by itself; nothing for one specimen alone."""
    if pairs:
        common, labels = common_and_short_labels(specimens)
        title = _title("Overlap of masks", common)
        yield "overlap", overlap_figure(pairs, labels, title)
        yield "overlap-layers", overlap_by_layer_figure(pairs, labels, title)


def density_figures(specimens: Sequence[MaskInfo], pairs: Pairs) -> Figures:
    """Over the levels where all specimens are of chains with two levels or more; else specimen by specimen."""
    title = "Density of each layer"
    chains = _group_chains(specimens)
    if 1 <= len(chains) <= MAX_CHAINS and all(len(chain) > 1 for chain in chains):
        whole = [replace(chain[-1], level=None) for chain in chains]
        common, labels = common_and_short_labels(with_labels(whole))
        found = {
            label: {specimen.level or 0: layer_densities(specimen.masks) for specimen in chain}
            for label, chain in zip(labels, chains, strict=True)
        }
        yield "density", density_by_level_figure(found, _title(title, common))
    else:
        common, labels = common_and_short_labels(specimens)
        dots = [layer_densities(specimen.masks) for specimen in specimens]
        yield "density", density_figure(dots, labels, _title(title, common))


def _group_chains(specimens: Sequence[MaskInfo]) -> list[list[MaskInfo]]:
    """Specimens of one treatment and seed, by level, after the dense one of that seed; none if a level is doubled."""
    chains: dict[tuple[object, ...], list[MaskInfo]] = {}
    roots: dict[tuple[object, ...], MaskInfo] = {}
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


def weight_plane_figures(specimens: Sequence[MaskInfo], pairs: Pairs) -> Figures:
    """One figure a layer with a panel a specimen; of one specimen alone, one figure with a panel a layer."""
    for stem, title, labels, panels in _by_layer(specimens, "plane", "Kept and pruned in the (w_i, w_f) plane"):
        planes = [weight_plane(w_i[n], w_f[n], s.masks[n], s.alive[n]) for s, n, w_i, w_f in panels]
        yield stem, weight_plane_figure(planes, labels, title, shared_axes=len(specimens) > 1)


def distribution_figures(specimens: Sequence[MaskInfo], pairs: Pairs) -> Figures:
    """Arranged as the planes are; rows of one layer have the same edges."""
    for stem, title, labels, panels in _by_layer(specimens, "distribution", "Distributions of w_i and w_f"):
        values = [(w_i[name][s.alive[name]], w_f[name][s.alive[name]]) for s, name, w_i, w_f in panels]
        groups = [values] * len(panels) if len(specimens) > 1 else [[pair] for pair in values]
        rows: list[tuple[Distribution, Distribution]] = []
        for (s, name, w_i, w_f), group in zip(panels, groups, strict=True):
            mask, alive = s.masks[name], s.alive[name]
            before, after = _edges([a for a, _ in group], 1.0), _edges([b for _, b in group], 0.999)
            parts = (
                weight_distribution(w_i[name], mask, alive, before),
                weight_distribution(w_f[name], mask, alive, after),
            )
            rows.append(parts)
        yield stem, distribution_figure(rows, labels, title)


def _edges(values: Sequence[NDArray[np.float32]], share: float) -> NDArray[np.float64]:
    """So many bins that the smallest set has a few weights in each."""
    limit, fewest = symmetric_limit(values, share) * (1 + 1e-6), min(array.size for array in values)
    return np.linspace(-limit, limit, 1 + int(np.clip(2 * np.sqrt(fewest), 16, 80)))


def pixel_map_figures(specimens: Sequence[MaskInfo], pairs: Pairs) -> Figures:
    """A panel a specimen whose first layer has weights of each pixel's own; nothing if there is none."""
    seen = [specimen for specimen in specimens if has_pixels(specimen)]
    if seen:
        common, labels = common_and_short_labels(seen)
        maps = [pixel_map(_first(specimen), specimen.image_shape or (0, 0, 0)) for specimen in seen]
        yield "pixels", pixel_map_figure(maps, labels, _title("Pixels that the first layer keeps", common))


def has_pixels(specimen: MaskInfo) -> bool:
    """Whether its first layer is fully connected to images whose shape is known."""
    if specimen.image_shape is None:
        return False
    channels, height, width = specimen.image_shape
    return _first(specimen).shape[1:] == (channels * height * width,)


def _first(specimen: MaskInfo) -> NDArray[np.bool_]:
    return next(iter(specimen.masks.values()))


Panel = tuple[MaskInfo, str, WeightArrays, WeightArrays]
"""A specimen, the name of a layer, all of its w_i and w_f."""


def _by_layer(specimens: Sequence[MaskInfo], stem: str, what: str) -> Iterator[tuple[str, str, list[str], list[Panel]]]:
    """(file name, title, labels, panels) of every figure that shows w_i and w_f; specimens without them are in none."""
    known = [(s, s.w_i, s.w_f) for s in specimens if s.w_i is not None and s.w_f is not None]
    common, labels = common_and_short_labels([specimen for specimen, _, _ in known])
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


ANALYSES: dict[str, Callable[[Sequence[MaskInfo], Pairs], Figures]] = {
    "overlap": overlap_figures,
    "density": density_figures,
    "plane": weight_plane_figures,
    "distribution": distribution_figures,
    "pixels": pixel_map_figures,
}
"""What can be drawn, in the order in which it is."""


def _select_analyses(only: str | None) -> list[str]:
    asked = list(ANALYSES) if only is None else [name.strip() for name in only.split(",")]
    for name in asked:
        if name not in ANALYSES:
            near = did_you_mean(name, ANALYSES) or "."
            raise UserError(f"{quote(name)} is nothing that can be drawn{near} Allowed: {', '.join(ANALYSES)}.")
    return [name for name in ANALYSES if name in asked]


def _notes(specimens: Sequence[MaskInfo], wanted: Sequence[str]) -> Iterator[str]:
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
