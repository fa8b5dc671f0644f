"""What each action promises of the weights it sets, as a check on NumPy arrays: the certificate's vocabulary.

A promise is judged only as far as chance cannot explain what is seen: a layer of six weights may well be reshuffled
into itself. Source: paper.md section 11.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.initializers import max_abs_draw
from supermask.core.types import Layer

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

MIN_SAMPLE = 64
"""From so many different weights on, chance alone does not make one action's values look like another's."""


class LayerView:
    """The weights of one layer at some places: how they start, and where they come from."""

    def __init__(self, layer: Layer, where: Array, start: Array, factor: float) -> None:
        self._layer, self._where = layer, where
        self.std, self.factor = layer.std, np.float32(factor)
        self.start = start[where]

    @cached_property
    def w_init(self) -> Array:
        return to_numpy(self._layer.w_init)[self._where]

    @cached_property
    def w_final(self) -> Array:
        return to_numpy(self._layer.w_final)[self._where]

    @cached_property
    def rewound(self) -> Array:
        return to_numpy(self._layer.w_rewind)[self._where]

    @cached_property
    def pruned(self) -> Array:
        """w_i of the layer's other alive weights."""
        return to_numpy(self._layer.w_init)[to_numpy(self._layer.alive) & ~self._where]

    @cached_property
    def shrunk(self) -> Array:
        return np.abs(self.w_final) < np.abs(self.w_init)

    def drawn(self, checked: Array, two_peaks: bool = False) -> bool:
        """Fresh draws: within the initialiser's bound, of many magnitudes, not those of values that were there before.

        From 1,000 draws on their standard deviation is judged too, and their shape: 3% are below half a standard
        deviation if there are two peaks, 36% if there is one.
        """
        values = self.start[checked & (self.start != 0)]
        there = [self.w_init, self.w_final, *([self.pruned] if values.size >= MIN_SAMPLE else [])]
        repeated = np.isin(np.abs(values), np.abs(np.concatenate(there) * self.factor))
        size = np.abs(values) / (np.float32(self.std) * self.factor)
        return bool(
            (two_peaks or (size <= max_abs_draw(1.0) * 1.0001).all())
            and 2 * np.unique(size).size >= values.size
            and 2 * repeated.sum() <= values.size
            and (values.size < 1000 or abs(np.sqrt((size**2).mean()) - 1) < 0.2)
            and (values.size < 1000 or ((size < 0.5).mean() < 0.2) == two_peaks)
        )

    def signed(self, checked: Array) -> bool:
        """Every weight has the sign of its own w_i."""
        return bool((np.sign(self.start[checked]) == np.sign(self.w_init[checked])).all())

    def signs_lost(self, checked: Array) -> bool:
        """Not every weight has the sign of its own w_i, unless chance could do that."""
        before = self.w_init[checked]
        rarer = min(int((before > 0).sum()), int((before < 0).sum()))
        return 2 * rarer < MIN_SAMPLE or not self.signed(checked)

    def moved(self, checked: Array) -> bool:
        """Not every value is where it was, unless chance could do that."""
        before = (self.w_init * self.factor)[checked]
        return np.unique(before).size < MIN_SAMPLE or not bitwise_equal(self.start[checked], before)

    def has_both_signs(self, checked: Array) -> bool:
        """Some values were elsewhere in the layer before, unless chance could keep them all out."""
        before = (self.w_init * self.factor)[checked]
        few = min(np.unique(before).size, np.unique(self.pruned).size) < MIN_SAMPLE
        return few or not bitwise_equal(_sorted(self.start[checked]), _sorted(before))

    def permuted(self, pool: Array, checked: Array) -> bool:
        """The values are those of `pool` (all of them, if as many are checked), in whatever order."""
        have, there = _sorted(self.start[checked]), _sorted(pool * self.factor)
        if have.size == there.size:
            return bitwise_equal(have, there)
        first, last = np.searchsorted(there, have, "left"), np.searchsorted(there, have, "right")
        repeats = np.arange(have.size) - np.searchsorted(have, have, "left")
        return bool((repeats < last - first).all())

    def constant(self, checked: Array) -> bool:
        """Every magnitude is the layer's s; 0 only where w_i is 0."""
        magnitude = np.abs(np.float32(self.std)) * self.factor
        return bool(((np.abs(self.start[checked]) == magnitude) | (self.start[checked] == 0)).all())


MASK1_INVARIANTS: dict[str, Callable[[LayerView, Array], bool]] = {
    "rewind": lambda v, c: bitwise_equal(v.start[c], (v.rewound * v.factor)[c]),
    "reinit": lambda v, c: v.drawn(c) and bool(v.start[c].all()) and v.signs_lost(c),
    "reshuffle": lambda v, c: v.permuted(v.w_init, c) and v.moved(c) and v.signs_lost(c),
    "constant": lambda v, c: v.constant(c) and bool(v.start[c].all()) and v.signs_lost(c),
    "signed_reinit": lambda v, c: v.drawn(c) and v.signed(c),
    "signed_reshuffle": lambda v, c: v.permuted(v.w_init, c) and v.moved(c) and v.signed(c),
    "signed_constant": lambda v, c: v.constant(c) and v.signed(c),
    "bimodal_reinit": lambda v, c: v.drawn(c, two_peaks=True) and bool(v.start[c].all()) and v.signs_lost(c),
    "signed_bimodal_reinit": lambda v, c: v.drawn(c, two_peaks=True) and v.signed(c),
    "permute": lambda v, c: v.permuted(np.concatenate([v.w_init, v.pruned]), c) and v.has_both_signs(c),
    "randomise_signs": lambda v, c: (
        bitwise_equal(np.abs(v.start[c]), np.abs(v.w_init * v.factor)[c]) and v.signs_lost(c)
    ),
}
"""What kept weights promise; the second argument is True where a kept weight is not set to 0 for having shrunk."""

MASK0_INVARIANTS: dict[str, Callable[[LayerView], bool]] = {
    "zero": lambda v: not v.start.any(),
    "freeze_init": lambda v: bitwise_equal(v.start, v.w_init),
    "freeze_final": lambda v: bitwise_equal(v.start, v.w_final),
    "freeze_reinit": lambda v: MASK1_INVARIANTS["reinit"](v, np.ones(v.start.size, bool)),
    "zero_if_shrunk": lambda v: bitwise_equal(v.start, np.where(v.shrunk, np.float32(0), v.w_init)),
    "zero_if_shrunk_everywhere": lambda v: MASK0_INVARIANTS["zero_if_shrunk"](v),
    "zero_random": lambda v: _zeros_at_random(v),
    "zero_if_grown": lambda v: bitwise_equal(
        v.start, np.where(np.abs(v.w_final) > np.abs(v.w_init), np.float32(0), v.w_init)
    ),
}
"""What pruned weights promise."""


def _zeros_at_random(view: LayerView) -> bool:
    """As many zeros as weights shrank, but not just there, unless chance could do that; the others at w_i."""
    zeroed, shrunk = view.start == 0, int(view.shrunk.sum())
    if not bitwise_equal(view.start[~zeroed], view.w_init[~zeroed]):
        return False
    judged = min(shrunk, view.shrunk.size - shrunk) >= MIN_SAMPLE
    counted = shrunk <= int(zeroed.sum()) <= shrunk + int((view.w_init == 0).sum())
    return counted and not (judged and np.array_equal(zeroed & (view.w_init != 0), view.shrunk))


def _sorted(values: Array) -> Array:
    # -0.0 and 0.0 are equal and keep their order when sorted; adding 0.0 makes them one.
    return np.sort(values) + np.float32(0)


def bitwise_equal(a: Array, b: Array) -> bool:
    """Equal bit for bit: 0.0 is not -0.0, and NaN is NaN."""
    bits = f"u{a.itemsize}"
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a.view(bits), b.view(bits)))


def to_numpy(tensor: Tensor) -> Array:
    """The tensor's own memory as an array."""
    return np.asarray(tensor.numpy())
