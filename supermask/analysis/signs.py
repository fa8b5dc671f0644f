"""Whether weights have the same sign at two points, or in two networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.overlap import ALL_LAYERS, check_same_layers
from supermask.analysis.specimen import Arrays, MaskArrays


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
    w_i: Arrays, w_f: Arrays, masks: MaskArrays, alive: MaskArrays | None = None
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
    one: Arrays, other: Arrays, masks: MaskArrays, other_masks: MaskArrays
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
