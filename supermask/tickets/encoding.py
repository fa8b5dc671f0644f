"""One maskable tensor as what a ticket file holds of it, and back: its mask, and how its weights are had.

Kept weights: `from_seed` (nothing is stored), `constant` (a sign bit each and one magnitude) or `values` (float32).
Pruned ones: `zero` or `from_seed` (nothing is stored), or `values`. Values are kept bit for bit, NaNs too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from supermask.masks import pack, unpack
from supermask.store.entry import Tensors
from supermask.tickets.container import Refused, Slot, Slots
from supermask.types import Weights

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["from_seed", "constant", "values"]
Frozen = Literal["zero", "from_seed", "values"]

FrozenWeights = Mapping[str, "Tensor | None"]
"""Tensor name -> values at pruned weights; None: the initial ones of the seed."""

SIGN = np.uint32(1 << 31)


def kept_as(name: str, mask: Tensor, weights: Weights) -> Kept:
    """How a tensor's kept weights are best stored; those that are not in `weights` are the seed's."""
    if name not in weights:
        return "from_seed"
    magnitudes = weights[name][mask].numpy().view(np.uint32) & ~SIGN
    return "constant" if magnitudes.size and bool((magnitudes == magnitudes[0]).all()) else "values"


def frozen_as(name: str, mask: Tensor, frozen: FrozenWeights) -> Frozen:
    """How a tensor's pruned weights are best stored; those that are not in `frozen` are 0, and None is the seed's.

    Where all of them are 0, their signs are not kept: w * mask makes -0 of a negative weight, and means 0.
    """
    if name not in frozen:
        return "zero"
    values = frozen[name]
    if values is None:
        return "from_seed"
    return "values" if bool((values[~mask] != 0).any()) else "zero"


def stored(name: str, mask: Tensor, weights: Weights, frozen: FrozenWeights) -> Tensors:
    """What the file holds of one tensor: `mask/`, and as needed `constant/` and `signs/`, `kept/`, `frozen/`.

    `signs/` is packed as masks are, one bit a kept weight in C order: 1 = negative.
    """
    tensors: Tensors = {f"mask/{name}": pack(mask)}
    if name in weights:
        kept = weights[name][mask].numpy()
        if kept_as(name, mask, weights) == "constant":
            tensors[f"constant/{name}"] = np.abs(kept[:1])
            tensors[f"signs/{name}"] = np.packbits(np.signbit(kept))
        else:
            tensors[f"kept/{name}"] = kept
    pruned = frozen.get(name)
    if pruned is not None and frozen_as(name, mask, frozen) == "values":
        tensors[f"frozen/{name}"] = pruned[~mask].numpy()
    return tensors


def slots(name: str, shape: tuple[int, ...], kept: int, weights: Kept, frozen: Frozen) -> Slots:
    """Which arrays, of which sizes, `stored` gives for such a tensor: known before any of them is read."""
    size = prod(shape)
    found = {f"mask/{name}": Slot("U8", (_bytes(size),))}
    if weights == "constant":
        found[f"constant/{name}"] = Slot("F32", (1,))
        found[f"signs/{name}"] = Slot("U8", (_bytes(kept),))
    elif weights == "values":
        found[f"kept/{name}"] = Slot("F32", (kept,))
    if frozen == "values":
        found[f"frozen/{name}"] = Slot("F32", (size - kept,))
    return found


def mask_of(name: str, shape: tuple[int, ...], kept: int, tensors: Tensors) -> Tensor:
    """The mask. Raises Refused if it does not keep as many weights as promised, or has bits beyond its size."""
    import torch

    packed = tensors[f"mask/{name}"]
    if int(np.bitwise_count(packed).sum()) != kept:
        raise Refused("a mask does not keep as many weights as its header says.")
    return torch.from_numpy(_unpacked(packed, shape))


def weights_of(name: str, mask: Tensor, tensors: Tensors) -> Tensor:
    """The kept weights in their places, 0 elsewhere, from `constant/` and `signs/` or `kept/`. Raises Refused."""
    if f"kept/{name}" in tensors:
        return _scattered(mask, tensors[f"kept/{name}"])
    constant = tensors[f"constant/{name}"]
    if np.signbit(constant).any():
        raise Refused("the constant of a layer is negative.")
    negative = _unpacked(tensors[f"signs/{name}"], (int(mask.sum()),))
    return _scattered(mask, np.where(negative, -constant, constant))


def frozen_of(name: str, mask: Tensor, tensors: Tensors) -> Tensor:
    """The pruned weights in their places, 0 elsewhere, from `frozen/`."""
    return _scattered(~mask, tensors[f"frozen/{name}"])


def _scattered(places: Tensor, values: NDArray[np.float32]) -> Tensor:
    import torch

    tensor = torch.zeros(places.shape)
    tensor[places] = torch.from_numpy(values.copy())
    return tensor


def _unpacked(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    bits = unpack(packed, shape)
    if not np.array_equal(np.packbits(bits), packed):
        raise Refused("packed bits go on beyond the number of weights.")
    return bits


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
