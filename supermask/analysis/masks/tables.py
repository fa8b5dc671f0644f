"""Specimens as tables: a line each for a person, a row a layer for a program, and their pairs against chance."""

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

MOST_PAIRS, EXTREMES = 45, 5
"""Pairs that are printed, of ten masks; of more, the largest and the smallest overlaps."""

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
PAIR_COLUMN_TITLES = ("one", "other", "overlap", "chance", "95% range", "against chance", "same sign: start", "end")


def format_summary(specimens: Sequence[MaskInfo]) -> str:
    """What all have in common, then a line each: weights kept, densest and sparsest layer, signs, dead units."""
    common, labels = common_and_short_labels(specimens)
    subject = ", ".join([*dict.fromkeys(specimen.subject for specimen in specimens), *([common] if common else [])])
    lines = [[label, *_line(specimen)] for label, specimen in zip(labels, specimens, strict=True)]
    return f"{subject}\n\n{format_table(COLUMN_TITLES, lines)}"


def format_pairs(pairs: Pairs, specimens: Sequence[MaskInfo]) -> str:
    """A line a pair, over all layers: overlap against chance, and the sign agreement of the weights that both keep."""
    found = sorted(pairs, key=lambda pair: -pairs[pair][ALL_LAYERS].jaccard)
    verdicts = [pairs[pair][ALL_LAYERS].verdict for pair in found]
    said = ", ".join(f"{verdicts.count(v)} {v}" for v in ("above", "within", "below") if v in verdicts)
    some = found if len(found) <= MOST_PAIRS else found[:EXTREMES] + found[-EXTREMES:]
    head = f"overlap of {pluralize(len(found), 'pair')} against chance: {said}"
    which = "" if some is found else f"; the {EXTREMES} largest and the {EXTREMES} smallest"
    _, labels = common_and_short_labels(specimens)
    lines = [
        [labels[one], labels[other], *_pair_line(pairs[one, other][ALL_LAYERS], specimens[one], specimens[other])]
        for one, other in some
    ]
    return f"{head}{which}\n\n{format_table(PAIR_COLUMN_TITLES, lines)}"


def layer_table(specimens: Sequence[MaskInfo]) -> list[Row]:
    """A row a specimen and layer, and one for all layers; columns that are not known for it are None."""
    rows: list[Row] = []
    for specimen in specimens:
        units, signs = _units(specimen), _signs(specimen)
        for layer, density in layer_densities(specimen.masks).items():
            left = units.get(layer)
            kept, pruned = signs.get(layer, (None, None))
            rows.append(
                {
                    "mask": specimen.label,
                    "name": specimen.name,
                    "layer": layer.removesuffix(".weight"),
                    "weights": density.weights,
                    "kept": density.kept,
                    "density": density.density,
                    "kept_same_sign": kept.share if kept else None,
                    "pruned_same_sign": pruned.share if pruned else None,
                    "units": left.units if left else None,
                    "units_without_incoming": left.no_incoming if left else None,
                    "units_without_outgoing": left.no_outgoing if left else None,
                    "connected_units": left.connected if left else None,
                    "connected_weights": left.connected_weights if left else None,
                }
            )
    return rows


def _line(specimen: MaskInfo) -> list[object]:
    found = layer_densities(specimen.masks)
    total = found[ALL_LAYERS]
    layers = sorted((name for name in found if name != ALL_LAYERS), key=lambda name: found[name].density)
    extremes = [f"{name.removesuffix('.weight')} {_percent(found[name].density)}" for name in (layers[-1], layers[0])]
    kept, pruned = _signs(specimen).get(ALL_LAYERS, (None, None))
    units = dict(_units(specimen))
    inputs = units.pop(INPUTS, None)
    dead = f"{sum(u.dead for u in units.values())} of {sum(u.units for u in units.values())}" if units else "-"
    return [
        f"{total.kept:,}",
        _percent(total.density),
        *extremes,
        _share(kept),
        _share(pruned),
        dead,
        f"{inputs.dead} of {inputs.units}" if inputs else "-",
    ]


def _pair_line(found: Overlap, one: MaskInfo, other: MaskInfo) -> list[object]:
    signs = [
        None if a is None or b is None else sign_agreement_between(a, b, one.masks, other.masks)[ALL_LAYERS]
        for a, b in ((one.initial_weights, other.initial_weights), (one.final_weights, other.final_weights))
    ]
    chance = found.chance
    return [
        f"{found.jaccard:.4f}",
        f"{chance.expected:.4f}",
        f"{chance.low:.4f} to {chance.high:.4f}",
        found.verdict + (", nested" if found.nested else ""),
        *map(_share, signs),
    ]


def _units(specimen: MaskInfo) -> Mapping[str, UnitConnectivity]:
    try:
        return unit_connectivity(specimen.masks)
    except ValueError:
        # Layers that do not follow each other: a network of somebody's own.
        return {}


def _signs(specimen: MaskInfo) -> Mapping[str, tuple[SignAgreement, SignAgreement]]:
    if specimen.w_i is None or specimen.w_f is None:
        return {}
    return sign_agreement(specimen.w_i, specimen.w_f, specimen.masks, specimen.alive)


def _share(agreement: SignAgreement | None) -> str:
    return "-" if agreement is None or agreement.share is None else _percent(agreement.share)


def _percent(share: float) -> str:
    return f"{share:.2%}"
