"""Certificates: every promise of the algorithm, checked from the tensors of a run after it ended.

`certify` checks trained and untrained runs; `mask_certificate.certify_learned_mask` checks runs that learned a mask.
Both compute with NumPy arrays and integers, by rules of their own: a fault in a count, an action, rewinding, an engine
or a learned mask is seen here. Shared with pruning are the data that they read: `PruneStep`, `ParentRun` (which state a
snapshot is, and the `Layer` made of it) and `PrunableTensor` (names, shapes, kinds, standard deviation). A fault in
these is not seen. Which weights a criterion keeps is not checked here, only how many.

A run whose certificate fails is not a result. A check fails only on evidence that neither arithmetic nor chance can
produce in a correct run; weaker evidence is a note.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.core.invariants import (
    CARRIES_RESCALING,
    MASK0_INVARIANTS,
    MASK1_INVARIANTS,
    Array,
    LayerView,
    bitwise_equal,
    is_included,
    is_named,
    to_numpy,
)
from supermask.core.pruning import ParentRun, PruneStep
from supermask.core.types import InitialState, Layer, LearningCurve, PrunableTensor, TrainingResult

if TYPE_CHECKING:
    from torch import Tensor


SMALLEST_NORMAL = np.finfo(np.float32).tiny
"""1.2e-38. Engines that run on one thread flush smaller values to 0."""


@dataclass(frozen=True)
class Certificate:
    """Checks of one run: name of the check -> short texts of what failed, usually layer names; empty if it passed."""

    checks: dict[str, list[str]]
    """Name of the check -> short texts of what failed."""
    notes: dict[str, list[str]] = field(default_factory=dict)
    """Name of the check -> observations that a fault may cause, but rounding or chance in a correct run too."""

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not any(self.checks.values())

    def to_data(self) -> dict[str, Any]:
        """JSON-serializable dict for `run.json`. `notes` is omitted if there are none."""
        notes = {name: items for name, items in self.notes.items() if items}
        return {"held": self.passed, "checks": self.checks} | ({"notes": notes} if notes else {})


def certify(
    prunable: dict[str, PrunableTensor],
    start: InitialState,
    result: TrainingResult,
    parent: ParentRun | None,
    step: PruneStep | None,
    weight_decay: float = 0.0,
    trained: Collection[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    max_input: float = 1.0,
    fixed: Collection[str] = (),
) -> Certificate:
    """Check a run from its initial state and its result, and against its parent if it has one.

    `trained`: unmasked parameters that training changes, of a network whose layers may not be in sequence; None for the
    paper's networks. `fixed`: those with requires_grad=False. `aliases`: further names of tensors that several layers
    share. `max_input`: largest magnitude of the network's inputs (`Recipe.max_input`); 1 for pixels scaled to [0, 1].

    only_kernels_are_masked: exactly the prunable tensors have a mask, under one name, and the right shape; if not,
    nothing else is checked.
    no_layer_is_emptied: every mask keeps a weight.
    frozen_is_frozen: pruned weights end bit-equal to their start, or as 0 if they were denormal (a note).
    optimizer_holds_nothing_frozen: the optimizer state of pruned weights is 0.
    biases_train: no bias kept its value while weights of its unit moved; not checked with `trained` or `weight_decay`.
    others_train: no tensor of `trained` stayed as it was in every entry while every prunable tensor changed.
    others_are_frozen: tensors of `fixed` stay bit-equal to their start; only checked if there are any.
    dense: no weight is pruned. The next ones are checked instead if there is a parent.
    kept_count: as many weights are kept as the prune rates say, or as have a learned score above 0.
    dead_stays_dead: weights pruned before stay pruned, at the values that they were frozen at.
    mask1_promise, mask0_promise: kept and newly pruned weights start with what the actions promise of their values.
    others_rewound: all other tensors start bit-equal to the parent's state at `rewind_to`.
    Source: Zhou et al. 2019, Sec. 1: kept counts, frozen weights, rewinding and signs as the algorithm defines them.
    """
    checks = {"only_kernels_are_masked": _check_masked_tensors(prunable, start, result, aliases or {})}
    if checks["only_kernels_are_masked"]:
        return Certificate(checks)
    frozen_failed, frozen_notes = _check_frozen_weights(start, result)
    checks |= {
        "no_layer_is_emptied": [n for n, m in start.masks.items() if not bool(m.any())],
        "frozen_is_frozen": frozen_failed,
        "optimizer_holds_nothing_frozen": _check_optimizer_state(start, result),
    }
    notes = {"frozen_is_frozen": frozen_notes}
    if trained is not None:
        checks["others_train"] = _check_others_trained(start, result, trained)
    elif not weight_decay:
        # With decay, weights of a silent unit move although its bias cannot.
        checks["biases_train"], notes["biases_train"] = _check_biases_trainable(start, result, max_input)
    if fixed:
        checks["others_are_frozen"] = _check_fixed(start, result, fixed)
    if parent is not None and step is not None:
        layers = parent.layers(step)
        checks |= {
            "kept_count": _check_kept_counts(prunable, start, parent, step, layers),
            "dead_stays_dead": _check_pruned_stay_pruned(start, parent),
            "mask1_promise": _check_mask1_action(layers, start, step),
            "mask0_promise": _check_mask0_action(layers, start, step),
            "others_rewound": _check_unmasked_rewound(start, parent, step),
        }
    else:
        checks |= {"dense": [n for n, m in start.masks.items() if not bool(m.all())]}
    return Certificate(checks, {name: items for name, items in notes.items() if items})


# --- one check each; returns the layers that fail it ---


def _check_masked_tensors(
    prunable: dict[str, PrunableTensor], start: InitialState, result: TrainingResult, aliases: Mapping[str, str]
) -> list[str]:
    broken = [f"{n} is masked, but is not a kernel" for n in sorted(set(start.masks) - set(prunable))]
    broken += [
        f"{n} is masked, but is the same tensor as {aliases[n]}" for n in sorted(set(start.masks) & set(aliases))
    ]
    groups = {"mask": start.masks, "start": start.weights, "end": result.end.weights}
    for name, tensor in prunable.items():
        for part, group in groups.items():
            if name not in group:
                broken.append(f"{name} has no {part}")
            elif tuple(group[name].shape) != tensor.shape:
                broken.append(f"{name}: {part} of another shape")
    return broken


def _check_frozen_weights(start: InitialState, result: TrainingResult) -> tuple[list[str], list[str]]:
    """Return (tensors whose frozen weights changed, notes about frozen weights that an engine flushed to 0)."""
    failed: list[str] = []
    notes: list[str] = []
    for name, mask in start.masks.items():
        frozen = ~to_numpy(mask)
        before, after = to_numpy(start.weights[name])[frozen], to_numpy(result.end.weights[name])[frozen]
        if bitwise_equal(before, after):
            continue
        # On one thread PyTorch reads denormal numbers as 0 with their sign.
        flushed = np.where(np.abs(before) < SMALLEST_NORMAL, np.copysign(np.float32(0), before), before)
        same = (after.view(np.uint32) == before.view(np.uint32)) | (after.view(np.uint32) == flushed.view(np.uint32))
        if same.all():
            notes.append(f"{name}: {np.count_nonzero(flushed != before)} frozen weights below 1.2e-38 became 0")
        else:
            failed.append(name)
    return failed, notes


MIN_HELD_UNITS = 3
"""Number of units of a layer whose biases have to be unchanged before the layer fails `biases_train`, if nothing else
tells a held bias from one that returned to its initial value."""

MIN_MOVEMENT = 1e-25
"""Movement of a weight that counts, per unit of its input. Engines flush values below 1.2e-38 to 0, so a smaller
movement of the weights may belong to bias steps that were flushed."""

MIN_RELATIVE_MOVEMENT = 2.0**-8
"""Movement of a weight that counts, per unit of its input and of the bias. A smaller one may belong to 2**17 bias steps
that were each below half a unit in the last place, 2**-25 of the bias."""

MIN_OPTIMIZER_STATE = 1e-18
"""Optimizer state of a weight, per squared unit of its input, from which on the state of its unit's bias cannot have
been flushed to 0. The sum that is the bias gradient is exact to about 2**-24, its square to 2**-48 = 4e-15, and
4e-15 * 1e-18 is far above 1.2e-38. Adam's second moment shrinks by 1/e in 1,000 steps: from 1e-9 to 1e-18 in 20,000."""

MAX_LOSS_OF_WRONG_IMAGES = 15.0
"""Mean cross-entropy in nats of wrongly classified images from which on a network counts as saturated. Above ln 2**25 =
17.3 probabilities are exactly 0 and 1 in float32: the gradients of two images that are each taken for the other's class
then cancel exactly in every bias, although not in the weights."""


def _check_biases_trainable(
    start: InitialState, result: TrainingResult, max_input: float
) -> tuple[list[str], list[str]]:
    """Return (biases that were held at their initial values, notes), from units whose weights moved.

    One unchanged bias fails if its optimizer state is exactly 0 and that of the unit's weights is not: it never had a
    gradient. Adam's second moment tells for about 20,000 steps after a unit died, a momentum buffer for about 400,
    plain SGD has none. Without that evidence one unchanged bias proves nothing: of a unit that dies early, the bias can
    return to its initial value by chance (about once in 1e5 to 1e7 units). A layer then fails if that happened at least
    `MIN_HELD_UNITS` times independently, or in two intervals between snapshots for one unit. Units with equal weights
    behave alike and count once. Of a saturated network nothing fails.
    """
    failed: list[str] = []
    notes: list[str] = []
    if result.status != "finished":
        return failed, notes
    # State 0 is the start, state 1 the end. The gradient's snapshot has no state of the network.
    states = [start.state, result.end, *(state for point, state in result.snapshots.items() if point != "gradient")]
    input_bound = max_input
    for name in start.masks:
        bias = name.removesuffix("weight") + "bias"
        if bias not in start.unmasked:
            continue
        biases = np.stack([to_numpy(state.unmasked[bias]) for state in states])
        # (state, unit, input)
        weights = np.stack([to_numpy(state.weights[name]) for state in states])
        weights = weights.reshape(*weights.shape[:2], -1)
        intervals = {}
        untouched = _units_without_bias_gradient(result, name, bias, max(input_bound, 1.0))
        for unit in np.flatnonzero(biases[0] == biases[1]):
            # A weight moves by at most its input times the movement of the bias.
            enough = max(input_bound, 1.0) * max(MIN_MOVEMENT, MIN_RELATIVE_MOVEMENT * abs(float(biases[0, unit])))
            if count := _count_movements(weights[biases[:, unit] == biases[0, unit], unit], enough):
                intervals[int(unit)] = count
        with np.errstate(over="ignore", invalid="ignore"):
            input_bound *= float(np.abs(weights).sum(axis=2, dtype=np.float64).max())
            input_bound += float(np.abs(biases).max())
        distinct = {weights[:2, unit].tobytes() for unit in intervals}
        is_held = len(distinct) >= MIN_HELD_UNITS or any(
            count > 1 or (unit in untouched and _moved_in_several_steps(*weights[:2, unit]))
            for unit, count in intervals.items()
        )
        if is_held and not _is_saturated(result.curve):
            failed.append(bias)
        elif intervals:
            units = ", ".join(map(str, intervals))
            cause = "saturation" if is_held else "chance"
            notes.append(f"{bias}: unchanged in units whose weights moved ({units}), which {cause} can cause")
    return failed, notes


def _units_without_bias_gradient(result: TrainingResult, name: str, bias: str, input_bound: float) -> set[int]:
    """Return the units whose bias has an optimizer state of exactly 0 that weights with gradients rule out."""
    moments, weight_moments = result.optimizer_state.get(bias, {}), result.optimizer_state.get(name, {})
    moment_names = moments.keys() & weight_moments.keys() & {"exp_avg_sq", "momentum_buffer"}
    if not moment_names:
        return set()
    is_zero = np.all([to_numpy(values) == 0 for values in moments.values()], axis=0)
    with np.errstate(over="ignore"):
        enough = MIN_OPTIMIZER_STATE * np.square(np.float64(input_bound))
    for key in moment_names:
        values = np.abs(to_numpy(weight_moments[key]).astype(np.float64))
        is_zero &= values.reshape(len(values), -1).max(axis=1) >= enough
    return set(map(int, np.flatnonzero(is_zero)))


def _moved_in_several_steps(before: Array, after: Array) -> bool:
    """Return False if one gradient step may have moved the weights `(input,)` of a unit.

    One step of Adam, and the momentum that follows it, moves all weights equally far. In one step, and in bfloat16, the
    gradients of two images can cancel in the bias by chance.
    """
    distances = np.abs(after.astype(np.float64) - before)
    distances = distances[distances > 0]
    return bool(distances.max(initial=0.0) > 1.5 * distances.min(initial=np.inf))


def _is_saturated(curve: LearningCurve) -> bool:
    """Return True if the losses of wrong images at some evaluation may be those of probabilities of exactly 0 and 1."""
    pairs = zip(curve.validation_loss, curve.validation_accuracy, strict=True)
    return any(loss > MAX_LOSS_OF_WRONG_IMAGES * (1 - accuracy) for loss, accuracy in pairs if accuracy < 1)


def _count_movements(weights: Array, enough: float) -> int:
    """Count the intervals in which the weights `(state, input)` of a unit moved by `enough`; state 0 is the first."""
    # Snapshots may coincide and are not in order: a state counts if it differs enough from every state counted before.
    counted = [weights[0].astype(np.float64)]
    for later in weights[1:].astype(np.float64):
        if all(np.abs(later - earlier).max(initial=0.0) >= enough for earlier in counted):
            counted.append(later)
    return len(counted) - 1


MIN_RELATIVE_TRAINING = 0.01
"""Change of every prunable tensor, relative to its norm, from which a training is long enough to judge the others."""


def _check_others_trained(start: InitialState, result: TrainingResult, trained: Collection[str]) -> list[str]:
    """Return the unmasked parameters that never changed in any entry although every kernel was trained.

    Batch normalization divides by the variance of its inputs, so nothing bounds these, and a single unchanged entry
    proves nothing. At least `MIN_HELD_UNITS` entries are needed.
    """
    if result.status != "finished" or not all(
        _relative_change(start.weights[n], result.end.weights[n]) > MIN_RELATIVE_TRAINING for n in start.masks
    ):
        return []
    states = [result.end, *(state for point, state in result.snapshots.items() if point != "gradient")]
    return [
        name
        for name in sorted(trained)
        if start.unmasked[name].numel() >= MIN_HELD_UNITS
        and all(bitwise_equal(to_numpy(start.unmasked[name]), to_numpy(state.unmasked[name])) for state in states)
    ]


def _check_fixed(start: InitialState, result: TrainingResult, fixed: Collection[str]) -> list[str]:
    """Return the tensors of `fixed` that changed in training, although they have requires_grad=False."""
    states = [result.end, *(state for point, state in result.snapshots.items() if point != "gradient")]
    return [
        name
        for name in sorted(fixed)
        if not all(bitwise_equal(to_numpy(start.unmasked[name]), to_numpy(state.unmasked[name])) for state in states)
    ]


def _relative_change(before: Tensor, after: Tensor) -> float:
    first, last = to_numpy(before).astype(np.float64), to_numpy(after).astype(np.float64)
    return float(np.linalg.norm(last - first)) / max(float(np.linalg.norm(first)), 1e-30)


def _check_optimizer_state(start: InitialState, result: TrainingResult) -> list[str]:
    return [
        f"{name}: {key}"
        for name, mask in start.masks.items()
        for key, values in result.optimizer_state.get(name, {}).items()
        if np.any(to_numpy(values)[~to_numpy(mask)])
    ]


def _check_kept_counts(
    prunable: dict[str, PrunableTensor],
    start: InitialState,
    parent: ParentRun,
    step: PruneStep,
    layers: dict[str, Layer],
) -> list[str]:
    kept = {n: int(m.sum()) for n, m in start.masks.items()}
    if step.scope == "threshold":
        expected = {
            n: int(np.count_nonzero((to_numpy(layer.mask_scores) > 0) & to_numpy(layer.alive)))
            for n, layer in layers.items()
            if layer.mask_scores is not None
        }
        return [f"{n}: {kept.get(n)} kept, {count} asked" for n, count in expected.items() if kept.get(n) != count]
    alive = {n: int(m.sum()) for n, m in parent.start.masks.items()}
    rates = {n: _expected_rate(n, m.kind, step) for n, m in prunable.items()}
    if step.scope == "global":
        ranked = [n for n, rate in rates.items() if rate]
        kept["all"], alive["all"] = sum(kept.pop(n) for n in ranked), sum(alive.pop(n) for n in ranked)
        rates["all"] = step.rates["global"]
    expected = dict(alive)
    for name in expected:
        for _ in range(step.levels):
            expected[name] -= int((expected[name] * Decimal(str(rates[name]))).to_integral_value("ROUND_HALF_EVEN"))
    return [f"{n}: {kept.get(n)} kept, {count} asked" for n, count in expected.items() if kept.get(n) != count]


def _expected_rate(name: str, kind: str, step: PruneStep) -> float:
    """Return the rate of a tensor; 0 if the step spares it. Shares no code with `core.masks`, which assigns rates."""
    if not is_included(name, step.only, step.exclude):
        return 0.0
    rates = {key: rate for key, rate in step.rates.items() if key not in ("conv", "hidden", "output", "global")}
    for pattern in sorted(sorted(key for key in rates if is_named(name, key)), key=len, reverse=True):
        return rates[pattern]
    return step.rates["global" if step.scope == "global" else kind]


def _check_pruned_stay_pruned(start: InitialState, parent: ParentRun) -> list[str]:
    broken = []
    for name, alive in parent.start.masks.items():
        pruned_before = ~to_numpy(alive)
        frozen_before = to_numpy(parent.start.weights[name])[pruned_before]
        if to_numpy(start.masks[name])[pruned_before].any() or not bitwise_equal(
            to_numpy(start.weights[name])[pruned_before], frozen_before
        ):
            broken.append(name)
    return broken


def _check_unmasked_rewound(start: InitialState, parent: ParentRun, step: PruneStep) -> list[str]:
    expected = parent.state_at(step.rewind_to).unmasked
    broken = [f"{name}: not in both" for name in sorted(start.unmasked.keys() ^ expected.keys())]
    both = start.unmasked.keys() & expected.keys()
    return broken + [n for n in sorted(both) if not bitwise_equal(to_numpy(start.unmasked[n]), to_numpy(expected[n]))]


def _check_mask1_action(layers: dict[str, Layer], start: InitialState, step: PruneStep) -> list[str]:
    broken = []
    for name, layer in layers.items():
        mask = to_numpy(start.masks[name])
        view = LayerView(layer, mask & to_numpy(layer.alive), to_numpy(start.weights[name]), _factor(layer, mask, step))
        keeps_action_values = step.mask0 != "zero_if_shrunk_everywhere"
        exempt = np.zeros(view.start.size, dtype=bool) if keeps_action_values else view.shrunk
        if view.start[exempt].any():
            broken.append(f"{name}: kept weights that shrank do not start at 0")
        if not MASK1_INVARIANTS[step.mask1](view, ~exempt):
            broken.append(name)
    return broken


def _check_mask0_action(layers: dict[str, Layer], start: InitialState, step: PruneStep) -> list[str]:
    broken = []
    for name, layer in layers.items():
        pruned = to_numpy(layer.alive) & ~to_numpy(start.masks[name])
        if not MASK0_INVARIANTS[step.mask0](LayerView(layer, pruned, to_numpy(start.weights[name]), 1.0)):
            broken.append(name)
    return broken


def _factor(layer: Layer, mask: Array, step: PruneStep) -> float:
    if not step.rescaled:
        return 1.0
    carried = step.mask1 in CARRIES_RESCALING and step.rescaled_before
    whole = int(layer.alive.sum()) if carried else mask.size
    return whole / max(int(mask.sum()), 1)
