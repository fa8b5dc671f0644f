"""The certificate of a run: every promise of the algorithm, checked from the tensors after the run has ended.

Written against NumPy arrays and integers, apart from the code that makes starts, so that a fault there is seen here.
A run whose certificate does not hold is not a result. Source: paper.md section 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from supermask.actions import CARRIES_W_INIT
from supermask.initialisers import largest_draw
from supermask.masks import prune_count
from supermask.ticket import Parent, Step
from supermask.types import Layer, Maskable, Outcome, Start

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]


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
    maskables: dict[str, Maskable], start: Start, outcome: Outcome, parent: Parent | None, step: Step | None
) -> Certificate:
    """Checks a run from its start and outcome, and against its parent if it has one.

    Source: paper.md section 11 ("every run carries its own certificate").
    """
    checks = {
        "only_kernels_are_masked": _only_kernels_are_masked(maskables, start),
        "no_layer_is_emptied": [n for n, m in start.masks.items() if not bool(m.any())],
        "frozen_is_frozen": _frozen_is_frozen(start, outcome),
        "biases_train": _biases_train(start, outcome),
        "optimizer_holds_nothing_frozen": _optimizer_holds_nothing_frozen(start, outcome),
    }
    if parent is not None and step is not None:
        layers = parent.layers(step)
        checks |= {
            "kept_count": _kept_count(maskables, start, parent, step),
            "dead_stays_dead": _dead_stays_dead(start, parent),
            "mask1_promise": _mask1_promise(layers, start, step),
            "mask0_promise": _mask0_promise(layers, start, parent, step),
            "others_rewound": _others_rewound(start, parent, step),
        }
    else:
        checks |= {"dense": [n for n, m in start.masks.items() if not bool(m.all())]}
    return Certificate(checks)


# --- one promise each; a list of the layers that break it ---


def _only_kernels_are_masked(maskables: dict[str, Maskable], start: Start) -> list[str]:
    masked, given = set(start.masks), set(start.weights)
    broken = [f"{n} is masked, but is no kernel" for n in sorted(masked - set(maskables))]
    broken += [f"{n} has no mask" for n in sorted(set(maskables) - masked)]
    broken += [f"{n}: mask of another shape" for n in sorted(masked & given) if start.masks[n].shape != start.weights[n].shape]
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
            held = (_np(outcome.end.others[bias]) == 0) & (_np(start.others[bias]) == 0)
            if (unit_trained & held).any() or (unit_trained.any() and _same(outcome.end.others[bias], start.others[bias])):
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
            asked[name] -= prune_count(asked[name], rates[name])
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
    return [name for name in promised if not _same(start.others[name], promised[name])]


def _mask1_promise(layers: dict[str, Layer], start: Start, step: Step) -> list[str]:
    broken = []
    for name, layer in layers.items():
        mask = _np(start.masks[name])
        view = _View(layer, mask & _np(layer.alive), _np(start.weights[name]), _factor(layer, mask, step))
        exempt = _shrunk(layer)[view.where] if step.mask0 == "zero_if_shrunk_everywhere" else np.zeros(view.start.size, bool)
        if not _same_bits(view.start[exempt], np.zeros(int(exempt.sum()), np.float32)):
            broken.append(f"{name}: kept weights that shrank do not start at 0")
        if not MASK1_PROMISES[step.mask1](view, ~exempt):
            broken.append(name)
    return broken


def _mask0_promise(layers: dict[str, Layer], start: Start, parent: Parent, step: Step) -> list[str]:
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
        self.where, self.std, self.factor = where, layer.std, np.float32(factor)
        self.start = start[where]
        self.w_init, self.w_final = _np(layer.w_init)[where], _np(layer.w_final)[where]
        self.rewound = _np(layer.rewound)[where]
        self.all_w_init = _np(layer.w_init)[_np(layer.alive)]

    def drawn(self, bound: float, checked: Array) -> bool:
        """Fresh draws: within the initialiser's bound, and not what was there before."""
        values, before = self.start[checked], self.w_init[checked] * self.factor
        fresh = values.size < 2 or not _same_bits(values, before)
        return fresh and bool((np.abs(values) <= bound * self.factor * 1.0001).all())

    def signed(self, checked: Array) -> bool:
        """Every weight has the sign of its own w_i."""
        return bool((np.sign(self.start[checked]) == np.sign(self.w_init[checked])).all())

    def permuted(self, pool: Array, checked: Array) -> bool:
        """The values are those of `pool` (all of them, if as many are checked), in whatever order."""
        have, there = np.sort(self.start[checked]), np.sort(pool * self.factor)
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
    "reinit": lambda v, c: v.drawn(largest_draw(v.std), c),
    "reshuffle": lambda v, c: v.permuted(v.w_init, c),
    "constant": lambda v, c: v.constant(c) and bool((v.start[c] != 0).all()),
    "signed_reinit": lambda v, c: v.drawn(largest_draw(v.std), c) and v.signed(c),
    "signed_reshuffle": lambda v, c: v.permuted(v.w_init, c) and v.signed(c),
    "signed_constant": lambda v, c: v.constant(c) and v.signed(c),
    "bimodal_reinit": lambda v, c: v.drawn(np.inf, c),
    "signed_bimodal_reinit": lambda v, c: v.drawn(np.inf, c) and v.signed(c),
    "permute": lambda v, c: v.permuted(v.all_w_init, c),
}

MASK0_PROMISES: dict[str, Callable[[_View], bool]] = {
    "zero": lambda v: not v.start.any(),
    "freeze_init": lambda v: _same_bits(v.start, v.w_init),
    "freeze_final": lambda v: _same_bits(v.start, v.w_final),
    "freeze_reinit": lambda v: v.drawn(largest_draw(v.std), np.ones(v.start.size, bool)),
    "zero_if_shrunk": lambda v: _same_bits(v.start, np.where(np.abs(v.w_final) < np.abs(v.w_init), np.float32(0), v.w_init)),
    "zero_if_shrunk_everywhere": lambda v: MASK0_PROMISES["zero_if_shrunk"](v),
    "zero_random": lambda v: _as_many_zeros_as_shrunk(v),
    "zero_if_grown": lambda v: _same_bits(v.start, np.where(np.abs(v.w_final) > np.abs(v.w_init), np.float32(0), v.w_init)),
}


def _as_many_zeros_as_shrunk(view: _View) -> bool:
    zeroed = view.start == 0
    if not _same_bits(view.start[~zeroed], view.w_init[~zeroed]):
        return False
    shrunk, zero_before = int((np.abs(view.w_final) < np.abs(view.w_init)).sum()), int((view.w_init == 0).sum())
    return shrunk <= int(zeroed.sum()) <= shrunk + zero_before


def _factor(layer: Layer, mask: Array, step: Step) -> float:
    if not step.rescaled:
        return 1.0
    whole = int(layer.alive.sum()) if step.mask1 in CARRIES_W_INIT else mask.size
    return whole / max(int(mask.sum()), 1)


def _shrunk(layer: Layer) -> Array:
    return np.abs(_np(layer.w_final)) < np.abs(_np(layer.w_init))


def _np(tensor: Tensor) -> Array:
    return np.asarray(tensor.numpy())


def _same(a: Tensor, b: Tensor) -> bool:
    return _same_bits(_np(a), _np(b))


def _same_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}")))
