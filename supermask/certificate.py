"""The certificate of a run: every promise of the algorithm, checked from the tensors after the run has ended.

Written against NumPy arrays and integers, apart from the code that makes starts, so that a fault there is seen here.
A run whose certificate does not hold is not a result. Source: paper.md section 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.actions import CARRIES_W_INIT
from supermask.initialisers import largest_draw
from supermask.ticket import Parent, Step
from supermask.types import Layer, Maskable, Outcome, Start

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]

ENOUGH = 64
"""From so many different weights on, chance alone does not make one action's values look like another's."""


@dataclass(frozen=True)
class Certificate:
    """What was checked: name of the promise -> the layers that break it (empty where it holds), as short texts."""

    checks: dict[str, list[str]]

    @property
    def held(self) -> bool:
        """True if no promise is broken."""
        return not any(self.checks.values())

    def to_data(self) -> dict[str, Any]:
        """Plain data for `run.json`."""
        return {"held": self.held, "checks": self.checks}


def certify(
    maskables: dict[str, Maskable],
    start: Start,
    outcome: Outcome,
    parent: Parent | None,
    step: Step | None,
    weight_decay: float = 0.0,
) -> Certificate:
    """Checks a run from its start and outcome, and against its parent if it has one.

    With `weight_decay`, `biases_train` is not judged: weights of a silent unit then move although its bias cannot.
    If masks and kernels do not match, nothing else is judged.
    Source: paper.md section 11 ("every run carries its own certificate").
    """
    checks = {"only_kernels_are_masked": _only_kernels_are_masked(maskables, start, outcome)}
    if checks["only_kernels_are_masked"]:
        return Certificate(checks)
    checks |= {
        "no_layer_is_emptied": [n for n, m in start.masks.items() if not bool(m.any())],
        "frozen_is_frozen": _frozen_is_frozen(start, outcome),
        "optimizer_holds_nothing_frozen": _optimizer_holds_nothing_frozen(start, outcome),
    }
    if not weight_decay:
        checks["biases_train"] = _biases_train(start, outcome)
    if parent is not None and step is not None:
        layers = parent.layers(step)
        checks |= {
            "kept_count": _kept_count(maskables, start, parent, step),
            "dead_stays_dead": _dead_stays_dead(start, parent),
            "mask1_promise": _mask1_promise(layers, start, step),
            "mask0_promise": _mask0_promise(layers, start, step),
            "others_rewound": _others_rewound(start, parent, step),
        }
    else:
        checks |= {"dense": [n for n, m in start.masks.items() if not bool(m.all())]}
    return Certificate(checks)


# --- one promise each; a list of the layers that break it ---


def _only_kernels_are_masked(maskables: dict[str, Maskable], start: Start, outcome: Outcome) -> list[str]:
    broken = [f"{n} is masked, but is no kernel" for n in sorted(set(start.masks) - set(maskables))]
    tensors = {"mask": start.masks, "start": start.weights, "end": outcome.end.weights}
    for name, maskable in maskables.items():
        for what, of in tensors.items():
            if name not in of:
                broken.append(f"{name} has no {what}")
            elif tuple(of[name].shape) != maskable.shape:
                broken.append(f"{name}: {what} of another shape")
    return broken


def _frozen_is_frozen(start: Start, outcome: Outcome) -> list[str]:
    return [
        name
        for name, mask in start.masks.items()
        if not _same_bits(_np(outcome.end.weights[name])[~_np(mask)], _np(start.weights[name])[~_np(mask)])
    ]


def _biases_train(start: Start, outcome: Outcome) -> list[str]:
    """A bias that is zero after training although its unit's weights moved was held there: it was pruned."""
    broken = []
    for name in start.masks:
        bias = name.removesuffix("weight") + "bias"
        if name in start.weights and bias in start.others and outcome.status == "finished":
            moved = _np(outcome.end.weights[name]) != _np(start.weights[name])
            unit_trained = moved.reshape(moved.shape[0], -1).any(axis=1)
            begin, end = _np(start.others[bias]), _np(outcome.end.others[bias])
            held_at_zero = unit_trained & (begin == 0) & (end == 0)
            if held_at_zero.any() or (unit_trained.any() and _same_bits(begin, end)):
                broken.append(bias)
    return broken


def _optimizer_holds_nothing_frozen(start: Start, outcome: Outcome) -> list[str]:
    return [
        f"{name}: {key}"
        for name, state in outcome.optimizer_state.items()
        for key, values in state.items()
        if np.any(_np(values)[~_np(start.masks[name])])
    ]


def _kept_count(maskables: dict[str, Maskable], start: Start, parent: Parent, step: Step) -> list[str]:
    kept = {n: int(m.sum()) for n, m in start.masks.items()}
    alive = {n: int(m.sum()) for n, m in parent.start.masks.items()}
    if step.scope == "global":
        kept, alive, rates = {"all": sum(kept.values())}, {"all": sum(alive.values())}, {"all": step.rates["global"]}
    else:
        rates = {n: step.rates[m.kind] for n, m in maskables.items()}
    asked = dict(alive)
    for name in asked:
        for _ in range(step.levels):
            asked[name] -= int((asked[name] * Decimal(str(rates[name]))).to_integral_value("ROUND_HALF_EVEN"))
    return [f"{n}: {kept.get(n)} kept, {count} asked" for n, count in asked.items() if kept.get(n) != count]


def _dead_stays_dead(start: Start, parent: Parent) -> list[str]:
    broken = []
    for name, alive in parent.start.masks.items():
        dead = ~_np(alive)
        frozen_before = _np(parent.start.weights[name])[dead]
        if _np(start.masks[name])[dead].any() or not _same_bits(_np(start.weights[name])[dead], frozen_before):
            broken.append(name)
    return broken


def _others_rewound(start: Start, parent: Parent, step: Step) -> list[str]:
    promised = parent.at(step.rewind_to).others
    broken = [f"{name}: not in both" for name in sorted(start.others.keys() ^ promised.keys())]
    both = start.others.keys() & promised.keys()
    return broken + [n for n in sorted(both) if not _same_bits(_np(start.others[n]), _np(promised[n]))]


def _mask1_promise(layers: dict[str, Layer], start: Start, step: Step) -> list[str]:
    broken = []
    for name, layer in layers.items():
        mask = _np(start.masks[name])
        view = _View(layer, mask & _np(layer.alive), _np(start.weights[name]), _factor(layer, mask, step))
        exempt = view.shrunk & (step.mask0 == "zero_if_shrunk_everywhere")
        if view.start[exempt].any():
            broken.append(f"{name}: kept weights that shrank do not start at 0")
        if not MASK1_PROMISES[step.mask1](view, ~exempt):
            broken.append(name)
    return broken


def _mask0_promise(layers: dict[str, Layer], start: Start, step: Step) -> list[str]:
    broken = []
    for name, layer in layers.items():
        pruned = _np(layer.alive) & ~_np(start.masks[name])
        if not MASK0_PROMISES[step.mask0](_View(layer, pruned, _np(start.weights[name]), 1.0)):
            broken.append(name)
    return broken


# --- what each action promises ---


class _View:
    """The weights of one layer at some places: how they start, and where they come from."""

    def __init__(self, layer: Layer, where: Array, start: Array, factor: float) -> None:
        self.std, self.factor = layer.std, np.float32(factor)
        self.start = start[where]
        self.w_init, self.w_final = _np(layer.w_init)[where], _np(layer.w_final)[where]
        self.rewound = _np(layer.rewound)[where]
        self.elsewhere = _np(layer.w_init)[_np(layer.alive) & ~where]
        self.shrunk = np.abs(self.w_final) < np.abs(self.w_init)

    def drawn(self, checked: Array, two_peaks: bool = False) -> bool:
        """Fresh draws: within the initialiser's bound, of many magnitudes, not values that were there before.

        Their shape is judged from 1,000 draws on: 3% are below half a standard deviation if there are two peaks,
        36% if there is one.
        """
        values = self.start[checked & (self.start != 0)]
        bound = np.inf if two_peaks else largest_draw(self.std) * float(self.factor) * 1.0001
        before = np.isin(values, np.concatenate([self.w_init, self.w_final]) * self.factor)
        small = np.abs(values) < 0.5 * self.std * self.factor
        return bool(
            (np.abs(values) <= bound).all()
            and 2 * np.unique(np.abs(values)).size >= values.size
            and 2 * before.sum() <= values.size
            and (values.size < 1000 or (small.mean() < 0.2) == two_peaks)
        )

    def signed(self, checked: Array) -> bool:
        """Every weight has the sign of its own w_i."""
        return bool((np.sign(self.start[checked]) == np.sign(self.w_init[checked])).all())

    def signs_lost(self, checked: Array) -> bool:
        """Not every weight has the sign of its own w_i, unless chance could do that."""
        before = self.w_init[checked]
        rarer = min(int((before > 0).sum()), int((before < 0).sum()))
        return 2 * rarer < ENOUGH or not self.signed(checked)

    def moved(self, checked: Array) -> bool:
        """Not every value is where it was, unless chance could do that."""
        before = (self.w_init * self.factor)[checked]
        return np.unique(before).size < ENOUGH or not _same_bits(self.start[checked], before)

    def mixed(self, checked: Array) -> bool:
        """Some values were elsewhere in the layer before, unless chance could keep them all out."""
        before = (self.w_init * self.factor)[checked]
        few = min(np.unique(before).size, np.unique(self.elsewhere).size) < ENOUGH
        return few or not _same_bits(_sorted(self.start[checked]), _sorted(before))

    def permuted(self, pool: Array, checked: Array) -> bool:
        """The values are those of `pool` (all of them, if as many are checked), in whatever order."""
        have, there = _sorted(self.start[checked]), _sorted(pool * self.factor)
        if have.size == there.size:
            return _same_bits(have, there)
        first, last = np.searchsorted(there, have, "left"), np.searchsorted(there, have, "right")
        repeats = np.arange(have.size) - np.searchsorted(have, have, "left")
        return bool((repeats < last - first).all())

    def constant(self, checked: Array) -> bool:
        """Every magnitude is the layer's s; 0 only where w_i is 0."""
        magnitude = np.abs(np.float32(self.std)) * self.factor
        return bool(((np.abs(self.start[checked]) == magnitude) | (self.start[checked] == 0)).all())


MASK1_PROMISES: dict[str, Callable[[_View, Array], bool]] = {
    "rewind": lambda v, c: _same_bits(v.start[c], (v.rewound * v.factor)[c]),
    "reinit": lambda v, c: v.drawn(c) and bool(v.start[c].all()) and v.signs_lost(c),
    "reshuffle": lambda v, c: v.permuted(v.w_init, c) and v.moved(c) and v.signs_lost(c),
    "constant": lambda v, c: v.constant(c) and bool(v.start[c].all()) and v.signs_lost(c),
    "signed_reinit": lambda v, c: v.drawn(c) and v.signed(c),
    "signed_reshuffle": lambda v, c: v.permuted(v.w_init, c) and v.moved(c) and v.signed(c),
    "signed_constant": lambda v, c: v.constant(c) and v.signed(c),
    "bimodal_reinit": lambda v, c: v.drawn(c, two_peaks=True) and bool(v.start[c].all()) and v.signs_lost(c),
    "signed_bimodal_reinit": lambda v, c: v.drawn(c, two_peaks=True) and v.signed(c),
    "permute": lambda v, c: v.permuted(np.concatenate([v.w_init, v.elsewhere]), c) and v.mixed(c),
}
"""What kept weights promise; the second argument is True where a kept weight is not set to 0 for having shrunk."""

MASK0_PROMISES: dict[str, Callable[[_View], bool]] = {
    "zero": lambda v: not v.start.any(),
    "freeze_init": lambda v: _same_bits(v.start, v.w_init),
    "freeze_final": lambda v: _same_bits(v.start, v.w_final),
    "freeze_reinit": lambda v: MASK1_PROMISES["reinit"](v, np.ones(v.start.size, bool)),
    "zero_if_shrunk": lambda v: _same_bits(v.start, np.where(v.shrunk, np.float32(0), v.w_init)),
    "zero_if_shrunk_everywhere": lambda v: MASK0_PROMISES["zero_if_shrunk"](v),
    "zero_random": lambda v: _zeros_at_random(v),
    "zero_if_grown": lambda v: _same_bits(
        v.start, np.where(np.abs(v.w_final) > np.abs(v.w_init), np.float32(0), v.w_init)
    ),
}
"""What pruned weights promise."""


def _zeros_at_random(view: _View) -> bool:
    """As many zeros as weights shrank, but not just there, unless chance could do that; the others at w_i."""
    zeroed, shrunk = view.start == 0, int(view.shrunk.sum())
    if not _same_bits(view.start[~zeroed], view.w_init[~zeroed]):
        return False
    judged = min(shrunk, view.shrunk.size - shrunk) >= ENOUGH
    counted = shrunk <= int(zeroed.sum()) <= shrunk + int((view.w_init == 0).sum())
    return counted and not (judged and np.array_equal(zeroed & (view.w_init != 0), view.shrunk))


def _factor(layer: Layer, mask: Array, step: Step) -> float:
    if not step.rescaled:
        return 1.0
    whole = int(layer.alive.sum()) if step.mask1 in CARRIES_W_INIT else mask.size
    return whole / max(int(mask.sum()), 1)


def _np(tensor: Tensor) -> Array:
    return np.asarray(tensor.numpy())


def _sorted(values: Array) -> Array:
    # -0.0 and 0.0 are equal and keep their order when sorted; adding 0.0 makes them one.
    return np.sort(values) + np.float32(0)


def _same_bits(a: Array, b: Array) -> bool:
    bits = f"u{a.itemsize}"
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a.view(bits), b.view(bits)))
