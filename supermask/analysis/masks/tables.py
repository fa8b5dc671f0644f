"""Tables of masks: one line per mask, one row per mask and layer, and the overlaps of pairs against chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from supermask.analysis.masks.layers import (
    INPUTS,
    SignAgreement,
    UnitConnectivity,
    layer_densities,
    sign_agreement,
    sign_agreement_between,
    unit_connectivity,
)
from supermask.analysis.masks.overlap import ALL_LAYERS, Overlap
from supermask.analysis.masks.sample import MaskInfo, common_and_short_labels
from supermask.core.text import format_table, pluralize

if TYPE_CHECKING:
    from supermask.core.text import Row

MAX_PAIRS = 45
"""Pairs that are all printed: those of ten masks."""
EXTREMES = 5
"""With more pairs, the number of largest and of smallest overlaps that are printed."""

Pairs = Mapping[tuple[int, int], Mapping[str, Overlap]]

COLUMN_TITLES = (
    "mask",
    "kept",
    "density",
    "densest",
    "sparsest",
    "same sign: kept",
    "pruned",
    "dead units",
    "dead inputs",
)
PAIR_COLUMN_TITLES = ("mask a", "mask b", "overlap", "chance", "95% range", "against chance", "same sign: start", "end")


def format_summary(infos: Sequence[MaskInfo]) -> str:
    """A line on common settings, then one per mask: kept weights, densest and sparsest layer, signs, dead units."""
    common, labels = common_and_short_labels(infos)
    subject = ", ".join([*dict.fromkeys(info.subject for info in infos), *([common] if common else [])])
    lines = [[label, *_summary_cells(info)] for label, info in zip(labels, infos, strict=True)]
    return f"{subject}\n\n{format_table(COLUMN_TITLES, lines)}"


def format_pairs(pairs: Pairs, infos: Sequence[MaskInfo]) -> str:
    """One line per pair, over all layers: overlap against chance, and sign agreement of the weights that both keep."""
    ordered = sorted(pairs, key=lambda pair: -pairs[pair][ALL_LAYERS].jaccard)
    positions = [pairs[pair][ALL_LAYERS].chance_position for pair in ordered]
    counts = ", ".join(f"{positions.count(v)} {v}" for v in ("above", "within", "below") if v in positions)
    shown = ordered if len(ordered) <= MAX_PAIRS else ordered[:EXTREMES] + ordered[-EXTREMES:]
    head = f"overlap of {pluralize(len(ordered), 'pair')} against chance: {counts}"
    selection = "" if shown is ordered else f"; the {EXTREMES} largest and the {EXTREMES} smallest"
    _, labels = common_and_short_labels(infos)
    lines = [[labels[a], labels[b], *_pair_cells(pairs[a, b][ALL_LAYERS], infos[a], infos[b])] for a, b in shown]
    return f"{head}{selection}\n\n{format_table(PAIR_COLUMN_TITLES, lines)}"


def layer_table(infos: Sequence[MaskInfo]) -> list[Row]:
    """One row per mask and layer, and one for all layers; unknown columns are None."""
    rows: list[Row] = []
    for info in infos:
        units, signs = _unit_connectivity(info), _sign_agreement(info)
        for layer, density in layer_densities(info.masks).items():
            unit = units.get(layer)
            kept, pruned = signs.get(layer, (None, None))
            rows.append(
                {
                    "mask": info.label,
                    "name": info.name,
                    "layer": layer.removesuffix(".weight"),
                    "weights": density.weights,
                    "kept": density.kept,
                    "density": density.density,
                    "kept_same_sign": kept.share if kept else None,
                    "pruned_same_sign": pruned.share if pruned else None,
                    "units": unit.units if unit else None,
                    "units_without_incoming": unit.no_incoming if unit else None,
                    "units_without_outgoing": unit.no_outgoing if unit else None,
                    "connected_units": unit.connected if unit else None,
                    "connected_weights": unit.connected_weights if unit else None,
                }
            )
    return rows


def _summary_cells(info: MaskInfo) -> list[object]:
    densities = layer_densities(info.masks)
    total = densities[ALL_LAYERS]
    layers = sorted((name for name in densities if name != ALL_LAYERS), key=lambda name: densities[name].density)
    extremes = [
        f"{name.removesuffix('.weight')} {_format_share(densities[name].density)}" for name in (layers[-1], layers[0])
    ]
    kept, pruned = _sign_agreement(info).get(ALL_LAYERS, (None, None))
    units = dict(_unit_connectivity(info))
    inputs = units.pop(INPUTS, None)
    dead = f"{sum(u.dead for u in units.values())} of {sum(u.units for u in units.values())}" if units else "-"
    return [
        f"{total.kept:,}",
        _format_share(total.density),
        *extremes,
        _format_agreement(kept),
        _format_agreement(pruned),
        dead,
        f"{inputs.dead} of {inputs.units}" if inputs else "-",
    ]


def _pair_cells(overlap: Overlap, a: MaskInfo, b: MaskInfo) -> list[object]:
    signs = [
        None if w_a is None or w_b is None else sign_agreement_between(w_a, w_b, a.masks, b.masks)[ALL_LAYERS]
        for w_a, w_b in ((a.initial_weights, b.initial_weights), (a.final_weights, b.final_weights))
    ]
    chance = overlap.chance
    return [
        f"{overlap.jaccard:.4f}",
        f"{chance.expected:.4f}",
        f"{chance.low:.4f} to {chance.high:.4f}",
        overlap.chance_position + (", nested" if overlap.nested else ""),
        *map(_format_agreement, signs),
    ]


def _unit_connectivity(info: MaskInfo) -> Mapping[str, UnitConnectivity]:
    # A unit without a kept weight may be reached through a shortcut, of which the masks say nothing.
    return unit_connectivity(info.masks) if info.is_chain else {}


def _sign_agreement(info: MaskInfo) -> Mapping[str, tuple[SignAgreement, SignAgreement]]:
    if info.w_i is None or info.w_f is None:
        return {}
    return sign_agreement(info.w_i, info.w_f, info.masks, info.alive)


def _format_agreement(agreement: SignAgreement | None) -> str:
    return "-" if agreement is None or agreement.share is None else _format_share(agreement.share)


def _format_share(share: float) -> str:
    return f"{share:.2%}"
