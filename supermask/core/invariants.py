"""Invariants of the actions, as checks on NumPy arrays: what each action promises of the weights that it sets.

A check fails only if chance cannot explain the values. For example, six weights may well be reshuffled into their old
order, so small layers are not judged there. Bounds of draws, the actions that carry a factor and the patterns of
`prune.only` and `prune.exclude` are written here once more, because certificates share no rule with pruning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.core.types import Layer

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

MIN_SAMPLE = 64
"""Number of distinct weights from which chance alone cannot make the values of one action look like another's."""

MAX_SAMPLE = 2**20
"""Number of draws that are compared with each other. Of 1e8 draws most are equal to another one in float32."""


MAX_ABS_DRAWS = {
    "glorot_normal": 2 / 0.879625661,
    "glorot_normal_wide": 2 / 0.879625661,
    "kaiming_uniform": 3**0.5,
}
"""Initializer -> largest magnitude of a draw, in its standard deviations; others have no bound. 0.8796 is the standard
deviation of a standard normal truncated at two standard deviations."""

CARRIES_RESCALING = ("permute", "randomise_signs", "reshuffle", "rewind", "signed_reshuffle")
"""Mask-1 actions that take the values of w_i, which have the factor of an earlier rescaled level in them."""


class LayerView:
    """Selected weights of one layer: their initial values, and the values they come from."""

    def __init__(self, layer: Layer, where: Array, start: Array, factor: float) -> None:
        self._layer, self._where = layer, where
        self.std, self.factor = layer.std, np.float32(factor)
        self.initializer = layer.initializer
        self.start = start[where]

    @cached_property
    def w_init(self) -> Array:
        return to_numpy(self._layer.w_init)[self._where]

    @cached_property
    def w_final(self) -> Array:
        return to_numpy(self._layer.w_final)[self._where]

    @cached_property
    def w_rewind(self) -> Array:
        return to_numpy(self._layer.w_rewind)[self._where]

    @cached_property
    def unselected_w_init(self) -> Array:
        """w_i of the alive weights of the layer that are not selected."""
        return to_numpy(self._layer.w_init)[to_numpy(self._layer.alive) & ~self._where]

    @cached_property
    def shrunk(self) -> Array:
        return np.abs(self.w_final) < np.abs(self.w_init)

    def is_drawn(self, checked: Array, two_peaks: bool = False) -> bool:
        """Check for fresh draws: within the initializer's bound, of many magnitudes, not values from before.

        From 1,000 draws on, also check the standard deviation and the shape: 3% of the draws are below half a standard
        deviation if there are two peaks, 29% to 38% if there is one. The initializer `own` may be any distribution,
        with zeros and repeated values.
        """
        two_peaks = two_peaks or self.initializer == "bimodal"
        is_user_defined = self.initializer == "own" and not two_peaks
        if self.initializer == "constant" and not two_peaks:
            return self.is_constant(checked)
        values = np.abs(self.start[checked & (self.start != 0)])
        pools = [self.w_init, self.w_final, *([self.unselected_w_init] if values.size >= MIN_SAMPLE else [])]
        earlier = np.sort(np.abs(np.concatenate(pools) * self.factor))
        repeated = _count_members(values, earlier)
        if 2 * repeated > values.size >= MIN_SAMPLE:
            # A layer of 1e7 weights uses up most float32 values near its deviation, so draws repeat earlier values by
            # chance. Neighbors of the values in float32 repeat by chance only.
            repeated -= _count_members(np.nextafter(values, np.float32(np.inf)), earlier)
        magnitude = values / np.float32(max(self.std, 1e-30) * self.factor)
        bound = np.inf if two_peaks else MAX_ABS_DRAWS.get(self.initializer, np.inf)
        if is_user_defined:
            return bool(
                2 * np.unique(values[:MAX_SAMPLE]).size < values[:MAX_SAMPLE].size or 2 * repeated <= values.size
            )
        return bool(
            (magnitude <= bound * 1.0001).all()
            and 2 * np.unique(magnitude[:MAX_SAMPLE]).size >= magnitude[:MAX_SAMPLE].size
            and 2 * repeated <= values.size
            and (values.size < 1000 or abs(np.sqrt((magnitude**2).mean()) - 1) < 0.2)
            and (values.size < 1000 or ((magnitude < 0.5).mean() < 0.2) == two_peaks)
        )

    def has_own_signs(self, checked: Array) -> bool:
        """Check that every weight has the sign of its own w_i; constructors of the user's may draw zeros."""
        signs = np.sign(self.start[checked])
        may_be_zero = (signs == 0) & (self.initializer == "own")
        return bool((may_be_zero | (signs == np.sign(self.w_init[checked]))).all())

    def is_nonzero(self, checked: Array) -> bool:
        """Check that no weight is 0, unless the initializer draws zeros."""
        return self.initializer == "own" or bool(self.start[checked].all())

    def has_lost_signs(self, checked: Array) -> bool:
        """Check that some weight lost the sign of its w_i, unless chance could keep all signs."""
        before = self.w_init[checked]
        rarer = min(int((before > 0).sum()), int((before < 0).sum()))
        return 2 * rarer < MIN_SAMPLE or not self.has_own_signs(checked)

    def is_moved(self, checked: Array) -> bool:
        """Check that some value changed its place, unless chance could leave all in place."""
        before = (self.w_init * self.factor)[checked]
        return np.unique(before).size < MIN_SAMPLE or not bitwise_equal(self.start[checked], before)

    def has_values_from_unselected(self, checked: Array) -> bool:
        """Check that some values come from the rest of the layer, unless chance could keep them all out."""
        before = (self.w_init * self.factor)[checked]
        few = min(np.unique(before).size, np.unique(self.unselected_w_init).size) < MIN_SAMPLE
        return few or not bitwise_equal(_sorted(self.start[checked]), _sorted(before))

    def is_permutation_of(self, pool: Array, checked: Array) -> bool:
        """Check that the values are those of `pool` in any order; all of them if as many are checked."""
        values, source = _sorted(self.start[checked]), _sorted(pool * self.factor)
        if values.size == source.size:
            return bitwise_equal(values, source)
        # Multiset inclusion: the j-th repetition of a value needs at least j + 1 copies of it in the pool.
        first, last = np.searchsorted(source, values, "left"), np.searchsorted(source, values, "right")
        repeats = np.arange(values.size) - np.searchsorted(values, values, "left")
        return bool((repeats < last - first).all())

    def is_constant(self, checked: Array) -> bool:
        """Check that every magnitude is the layer's s, or 0."""
        magnitude = np.abs(np.float32(self.std)) * self.factor
        return bool(((np.abs(self.start[checked]) == magnitude) | (self.start[checked] == 0)).all())


MASK1_INVARIANTS: dict[str, Callable[[LayerView, Array], bool]] = {
    "rewind": lambda v, c: bitwise_equal(v.start[c], (v.w_rewind * v.factor)[c]),
    "reinit": lambda v, c: v.is_drawn(c) and v.is_nonzero(c) and v.has_lost_signs(c),
    "reshuffle": lambda v, c: v.is_permutation_of(v.w_init, c) and v.is_moved(c) and v.has_lost_signs(c),
    "constant": lambda v, c: v.is_constant(c) and v.is_nonzero(c) and v.has_lost_signs(c),
    "signed_reinit": lambda v, c: v.is_drawn(c) and v.has_own_signs(c),
    "signed_reshuffle": lambda v, c: v.is_permutation_of(v.w_init, c) and v.is_moved(c) and v.has_own_signs(c),
    "signed_constant": lambda v, c: v.is_constant(c) and v.has_own_signs(c),
    "bimodal_reinit": lambda v, c: (
        v.is_drawn(c, two_peaks=True) and (v.std == 0 or bool(v.start[c].all())) and v.has_lost_signs(c)
    ),
    "signed_bimodal_reinit": lambda v, c: v.is_drawn(c, two_peaks=True) and v.has_own_signs(c),
    "permute": lambda v, c: (
        v.is_permutation_of(np.concatenate([v.w_init, v.unselected_w_init]), c) and v.has_values_from_unselected(c)
    ),
    "randomise_signs": lambda v, c: (
        bitwise_equal(np.abs(v.start[c]), np.abs(v.w_init * v.factor)[c]) and v.has_lost_signs(c)
    ),
}
"""Mask-1 action -> check of kept weights. The second argument is False where `zero_if_shrunk_everywhere` set 0."""

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
"""Mask-0 action -> check of the weights that the level prunes."""


def _zeros_at_random(view: LayerView) -> bool:
    """Check for as many zeros as weights shrank, at other places unless chance allows it, and w_i elsewhere."""
    zeroed, shrunk = view.start == 0, int(view.shrunk.sum())
    if not bitwise_equal(view.start[~zeroed], view.w_init[~zeroed]):
        return False
    judged = min(shrunk, view.shrunk.size - shrunk) >= MIN_SAMPLE
    counted = shrunk <= int(zeroed.sum()) <= shrunk + int((view.w_init == 0).sum())
    return counted and not (judged and np.array_equal(zeroed & (view.w_init != 0), view.shrunk))


def _count_members(values: Array, pool: Array) -> int:
    """Return how many of `values` are in `pool`, which is sorted. One sort serves two counts; `np.isin` sorts anew."""
    places = np.searchsorted(pool, values)
    return int((pool[np.minimum(places, pool.size - 1)] == values).sum()) if pool.size else 0


def _sorted(values: Array) -> Array:
    # -0.0 and 0.0 compare equal, so sorting leaves them in any order; adding 0.0 turns -0.0 into 0.0.
    return np.sort(values) + np.float32(0)


def bitwise_equal(a: Array, b: Array) -> bool:
    """Compare bit by bit: 0.0 differs from -0.0, and NaN equals NaN."""
    bits = f"u{a.itemsize}"
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a.view(bits), b.view(bits)))


def to_numpy(tensor: Tensor) -> Array:
    """Return the tensor's memory as an array, without a copy."""
    return np.asarray(tensor.numpy())


def is_included(name: str, only: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return True if these patterns of `prune.only` and `prune.exclude` include the tensor."""
    is_excluded = any(is_named(name, pattern) for pattern in exclude)
    return not is_excluded and (not only or any(is_named(name, pattern) for pattern in only))


def is_named(name: str, pattern: str) -> bool:
    """Return True if a pattern names the tensor or its layer."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return any(re.fullmatch(expression, text, re.DOTALL) for text in (name, ".".join(name.split(".")[:-1])))
