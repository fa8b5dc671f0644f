"""Certificates: every promise of the algorithm, checked from the tensors of a run after it ended.

`certify` checks trained and untrained runs; `certify_learned_mask` checks runs that learned a mask. Both use NumPy
arrays and integers and share no code with pruning and training, so a fault there is seen here. A run whose
certificate fails is not a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from supermask.core.actions import KEEPS_W_INIT_VALUES
from supermask.core.invariants import MASK0_INVARIANTS, MASK1_INVARIANTS, Array, LayerView, bitwise_equal, to_numpy
from supermask.core.learned_masks import MaskLearning
from supermask.core.pruning import ParentRun, PruneStep
from supermask.core.types import InitialState, Layer, PrunableTensor, TrainingResult, Weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Certificate:
    """Checks of one run: name of the check -> short texts of what failed, usually layer names; empty if it passed."""

    checks: dict[str, list[str]]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not any(self.checks.values())

    def to_data(self) -> dict[str, Any]:
        """JSON-serializable dict for `run.json`."""
        return {"held": self.passed, "checks": self.checks}


def certify(
    prunable: dict[str, PrunableTensor],
    start: InitialState,
    result: TrainingResult,
    parent: ParentRun | None,
    step: PruneStep | None,
    weight_decay: float = 0.0,
) -> Certificate:
    """Check a run from its initial state and its result, and against its parent if it has one.

    `biases_train` is not checked with `weight_decay`: weights of a silent unit then move although its bias cannot.
    If masks and kernels do not match, nothing else is checked.
    Source: Zhou et al. 2019, Sec. 1: kept counts, frozen weights, rewinding and signs as the algorithm defines them.
    """
    checks = {"only_kernels_are_masked": _check_masked_tensors(prunable, start, result)}
    if checks["only_kernels_are_masked"]:
        return Certificate(checks)
    checks |= {
        "no_layer_is_emptied": [n for n, m in start.masks.items() if not bool(m.any())],
        "frozen_is_frozen": _check_frozen_weights(start, result),
        "optimizer_holds_nothing_frozen": _check_optimizer_state(start, result),
    }
    if not weight_decay:
        checks["biases_train"] = _check_biases_trainable(start, result)
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
    return Certificate(checks)


# --- one check each; returns the layers that fail it ---


def _check_masked_tensors(
    prunable: dict[str, PrunableTensor], start: InitialState, result: TrainingResult
) -> list[str]:
    broken = [f"{n} is masked, but is not a kernel" for n in sorted(set(start.masks) - set(prunable))]
    groups = {"mask": start.masks, "start": start.weights, "end": result.end.weights}
    for name, tensor in prunable.items():
        for part, group in groups.items():
            if name not in group:
                broken.append(f"{name} has no {part}")
            elif tuple(group[name].shape) != tensor.shape:
                broken.append(f"{name}: {part} of another shape")
    return broken


def _check_frozen_weights(start: InitialState, result: TrainingResult) -> list[str]:
    broken = []
    for name, mask in start.masks.items():
        frozen = ~to_numpy(mask)
        if not bitwise_equal(to_numpy(result.end.weights[name])[frozen], to_numpy(start.weights[name])[frozen]):
            broken.append(name)
    return broken


def _check_biases_trainable(start: InitialState, result: TrainingResult) -> list[str]:
    """A bias that is zero after training although the weights of its unit moved was held at zero, as if pruned."""
    broken = []
    for name in start.masks:
        bias = name.removesuffix("weight") + "bias"
        if name in start.weights and bias in start.unmasked and result.status == "finished":
            moved = to_numpy(result.end.weights[name]) != to_numpy(start.weights[name])
            unit_trained = moved.reshape(moved.shape[0], -1).any(axis=1)
            begin, end = to_numpy(start.unmasked[bias]), to_numpy(result.end.unmasked[bias])
            held_at_zero = unit_trained & (begin == 0) & (end == 0)
            if held_at_zero.any() or (unit_trained.any() and bitwise_equal(begin, end)):
                broken.append(bias)
    return broken


def _check_optimizer_state(start: InitialState, result: TrainingResult) -> list[str]:
    return [
        f"{name}: {key}"
        for name, state in result.optimizer_state.items()
        for key, values in state.items()
        if np.any(to_numpy(values)[~to_numpy(start.masks[name])])
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
        scores = {n: layer.mask_scores for n, layer in layers.items() if layer.mask_scores is not None}
        expected = {n: int(np.count_nonzero(to_numpy(s) > 0)) for n, s in scores.items()}
        return [f"{n}: {kept.get(n)} kept, {count} asked" for n, count in expected.items() if kept.get(n) != count]
    alive = {n: int(m.sum()) for n, m in parent.start.masks.items()}
    if step.scope == "global":
        kept, alive, rates = {"all": sum(kept.values())}, {"all": sum(alive.values())}, {"all": step.rates["global"]}
    else:
        rates = {n: step.rates[m.kind] for n, m in prunable.items()}
    expected = dict(alive)
    for name in expected:
        for _ in range(step.levels):
            expected[name] -= int((expected[name] * Decimal(str(rates[name]))).to_integral_value("ROUND_HALF_EVEN"))
    return [f"{n}: {kept.get(n)} kept, {count} asked" for n, count in expected.items() if kept.get(n) != count]


def _check_pruned_stay_pruned(start: InitialState, parent: ParentRun) -> list[str]:
    broken = []
    for name, alive in parent.start.masks.items():
        dead = ~to_numpy(alive)
        frozen_before = to_numpy(parent.start.weights[name])[dead]
        if to_numpy(start.masks[name])[dead].any() or not bitwise_equal(
            to_numpy(start.weights[name])[dead], frozen_before
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
        spared = step.mask0 != "zero_if_shrunk_everywhere"
        exempt = np.zeros(view.start.size, dtype=bool) if spared else view.shrunk
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
    carried = step.mask1 in KEEPS_W_INIT_VALUES and step.rescaled_before
    whole = int(layer.alive.sum()) if carried else mask.size
    return whole / max(int(mask.sum()), 1)


ACCURACY_TOLERANCE = 2.0
"""Number of test images, averaged over samples, by which the learning and the reference engine may differ."""


MAX_TIED = 2
"""Number of weights of a layer that `edge_popup` may keep too few, because ties at its cut are all pruned. With fresh
scores two weights tie at 1 in 500 cuts in FC's first layer and at 1 in 30 in Conv2's largest; three at 1 in 1,000."""


def certify_learned_mask(
    prunable: dict[str, PrunableTensor],
    dense: InitialState,
    start: InitialState,
    result: TrainingResult,
    learning: MaskLearning,
    test_images: int,
) -> Certificate:
    """Check a run that learned a mask. `dense`: the untrained network of its seed.

    weights_as_promised: w_i, or s times the multiplier, with the sign of w_i where that is promised.
    weights_are_frozen, others_are_frozen: bit-equal to the initial state at the end.
    masks_are_binary: the last pass used 0 or the weight itself, times (size / ones) with rescaling.
    kept_share: `edge_popup` kept the requested count, except for ties.
    logits_are_finite: no NaN and no infinity.
    accuracies_reproduced: accuracies during learning equal those measured from the stored logits and the seed.
    Source: Zhou et al. 2019, Sec. 5.
    """
    unmatched = sorted(set(prunable) ^ (set(start.weights) & set(start.logits)))
    if unmatched:
        return Certificate({"every_kernel_has_logits": unmatched})
    states, used = [result.end, *result.points.values()], result.last_sampled_weights
    checks: dict[str, list[str]] = {
        "every_kernel_has_logits": [],
        "weights_as_promised": [n for n, m in prunable.items() if not _check_base_weights(learning, m, dense, start)],
        "weights_are_frozen": _moved(start.weights, [state.weights for state in states]),
        "others_are_frozen": _moved(start.unmasked, [state.unmasked for state in states]),
    }
    if result.status == "finished":
        checks |= {
            "logits_are_finite": _not_finite([state.logits for state in states]),
            "masks_are_binary": [
                n for n, w in start.weights.items() if not _check_binary_mask(w, used.get(n), learning)
            ],
            "kept_share": _kept_share(result, learning),
            "accuracies_reproduced": _not_reproduced(result, test_images),
        }
    return Certificate(checks)


def _check_base_weights(
    learning: MaskLearning, tensor: PrunableTensor, dense: InitialState, start: InitialState
) -> bool:
    w_init, weights = to_numpy(dense.weights[tensor.name]), to_numpy(start.weights[tensor.name])
    if learning.weights == "init":
        return bitwise_equal(weights, w_init * np.float32(learning.multiplier))
    size = np.float32(tensor.std) * np.float32(learning.multiplier)
    right = ((np.abs(weights) == np.abs(size)) | (w_init == 0)).all()
    as_w_init = (np.sign(weights) == np.sign(w_init * size)).all()
    return bool(right and (learning.weights == "constant" or as_w_init))


def _moved(start: Weights, ends: Sequence[Weights]) -> list[str]:
    return sorted({n for end in ends for n in start.keys() | end.keys() if not _same(start.get(n), end.get(n))})


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and bitwise_equal(to_numpy(a), to_numpy(b))


def _not_finite(logits: Sequence[Weights]) -> list[str]:
    return sorted(
        {name for state_logits in logits for name, m in state_logits.items() if not np.isfinite(to_numpy(m)).all()}
    )


def _check_binary_mask(weights: Tensor, used: Tensor | None, learning: MaskLearning) -> bool:
    """Each weight of the pass is 0 or the weight itself (inverted under `signed`), times one common ratio."""
    if used is None:
        return False
    w, u = to_numpy(weights), to_numpy(used)
    kept = u != 0
    own, seen = w[kept], u[kept]
    if learning.method == "signed":
        own, seen = np.abs(own), np.abs(seen)
    if not learning.rescaled:
        return bitwise_equal(seen, own)
    # A mask may keep a weight whose value is 0. Such a weight looks pruned, so the ratio has a range.
    most, least = w.size / max(seen.size, 1), w.size / max(seen.size + np.count_nonzero(w == 0), 1)
    ratios = seen.astype(np.float64) / own
    one_ratio = np.ptp(ratios) < 1e-5 * most if ratios.size else True
    return bool(one_ratio and (ratios >= least * (1 - 1e-6)).all() and (ratios <= most * (1 + 1e-6)).all())


def _kept_share(result: TrainingResult, learning: MaskLearning) -> list[str]:
    if learning.method != "edge_popup":
        return []
    broken = []
    for name, used in result.last_sampled_weights.items():
        kept, expected = int(np.count_nonzero(to_numpy(used))), round(learning.density * used.numel())
        if not 0 <= min(max(expected, 1), used.numel() - 1) - kept <= MAX_TIED:
            broken.append(f"{name}: {kept} kept, {expected} asked")
    return broken


def _not_reproduced(result: TrainingResult, test_images: int) -> list[str]:
    """Compare accuracies measured from the stored logits with those measured during learning."""
    broken = []
    for name, part in (("early_stop", "selected"), ("final", "final")):
        measured, repeated = result.metrics[f"{name}_test_accuracy"], result.supermask[part]["mean"]
        if measured is None or abs(measured - repeated) * test_images > ACCURACY_TOLERANCE:
            broken.append(f"{name}_test_accuracy: {measured} during learning, {repeated} from the stored logits")
    return broken
