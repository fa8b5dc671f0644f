"""How much of each layer a mask keeps.

Whether weights have the same sign at two points, or in two networks.

Units that a mask leaves without a connection, and the weights that still carry something from input to output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks.overlap import ALL_LAYERS, check_same_layers
from supermask.analysis.masks.sample import Masks, WeightArrays


@dataclass(frozen=True)
class Density:
    """Of one layer, or of all of them."""

    weights: int
    kept: int

    @property
    def density(self) -> float:
        """kept / weights, in [0, 1]."""
        return self.kept / self.weights


def layer_densities(masks: Masks) -> dict[str, Density]:
    """Weights and kept weights in each layer, and in `ALL_LAYERS`. Source: paper.md section 8."""
    found = {name: Density(mask.size, int(np.count_nonzero(mask))) for name, mask in masks.items()}
    total = Density(sum(d.weights for d in found.values()), sum(d.kept for d in found.values()))
    return found | {ALL_LAYERS: total}


@dataclass(frozen=True)
class SignAgreement:
    """Of a set of weights; the sign of 0 is 0, which is the sign of 0 alone."""

    weights: int
    same: int

    @property
    def share(self) -> float | None:
        """same / weights, in [0, 1]; None where there are no weights."""
        return self.same / self.weights if self.weights else None


def sign_agreement(
    w_i: WeightArrays, w_f: WeightArrays, masks: Masks, alive: Masks | None = None
) -> dict[str, tuple[SignAgreement, SignAgreement]]:
    """How many of the kept, and of the pruned, have sign(w_i) = sign(w_f): (kept, pruned) in each layer and in all.

    Pruned are those that were alive (all, if `alive` is not given) and are not kept. Source: paper.md section 8.
    """
    found = {}
    for name, mask in masks.items():
        same = np.sign(w_i[name]) == np.sign(w_f[name])
        among = np.ones(mask.shape, dtype=bool) if alive is None else alive[name]
        found[name] = (_agreement(same, mask & among), _agreement(same, among & ~mask))
    return found | {ALL_LAYERS: (_total([k for k, _ in found.values()]), _total([p for _, p in found.values()]))}


def sign_agreement_between(
    one: WeightArrays, other: WeightArrays, masks: Masks, other_masks: Masks
) -> dict[str, SignAgreement]:
    """How many of the weights that both masks keep have the same sign in two networks, in each layer and in all.

    Raises ValueError where names or shapes of the layers differ. Source: paper.md section 8.
    """
    check_same_layers(masks, other_masks)
    found = {
        name: _agreement(np.sign(one[name]) == np.sign(other[name]), mask & other_masks[name])
        for name, mask in masks.items()
    }
    return found | {ALL_LAYERS: _total(list(found.values()))}


def _agreement(same: NDArray[Any], among: NDArray[np.bool_]) -> SignAgreement:
    return SignAgreement(int(np.count_nonzero(among)), int(np.count_nonzero(same & among)))


def _total(parts: list[SignAgreement]) -> SignAgreement:
    return SignAgreement(sum(part.weights for part in parts), sum(part.same for part in parts))


INPUTS = "inputs"
"""The row of the network's inputs (pixels, or channels under a convolution), before the layers' own."""


@dataclass(frozen=True)
class UnitConnectivity:
    """The units that a layer computes: its outputs, channels under a convolution."""

    units: int
    no_incoming: int
    """Units without a kept weight from the layer before: they are a constant, their bias. Inputs have none to lose."""
    no_outgoing: int
    """Units without a kept weight to the next layer: nothing reads them. The network's outputs have none to lose."""
    connected: int
    """Units on a path of kept weights from an input to an output; all others are dead to the network."""
    connected_weights: int
    """Kept weights of the layer on such a path; 0 for the inputs, which have no weights."""

    @property
    def dead(self) -> int:
        """units - connected."""
        return self.units - self.connected


def unit_connectivity(masks: Masks) -> dict[str, UnitConnectivity]:
    """What is left of each layer's units, by layer, from `INPUTS` on; the layers follow each other in the order given.

    Two units are connected where any weight between them is kept: any of a convolution's window, and, behind the
    flattening of channels, any of a channel's pixels. Raises ValueError where a layer does not fit the one before.
    Source: paper.md section 8.
    """
    joins = _adjacency(masks)
    # reached[k]: from an input to the units of level k; read[k]: from them to an output.
    reached = [np.ones(joins[0].shape[1], dtype=bool)]
    for join in joins:
        reached.append(np.any(join & reached[-1], axis=1))
    read = [np.ones(joins[-1].shape[0], dtype=bool)]
    for join in reversed(joins):
        read.insert(0, np.any(join & read[0][:, None], axis=0))
    found = {}
    for place, name in enumerate([INPUTS, *masks]):
        on_path = reached[place] & read[place]
        incoming = np.any(joins[place - 1], axis=1) if place else np.ones_like(on_path)
        outgoing = np.any(joins[place], axis=0) if place < len(joins) else np.ones_like(on_path)
        weights = _connected_weight_count(masks[name], read[place], reached[place - 1]) if place else 0
        found[name] = UnitConnectivity(
            on_path.size, int((~incoming).sum()), int((~outgoing).sum()), int(on_path.sum()), weights
        )
    return found


def _adjacency(masks: Masks) -> list[NDArray[np.bool_]]:
    """Of every layer which of its units (rows) has a kept weight from which unit before it (columns)."""
    joins: list[NDArray[np.bool_]] = []
    for name, mask in masks.items():
        join = np.any(mask.reshape(*mask.shape[:2], -1), axis=2)
        if joins and (before := joins[-1].shape[0]) != join.shape[1]:
            if mask.ndim != 2 or join.shape[1] % before:
                raise ValueError(f"{name} has {join.shape[1]} inputs, which do not fit {before} units before it")
            join = np.any(join.reshape(join.shape[0], before, -1), axis=2)
        joins.append(join)
    return joins


def _connected_weight_count(mask: NDArray[np.bool_], read: NDArray[np.bool_], reached: NDArray[np.bool_]) -> int:
    """Kept weights between units that are reached and units that are read."""
    by_unit = mask.reshape(mask.shape[0], reached.size, -1)
    return int(np.count_nonzero(by_unit & read[:, None, None] & reached[None, :, None]))
