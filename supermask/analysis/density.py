"""How much of each layer a mask keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from supermask.analysis.overlap import ALL_LAYERS
from supermask.analysis.specimen import MaskArrays


@dataclass(frozen=True)
class Density:
    """Of one layer, or of all of them."""

    weights: int
    kept: int

    @property
    def share(self) -> float:
        """kept / weights, in [0, 1]."""
        return self.kept / self.weights


def densities(masks: MaskArrays) -> dict[str, Density]:
    """Weights and kept weights in each layer, and in `ALL_LAYERS`. Source: paper.md section 8."""
    found = {name: Density(mask.size, int(np.count_nonzero(mask))) for name, mask in masks.items()}
    total = Density(sum(d.weights for d in found.values()), sum(d.kept for d in found.values()))
    return found | {ALL_LAYERS: total}
