"""Units that a mask leaves without a connection, and the weights that still carry something from input to output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supermask.analysis.specimen import MaskArrays

INPUTS = "inputs"
"""The row of the network's inputs (pixels, or channels under a convolution), before the layers' own."""


@dataclass(frozen=True)
class Units:
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


def connected_units(masks: MaskArrays) -> dict[str, Units]:
    """What is left of each layer's units, by layer, from `INPUTS` on; the layers follow each other in the order given.

    Two units are connected where any weight between them is kept: any of a convolution's window, and, behind the
    flattening of channels, any of a channel's pixels. Raises ValueError where a layer does not fit the one before.
    Source: paper.md section 8.
    """
    joins = _joins(masks)
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
        weights = _carrying(masks[name], read[place], reached[place - 1]) if place else 0
        found[name] = Units(on_path.size, int((~incoming).sum()), int((~outgoing).sum()), int(on_path.sum()), weights)
    return found


def _joins(masks: MaskArrays) -> list[NDArray[np.bool_]]:
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


def _carrying(mask: NDArray[np.bool_], read: NDArray[np.bool_], reached: NDArray[np.bool_]) -> int:
    """Kept weights between units that are reached and units that are read."""
    by_unit = mask.reshape(mask.shape[0], reached.size, -1)
    return int(np.count_nonzero(by_unit & read[:, None, None] & reached[None, :, None]))
