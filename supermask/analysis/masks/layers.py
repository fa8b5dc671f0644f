"""Measures per layer: density, sign agreement, and the connectivity of units.

Shapes: a mask is (O, I) for a fully connected layer, (O, C, 3, 3) for a convolution; O outputs, I inputs, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.masks.overlap import ALL_LAYERS, check_same_layers
from supermask.analysis.masks.sample import MaskArrays, WeightArrays


@dataclass(frozen=True)
class Density:
    """Weights and kept weights of one layer, or of all layers."""

    weights: int
    kept: int

    @property
    def density(self) -> float:
        """kept / weights, in [0, 1]."""
        return self.kept / self.weights


def layer_densities(masks: MaskArrays) -> dict[str, Density]:
    """Weights and kept weights of each layer, and of `ALL_LAYERS`. Source: Zhou et al. 2019, Figs. S2 and S3."""
    densities = {name: Density(mask.size, int(np.count_nonzero(mask))) for name, mask in masks.items()}
    total = Density(sum(d.weights for d in densities.values()), sum(d.kept for d in densities.values()))
    return densities | {ALL_LAYERS: total}


@dataclass(frozen=True)
class SignAgreement:
    """Number of weights with the same sign at two points. 0 has a sign of its own."""

    weights: int
    same: int

    @property
    def share(self) -> float | None:
        """same / weights, in [0, 1]; None without weights."""
        return self.same / self.weights if self.weights else None


def sign_agreement(
    w_i: WeightArrays, w_f: WeightArrays, masks: MaskArrays, alive: MaskArrays | None = None
) -> dict[str, tuple[SignAgreement, SignAgreement]]:
    """Weights with sign(w_i) = sign(w_f), as (kept, pruned), for each layer and `ALL_LAYERS`.

    Pruned weights are those that were alive (by default all) and are not kept.
    Source: Zhou et al. 2019, Sec. 2, Fig. 2.
    """
    agreements = {}
    for name, mask in masks.items():
        same = np.sign(w_i[name]) == np.sign(w_f[name])
        candidates = np.ones(mask.shape, dtype=bool) if alive is None else alive[name]
        agreements[name] = (_agreement(same, mask & candidates), _agreement(same, candidates & ~mask))
    kept, pruned = zip(*agreements.values(), strict=True)
    return agreements | {ALL_LAYERS: (_total(kept), _total(pruned))}


def sign_agreement_between(
    one: WeightArrays, other: WeightArrays, masks: MaskArrays, other_masks: MaskArrays
) -> dict[str, SignAgreement]:
    """Weights kept by both masks that have the same sign in two networks, for each layer and `ALL_LAYERS`.

    Raises ValueError if names or shapes of the layers differ.
    Source: Zhou et al. 2019, authors' response, item 6 (an open question there).
    """
    check_same_layers(masks, other_masks)
    agreements = {
        name: _agreement(np.sign(one[name]) == np.sign(other[name]), mask & other_masks[name])
        for name, mask in masks.items()
    }
    return agreements | {ALL_LAYERS: _total(list(agreements.values()))}


def _agreement(same: NDArray[Any], subset: NDArray[np.bool_]) -> SignAgreement:
    return SignAgreement(int(np.count_nonzero(subset)), int(np.count_nonzero(same & subset)))


def _total(parts: Sequence[SignAgreement]) -> SignAgreement:
    return SignAgreement(sum(part.weights for part in parts), sum(part.same for part in parts))


INPUTS = "inputs"
"""Key of the network's inputs: pixels, or channels if the first layer is a convolution."""


@dataclass(frozen=True)
class UnitConnectivity:
    """The units that a layer computes: its outputs, or the channels of a convolution."""

    units: int
    no_incoming: int
    """Units without a kept weight from the previous layer: constant, equal to their bias. 0 for inputs."""
    no_outgoing: int
    """Units without a kept weight to the next layer: nothing reads them. 0 for the network's outputs."""
    connected: int
    """Units on a path of kept weights from an input to an output; all others are dead."""
    connected_weights: int
    """Kept weights of the layer on such a path; 0 for the inputs."""

    @property
    def dead(self) -> int:
        """units - connected."""
        return self.units - self.connected


def unit_connectivity(masks: MaskArrays) -> dict[str, UnitConnectivity]:
    """Connectivity of the units of `INPUTS` and of each layer; the layers follow each other in the mapping's order.

    Two units are connected if any weight between them is kept: any position of a convolution's 3x3 window and, where
    channels are flattened, any pixel of a channel. Raises ValueError if a layer does not fit the previous one.
    Source: Zhou et al. 2019, authors' response, item 6 (an open question there).
    """
    adjacency = _adjacency(masks)
    # k = 0 are the inputs, k > 0 the units of layer k - 1.
    # forward[k]: reachable from an input; backward[k]: an output is reachable.
    forward = [np.ones(adjacency[0].shape[1], dtype=bool)]
    for matrix in adjacency:
        forward.append(np.any(matrix & forward[-1], axis=1))
    backward = [np.ones(adjacency[-1].shape[0], dtype=bool)]
    for matrix in reversed(adjacency):
        backward.insert(0, np.any(matrix & backward[0][:, None], axis=0))
    connectivity = {}
    for k, name in enumerate([INPUTS, *masks]):
        on_path = forward[k] & backward[k]
        incoming = np.any(adjacency[k - 1], axis=1) if k else np.ones_like(on_path)
        outgoing = np.any(adjacency[k], axis=0) if k < len(adjacency) else np.ones_like(on_path)
        weights = _count_connected_weights(masks[name], backward[k], forward[k - 1]) if k else 0
        connectivity[name] = UnitConnectivity(
            on_path.size, int((~incoming).sum()), int((~outgoing).sum()), int(on_path.sum()), weights
        )
    return connectivity


def _adjacency(masks: MaskArrays) -> list[NDArray[np.bool_]]:
    """Per layer a matrix (units, units of the previous layer): True if a weight between the two is kept."""
    adjacency: list[NDArray[np.bool_]] = []
    for name, mask in masks.items():
        matrix = np.any(mask.reshape(*mask.shape[:2], -1), axis=2)
        if adjacency and (previous := adjacency[-1].shape[0]) != matrix.shape[1]:
            # A fully connected layer behind a convolution: its inputs are the pixels of each channel in turn.
            if mask.ndim != 2 or matrix.shape[1] % previous:
                raise ValueError(
                    f"{name} has {matrix.shape[1]} inputs, which do not fit the {previous} units of the previous layer"
                )
            matrix = np.any(matrix.reshape(matrix.shape[0], previous, -1), axis=2)
        adjacency.append(matrix)
    return adjacency


def _count_connected_weights(mask: NDArray[np.bool_], backward: NDArray[np.bool_], forward: NDArray[np.bool_]) -> int:
    """Kept weights from units that an input reaches to units that reach an output."""
    by_unit = mask.reshape(mask.shape[0], forward.size, -1)
    return int(np.count_nonzero(by_unit & backward[:, None, None] & forward[None, :, None]))
