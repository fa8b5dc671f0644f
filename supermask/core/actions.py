"""Mask-1 actions (what kept weights start from) and mask-0 actions (where pruned weights are frozen).

Every action is a pure function of one layer; it returns a tensor of the layer's shape and changes nothing in place.
w_i is `layer.w_init`, w_f is `layer.w_final`, s is `layer.std`. "Kept" is where `mask` is True, "pruned" is what this
level prunes: alive, but not in `mask`. Values at weights that died before are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from supermask.core.initializers import bimodal, truncated_normal
from supermask.core.rng import Stream
from supermask.core.types import Layer

if TYPE_CHECKING:
    from torch import Tensor

Mask1Action = Callable[[Layer, "Tensor", Stream], "Tensor"]
"""(layer, mask, rng) -> values; those at kept weights are used."""

Mask0Action = Callable[[Layer, "Tensor", "Tensor", Stream], "Tensor"]
"""(layer, mask, kept, rng) -> start values, `kept` being what the mask-1 action gave."""


# --- mask-1 actions: paper.md section 4 ---


def rewind(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """w_i, or the weights at the study's `rewind_to`. Source: paper.md section 4."""
    return layer.w_rewind


def reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Fresh draws from the layer's original initialiser.

    Source: paper.md section 4. Differs from the paper: the authors' code does what `permute` does (section 10).
    """
    return layer.w_init.new_tensor(truncated_normal(tuple(layer.w_init.shape), layer.std, rng))


def reshuffle(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """The kept weights' own w_i, permuted among themselves. Source: paper.md section 4."""
    return _permute_within(layer.w_init, mask, rng)


def constant(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """+s or -s, the sign at random. Source: paper.md section 4."""
    signs = 2 * rng.integers(0, 2, size=tuple(layer.w_init.shape)) - 1
    return layer.w_init.new_tensor(np.float32(layer.std) * signs.astype(np.float32))


def signed_reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """abs(`reinit`) with the sign of each weight's own w_i. Source: paper.md section 4."""
    return reinit(layer, mask, rng).abs() * layer.w_init.sign()


def signed_reshuffle(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Kept w_i permuted among the kept weights of the same sign: same values, every sign in its place.

    Source: paper.md section 4.
    """
    sign = layer.w_init.sign()
    shuffled = layer.w_init
    for same_sign in (sign > 0, sign < 0):
        shuffled = _permute_within(shuffled, mask & same_sign, rng)
    return shuffled


def signed_constant(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """s with the sign of each weight's own w_i. Source: paper.md section 4."""
    return layer.w_init.sign() * layer.std


def bimodal_reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Fresh draws from the two-peaked `initialisers.bimodal`. Source: paper.md section 4 (answer 6, open)."""
    return layer.w_init.new_tensor(bimodal(tuple(layer.w_init.shape), layer.std, rng))


def signed_bimodal_reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """abs(`bimodal_reinit`) with the sign of each weight's own w_i. Source: paper.md section 4 (answer 6, open)."""
    return bimodal_reinit(layer, mask, rng).abs() * layer.w_init.sign()


def permute(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """All alive w_i of the layer, kept or not, permuted among themselves.

    Source: paper.md section 10 (what the authors' code does under the name of reinit).
    """
    return _permute_within(layer.w_init, layer.alive, rng)


def randomise_signs(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """abs(w_i) with a random sign: what a supermask does not survive. Source: paper.md section 6 (answer 7)."""
    signs = 2 * rng.integers(0, 2, size=tuple(layer.w_init.shape)) - 1
    return layer.w_init.abs() * layer.w_init.new_tensor(signs.astype(np.float32))


def _permute_within(values: Tensor, places: Tensor, rng: Stream) -> Tensor:
    """`values` with those at `places` (bool) permuted uniformly at random among themselves."""
    permuted = values.clone()
    chosen = values[places]
    permuted[places] = chosen[rng.permutation(chosen.numel())]
    return permuted


MASK1_ACTIONS: dict[str, Mask1Action] = {
    "rewind": rewind,
    "reinit": reinit,
    "reshuffle": reshuffle,
    "constant": constant,
    "signed_reinit": signed_reinit,
    "signed_reshuffle": signed_reshuffle,
    "signed_constant": signed_constant,
    "bimodal_reinit": bimodal_reinit,
    "signed_bimodal_reinit": signed_bimodal_reinit,
    "permute": permute,
    "randomise_signs": randomise_signs,
}

KEEPS_W_INIT_VALUES = {"rewind", "reshuffle", "signed_reshuffle", "permute", "randomise_signs"}
"""Actions whose values come from the level before, and so already carry its rescaling."""


def rescale_factor(action: str, layer: Layer, mask: Tensor, before: bool = True) -> float:
    """The factor of a `rescaled` action: (weights in layer / kept weights), whatever the level.

    Values that the level before has rescaled already (unless `before` is False: then it has not) are multiplied by what
    is missing, (alive / kept).
    Source: paper.md section 4, last row.
    """
    whole = int(layer.alive.sum()) if action in KEEPS_W_INIT_VALUES and before else mask.numel()
    return whole / max(int(mask.sum()), 1)


# --- mask-0 actions: paper.md section 5 ---


def zero(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Pruned weights are frozen at 0. Source: paper.md section 5; the paper's default."""
    return kept.masked_fill(~mask, 0.0)


def freeze_init(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Pruned weights are frozen at w_i. Source: paper.md section 5."""
    return kept.where(mask, layer.w_init)


def freeze_final(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Pruned weights are frozen at w_f. Source: paper.md section 5."""
    return kept.where(mask, layer.w_final)


def freeze_reinit(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Pruned weights are frozen at a fresh draw of the initialiser. Source: paper.md section 5; a control."""
    return kept.where(mask, reinit(layer, mask, rng))


def zero_if_shrunk(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Pruned weights are frozen at 0 if abs(w_f) < abs(w_i), else at w_i. Source: paper.md section 5, variant 1."""
    return kept.where(mask, layer.w_init.masked_fill(_shrunk(layer), 0.0))


def zero_if_shrunk_everywhere(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """`zero_if_shrunk`, and kept weights that shrank start from 0 too. Source: paper.md section 5, variant 2."""
    return zero_if_shrunk(layer, mask, kept, rng).masked_fill(_shrunk(layer), 0.0)


def zero_random(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """As many of the pruned weights at 0 as under `zero_if_shrunk`, but at random places; the others at w_i.

    Source: paper.md section 5; a control.
    """
    pruned = layer.alive & ~mask
    zeros = int((_shrunk(layer) & pruned).sum())
    places = np.flatnonzero(pruned.numpy())
    zeroed = np.zeros(pruned.numel(), dtype=bool)
    zeroed[rng.choice(places, size=zeros, replace=False)] = True
    return kept.where(mask, layer.w_init.masked_fill(mask.new_tensor(zeroed).reshape(mask.shape), 0.0))


def zero_if_grown(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Pruned weights are frozen at 0 if abs(w_f) > abs(w_i), else at w_i. Source: paper.md section 5; the reverse."""
    return kept.where(mask, layer.w_init.masked_fill(layer.w_final.abs() > layer.w_init.abs(), 0.0))


def _shrunk(layer: Layer) -> Tensor:
    return layer.w_final.abs() < layer.w_init.abs()


MASK0_ACTIONS: dict[str, Mask0Action] = {
    "zero": zero,
    "freeze_init": freeze_init,
    "freeze_final": freeze_final,
    "freeze_reinit": freeze_reinit,
    "zero_if_shrunk": zero_if_shrunk,
    "zero_if_shrunk_everywhere": zero_if_shrunk_everywhere,
    "zero_random": zero_random,
    "zero_if_grown": zero_if_grown,
}

USES_W_FINAL = {"freeze_final", "zero_if_shrunk", "zero_if_shrunk_everywhere", "zero_random", "zero_if_grown"}
"""Mask-0 actions whose values depend on w_f: without it, such a start cannot be made again."""
