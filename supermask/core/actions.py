"""Mask-1 actions set the kept weights before training; mask-0 actions set and freeze the pruned weights.

Every action is a pure function of one layer. It returns a tensor of the layer's shape and changes nothing in place.
In the formulas w_i is `layer.w_init`, w_f is `layer.w_final` and s is `layer.std`, the standard deviation of the
layer's original initialization. *Kept* weights are those where `mask` is True. *Pruned* weights are those that this
level prunes: alive before, and not in `mask`. Values at weights that were pruned at earlier levels are ignored.

A new action: one function here, a line in `MASK1_ACTIONS` (and in `KEEPS_W_INIT_VALUES` if it sets values of w_i) or in
`MASK0_ACTIONS` (and in `USES_W_FINAL` if it reads w_f), its invariant in `core/invariants.py`; the other places are
listed in docs/architecture.md, "To add ...".
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
"""(layer, mask, kept, rng) -> initial values of all weights; `kept` is the result of the mask-1 action."""


# --- mask-1 actions: Zhou et al. 2019, Sec. 3 ---


def rewind(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to w_i, or to those at the study's `rewind_to`. Source: Zhou et al. 2019, Sec. 3, Fig. 4."""
    return layer.w_rewind


def reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to fresh draws from the layer's original initializer.

    Source: Zhou et al. 2019, Sec. 3, Fig. 4.
    Differs from the paper: the authors' code permutes the layer's initial values; that is `permute` here.
    """
    shape = tuple(layer.w_init.shape)
    return layer.w_init.new_tensor(truncated_normal(shape, layer.std, rng) if layer.draw is None else layer.draw(rng))


def reshuffle(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Permute the w_i of the kept weights among themselves. Source: Zhou et al. 2019, Sec. 3, Fig. 4."""
    return _permute_within(layer.w_init, mask, rng)


def constant(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to +s or -s, with a random sign. Source: Zhou et al. 2019, Sec. 3, Fig. 4."""
    signs = 2 * rng.integers(0, 2, size=tuple(layer.w_init.shape)) - 1
    return layer.w_init.new_tensor(np.float32(layer.std) * signs.astype(np.float32))


def signed_reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to sign(w_i) * abs(`reinit`). Source: Zhou et al. 2019, Sec. 3, Fig. 4."""
    return reinit(layer, mask, rng).abs() * layer.w_init.sign()


def signed_reshuffle(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Permute the w_i of the kept weights within each sign group, so every weight keeps its sign.

    Source: Zhou et al. 2019, Sec. 3, Fig. 4.
    Differs from the paper: the authors' code permutes the magnitudes of all kept weights and gives each weight its own
    sign. The difference is numerically negligible.
    """
    sign = layer.w_init.sign()
    shuffled = layer.w_init
    for same_sign in (sign > 0, sign < 0):
        shuffled = _permute_within(shuffled, mask & same_sign, rng)
    return shuffled


def signed_constant(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to sign(w_i) * s. Source: Zhou et al. 2019, Sec. 3, Fig. 4."""
    return layer.w_init.sign() * layer.std


def bimodal_reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to draws from the two-peaked `initializers.bimodal`.

    Source: Zhou et al. 2019, authors' response, item 6 (open).
    """
    return layer.w_init.new_tensor(bimodal(tuple(layer.w_init.shape), layer.std, rng))


def signed_bimodal_reinit(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to sign(w_i) * abs(`bimodal_reinit`).

    Source: Zhou et al. 2019, authors' response, item 6 (open).
    """
    return bimodal_reinit(layer, mask, rng).abs() * layer.w_init.sign()


def permute(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Permute the w_i of all alive weights of the layer, kept or not, among themselves.

    Source: Zhou et al. 2019, Sec. 3: the authors' code does this under the name of reinit.
    """
    return _permute_within(layer.w_init, layer.alive, rng)


def randomise_signs(layer: Layer, mask: Tensor, rng: Stream) -> Tensor:
    """Set kept weights to abs(w_i) with a random sign; destroys a supermask.

    Source: Zhou et al. 2019, authors' response, item 7.
    """
    signs = 2 * rng.integers(0, 2, size=tuple(layer.w_init.shape)) - 1
    return layer.w_init.abs() * layer.w_init.new_tensor(signs.astype(np.float32))


def _permute_within(values: Tensor, places: Tensor, rng: Stream) -> Tensor:
    """Return `values` with the entries at `places` (bool) permuted uniformly at random among themselves."""
    permuted = values.clone()
    selected = values[places]
    permuted[places] = selected[rng.permutation(selected.numel())]
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
"""Mask-1 actions that a study file can name."""

KEEPS_W_INIT_VALUES = {"rewind", "reshuffle", "signed_reshuffle", "permute", "randomise_signs"}
"""Actions whose values come from the previous level, so they already contain its rescaling factor."""


def rescale_factor(action: str, layer: Layer, mask: Tensor, before: bool = True) -> float:
    """Return the factor of a `rescaled` action, so that weights end up times (weights in layer / kept weights).

    Values that the previous level rescaled already get the missing factor (alive / kept) only. `before`: whether the
    previous level was rescaled.
    Source: Zhou et al. 2019, Sec. 3, Fig. 4.
    """
    total = int(layer.alive.sum()) if action in KEEPS_W_INIT_VALUES and before else mask.numel()
    return total / max(int(mask.sum()), 1)


# --- mask-0 actions: Zhou et al. 2019, Sec. 4 ---


def zero(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze pruned weights at 0, the paper's default. Source: Zhou et al. 2019, Sec. 4, Fig. 5."""
    return kept.masked_fill(~mask, 0.0)


def freeze_init(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze pruned weights at w_i. Source: Zhou et al. 2019, Sec. 4, Fig. 5."""
    return kept.where(mask, layer.w_init)


def freeze_final(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze pruned weights at w_f. Source: Zhou et al. 2019, Sec. 4."""
    return kept.where(mask, layer.w_final)


def freeze_reinit(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze pruned weights at fresh draws from the initializer: a control. Source: Zhou et al. 2019, Sec. 4."""
    return kept.where(mask, reinit(layer, mask, rng))


def zero_if_shrunk(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze pruned weights at 0 if abs(w_f) < abs(w_i), else at w_i.

    Source: Zhou et al. 2019, Sec. 4, Fig. 5 (variant 1).
    """
    return kept.where(mask, layer.w_init.masked_fill(_shrunk(layer), 0.0))


def zero_if_shrunk_everywhere(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Apply `zero_if_shrunk`, and start kept weights that shrank from 0 as well.

    Source: Zhou et al. 2019, Sec. 4, Fig. 5 (variant 2).
    """
    return zero_if_shrunk(layer, mask, kept, rng).masked_fill(_shrunk(layer), 0.0)


def zero_random(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze as many pruned weights at 0 as `zero_if_shrunk` would, at random places; the others at w_i: a control.

    Source: Zhou et al. 2019, Sec. 4, Fig. 5.
    Differs from the paper: the authors draw the places among all weights pruned so far, so their share of zeros falls
    over levels. Here each level has as many zeros as `zero_if_shrunk`.
    """
    pruned = layer.alive & ~mask
    zeros = int((_shrunk(layer) & pruned).sum())
    places = np.flatnonzero(pruned.numpy())
    zeroed = np.zeros(pruned.numel(), dtype=bool)
    zeroed[rng.choice(places, size=zeros, replace=False)] = True
    return kept.where(mask, layer.w_init.masked_fill(mask.new_tensor(zeroed).reshape(mask.shape), 0.0))


def zero_if_grown(layer: Layer, mask: Tensor, kept: Tensor, rng: Stream) -> Tensor:
    """Freeze pruned weights at 0 if abs(w_f) > abs(w_i), else at w_i: the reverse of `zero_if_shrunk`.

    Source: Zhou et al. 2019, Sec. 4, Fig. 5.
    """
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
"""Mask-0 actions that a study file can name."""

USES_W_FINAL = {"freeze_final", "zero_if_shrunk", "zero_if_shrunk_everywhere", "zero_random", "zero_if_grown"}
"""Mask-0 actions whose values depend on w_f; without w_f their initial states cannot be replayed."""
