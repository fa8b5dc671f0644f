"""The certificate of a run: every promise of the algorithm, checked from the tensors after the run has ended.

Written against NumPy arrays and integers, apart from the code that makes starts, so that a fault there is seen here.
A run whose certificate does not hold is not a result. Source: paper.md section 11.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from supermask.actions import CARRIES_W_INIT
from supermask.promises import MASK0_PROMISES, MASK1_PROMISES, Array, View, as_array, same_bits
from supermask.ticket import Parent, Step
from supermask.types import Layer, Maskable, Outcome, Start


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
            "kept_count": _kept_count(maskables, start, parent, step, layers),
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
    broken = []
    for name, mask in start.masks.items():
        frozen = ~as_array(mask)
        if not same_bits(as_array(outcome.end.weights[name])[frozen], as_array(start.weights[name])[frozen]):
            broken.append(name)
    return broken


def _biases_train(start: Start, outcome: Outcome) -> list[str]:
    """A bias that is zero after training although its unit's weights moved was held there: it was pruned."""
    broken = []
    for name in start.masks:
        bias = name.removesuffix("weight") + "bias"
        if name in start.weights and bias in start.others and outcome.status == "finished":
            moved = as_array(outcome.end.weights[name]) != as_array(start.weights[name])
            unit_trained = moved.reshape(moved.shape[0], -1).any(axis=1)
            begin, end = as_array(start.others[bias]), as_array(outcome.end.others[bias])
            held_at_zero = unit_trained & (begin == 0) & (end == 0)
            if held_at_zero.any() or (unit_trained.any() and same_bits(begin, end)):
                broken.append(bias)
    return broken


def _optimizer_holds_nothing_frozen(start: Start, outcome: Outcome) -> list[str]:
    return [
        f"{name}: {key}"
        for name, state in outcome.optimizer_state.items()
        for key, values in state.items()
        if np.any(as_array(values)[~as_array(start.masks[name])])
    ]


def _kept_count(
    maskables: dict[str, Maskable], start: Start, parent: Parent, step: Step, layers: dict[str, Layer]
) -> list[str]:
    kept = {n: int(m.sum()) for n, m in start.masks.items()}
    if step.scope == "threshold":
        said = {n: layer.learned for n, layer in layers.items() if layer.learned is not None}
        asked = {n: int(np.count_nonzero(as_array(s) > 0)) for n, s in said.items()}
        return [f"{n}: {kept.get(n)} kept, {count} asked" for n, count in asked.items() if kept.get(n) != count]
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
        dead = ~as_array(alive)
        frozen_before = as_array(parent.start.weights[name])[dead]
        if as_array(start.masks[name])[dead].any() or not same_bits(as_array(start.weights[name])[dead], frozen_before):
            broken.append(name)
    return broken


def _others_rewound(start: Start, parent: Parent, step: Step) -> list[str]:
    promised = parent.at(step.rewind_to).others
    broken = [f"{name}: not in both" for name in sorted(start.others.keys() ^ promised.keys())]
    both = start.others.keys() & promised.keys()
    return broken + [n for n in sorted(both) if not same_bits(as_array(start.others[n]), as_array(promised[n]))]


def _mask1_promise(layers: dict[str, Layer], start: Start, step: Step) -> list[str]:
    broken = []
    for name, layer in layers.items():
        mask = as_array(start.masks[name])
        view = View(layer, mask & as_array(layer.alive), as_array(start.weights[name]), _factor(layer, mask, step))
        spared = step.mask0 != "zero_if_shrunk_everywhere"
        exempt = np.zeros(view.start.size, dtype=bool) if spared else view.shrunk
        if view.start[exempt].any():
            broken.append(f"{name}: kept weights that shrank do not start at 0")
        if not MASK1_PROMISES[step.mask1](view, ~exempt):
            broken.append(name)
    return broken


def _mask0_promise(layers: dict[str, Layer], start: Start, step: Step) -> list[str]:
    broken = []
    for name, layer in layers.items():
        pruned = as_array(layer.alive) & ~as_array(start.masks[name])
        if not MASK0_PROMISES[step.mask0](View(layer, pruned, as_array(start.weights[name]), 1.0)):
            broken.append(name)
    return broken


def _factor(layer: Layer, mask: Array, step: Step) -> float:
    if not step.rescaled:
        return 1.0
    carried = step.mask1 in CARRIES_W_INIT and step.rescaled_before
    whole = int(layer.alive.sum()) if carried else mask.size
    return whole / max(int(mask.sum()), 1)
