"""One maskable tensor as what a ticket file holds of it, and back: its mask, and how its weights are had.

Kept weights: `from_seed` (nothing), `constant` (a sign bit each and one magnitude) or `values` (float32). Pruned ones:
`zero` (nothing) or `values`. Values are kept bit for bit, NaNs too.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from supermask.masks import pack, unpack
from supermask.store.entry import Tensors
from supermask.tickets.container import Refused, Slot, Slots

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["from_seed", "constant", "values"]
Frozen = Literal["zero", "values"]

SIGN = np.uint32(1 << 31)


def kept_as(weights: Tensor | None, mask: Tensor) -> Kept:
    """How the kept weights of a tensor are best stored; None stands for those of the seed."""
    if weights is None:
        return "from_seed"
    magnitudes = _bits(weights[mask]) & ~SIGN
    return "constant" if magnitudes.size and bool((magnitudes == magnitudes[0]).all()) else "values"


def frozen_as(weights: Tensor | None, mask: Tensor) -> Frozen:
    """How the pruned weights of a tensor are best stored. None stands for weights of the seed, which are 0 there.

    Where all of them are 0, their signs are not kept: w * mask makes -0 of a negative weight, and means 0.
    """
    return "values" if weights is not None and bool((weights[~mask] != 0).any()) else "zero"


def stored(name: str, weights: Tensor | None, mask: Tensor) -> Tensors:
    """What the file holds of one tensor: `mask/`, and as needed `constant/` and `signs/`, `kept/`, `frozen/`.

    `signs/` is packed as masks are, one bit a kept weight in C order: 1 = negative.
    """
    tensors: Tensors = {f"mask/{name}": pack(mask)}
    if weights is None:
        return tensors
    kept = weights[mask].numpy()
    if kept_as(weights, mask) == "constant":
        tensors[f"constant/{name}"] = np.abs(kept[:1])
        tensors[f"signs/{name}"] = np.packbits(np.signbit(kept))
    else:
        tensors[f"kept/{name}"] = kept
    if frozen_as(weights, mask) == "values":
        tensors[f"frozen/{name}"] = weights[~mask].numpy()
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


def weights_of(name: str, mask: Tensor, weights: Kept, frozen: Frozen, tensors: Tensors) -> Tensor | None:
    """The inverse of `stored`, in the mask's shape; None for weights of the seed. Raises Refused."""
    import torch

    if weights == "from_seed":
        return None
    values = torch.zeros(mask.shape)
    if weights == "constant":
        constant = tensors[f"constant/{name}"]
        if np.signbit(constant).any():
            raise Refused("the constant of a layer is negative.")
        negative = _unpacked(tensors[f"signs/{name}"], (int(mask.sum()),))
        values[mask] = torch.from_numpy(np.where(negative, -constant, constant))
    else:
        values[mask] = torch.from_numpy(tensors[f"kept/{name}"].copy())
    if frozen == "values":
        values[~mask] = torch.from_numpy(tensors[f"frozen/{name}"].copy())
    return values


def _unpacked(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    bits = unpack(packed, shape)
    if not np.array_equal(np.packbits(bits), packed):
        raise Refused("packed bits go on beyond the number of weights.")
    return bits


def _bits(values: Tensor) -> NDArray[np.uint32]:
    return values.numpy().view(np.uint32)


def _bytes(bits: int) -> int:
    return (bits + 7) // 8
